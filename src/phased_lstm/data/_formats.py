"""One file of a table, Parquet, Arrow or CSV: its columns and its record batches, with errors that name the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, missing_extra

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq
except ImportError as error:
    raise missing_extra("data", "pyarrow") from error

PARQUET, _ARROW = (".parquet", ".pq"), (".feather", ".arrow", ".arrows", ".ipc")
_PACKED = ("", ".gz", ".bz2", ".zst")
_CSV, _TSV = (tuple(kind + packed for packed in _PACKED) for kind in (".csv", ".tsv"))
SUFFIXES = (*PARQUET, *_ARROW, *_CSV, *_TSV)

# How files of other kinds begin that are taken for CSV, and what they are.
_MAGIC = {
    b"PAR1": "Parquet", b"ARROW1": "Arrow", b"FEA1": "Feather", b"PK\x03\x04": "a zip archive or Excel's",
    b"\x1f\x8b": "compressed by gzip", b"BZh": "compressed by bzip2", b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"SQLite": "SQLite's", b"\x89HDF": "HDF5", b"%PDF": "PDF", b"\xd0\xcf\x11\xe0": "Excel's",
}  # fmt: skip
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16",
}  # fmt: skip
_HEAD = 1 << 16
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_ENCODE = "save it as UTF-8, for instance with: iconv -f WINDOWS-1252 -t UTF-8"


def file_columns(path: Path, block: int) -> tuple[list[str], frozenset[str]]:
    """Return the names of the columns of a file, and of those among them that pandas says are the index.

    Raises:
        DataError: the file cannot be read, or a name of a column is not UTF-8.
    """
    name = path.name.lower()
    with reading(path):
        if name.endswith(PARQUET):
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
        elif name.endswith(_ARROW):
            with pa.OSFile(str(path)) as file:
                schema = _arrow_reader(path, file).schema
        else:
            with _open_csv(path, None, block) as reader:
                schema = reader.schema
        names = list(schema.names)
    try:
        index = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
    except (KeyError, TypeError, ValueError):
        index = []
    return names, frozenset(entry for entry in index if isinstance(entry, str)) & frozenset(names)


def file_batches(
    path: Path, groups: Sequence[int] | None, first_row: int, columns: Sequence[str], rows: int, block: int
) -> Iterator[Any]:
    """Yield the record batches of a file, one at a time in memory; all columns of a CSV file are strings.

    Args:
        path: of the file.
        groups: row groups of a Parquet file; None: all.
        first_row: number of the first row that is read in the file.
        columns: those to read.
        rows: of a Parquet batch.
        block: bytes of a CSV batch.

    Raises:
        DataError: the file cannot be read to its end.
    """
    name = path.name.lower()
    with reading(path):
        if name.endswith(PARQUET):
            yield from _parquet_batches(path, groups, first_row, list(columns), rows)
        elif name.endswith(_ARROW):
            with pa.OSFile(str(path)) as file:
                yield from _arrow_batches(path, file, list(columns))
        else:
            with _open_csv(path, columns, block) as reader:
                yield from reader


class reading:
    """Turn what pyarrow raises into a DataError that names the file, the row where it is known, and what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UnicodeError):
            raise DataError(f"{self._path} cannot be read as text: {error}; {_ENCODE}") from error
        if not isinstance(error, (pa.ArrowException, OSError)):
            return
        text = " ".join(str(error).split()).rstrip(".")
        cell = re.match(r"In CSV column #\d+: Row #(\d+): .*invalid UTF8", text)
        if cell:
            # pyarrow counts the header.
            raise DataError(f"{self._path}, row {int(cell[1]) - 1}: it is not UTF-8 text: {_ENCODE}") from error
        advice = "If it is truncated or damaged, write or fetch it again"
        if "Empty CSV" in text:
            advice = "It has no rows, or no line of names before them"
        elif text.startswith("CSV parse error"):
            advice = _csv_advice(self._path)
        raise DataError(f"{self._path} cannot be read: {text}. {advice}") from error


def header_hint(names: Sequence[str]) -> str:
    """Return what seems to be wrong with the first line of a CSV file and what to do; empty if nothing."""
    first = names[0] if names else ""
    if first.lower().startswith("sep="):
        return f"its first line, {first}, is for Excel alone: write the table with commas, and without that line"
    if first.startswith("#"):
        return "its first line begins with #: remove comments, so that the names of the columns come first"
    if first.startswith("<"):
        return "it seems to be a web page rather than a table: fetch it again"
    separator = next((mark for mark in ";\t|" if mark in first), None)
    if len(names) == 1 and separator is not None:
        name = "tabs" if separator == "\t" else repr(separator)
        also = ", or call the file .tsv" if separator == "\t" else ""
        return f"its columns seem to be separated by {name}: write the table with commas{also}"
    return ""


def _csv_advice(path: Path) -> str:
    with pa.input_stream(str(path), compression="detect") as stream:
        first = stream.read(_HEAD).decode(errors="replace").lstrip("\ufeff").splitlines()[0]
    hint = header_hint(first.split("\t" if path.name.lower().endswith(_TSV) else ","))
    if hint:
        return hint[0].upper() + hint[1:]
    return "Rows are counted with the header here; each needs a cell for every column, in quotes if it has a comma"


def _open_csv(path: Path, columns: Sequence[str] | None, block: int) -> Any:
    strings = {} if columns is None else dict.fromkeys(columns, pa.string())
    return pa_csv.open_csv(
        str(path),
        # One thread: only then do pyarrow's errors name the row.
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=block, encoding=_encoding(path)),
        parse_options=pa_csv.ParseOptions(
            delimiter="\t" if path.name.lower().endswith(_TSV) else ",", newlines_in_values=True
        ),
        # What is missing depends on what a column is: NA is a name among names, and a gap among numbers.
        convert_options=pa_csv.ConvertOptions(column_types=strings, include_columns=columns, strings_can_be_null=False),
    )


def _encoding(path: Path) -> str:
    """The encoding of a CSV file by its byte order mark.

    Raises:
        DataError: it is empty, or no text.
    """
    with pa.input_stream(str(path), compression="detect") as stream:
        head = stream.read(_HEAD)
    if not head.strip():
        raise DataError(f"{path} cannot be read: it is empty. Write it again, with the names of the columns first")
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind is not None:
        raise DataError(f"{path} is called CSV, but its content is {kind}: name the file after what it is, or convert")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), "utf8")
    if encoding == "utf8" and b"\0" in head:
        raise DataError(f"{path} holds NUL bytes, so it is damaged or no UTF-8 text: write it again as UTF-8")
    return encoding


def _arrow_reader(path: Path, file: Any) -> Any:
    """Open an Arrow file, of which there are two formats."""
    magic = file.read(6)
    file.seek(0)
    options = pa.ipc.IpcReadOptions(use_threads=False)
    if magic.startswith(b"FEA1"):
        raise DataError(
            f"{path} is of version 1 of Feather, which is no longer read: write it again with version 2, or as Parquet"
        )
    if magic == b"ARROW1" or not magic.startswith(_STREAM_END[:4]):
        return pa.ipc.open_file(file, options=options)
    return pa.ipc.open_stream(file, options=options)


def _arrow_batches(path: Path, file: Any, columns: list[str]) -> Iterator[Any]:
    reader = _arrow_reader(path, file)
    if hasattr(reader, "num_record_batches"):
        for number in range(reader.num_record_batches):
            yield _checked(reader.get_batch(number).select(columns))
        return
    for batch in reader:
        yield _checked(batch.select(columns))
    # A stream that is cut between two batches, or to which another was appended, reads like a whole one.
    end = file.tell()
    file.seek(max(0, end - len(_STREAM_END)))
    if file.read() != _STREAM_END:
        raise DataError(
            f"{path} does not end where its stream of batches ends: it is truncated, or several streams were joined; "
            f"write it again as one"
        )


def _checked(batch: Any) -> Any:
    """A batch whose offsets lie within its buffers: pyarrow takes them as they stand, and damaged ones would crash."""
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            # Text that is not UTF-8 is named by its row later.
            if "UTF8" not in str(error):
                raise
    return batch


def _parquet_batches(
    path: Path, groups: Sequence[int] | None, first_row: int, columns: list[str], rows: int
) -> Iterator[Any]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        fields = map(file.schema.column, range(len(file.schema)))
        old = [field.path for field in fields if field.physical_type == "INT96" and field.path in columns]
        found = file.iter_batches(rows, groups, columns)
        if not old:
            for batch in found:
                yield batch.select(columns)
            return
        # pyarrow reads the obsolete INT96 as nanoseconds, and wraps what they cannot express.
        with pq.ParquetFile(path, pre_buffer=False, coerce_int96_timestamp_unit="us") as coarse:
            for batch, other in zip(found, coarse.iter_batches(rows, groups, old), strict=True):
                for name in old:
                    _check_wrapped(path, name, first_row, batch.column(name), other.column(name))
                first_row += batch.num_rows
                yield batch.select(columns)


def _check_wrapped(path: Path, name: str, first_row: int, nanoseconds: Any, microseconds: Any) -> None:
    fine, coarse = (
        pc.fill_null(array.view(pa.int64()), 0).to_numpy(zero_copy_only=False) for array in (nanoseconds, microseconds)
    )
    wrapped = np.abs(fine // 1000 - coarse) > 1
    if wrapped.any():
        row = int(wrapped.argmax())
        raise DataError(
            f"{path}, row {first_row + row + 1}: {name} is {microseconds[row]}, which INT96 read as nanoseconds cannot "
            f"express; write the column again in microseconds (pyarrow.parquet.read_table with "
            f"coerce_int96_timestamp_unit='us', or spark.sql.parquet.outputTimestampType=TIMESTAMP_MICROS)"
        )
