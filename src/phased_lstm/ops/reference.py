"""The definition of the recurrences, in plain torch operations.

Every faster backend is tested against this file. It runs wherever torch does and supports whatever
autograd does: double backward, forward mode, vmap, export. It computes every unit at every step, so
it saves no time when units are closed.

Shapes: N sequences, L steps, H_in features, H units. The gate's openness k depends on the times
alone and is computed for all steps at once. Matrix products are done step by step on operands of
the same shape and layout whatever L is: their rounding depends on both, and a sequence must give
the same bits in one call as in several.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from .._checks import Oscillation
from ..gate import phase, time_gate

State = tuple[Tensor, ...]


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
    """One layer and direction of Phased LSTM; arguments as `phased_lstm.functional.phased_lstm`.

    The output gate's peephole and tanh read the candidate c~, as in the authors' erratum to
    equation 4 of the paper.
    """
    hidden = h0.shape[-1]
    weight = torch.cat([weight_ih, weight_hh], dim=-1)

    def candidate(x: Tensor, state: State) -> State:
        h, c = state
        pre = linear(torch.cat([x, h], dim=-1), weight, bias)
        if peephole is None:
            gates = torch.sigmoid(pre[..., : 2 * hidden])
            i, f = gates[..., :hidden], gates[..., hidden:]
            o_pre = pre[..., 3 * hidden :]
        else:
            i = torch.sigmoid(pre[..., :hidden] + peephole[0] * c)
            f = torch.sigmoid(pre[..., hidden : 2 * hidden] + peephole[1] * c)
            o_pre = pre[..., 3 * hidden :]
        c_new = f * c + i * torch.tanh(pre[..., 2 * hidden : 3 * hidden])
        if peephole is not None:
            o_pre = o_pre + peephole[2] * c_new
        return torch.sigmoid(o_pre) * torch.tanh(c_new), c_new

    k = _openness(times, period, shift, ratio_on, leak, oscillation, lengths, input)
    output, (h, c) = _run(candidate, _without_padding(input, lengths), k, (h0, c0), reverse, return_sequence)
    return _mask_output(output, lengths), h, c


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
    """One layer and direction of Phased GRU; arguments as `phased_lstm.functional.phased_gru`."""
    hidden = h0.shape[-1]

    def candidate(x: Tensor, state: State) -> State:
        (h,) = state
        projected = linear(x.clone(memory_format=torch.contiguous_format), weight_ih, bias_ih)
        recurrent = linear(h, weight_hh, bias_hh)
        gates = torch.sigmoid(projected[..., : 2 * hidden] + recurrent[..., : 2 * hidden])
        r, z = gates[..., :hidden], gates[..., hidden:]
        n = torch.tanh(projected[..., 2 * hidden :] + r * recurrent[..., 2 * hidden :])
        return (torch.lerp(n, h, z),)

    k = _openness(times, period, shift, ratio_on, leak, oscillation, lengths, input)
    # A state handed over as a slice of a larger one may be aligned in another way.
    first = h0.clone(memory_format=torch.contiguous_format)
    output, (h,) = _run(candidate, _without_padding(input, lengths), k, (first,), reverse, return_sequence)
    return _mask_output(output, lengths), h


def _run(
    candidate: Callable[[Tensor, State], State],
    input: Tensor,
    openness: Tensor,
    state: State,
    reverse: bool,
    return_sequence: bool,
) -> tuple[Tensor | None, State]:
    """Apply state = k * candidate + (1 - k) * state over the steps.

    Args:
        candidate: maps (input of a step, state) to the ungated new state, h first.
        input: (N, L, H_in).
        openness: (L, H) or (N, L, H) k.

    Returns:
        The (N, L, H) sequence of h, or None, and the final state.
    """
    steps = list(zip(input.unbind(1), openness.unbind(-2), strict=True))
    hidden_states = []
    for x, k in reversed(steps) if reverse else steps:
        # lerp leaves the state bitwise as it was where k is 0, and gives the candidate where k is 1.
        state = tuple(torch.lerp(old, new, k) for old, new in zip(state, candidate(x, state), strict=True))
        if return_sequence:
            hidden_states.append(state[0])
    if not return_sequence:
        return None, state
    if not hidden_states:
        return state[0].unsqueeze(1)[:, :0], state
    return torch.stack(hidden_states[::-1] if reverse else hidden_states, dim=1), state


def _openness(
    times: Tensor,
    period: Tensor,
    shift: Tensor,
    ratio_on: Tensor,
    leak: float,
    oscillation: Oscillation,
    lengths: Tensor | None,
    input: Tensor,
) -> Tensor:
    phi = phase(times, period, shift)
    k = time_gate(phi, ratio_on.to(phi.dtype), leak=leak, oscillation=oscillation).to(input.dtype)
    if lengths is not None:
        k = torch.where(_valid(input, lengths).unsqueeze(-1), k, torch.zeros_like(k))
    return k


def _valid(input: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(input.shape[1], device=input.device) < lengths.unsqueeze(1)


def _without_padding(input: Tensor, lengths: Tensor | None) -> Tensor:
    # A closed gate does not keep out a NaN (0 * NaN is NaN), and padding may hold anything.
    if lengths is None:
        return input
    return torch.where(_valid(input, lengths).unsqueeze(-1), input, torch.zeros_like(input))


def _mask_output(output: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    return output if output is None or lengths is None else _without_padding(output, lengths)
