"""Waves of the frequency tasks follow the protocol of the paper's published code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from phased_lstm.data.frequency import SAMPLINGS, UNKNOWABLE, Waves, one_frequency, two_frequencies

COUNT = 8000


def drawn(sampling: str, seed: int = 0, count: int = COUNT) -> Waves:
    generator = torch.Generator().manual_seed(seed)
    return two_frequencies(count, generator) if sampling == "two" else one_frequency(count, sampling, generator)


def uniform(values: Tensor, low: float, high: float, slack: float = 0.0) -> None:
    """Check range, mean and variance, to five standard errors and `slack` of the range."""
    width = high - low
    relative = (values.double() - low) / width
    assert -slack <= float(relative.min()) < 0.01 + slack
    assert 0.99 - slack < float(relative.max()) <= 1 + slack
    error = 5 / math.sqrt(len(relative))
    assert float(relative.mean()) == pytest.approx(0.5, abs=error * math.sqrt(1 / 12) + slack)
    assert float(relative.var()) == pytest.approx(1 / 12, abs=error * math.sqrt(1 / 180) + slack)


@pytest.mark.parametrize("sampling", [*SAMPLINGS, "two"])
def test_shapes_padding_and_order(sampling: str) -> None:
    waves = drawn(sampling, count=600)
    longest = int(waves.lengths.max())
    assert waves.values.shape == waves.times.shape == (600, longest)
    padding = torch.arange(longest) >= waves.lengths.unsqueeze(1)
    assert padding.any()
    assert not waves.values[padding].any()
    assert not waves.times[padding].any()
    assert (waves.times.diff(dim=1)[~padding[:, 1:]] >= 0).all()
    assert (waves.values[~padding] != 0).float().mean() > 0.999


@pytest.mark.parametrize(("sampling", "interval"), [("standard", 1.0), ("high", 0.1)])
def test_regular_samples_cover_the_duration(sampling: str, interval: float) -> None:
    waves = drawn(sampling)
    last = waves.times.gather(1, waves.lengths.unsqueeze(1) - 1).squeeze(1)
    assert float(waves.times[:, 0].min()) >= 0
    assert float(last.max()) < 125
    steps = waves.times.diff(dim=1)[torch.arange(1, waves.times.shape[1]) < waves.lengths.unsqueeze(1)]
    assert (steps - interval).abs().max() < 1e-4
    # The duration, rounded up to whole intervals.
    uniform(waves.lengths * interval, 15, 125, slack=interval / 110)
    # What is left of the recording is shared between before and after at random.
    room = 125 - waves.lengths * interval
    roomy = room > 10
    uniform((waves.times[:, 0] / room)[roomy], 0, 1, slack=interval / 10)


def test_asynchronous_samples_are_uniform_over_the_duration() -> None:
    waves = drawn("async")
    assert (int(waves.lengths.min()), int(waves.lengths.max())) == (15, 124)
    uniform(waves.lengths + torch.rand(COUNT, generator=torch.Generator().manual_seed(1)), 15, 125)
    valid = torch.arange(waves.times.shape[1]) < waves.lengths.unsqueeze(1)
    last = waves.times.gather(1, waves.lengths.unsqueeze(1) - 1).squeeze(1)
    span = last - waves.times[:, 0]
    # n uniform moments span (n - 1) / (n + 1) of the duration on average, and the mean duration is 70.
    expected = (70 * (waves.lengths - 1) / (waves.lengths + 1)).mean()
    assert float(span.mean()) == pytest.approx(float(expected), rel=0.03)
    inner = ((waves.times - waves.times[:, :1]) / span.unsqueeze(1))[:, 1:]
    inside = inner[valid[:, 1:] & (torch.arange(1, valid.shape[1]) < waves.lengths.unsqueeze(1) - 1)]
    uniform(inside, 0, 1)


def test_number_of_samples_tells_nothing_of_the_duration() -> None:
    waves = drawn("async")
    last = waves.times.gather(1, waves.lengths.unsqueeze(1) - 1).squeeze(1)
    duration = (last - waves.times[:, 0]) * (waves.lengths + 1) / (waves.lengths - 1)
    assert abs(float(torch.corrcoef(torch.stack([duration, waves.lengths.float()]))[0, 1])) < 0.06


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_periods_and_labels_of_one_frequency(sampling: str) -> None:
    waves = drawn(sampling)
    period = waves.periods[:, 0]
    uniform(period[: COUNT // 2], 5, 6)
    uniform(period[COUNT // 2 :].log(), 0, math.log(100))
    assert waves.labels.tolist() == [int(5 <= value <= 6) for value in period.tolist()]
    # Always answering 1 is right in half of the cases, and where a free period happens to be in the range.
    assert float(waves.labels.float().mean()) == pytest.approx(0.5 + 0.5 * math.log(1.2) / math.log(100), abs=0.005)


def test_periods_and_labels_of_two_frequencies() -> None:
    waves = drawn("two", count=3000)
    for index, (low, high) in enumerate([(5, 6), (13, 15)]):
        uniform(waves.periods[:1500, index], low, high)
        uniform(waves.periods[1500:, index].log(), 0, math.log(100))
    assert waves.labels.tolist() == [int(5 <= a <= 6 and 13 <= b <= 15) for a, b in waves.periods.tolist()]
    assert (int(waves.lengths.min()), int(waves.lengths.max())) == pytest.approx((100, 999), abs=8)
    last = waves.times.gather(1, waves.lengths.unsqueeze(1) - 1).squeeze(1)
    uniform(last - waves.times[:, 0], 1, 100, slack=0.02)
    assert float(last.max()) < 100


def sine_and_cosine(times: Tensor, angular: list[float], values: Tensor) -> float:
    """The largest error of the best fit of `values` by waves of the given angular frequencies and any lag."""
    columns = [wave(omega * times.double()) for omega in angular for wave in (torch.sin, torch.cos)]
    design = torch.stack(columns, dim=1)
    solution = torch.linalg.lstsq(design, values.double().unsqueeze(1)).solution
    return float((design @ solution).squeeze(1).sub(values).abs().max())


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_values_are_a_sine_of_the_stated_period_and_unit_amplitude(sampling: str) -> None:
    waves = drawn(sampling, count=200)
    for row in range(0, 200, 5):
        length = int(waves.lengths[row])
        times, values = waves.times[row, :length], waves.values[row, :length]
        omega = 2 * math.pi / float(waves.periods[row, 0])
        assert sine_and_cosine(times, [omega], values) < 1e-3
        # One amplitude: sin(wt - p) and its quarter-period neighbours fulfil sin^2 + cos^2 = 1.
        lag_sine, lag_cosine = torch.sin(omega * times.double()), torch.cos(omega * times.double())
        solution = torch.linalg.lstsq(torch.stack([lag_sine, lag_cosine], dim=1), values.double().unsqueeze(1)).solution
        if float(times[-1] - times[0]) * omega > 2:
            assert float(solution.square().sum()) == pytest.approx(1, abs=0.01)


def test_some_waves_sampled_every_ms_are_those_of_a_sought_period_backwards() -> None:
    waves = drawn("standard", count=20_000)
    periods = waves.periods[:, 0].double()
    aliased = ((periods > 1.2) & (periods < 1.25)).nonzero()[:, 0]
    assert len(aliased) > 40
    slow = 1.0 / (1.0 - 1.0 / periods[aliased])
    assert bool(((slow > 5.0) & (slow < 6.0)).all())
    # What sine waves of that period, and of no other above 2 ms, have in common: two neighbours are so many times it.
    values = waves.values[aliased, :15].double()
    neighbours = values[:, 2:] + values[:, :-2]
    own = 2.0 * torch.cos(2.0 * math.pi / slow).unsqueeze(1) * values[:, 1:-1]
    torch.testing.assert_close(neighbours, own, rtol=0.0, atol=1e-3)


def test_the_share_of_them_is_known() -> None:
    generator = torch.Generator().manual_seed(0)
    periods = torch.cat([one_frequency(20_000, "standard", generator).periods for _ in range(20)])
    share = ((periods > 1.2) & (periods < 1.25)).double().mean().item()
    # Four deviations.
    assert share == pytest.approx(UNKNOWABLE, abs=4.0 * math.sqrt(UNKNOWABLE / len(periods)))


def test_values_of_two_waves_have_no_two_pi_in_their_phase() -> None:
    waves = drawn("two", count=40)
    for row in range(40):
        length = int(waves.lengths[row])
        times, values = waves.times[row, :length], waves.values[row, :length]
        assert sine_and_cosine(times, [1 / float(period) for period in waves.periods[row]], values) < 1e-3
    assert 1.5 < float(waves.values.abs().max()) <= 2


def test_lags_are_within_the_duration_in_radians() -> None:
    """A sine near its start has the value sin(wt - p); with p ~ U(0, D), p mod 2 pi is nearly uniform."""
    waves = drawn("standard")
    omega = 2 * math.pi / waves.periods[:, :1]
    first_two = waves.times[:, :2].double()
    # From two samples: a sin(wt) + b cos(wt), a = cos p, b = -sin p.
    sines, cosines = torch.sin(omega * first_two), torch.cos(omega * first_two)
    determinant = sines[:, 0] * cosines[:, 1] - sines[:, 1] * cosines[:, 0]
    a = (waves.values[:, 0] * cosines[:, 1] - waves.values[:, 1] * cosines[:, 0]) / determinant
    b = (sines[:, 0] * waves.values[:, 1] - sines[:, 1] * waves.values[:, 0]) / determinant
    lag = torch.atan2(-b, a)[determinant.abs() > 0.3]
    uniform(lag, -math.pi, math.pi, slack=0.01)


def test_an_unknown_sampling_is_named() -> None:
    with pytest.raises(ValueError, match="standard, high, async, got 'hourly'"):
        drawn("hourly")


def test_waves_follow_from_the_generator() -> None:
    for first, second in zip(drawn("async", 3, 50), drawn("async", 3, 50), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(drawn("async", 3, 50).periods, drawn("async", 4, 50).periods)
