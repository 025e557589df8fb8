"""Columns of tables as strings, numbers or targets, whatever their Arrow type, with errors that name the row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import DataError
from ._arrow import Where

# Among numbers and times these words are gaps; ids, channels and classes may have such names.
MISSING = ("", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "None")


def plain(array: Any, name: str, where: Where) -> Any:
    """Return a column without dictionary, runs, views and extension types; text is valid.

    Raises:
        DataError: text that is not UTF-8, or a type that pyarrow cannot convert.
    """
    try:
        array = _decoded(array)
    except (pa.ArrowException, NotImplementedError) as error:
        raise DataError(
            f"{where(0)}: column {name!r} is of type {array.type}, which cannot be read: {error}"
        ) from error
    kind = array.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        check = _casts_to(pa.large_string())
    elif is_string(kind):
        check = _valid
    else:
        return array
    if not check(array):
        row = first_failing(array, check)
        raise DataError(f"{where(row)}: {name} is not UTF-8 text; write the column again as such")
    return array if is_string(kind) else pc.cast(array, pa.large_string())


def _decoded(array: Any) -> Any:
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        if kind.extension_name == "arrow.uuid":
            return pa.array([None if entry is None else str(entry) for entry in array.to_pylist()], pa.string())
        return _decoded(array.storage)
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(array.indices, _decoded(array.dictionary)).dictionary_decode()
    if pa.types.is_run_end_encoded(kind):
        values = _decoded(array.values)
        return pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(array.run_ends, values))[array.offset :][
            : len(array)
        ]
    if pa.types.is_string_view(kind):
        return pc.cast(array, pa.large_string())
    if pa.types.is_binary_view(kind):
        return pc.cast(array, pa.large_binary())
    return array


def strings(array: Any, name: str, where: Where) -> Any:
    """Return a column of strings or integers as Arrow strings, without missing ones.

    Args:
        array: Arrow array.
        name: of the column.
        where: names the place of row n of the array.

    Raises:
        DataError: a missing entry, or a column of another type.
    """
    array = plain(array, name, where)
    if not (_is_whole(array.type) or is_string(array.type) or pa.types.is_null(array.type)):
        also = ": write it as either" if pa.types.is_floating(array.type) else ""
        raise DataError(f"{where(0)}: column {name!r} should hold strings or integers, got {array.type}{also}")
    if array.null_count:
        raise DataError(f"{where(first(array.is_null()))}: there is no {name}")
    text = array if is_string(array.type) else pc.cast(array, pa.string())
    blank = pc.equal(pc.utf8_trim_whitespace(text), "")
    if pc.any(blank).as_py():
        raise DataError(f"{where(first(blank))}: there is no {name}")
    _refuse_nul(text, name, where)
    return text


def _refuse_nul(text: Any, name: str, where: Where) -> None:
    broken = pc.match_substring(text, "\0")
    if pc.any(broken).as_py():
        row = first(broken)
        raise DataError(f"{where(row)}: {name} is {shown(text, row)}, with a NUL byte: the file is damaged")


def floats(array: Any, name: str, where: Where, dtype: Any = np.float64) -> NDArray[Any]:
    """Return a numeric column as floats, NaN where it is missing.

    In text, words such as NA are missing too, and true and false are 1 and 0.

    Raises:
        DataError: an entry that is no number, or infinite, or too large for `dtype`.
    """
    return doubles(array, name, where, dtype).astype(dtype)


def doubles(array: Any, name: str, where: Where, dtype: Any = np.float64) -> NDArray[Any]:
    """Return what `floats` returns, and refuse what it refuses, as float64."""
    array = plain(array, name, where)
    if is_string(array.type):
        array = _numbers(array, name, where)
    elif not is_number(array.type):
        raise DataError(f"{where(0)}: column {name!r} should hold numbers, got {array.type}")
    if pa.types.is_boolean(array.type):
        array = pc.cast(array, pa.int8())
    numbers = np.asarray(pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    with np.errstate(over="ignore"):
        infinite = np.isinf(numbers.astype(dtype, copy=False))
    if infinite.any():
        row = int(infinite.argmax())
        raise DataError(f"{where(row)}: {name} is {numbers[row]}, expected a finite {np.dtype(dtype)} or nothing")
    return numbers


def _numbers(text: Any, name: str, where: Where) -> Any:
    """Text as float64 or bool, null where it is a gap."""
    text = pc.if_else(pc.equal(text, ""), None, text)
    # Most columns have no words; looking for them takes longer than all else.
    if casts(text, pa.float64()):
        return pc.cast(text, pa.float64())
    text = without_missing(text)
    lower = pc.utf8_lower(text)
    if pc.all(pc.is_in(lower, value_set=pa.array(["true", "false", None], lower.type))).as_py():
        return pc.cast(lower, pa.bool_())
    return cast(text, pa.float64(), name, where, "a number")


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
        DataError: a missing or infinite entry, parts of which some are text and some numbers, or a column of another
            type.
    """
    array = _joined(columns, name, where)
    if is_string(array.type):
        array = pc.utf8_trim_whitespace(array)
        _refuse_nul(pc.fill_null(array, ""), name, where)
        array = pc.if_else(pc.equal(array, ""), None, array)
    if array.null_count:
        raise DataError(f"{where(first(array.is_null()))}: there is no {name}; leave the row out")
    if is_string(array.type):
        gap = _is_missing(array)
        rest = array.filter(pc.invert(gap))
        kind = next((kind for kind in (pa.int64(), pa.float64()) if len(rest) and casts(rest, kind)), None)
        if kind is None or _merges(rest, kind):
            return array.to_pylist()
        if len(rest) < len(array):
            row = first(gap)
            raise DataError(
                f"{where(row)}: there is no {name}; leave the row out ({shown(array, row)} is taken for a gap among "
                f"numbers: if it is a class, give all classes names)"
            )
        array = pc.cast(array, kind)
    if pa.types.is_boolean(array.type) or _is_whole(array.type):
        return cast(array, pa.int64(), name, where, "int64").to_numpy(zero_copy_only=False)
    numbers = floats(array, name, where)
    if np.isnan(numbers).any():
        raise DataError(f"{where(int(np.isnan(numbers).argmax()))}: there is no {name}; leave the row out")
    return numbers


def _joined(columns: Sequence[Any], name: str, where: Where) -> Any:
    """The parts of a column of targets as one array, of one type."""
    parts: list[Any] = []
    places: list[Where] = []
    row = 0
    for column in columns:
        places.append(_from(where, row))
        parts.append(plain(column, name, places[-1]))
        if pa.types.is_null(parts[-1].type) and len(column):
            raise DataError(f"{places[-1](0)}: there is no {name}; leave the row out")
        row += len(column)
    kinds = {part.type for part in parts}
    if len(kinds) == 1:
        return pa.concat_arrays(parts)
    text = is_string(parts[0].type)
    for part, place in zip(parts, places, strict=True):
        if is_string(part.type) != text or not (text or is_number(part.type)):
            raise DataError(
                f"{place(0)}: column {name!r} holds {part.type}, and {parts[0].type} before; bring them to one"
            )
    whole = all(_is_whole(kind) or pa.types.is_boolean(kind) for kind in kinds)
    common = pa.large_string() if text else pa.int64() if whole else pa.float64()
    return pa.concat_arrays(
        [cast(part, common, name, place, common) for part, place in zip(parts, places, strict=True)]
    )


def _from(where: Where, start: int) -> Where:
    return lambda row: where(start + row)


def _merges(text: Any, kind: Any) -> bool:
    """Whether different names would become one number: 1 and 01, or integers that no float tells apart."""
    if pa.types.is_floating(kind):
        return inexact_integer(text) is not None
    return bool(pc.count_distinct(text).as_py() > pc.count_distinct(pc.cast(text, kind)).as_py())


def inexact_integer(text: Any) -> int | None:
    """Return the row of the first integer in text that is no float64, or None."""
    for row in np.flatnonzero(pc.match_substring_regex(text, r"^[+-]?\d{16,}$").to_numpy(zero_copy_only=False)):
        entry = int(text[int(row)].as_py())
        if len(str(entry)) > 309 or float(entry) != entry:
            return int(row)
    return None


def without_missing(text: Any, missing: Sequence[str] = MISSING) -> Any:
    """Return text without spaces around it, null where it is a word for a gap."""
    text = pc.utf8_trim_whitespace(text)
    return pc.if_else(_is_missing(text, missing), None, text)


def _is_missing(text: Any, missing: Sequence[str] = MISSING) -> Any:
    return pc.is_in(text, value_set=pa.array(missing, text.type))


def is_string(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_number(kind: Any) -> bool:
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
    return any(check(kind) for check in checks)


def _is_whole(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale <= 0))


def first(mask: Any) -> int:
    """Return the position of the first true entry."""
    return int(pc.index(mask, True).as_py())


def casts(array: Any, kind: Any) -> bool:
    """Return whether all entries can become this type without loss."""
    try:
        pc.cast(array, kind)
    except pa.ArrowException:
        return False
    return True


def cast(array: Any, kind: Any, name: str, where: Where, wanted: object) -> Any:
    """Return an array in another type.

    Raises:
        DataError: naming the first entry that cannot become one, and what was `wanted`.
    """
    text = pc.utf8_trim_whitespace(array) if is_string(array.type) else array
    try:
        return pc.cast(text, kind)
    except pa.ArrowException as error:
        row = first_failing(text, _casts_to(kind))
        raise DataError(f"{where(row)}: {name} is {shown(array, row)}, expected {wanted}") from error


def shown(array: Any, row: int) -> str:
    """Return an entry for a message: also a time that Python's types cannot express."""
    if not pa.types.is_temporal(array.type):
        return repr(array[row].as_py())
    part = array[row : row + 1]
    if pa.types.is_timestamp(array.type):
        # Without its zone, which would need a database.
        part = part.view(pa.timestamp(array.type.unit))
    return str(pc.cast(part, pa.string())[0].as_py())


def first_failing(array: Any, check: Callable[[Any], bool]) -> int:
    """Return the position of the first entry that fails, by halving the part that does."""
    begin, end = 0, len(array)
    while end - begin > 1:
        middle = (begin + end) // 2
        begin, end = (middle, end) if check(array[begin:middle]) else (begin, middle)
    return begin


def _casts_to(kind: Any) -> Callable[[Any], bool]:
    return lambda array: casts(array, kind)


def _valid(array: Any) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowException:
        return False
    return True
