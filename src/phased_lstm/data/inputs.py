"""What people have in memory, as an `EventBatch`: pairs of arrays, samples, arrays with gaps."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._arrays import TIME_UNITS, as_floats, as_stamps, exactly, in_one_unit
from .encoders import needs_double
from .events import EventBatch
from .loading import EventDataset, Sample

_DATES = {"M": "date", "m": "duration"}
# An array of so many times as many channels as steps has them in the other order, more often than not.
_UNLIKELY = 4


@dataclass(frozen=True)
class Gathered:
    """Sequences as they came, in one form.

    Attributes:
        events: values of float32 or float64, times in any order.
        static: (N, G), or None.
        time_unit: unit of the times where they were dates or durations, else None.
        from_pairs: whether times came as arrays, so that it is known what they were.
    """

    events: EventBatch
    static: Tensor | None
    time_unit: str | None
    from_pairs: bool


def as_events(
    sequences: Any, *, keep_empty_steps: bool = False, time_unit: str | None = None
) -> tuple[EventBatch, Tensor | None]:
    """Return sequences in any of the forms that estimators take as a batch of float32 values, and static features.

    Steps keep their order, whatever their times; estimators sort them. What was an array is copied, and a batch shares
    its memory with the result where nothing had to be changed.

    Args:
        sequences: an EventBatch; an EventDataset; (values (L, F) or (L,), times (L,)) pairs or `Sample`s, of arrays or
            tensors; or an array (N, T, F), NaN where not measured, for times 0, 1, 2, ... Masked entries were not
            measured. Times may be integers, floats, or dates and durations, which become integers of one unit for all
            sequences, exactly.
        keep_empty_steps: whether steps of an array at which nothing was measured stay.
        time_unit: that of dates and durations, "s", "ms", "us" or "ns"; None: nanoseconds, or, with a warning,
            microseconds where datetime64[ns] goes beyond 2116-02-20.

    Returns:
        The batch, and static features (N, G) or None. Values are of torch's default type, float32; they stay float64
        if they were and float32 would lose what varies in a channel, as in one of unix times over an hour.

    Raises:
        TypeError: none of these forms, or entries that are no numbers.
        ValueError: shapes that do not go together, infinite values, times that are missing or beyond the unit, or no
            sequence; it names the sequence.
    """
    gathered = gather(sequences, keep_empty_steps=keep_empty_steps, time_unit=time_unit)
    events, static = gathered.events, gathered.static
    return events.to(narrowest(events.values)), None if static is None else static.to(narrowest(static))


def narrowest(values: Tensor, double: bool | None = None) -> torch.dtype:
    """Return torch's default type, float32, or float64 where values (S, F) have it and need it.

    Args:
        values: float32 or float64.
        double: whether they need it; None: see whether they do.
    """
    default = torch.promote_types(torch.get_default_dtype(), torch.float32)
    double = needs_double(values) if double is None else double
    return torch.promote_types(default, values.dtype) if double else default


def gather(sequences: Any, *, keep_empty_steps: bool = False, time_unit: str | None = None) -> Gathered:
    """Bring sequences into one form, see `as_events`, in the precision and the order in which they came."""
    static, unit, from_pairs = None, None, False
    if isinstance(sequences, EventDataset):
        sequences, static = sequences.events, sequences.static
    if isinstance(sequences, EventBatch):
        events = EventBatch._unchecked(_named("X", as_floats, sequences.values), sequences.times, sequences.offsets)
    elif getattr(sequences, "ndim", None) == 3 and hasattr(sequences, "shape"):
        values = _named("X", as_floats, sequences)
        times = torch.arange(values.shape[1], device=values.device)
        build = EventBatch.from_padded if keep_empty_steps else EventBatch.from_dense
        events = build(values, times)
    elif isinstance(sequences, Iterable) and not isinstance(sequences, (str, bytes, dict, Tensor)):
        events, static, unit = _from_pairs(sequences, time_unit)
        from_pairs = True
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
    return Gathered(events, None if static is None else as_static(static, len(events)), unit, from_pairs)


def back_in_time(events: EventBatch) -> int | None:
    """Return the number of the first sequence in which a time is before that of the event before, or None."""
    earlier = events.times[1:] < events.times[:-1]
    begins = events.offsets[1:-1]
    earlier[begins[(begins > 0) & (begins < events.num_events)] - 1] = False
    if not bool(earlier.any()):
        return None
    return int(torch.searchsorted(events.offsets, earlier.nonzero()[0, 0] + 1, right=True)) - 1


def in_order_of_time(events: EventBatch) -> EventBatch:
    """Return the sequences with their events by time, those of one time in the order in which they were."""
    if back_in_time(events) is None:
        return events
    order = events.times.argsort(stable=True)
    owner = torch.arange(len(events), device=events.device).repeat_interleave(events.lengths)
    order = order[owner[order].argsort(stable=True)]
    return EventBatch._unchecked(events.values[order], events.times[order], events.offsets)


def as_static(static: Any, count: int) -> Tensor:
    """Return static features of so many sequences as a tensor (N, G) of float32 or float64, NaN where missing.

    Raises:
        TypeError: features that are no numbers.
        ValueError: another shape, or infinite features.
    """
    features = _named("static", as_floats, static)
    if features.dim() != 2 or len(features) != count:
        raise ValueError(f"static should be ({count}, G), a row a sequence, got {tuple(features.shape)}")
    infinite = features.isinf().any(dim=1).nonzero().flatten()
    if len(infinite):
        raise ValueError(f"static has infinite features, the first of sequence {int(infinite[0])}: NaN means missing")
    return features


def warn_of_form(sequences: Any, events: EventBatch) -> None:
    """Warn where (N, F, T) seems to have been given for (N, T, F), or (times, values) for (values, times).

    Args:
        sequences: what came.
        events: what was made of it, in the order in which it came.
    """
    shape = tuple(getattr(sequences, "shape", ()))
    if len(shape) == 3 and shape[2] >= _UNLIKELY * max(1, shape[1]):
        warnings.warn(
            f"X of shape {shape} is read as (N, T, F): {shape[1]} steps of {shape[2]} channels. If it has {shape[1]} "
            f"channels, give X.transpose(0, 2, 1)",
            stacklevel=4,
        )
    back = back_in_time(events)
    if back is None or events.num_features != 1:
        return
    values, times = events[back]
    if len(times) > 2 and bool((values.diff(dim=0) > 0).all()):
        warnings.warn(
            f"sequence {back} of X has values that rise and times that go back: a pair is (values, times), in this "
            f"order; it is taken so, and sorted by time",
            stacklevel=4,
        )


def _named(name: str, convert: Any, given: Any) -> Any:
    try:
        return convert(given)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: {error}") from error


def _from_pairs(sequences: Iterable[Any], time_unit: str | None) -> tuple[EventBatch, Tensor | None, str | None]:
    items = list(sequences)
    if not items:
        raise ValueError("X has 0 samples: there should be at least one sequence")
    _require_no_rows(items)
    values, stamps, static = [], [], []
    for number, item in enumerate(items):
        if isinstance(item, Sample):
            if item.static is not None:
                static.append(_named(f"static features of sequence {number}", as_floats, item.static))
        else:
            _require_pair(item, number, sequences)
        try:
            found = as_floats(item[0])
            values.append(found.unsqueeze(1) if found.dim() == 1 else found)
            stamps.append(as_stamps(item[1]))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"sequence {number} of X: {error}") from error
    if static and len(static) < len(items):
        raise ValueError(f"{len(static)} of {len(items)} sequences have static features: give them to all or to none")
    if len({features.shape for features in static}) > 1:
        raise ValueError("sequences of X have different numbers of static features")
    times, unit = _alike(stamps, time_unit)
    widest = torch.float64 if any(part.dtype == torch.float64 for part in values) else torch.float32
    pairs = [(part.to(widest), moments) for part, moments in zip(values, times, strict=True)]
    events = EventBatch.from_sequences(pairs)
    return events, torch.stack(static) if static else None, unit


def _require_no_rows(items: list[Any]) -> None:
    """Raise TypeError for lists that two steps of as many channels in each sequence make as well as 1-d pairs do."""
    sizes = set()
    for item in items:
        if type(item) is not list or len(item) != 2:
            return
        for row in item:
            if type(row) is not list or any(isinstance(entry, (list, tuple)) or np.ndim(entry) for entry in row):
                return
            sizes.add(len(row))
    if len(sizes) == 1:
        raise TypeError(
            f"X is lists of two lists of {sizes.pop()} numbers, which may be two steps or values and times: give "
            f"(values, times) as tuples, or an array (N, T, F)"
        )


def _require_pair(item: Any, number: int, whole: Any) -> None:
    of_objects = isinstance(item, np.ndarray) and item.dtype == object and item.ndim == 1
    if isinstance(item, (tuple, list)) or of_objects:
        if len(item) == 2:
            return
        got = f"{type(item).__name__} of {len(item)}"
    else:
        shape = getattr(item, "shape", None)
        got = type(item).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")
    advice = ""
    if isinstance(whole, tuple) and len(whole) == 2:
        advice = ": of one sequence give [(values, times)], of padded ones EventBatch.from_padded(values, times)"
    elif hasattr(item, "ndim"):
        advice = ": give each array with its times, or all as one array (N, T, F)"
    raise TypeError(f"sequence {number} of X should be a (values, times) pair, got {got}{advice}")


def _alike(stamps: list[Any], time_unit: str | None) -> tuple[list[Tensor], str | None]:
    """Times of all sequences in one dtype, and their unit if they were dates or durations."""
    filled = dict.fromkeys(number for number, part in enumerate(stamps) if np.prod(part.shape))
    first = next(iter(filled), 0)
    for number in filled:
        if _kind_of(stamps[number]) != _kind_of(stamps[first]):
            raise TypeError(
                f"sequence {number} of X has {_kind_of(stamps[number])}s for times, sequence {first} "
                f"{_kind_of(stamps[first])}s: give them all in one form"
            )
    # A sequence without steps has times of any kind.
    stamps = [part if number in filled else stamps[first][:0] for number, part in enumerate(stamps)]
    if not isinstance(stamps[0], Tensor):
        return in_one_unit(stamps, [f"sequence {number} of X: " for number in range(len(stamps))], time_unit)
    dtypes = {part.dtype for part in stamps}
    if len(dtypes) > 1:
        wide = torch.float64 if any(dtype.is_floating_point for dtype in dtypes) else torch.int64
        for number, part in enumerate(stamps):
            if not _holds(wide, part):
                raise ValueError(
                    f"sequence {number} of X has integer times beyond 2**53, others have floating ones that cannot "
                    f"tell such times apart: give integers in all"
                )
        stamps = [part.to(wide) for part in stamps]
    return stamps, None


def _kind_of(stamps: Tensor | NDArray[Any]) -> str:
    return "number" if isinstance(stamps, Tensor) else _DATES[stamps.dtype.kind]


def _holds(dtype: torch.dtype, times: Tensor) -> bool:
    """Whether times keep their values in another dtype."""
    if dtype == times.dtype:
        return True
    # Of float64 and int64 neither holds all of the other.
    there = times.to(dtype)
    inside = times.abs() < 2.0**63 if times.is_floating_point() else torch.ones_like(times, dtype=torch.bool)
    return bool((inside & (there.to(times.dtype) == times)).all())


def with_queries(
    events: EventBatch, queries: list[Any], targets: list[Any] | None = None, *, time_unit: str | None = None
) -> tuple[EventBatch, list[Tensor], Tensor]:
    """Add a step without any measurement at each time of a query.

    Args:
        events: N sequences of floating values.
        queries: N times (Q,) of each sequence, in the unit of the sequences' times; or dates, with `time_unit`.
        targets: N targets (Q,) or (Q, K) at those times, NaN or None where there is none; None: there are none yet.
        time_unit: the unit of the sequences' times, where queries are dates: "s", "ms", "us" or "ns".

    Returns:
        The sequences with their queries, by time, a query after the measurements of the same time; for each of its
        sequences the targets of the steps, (L, ...) float64, NaN at steps that are not queries; and a mask (S,) of
        queries. Times keep their dtype where it holds the queries exactly, and become int64 or float64 otherwise.

    Raises:
        TypeError: no batch, or dates without a `time_unit`.
        ValueError: values that are not floating; not one entry of queries or targets for each sequence, or not one
            target for each query; a query that is not finite, or that no dtype holds exactly together with the times.
    """
    if not isinstance(events, EventBatch):
        raise TypeError(f"events should be an EventBatch, as as_events makes it, got: {type(events).__name__}")
    if not events.values.is_floating_point():
        raise ValueError(f"values should be floating, NaN where not measured, got {events.values.dtype}")
    if len(queries) != len(events) or (targets is not None and len(targets) != len(events)):
        raise ValueError(f"there should be queries, and targets if any, of each of the {len(events)} sequences")
    asked_times = _query_times(events, queries, time_unit)
    dtype = _joint_dtype(events.times, asked_times)
    pairs, labels, masks = [], [], []
    for number, (values, times) in enumerate(events):
        asked = asked_times[number].to(dtype)
        wanted = torch.full((len(asked),), torch.nan, dtype=torch.float64)
        if targets is not None:
            wanted = _named(f"targets of sequence {number}", as_floats, targets[number]).to(wanted)
        if wanted.dim() == 0 or len(wanted) != len(asked):
            raise ValueError(
                f"sequence {number} should have queries (Q,) and a target for each, got {tuple(asked.shape)} and "
                f"{tuple(wanted.shape)}"
            )
        joined = torch.cat([times.to(dtype), asked])
        order = joined.sort(stable=True).indices
        blank = values.new_full((len(asked), values.shape[1]), torch.nan)
        pairs.append((torch.cat([values, blank])[order], joined[order]))
        own = wanted.new_full((len(times), *wanted.shape[1:]), torch.nan)
        labels.append(torch.cat([own, wanted])[order.to(wanted.device)])
        masks.append((torch.arange(len(joined), device=joined.device) >= len(times))[order])
    return EventBatch.from_sequences(pairs), labels, torch.cat(masks)


def _query_times(events: EventBatch, queries: list[Any], time_unit: str | None) -> list[Tensor]:
    found = []
    for number, query in enumerate(queries):
        name = f"queries of sequence {number}"
        stamps = _named(name, as_stamps, query)
        if isinstance(stamps, np.ndarray):
            if time_unit not in TIME_UNITS or events.times.is_floating_point():
                raise TypeError(
                    f"{name} are {_kind_of(stamps)}s, and times are {events.times.dtype} of a unit that is not known: "
                    f"name it with time_unit='ns' where as_events made them, or give queries in that unit"
                )
            counts = _named(name, lambda part: exactly(part, str(time_unit)).astype(np.int64), stamps)
            stamps = _named(name, as_stamps, counts)
        if stamps.dim() != 1:
            raise ValueError(
                f"sequence {number} should have queries (Q,) and a target for each, got {tuple(stamps.shape)}"
            )
        found.append(stamps.to(events.device))
    return found


def _joint_dtype(times: Tensor, asked: list[Tensor]) -> torch.dtype:
    """The dtype of the times if it holds the queries, else the first that holds both, exactly."""
    for dtype in (times.dtype, *([] if times.is_floating_point() else [torch.int64]), torch.float64):
        if _holds(dtype, times) and all(_holds(dtype, part) for part in asked):
            return dtype
    raise ValueError(
        "no type of times holds both queries between integers and integer times beyond 2**53: round the queries, or "
        "take an offset off the times"
    )
