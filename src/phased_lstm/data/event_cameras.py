"""Recordings of event cameras: Prophesee's .dat files, and the arrays that other libraries read other formats into."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..errors import DataError, missing_extra
from .events import EventBatch

if TYPE_CHECKING:
    import numpy as np

    Recording = np.ndarray[Any, Any] | Mapping[str, Any]

Late = Literal["error", "sort"]

_LATE = ("error", "sort")
_LARGEST = torch.iinfo(torch.int16).max
_DAT_VERSION = 2
_DAT_TYPES = {0: "Event2d", 12: "EventCd"}
_DAT_EVENT_BYTES = 8
_COORDINATE_BITS = 14


def address_events(
    recordings: Recording | Iterable[Recording],
    *,
    fields: Sequence[str | None] = ("x", "y", "t", "p"),
    sensor_size: tuple[int, int] | None = None,
    late: Late = "error",
) -> EventBatch:
    """Make a batch of structured arrays of events, as tonic, expelliarmus, aedat and similar libraries return them.

    Args:
        recordings: a structured array (L,), a mapping of names to arrays (L,), or several of either.
        fields: names of column, row, time and polarity, in this order. None for a row or a polarity that there is
            not: it is then 0. Polarities are bool, 0 and 1, or -1 and 1.
        sensor_size: width and height in pixels; None: not known, not checked.
        late: what a time before that of the event before does: "error", or "sort", which puts the events of a
            recording in the order of their times, keeping that of equal ones.

    Returns:
        Values (S, 3) int16 of column, row and polarity (0 or 1), for `AddressEncoder`; times in the unit of the arrays,
        int64, or float64 where they are floating.

    Raises:
        DataError: a field that is missing or of another kind, a pixel outside the sensor, another polarity, or times
            that go back; it names the recording, recordings[n].
        ValueError: an unknown value of `late`, or not four fields.
        ImportError: numpy is not installed.
    """
    try:
        import numpy as np
    except ImportError as error:
        raise missing_extra("data", "numpy") from error
    if len(fields) != 4 or fields[0] is None or fields[2] is None:
        raise ValueError(f"fields should name column, row, time and polarity, the first and third always; got {fields}")
    given = [recordings] if isinstance(recordings, (np.ndarray, Mapping)) else list(recordings)
    if not given:
        raise DataError("there should be at least one recording")
    columns, lengths = [], []
    for number, recording in enumerate(given):
        name = f"recordings[{number}]"
        time = _field(recording, fields[2], name)
        if time.dtype.kind not in "iuf":
            raise DataError(f"{name}: times {fields[2]!r} should be integers or floats, got {time.dtype}")
        if not np.isfinite(time).all():
            raise DataError(f"{name}: times {fields[2]!r} should be finite")
        parts = [torch.from_numpy(time.astype(np.float64 if time.dtype.kind == "f" else np.int64))]
        for field in (fields[0], fields[1], fields[3]):
            values = np.zeros(len(time), np.int16) if field is None else _field(recording, field, name)
            if values.dtype.kind not in "iub" or values.shape != time.shape:
                raise DataError(
                    f"{name}: {field!r} should be {len(time)} integers, as there are times, got {values.dtype} of "
                    f"shape {values.shape}"
                )
            parts.append(torch.from_numpy(values.astype(np.int64)))
        columns.append(parts)
        lengths.append(len(time))
    kinds = [parts[0].dtype for parts in columns]
    if len(set(kinds)) > 1:
        other = next(number for number, kind in enumerate(kinds) if kind != kinds[0])
        raise DataError(
            f"recordings[{other}] has times of {kinds[other]}, recordings[0] of {kinds[0]}: integers in all, or floats"
        )
    times, x, y, polarity = (torch.cat([parts[index] for parts in columns]) for index in range(4))
    names = [f"recordings[{number}]" for number in range(len(given))]
    return _batch(x, y, polarity, times, lengths, names, [sensor_size] * len(given), late)


def read_dat(
    paths: str | Path | Iterable[str | Path], *, sensor_size: tuple[int, int] | None = None, late: Late = "error"
) -> EventBatch:
    """Read Prophesee .dat files of version 2, in which N-CARS and others are published, one recording each.

    A file has lines that begin with "%", a byte of the kind of events and one of their size, and eight bytes an event,
    the lowest first: 32 bits of time in microseconds, 14 of the column, 14 of the row, 4 of polarity. See
    https://docs.prophesee.ai/stable/data/file_formats/dat.html.

    Args:
        paths: one or several files.
        sensor_size: width and height in pixels; None: what the header tells, and not checked where it tells nothing.
        late: as in `address_events`.

    Returns:
        Values (S, 3) int16 of column, row and polarity (1 brighter, 0 darker), for `AddressEncoder`; times int64 in
        microseconds.

    Raises:
        DataError: a file that cannot be read, is truncated, holds no events or is no such file, a pixel outside the
            sensor, or times that go back; it names the file.
        ValueError: an unknown value of `late`.
    """
    files = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not files:
        raise DataError("there should be at least one file")
    words, lengths, sizes = [], [], []
    for path in map(Path, files):
        try:
            content = bytearray(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        start, size = _dat_header(path, content)
        count, rest = divmod(len(content) - start, _DAT_EVENT_BYTES)
        if rest or not count:
            raise DataError(
                f"{path} has {len(content) - start} bytes of events, expected a multiple of {_DAT_EVENT_BYTES} and not "
                f"0: truncated; fetch it again"
            )
        # A copy, as the header's length leaves the events unaligned.
        words.append(torch.frombuffer(content[start:], dtype=torch.int32).reshape(-1, 2))
        lengths.append(count)
        sizes.append(sensor_size or size)
    times, addresses = (torch.cat(words).long() & 0xFFFFFFFF).unbind(1)
    mask = (1 << _COORDINATE_BITS) - 1
    x, y = addresses & mask, addresses >> _COORDINATE_BITS & mask
    return _batch(x, y, addresses >> 2 * _COORDINATE_BITS, times, lengths, [str(path) for path in files], sizes, late)


def _dat_header(path: Path, content: bytearray) -> tuple[int, tuple[int, int] | None]:
    """Where the events begin, and the size of the sensor if it is told."""
    header = re.match(rb"(?:%[^\n]*\n)*", content)
    assert header is not None
    start = header.end()
    lines = [line.lstrip("%").split() for line in header.group().decode("latin-1").splitlines()]
    entries = {words[0].lower(): words[1:] for words in lines if words}
    if entries.get("version") != [str(_DAT_VERSION)]:
        found = "no such line" if "version" not in entries else f"version {' '.join(entries['version'])}"
        raise DataError(
            f"{path} should begin with lines that begin with %, one of them '% Version {_DAT_VERSION}', got {found}: "
            f"no .dat file of events, or of another version"
        )
    if len(content) < start + 2:
        raise DataError(f"{path} ends within its header: truncated; fetch it again")
    kind, size = content[start : start + 2]
    if kind not in _DAT_TYPES or size != _DAT_EVENT_BYTES:
        known = ", ".join(f"{number} ({name})" for number, name in _DAT_TYPES.items())
        raise DataError(
            f"{path} holds events of kind {kind} of {size} bytes, expected {known} of {_DAT_EVENT_BYTES}: triggers and "
            f"other kinds are not read"
        )
    told = [entries.get(name, []) for name in ("width", "height")]
    if not all(len(words) == 1 and re.fullmatch(r"0*[1-9][0-9]{0,3}", words[0], re.ASCII) for words in told):
        return start + 2, None
    width, height = (int(words[0]) for words in told)
    return start + 2, (width, height)


def _field(recording: Any, field: str, name: str) -> Any:
    import numpy as np

    if isinstance(recording, Mapping):
        known = list(recording)
    elif isinstance(recording, np.ndarray):
        known = list(recording.dtype.names or ())
    else:
        raise DataError(
            f"{name} should be a structured array or a mapping of names to arrays, got {type(recording).__name__}"
        )
    if field not in known:
        raise DataError(
            f"{name} has no field {field!r}, but {', '.join(map(str, known)) or 'none at all'}: name them with "
            f"fields=(column, row, time, polarity)"
        )
    if np.ma.is_masked(recording[field]):
        raise DataError(f"{name}: {field!r} has masked entries: leave those events out")
    values = np.asarray(recording[field])
    if values.ndim != 1:
        raise DataError(f"{name}: {field!r} should be of shape (L,), got {values.shape}")
    if not len(values):
        return np.zeros(0, np.int64)
    if values.dtype == np.uint64 and values.max() > np.iinfo(np.int64).max:
        raise DataError(f"{name}: {field!r} has {values.max()}, beyond what 64 bits with a sign hold")
    return values


def _batch(
    x: Tensor,
    y: Tensor,
    polarity: Tensor,
    times: Tensor,
    lengths: list[int],
    names: list[str],
    sizes: list[tuple[int, int] | None],
    late: str,
) -> EventBatch:
    """Check events laid end to end, and make a batch of them."""
    if late not in _LATE:
        raise ValueError(f"late should be one of {', '.join(_LATE)}, got {late!r}")
    for given in filter(None, sizes):
        sides = given if isinstance(given, (tuple, list)) else ()
        if len(sides) != 2 or not all(isinstance(side, int) and 0 < side <= _LARGEST + 1 for side in sides):
            raise ValueError(f"sensor_size should be two integers from 1 to {_LARGEST + 1}, got {given}")
    offsets = torch.tensor([0, *itertools.accumulate(lengths)])
    for name, size, start, stop in zip(names, sizes, offsets.tolist(), offsets[1:].tolist(), strict=False):
        limit = size or (_LARGEST + 1, _LARGEST + 1)
        own = torch.tensor([0, stop - start])
        require_inside(x[start:stop], y[start:stop], limit, own, [name], ": corrupt, or another sensor_size")
    # Where some are -1, 0 is none of the two.
    signed = torch.stack([part.lt(0).any() for part in polarity.split(lengths)]).repeat_interleave(offsets.diff())
    wrong = (polarity < -1) | (polarity > 1) | (signed & (polarity == 0))
    if bool(wrong.any()):
        event, name = first_of(wrong, offsets, names)
        raise DataError(f"{name} has an event of polarity {polarity[event]}, expected 0 or 1, or -1 or 1: corrupt")
    values = torch.stack([x, y, polarity > 0], dim=1).to(torch.int16)
    if late == "sort":
        order = times.argsort(stable=True)
        owner = torch.arange(len(lengths)).repeat_interleave(offsets.diff())
        order = order[owner[order].argsort(stable=True)]
        values, times = values[order], times[order]
    require_rising(times, offsets, names, ": corrupt, or give late='sort' to put them in order")
    return EventBatch(values, times, offsets)


def require_inside(x: Tensor, y: Tensor, size: tuple[int, int], offsets: Tensor, names: list[str], advice: str) -> None:
    """Raise DataError, with the name of the first recording that has an event outside a sensor of width and height."""
    width, height = size
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    if bool(outside.any()):
        event, name = first_of(outside, offsets, names)
        most = f"0 to {width - 1}" + (f" and 0 to {height - 1}" if height != width else "")
        raise DataError(f"{name} has an event at x = {x[event]}, y = {y[event]}, expected {most}{advice}")


def require_rising(times: Tensor, offsets: Tensor, names: list[str], advice: str) -> None:
    """Raise DataError, with the name of the first recording in which a time is before that of the event before."""
    earlier = torch.zeros(len(times), dtype=torch.bool)
    torch.lt(times[1:], times[:-1], out=earlier[1:])
    begins = offsets[1:-1]
    earlier[begins[begins < len(times)]] = False
    if bool(earlier.any()):
        event, name = first_of(earlier, offsets, names)
        raise DataError(f"{name} goes back in time, from {times[event - 1]} to {times[event]}{advice}")


def first_of(bad: Tensor, offsets: Tensor, names: list[str]) -> tuple[int, str]:
    """Return the first of the events that are marked (S,), and the name of its recording."""
    event = int(bad.to(torch.uint8).argmax())
    return event, names[int(torch.searchsorted(offsets, event, right=True)) - 1]
