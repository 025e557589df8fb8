"""N-MNIST: handwritten digits as an event camera saw them (Orchard, Jayawant, Cohen and Thakor, 2015)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from ._reading import files_in, read_bytes, zip_files
from .event_cameras import require_inside, require_rising
from .events import EventBatch

SIDE = 34
PARTS = ("Train", "Test")

_DIGITS = tuple("0123456789")
_EVENT_BYTES = 5
_SOURCE = "https://www.garrickorchard.com/datasets/n-mnist"


class Recordings(NamedTuple):
    """Event-camera recordings, one after the other; recording n has the events offsets[n] to offsets[n + 1].

    Attributes:
        x: (S,) uint8, column of each event's pixel, 0 to 33.
        y: (S,) uint8, its row, 0 to 33.
        polarity: (S,) uint8, 1 where the pixel grew brighter, 0 where darker.
        times: (S,) int64, microseconds since the recording began; they never decrease within a recording.
        offsets: (N + 1,) int64.
        labels: (N,) int64, 0 to 9.
    """

    x: Tensor
    y: Tensor
    polarity: Tensor
    times: Tensor
    offsets: Tensor
    labels: Tensor

    def events(self) -> EventBatch:
        """Return a batch of values (S, 3) uint8 of column, row and polarity, for `AddressEncoder`, and the times."""
        return EventBatch(torch.stack([self.x, self.y, self.polarity], dim=1), self.times, self.offsets)


class EventDigits(NamedTuple):
    """A split data set of recordings, each part in the order of its file names."""

    train: Recordings
    test: Recordings


def load(name: str, data_dir: str | Path | None = None) -> EventDigits:
    """Load N-MNIST from files of the official format and layout.

    In the folder are Train/DIGIT/NUMBER.bin and Test/DIGIT/NUMBER.bin, or zip archives of that layout (Train.zip
    and Test.zip as published, or one with both), which are read without being unpacked. Hidden files, and what systems
    leave beside others, are left out.

    Args:
        name: "nmnist", the whole set, or "nmnist-small", a subset: the folder in `$PHASED_LSTM_DATA`.
        data_dir: a folder of any other place.

    Raises:
        DataError: an unknown name; nothing there (the message says where the files come from and belong); or a file
            that is not what it should be or is there twice, which it names.
    """
    if name not in ("nmnist", "nmnist-small"):
        raise DataError(f"data should be nmnist or nmnist-small, got {name!r}; a folder of your own goes by data_dir=")
    folder = _folder(name, data_dir)
    if _unpacked(folder):
        return EventDigits(*(_part(folder, part, _in_folder(folder, part)) for part in PARTS))
    archives = files_in(folder, ".zip")
    parts = {part: [file for archive in archives for file in _in_archive(archive, part)] for part in PARTS}
    return EventDigits(*(_part(folder, part, files) for part, files in parts.items()))


def decode(data: bytearray, sizes: list[int], names: list[str], labels: list[int]) -> Recordings:
    """Decode files of five bytes an event: x, y, then 24 bits, the highest first, of polarity (1) and time (23).

    Args:
        data: the files' bytes, one after the other; not to be changed while the result is in use.
        sizes: bytes of each file.
        names: of the files, for errors.
        labels: the digits shown.

    Raises:
        DataError: names the first file that is empty, has a part of an event, an event outside the sensor's 34 x 34
            pixels, or a time before that of the event before.
    """
    for size, name in zip(sizes, names, strict=True):
        if not size or size % _EVENT_BYTES:
            raise DataError(
                f"{name} has {size} bytes, expected a multiple of {_EVENT_BYTES} and not 0: truncated or not N-MNIST; "
                f"fetch it again"
            )
    events = torch.frombuffer(data, dtype=torch.uint8).reshape(-1, _EVENT_BYTES)
    offsets = torch.tensor([0, *sizes]).cumsum(0) // _EVENT_BYTES
    x, y, high, middle, low = (column.contiguous() for column in events.unbind(1))
    times = (high & 0x7F).long()
    # In place: the whole set has 250 million events.
    times.mul_(256).add_(middle).mul_(256).add_(low)

    require_inside(x, y, (SIDE, SIDE), offsets, names, ": corrupt or not N-MNIST")
    require_rising(times, offsets, names, " microseconds: corrupt or not N-MNIST")
    return Recordings(x, y, high >> 7, times, offsets, torch.tensor(labels))


def _folder(name: str, data_dir: str | Path | None) -> Path:
    root = os.environ.get("PHASED_LSTM_DATA")
    if data_dir is None and not root:
        raise DataError(_how_to_get(name, "PHASED_LSTM_DATA is not set"))
    folder = Path(data_dir) if data_dir is not None else Path(str(root)) / name
    if not _unpacked(folder) and not files_in(folder, ".zip"):
        raise DataError(_how_to_get(name, f"{folder} has neither Train/ and Test/ nor a zip archive of them"))
    return folder


def _unpacked(folder: Path) -> bool:
    return all((folder / part).is_dir() for part in PARTS)


def _how_to_get(name: str, found: str) -> str:
    what = "Train.zip and Test.zip (1.1 GB)" if name == "nmnist" else "a zip archive with Train/ and Test/"
    return (
        f"{found}. N-MNIST is not downloaded by itself, as its addresses change: get it by hand, by way of {_SOURCE}, "
        f"and put {what} into PHASED_LSTM_DATA/{name}; there is no need to unpack them"
    )


class _File(NamedTuple):
    key: tuple[str, str]
    name: str
    data: bytes


def _part(folder: Path, part: str, files: Iterable[_File]) -> Recordings:
    found = sorted(files)
    if not found:
        raise DataError(f"{folder} has no recordings {part}/DIGIT/NUMBER.bin")
    for one, other in itertools.pairwise(found):
        if one.key == other.key:
            raise DataError(f"{one.name} and {other.name} are one recording: leave one of them out")
    # Joined here and not while reading, so that the recordings come in the order of their names.
    data = bytearray().join(file.data for file in found)
    sizes = [len(file.data) for file in found]
    return decode(data, sizes, [file.name for file in found], [int(file.key[1]) for file in found])


def _in_folder(folder: Path, part: str) -> Iterator[_File]:
    for digit in _DIGITS:
        for path in files_in(folder / part / digit, ".bin"):
            yield _File((path.name, digit), str(path), read_bytes(path))


def _in_archive(archive: Path, part: str) -> Iterator[_File]:
    def wanted(name: PurePosixPath) -> bool:
        # An archive may hold the folders inside one of its own.
        return name.suffix.lower() == ".bin" and name.parts[-3:-2] == (part,) and name.parts[-2] in _DIGITS

    for name, data in zip_files(archive, wanted):
        yield _File((name.name, name.parts[-2]), f"{archive}: {name}", data)
