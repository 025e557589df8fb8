"""From ragged sequences to the batches of a DataLoader: data set, collate function, sampler by length."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from .._checks import check_flag, check_integer, check_size
from .events import EventBatch, as_index

# What cross_entropy leaves out by default.
IGNORED_CLASS = -100
# Batches whose sequences are sorted by length together: enough for little padding, few enough to stay random.
_POOL = 50


class Sample(NamedTuple):
    """One sequence with what belongs to it.

    Attributes:
        values: (L, F).
        times: (L,).
        label: of the sequence, any shape, or (L, ...) of its steps; None where there are none.
        static: (G,) features that do not change over the sequence; None where there are none.
        per_step: whether the label is that of the steps.
    """

    values: Tensor
    times: Tensor
    label: Tensor | None = None
    static: Tensor | None = None
    per_step: bool = False


class EventDataset(Dataset[Sample]):
    """Sequences with their labels and static features, for a DataLoader with `collate`.

    Args:
        events: the N sequences.
        labels: (N, ...) one for each sequence, or (S, ...) one for each event with `per_step`.
        static: (N, G) features that do not change over a sequence.
        per_step: whether labels belong to events.

    Raises:
        TypeError: an argument of another type.
        ValueError: labels or static features that do not go with the sequences one to one.
    """

    def __init__(
        self,
        events: EventBatch,
        labels: Tensor | None = None,
        static: Tensor | None = None,
        *,
        per_step: bool = False,
    ) -> None:
        per_step = check_flag("per_step", per_step)
        if not isinstance(events, EventBatch):
            raise TypeError(f"events should be an EventBatch, got: {type(events).__name__}")
        for name, tensor in (("labels", labels), ("static", static)):
            if tensor is not None and not isinstance(tensor, Tensor):
                raise TypeError(f"{name} should be a tensor or None, got: {type(tensor).__name__}")
        count, owner = (events.num_events, "event") if per_step else (len(events), "sequence")
        if per_step and labels is None:
            raise ValueError("per_step says what labels belong to, and there are none")
        if labels is not None and (labels.dim() == 0 or len(labels) != count):
            raise ValueError(f"labels should be ({count}, ...), one for each {owner}, got {tuple(labels.shape)}")
        if static is not None and (static.dim() != 2 or len(static) != len(events)):
            raise ValueError(f"static should be ({len(events)}, G), a row for each sequence, got {tuple(static.shape)}")
        self.events = events
        self.labels = labels
        self.static = static
        self.per_step = per_step

    @property
    def lengths(self) -> Tensor:
        """(N,) number of events of each sequence, for `LengthBatchSampler`."""
        return self.events.lengths

    def __len__(self) -> int:
        return len(self.events)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Self: ...

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> Any:
        """Return one sample, or the data set of those chosen; see `EventBatch.__getitem__`."""
        if isinstance(index, (int, numbers.Integral)):
            index = int(index)
            values, times = self.events[index]
            label = self._by_step()[index][0] if self.per_step else _rows(self.labels, index)
            return Sample(values, times, label, _rows(self.static, index), self.per_step)
        events = self.events[index]
        rows = index if isinstance(index, slice) else self.events.positions(index)
        labels = self._by_step()[index].values if self.per_step else _rows(self.labels, rows)
        return type(self)(events, labels, _rows(self.static, rows), per_step=self.per_step)

    def _by_step(self) -> EventBatch:
        assert self.labels is not None
        return EventBatch._unchecked(self.labels, self.events.times, self.events.offsets)


def _rows(tensor: Tensor | None, rows: int | slice | Tensor) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def collate(samples: Sequence[Sample]) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Make a padded batch, as DataLoader's `collate_fn`.

    Args:
        samples: those of an `EventDataset`.

    Returns:
        The inputs `(values, times, lengths)`, of shapes (N, L, F), (N, L) and (N,), with `static` (N, G) fourth where
        there are static features; and the labels (N, ...), or None. Labels of steps are (N, L, ...), filled up with
        `IGNORED_CLASS` where they are integers, with NaN where they are floating, and with False where they are bool.

    Raises:
        ValueError: no samples, or some with and some without a label.
    """
    if not len(samples):
        raise ValueError("there should be at least one sample to make a batch of")
    padded = EventBatch.from_sequences((sample.values, sample.times) for sample in samples).padded()
    static = _all_or_none("static features", [sample.static for sample in samples])
    inputs: tuple[Tensor, ...] = padded if static is None else (*padded, torch.stack(static))
    labels = _all_or_none("a label", [sample.label for sample in samples])
    if labels is None:
        return inputs, None
    if not samples[0].per_step:
        return inputs, torch.stack(labels)
    # Padding alone would take the type of the first.
    kind = functools.reduce(torch.promote_types, (part.dtype for part in labels))
    labels = [part.to(kind) for part in labels]
    return inputs, pad_sequence(labels, batch_first=True, padding_value=_padding(labels[0].dtype))


def _padding(dtype: torch.dtype) -> float:
    if dtype == torch.bool:
        return False
    return torch.nan if dtype.is_floating_point else IGNORED_CLASS


def _all_or_none(name: str, tensors: list[Tensor | None]) -> list[Tensor] | None:
    present = [tensor for tensor in tensors if tensor is not None]
    if present and len(present) < len(tensors):
        raise ValueError(f"{len(present)} of {len(tensors)} samples have {name}: give it to all of them or to none")
    return present or None


class LengthBatchSampler(Sampler[list[int]]):
    """Batches of sequences of similar length, so that little is padded, in an order that changes with the epoch.

    Shuffled, the sequences are drawn at random, sorted by length in pools of 50 batches, cut into batches, and the
    batches shuffled. Otherwise all are sorted, the longest first. Everything follows from `seed` and the epoch.

    With several ranks each batch is shared out among them, in equal parts: the ranks together see the batches that one
    rank would see. Where a last, smaller batch has no equal parts, some of its sequences are given twice, as
    torch's DistributedSampler does.

    Args:
        lengths: (N,) integer length of each sequence.
        batch_size: number of sequences of a batch, over all ranks.
        shuffle: whether the order is random.
        seed: of the order.
        drop_last: whether a last, smaller batch is left out.
        rank: which share is ours, from 0.
        world_size: number of shares.

    Raises:
        TypeError: an argument of another type.
        ValueError: lengths that are not integers (N,), a batch size that the ranks cannot share equally, or a rank
            that is not among them.
    """

    def __init__(
        self,
        lengths: Tensor | Sequence[int],
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        batch_size, world_size = check_size("batch_size", batch_size), check_size("world_size", world_size)
        shuffle, drop_last = check_flag("shuffle", shuffle), check_flag("drop_last", drop_last)
        seed, rank = check_integer("seed", seed), check_integer("rank", rank)
        lengths = as_index(lengths).cpu()
        if lengths.dim() != 1 or (len(lengths) and lengths.dtype not in (torch.int32, torch.int64)):
            raise ValueError(f"lengths should be integers (N,), got {lengths.dtype} of shape {tuple(lengths.shape)}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank should be from 0 to {world_size - 1}, one of world_size, got {rank}")
        if batch_size % world_size:
            raise ValueError(
                f"batch_size should be a multiple of world_size, {world_size}, for equal shares; got {batch_size}"
            )
        self._lengths = lengths.long()
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = check_integer("epoch", epoch)

    def __len__(self) -> int:
        whole, rest = divmod(len(self._lengths), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches():
            short = -len(batch) % self.world_size
            shared = torch.cat([batch, batch.repeat(short)[:short]])
            yield shared[self.rank :: self.world_size].tolist()

    def _batches(self) -> list[Tensor]:
        if not self.shuffle:
            order = self._lengths.sort(descending=True, stable=True).indices
            return list(order.split(self.batch_size))[: len(self)]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self._lengths), generator=generator)
        if self.drop_last:
            order = order[: len(self) * self.batch_size]
        batches: list[Tensor] = []
        for pool in order.split(_POOL * self.batch_size):
            if len(pool):
                batches += pool[self._lengths[pool].sort(stable=True).indices].split(self.batch_size)
        return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
