"""Sequences of unequal length with their times, laid end to end: what data sets hold and layers are fed from."""

from __future__ import annotations

import itertools
import numbers
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from .._checks import check_lengths, check_time_dtype, check_time_values
from .._sequences import jagged_index, packed_index


@dataclass(frozen=True, eq=False, repr=False)
class EventBatch:
    """N sequences of S events in all, each event with a time and F values.

    Sequence n has the events `offsets[n]` to `offsets[n + 1]`. Nothing here changes a batch: every method returns
    a new one, which may share memory with the old. Values may be NaN, for "not measured".

    Attributes:
        values: (S, F), of any dtype.
        times: (S,) absolute, int32, int64, float32 or float64; no method changes their dtype.
        offsets: (N + 1,) int64, from 0 to S.

    Raises:
        TypeError: an argument that is no tensor.
        ValueError: a wrong shape or dtype, tensors on several devices, times that are not finite, or offsets that do
            not go from 0 to S without decreasing.
    """

    values: Tensor
    times: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        for name, tensor, rank, shape in (
            ("values", self.values, 2, "(S, F): a row for each event"),
            ("times", self.times, 1, "(S,): one for each event"),
            ("offsets", self.offsets, 1, "(N + 1,): where each sequence begins, and the number of events"),
        ):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} should be a tensor, got: {type(tensor).__name__}")
            if tensor.dim() != rank:
                raise ValueError(f"{name} should be of shape {shape}; got {tuple(tensor.shape)}")
            if tensor.device != self.values.device:
                raise ValueError(f"{name} is on {tensor.device}, values on {self.values.device}: move one of them")
        if len(self.times) != len(self.values):
            raise ValueError(f"there should be a time for each event, got {len(self.times)} for {len(self.values)}")
        check_time_values(check_time_dtype(self.times))
        offsets = self.offsets
        if offsets.dtype != torch.int64 or not len(offsets):
            raise ValueError(
                f"offsets should be int64, of N + 1 entries, got {offsets.dtype} of shape {tuple(offsets.shape)}"
            )
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(self.times) or bool((offsets.diff() < 0).any()):
            raise ValueError(
                f"offsets should go from 0 to the number of events, {len(self.times)}, without decreasing; got "
                f"{_shortened(offsets)}. From lengths: EventBatch.from_lengths(values, times, lengths)"
            )

    @classmethod
    def _unchecked(cls, values: Tensor, times: Tensor, offsets: Tensor) -> Self:
        """Make a batch of parts of a checked one."""
        batch = object.__new__(cls)
        for name, tensor in (("values", values), ("times", times), ("offsets", offsets)):
            object.__setattr__(batch, name, tensor)
        return batch

    @classmethod
    def from_lengths(cls, values: Tensor, times: Tensor, lengths: Tensor | Sequence[int]) -> Self:
        """Make a batch of sequences laid end to end.

        Args:
            values: (S, F).
            times: (S,).
            lengths: (N,) integer number of events of each; their sum is S.

        Raises:
            TypeError, ValueError: as the class.
        """
        counts = as_index(lengths, values.device)
        if counts.dim() != 1 or (counts.is_floating_point() and len(counts)):
            raise ValueError(f"lengths should be integers (N,), got {counts.dtype} of shape {tuple(counts.shape)}")
        return cls(values, times, _offsets(counts))

    @classmethod
    def from_sequences(cls, sequences: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """Make a batch of (values (L, F), times (L,)) pairs.

        Raises:
            TypeError, ValueError: as the class; ValueError also for no sequence at all, or sequences of several
                widths or dtypes, naming the first that differs.
        """
        pairs = list(sequences)
        if not pairs:
            raise ValueError("there should be at least one sequence: the number of features would be unknown")
        first_values, first_times = pairs[0]
        for number, (values, times) in enumerate(pairs):
            _require_tensors(f"sequence {number}: ", values, times)
            if values.dim() != 2 or times.shape != values.shape[:1]:
                raise ValueError(
                    f"sequence {number} should have values (L, F) and times (L,), got {tuple(values.shape)} and "
                    f"{tuple(times.shape)}"
                )
            found = values.shape[1], values.dtype, times.dtype
            expected = first_values.shape[1], first_values.dtype, first_times.dtype
            if found != expected:
                raise ValueError(
                    f"sequence {number} has {_signature(found)}, sequence 0 {_signature(expected)}: bring them to one"
                )
        return cls(
            torch.cat([values for values, _ in pairs]),
            torch.cat([times for _, times in pairs]),
            _offsets(torch.tensor([len(times) for _, times in pairs], device=first_times.device)),
        )

    @classmethod
    def from_padded(
        cls,
        values: Tensor,
        times: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        batch_first: bool = True,
    ) -> Self:
        """Make a batch of padded sequences.

        Args:
            values: (N, L, F), or (L, N, F) unless `batch_first`.
            times: (L,), shared, or (N, L), or (L, N) unless `batch_first`.
            lengths: (N,) integer number of valid steps; None: all of them.

        Raises:
            TypeError, ValueError: as the class.

        Warns:
            UserWarning: as many sequences as steps, and times that go back along the steps, but not the other way.
        """
        _require_tensors("", values, times)
        if values.dim() != 3:
            raise ValueError(f"values should be of shape (N, L, F), got {tuple(values.shape)}")
        if not batch_first:
            values = values.transpose(0, 1)
            times = times.transpose(0, 1) if times.dim() == 2 else times
        batch, steps = values.shape[:2]
        if times.shape not in ((steps,), (batch, steps)):
            raise ValueError(
                f"times should be of shape ({steps},) or ({batch}, {steps}) to go with values of shape "
                f"{tuple(values.shape)}, batch first; got {tuple(times.shape)}"
            )
        _warn_of_transposed(times)
        if lengths is None:
            lengths = [steps] * batch
        counts = check_lengths(lengths, batch, steps, values.device)
        valid = torch.arange(steps, device=values.device) < counts.unsqueeze(1)
        return cls(values[valid], times.expand(batch, steps)[valid], _offsets(counts))

    @classmethod
    def from_packed(cls, values: PackedSequence, times: PackedSequence) -> Self:
        """Make a batch of a PackedSequence and its times, packed alike, in the order before packing.

        Raises:
            TypeError, ValueError: as the class; ValueError also where the two are packed differently.
        """
        if not isinstance(times, PackedSequence):
            raise TypeError(f"times should be a PackedSequence like the values, got: {type(times).__name__}")
        return cls._from_index(packed_index(values), values.data, times)

    @classmethod
    def from_jagged(cls, values: Tensor, times: Tensor) -> Self:
        """Make a batch of jagged nested tensors of values (N, j, F) and times (N, j).

        Raises:
            TypeError, ValueError: as the class; ValueError also where the two have other lengths.
        """
        if not times.is_nested:
            raise TypeError("times should be a jagged tensor like the values, got an ordinary one")
        return cls._from_index(jagged_index(values), values.values(), times)

    @classmethod
    def _from_index(cls, index: Any, values: Tensor, times: Any) -> Self:
        flat_times = index.flat_times(times)
        return cls(index.sequence_major(values), index.sequence_major(flat_times), _offsets(index.lengths))

    @classmethod
    def from_dense(cls, values: Tensor, times: Tensor) -> Self:
        """Make a batch of values on a grid of times, NaN where not measured; steps of NaN alone are left out.

        Args:
            values: (N, T, F) floating.
            times: (T,), shared, or (N, T).

        Raises:
            TypeError, ValueError: as the class.
        """
        if values.dim() != 3 or not values.is_floating_point():
            raise ValueError(f"values should be floating, (N, T, F), got {values.dtype} {tuple(values.shape)}")
        measured = ~values.isnan().all(dim=-1)
        if times.shape not in (values.shape[1:2], values.shape[:2]):
            raise ValueError(
                f"times should be of shape {tuple(values.shape[1:2])} or {tuple(values.shape[:2])} to go with values "
                f"of shape {tuple(values.shape)}, got {tuple(times.shape)}"
            )
        _warn_of_transposed(times)
        return cls(values[measured], times.expand(values.shape[:2])[measured], _offsets(measured.sum(dim=1)))

    @classmethod
    def cat(cls, batches: Iterable[EventBatch]) -> Self:
        """Join batches of the same width and dtypes, one after another.

        Raises:
            ValueError: no batch, or batches of several widths or dtypes.
        """
        parts = list(batches)
        if not parts:
            raise ValueError("there should be at least one batch: the number of features would be unknown")
        expected = parts[0].num_features, parts[0].values.dtype, parts[0].times.dtype
        for number, part in enumerate(parts):
            found = part.num_features, part.values.dtype, part.times.dtype
            if found != expected:
                raise ValueError(
                    f"batch {number} has {_signature(found)}, batch 0 {_signature(expected)}: bring them to one"
                )
        return cls._unchecked(
            torch.cat([part.values for part in parts]),
            torch.cat([part.times for part in parts]),
            _offsets(torch.cat([part.lengths for part in parts])),
        )

    @property
    def lengths(self) -> Tensor:
        """(N,) int64 number of events of each sequence."""
        return self.offsets.diff()

    @property
    def num_events(self) -> int:
        """S, the number of events of all sequences."""
        return self.values.shape[0]

    @property
    def num_features(self) -> int:
        """F, the number of values of an event."""
        return self.values.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.values.device

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...

    @overload
    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Self: ...

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> Any:
        """Return one sequence as (values (L, F), times (L,)), or a batch of those chosen.

        Args:
            index: an int; or a slice, an integer tensor or list (any order, repeats allowed), or a bool tensor (N,).

        Raises:
            IndexError: no such sequence.
        """
        if isinstance(index, (int, numbers.Integral)):
            index = int(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"sequence {index} of a batch of {len(self)}")
            start, stop = self.offsets[index % len(self) :][:2].tolist()
            return self.values[start:stop], self.times[start:stop]
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step == 1:
                bounds = self.offsets[first : max(first, last) + 1]
                start, stop = int(bounds[0]), int(bounds[-1])
                return self._unchecked(self.values[start:stop], self.times[start:stop], bounds - start)
            index = list(range(first, last, step))
        chosen = self.positions(index)
        lengths = self.lengths[chosen]
        offsets = _offsets(lengths)
        shift = self.offsets[chosen] - offsets[:-1]
        events = torch.arange(int(offsets[-1]), device=self.device) + shift.repeat_interleave(lengths)
        return self._unchecked(self.values[events], self.times[events], offsets)

    def positions(self, index: Tensor | Sequence[int]) -> Tensor:
        """Return an index of sequences as int64 positions from 0 to N - 1, on the device of the batch.

        Args:
            index: integers (M,), negative ones counted from the end, or bool (N,).

        Raises:
            IndexError: no such sequences.
        """
        return positions(index, len(self), self.device)

    def keep(self, events: Tensor) -> Self:
        """Return all sequences with only some of their events, which keep their times.

        Args:
            events: (S,) bool, which to keep. A sequence may become empty.

        Raises:
            TypeError: no tensor.
            ValueError: another dtype or shape.
        """
        if not isinstance(events, Tensor):
            raise TypeError(f"events should be a bool tensor, got: {type(events).__name__}")
        if events.dtype != torch.bool or events.shape != self.times.shape:
            raise ValueError(
                f"events should be bool ({self.num_events},), one for each event, got {events.dtype} of shape "
                f"{tuple(events.shape)}"
            )
        events = events.to(self.device)
        before = torch.cat([self.offsets.new_zeros(1), events.cumsum(0)])
        return self._unchecked(self.values[events], self.times[events], before[self.offsets])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the sequences, each as (values (L, F), times (L,))."""
        bounds = self.offsets.tolist()
        for start, stop in itertools.pairwise(bounds):
            yield self.values[start:stop], self.times[start:stop]

    def padded(self, *, batch_first: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a layer takes: `rnn(values, times=times, lengths=lengths)`.

        Returns:
            values (N, L, F) and times (N, L), 0 beyond each length, or (L, N, F) and (L, N) unless `batch_first`;
            lengths (N,). L is the greatest length.
        """
        rows, columns, lengths = self._places()
        steps = int(lengths.max()) if len(self) else 0
        values = self.values.new_zeros((len(self), steps, self.num_features))
        values = values.index_put((rows, columns), self.values)
        times = self.times.new_zeros((len(self), steps)).index_put((rows, columns), self.times)
        if not batch_first:
            values, times = values.transpose(0, 1), times.transpose(0, 1)
        return values, times, lengths

    def packed(self) -> tuple[PackedSequence, PackedSequence]:
        """Return values and times as PackedSequences, packed alike.

        Raises:
            ValueError: a sequence without events, which a PackedSequence cannot hold.
        """
        values, times, lengths = self.padded()
        if not len(self) or not bool((lengths > 0).all()):
            empty = (lengths == 0).nonzero().flatten()
            which = f"sequence {int(empty[0])} has" if len(empty) else "the batch has"
            raise ValueError(f"{which} no events, and a PackedSequence cannot be empty: leave it out, or use padded()")
        counts = lengths.cpu()
        options = {"batch_first": True, "enforce_sorted": False}
        return pack_padded_sequence(values, counts, **options), pack_padded_sequence(times, counts, **options)

    def jagged(self) -> tuple[Tensor, Tensor]:
        """Return values (N, j, F) and times (N, j) as jagged nested tensors that share memory with the batch."""
        return (
            torch.nested.nested_tensor_from_jagged(self.values, self.offsets),
            torch.nested.nested_tensor_from_jagged(self.times, self.offsets),
        )

    def dense(self) -> tuple[Tensor, Tensor]:
        """Return the values on the grid of all distinct times, NaN where a sequence was not measured.

        Returns:
            values (N, T, F), floating (integer values become the default dtype, or float64 where that
            loses digits), and times (T,), increasing.

        Raises:
            ValueError: a sequence with two events at one time, for which the grid has one place.
        """
        grid, columns = torch.unique(self.times, return_inverse=True)
        rows, _, _ = self._places()
        places = rows * len(grid) + columns
        order = places.sort(stable=True).values
        repeated = (order.diff() == 0).nonzero().flatten()
        if len(repeated):
            place = int(order[repeated[0]])
            raise ValueError(
                f"sequence {place // len(grid)} has two events at time {grid[place % len(grid)].item()}: the grid has "
                f"one place for them; merge them first"
            )
        values = self.values
        if not values.is_floating_point():
            values = values.to(torch.get_default_dtype())
            # Through float64, as not every integer has a way back from its own rounding.
            if bool((values.double() != self.values.double()).any()):
                values = self.values.double()
        blank = values.new_full((len(self) * len(grid), self.num_features), torch.nan)
        filled = blank.index_put((places,), values)
        return filled.reshape(len(self), len(grid), self.num_features), grid

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """The row and column of every event in the padded form, and the lengths."""
        lengths = self.lengths
        rows = torch.arange(len(self), device=self.device).repeat_interleave(lengths)
        columns = torch.arange(self.num_events, device=self.device) - self.offsets[rows]
        return rows, columns, lengths

    def to(
        self,
        device: torch.device | torch.dtype | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> Self:
        """Move to a device, or convert the values (never the times) to a dtype, or both, as `Tensor.to` is called."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        return self._unchecked(
            self.values.to(device=device, dtype=dtype, non_blocking=non_blocking),
            self.times.to(device=device, non_blocking=non_blocking),
            self.offsets.to(device=device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Self:
        """Copy to page-locked memory, as DataLoader(pin_memory=True) asks its batches to do."""
        return self._unchecked(self.values.pin_memory(), self.times.pin_memory(), self.offsets.pin_memory())

    def equal(self, other: EventBatch) -> bool:
        """Whether both hold the same sequences: dtypes, times and values, NaN equal to NaN."""
        if (self.values.dtype, self.times.dtype) != (other.values.dtype, other.times.dtype):
            return False
        if self.values.shape != other.values.shape or not torch.equal(self.offsets, other.offsets):
            return False
        same = self.values == other.values
        if self.values.is_floating_point():
            same |= self.values.isnan() & other.values.isnan()
        return bool(same.all()) and torch.equal(self.times, other.times)

    def __repr__(self) -> str:
        lengths = self.lengths
        spread = f"lengths {int(lengths.min())} to {int(lengths.max())}, " if len(self) else ""
        return (
            f"EventBatch({len(self)} sequences, {self.num_events} events, {self.num_features} features, {spread}"
            f"values {self.values.dtype}, times {self.times.dtype}, {self.device})"
        )


def _require_tensors(where: str, values: object, times: object) -> None:
    for name, part in (("values", values), ("times", times)):
        if not isinstance(part, Tensor):
            raise TypeError(
                f"{where}{name} should be a tensor, got: {type(part).__name__}; convert it with torch.as_tensor"
            )


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1, dtype=torch.int64), lengths.cumsum(0, dtype=torch.int64)])


def _warn_of_transposed(times: Tensor) -> None:
    if times.dim() != 2 or times.shape[0] != times.shape[1] or len(times) < 3:
        return
    back, across = ((times.diff(dim=dim) < 0).double().mean() for dim in (1, 0))
    if float(back) >= 0.25 and float(across) == 0.0:
        warnings.warn(
            f"times {tuple(times.shape)} are read as a row for each sequence, in which they go back; down the columns "
            f"they do not: if they are (L, N), transpose them",
            stacklevel=3,
        )


def _signature(found: tuple[int, torch.dtype, torch.dtype]) -> str:
    return f"{found[0]} features of {found[1]} and times of {found[2]}"


def _shortened(offsets: Tensor) -> str:
    head = offsets[:6].tolist()
    return str(head) if len(offsets) <= 6 else f"{str(head)[:-1]}, ..., {int(offsets[-1])}]"


def as_index(given: Any, device: torch.device | None = None) -> Tensor:
    """Return integers or bools of any library as a tensor; torch refuses arrays that are reversed or byte-swapped."""
    plain = given.tolist() if hasattr(given, "tolist") and not isinstance(given, Tensor) else given
    try:
        return torch.as_tensor(plain, device=device)
    except RuntimeError as error:
        # What None is, or was masked, torch calls a type that it cannot infer.
        raise TypeError(f"there should be integers or bools, got {plain!r}") from error


def positions(index: Tensor | Sequence[int], count: int, device: torch.device) -> Tensor:
    """Return an index of `count` sequences as int64 positions; see `EventBatch.positions`."""
    chosen = as_index(index, device)
    if chosen.dtype == torch.bool and chosen.shape == (count,):
        return chosen.nonzero().squeeze(1)
    if not chosen.numel():
        return torch.zeros(0, dtype=torch.int64, device=device)
    if chosen.dim() != 1 or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise IndexError(
            f"an index of a batch of {count} should be int, slice, integers (M,) or bool ({count},), got "
            f"{chosen.dtype} of shape {tuple(chosen.shape)}"
        )
    if int(chosen.min()) < -count or int(chosen.max()) >= count:
        raise IndexError(f"indices from {int(chosen.min())} to {int(chosen.max())} of a batch of {count}")
    return chosen.long() % count
