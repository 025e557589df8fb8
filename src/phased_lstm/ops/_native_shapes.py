"""Shapes and dtypes of what the native operators return, for tracing without values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException


def _unknown_size() -> Any:
    """A size that depends on the values of the times: a symbol, or 0 in a mode that has no symbols.

    Only the operator's own backward pass reads what is of such a size.
    """
    try:
        return torch.library.get_ctx().new_dynamic_size()
    except DynamicOutputShapeException:
        return 0


def register_shapes() -> None:
    """Tell torch; the library must be loaded."""

    @torch.library.register_fake("phased_lstm::layer")  # type: ignore[untyped-decorator]
    def _layer_shapes(
        input: Tensor, times: Tensor, lengths: Tensor | None, h0: Any, c0: Any, weight_ih: Tensor, weight_hh: Tensor,
        *rest: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return_sequence, keep_tape, layered = rest[-3:]
        batch, steps, _ = input.shape
        gate_rows, hidden = weight_hh.shape
        single = (1,) if layered else ()
        entries: Any = 0
        fields: Any = 0
        events: Any = 0
        places: tuple[Any, ...] = (0, 0)
        if keep_tape:
            entries, fields, events = (_unknown_size() for _ in range(3))
            # Rows of times, or groups of sequences and their ticks.
            places = (1, steps + 1) if times.dim() == 1 else (_unknown_size(), _unknown_size())
        return (
            input.new_empty((batch if return_sequence else 0, steps, hidden)),
            input.new_empty((*single, batch, hidden)),
            input.new_empty((*single, batch if gate_rows == 4 * hidden else 0, hidden)),
            input.new_empty((entries, fields)),
            input.new_empty(places, dtype=torch.int64),
            input.new_empty((events,), dtype=torch.int32),
            input.new_empty((events,)),
        )

    @torch.library.register_fake("phased_lstm::step")  # type: ignore[untyped-decorator]
    def _step_shapes(input: Tensor, time: float, h: Tensor, c: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        return input.new_empty(h.shape), input.new_empty((0,) if c is None else h.shape)

    @torch.library.register_fake("phased_lstm::layer_backward")  # type: ignore[untyped-decorator]
    def _layer_backward_shapes(
        input: Tensor, times: Tensor, lengths: Any, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Any, bias_hh: Any,
        peephole: Tensor | None, *rest: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        need_times, need_input, raw_gate, _ = rest[-4:]
        batch, steps, _ = input.shape
        rows, hidden = weight_hh.shape
        lstm = rows == 4 * hidden
        of_gate = torch.float64 if raw_gate is None else raw_gate.dtype
        return (
            input.new_empty((batch if need_input else 0, *input.shape[1:])),
            input.new_empty((batch, hidden)),
            input.new_empty((batch if lstm else 0, hidden)),
            input.new_empty(weight_ih.shape),
            input.new_empty(weight_hh.shape),
            input.new_empty((rows,)),
            input.new_empty((0 if lstm else rows,)),
            input.new_empty((0 if peephole is None else 3, hidden)),
            *(input.new_empty((hidden,), dtype=of_gate) for _ in range(3)),
            input.new_empty((batch if need_times else 0, steps), dtype=torch.float64),
        )
