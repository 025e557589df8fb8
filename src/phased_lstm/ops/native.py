"""The native backend: C++ that visits open events only, forward and backward, on the CPU.

Three opaque operators do the work, whatever the length of a sequence: `schedule` finds the open
(step, unit) events from the times, `layer_forward` runs the recurrence over them and keeps what the
way back needs, `layer_backward` walks the events backwards, undoing each. Autograd is put around them
here, as the stable ABI asks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._checks import OSCILLATIONS, Oscillation
from . import reference

_ISAS = ("baseline", "avx2", "avx512")


def _load() -> str:
    """Load the library; return why it cannot be used, or ""."""
    found = sorted(Path(__file__).parent.parent.glob("_native*.so"))
    if not found:
        return "it was not compiled; install with a C++ compiler and: pip install --no-build-isolation phased-lstm"
    try:
        torch.ops.load_library(str(found[0]))
        _register_fakes()
        torch.ops.phased_lstm.instruction_set()
    except (OSError, RuntimeError) as error:
        return f"{found[0].name} does not load: {error}"
    return ""


def missing() -> str:
    """Why the backend cannot be used on this machine, or ""."""
    return _REASON


def instruction_set() -> str:
    """The instruction set in use: baseline, avx2 or avx512."""
    return _ISAS[torch.ops.phased_lstm.instruction_set()]


def refuses(input: Tensor, leak: float) -> str:
    """Why a call cannot be served, or ""."""
    if input.device.type != "cpu":
        return f"the input is on {input.device}, it serves the CPU"
    if input.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return f"the input is {input.dtype}, it computes in float32 and float64"
    if torch._C._are_functorch_transforms_active():
        return "it has no rules for torch.func transforms"
    if torch.compiler.is_dynamo_compiling():
        return "torch.compile cannot yet trace around its events"
    if forward_ad._current_level >= 0:
        return "it has no forward-mode derivatives"
    return ""


def phased_lstm(
    input: Tensor,
    times: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    period: Tensor,
    shift: Tensor,
    ratio_on: Tensor,
    *,
    peephole: Tensor | None,
    leak: float,
    oscillation: Oscillation,
    lengths: Tensor | None,
    reverse: bool,
    return_sequence: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """One layer and direction; as `reference.phased_lstm`."""
    output, h_n, c_n = _Layer.apply(
        (leak, oscillation, reverse, return_sequence), lengths, input, times, h0, c0, weight_ih, weight_hh,
        bias, None, period, shift, ratio_on, peephole,
    )  # fmt: skip
    return output if return_sequence else None, h_n, c_n


def phased_gru(
    input: Tensor,
    times: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    period: Tensor,
    shift: Tensor,
    ratio_on: Tensor,
    *,
    leak: float,
    oscillation: Oscillation,
    lengths: Tensor | None,
    reverse: bool,
    return_sequence: bool,
) -> tuple[Tensor | None, Tensor]:
    """One layer and direction; as `reference.phased_gru`."""
    output, h_n, _ = _Layer.apply(
        (leak, oscillation, reverse, return_sequence), lengths, input, times, h0, None, weight_ih, weight_hh,
        bias_ih, bias_hh, period, shift, ratio_on, None,
    )  # fmt: skip
    return output if return_sequence else None, h_n


class _Layer(torch.autograd.Function):
    """Both cells: a GRU is the call without c0."""

    @staticmethod
    def forward(
        ctx: Any,
        options: tuple[float, Oscillation, bool, bool],
        lengths: Tensor | None,
        input: Tensor,
        times: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        period: Tensor,
        shift: Tensor,
        ratio_on: Tensor,
        peephole: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        leak, oscillation, reverse, return_sequence = options
        keep = any(ctx.needs_input_grad)
        coarse, residue = _split(times)
        gate = [tensor.detach().double().contiguous() for tensor in (period, shift, ratio_on)]
        events = torch.ops.phased_lstm.schedule(coarse, residue, *gate, leak > 0.0, input.dtype == torch.float32)
        given = (input, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, peephole, lengths)
        x, h, c, w_ih, w_hh, b_ih, b_hh, peep, valid = (None if t is None else t.detach().contiguous() for t in given)
        layer = (w_ih, w_hh, b_ih, b_hh, peep, gate[2].to(input.dtype), leak, OSCILLATIONS.index(oscillation), reverse)
        output, h_n, c_n, tape = torch.ops.phased_lstm.layer_forward(
            x, valid, *events, h, c, *layer, return_sequence, keep
        )
        if keep:
            ctx.options = options
            ctx.save_for_backward(
                input, times, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, period, shift, ratio_on, peephole,
                lengths, *events, tape, h_n.clone(),
            )  # fmt: skip
        return output, h_n, c_n

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_h_n: Tensor, grad_c_n: Tensor) -> tuple[Any, ...]:
        (
            input, times, _, c0, weight_ih, weight_hh, bias_ih, bias_hh, period, shift, ratio_on, peephole,
            lengths, offsets, units, phases, tape, h_n,
        ) = ctx.saved_tensors  # fmt: skip
        if torch.is_grad_enabled():
            return (None, None, *_reference_gradients(ctx, (grad_output, grad_h_n, grad_c_n)))
        leak, oscillation, reverse, return_sequence = ctx.options
        coarse, _ = _split(times)
        given = (input, weight_ih, weight_hh, bias_ih, bias_hh, peephole, lengths, grad_h_n)
        x, w_ih, w_hh, b_ih, b_hh, peep, valid, grad_h = (None if t is None else t.contiguous() for t in given)
        (
            in_input, in_h0, in_c0, in_weight_ih, in_weight_hh, in_bias_ih, in_bias_hh, in_peephole, in_gate, in_times
        ) = torch.ops.phased_lstm.layer_backward(
            x, valid, offsets, units, phases, w_ih, w_hh, b_ih, b_hh, peep,
            ratio_on.to(input.dtype).contiguous(), leak, OSCILLATIONS.index(oscillation), reverse, h_n, tape,
            grad_output.contiguous() if return_sequence else None, grad_h,
            None if c0 is None else grad_c_n.contiguous(), period.double().contiguous(),
            shift.double().contiguous(), coarse, ctx.needs_input_grad[3], ctx.needs_input_grad[2],
        )  # fmt: skip
        if ctx.needs_input_grad[3]:
            in_times = (in_times if times.dim() == 2 else in_times.sum(0)).to(times.dtype)
        needs = ctx.needs_input_grad
        found = (
            in_input, in_times, in_h0, in_c0, in_weight_ih, in_weight_hh, in_bias_ih, in_bias_hh,
            in_gate[0].to(period.dtype), in_gate[1].to(shift.dtype), in_gate[2].to(ratio_on.dtype), in_peephole,
        )  # fmt: skip
        return (None, None, *(gradient if need else None for gradient, need in zip(found, needs[2:], strict=True)))


def _split(times: Tensor) -> tuple[Tensor, Tensor | None]:
    """Times as (R, L) float64, and what integers lose by that."""
    rows = times.detach() if times.dim() == 2 else times.detach().unsqueeze(0)
    coarse = rows.to(torch.float64).contiguous()
    if times.dtype != torch.int64:
        return coarse, None
    return coarse, (rows - coarse.to(torch.int64)).to(torch.float64)


def _reference_gradients(ctx: Any, grads: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Gradients that can be differentiated again."""
    leak, oscillation, reverse, return_sequence = ctx.options
    (input, times, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, period, shift, ratio_on, peephole, lengths) = (
        ctx.saved_tensors[:13]
    )
    common = {
        "leak": leak, "oscillation": oscillation, "lengths": lengths, "reverse": reverse,
        "return_sequence": return_sequence,
    }  # fmt: skip
    gate = (period, shift, ratio_on)
    results: tuple[Tensor | None, ...]
    with torch.enable_grad():
        if c0 is None:
            results = reference.phased_gru(input, times, h0, weight_ih, weight_hh, bias_ih, bias_hh, *gate, **common)
        else:
            results = reference.phased_lstm(
                input, times, h0, c0, weight_ih, weight_hh, bias_ih, *gate, peephole=peephole, **common
            )
    pairs = [(r, g) for r, g in zip(results, grads, strict=False) if r is not None and r.requires_grad]
    wanted = [
        tensor if needed else None
        for tensor, needed in zip(ctx.saved_tensors[:12], ctx.needs_input_grad[2:], strict=True)
    ]
    inputs = [tensor for tensor in wanted if tensor is not None]
    found = iter(
        torch.autograd.grad(
            [r for r, _ in pairs], inputs, [g for _, g in pairs], create_graph=True, materialize_grads=True
        )
    )
    return [None if tensor is None else next(found) for tensor in wanted]


def _register_fakes() -> None:
    @torch.library.register_fake("phased_lstm::schedule")  # type: ignore[untyped-decorator]
    def _schedule(
        times: Tensor,
        residue: Tensor | None,
        period: Tensor,
        shift: Tensor,
        ratio_on: Tensor,
        all_open: bool,
        single: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, steps = times.shape
        events = rows * steps * len(period) if all_open else torch.library.get_ctx().new_dynamic_size()
        return (
            times.new_empty((rows, steps + 1), dtype=torch.int64),
            times.new_empty((events,), dtype=torch.int32),
            times.new_empty((events,), dtype=torch.float32 if single else torch.float64),
        )

    @torch.library.register_fake("phased_lstm::layer_forward")  # type: ignore[untyped-decorator]
    def _layer_forward(
        input: Tensor, lengths: Any, offsets: Tensor, units: Tensor, phases: Tensor, h0: Tensor, c0: Tensor | None,
        *args: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        return_sequence, keep_tape = args[-2:]
        batch, steps, _ = input.shape
        hidden = h0.shape[1]
        columns = units.shape[0] * (batch if offsets.shape[0] == 1 else 1)
        return (
            input.new_empty((batch if return_sequence else 0, steps, hidden)),
            input.new_empty((batch, hidden)),
            input.new_empty((0 if c0 is None else batch, hidden)),
            input.new_empty((columns if keep_tape else 0, 5 if c0 is None else 6)),
        )

    @torch.library.register_fake("phased_lstm::layer_backward")  # type: ignore[untyped-decorator]
    def _layer_backward(
        input: Tensor, lengths: Any, offsets: Tensor, units: Tensor, phases: Tensor, weight_ih: Tensor,
        weight_hh: Tensor, bias_ih: Any, bias_hh: Any, peephole: Tensor | None, ratio_on: Tensor, leak: float,
        oscillation: int, reverse: bool, h_n: Tensor, tape: Tensor, grad_output: Any, grad_h_n: Tensor,
        grad_c_n: Tensor | None, period: Tensor, shift: Tensor, times: Tensor, need_times: bool,
        need_input: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        batch, steps, _ = input.shape
        rows, hidden = weight_hh.shape
        return (
            input.new_empty((batch if need_input else 0, *input.shape[1:])),
            input.new_empty((batch, hidden)),
            input.new_empty((0 if grad_c_n is None else batch, hidden)),
            torch.empty_like(weight_ih),
            torch.empty_like(weight_hh),
            input.new_empty((rows,)),
            input.new_empty((rows if grad_c_n is None else 0,)),
            input.new_empty((0 if peephole is None else 3, hidden)),
            input.new_empty((3, hidden), dtype=torch.float64),
            input.new_empty((batch if need_times else 0, steps), dtype=torch.float64),
        )


_REASON = _load()
