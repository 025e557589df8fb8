"""Tables on disk as record batches, and columns as arrays, with errors that name the file and row."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, missing_extra

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq
except ImportError as error:
    raise missing_extra("data", "pyarrow") from error

Source = str | Path | Sequence[str | Path]

_PARQUET, _FEATHER = (".parquet", ".pq"), (".feather", ".arrow", ".ipc")
_CSV, _TSV = (".csv", ".csv.gz", ".csv.bz2"), (".tsv", ".tsv.gz", ".tsv.bz2")
SUFFIXES = (*_PARQUET, *_FEATHER, *_CSV, *_TSV)
_MISSING = ["", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "None"]
# Rows of a Parquet batch and bytes of a CSV block: a few MB of memory each.
_ROWS, _BLOCK = 1 << 16, 1 << 22


def table_files(source: Source) -> list[Path]:
    """Return the files of a table: one, several, or those of a folder in the order of their names.

    Raises:
        DataError: there is none, or one of a kind that is not read.
    """
    given = [Path(source)] if isinstance(source, (str, Path)) else [Path(part) for part in source]
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.name.lower().endswith(SUFFIXES))
            if not inside:
                raise DataError(f"{path} holds no table: no file ends in {', '.join(SUFFIXES)}")
            files += inside
        elif not path.is_file():
            raise DataError(f"there is no table {path}")
        elif not path.name.lower().endswith(SUFFIXES):
            raise DataError(f"{path} should be Parquet, Feather or CSV, ending in {', '.join(SUFFIXES)}")
        else:
            files.append(path)
    if not files:
        raise DataError("there should be at least one table, got an empty list of files")
    return files


def column_names(path: Path) -> list[str]:
    """Return the names of the columns of one file.

    Raises:
        DataError: the file cannot be read.
    """
    with _reading(path):
        if path.name.lower().endswith(_PARQUET):
            with pq.ParquetFile(path) as file:
                return list(file.schema_arrow.names)
        if path.name.lower().endswith(_FEATHER):
            with pa.OSFile(str(path)) as file:
                return list(pa.ipc.open_file(file).schema.names)
        with _open_csv(path, None) as reader:
            return list(reader.schema.names)
    raise AssertionError  # unreachable: _reading lets no exception pass silently


class Piece(NamedTuple):
    """A part of a table that can be read alone.

    Attributes:
        path: of the file.
        groups: row groups of a Parquet file; None: the whole file, of any kind.
        first_row: number of its first row in the file.
    """

    path: Path
    groups: range | None = None
    first_row: int = 0


def shares(source: Source, ranks: int) -> list[list[Piece]]:
    """Cut a table into consecutive parts of about equal size, between row groups of Parquet files or other files.

    Raises:
        DataError: a file cannot be read, or there are fewer pieces than ranks.
    """
    pieces: list[Piece] = []
    sizes: list[int] = []
    for path in table_files(source):
        if not path.name.lower().endswith(_PARQUET):
            pieces.append(Piece(path))
            sizes.append(path.stat().st_size)
            continue
        with _reading(path), pq.ParquetFile(path) as file:
            row = 0
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                pieces.append(Piece(path, range(number, number + 1), row))
                sizes.append(group.total_byte_size)
                row += group.num_rows
    if len(pieces) < ranks:
        raise DataError(
            f"{', '.join(map(str, table_files(source)))}: {len(pieces)} row groups or files cannot be shared out among "
            f"{ranks} ranks; write smaller row groups (row_group_size of pyarrow.parquet.write_table)"
        )
    parts: list[list[Piece]] = [[] for _ in range(ranks)]
    before, total = 0, max(1, sum(sizes))
    for number, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
        rank = min(ranks - 1, (2 * before + size) * ranks // (2 * total))
        # No rank may be left without a piece, however unequal they are.
        rank = max(rank, ranks - (len(pieces) - number))
        rank = min(rank, next((n for n in range(rank) if not parts[n]), rank))
        parts[rank].append(piece)
        before += size
    return parts


def record_batches(piece: Piece, columns: Sequence[str]) -> Iterator[Any]:
    """Yield the record batches of a piece, one at a time in memory; all columns of a CSV file are strings.

    Raises:
        DataError: the file cannot be read to its end, or lacks a column.
    """
    path = piece.path
    names = column_names(path)
    for column in columns:
        if names.count(column) != 1:
            found = "two columns" if column in names else "no column"
            raise DataError(f"{path} has {found} {column!r}; its columns are {', '.join(names)}")
    with _reading(path):
        if path.name.lower().endswith(_PARQUET):
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(_ROWS, piece.groups and list(piece.groups), list(columns)):
                    yield batch.select(list(columns))
        elif path.name.lower().endswith(_FEATHER):
            with pa.OSFile(str(path)) as file:
                reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(use_threads=False))
                for number in range(reader.num_record_batches):
                    yield reader.get_batch(number).select(list(columns))
        else:
            with _open_csv(path, columns) as reader:
                yield from reader


def _open_csv(path: Path, columns: Sequence[str] | None) -> Any:
    strings = {} if columns is None else dict.fromkeys(columns, pa.string())
    return pa_csv.open_csv(
        str(path),
        # One thread: only then do pyarrow's errors name the row.
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK),
        parse_options=pa_csv.ParseOptions(delimiter="\t" if path.name.lower().endswith(_TSV) else ","),
        convert_options=pa_csv.ConvertOptions(
            column_types=strings, include_columns=columns, strings_can_be_null=True, null_values=_MISSING
        ),
    )


class _reading:
    """Turn what pyarrow raises into a DataError that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (pa.ArrowException, OSError)):
            raise DataError(
                f"{self._path} cannot be read: {error}. If it is truncated or damaged, write or fetch it again"
            ) from error


Where = Callable[[int], str]


class Rows:
    """Says where row n of all that was read so far stands: its file, and its number there."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._places: list[tuple[Path, int]] = []

    def add(self, start: int, path: Path, row: int) -> None:
        """Note that row `start` is row `row` of `path`, as are those after it."""
        self._starts.append(start)
        self._places.append((path, row))

    def __call__(self, row: int) -> str:
        place = bisect.bisect_right(self._starts, row) - 1
        path, first = self._places[place]
        return f"{path}, row {first + row - self._starts[place] + 1}"

    def after(self, start: int) -> Where:
        """Return what names the place of row `start` + n, given n."""
        return lambda row: self(start + row)


def batches(pieces: Iterable[Piece], columns: Sequence[str]) -> Iterator[tuple[Any, Rows, int]]:
    """Yield the record batches of pieces that are not empty, the places of all rows, and the number of the first.

    Raises:
        DataError: a file cannot be read to its end or lacks a column.
    """
    rows, total = Rows(), 0
    for piece in pieces:
        row = piece.first_row
        for batch in record_batches(piece, columns):
            if batch.num_rows:
                rows.add(total, piece.path, row)
                yield batch, rows, total
            row += batch.num_rows
            total += batch.num_rows


def strings(array: Any, name: str, where: Where) -> Any:
    """Return a column of strings or integers as Arrow strings, without missing ones.

    Args:
        array: Arrow array.
        name: of the column.
        where: names the place of row n of the array.

    Raises:
        DataError: a missing entry, or a column of another type.
    """
    array = _plain(array)
    if not (pa.types.is_integer(array.type) or _is_string(array.type) or pa.types.is_null(array.type)):
        raise DataError(f"{where(0)}: column {name!r} should hold strings or integers, got {array.type}")
    if array.null_count:
        raise DataError(f"{where(_first(array.is_null()))}: there is no {name}")
    text = pc.cast(array, pa.string())
    blank = pc.equal(pc.utf8_trim_whitespace(text), "")
    if pc.any(blank).as_py():
        raise DataError(f"{where(_first(blank))}: there is no {name}")
    return text


def floats(array: Any, name: str, where: Where, dtype: Any = np.float64) -> NDArray[Any]:
    """Return a numeric column as floats, NaN where it is missing.

    Raises:
        DataError: an entry that is no number, or infinite, or too large for `dtype`.
    """
    array = _plain(array)
    if _is_string(array.type):
        array = _cast(array, pa.float64(), name, where, "a number")
    elif not _is_number(array.type):
        raise DataError(f"{where(0)}: column {name!r} should hold numbers, got {array.type}")
    if pa.types.is_boolean(array.type):
        array = pc.cast(array, pa.int8())
    numbers = np.asarray(pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    with np.errstate(over="ignore"):
        narrowed = numbers.astype(dtype)
    infinite = np.isinf(narrowed)
    if infinite.any():
        row = int(infinite.argmax())
        raise DataError(f"{where(row)}: {name} is {numbers[row]}, expected a finite {np.dtype(dtype)} or nothing")
    return narrowed


def leading(array: Any, entry: str) -> int:
    """Return how many entries at the beginning of a column are this one."""
    other = pc.index(pc.equal(array, entry), False).as_py()
    return len(array) if other < 0 else int(other)


def runs(array: Any) -> tuple[list[str], list[int]]:
    """Return the runs of equal entries of a column: the entries, and where each run ends."""
    encoded = pc.run_end_encode(array)
    return encoded.values.to_pylist(), encoded.run_ends.to_pylist()


def targets(columns: Sequence[Any], name: str, where: Where) -> Any:
    """Return the parts of a column, together, as int64, float64 or a list of strings.

    A column of strings becomes the first of the three that all its entries are.

    Raises:
        DataError: a missing or infinite entry, or a column of another type.
    """
    array = pa.concat_arrays([_plain(column) for column in columns])
    if array.null_count:
        raise DataError(f"{where(_first(array.is_null()))}: there is no {name}; leave the row out")
    if _is_string(array.type):
        array = pc.utf8_trim_whitespace(array)
        kind = next((kind for kind in (pa.int64(), pa.float64()) if _casts(array, kind)), None)
        if kind is None:
            return array.to_pylist()
        array = pc.cast(array, kind)
    if pa.types.is_boolean(array.type) or pa.types.is_integer(array.type):
        return _cast(array, pa.int64(), name, where, "int64").to_numpy(zero_copy_only=False)
    numbers = floats(array, name, where)
    if np.isnan(numbers).any():
        raise DataError(f"{where(int(np.isnan(numbers).argmax()))}: there is no {name}; leave the row out")
    return numbers


class TimeColumn:
    """Turns a column of times into int64 or float64, the same way in every batch.

    Timestamps, with a time zone or taken as UTC, become int64 in the unit of the column, since 1970 UTC; strings are
    integers, floats or ISO 8601 timestamps, whichever the first one is.

    Args:
        name: of the column.
        wanted: "int64", "float64", "timestamp[s]", "[ms]", "[us]" or "[ns]"; None: as the column has it, and
            microseconds for timestamps in strings.
        numbers: whether integers may stand for timestamps.

    Raises:
        DataError: `wanted` is none of these.
    """

    def __init__(self, name: str, wanted: str | None, numbers: bool = True) -> None:
        types = {"int64": pa.int64(), "float64": pa.float64()}
        types |= {f"timestamp[{unit}]": pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")}
        if wanted is not None and wanted not in types:
            raise DataError(f"time_type should be one of {', '.join(types)}, got {wanted!r}")
        self._name = name
        self._wanted = None if wanted is None else types[wanted]
        self._numbers = numbers
        self._parsed: Any = None
        self.type: Any = None

    @property
    def unit(self) -> str | None:
        """The unit of timestamps and durations; None of numbers."""
        return getattr(self.type, "unit", None)

    def __call__(self, array: Any, where: Where) -> NDArray[Any]:
        """Return the times of a batch.

        Raises:
            DataError: a time that is missing, not finite or cannot be parsed, or of another kind than those before.
        """
        array = _plain(array)
        if array.null_count:
            raise DataError(f"{where(_first(array.is_null()))}: there is no {self._name}")
        if _is_string(array.type):
            array = self._parse(pc.utf8_trim_whitespace(array), where)
        kind = array.type
        if not self._numbers and pa.types.is_timestamp(self._wanted) and _is_number(kind):
            raise DataError(f"{where(0)}: column {self._name!r} holds {kind}, expected timestamps")
        if self._wanted is not None and not _same_kind(kind, self._wanted):
            array = _cast(array, _zoned(self._wanted, kind), self._name, where, self._wanted)
        elif not (_is_number(kind) or pa.types.is_temporal(kind)) or pa.types.is_boolean(kind):
            raise DataError(f"{where(0)}: column {self._name!r} should hold times, got {kind}")
        if self.type is None:
            self.type = array.type
        elif not _same_kind(array.type, self.type):
            raise DataError(f"{where(0)}: column {self._name!r} holds {array.type}, and {self.type} before")
        if pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
            times = np.asarray(pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False))
            if not np.isfinite(times).all():
                row = int((~np.isfinite(times)).argmax())
                raise DataError(f"{where(row)}: {self._name} is {times[row]}, expected a finite time")
            return times
        # date32 and time32 are 32 bits wide, and cannot be cast to 64 directly.
        narrow = pa.types.is_date32(array.type) or pa.types.is_time32(array.type)
        whole = pc.cast(array, pa.int32()) if narrow else array
        return np.asarray(_cast(whole, pa.int64(), self._name, where, "int64").to_numpy(zero_copy_only=False))

    def _parse(self, text: Any, where: Where) -> Any:
        if self._parsed is None:
            self._parsed = _zoned(self._wanted, text) if self._wanted is not None else _guess(text)
        hint = f"{self._parsed}, as time_type or the others say (another is set with time_type)"
        return _cast(text, self._parsed, self._name, where, hint)


def _guess(text: Any) -> Any:
    """The first type that all entries have, else that the first one has."""
    kinds = [pa.int64(), pa.float64(), _zoned(pa.timestamp("us"), text), pa.timestamp("ns")]
    for part in (text, text[:1]):
        for kind in kinds:
            if _casts(part, kind):
                return kind
    return kinds[0]


def _zoned(kind: Any, found: Any) -> Any:
    """A timestamp type with UTC where the column, or the first of its strings, names a zone."""
    if not pa.types.is_timestamp(kind):
        return kind
    zoned = getattr(found, "tz", None) is not None
    if isinstance(found, pa.Array) and len(found):
        zoned = _casts(found[:1], pa.timestamp("ns", "UTC"))
    return pa.timestamp(kind.unit, "UTC") if zoned else kind


def _same_kind(a: Any, b: Any) -> bool:
    if pa.types.is_timestamp(a) and pa.types.is_timestamp(b):
        return bool(a.unit == b.unit)
    return bool(a == b) or all(pa.types.is_integer(kind) for kind in (a, b)) or all(map(pa.types.is_floating, (a, b)))


def _plain(array: Any) -> Any:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _is_string(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: Any) -> bool:
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
    return any(check(kind) for check in checks)


def _first(mask: Any) -> int:
    return int(pc.index(mask, True).as_py())


def _casts(array: Any, kind: Any) -> bool:
    try:
        pc.cast(array, kind)
    except pa.ArrowException:
        return False
    return True


def _cast(array: Any, kind: Any, name: str, where: Where, wanted: object) -> Any:
    text = pc.utf8_trim_whitespace(array) if _is_string(array.type) else array
    try:
        return pc.cast(text, kind)
    except pa.ArrowException as error:
        # Halve the part that fails until one entry is left.
        first, last = 0, len(text)
        while last - first > 1:
            middle = (first + last) // 2
            first, last = (middle, last) if _casts(text[first:middle], kind) else (first, middle)
        raise DataError(f"{where(first)}: {name} is {array[first].as_py()!r}, expected {wanted}") from error
