"""A slow, independent reading of the Phased LSTM equations: loops over sequences, steps and units.

Written from the paper and its erratum, without anything of the library. Arguments carry the names of
`phased_lstm.functional`, so that one dictionary of operands serves both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

State = tuple[Tensor, ...]


def openness(
    time: Tensor, period: Tensor, shift: Tensor, ratio_on: Tensor, leak: float = 0.0, oscillation: str = "triangle"
) -> Tensor:
    """k of one unit at one time; all arguments are scalar tensors."""
    elapsed = (time.double() - shift) / period
    phi = elapsed - math.floor(elapsed.item())
    if phi.item() >= ratio_on.item():
        return leak * phi
    if oscillation == "square":
        return torch.ones_like(phi)
    if oscillation == "cosine":
        return (1 - torch.cos(2 * math.pi * phi / ratio_on)) / 2
    if phi.item() < ratio_on.item() / 2:
        return 2 * phi / ratio_on
    return 2 - 2 * phi / ratio_on


def lstm_step(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor | None, peephole: Tensor | None
) -> State:
    """(h~, c~) of all units, one by one; the output gate reads c~."""
    size = len(h)
    new_h, new_c = [], []
    for unit in range(size):
        rows = [unit + gate * size for gate in range(4)]
        pre_i, pre_f, pre_g, pre_o = (
            weight_ih[row] @ x + weight_hh[row] @ h + (0.0 if bias is None else bias[row]) for row in rows
        )
        if peephole is not None:
            pre_i = pre_i + peephole[0, unit] * c[unit]
            pre_f = pre_f + peephole[1, unit] * c[unit]
        cell = torch.sigmoid(pre_f) * c[unit] + torch.sigmoid(pre_i) * torch.tanh(pre_g)
        if peephole is not None:
            pre_o = pre_o + peephole[2, unit] * cell
        new_h.append(torch.sigmoid(pre_o) * torch.tanh(cell))
        new_c.append(cell)
    return torch.stack(new_h), torch.stack(new_c)


def gru_step(
    x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> State:
    """(h~,) of all units, one by one; the reset gate scales the recurrent bias too."""
    size = len(h)
    new_h = []
    for unit in range(size):
        rows = [unit + gate * size for gate in range(3)]
        from_x = [weight_ih[row] @ x + (0.0 if bias_ih is None else bias_ih[row]) for row in rows]
        from_h = [weight_hh[row] @ h + (0.0 if bias_hh is None else bias_hh[row]) for row in rows]
        reset = torch.sigmoid(from_x[0] + from_h[0])
        update = torch.sigmoid(from_x[1] + from_h[1])
        new = torch.tanh(from_x[2] + reset * from_h[2])
        new_h.append((1 - update) * new + update * h[unit])
    return (torch.stack(new_h),)


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
    **options: object,
) -> State:
    """(output, h_n, c_n)."""

    def step(x: Tensor, state: State) -> State:
        return lstm_step(x, *state, weight_ih, weight_hh, bias, peephole)

    return _run(step, input, times, (h0, c0), (period, shift, ratio_on), **options)


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
    **options: object,
) -> State:
    """(output, h_n)."""

    def step(x: Tensor, state: State) -> State:
        return gru_step(x, *state, weight_ih, weight_hh, bias_ih, bias_hh)

    return _run(step, input, times, (h0,), (period, shift, ratio_on), **options)


def _run(
    step: Callable[[Tensor, State], State],
    input: Tensor,
    times: Tensor,
    initial: State,
    gate: State,
    *,
    leak: float = 0.0,
    oscillation: str = "triangle",
    lengths: Sequence[int] | None = None,
    reverse: bool = False,
) -> State:
    outputs, finals = [], []
    for row, sequence in enumerate(input):
        stamps = times if times.dim() == 1 else times[row]
        state = tuple(start[row] for start in initial)
        valid = range(len(sequence) if lengths is None else int(lengths[row]))
        produced = [torch.zeros_like(state[0]) for _ in sequence]
        for index in reversed(valid) if reverse else valid:
            candidate = step(sequence[index], state)
            k = [openness(stamps[index], *unit, leak, oscillation) for unit in zip(*gate, strict=True)]
            state = tuple(
                torch.stack([k[j] * new[j] + (1 - k[j]) * old[j] for j in range(len(k))])
                for new, old in zip(candidate, state, strict=True)
            )
            produced[index] = state[0]
        outputs.append(torch.stack(produced))
        finals.append(state)
    return torch.stack(outputs), *(torch.stack(state) for state in zip(*finals, strict=True))


def unit_gradient(
    x: float, h: float, c: float, w: Sequence[float], u: Sequence[float], k: float, slope: float
) -> dict[str, float]:
    """Derivatives of h_new + c_new of one LSTM unit without biases, derived by hand.

    Args:
        x: the input, a single feature.
        h: hidden state before the step.
        c: cell state before the step.
        w: input weights of i, f, g, o.
        u: recurrent weights of i, f, g, o.
        k: openness of the gate.
        slope: dk/dt.

    Returns:
        The derivative in x, h, c and the time t.
    """

    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    pre = [w[gate] * x + u[gate] * h for gate in range(4)]
    i, f, o = sigmoid(pre[0]), sigmoid(pre[1]), sigmoid(pre[3])
    g = math.tanh(pre[2])
    cell = f * c + i * g
    squashed = math.tanh(cell)
    into_cell = k + k * o * (1 - squashed**2)
    into_pre = (
        into_cell * g * i * (1 - i),
        into_cell * c * f * (1 - f),
        into_cell * i * (1 - g**2),
        k * squashed * o * (1 - o),
    )
    return {
        "x": sum(d * weight for d, weight in zip(into_pre, w, strict=True)),
        "h": sum(d * weight for d, weight in zip(into_pre, u, strict=True)) + (1 - k),
        "c": into_cell * f + (1 - k),
        "t": slope * ((cell - c) + (o * squashed - h)),
    }
