"""What callers give as y, as numbers or as classes, with what is missing told apart. Needs scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._checks import plain
from ..data._arrays import as_array, as_floats, is_missing
from ..errors import missing_extra

try:
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import column_or_1d
except ImportError as error:
    raise missing_extra("train", "scikit-learn") from error


def as_numbers(y: Any, count: int, lengths: list[int] | None = None) -> Tensor:
    """Return targets as float64, NaN where there is none.

    Args:
        y: (N,) or (N, K) numbers of any library, None, NaN or masked where missing; with `lengths` N arrays (L,) or
            (L, K).
        count: N.
        lengths: the number of steps of each sequence, where targets are those of steps; None: those of sequences.

    Returns:
        (N,) or (N, K), or (S,) or (S, K) for all steps.

    Raises:
        ValueError: entries that are no numbers or infinite, or another number of them.
    """
    if lengths is None:
        numbers = _numbers(y, "y")
        if numbers.dim() == 0 or len(numbers) != count:
            raise ValueError(f"y should have {count} entries, one for each sequence, got shape {tuple(numbers.shape)}")
        parts = [numbers]
    else:
        parts = [_numbers(part, f"y of sequence {number}") for number, part in enumerate(_by_sequence(y, count))]
        _require_lengths(parts, lengths)
    for number, part in enumerate(parts):
        if part.dim() > 2 or part.shape[1:] != parts[0].shape[1:]:
            name = "y" if lengths is None else f"y of sequence {number}"
            raise ValueError(
                f"{name} should have one number for each entry, or K, the same K everywhere, got shape "
                f"{tuple(part.shape)}"
            )
    flat = torch.cat(parts)
    if bool(flat.isinf().any()):
        place = int(flat.isinf().nonzero()[0, 0])
        owner = "entry" if lengths is not None else "sequence"
        raise ValueError(f"y has infinite entries, the first at {owner} {place}: NaN means that there is no target")
    return flat


def as_classes(y: Any, count: int, lengths: list[int] | None = None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return classes as given, and where there are none, which is possible for steps alone.

    Args:
        y: (N,) classes: text, integers, bools, whole floats; with `lengths` N arrays (L,), None, NaN or masked where a
            step has none.
        count: N.
        lengths: the number of steps of each sequence, where classes are those of steps; None: those of sequences.

    Returns:
        (N,) or (S,) classes, with any of them where there is none, and a mask of those.

    Raises:
        ValueError: several classes for one, a class that is missing, text among numbers, numbers that are no classes,
            or another number of entries.

    Warns:
        DataConversionWarning: y is a column (N, 1).
    """
    if lengths is None:
        entries = _entries(y, "y")
        if entries.ndim == 0 or len(entries) != count:
            raise ValueError(f"y should have {count} entries, one for each sequence, got shape {entries.shape}")
        if entries.ndim > 1:
            entries = column_or_1d(entries, warn=True)
    else:
        parts = [_entries(part, f"y of sequence {number}") for number, part in enumerate(_by_sequence(y, count))]
        _require_lengths(parts, lengths)
        for number, part in enumerate(parts):
            if part.ndim > 1 and part.size != len(part):
                raise ValueError(
                    f"y of sequence {number} should be a 1d array, got an array of shape {part.shape} instead"
                )
        entries = np.concatenate([np.zeros(0, object), *(part.ravel() for part in parts)])
    missing = np.array([is_missing(entry) for entry in entries], bool)
    if lengths is None and missing.any():
        row = int(missing.argmax())
        raise ValueError(f"y of sequence {row} is missing: leave sequences without a class out")
    kept = entries[~missing].tolist()
    if any(isinstance(entry, float) and math.isinf(entry) for entry in kept):
        raise ValueError("y has infinite entries, which are no classes")
    words = [isinstance(entry, str) for entry in kept]
    if any(words) and not all(words):
        raise ValueError(
            f"y has text and numbers for classes, such as {kept[words.index(True)]!r} and "
            f"{kept[words.index(False)]!r}: convert one of them"
        )
    if any(isinstance(entry, (list, tuple, np.ndarray, Tensor)) for entry in kept):
        raise ValueError("y should be a 1d array, one class for each entry, got entries of several")
    known = np.array(kept)
    if len(known):
        check_classification_targets(known)
    filled = np.full(len(entries), known[0] if len(known) else 0, known.dtype)
    filled[~missing] = known
    return filled, missing


def class_numbers(flat: NDArray[Any], missing: NDArray[np.bool_], classes: NDArray[Any], ignored: int) -> Tensor:
    """Return the place of each class among sorted `classes`, (M,) int64, and `ignored` where there is none.

    Raises:
        ValueError: a class that is not among them.
    """
    if (flat.dtype.kind in "US") == (classes.dtype.kind in "US"):
        unknown = ~np.isin(flat, classes) & ~missing
    else:
        # numpy would compare "1" and 1 as text.
        unknown = ~missing
    if unknown.any():
        raise ValueError(f"y has the class {flat[unknown].tolist()[0]!r}, not among the classes {classes.tolist()}")
    places = np.zeros(len(flat), np.int64) if missing.all() else np.searchsorted(classes, flat)
    return torch.from_numpy(np.where(missing, ignored, places).astype(np.int64))


def _numbers(given: Any, name: str) -> Tensor:
    try:
        # A copy, so that what is kept is not changed from outside.
        return as_floats(given, text=True).detach().cpu().to(torch.float64, copy=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _entries(given: Any, name: str) -> NDArray[Any]:
    """The entries as objects, None where masked: text beside NaN must not become text."""
    try:
        if isinstance(given, (list, tuple)) and not any(getattr(entry, "ndim", 0) for entry in given):
            array = np.array(given, object)
        else:
            array = as_array(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    entries = np.asarray(array).astype(object)
    if entries.ndim == 1:
        entries[:] = [None if is_missing(entry) else plain(entry) for entry in entries]
    mask = np.ma.getmask(array)
    if mask is not np.ma.nomask:
        entries[mask] = None
    return entries


def _by_sequence(y: Any, count: int) -> list[Any]:
    if not isinstance(y, Iterable) or isinstance(y, (str, bytes, dict)):
        raise ValueError(f"y should have an array for each of the {count} sequences, got {type(y).__name__}")
    return list(y)


def _require_lengths(parts: list[Any], lengths: list[int]) -> None:
    for number, (part, length) in enumerate(zip(parts, lengths, strict=False)):
        found = len(part) if part.ndim else 0
        if part.ndim == 0 or found != length:
            raise ValueError(f"y of sequence {number} should have {length} entries, one a step, got {found}")
    if len(parts) != len(lengths):
        raise ValueError(f"y should have an entry for each of the {len(lengths)} sequences, got {len(parts)}")
