"""Recordings of event cameras: Prophesee's .dat files, and the arrays that other libraries read other formats into."""

from __future__ import annotations

import itertools
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .._checks import LARGEST_INTEGER_TIME
from .._time_warnings import warn_of_grid
from ..errors import DataError, missing_extra
from ._reading import read_bytes
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
_TIME_BITS = 32
_LATEST = 1_000_000


def address_events(
    recordings: Recording | Iterable[Recording],
    *,
    fields: Sequence[str | None] = ("x", "y", "t", "p"),
    sensor_size: tuple[int, int] | None = None,
    late: Late = "error",
) -> EventBatch:
    """Make a batch of structured arrays of events, as tonic, expelliarmus, aedat and similar libraries return them.

    Args:
        recordings: a structured array (L,), a mapping of names to arrays (L,) or a table with columns that have these
            names, or several of them.
        fields: names of column, row, time and polarity, in this order. None for a row or a polarity that there is
            not: it is then 0. Polarities are bool, 0 and 1, or -1 and 1.
        sensor_size: width and height in pixels; None: not known, not checked.
        late: what a time before that of the event before does: "error", or "sort", which puts the events of a
            recording in the order of their times, keeping that of equal ones.

    Returns:
        Values (S, 3) int16 of column, row and polarity (0 or 1), for `AddressEncoder`; times in the unit of the arrays,
        int64, or float64 where they are floating.

    Raises:
        DataError: a field that is missing or of another kind, a pixel outside the sensor, another polarity, times that
            go back, or times of a counter of up to 32 bits that began again; it names the recording, recordings[n].
        ValueError: an unknown value of `late`, or not four fields.
        ImportError: numpy is not installed.
    """
    try:
        import numpy as np
    except ImportError as error:
        raise missing_extra("data", "numpy") from error
    if len(fields) != 4 or fields[0] is None or fields[2] is None:
        raise ValueError(f"fields should name column, row, time and polarity, the first and third always; got {fields}")
    given = [recordings] if _is_recording(recordings) else list(recordings)
    if not given:
        raise DataError("there should be at least one recording")
    columns, lengths = [], []
    for number, recording in enumerate(given):
        name = f"recordings[{number}]"
        time = _field(recording, fields[2], name)
        parts = [torch.from_numpy(_times(time, fields[2], name))]
        for field in (fields[0], fields[1], fields[3]):
            values = np.zeros(len(time), np.int16) if field is None else _field(recording, field, name)
            if (values.dtype.kind not in "iub" and len(values)) or values.shape != time.shape:
                raise DataError(
                    f"{name}: {field!r} should be {len(time)} integers, as there are times, got {values.dtype} of "
                    f"shape {values.shape}"
                )
            parts.append(torch.from_numpy(values.astype(np.int64)))
        columns.append(parts)
        lengths.append(len(time))
    # A recording without events has times of no kind.
    kinds = {number: parts[0].dtype for number, parts in enumerate(columns) if lengths[number]}
    first = next(iter(kinds), 0)
    if other := next((number for number, kind in kinds.items() if kind != kinds[first]), None):
        raise DataError(
            f"recordings[{other}] has times of {kinds[other]}, recordings[{first}] of {kinds[first]}: integers in all, "
            f"or floats"
        )
    times, x, y, polarity = (
        torch.cat([parts[index].to(columns[first][index].dtype) for parts in columns]) for index in range(4)
    )
    names = [f"recordings[{number}]" for number in range(len(given))]
    return _batch(x, y, polarity, times, lengths, names, [sensor_size] * len(given), late)


def read_dat(
    paths: str | Path | Iterable[str | Path], *, sensor_size: tuple[int, int] | None = None, late: Late = "error"
) -> EventBatch:
    """Read Prophesee .dat files of version 2, in which N-CARS and others are published, one recording each.

    A file has lines that begin with "%", a byte of the kind of events and one of their size, and eight bytes an event,
    the lowest first: 32 bits of time in microseconds, 14 of the column, 14 of the row, 4 of polarity. See
    https://docs.prophesee.ai/stable/data/file_formats/dat.html. Where the time begins again at 0, after 71 minutes, it
    is counted on.

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
        content = bytearray(read_bytes(path))
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
        sizes.append(size if sensor_size is None else sensor_size)
    counts, addresses = (torch.cat(words).long() & 0xFFFFFFFF).unbind(1)
    times = torch.cat([_counted_on(part) for part in counts.split(lengths)])
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


def _counted_on(counts: Tensor) -> Tensor:
    """Times (L,) of a counter of 32 bits that begins again, some of them a little late."""
    period = 1 << _TIME_BITS
    steps = counts.diff(prepend=counts[:1])
    # A rise by nearly the whole is an event of before the counter began again; a smaller one, a pause.
    jumps = ((steps < -(period // 2)) | (steps > period - _LATEST)).nonzero().flatten()
    rounds, entered = 0, []
    for rises in steps[jumps].gt(0).tolist():
        rounds = max(0, rounds - 1) if rises else rounds + 1
        entered.append(rounds)
    if not any(entered):
        return counts
    lengths = torch.cat([jumps, torch.tensor([len(counts)])]).diff(prepend=torch.tensor([0]))
    return counts + torch.tensor([0, *entered]).repeat_interleave(lengths) * period


def _times(time: Any, field: str, name: str) -> Any:
    import numpy as np

    if time.dtype.kind not in "iuf":
        advice = ": give numbers, such as .astype('datetime64[us]').astype('int64')" if time.dtype.kind in "mM" else ""
        raise DataError(f"{name}: times {field!r} should be integers or floats, got {time.dtype}{advice}")
    if not np.isfinite(time).all():
        raise DataError(f"{name}: times {field!r} should be finite")
    if time.dtype == np.float32:
        warn_of_grid(torch.from_numpy(time.astype("=f4")), None, stacklevel=3)
    wide = time.astype(np.float64 if time.dtype.kind == "f" else np.int64)
    if time.dtype.itemsize > wide.dtype.itemsize and (wide != time).any():
        raise DataError(f"{name}: times {field!r} are {time.dtype}, and more exact than float64: round them first")
    if wide.dtype.kind == "i" and (far := (wide < -LARGEST_INTEGER_TIME) | (wide > LARGEST_INTEGER_TIME)).any():
        raise DataError(f"{name}: times {field!r} reach {wide[far][0]}, expected at most 2**62: count from later on")
    bits = 8 * time.dtype.itemsize
    if time.dtype.kind in "iu" and bits in (16, 32):
        # Sorting would put what came after that first. No event is late by half of what a counter holds.
        begins = np.flatnonzero(np.diff(wide) < -(1 << bits - 1))
        if len(begins):
            before, after = wide[begins[0]], wide[begins[0] + 1]
            raise DataError(
                f"{name}: times {field!r} go back from {before} to {after}: a counter of {bits} bits that began again; "
                f"count on first, with numpy.unwrap(times.astype('int64'), period=2**{bits})"
            )
    return wide


def _is_recording(given: Any) -> bool:
    import numpy as np

    # A DataFrame has keys too, and is no Mapping.
    return isinstance(given, (np.ndarray, Mapping)) or (hasattr(given, "keys") and hasattr(given, "__getitem__"))


def _field(recording: Any, field: str, name: str) -> Any:
    import numpy as np

    if isinstance(recording, np.ndarray):
        known = list(recording.dtype.names or ())
    elif _is_recording(recording):
        known = list(recording.keys())
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
    try:
        values = np.asarray(recording[field])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: {field!r} should be an array of numbers (L,): {error}") from error
    if values.ndim != 1:
        raise DataError(f"{name}: {field!r} should be of shape (L,), got {values.shape}")
    if not len(values):
        return np.zeros(0, np.float64 if values.dtype.kind == "f" else np.int64)
    # Any byte order has this kind.
    if values.dtype.kind == "u" and values.max() > np.iinfo(np.int64).max:
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
    for given in sizes:
        if given is not None and not _is_size(given):
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


def _is_size(given: Any) -> bool:
    try:
        width, height = map(operator.index, given)
    except (TypeError, ValueError):
        return False
    return 0 < width <= _LARGEST + 1 and 0 < height <= _LARGEST + 1


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
