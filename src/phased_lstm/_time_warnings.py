"""Warnings about times that are valid and yet hardly what was meant, with what to do about it.

A module says each of them once. Where a program is traced, or a transform hides the values, nothing is said.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from ._checks import is_plain


def warn_of_layout(times: Tensor, batch_first: bool, stacklevel: int, *, sure: bool = False) -> bool:
    """Warn where times (N, L) go back so often that they may be laid out the other way; return whether that was so.

    Args:
        times: rows of sequences, as they were understood.
        batch_first: the layer's layout.
        stacklevel: of the warning, as seen from here.
        sure: whether times must, read the other way, rise without exception: a layer takes them in any order.
    """
    if times.shape[1] <= 2 or not is_plain(times):
        return False
    if not bool((times.diff(dim=1) < 0).double().mean() >= 0.25):
        return False
    if sure and not (len(times) > 3 and bool((times.diff(dim=0) > 0).all())):
        return False
    shape = tuple(times.shape if batch_first else times.shape[::-1])
    layout, other = ("N, L", "L, N")[:: 1 if batch_first else -1]
    warnings.warn(
        f"times {shape} are read as ({layout}), and go back at a quarter of the steps or more: if they are ({other}), "
        f"transpose them, or make the layer with batch_first={not batch_first}",
        stacklevel=stacklevel + 1,
    )
    return True


def warn_of_grid(times: Tensor, lengths: Tensor | None, stacklevel: int, opening: float = math.inf) -> bool:
    """Warn where float32 times are further from zero than their type can tell apart; return whether that was so.

    Args:
        times: (L,) or (N, L).
        lengths: (N,) valid steps of each row, or None.
        stacklevel: of the warning, as seen from here.
        opening: how long a unit is open, typically, to compare single times with; infinity: only intervals count.
    """
    if times.dtype != torch.float32 or not times.numel() or not is_plain(times):
        return False
    row = times[0] if times.dim() == 2 else times
    count = len(row) if lengths is None else int(lengths[0])
    if times.dim() == 2 and not count:
        return False
    # A look at two times settles nearly every call.
    ends = row[:count][[0, -1]]
    spacing = _spacing(ends.abs().max().item())
    if not spacing > min(_interval(ends, count, spacing), opening):
        return False
    counts = [times.shape[-1]] * len(times) if lengths is None else lengths.tolist()
    rows = [row] if times.dim() == 1 else [each[:valid] for each, valid in zip(times, counts, strict=True) if valid]
    intervals = sorted(_interval(each, len(each), spacing) for each in rows)
    interval = intervals[len(intervals) // 2]
    if not spacing > min(interval, opening):
        return False
    against = f"follow each other at {interval:.4g}" if spacing > interval else f"open units for {opening:.4g}"
    warnings.warn(
        f"times are float32, which at {row[0].item():.10g} knows steps of {spacing:g} only, while they {against}: give "
        f"them as float64 or int64, or take their origin off before they become float32",
        stacklevel=stacklevel + 1,
    )
    return True


def _spacing(time: float) -> float:
    """Of float32 numbers of this size."""
    return math.ldexp(1.0, max(math.frexp(time)[1], -125) - 24) if math.isfinite(time) else 0.0


def _interval(times: Tensor, count: int, spacing: float) -> float:
    """Mean interval of a row; infinite where nothing can be said of it."""
    span = (times.max() - times.min()).item()
    # All at one time: where whole units of time are lost they hardly were.
    return span / (count - 1) if count > 1 and (span > 0.0 or spacing >= 1.0) else math.inf
