"""From a time gate's raw trainable parameters to its period, shift and ratio_on."""

from __future__ import annotations

from torch import Tensor

from ._checks import RATIO_MIN

# How far one unit of a raw parameter moves the log of the period, the shift (in periods) and the
# logit of the ratio. A step of Adam moves a raw parameter by about the learning rate, and the gate's
# openings late in a sequence by that times the number of cycles before: the small steps keep a period
# trainable over hundreds of cycles at a learning rate that suits the weights. The ratio moves about as
# fast as if it were itself the parameter.
_PERIOD_STEP = 0.01
_SHIFT_STEP = 0.01
_RATIO_STEP = 20.0

# The bounds within which raw parameters act. They keep every derived value finite and positive in
# float32 however far an optimiser throws the raw one.
_LOG_PERIOD_RANGE = 20.0
_SHIFT_RANGE = 1e3
_LOGIT_RATIO_RANGE = 30.0

# What the native derivative is told, in the order of its operator's arguments.
CONSTANTS = (_PERIOD_STEP, _SHIFT_STEP, _RATIO_STEP, _LOG_PERIOD_RANGE, _SHIFT_RANGE, _LOGIT_RATIO_RANGE, RATIO_MIN)


def growth_of(raw_period: Tensor) -> Tensor:
    """What the initial period is multiplied by."""
    return (_PERIOD_STEP * raw_period).clamp(-_LOG_PERIOD_RANGE, _LOG_PERIOD_RANGE).exp()


def odds_of(raw_ratio_on: Tensor) -> Tensor:
    """What the odds of the initial ratio are multiplied by."""
    return (_RATIO_STEP * raw_ratio_on).clamp(-_LOGIT_RATIO_RANGE, _LOGIT_RATIO_RANGE).exp()


def shift_of(raw_shift: Tensor, initial: Tensor, period: Tensor) -> Tensor:
    return initial + (_SHIFT_STEP * raw_shift).clamp(-_SHIFT_RANGE, _SHIFT_RANGE) * period


def ratio_of(odds: Tensor, initial: Tensor) -> Tensor:
    return (initial * odds / (initial * odds + (1.0 - initial))).clamp(min=RATIO_MIN)


def gate_values(
    raw_period: Tensor,
    raw_shift: Tensor,
    raw_ratio_on: Tensor,
    initial_period: Tensor,
    initial_shift: Tensor,
    initial_ratio_on: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return period, shift and ratio_on, each (H,); valid whatever the raw values are, and differentiable."""
    return gate_values_and_factors(
        raw_period, raw_shift, raw_ratio_on, initial_period, initial_shift, initial_ratio_on
    )[:3]


def gate_values_and_factors(
    raw_period: Tensor,
    raw_shift: Tensor,
    raw_ratio_on: Tensor,
    initial_period: Tensor,
    initial_shift: Tensor,
    initial_ratio_on: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what `gate_values` does, and the growth and odds on the way there."""
    growth, odds = growth_of(raw_period), odds_of(raw_ratio_on)
    period = initial_period * growth
    return period, shift_of(raw_shift, initial_shift, period), ratio_of(odds, initial_ratio_on), growth, odds
