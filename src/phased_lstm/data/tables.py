"""Measurements in tables, long (id, time, channel, value) or wide (id, time, a, b, ...), as sequences.

Parquet, Feather (Arrow) and CSV files are read batch by batch, so that a table need not fit in memory. Needs the
extra `data` (pyarrow).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError
from ._arrow import Piece, Rows, Source, Where, batches, column_names, listed, table_files
from ._columns import doubles, runs, strings
from ._roles import check_wide, measurements, row_numbers
from ._shares import shared_batches
from ._spread import Spread
from ._timestamps import TimeColumn
from .events import EventBatch

# Codes of channels that are not read.
_UNSEEN, _IGNORED = -1, -2
_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


@dataclass(frozen=True)
class TableFormat:
    """What the columns of a table of measurements are, and how strictly it is read.

    Attributes:
        id: column of the sequence's id, strings or integers. The rows of a sequence follow each other.
        time: column of times: timestamps, with a time zone or in UTC, integers, floats, or any of them as strings.
        channel: column of a long table that says what was measured; None: the table is wide.
        value: column of a long table with the measured values. A row without a value measures nothing.
        features: columns of a wide table with measured values, NaN or empty where there is none; None: all others but
            those of `ignored`, and those that only number the rows.
        ignored: columns of a wide table, or channels of a long one, that are left out where there are such.
        time_type: what times become: "int64", "float64", "timestamp[s]", "[ms]", "[us]" or "[ns]", or another type of
            `scan_time_type`; None: as they are.
        numbers: whether integers are accepted for timestamps, in the unit of `time_type`, an error, or all that is
            accepted ("only").
        unseen: whether a channel that is not in the vocabulary is an error, or ignored.
        repeated: whether a second value of a channel at the same time of a long table is an error, or the last one
            counts. In a wide table each row is an event, whatever its time.
        empty: whether a sequence without any value is an error, or left out.
        ignored: channels that are left out wherever the table has them, such as what is to be predicted.
    """

    id: str = "id"
    time: str = "time"
    channel: str | None = None
    value: str = "value"
    features: tuple[str, ...] | None = None
    time_type: str | None = None
    numbers: Literal["accept", "error", "only"] = "accept"
    unseen: Literal["error", "ignore"] = "error"
    repeated: Literal["error", "last"] = "error"
    empty: Literal["error", "skip"] = "error"
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in (
            ("numbers", ("accept", "error", "only")),
            ("unseen", ("error", "ignore")),
            ("repeated", ("error", "last")),
            ("empty", ("error", "skip")),
        ):
            if getattr(self, name) not in choices:
                raise DataError(f"{name} should be {' or '.join(choices)}, got {getattr(self, name)!r}")
        if self.channel is not None and self.features is not None:
            raise DataError("features are columns of a wide table, channel is one of a long table: give one of them")
        for name in ("features", "ignored"):
            if isinstance(getattr(self, name), str):
                raise DataError(f"{name} should be a sequence of names of columns, got {getattr(self, name)!r}")
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else tuple(value))
        roles = {"id": self.id, "time": self.time}
        if self.channel is not None:
            roles |= {"channel": self.channel, "value": self.value}
        for name, column in roles.items():
            other = next((role for role in roles if role != name and roles[role] == column), None)
            if other is not None:
                raise DataError(f"column {column!r} cannot be both {name} and {other}: name another one (--{other})")
        for column in self.features or ():
            if column in (self.id, *self.ignored):
                kind = "the column of ids" if column == self.id else "to be ignored"
                raise DataError(f"features name {column!r}, which is {kind}: leave it out of one (--features)")
        TimeColumn(self.time, self.time_type)

    @classmethod
    def detect(cls, source: Source, **options: Any) -> Self:
        """Return the format of a table: long where it has columns "channel" and "value", otherwise wide.

        Args:
            source: as in `iter_sequences`.
            options: attributes that are known; naming `channel` or `features` settles the matter.

        Raises:
            DataError: the table cannot be read, or an option has no such value.
        """
        if "channel" not in options and options.get("features") is None:
            taken = {options.get("id", "id"), options.get("time", "time"), *options.get("ignored", ())}
            names = set(column_names(table_files(source)[0])) - taken
            if {"channel", options.get("value", "value")} <= names:
                options["channel"] = "channel"
        return cls(**options)


class Table(NamedTuple):
    """Sequences read from a table, or part of one.

    Attributes:
        ids: id of each of the N sequences, as a string.
        events: values (S, F), a column for each channel, NaN where it was not measured; one event for each row of a
            wide table, or each distinct time of a long one; times never decrease within a sequence.
        channels: names of the F columns of values.
        time_unit: unit of times that were timestamps or durations ("ms", ...), counted from 1970 UTC; None of numbers.
    """

    ids: tuple[str, ...]
    events: EventBatch
    channels: tuple[str, ...]
    time_unit: str | None


def read_table(
    source: Source,
    format: TableFormat | None = None,
    *,
    channels: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> Table:
    """Read a whole table into memory; see `iter_sequences`.

    Args:
        source: as in `iter_sequences`.
        format: as in `iter_sequences`.
        channels: as in `iter_sequences`.
        dtype: of the values, float32 or float64; None: float32, or float64 where float32 would lose what varies in a
            channel, as in one of unix times over an hour. The table is then read twice.

    Raises:
        DataError: as `iter_sequences`, or there are no rows.
        ImportError: pyarrow is not installed.
    """
    format = TableFormat.detect(source) if format is None else format
    names = _vocabulary(source, format, channels)
    spread = Spread(len(names)) if dtype is None else None
    kind = torch.float32 if dtype is None else dtype
    parts = list(iter_sequences(source, format, channels=names, dtype=kind, spread=spread))
    if spread is not None and spread.lossy():
        parts = list(iter_sequences(source, format, channels=names, dtype=torch.float64))
    if not parts:
        raise DataError(f"{', '.join(map(str, table_files(source)))}: the table has no sequences")
    ids = tuple(name for part in parts for name in part.ids)
    return Table(ids, EventBatch.cat(part.events for part in parts), parts[0].channels, parts[0].time_unit)


def iter_sequences(
    source: Source,
    format: TableFormat | None = None,
    *,
    channels: Sequence[str] | None = None,
    chunk_events: int = 1 << 18,
    dtype: torch.dtype = torch.float32,
    share: tuple[int, int] | None = None,
    spread: Spread | None = None,
) -> Iterator[Table]:
    """Read a table in chunks of whole sequences, in the order of the table.

    Memory holds one chunk, one batch of the file, and the set of ids (which finds an id that comes back).

    Args:
        source: a file, several, or a folder of files, read as one table: Parquet (.parquet, .pq), Feather
            (.feather, .arrow, .arrows, .ipc; files and streams), CSV (.csv, .tsv, also with .gz, .bz2 or .zst; UTF-8,
            or UTF-16 with a byte order mark). Files of a folder that begin with "." or "_" are not read. In columns
            of numbers and times the empty field, NA, N/A, #N/A, NaN, nan, null, NULL and None are missing.
        format: which columns mean what; None: `TableFormat.detect`.
        channels: the vocabulary, and so the columns of values, as fixed at training; None: all that the table has,
            sorted, for which a long table is read once before. Columns that only number the rows are left out of
            them with a warning: those without a name, and the index that pandas writes.
        chunk_events: rows from which a chunk is complete at the end of a sequence.
        dtype: of the values, float32 or float64. Of a channel that is far from zero and varies little, such as unix
            times, float32 loses digits: `read_table` finds out which it should be.
        share: (rank, ranks) to read one of several consecutive parts of about equal size, cut between the row groups
            of Parquet files or between other files; a sequence goes to the rank in whose part it begins, so that all
            ranks together read every sequence once. That an id comes back is noticed within a part only.
        spread: takes all values into account, of the channels in their order, before they are rounded.

    Raises:
        DataError: naming the file and row (the first is 1, a header not counted): a missing column, an id that is
            missing or comes back after another, a time that is missing, not finite or not to be parsed, a value that
            is infinite or no number, a channel that is not in the vocabulary, a second value of a channel at one
            time, a sequence without values, a file that is truncated; or fewer row groups than ranks.
        ImportError: pyarrow is not installed.
        ValueError: another dtype, chunk_events below 1, or a rank that is not among the ranks.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype should be torch.float32 or torch.float64, got {dtype}")
    if chunk_events < 1:
        raise ValueError(f"chunk_events should be at least 1, got {chunk_events}")
    if share is not None and not 0 <= share[0] < share[1]:
        raise ValueError(f"share should be (rank, ranks) with rank from 0 to ranks - 1, got {share}")
    format = TableFormat.detect(source) if format is None else format
    return _Reader(format, _vocabulary(source, format, channels), chunk_events, dtype, spread).read(source, share)


def _vocabulary(source: Source, format: TableFormat, channels: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(scan_channels(source, format) if channels is None else map(str, channels))
    if not names or len(set(names)) < len(names):
        files = ", ".join(map(str, table_files(source)))
        raise DataError(f"{files}: channels should be distinct, and at least one, got {listed(names) or 'none'}")
    return names


def scan_channels(source: Source, format: TableFormat) -> tuple[str, ...]:
    """Return the channels of a table: the columns of a wide one, the sorted entries of a long one's channel column.

    Raises:
        DataError: a column or channel is missing, or a file cannot be read.
    """
    files = table_files(source)
    if format.features is not None:
        return format.features
    if format.channel is None:
        return measurements(files[0], format)
    found: set[str] = set()
    for batch, rows, start in batches(map(Piece, files), [format.channel]):
        found.update(strings(batch.column(0), format.channel, rows.after(start)).unique().to_pylist())
    if not found:
        raise DataError(f"{', '.join(map(str, files))}: the table has no sequences")
    return tuple(sorted(found.difference(format.ignored)))


def scan_time_type(source: Source, format: TableFormat) -> str:
    """Return the type of a table's times, which as `time_type` reads other tables alike.

    Raises:
        DataError: the table has no rows, its first times are none, or a file cannot be read.
    """
    files = table_files(source)
    times = TimeColumn(format.time, format.time_type, format.numbers)
    for batch, rows, start in batches(map(Piece, files), [format.time]):
        times(batch.column(0), rows.after(start))
        return times.type_name
    raise DataError(f"{', '.join(map(str, files))}: the table has no sequences")


class _Reader:
    """Gathers rows until a chunk of whole sequences is there."""

    def __init__(
        self,
        format: TableFormat,
        channels: tuple[str, ...],
        chunk_events: int,
        dtype: torch.dtype,
        spread: Spread | None,
    ) -> None:
        self._format, self._channels, self._chunk_events, self._dtype = format, channels, chunk_events, dtype
        self._spread = spread
        self._long = format.channel is not None
        self._codes = dict.fromkeys(format.ignored, _IGNORED) | {name: code for code, name in enumerate(channels)}
        self._times = TimeColumn(format.time, format.time_type, format.numbers)
        self._seen: set[str] = set()
        # Of the rows that are gathered: the ids, where each begins, and the columns in parts.
        self._ids: list[str] = []
        self._starts: list[int] = []
        self._parts: list[tuple[NDArray[Any], ...]] = []
        self._gathered = 0
        self._first_row = 0

    def read(self, source: Source, share: tuple[int, int] | None) -> Iterator[Table]:
        """Yield the chunks of a table, or of a share of it."""
        format = self._format
        if format.channel is not None:
            columns = [format.id, format.time, format.channel, format.value]
        else:
            for path in table_files(source):
                check_wide(path, format)
                if format.features is None and format.unseen == "error":
                    self._check_features(path)
            columns = [format.id, format.time, *self._channels]
        if share is None:
            found = batches(map(Piece, table_files(source)), columns)
        else:
            # The first times of the table, not of the share, tell the type: all shares should have one.
            kind = scan_time_type(source, format)
            numbers = "error" if format.time_type is None and format.numbers == "accept" else format.numbers
            self._times = TimeColumn(format.time, kind, numbers)
            found = shared_batches(source, columns, *share)
        for batch, rows, start in found:
            if not self._gathered:
                self._first_row = start
            self._add(batch, rows.after(start))
            if self._starts[-1] >= self._chunk_events:
                yield from self._emit(self._starts[-1], rows)
        if self._gathered:
            yield from self._emit(self._gathered, rows)

    def _check_features(self, path: Path) -> None:
        known = {self._format.id, self._format.time, *self._channels, *self._format.ignored, *row_numbers(path)}
        for name in column_names(path):
            if name not in known:
                raise DataError(
                    f"{path} has a column {name!r} that is not among the channels {listed(self._channels)}; "
                    f"leave it out, name the features, or ignore unseen channels (--unseen ignore)"
                )

    def _add(self, batch: Any, where: Where) -> None:
        format = self._format
        ids = strings(batch.column(0), format.id, where)
        names, ends = runs(ids)
        for name, begin in zip(names, [0, *ends[:-1]], strict=True):
            if begin == 0 and self._ids and name == self._ids[-1]:
                continue
            if name in self._seen:
                raise DataError(
                    f"{where(begin)}: {format.id} {name} comes back after other ids: the rows of a sequence should "
                    f"follow each other, so sort the table by {format.id}"
                )
            self._seen.add(name)
            self._ids.append(name)
            self._starts.append(self._gathered + begin)
        times = self._times(batch.column(1), where)
        dtype = _DTYPES[self._dtype]
        if self._long:
            wide = doubles(batch.column(3), format.value, where, dtype)
            codes = self._encode(batch.column(2), where)
            if self._spread is not None:
                order = np.argsort(codes, kind="stable")
                for code, begin, end in zip(*_equal(codes[order]), strict=True):
                    if code >= 0:
                        self._spread.add(code, wide[order[begin:end]])
            self._parts.append((times, wide.astype(dtype), codes))
        else:
            values = np.empty((batch.num_rows, len(self._channels)), dtype)
            for number, name in enumerate(self._channels):
                wide = doubles(batch.column(2 + number), name, where, dtype)
                values[:, number] = wide
                if self._spread is not None:
                    self._spread.add(number, wide)
            self._parts.append((times, values))
        self._gathered += batch.num_rows

    def _encode(self, column: Any, where: Where) -> NDArray[Any]:
        """The number of each row's channel, negative where it is not read."""
        assert self._format.channel is not None
        encoded = strings(column, self._format.channel, where).dictionary_encode()
        entries = encoded.dictionary.to_pylist()
        codes = np.array([self._codes.get(name, _UNSEEN) for name in entries], np.int64)
        found: NDArray[Any] = codes[encoded.indices.to_numpy(zero_copy_only=False)]
        unseen = found == _UNSEEN
        if self._format.unseen == "error" and unseen.any():
            row = int(unseen.argmax())
            name = entries[encoded.indices[row].as_py()]
            raise DataError(
                f"{where(row)}: {self._format.channel} {name!r} is not in the vocabulary "
                f"({listed(self._channels[:8])}{', ...' if len(self._channels) > 8 else ''}); train with it, or "
                f"ignore unseen channels (--unseen ignore)"
            )
        return found

    def _emit(self, rows: int, places: Rows) -> Iterator[Table]:
        """Yield the first `rows` gathered rows, which are whole sequences, and keep the rest."""
        columns = [np.concatenate(parts) for parts in zip(*self._parts, strict=True)]
        count = next((n for n, start in enumerate(self._starts) if start >= rows), len(self._starts))
        ids, starts = self._ids[:count], np.array([*self._starts[:count], rows], np.int64)
        build = self._long_events if self._long else self._wide_events
        table = build(ids, starts, [column[:rows] for column in columns], places.after(self._first_row))
        self._ids = self._ids[count:]
        self._starts = [start - rows for start in self._starts[count:]]
        self._parts = [tuple(column[rows:].copy() for column in columns)]
        self._gathered -= rows
        self._first_row += rows
        if table.ids:
            yield table

    def _wide_events(self, ids: list[str], starts: NDArray[Any], columns: list[Any], where: Where) -> Table:
        times, values = columns
        sequence = np.repeat(np.arange(len(ids)), np.diff(starts))
        measured = np.bincount(sequence, ~np.isnan(values).all(axis=1), len(ids)) > 0
        order = np.lexsort((times, sequence))
        return self._table(ids, starts, measured, sequence[order], times[order], values[order], where)

    def _long_events(self, ids: list[str], starts: NDArray[Any], columns: list[Any], where: Where) -> Table:
        times, values, channel = columns
        sequence = np.repeat(np.arange(len(ids)), np.diff(starts))
        rows = np.flatnonzero((channel >= 0) & ~np.isnan(values))
        measured = np.bincount(sequence[rows], minlength=len(ids)) > 0
        rows = rows[np.lexsort((times[rows], sequence[rows]))]
        times, values, channel, sequence = times[rows], values[rows], channel[rows], sequence[rows]
        new = np.ones(len(rows), bool)
        new[1:] = (sequence[1:] != sequence[:-1]) | (times[1:] != times[:-1])
        step = np.cumsum(new) - 1
        steps = int(step[-1]) + 1 if len(rows) else 0
        filled = np.full((steps, len(self._channels)), np.nan, values.dtype)
        if self._format.repeated == "error":
            place = step * len(self._channels) + channel
            order = np.argsort(place, kind="stable")
            again = np.flatnonzero(np.diff(place[order]) == 0)
            if len(again):
                one = order[again[0] + 1]
                raise DataError(
                    f"{where(int(rows[one]))}: a second value of {self._channels[channel[one]]} of "
                    f"{ids[sequence[one]]} at {self._format.time} {times[one]}; keep one, or let the last "
                    f"one count (--repeated last)"
                )
        filled[step, channel] = values
        return self._table(ids, starts, measured, sequence[new], times[new], filled, where)

    def _table(
        self,
        ids: list[str],
        starts: NDArray[Any],
        measured: NDArray[Any],
        sequence: NDArray[Any],
        times: NDArray[Any],
        values: NDArray[Any],
        where: Where,
    ) -> Table:
        if not measured.all():
            if self._format.empty == "error":
                first = int((~measured).argmax())
                raise DataError(
                    f"{where(int(starts[first]))}: {self._format.id} {ids[first]} has no values at all; leave it out, "
                    f"or let empty sequences be skipped (--empty skip)"
                )
            kept = measured[sequence]
            sequence, times, values = sequence[kept], times[kept], values[kept]
        lengths = np.bincount(sequence, minlength=len(ids))[measured]
        events = EventBatch.from_lengths(torch.from_numpy(values), torch.from_numpy(times), torch.from_numpy(lengths))
        kept_ids = tuple(name for name, keep in zip(ids, measured, strict=True) if keep)
        return Table(kept_ids, events, self._channels, self._times.unit)


def _equal(codes: NDArray[Any]) -> tuple[list[int], list[int], list[int]]:
    """The runs of equal entries in (N,) codes that are sorted: the entries, where each begins and where it ends."""
    entries, begins = np.unique(codes, return_index=True)
    return entries.tolist(), begins.tolist(), [*begins[1:].tolist(), len(codes)]
