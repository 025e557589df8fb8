"""What the columns of a wide table are: measurements, or numbers of rows, or a long table taken for a wide one."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ._arrow import Piece, batches, column_names, columns_and_index
from ._columns import floats

if TYPE_CHECKING:
    from .tables import TableFormat

# Names with which pandas writes an index without a name, and with which it and readr read one back.
_NUMBERS = re.compile(r"|(Unnamed: \d+(_level_\d+)?(\.\d+)?)|(__index_level_\d+__)|(\.\.\.\d+)")
# Names that an index gets where it becomes a column, and that a measurement may have too.
_FORMER_INDEX = re.compile(r"index|idx|level_\d+|row([ ._]?(names?|numbers?|nr|no|num|id|index))?", re.IGNORECASE)


def measurements(path: Path, format: TableFormat) -> tuple[str, ...]:
    """The columns of a wide table with values: all that have no other meaning."""
    names = [name for name in column_names(path) if name not in (format.id, format.time, *format.ignored)]
    numbering = row_numbers(path)
    numbers = [name for name in names if name in numbering]
    if numbers:
        warnings.warn(
            f"{path}: left out {' and '.join(map(repr, numbers))}, which numbers the rows or has no name; if it was "
            f"measured, give it a name, or name it among the features (--features)",
            stacklevel=4,
        )
    names = [name for name in names if name not in numbers]
    again = next((name for name in names if names.count(name) > 1), None)
    if again is not None:
        raise DataError(f"{path} has two columns {again!r}: rename one, or name the features (--features)")
    return tuple(names)


def check_wide(path: Path, format: TableFormat) -> None:
    """Raise DataError if the channels of a long table would all become one."""
    names = set(column_names(path)) - {format.id, format.time, *format.ignored}
    features = (format.value,) if format.features is None else format.features
    if {"channel", format.value} <= names and format.value in features and "channel" not in features:
        raise DataError(
            f"{path} has columns 'channel' and {format.value!r}, as a long table has, and read as a wide one it would "
            f"make one channel of all: leave features (--features) out, or say channel='channel' (--channel channel)"
        )


def row_numbers(path: Path) -> list[str]:
    """Return the columns of one file that number its rows rather than measure.

    These are what pandas' own metadata names as index, columns that have no name, or a name that pandas gives to an
    index without one; and those called index, row or the like that grow from row to row through all sequences.

    Raises:
        DataError: the file cannot be read.
    """
    names, index = columns_and_index(path)
    return [
        name
        for name in names
        if name in index or _NUMBERS.fullmatch(name.strip()) or (_FORMER_INDEX.fullmatch(name) and _grows(path, name))
    ]


def _grows(path: Path, name: str) -> bool:
    """Whether the first rows of a column are whole numbers, each greater than the one before."""
    for batch, rows, start in batches([Piece(path)], [name]):
        try:
            numbers = floats(batch.column(0), name, rows.after(start)).tolist()
        except DataError:
            return False
        return all(number.is_integer() for number in numbers) and all(a < b for a, b in pairwise(numbers))
    return False
