"""The phase of a time gate, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(device: torch.device) -> torch.dtype:
    """The type in which phases are reduced."""
    # Apple's GPUs have no float64; everywhere else the phase is reduced in it.
    return torch.float32 if device.type == "mps" else torch.float64


def phase(times: Tensor, period: Tensor, shift: Tensor) -> Tensor:
    """Phase of every unit at every time stamp: ((t - s) mod tau) / tau.

    The result is the float64 number nearest to the exact phase, for negative times and times far from zero
    too: it is rounded once, at the end. What is nearest to 1 is 0. Integers are used exactly, those beyond
    2**53 included. The native kernels give the same phase, bit for bit.

    Args:
        times: (...) time stamps, int32, int64, float32 or float64, in the unit of `period`.
        period: (H,) tau > 0.
        shift: (H,) s, any finite value.

    Returns:
        (..., H) float64 in [0, 1). Differentiable in `times` (if floating), `period` and `shift`.
    """
    wide = wide_dtype(times.device)
    period, shift = period.to(wide), shift.to(wide)
    coarse = times.to(wide).unsqueeze(-1)
    residue = None
    if times.dtype == torch.int64:
        # What the conversion to float64 rounded off, at most 512 and so exact itself.
        residue = (times - coarse.squeeze(-1).to(torch.int64)).to(wide).unsqueeze(-1)
    turns = (coarse - shift) / period
    # The value of one and the derivative of the other, which is finite wherever the quotient is.
    slope = (turns - turns.detach()).nan_to_num(nan=0.0)
    return _nearest_phase(coarse.detach(), residue, period.detach(), shift.detach()) + slope


def _nearest_phase(times: Tensor, residue: Tensor | None, period: Tensor, shift: Tensor) -> Tensor:
    """The phase at `times` plus `residue`, both (..., 1), rounded once: what is rounded before is carried along."""
    # Exact, as the remainder of a division always is; but torch's is 0 where the quotient would be infinite.
    near = torch.fmod(times, period * 2.0**512)
    into, after = torch.fmod(near, period), _centred(torch.fmod(shift, period), period)
    if residue is not None:
        into = _centred(into, period)
    into, low = _exact_sum(into, -after)
    if residue is not None:
        into, lower = _exact_sum(into, _centred(torch.fmod(residue, period), period))
        low = low + lower
    # From -2 to 1 whole periods, of which every one is a float64.
    into, lower = _exact_sum(into, -torch.floor(into / period) * period)
    into, low = _exact_sum(into, lower + low)
    fraction = into / period
    fraction = fraction + (_left_by(into, fraction, period) + low) / period
    fraction = torch.where(fraction < 0, fraction + 1, fraction)
    return torch.where(fraction < 1, fraction, torch.zeros_like(fraction))


def _centred(into: Tensor, period: Tensor) -> Tensor:
    """A time within a period of zero as one within half a period of it; exact."""
    return torch.where(2 * into.abs() > period, into - torch.copysign(period, into), into)


def _exact_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A rounded sum, and exactly what its rounding took off (Knuth's two-sum)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _left_by(dividend: Tensor, quotient: Tensor, divisor: Tensor) -> Tensor:
    """dividend - quotient * divisor for a rounded quotient; exact, by Dekker's product."""
    splitter = 134217729.0 if dividend.dtype == torch.float64 else 4097.0
    high, divisor_high = (x * splitter - (x * splitter - x) for x in (quotient, divisor))
    low, divisor_low = quotient - high, divisor - divisor_high
    product = quotient * divisor
    error = ((high * divisor_high - product) + high * divisor_low + low * divisor_high) + low * divisor_low
    return (dividend - product) - error
