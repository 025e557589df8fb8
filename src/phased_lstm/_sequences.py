"""The forms in which layers take sequences, and the one padded form in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Sequences: TypeAlias = Tensor | PackedSequence


class PaddedBatch(NamedTuple):
    """A batch in the form the backends take.

    Attributes:
        values: (N, L, H_in).
        times: (L,) or (N, L), not validated beyond its form; None when none were given.
        lengths: what limits each row: (N,) tensor, the caller's own argument, or None.
        unbatched: whether the caller's sequence had no batch dimension.
        restore: puts an output (N, L, H) into the caller's form.
    """

    values: Tensor
    times: Tensor | None
    lengths: Any
    unbatched: bool
    restore: Callable[[Tensor], Any]


def to_padded(owner: str, input: Sequences, times: Sequences | None, lengths: Any, batch_first: bool) -> PaddedBatch:
    """Bring dense, unbatched, packed or jagged sequences into the padded form.

    Args:
        owner: class name for error messages.
        input: (L, H_in), (L, N, H_in), (N, L, H_in) if `batch_first`, PackedSequence, or jagged.
        times: None, (L,), (L, N) or (N, L) like the input, or in the ragged form of the input.
        lengths: None or (N,); only with padded input.
        batch_first: layout of dense tensors.

    Raises:
        TypeError: an input that is neither tensor nor PackedSequence.
        ValueError: a rank or combination that has no meaning.
    """
    if isinstance(input, PackedSequence):
        return _from_ragged(packed_index(input), input.data, times, lengths, batch_first)
    if not isinstance(input, Tensor):
        raise TypeError(f"{owner}: input should be a tensor or PackedSequence, got: {type(input).__name__}")
    if input.is_nested:
        return _from_ragged(jagged_index(input), input.values(), times, lengths, batch_first)
    if input.dim() not in (2, 3):
        raise ValueError(f"{owner}: Expected input to be 2D or 3D, got {input.dim()}D instead")
    if times is not None and (not isinstance(times, Tensor) or times.is_nested):
        kind = "a jagged tensor" if isinstance(times, Tensor) else type(times).__name__
        hint = "" if isinstance(times, Tensor) else "; convert it with torch.as_tensor(times)"
        raise TypeError(f"times should be a tensor like the input, got: {kind}{hint}")
    if input.dim() == 2:
        if lengths is not None:
            raise ValueError("lengths needs a batch, and the input has no batch dimension: slice the input instead")
        if times is not None and times.dim() != 1:
            raise ValueError(
                f"times should be of shape ({input.shape[0]},) for unbatched input, got {tuple(times.shape)}"
            )
        return PaddedBatch(input.unsqueeze(0), times, None, True, lambda output: output.squeeze(0))
    if batch_first:
        return PaddedBatch(input, times, lengths, False, lambda output: output)
    values = input.transpose(0, 1)
    return PaddedBatch(
        values, _batch_major(times, values, batch_first), lengths, False, lambda output: output.transpose(0, 1)
    )


def time_rows(times: Any, lengths: Any, batch_first: bool) -> tuple[Any, Any]:
    """Bring times alone, in any form a layer takes, to (L,) or (N, L) and lengths."""
    ragged = None
    if isinstance(times, PackedSequence):
        ragged = packed_index(times), times.data
    elif isinstance(times, Tensor) and times.is_nested:
        ragged = jagged_index(times), times.values()
    if ragged is None:
        return (
            times.transpose(0, 1) if isinstance(times, Tensor) and times.dim() == 2 and not batch_first else times
        ), lengths
    index, flat = ragged
    if lengths is not None:
        raise ValueError(f"lengths goes with padded times; a {index.form} has its own lengths")
    return index.pad(flat), index.lengths


@dataclass(frozen=True)
class RaggedIndex:
    """Where each entry of a ragged form's flat data stands in the padded form."""

    form: str
    rows: Tensor
    columns: Tensor
    lengths: Tensor
    steps: int
    flat_times: Callable[[Any], Tensor | None]
    wrap: Callable[[Tensor], Any]

    def sequence_major(self, flat: Tensor) -> Tensor:
        """Order the entries by sequence, and within it by step."""
        starts = self.lengths.cumsum(0) - self.lengths
        return torch.empty_like(flat).index_put((starts[self.rows] + self.columns,), flat)

    def pad(self, flat: Tensor) -> Tensor:
        blank = flat.new_zeros((len(self.lengths), self.steps, *flat.shape[1:]))
        return blank.index_put((self.rows, self.columns), flat)


def _from_ragged(index: RaggedIndex, flat: Tensor, times: Any, lengths: Any, batch_first: bool) -> PaddedBatch:
    if lengths is not None:
        raise ValueError(f"lengths goes with padded input; a {index.form} has its own lengths")
    if flat.dim() != 2:
        raise ValueError(f"the data of a {index.form} should be 2D, (sum of lengths, H_in), got {flat.dim()}D")
    values = index.pad(flat)
    flat_times = index.flat_times(times)
    if flat_times is not None:
        if flat_times.dim() != 1:
            raise ValueError(f"the times of a {index.form} should be 1D, one for each step, got {flat_times.dim()}D")
        times = index.pad(flat_times)
    else:
        times = _batch_major(times, values, batch_first)
    return PaddedBatch(
        values, times, index.lengths, False, lambda output: index.wrap(output[index.rows, index.columns])
    )


def _batch_major(times: Tensor | None, values: Tensor, batch_first: bool) -> Tensor | None:
    if times is None or batch_first or not isinstance(times, Tensor) or times.dim() != 2:
        return times
    batch, steps = values.shape[:2]
    if times.shape != (steps, batch):
        raise ValueError(
            f"times should be of shape ({steps},), shared by all sequences, or ({steps}, {batch}), steps first "
            f"like the input, since batch_first=False; got {tuple(times.shape)}"
        )
    return times.transpose(0, 1)


def packed_index(packed: PackedSequence) -> RaggedIndex:
    device = packed.data.device
    if int(packed.batch_sizes.sum()) != len(packed.data):
        raise ValueError(
            f"the PackedSequence is malformed: its batch_sizes sum to {int(packed.batch_sizes.sum())}, its data has "
            f"{len(packed.data)} rows; make it with torch.nn.utils.rnn.pack_padded_sequence"
        )
    sizes = packed.batch_sizes.to(device)
    steps, batch = len(sizes), int(packed.batch_sizes[0])
    columns = torch.arange(steps, device=device).repeat_interleave(sizes)
    rows = torch.arange(len(columns), device=device) - (sizes.cumsum(0) - sizes)[columns]
    if packed.sorted_indices is not None:
        rows = packed.sorted_indices[rows]

    def flat_times(times: Any) -> Tensor | None:
        if not isinstance(times, PackedSequence):
            return None
        if not torch.equal(times.batch_sizes, packed.batch_sizes) or not _same(
            times.sorted_indices, packed.sorted_indices
        ):
            raise ValueError(
                "times is a PackedSequence of other lengths or order than the input: pack both with the same "
                "lengths and enforce_sorted"
            )
        return times.data

    def wrap(flat: Tensor) -> PackedSequence:
        return PackedSequence(flat, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)

    lengths = torch.bincount(rows, minlength=batch)
    return RaggedIndex("PackedSequence", rows, columns, lengths, steps, flat_times, wrap)


def jagged_index(nested: Any) -> RaggedIndex:
    if nested.layout != torch.jagged or nested.lengths() is not None or nested._ragged_idx != 1:
        raise ValueError(
            "nested input should be contiguous and jagged: torch.nested.nested_tensor(..., layout=torch.jagged)"
        )
    offsets = nested.offsets()
    lengths = offsets.diff()
    rows = torch.arange(len(lengths), device=offsets.device).repeat_interleave(lengths)
    columns = torch.arange(len(rows), device=offsets.device) - offsets[rows]

    def flat_times(times: Any) -> Tensor | None:
        if not getattr(times, "is_nested", False):
            return None
        if times.layout != torch.jagged or not torch.equal(times.offsets(), offsets):
            raise ValueError("times is a nested tensor of other lengths or layout than the input")
        return times.values()

    def wrap(flat: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(flat, offsets)

    steps = int(lengths.max()) if len(lengths) else 0
    return RaggedIndex("jagged tensor", rows, columns, lengths, steps, flat_times, wrap)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))
