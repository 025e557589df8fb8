"""What people have in memory, as an `EventBatch`: pairs of arrays, samples, arrays with gaps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._checks import TIME_DTYPES
from .events import EventBatch
from .loading import EventDataset, Sample


def as_events(sequences: Any, *, keep_empty_steps: bool = False) -> tuple[EventBatch, Tensor | None]:
    """Return sequences in any of the forms that estimators take as a batch of float32 values, and static features.

    Args:
        sequences: an EventBatch; an EventDataset; (values (L, F) or (L,), times (L,)) pairs or `Sample`s, of arrays or
            tensors; or an array (N, T, F), NaN where not measured, for times 0, 1, 2, ... Times may be integers,
            floats, or datetime64, which become nanoseconds.
        keep_empty_steps: whether steps of an array at which nothing was measured stay.

    Returns:
        The batch, and static features (N, G) or None.

    Raises:
        TypeError: none of these forms.
        ValueError: shapes that do not go together, infinite values, or no sequence; it names the sequence.
    """
    static = None
    if isinstance(sequences, EventDataset):
        sequences, static = sequences.events, sequences.static
    if isinstance(sequences, EventBatch):
        events = sequences.to(torch.float32)
    elif isinstance(sequences, (np.ndarray, Tensor)) and sequences.ndim == 3:
        values = torch.as_tensor(sequences).to(torch.float32)
        times = torch.arange(values.shape[1])
        build = EventBatch.from_padded if keep_empty_steps else EventBatch.from_dense
        events = build(values, times)
    elif isinstance(sequences, Iterable) and not isinstance(sequences, (str, bytes, Tensor)):
        events, static = _from_pairs(list(sequences))
    else:
        shape = f" of shape {tuple(sequences.shape)}" if hasattr(sequences, "shape") else ""
        raise TypeError(
            f"X should be an EventBatch, an EventDataset, a list of (values, times) pairs, or an array (N, T, F); got "
            f"{type(sequences).__name__}{shape}"
        )
    infinite = events.values.isinf().any(dim=1).nonzero().flatten()
    if len(infinite):
        number = int(torch.searchsorted(events.offsets, infinite[0], right=True)) - 1
        raise ValueError(f"X has infinite values, the first in sequence {number}: NaN means not measured")
    if not len(events):
        raise ValueError("X has 0 samples: there should be at least one sequence")
    return events, static


def _from_pairs(items: list[Any]) -> tuple[EventBatch, Tensor | None]:
    if not items:
        raise ValueError("X has 0 samples: there should be at least one sequence")
    pairs, static = [], []
    for number, item in enumerate(items):
        if isinstance(item, Sample):
            if item.static is not None:
                static.append(item.static)
        elif isinstance(item, EventBatch) or not hasattr(item, "__len__") or len(item) != 2:
            raise TypeError(
                f"sequence {number} of X should be a (values, times) pair, got {type(item).__name__}"
                + (f" of {len(item)}" if hasattr(item, "__len__") else "")
            )
        try:
            values = torch.as_tensor(item[0]).to(torch.float32)
            pairs.append((values.unsqueeze(1) if values.dim() == 1 else values, _times(item[1])))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"sequence {number} of X: {error}") from error
    if static and len(static) < len(items):
        raise ValueError(f"{len(static)} of {len(items)} sequences have static features: give them to all or to none")
    if len({times.dtype for _, times in pairs}) > 1:
        pairs = [(values, times.double()) for values, times in pairs]
    return EventBatch.from_sequences(pairs), torch.stack(static) if static else None


def _times(times: Any) -> Tensor:
    if isinstance(times, Tensor):
        return times if times.dtype in TIME_DTYPES else times.double() if times.is_floating_point() else times.long()
    array = np.asarray(times)
    if array.dtype.kind == "M":
        array = array.astype("datetime64[ns]").astype(np.int64)
    elif array.dtype.kind in "iub":
        array = array.astype(np.int64)
    elif array.dtype != np.float32:
        array = array.astype(np.float64)
    return torch.from_numpy(array)


def with_queries(
    events: EventBatch, queries: list[Any], targets: list[Any] | None = None
) -> tuple[EventBatch, list[Tensor], Tensor]:
    """Add a step without any measurement at each time of a query.

    Args:
        events: N sequences of floating values.
        queries: N times (Q,) of each sequence.
        targets: N targets (Q,) or (Q, K) at those times; None: there are none yet.

    Returns:
        The sequences with their queries, by time, a query after the measurements of the same time; for each of its
        sequences the targets of the steps, (L, ...), NaN at steps that are not queries; and a mask (S,) of queries.

    Raises:
        ValueError: not one entry of queries or targets for each sequence, or not one target for each query.
    """
    if len(queries) != len(events) or (targets is not None and len(targets) != len(events)):
        raise ValueError(f"there should be queries, and targets if any, of each of the {len(events)} sequences")
    pairs, labels, masks = [], [], []
    for number, (values, times) in enumerate(events):
        asked = torch.as_tensor(queries[number]).to(times.dtype)
        wanted = torch.full((len(asked),), torch.nan) if targets is None else torch.as_tensor(targets[number]).float()
        if asked.dim() != 1 or len(wanted) != len(asked):
            raise ValueError(
                f"sequence {number} should have queries (Q,) and a target for each, got {tuple(asked.shape)} and "
                f"{tuple(wanted.shape)}"
            )
        joined = torch.cat([times, asked])
        order = joined.sort(stable=True).indices
        blank = values.new_full((len(asked), values.shape[1]), torch.nan)
        pairs.append((torch.cat([values, blank])[order], joined[order]))
        labels.append(torch.cat([wanted.new_full((len(times), *wanted.shape[1:]), torch.nan), wanted])[order])
        masks.append((torch.arange(len(joined)) >= len(times))[order])
    return EventBatch.from_sequences(pairs), labels, torch.cat(masks)
