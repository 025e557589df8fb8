"""The definition of the recurrences, in plain torch operations.

Every faster backend is tested against this file. It runs wherever torch does and supports whatever
autograd does: double backward, forward mode, vmap, export. It computes every unit at every step, so
it saves no time when units are closed.

Shapes: N sequences, L steps, H_in features, H units. The gate's openness k depends on the times
alone and is computed for all steps at once. Matrix products are done step by step on operands of
the same shape and layout whatever L is: their rounding depends on both, and a sequence must give
the same bits in one call as in several.

What comes in at a step changes only units that are open at it (phase < ratio, or any phase with a leak),
forwards and backwards. Where all values are finite a factor k = 0 sees to that. It does not keep out a NaN
or an infinity (0 * NaN is NaN), so where there is one, closed units are left out by selection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from .._checks import Oscillation, all_finite
from ..gate import phase, time_gate

State = tuple[Tensor, ...]
# Maps (input of a step, h of all units, each unit's own state, whether it is open) to the ungated new state, h first.
Candidate = Callable[[Tensor, Tensor, State, Tensor], State]
Linear = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]


class Openness(NamedTuple):
    """k of each unit at each step, and whether it is open there; both (L, H) or (N, L, H)."""

    k: Tensor
    is_open: Tensor


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

    input = _without_padding(input, lengths)
    product, finite = _product(input, h0, c0, weight, bias, peephole)

    def candidate(x: Tensor, h: Tensor, own: State, is_open: Tensor) -> State:
        c = own[1]
        pre = product(torch.cat([x, h], dim=-1), weight, bias, is_open)
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

    openness = _openness(times, period, shift, ratio_on, leak, oscillation, lengths, input)
    output, (h, c) = _run(candidate, input, openness, (h0, c0), finite, reverse, return_sequence)
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

    input = _without_padding(input, lengths)
    product, finite = _product(input, h0, weight_ih, weight_hh, bias_ih, bias_hh)

    def candidate(x: Tensor, h: Tensor, own: State, is_open: Tensor) -> State:
        projected = product(x.clone(memory_format=torch.contiguous_format), weight_ih, bias_ih, is_open)
        recurrent = product(h, weight_hh, bias_hh, is_open)
        gates = torch.sigmoid(projected[..., : 2 * hidden] + recurrent[..., : 2 * hidden])
        r, z = gates[..., :hidden], gates[..., hidden:]
        n = torch.tanh(projected[..., 2 * hidden :] + r * recurrent[..., 2 * hidden :])
        fresh = torch.lerp(n, own[0], z)
        # The interpolation is NaN from an infinite end.
        return (fresh if finite else torch.where(torch.isinf(own[0]), n + z * (own[0] - n), fresh),)

    openness = _openness(times, period, shift, ratio_on, leak, oscillation, lengths, input)
    # A state handed over as a slice of a larger one may be aligned in another way.
    first = h0.clone(memory_format=torch.contiguous_format)
    output, (h,) = _run(candidate, input, openness, (first,), finite, reverse, return_sequence)
    return _mask_output(output, lengths), h


def _run(
    candidate: Candidate,
    input: Tensor,
    openness: Openness,
    state: State,
    finite: bool,
    reverse: bool,
    return_sequence: bool,
) -> tuple[Tensor | None, State]:
    """Apply state = k * candidate + (1 - k) * state over the steps.

    Args:
        candidate: the ungated step.
        input: (N, L, H_in).
        openness: of all steps.
        state: the initial one.
        finite: whether nothing is infinite or NaN; else units are left out where they are closed.

    Returns:
        The (N, L, H) sequence of h, or None, and the final state.
    """
    steps = list(zip(input.unbind(1), openness.k.unbind(-2), openness.is_open.unbind(-2), strict=True))
    hidden_states = []
    if not steps:
        # Whoever changes a final state in place must not change the one that was handed in.
        state = tuple(each.clone() for each in state)
    for x, k, is_open in reversed(steps) if reverse else steps:
        own = state if finite else tuple(torch.where(is_open, each, 0.0) for each in state)
        fresh = candidate(x, state[0], own, is_open)
        # lerp leaves the state bitwise as it was where k is 0, and gives the candidate where k is 1.
        if finite:
            state = tuple(torch.lerp(old, new, k) for old, new in zip(state, fresh, strict=True))
        else:
            # From an infinite state it would not even where k is 1.
            from_zero = [torch.where(torch.isfinite(old) | (k < 1), old, 0.0) for old in own]
            moved = [
                torch.where(torch.isinf(new) & (k == 1), new, torch.lerp(old, new, k))
                for old, new in zip(from_zero, fresh, strict=True)
            ]
            state = tuple(torch.where(is_open, new, old) for old, new in zip(state, moved, strict=True))
        if return_sequence:
            hidden_states.append(state[0])
    if not return_sequence:
        return None, state
    if not hidden_states:
        return state[0].unsqueeze(1)[:, :0], state
    return torch.stack(hidden_states[::-1] if reverse else hidden_states, dim=1), state


def _product(*operands: Tensor | None) -> tuple[Linear, bool]:
    """The product for these operands of a cell, and whether all of them are known to be finite."""
    finite = all_finite(*operands)
    return (_linear if finite else _linear_where_open), finite


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, is_open: Tensor) -> Tensor:
    return linear(x, weight, bias)


def _linear_where_open(x: Tensor, weight: Tensor, bias: Tensor | None, is_open: Tensor) -> Tensor:
    """x @ weight.T + bias for open units, where x (N, K) may hold what is not finite; something finite for others.

    Such an entry reaches the products of its row's open units, and with them the gradients of their weights, as it
    would in a product of that row and that unit alone. Nothing of it reaches the others.
    """
    rows = is_open.expand(*x.shape[:-1], is_open.shape[-1])
    rows = rows.repeat(*[1] * (rows.dim() - 1), weight.shape[0] // is_open.shape[-1])
    finite = torch.isfinite(x)
    usable = torch.where(finite, x, 0.0)
    # (G * H, K): whether an open unit of any row meets an entry that is not finite.
    met = rows.to(x.dtype).transpose(-1, -2) @ (~finite).to(x.dtype) > 0
    # Never chosen, and so of no value; but a gradient of 0 * NaN.
    marked = torch.where(torch.zeros_like(met), weight * torch.where(met, torch.nan, 1.0).to(weight.dtype), weight)
    products = linear(usable, marked, bias)
    spoiled = products + linear(torch.where(finite, 0.0, x), weight.detach())
    products = torch.where(rows & ~finite.all(dim=-1, keepdim=True), spoiled, products)
    return torch.where(rows, products, 0.0)


def _openness(
    times: Tensor,
    period: Tensor,
    shift: Tensor,
    ratio_on: Tensor,
    leak: float,
    oscillation: Oscillation,
    lengths: Tensor | None,
    input: Tensor,
) -> Openness:
    phi = phase(times, period, shift)
    ratio_on = ratio_on.to(phi.dtype)
    k = time_gate(phi, ratio_on, leak=leak, oscillation=oscillation).to(input.dtype)
    # Not where k = 0: at the edge where it opens a unit has a gradient.
    is_open = phi < ratio_on
    if leak != 0.0:
        # Every unit moves at every step, and what is NaN at a step is so in all derivatives of it.
        is_open, k = torch.ones_like(is_open), k + (0.0 * ratio_on).to(k.dtype)
    if lengths is not None:
        valid = _valid(input, lengths).unsqueeze(-1)
        k, is_open = torch.where(valid, k, torch.zeros_like(k)), is_open & valid
    return Openness(k, is_open)


def _valid(input: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(input.shape[1], device=input.device) < lengths.unsqueeze(1)


def _without_padding(input: Tensor, lengths: Tensor | None) -> Tensor:
    # Padding may hold anything, and would pass for an input that is not finite.
    if lengths is None:
        return input
    return torch.where(_valid(input, lengths).unsqueeze(-1), input, torch.zeros_like(input))


def _mask_output(output: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    return output if output is None or lengths is None else _without_padding(output, lengths)
