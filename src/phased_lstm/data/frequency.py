"""Sine waves of one or two frequencies, sampled in three ways: tasks 1 and 2 of the Phased LSTM paper.

The protocol is that of the paper's published code, which the paper describes more loosely. Half of the sequences have
periods of the class sought; the others' are drawn from all, so that a few of them belong to the class too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SAMPLINGS = ("standard", "high", "async")
# Milliseconds from the beginning of a recording to its end.
RECORDING = 125.0
_INTERVALS = {"standard": 1.0, "high": 0.1}
_SHORTEST, _LONGEST = 15.0, 125.0
_PERIODS = (1.0, 100.0)
_SOUGHT = (5.0, 6.0)

# Of the waves of task 1 that are sampled every ms: half are drawn from all periods, and of those a share is aliased.
UNKNOWABLE = 0.5 * math.log(1.25 / 1.2) / math.log(_PERIODS[1] / _PERIODS[0])

_TWO_RECORDING = 100.0
_TWO_SHORTEST = 1.0
_TWO_STEPS = (100, 1000)
_TWO_SOUGHT = ((5.0, 6.0), (13.0, 15.0))


class Waves(NamedTuple):
    """Sampled waves.

    Attributes:
        values: (N, L) float32 in [-1, 1], or [-2, 2] for two frequencies; 0 after the end.
        times: (N, L) float32 in ms, rising; 0 after the end.
        lengths: (N,) int64 samples of each.
        labels: (N,) int64, 1 when all periods are of the class sought.
        periods: (N, frequencies) as drawn, in ms.
    """

    values: Tensor
    times: Tensor
    lengths: Tensor
    labels: Tensor
    periods: Tensor


def one_frequency(count: int, sampling: str, generator: torch.Generator) -> Waves:
    """Draw waves whose period is to be told: from 5 to 6 ms, or another from 1 to 100 ms.

    A wave lasts D ~ U(15, 125) ms, begins at U(0, 125 - D) ms and is lagged by U(0, D) radians; its period is
    log-uniform, and U(5, 6) in the first half of the batch. Sampled every ms, a period of 1.2 to 1.25 ms gives the
    samples of another from 5 to 6, backwards, and cannot be told from it: that is `UNKNOWABLE` of the waves.

    Args:
        count: waves N.
        sampling: "standard", every ms; "high", every 0.1 ms; "async", 15 to 124 sorted moments, uniform over the wave.
        generator: source of randomness.

    Raises:
        ValueError: an unknown sampling.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling should be one of {', '.join(SAMPLINGS)}, got {sampling!r}")
    duration = _uniform(count, _SHORTEST, _LONGEST, generator)
    start = torch.rand(count, generator=generator) * (RECORDING - duration)
    period = _log_uniform(count, generator)
    half = count // 2
    period[:half] = _uniform(half, *_SOUGHT, generator)
    lag = torch.rand(count, generator=generator) * duration
    if sampling == "async":
        lengths = _uniform(count, _SHORTEST, _LONGEST, generator).long()
        times = _scattered(start, duration, lengths, generator)
    else:
        interval = _INTERVALS[sampling]
        lengths = (duration / interval).ceil().long()
        times = start.unsqueeze(1) + interval * torch.arange(int(lengths.max()))
    values = torch.sin(2.0 * math.pi * times / period.unsqueeze(1) - lag.unsqueeze(1))
    return _padded(values, times, lengths, _within(period, _SOUGHT).long(), period.unsqueeze(1))


def two_frequencies(count: int, generator: torch.Generator) -> Waves:
    """Draw sums of two waves, sought when their stated periods are from 5 to 6 and from 13 to 15 ms.

    A sum lasts D ~ U(1, 100) ms, begins at U(0, 100 - D) ms and is sampled at 100 to 999 sorted moments, uniform over
    it. Each wave is lagged by U(0, D) radians. As in the published code a wave is sin(t / T), without the 2 pi, so that
    its true period is 6.28 times the stated T.

    Args:
        count: sums N.
        generator: source of randomness.
    """
    duration = _uniform(count, _TWO_SHORTEST, _TWO_RECORDING, generator)
    start = torch.rand(count, generator=generator) * (_TWO_RECORDING - duration)
    periods = torch.stack([_log_uniform(count, generator) for _ in _TWO_SOUGHT], dim=1)
    half = count // 2
    for index, sought in enumerate(_TWO_SOUGHT):
        periods[:half, index] = _uniform(half, *sought, generator)
    lags = torch.rand((count, 2), generator=generator) * duration.unsqueeze(1)
    lengths = _uniform(count, *_TWO_STEPS, generator).long()
    times = _scattered(start, duration, lengths, generator)
    values = torch.sin(times.unsqueeze(2) / periods.unsqueeze(1) - lags.unsqueeze(1)).sum(2)
    labels = torch.stack([_within(periods[:, index], sought) for index, sought in enumerate(_TWO_SOUGHT)]).all(0)
    return _padded(values, times, lengths, labels.long(), periods)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _log_uniform(count: int, generator: torch.Generator) -> Tensor:
    return _uniform(count, math.log(_PERIODS[0]), math.log(_PERIODS[1]), generator).exp()


def _within(period: Tensor, bounds: tuple[float, float]) -> Tensor:
    return (period >= bounds[0]) & (period <= bounds[1])


def _scattered(start: Tensor, duration: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
    """(N, L) sorted uniform moments of each wave, and others after its end."""
    longest = int(lengths.max())
    moments = torch.rand((len(lengths), longest), generator=generator)
    # Surplus draws sort to the end.
    moments[torch.arange(longest) >= lengths.unsqueeze(1)] += 1.0
    return start.unsqueeze(1) + duration.unsqueeze(1) * moments.sort(dim=1).values


def _padded(values: Tensor, times: Tensor, lengths: Tensor, labels: Tensor, periods: Tensor) -> Waves:
    padding = torch.arange(times.shape[1]) >= lengths.unsqueeze(1)
    return Waves(values.masked_fill(padding, 0.0), times.masked_fill(padding, 0.0), lengths, labels, periods)
