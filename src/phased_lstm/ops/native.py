"""The native backend: C++ that visits open events only, forward and backward, on the CPU.

Two opaque operators do the work, whatever the length of a sequence: `layer` finds the open (step, unit) events
from the times, runs the recurrence over them and keeps what the way back needs; `layer_backward` walks the events
backwards, undoing each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .._checks import OSCILLATIONS, Oscillation
from .._parametrisation import CONSTANTS, gate_values
from . import reference
from ._native_shapes import register_shapes

_ISAS = ("baseline", "avx2", "avx512")
# As the operators have it, in csrc/weights.h.
_MOST_FEATURES = 1 << 26


def _load() -> str:
    """Load the library; return why it cannot be used, or ""."""
    found = sorted(Path(__file__).parent.parent.glob("_native*.so"))
    if not found:
        return "it was not compiled; where a C++ compiler is, from a clone: pip install --no-build-isolation ."
    try:
        torch.ops.load_library(str(found[0]))
        # Shapes and derivatives are told to torch here, as the stable ABI asks.
        register_shapes()
        torch.library.register_autograd("phased_lstm::layer", _backward, setup_context=_setup_context)
        torch.ops.phased_lstm.instruction_set()
    except (OSError, RuntimeError) as error:
        return f"{found[0].name} does not load: {error}"
    return ""


def missing() -> str:
    """Why the backend cannot be used on this machine, or ""."""
    return _REASON


def instruction_set() -> str:
    """The instruction set in use, baseline, avx2 or avx512. Doubles take avx2's kernels where floats take avx512's."""
    return _ISAS[torch.ops.phased_lstm.instruction_set()]


def refuses(input: Tensor, leak: float) -> str:
    """Why a call cannot be served, or ""."""
    if input.device.type != "cpu":
        return f"the input is on {input.device}, it serves the CPU"
    if input.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return f"the input is {input.dtype}, it computes in float32 and float64"
    if too_wide(input):
        return f"a step has {input.shape[-1]} features, it takes fewer than {_MOST_FEATURES} in a batch"
    if torch._C._are_functorch_transforms_active():
        return "it has no rules for torch.func transforms"
    if forward_ad._current_level >= 0:
        return "it has no forward-mode derivatives"
    return ""


def too_wide(input: Tensor) -> bool:
    """Whether (N, L, H_in) has more features than the kernels can count places of."""
    return input.shape[-1] >= _MOST_FEATURES and input.shape[0] > 1


def keeps_values(parameter: Tensor) -> bool:
    """Whether values made of such a parameter may be kept: it is an ordinary tensor, and nothing watches the call."""
    return (
        not _REASON
        and type(parameter) is nn.Parameter
        and parameter.is_cpu
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def gate_unchanged(kept: Tensor, kept_origin: int, sources: tuple[Tensor, ...]) -> bool:
    """Whether a gate's six parameters (H,) are bit for bit the first rows of `kept` (8, H), and its origin is too."""
    return bool(_gate_unchanged(kept, kept_origin, *sources))


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
    return _layer(
        input, times, lengths, h0, c0, weight_ih, weight_hh, bias, None, peephole, period, shift, ratio_on,
        leak, oscillation, reverse, return_sequence,
    )  # fmt: skip


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
    output, h_n, _ = _layer(
        input, times, lengths, h0, None, weight_ih, weight_hh, bias_ih, bias_hh, None, period, shift, ratio_on,
        leak, oscillation, reverse, return_sequence,
    )  # fmt: skip
    return output, h_n


def step(
    input: Tensor,
    time: float,
    states: tuple[Tensor, ...],
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any,
    bias_hh: Any,
    peephole: Tensor | None,
    period: Tensor,
    shift: Tensor,
    ratio_on: Tensor,
    oscillation: Oscillation,
) -> tuple[Tensor, ...]:
    """One step at one time without autograd: input (N, H_in) or (H_in,), states (N, H) or (H,), gate in float64.

    Raises:
        RuntimeError: a shape, dtype, device or time that the operator does not take.
    """
    h, c = states if len(states) == 2 else (states[0], None)
    new_h, new_c = _step(
        input, time, h, c, weight_ih, weight_hh, bias_ih, bias_hh, peephole, period, shift, ratio_on,
        OSCILLATIONS.index(oscillation),
    )  # fmt: skip
    return (new_h,) if c is None else (new_h, new_c)


def layer_of_parameters(
    input: Tensor,
    times: Tensor,
    states: tuple[Tensor | None, ...],
    weights: tuple[Tensor | None, ...],
    peepholes: tuple[Tensor, ...],
    raw: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    raw_gate: Tensor,
    *,
    leak: float,
    oscillation: Oscillation,
    lengths: Tensor | None,
    reverse: bool,
    return_sequence: bool,
    layered: bool,
) -> tuple[Tensor | None, ...]:
    """One layer and direction, with a single node of autograd from a module's own parameters to its results.

    Args:
        input, times, leak, oscillation, lengths, reverse, return_sequence: as `phased_lstm`; float32 or float64.
        states: h0 and, of an LSTM, c0; None is zeros.
        weights: weight_ih, weight_hh, bias_ih, bias_hh; biases may be None.
        peepholes: three of (H,), or none.
        raw: (H,) raw_period, raw_shift, raw_ratio_on of the gate.
        values: constants, each (H,): what `gate_values` makes of the gate's parameters, in float64.
        raw_gate: a constant (8, H): those parameters as they are now, raw and initial, and `growth_of` and `odds_of`.
        layered: whether h_n and c_n are to be (1, N, H). To make them so afterwards would be nodes of autograd.

    Returns:
        output or None, h_n and, of an LSTM, c_n.

    Raises:
        RuntimeError: what the operator does not take, and weights of the other cell, which it would.
    """
    h0, c0 = states if len(states) == 2 else (states[0], None)
    _check_cell(weights[1], 4 if len(states) == 2 else 3)
    sources = (h0, c0, *weights, *raw, *peepholes)
    options = (leak, OSCILLATIONS.index(oscillation), reverse, return_sequence)
    if torch.is_grad_enabled() and _any_requires_grad(input, times, *sources):
        # The operator takes strided tensors as well, but would copy them once more on the way back.
        output, h_n, c_n = _LayerOfParameters.apply(
            (values, raw_gate, lengths, options, layered), input.contiguous(), times.contiguous(), *sources
        )
    else:
        peephole = torch.stack(peepholes) if peepholes else None
        output, h_n, c_n, *_ = _without_autograd(
            input, times, lengths, h0, c0, *weights, peephole, *values, *options, False, layered
        )
    if not return_sequence:
        output = None
    return (output, h_n) if len(states) == 1 else (output, h_n, c_n)


def _check_cell(weight_hh: Any, gates: int) -> None:
    rows, units = weight_hh.shape[0], weight_hh.shape[-1]
    if rows != gates * units:
        raise RuntimeError(f"weight_hh: size {rows} in dimension 0, expected {gates * units}")


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _layer(
    input: Tensor,
    times: Tensor,
    lengths: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    peephole: Tensor | None,
    period: Tensor,
    shift: Tensor,
    ratio_on: Tensor,
    leak: float,
    oscillation: Oscillation,
    reverse: bool,
    return_sequence: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Both cells: a GRU is the call without c0."""
    tensors = (
        input, times, lengths, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, peephole,
        period.double(), shift.double(), ratio_on.double(),
    )  # fmt: skip
    keep = torch.is_grad_enabled() and _any_requires_grad(*tensors)
    call = _layer_operator if torch.compiler.is_compiling() else _Layer.apply if keep else _without_autograd
    output, h_n, c_n, *_ = call(
        *(None if tensor is None else tensor.contiguous() for tensor in tensors),
        leak, OSCILLATIONS.index(oscillation), reverse, return_sequence, keep, False,
    )  # fmt: skip
    return output if return_sequence else None, h_n, c_n


def _layer_operator(*operands: Any) -> Any:
    return torch.ops.phased_lstm.layer.default(*operands)


def _without_autograd(*operands: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return _layer_alone(*operands)


class _Layer(torch.autograd.Function):
    """The operator with its derivative, without the tenth of a millisecond that torch.library's own wrapper takes."""

    @staticmethod
    def forward(*operands: Any) -> Any:
        return _without_autograd(*operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _backward(ctx, *grads)


class _LayerOfParameters(torch.autograd.Function):
    """The layer, and the gate's values before it, as one node.

    Its tensors are input, times, h0, c0, the four weights, the three raw parameters of the gate and, if there are any,
    the three peepholes.
    """

    @staticmethod
    def forward(ctx: Any, constants: tuple[Any, ...], *tensors: Any) -> Any:
        values, raw_gate, lengths, options, layered = constants
        input, times, *others = tensors[:_RAW]
        peephole = torch.stack(tensors[_PEEPHOLES:]) if len(tensors) > _PEEPHOLES else None
        output, h_n, c_n, *tape = _without_autograd(
            input, times, lengths, *others, peephole, *values, *options, True, layered
        )
        ctx.constants = values, raw_gate, peephole, options
        ctx.set_materialize_grads(False)
        # A copy: like those of torch.nn.LSTM, final states may be changed in place.
        ctx.save_for_backward(*tensors, lengths, h_n.clone(), *tape)
        return output if options[-1] else None, h_n, c_n if _is_lstm(others[3]) else None

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        values, raw_gate, peephole, options = ctx.constants
        saved = ctx.saved_tensors
        tensors, (lengths, *taped) = saved[:-_TAPED], saved[-_TAPED:]
        needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            make = partial(_made_of_parameters, lengths, raw_gate[3:6])
            return (None, *_reference_gradients(tensors, needs, make, options, grads))
        input, times, _, _, *weights = tensors[:_RAW]
        (
            in_input, in_times, in_h0, in_c0, in_weight_ih, in_weight_hh, in_bias_ih, in_bias_hh, in_peephole, *in_raw
        ) = _gradients(
            (input, times, lengths, *weights, peephole, *values), taped, needs[:2], options, grads, raw_gate
        )  # fmt: skip
        found = (
            in_input, in_times, in_h0, in_c0, in_weight_ih, in_weight_hh, in_bias_ih, in_bias_hh, *in_raw,
            *(() if peephole is None else in_peephole.unbind()),
        )  # fmt: skip
        return (None, *[gradient if need else None for gradient, need in zip(found, needs, strict=True)])


# Where the raw parameters and the peepholes are among the tensors of `_LayerOfParameters`.
_RAW = 8
_PEEPHOLES = 11
# What it saves behind them: lengths, h_n, tape, offsets, units, phases.
_TAPED = 6


def _made_of_parameters(lengths: Tensor | None, initial: Tensor, *tensors: Any) -> tuple[Any, ...]:
    """The operator's operands, of the tensors of `_LayerOfParameters`, which carry gradients."""
    input, times, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh = tensors[:_RAW]
    raw, peepholes = tensors[_RAW:_PEEPHOLES], tensors[_PEEPHOLES:]
    if _is_lstm(weight_hh) and bias_ih is not None:
        bias_ih, bias_hh = bias_ih + bias_hh, None
    peephole = torch.stack(peepholes) if peepholes else None
    gate = (value.double() for value in gate_values(*raw, *initial))
    return (input, times, lengths, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, peephole, *gate)


def _is_lstm(weight_hh: Tensor) -> bool:
    """Whether recurrent weights are an LSTM's, (4 * H, H), or a GRU's."""
    rows, units = weight_hh.shape
    return rows == 4 * units


# Tensors among the arguments of the operator.
_TENSORS = 13


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, h_n, _, tape, offsets, units, phases = output
    ctx.options = inputs[_TENSORS:-2]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(tape, offsets, units, phases)
    # A copy: like those of torch.nn.LSTM, final states may be changed in place.
    ctx.save_for_backward(*inputs[:_TENSORS], h_n.detach().clone(), tape, offsets, units, phases)


def _backward(
    ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    operands, taped = saved[:_TENSORS], saved[_TENSORS:]
    grads = (grad_output, grad_h_n, grad_c_n)
    needs = ctx.needs_input_grad
    none = (None,) * (len(ctx.options) + 2)
    if torch.is_grad_enabled():
        return (*_reference_gradients(operands, needs, _as_they_are, ctx.options, grads), *none)
    input, times, lengths, _, _, *weights = operands
    operands = (input, times, lengths, *weights)
    in_input, in_times, *others = _gradients(operands, taped, needs[:2], ctx.options, grads, None)
    found = (in_input, in_times, None, *others)
    return (*(gradient if need else None for gradient, need in zip(found, needs, strict=False)), *none)


def _as_they_are(*operands: Any) -> tuple[Any, ...]:
    return operands


def _gradients(
    operands: tuple[Any, ...],
    taped: tuple[Any, ...],
    needs: tuple[bool, ...],
    options: tuple[Any, ...],
    grads: tuple[Tensor | None, ...],
    raw_gate: Tensor | None,
) -> tuple[Any, ...]:
    """Gradients in the input, times, h0, c0, weights and peephole, and three in the gate's values or raw parameters.

    Args:
        operands: the operator's tensors but for the states.
        taped: h_n and what the operator kept.
        needs: whether those in the input and in the times are wanted.
        options: leak, oscillation, reverse, return_sequence.
        grads: in the output, h_n and c_n.
        raw_gate: as `layer_of_parameters`, for gradients in the raw parameters.
    """
    times = operands[1]
    lstm = _is_lstm(operands[4])
    *settings, return_sequence = options
    need_input, need_times = needs
    in_output, in_h_n, in_c_n = grads
    in_input, in_h0, in_c0, in_weight_ih, in_weight_hh, in_bias_ih, in_bias_hh, in_peephole, *in_gate, in_times = (
        _layer_backward(
            *operands, *settings, *taped, in_output if return_sequence else None, in_h_n,
            in_c_n if lstm else None, need_times, need_input, raw_gate, CONSTANTS,
        )
    )  # fmt: skip
    if lstm:
        # Its biases are added up, so that the gradient of one is that of the other.
        in_bias_hh = in_bias_ih
    if need_times:
        in_times = (in_times if times.dim() == 2 else in_times.sum(0)).to(times.dtype)
    return (
        in_input, in_times, in_h0, in_c0, in_weight_ih, in_weight_hh, in_bias_ih, in_bias_hh, in_peephole, *in_gate
    )  # fmt: skip


def _reference_gradients(
    sources: tuple[Any, ...],
    needs: tuple[bool, ...],
    make: Callable[..., tuple[Any, ...]],
    options: tuple[Any, ...],
    grads: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """Gradients in `sources`, of which `make` makes the operator's operands; they can be differentiated again."""
    leak, oscillation, reverse, return_sequence = options
    results: tuple[Tensor | None, ...]
    with torch.enable_grad():
        # One source may be another, or made of another, say a state that the same weights led to. Of views of them none
        # is, so that each gets what is due to it alone.
        sources = tuple(
            tensor.view_as(tensor) if need else tensor for tensor, need in zip(sources, needs, strict=False)
        )
        input, times, lengths, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, peephole, *gate = make(*sources)
        lstm = _is_lstm(weight_hh)
        blank = input.new_zeros(input.shape[0], weight_hh.shape[1])
        h0, c0 = blank if h0 is None else h0, blank if c0 is None and lstm else c0
        common = {
            "leak": leak, "oscillation": OSCILLATIONS[oscillation], "lengths": lengths, "reverse": reverse,
            "return_sequence": return_sequence,
        }  # fmt: skip
        if not lstm:
            results = reference.phased_gru(input, times, h0, weight_ih, weight_hh, bias_ih, bias_hh, *gate, **common)
        else:
            results = reference.phased_lstm(
                input, times, h0, c0, weight_ih, weight_hh, bias_ih, *gate, peephole=peephole, **common
            )
    # Final states of the operator may be (1, N, H).
    pairs = [(r, g.reshape(r.shape)) for r, g in zip(results, grads, strict=False) if r is not None and g is not None]
    wanted = [tensor if need else None for tensor, need in zip(sources, needs, strict=False)]
    inputs = [tensor for tensor in wanted if tensor is not None]
    found = iter(
        torch.autograd.grad(
            [r for r, _ in pairs], inputs, [g for _, g in pairs], create_graph=True, materialize_grads=True
        )
    )
    return [None if tensor is None else next(found) for tensor in wanted]


_REASON = _load()
if not _REASON:
    # To find an operator by its names takes as long as some operators do.
    _step = torch.ops.phased_lstm.step.default
    _gate_unchanged = torch.ops.phased_lstm.gate_unchanged.default
    _layer_alone = torch.ops.phased_lstm.layer.default
    _layer_backward = torch.ops.phased_lstm.layer_backward.default
