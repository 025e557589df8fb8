"""Rows of a table of labels that lack a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ._columns import MISSING


def without_gaps(columns: dict[str, list[Any]], count: int) -> tuple[NDArray[np.int64], dict[str, list[Any]]]:
    """Leave out the rows in which one of the columns has no entry.

    Args:
        columns: Arrow arrays by name, the parts of all columns of equal lengths.
        count: N, the rows in all.

    Returns:
        The numbers of the rows that are left, and the columns with these alone.
    """
    missing = np.zeros(count, bool)
    for parts in columns.values():
        missing |= _gaps([_plain(part) for part in parts])
    ends = {name: np.cumsum([0, *map(len, parts)]) for name, parts in columns.items()}
    chosen = {
        name: [
            part.filter(pa.array(kept))
            for part, start in zip(parts, ends[name][:-1], strict=True)
            if (kept := ~missing[start : start + len(part)]).any()
        ]
        for name, parts in columns.items()
    }
    return np.flatnonzero(~missing), chosen


def _gaps(parts: Sequence[Any]) -> NDArray[np.bool_]:
    """Which entries are missing: what is empty, not a number, or a word for it among numbers."""
    empty = [_empty(part) for part in parts]
    texts = [pc.utf8_trim_whitespace(part) for part in parts if pa.types.is_string(part.type)]
    if len(texts) < len(parts):
        return np.concatenate(empty)
    words = [mask | _mask(pc.is_in(part, pa.array(MISSING))) for part, mask in zip(texts, empty, strict=True)]
    rest = [part.filter(pa.array(~mask)) for part, mask in zip(texts, words, strict=True)]
    try:
        for part in rest:
            pc.cast(part, pa.float64())
    except pa.ArrowException:
        return np.concatenate(empty)
    return np.concatenate(words if any(map(len, rest)) else empty)


def _empty(part: Any) -> NDArray[np.bool_]:
    if pa.types.is_floating(part.type):
        return _mask(pc.is_null(part, nan_is_null=True))
    if pa.types.is_string(part.type):
        return _mask(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(part), ""), True))
    return _mask(pc.is_null(part))


def _mask(array: Any) -> NDArray[np.bool_]:
    return np.asarray(array.to_numpy(zero_copy_only=False), bool)


def _plain(part: Any) -> Any:
    part = part.dictionary_decode() if pa.types.is_dictionary(part.type) else part
    text = pa.types.is_large_string(part.type) or pa.types.is_string_view(part.type)
    return part.cast(pa.string()) if text else part
