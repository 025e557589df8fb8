"""Tables of one or several files: their columns, their record batches, and where each row stands."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError, missing_extra
from ._formats import PARQUET, SUFFIXES, file_batches, file_columns, header_hint, reading
from ._reading import leftover

try:
    import pyarrow.parquet as pq
except ImportError as error:
    raise missing_extra("data", "pyarrow") from error

Source = str | Path | Sequence[str | Path]

# Rows of a Parquet batch and bytes of a CSV block: a few MB of memory each.
_ROWS, _BLOCK = 1 << 16, 1 << 22


def table_files(source: Source) -> list[Path]:
    """Return the files of a table: one, several, or those of a folder in the order of their names.

    Files of a folder whose names begin with "." or "_" are no part of it.

    Raises:
        DataError: there is none, or one of a kind that is not read.
    """
    given = [Path(source)] if isinstance(source, (str, Path)) else [Path(part) for part in source]
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            # Names that begin with "_" as pyarrow's own data sets do: other programs leave such files behind.
            seen = (file for file in path.iterdir() if not file.name.startswith("_") and not leftover(file.name))
            inside = sorted(file for file in seen if file.name.lower().endswith(SUFFIXES))
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
    return columns_and_index(path)[0]


def columns_and_index(path: Path) -> tuple[list[str], frozenset[str]]:
    """Return the names of the columns of one file, and of those that pandas' metadata names as its index.

    Raises:
        DataError: the file cannot be read.
    """
    return file_columns(path, _BLOCK)


def listed(names: Iterable[str]) -> str:
    """Return names separated by commas, in quotes where that is needed to tell them apart."""
    return ", ".join(name if name == name.strip() and name and "," not in name else repr(name) for name in names)


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
        if not path.name.lower().endswith(PARQUET):
            pieces.append(Piece(path))
            sizes.append(path.stat().st_size)
            continue
        with reading(path), pq.ParquetFile(path) as file:
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
    """Return the record batches of a piece, one at a time in memory; all columns of a CSV file are strings.

    Raises:
        DataError: the file cannot be read to its end, or lacks a column.
    """
    path = piece.path
    names = column_names(path)
    for column in columns:
        if names.count(column) != 1:
            found = "two columns" if column in names else "no column"
            hint = header_hint(names)
            raise DataError(f"{path} has {found} {column!r}; its columns are {listed(names)}{hint and '; '}{hint}")
    groups = None if piece.groups is None else list(piece.groups)
    return file_batches(path, groups, piece.first_row, columns, _ROWS, _BLOCK)


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
