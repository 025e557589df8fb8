"""Sound as sequences of samples: WAV files, folders of them, and the Free Spoken Digit Dataset."""

from __future__ import annotations

import io
import itertools
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from ._reading import files_in, read_bytes, reading, tar_files
from ._riff import parse
from .events import EventBatch
from .files import file_in, require_folder, verify
from .loading import EventDataset

_FSDD_FILES = ("recordings.tar.xz", "recordings")
_FSDD_ARCHIVE = "02adae3c87578aa789a54aecf92a0bbbcec430db1141bc4a0186a9d6cce25176"
_FSDD_ORIGIN = "https://github.com/Jakobovski/free-spoken-digit-dataset, folder recordings"
_FSDD_TEST_INDICES = 5


class Recordings(NamedTuple):
    """N sound recordings of one rate.

    Attributes:
        names: of the files.
        data: values (S, channels) float32 in [-1, 1), times (S,) int64 in samples since the beginning, and the class
            (N,) int64 of each recording.
        classes: names of the classes.
        rate: samples a second.
    """

    names: tuple[str, ...]
    data: EventDataset
    classes: tuple[str, ...]
    rate: int


class SpokenDigits(NamedTuple):
    """The official split of the Free Spoken Digit Dataset: recordings 0 to 4 of each speaker and digit are the test.

    Attributes:
        train: 2,700 recordings at 8 kHz; the class is the digit.
        test: 300 recordings.
    """

    train: Recordings
    test: Recordings


def read_wav(file: str | Path | BinaryIO, name: str | None = None) -> tuple[Tensor, int]:
    """Read a WAV file of 8, 16, 24 or 32-bit integer samples, with a plain or extensible header, RF64 included.

    A file that was written into a pipe, and does not tell its length, is read to its end.

    Args:
        file: path, or an open binary file.
        name: names an open file in messages.

    Returns:
        (L, channels) float32 in [-1, 1), and the rate in samples a second.

    Raises:
        DataError: the file is missing, truncated or no such WAV file.
    """
    place = name or str(file)
    if isinstance(file, (str, os.PathLike)):
        content = read_bytes(Path(file))
    else:
        with reading(place):
            content = bytes(file.read())
    sound = parse(content, place)
    return _samples(sound.data, sound.width).reshape(-1, sound.channels), sound.rate


def _samples(data: memoryview, width: int) -> Tensor:
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if width == 1:
        return (raw.float() - 128) / 128
    # Little-endian bytes at the top of an int32, whose sign is then that of the sample.
    parts = raw.reshape(-1, width).to(torch.int32)
    whole = torch.zeros(len(parts), dtype=torch.int32)
    for byte in range(width):
        whole |= parts[:, byte] << 8 * (4 - width + byte)
    return (whole.double() / 2**31).float()


def read_wav_folder(folder: str | Path, label: Callable[[Path], str] | None = None) -> Recordings:
    """Read all .wav files of a folder and its subfolders, in order of their paths; hidden ones are left out.

    Args:
        folder: where they are.
        label: the class of a file by its path in the folder; None: the name of the folder it is in.

    Raises:
        DataError: there are no files, one cannot be read, they differ in rate or channels, or all are of one class.
    """
    root = Path(folder)
    paths = files_in(root, ".wav", below=True)
    if not paths:
        raise DataError(f"{folder} has no .wav files")
    chosen = label or (lambda path: path.parent.name)
    files = [(path.relative_to(root).as_posix(), path, chosen(path.relative_to(root))) for path in paths]
    return _recordings(str(folder), ((name, *read_wav(path), kind) for name, path, kind in files))


def _recordings(place: str, found: Iterable[tuple[str, Tensor, int, str]]) -> Recordings:
    names, sounds, rates, kinds = (list(column) for column in zip(*found, strict=True))
    for name, sound, rate in zip(names, sounds, rates, strict=True):
        if (rate, sound.shape[1]) != (rates[0], sounds[0].shape[1]):
            raise DataError(
                f"{place}: {name} has {sound.shape[1]} channels at {rate} Hz, {names[0]} {sounds[0].shape[1]} at "
                f"{rates[0]} Hz: convert them to one form"
            )
    classes = tuple(sorted(set(kinds)))
    if len(classes) < 2:
        raise DataError(f"{place}: all recordings are of one class, {classes[0]!r}; there is nothing to tell apart")
    events = EventBatch.from_sequences((sound, torch.arange(len(sound))) for sound in sounds)
    labels = torch.tensor([classes.index(kind) for kind in kinds])
    return Recordings(tuple(names), EventDataset(events, labels), classes, rates[0])


def load_spoken_digits(data_dir: str | Path | None = None, *, verify_checksums: bool = True) -> SpokenDigits:
    """Load the Free Spoken Digit Dataset: 3,000 recordings of 6 speakers at 8 kHz.

    Args:
        data_dir: folder with recordings/ or recordings.tar.xz; None: `$PHASED_LSTM_DATA/fsdd`, else the cache.
        verify_checksums: whether an archive must be the one that is known.

    Raises:
        DataError: files are missing, damaged or not named digit_speaker_index.wav.
    """
    folder = require_folder("fsdd", [_FSDD_FILES], data_dir, _FSDD_ORIGIN)
    source = file_in(folder, _FSDD_FILES)
    if source.is_dir():
        found = [(path.name, *read_wav(path)) for path in files_in(source, ".wav")]
    else:
        if verify_checksums:
            verify(source, _FSDD_ARCHIVE)
        sounds = sorted((name.name, content) for name, content in tar_files(source, ".wav"))
        found = [(name, *read_wav(io.BytesIO(content), f"{source}: {name}")) for name, content in sounds]
        if twice := next((one[0] for one, other in itertools.pairwise(found) if one[0] == other[0]), None):
            raise DataError(f"{source} has {twice} twice: fetch it again")
    parts: tuple[list[tuple[str, Tensor, int, str]], ...] = ([], [])
    for name, sound, rate in found:
        match = re.fullmatch(r"(\d)_[a-z]+_(\d+)\.wav", name)
        if match is None:
            raise DataError(f"{source}: {name} should be named digit_speaker_index.wav")
        parts[int(match[2]) < _FSDD_TEST_INDICES].append((name, sound, rate, match[1]))
    for part, kind in zip(parts, ("training", "test"), strict=True):
        if not part:
            raise DataError(f"{source} has no {kind} recordings")
    return SpokenDigits(*(_recordings(str(source), part) for part in parts))
