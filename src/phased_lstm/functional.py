"""Functional forms of one layer and direction: validation, precision rules, choice of backend.

Precision. The recurrence runs in the input's dtype, and in float32 when that is float16 or
bfloat16: operands keep their 16-bit values, products and state are float32, and the results are
rounded to the input's dtype at the end. Under autocast, input and weights are first rounded to
autocast's dtype, and results stay float32. Times, periods, shifts and ratios are never narrowed:
the phase is reduced in float64 from whatever is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from ._checks import (
    Oscillation,
    check_flag,
    check_leak_and_oscillation,
    check_lengths,
    check_time_dtype,
    check_time_values,
    require,
)
from .ops import registry

NARROW_DTYPES = (torch.float16, torch.bfloat16)


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
    peephole: Tensor | None = None,
    leak: float = 0.0,
    oscillation: Oscillation = "triangle",
    lengths: Tensor | Sequence[int] | None = None,
    reverse: bool = False,
    return_sequence: bool = True,
    backend: str = "auto",
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Phased LSTM over a batch of sequences: one layer, one direction.

    With an ordinary LSTM step (h~, c~) from (h, c) and the openness k of each unit at each time:
    c <- k c~ + (1 - k) c and h <- k h~ + (1 - k) h (Neil et al., NIPS 2016, equations 2 to 10, with
    the authors' erratum: the output gate and its tanh read c~).

    Args:
        input: (N, L, H_in) floating.
        times: (L,) shared by all sequences, or (N, L); absolute time stamps in the unit of
            `period`; int32, int64, float32 or float64. Any finite values in any order.
        h0: (N, H) initial hidden state.
        c0: (N, H) initial cell state.
        weight_ih: (4H, H_in), rows in torch's gate order i, f, g, o.
        weight_hh: (4H, H), the same order.
        bias: (4H,), the sum of torch's two biases, or None.
        period: (H,) tau > 0, in time units.
        shift: (H,) s, in time units.
        ratio_on: (H,) r in (0, 1].
        peephole: (3, H) weights from the cell to the gates i, f, o, or None.
        leak: alpha in [0, 1], the slope of k over the closed phase, applied as given. Non-zero
            leak makes every unit move at every step.
        oscillation: "triangle" (the paper), "square" or "cosine".
        lengths: (N,) integer number of valid steps of each sequence, 0 allowed. Beyond it the state
            is frozen, the output zero, and what input and times hold there is ignored.
        reverse: run from the last step to the first.
        return_sequence: False gives None for the output.
        backend: "auto", or a name from `phased_lstm.backends()`.

    Returns:
        output (N, L, H) or None, h_n (N, H), c_n (N, H).

    Raises:
        TypeError: an argument that is not a tensor, or a flag of the wrong type.
        ValueError: a shape, dtype or value out of range, named with what was expected.
        RuntimeError: tensors on different devices.
        ImportError: the named backend is missing on this machine.
    """
    hidden = _check_layer(
        4, input, {"h0": h0, "c0": c0}, weight_ih, weight_hh, {"bias": bias}, (period, shift, ratio_on)
    )
    if peephole is not None:
        _check_tensor("peephole", peephole, (3, hidden), input)
    leak, reverse, return_sequence = _check_options(leak, oscillation, reverse, return_sequence)
    times, lengths = check_sequence(input, times, lengths)
    return apply_lstm(
        input, times, h0, c0, weight_ih, weight_hh, bias, period, shift, ratio_on,
        peephole=peephole, leak=leak, oscillation=oscillation, lengths=lengths,
        reverse=reverse, return_sequence=return_sequence, backend=backend,
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
    leak: float = 0.0,
    oscillation: Oscillation = "triangle",
    lengths: Tensor | Sequence[int] | None = None,
    reverse: bool = False,
    return_sequence: bool = True,
    backend: str = "auto",
) -> tuple[Tensor | None, Tensor]:
    """Phased GRU over a batch of sequences: one layer, one direction.

    With torch.nn.GRU's step h~ from h and the openness k: h <- k h~ + (1 - k) h.

    Args:
        input: (N, L, H_in) floating.
        times: (L,) shared by all sequences, or (N, L); as in `phased_lstm`.
        h0: (N, H) initial hidden state.
        weight_ih: (3H, H_in), rows in torch's gate order r, z, n.
        weight_hh: (3H, H), the same order.
        bias_ih: (3H,) or None. The two biases stay apart: the reset gate scales `bias_hh`'s share of n.
        bias_hh: (3H,) or None.
        period: (H,) tau > 0, in time units.
        shift: (H,) s, in time units.
        ratio_on: (H,) r in (0, 1].
        leak: as in `phased_lstm`.
        oscillation: as in `phased_lstm`.
        lengths: as in `phased_lstm`.
        reverse: as in `phased_lstm`.
        return_sequence: as in `phased_lstm`.
        backend: as in `phased_lstm`.

    Returns:
        output (N, L, H) or None, h_n (N, H).

    Raises:
        TypeError, ValueError, RuntimeError, ImportError: as in `phased_lstm`.
    """
    _check_layer(
        3, input, {"h0": h0}, weight_ih, weight_hh, {"bias_ih": bias_ih, "bias_hh": bias_hh},
        (period, shift, ratio_on),
    )  # fmt: skip
    leak, reverse, return_sequence = _check_options(leak, oscillation, reverse, return_sequence)
    times, lengths = check_sequence(input, times, lengths)
    return apply_gru(
        input, times, h0, weight_ih, weight_hh, bias_ih, bias_hh, period, shift, ratio_on,
        leak=leak, oscillation=oscillation, lengths=lengths,
        reverse=reverse, return_sequence=return_sequence, backend=backend,
    )  # fmt: skip


def apply_lstm(
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
    backend: str,
    **options: Any,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """`phased_lstm` for arguments that are known to be valid."""
    kernel = registry.select(backend, input, options["leak"]).lstm
    precision = _Precision.of(input)
    operand, state = precision.operand, precision.state
    with precision.context():
        output, h_n, c_n = kernel(
            operand(input), times, state(h0), state(c0), operand(weight_ih), operand(weight_hh),
            operand(bias), period, shift, ratio_on, peephole=operand(peephole), **options,
        )  # fmt: skip
    return precision.result(output), precision.result(h_n), precision.result(c_n)


def apply_gru(
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
    backend: str,
    **options: Any,
) -> tuple[Tensor | None, Tensor]:
    """`phased_gru` for arguments that are known to be valid."""
    kernel = registry.select(backend, input, options["leak"]).gru
    precision = _Precision.of(input)
    operand = precision.operand
    with precision.context():
        output, h_n = kernel(
            operand(input), times, precision.state(h0), operand(weight_ih), operand(weight_hh),
            operand(bias_ih), operand(bias_hh), period, shift, ratio_on, **options,
        )  # fmt: skip
    return precision.result(output), precision.result(h_n)


class _Precision(NamedTuple):
    """The dtypes of a call: what operands are rounded to, what is computed in, what comes out."""

    device_type: str
    rounded: torch.dtype | None
    compute: torch.dtype
    results: torch.dtype

    @staticmethod
    def of(input: Tensor) -> _Precision:
        kind = input.device.type
        compute = torch.float32 if input.dtype in NARROW_DTYPES else input.dtype
        if autocasting(input) and compute == torch.float32:
            return _Precision(kind, torch.get_autocast_dtype(kind), compute, compute)
        return _Precision(kind, None, compute, input.dtype)

    def context(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.rounded is None else torch.autocast(self.device_type, enabled=False)

    @overload
    def operand(self, tensor: Tensor) -> Tensor: ...
    @overload
    def operand(self, tensor: Tensor | None) -> Tensor | None: ...
    def operand(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return (tensor if self.rounded is None else tensor.to(self.rounded)).to(self.compute)

    def state(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.compute)

    @overload
    def result(self, tensor: Tensor) -> Tensor: ...
    @overload
    def result(self, tensor: Tensor | None) -> Tensor | None: ...
    def result(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(self.results)


def autocasting(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    kind = tensor.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def check_sequence(
    input: Tensor, times: Tensor, lengths: Tensor | Sequence[int] | None, *, finite: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Validate times and lengths against a batch of sequences.

    Args:
        input: (N, L, ...) the batch.
        times: (L,) or (N, L).
        lengths: (N,) or None.
        finite: False if the caller sees to it that floating times are finite.

    Returns:
        The times, with 0 where a row of (N, L) is padding, and lengths as an int64 tensor or None.

    Raises:
        TypeError, ValueError, RuntimeError: see `phased_lstm`.
    """
    batch, steps = input.shape[:2]
    times = check_time_dtype(times)
    _check_device("times", times, input)
    # Rank first: comparing (N, L) with (L,) would make N != L a condition of a traced program.
    if times.shape != ((steps,) if times.dim() == 1 else (batch, steps)):
        raise ValueError(
            f"times should be of shape ({steps},), shared by all sequences, or ({batch}, {steps}), one row "
            f"for each, to go with {batch} sequences of {steps} steps; got {tuple(times.shape)}"
        )
    checked_lengths = None if lengths is None else check_lengths(lengths, batch, steps, input.device)
    if checked_lengths is not None and times.dim() == 2:
        valid = torch.arange(steps, device=input.device) < checked_lengths.unsqueeze(1)
        times = torch.where(valid, times, torch.zeros_like(times))
    if finite or not times.is_floating_point():
        check_time_values(times)
    return times, checked_lengths


def _check_layer(
    gates: int,
    input: Tensor,
    states: dict[str, Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    biases: dict[str, Tensor | None],
    gate: tuple[Tensor, Tensor, Tensor],
) -> int:
    """Validate everything but the sequence; return the number of units."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input should be a tensor, got: {type(input).__name__}")
    if input.dim() != 3:
        raise ValueError(f"input should be of shape (N, L, H_in), got {tuple(input.shape)}")
    if not input.is_floating_point():
        raise ValueError(f"input should be of a floating dtype, got {input.dtype}; convert with input.float()")
    batch, _, features = input.shape
    for name, state in states.items():
        if not isinstance(state, Tensor) or state.dim() != 2:
            got = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise ValueError(f"{name} should be a tensor of shape (N, H), got {got}")
    hidden = states["h0"].shape[1]
    for name, state in states.items():
        _check_tensor(name, state, (batch, hidden), input)
    _check_tensor("weight_ih", weight_ih, (gates * hidden, features), input)
    _check_tensor("weight_hh", weight_hh, (gates * hidden, hidden), input)
    for name, bias in biases.items():
        if bias is not None:
            _check_tensor(name, bias, (gates * hidden,), input)
    period, shift, ratio_on = gate
    for name, values in (("period", period), ("shift", shift), ("ratio_on", ratio_on)):
        _check_tensor(name, values, (hidden,), None)
        _check_device(name, values, input)
        if not values.is_floating_point():
            raise ValueError(f"{name} should be of a floating dtype, got {values.dtype}")
    require(((period > 0) & torch.isfinite(period)).all(), "period should be positive and finite", period)
    require(torch.isfinite(shift).all(), "shift should be finite", shift)
    require(((ratio_on > 0) & (ratio_on <= 1)).all(), "ratio_on should be in (0, 1]", ratio_on)
    return hidden


def _check_tensor(name: str, tensor: object, shape: tuple[int, ...], like: Tensor | None) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} should be a tensor, got: {type(tensor).__name__}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} should be of shape {shape}, got {tuple(tensor.shape)}")
    if like is None:
        return
    _check_device(name, tensor, like)
    if tensor.dtype != like.dtype and not autocasting(like):
        raise ValueError(f"{name} should be {like.dtype} like the input, got {tensor.dtype}")


def _check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise RuntimeError(
            f"{name} is on {tensor.device} but the input is on {like.device}; move it with .to({str(like.device)!r})"
        )


def _check_options(leak: float, oscillation: str, reverse: object, return_sequence: object) -> tuple[float, bool, bool]:
    leak = check_leak_and_oscillation(leak, oscillation)
    return leak, check_flag("reverse", reverse), check_flag("return_sequence", return_sequence)
