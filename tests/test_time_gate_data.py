"""TimeGate and data: how open a gate is over given times, and fitting it to them."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor

from phased_lstm import Openness, PhasedLSTM, TimeGate
from phased_lstm import gate as gate_module


def brute_force(gate: TimeGate, stamps: list[float]) -> tuple[list[float], list[float]]:
    fractions, means = [], []
    units = zip(gate.period.double(), gate.shift.double(), gate.ratio_on.double(), strict=True)
    for period, shift, ratio in units:
        k = [oracle.openness(torch.tensor(t, dtype=torch.float64), period, shift, ratio).item() for t in stamps]
        fractions.append(sum(value > 0 for value in k) / len(k))
        means.append(sum(k) / len(k))
    return fractions, means


@pytest.mark.parametrize("chunk", [1, 7, 1 << 21])
def test_openness_agrees_with_brute_force(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "_CHUNK_ELEMENTS", chunk)
    gate = TimeGate(5, ratio_on=0.2, leak=0.5, dtype=torch.float64)
    times = torch.rand(3, 40, dtype=torch.float64) * 300
    openness = gate.openness(times)
    assert isinstance(openness, Openness)
    fraction, mean = brute_force(gate, times.flatten().tolist())
    torch.testing.assert_close(openness.fraction, torch.tensor(fraction, dtype=torch.float64))
    torch.testing.assert_close(openness.mean, torch.tensor(mean, dtype=torch.float64), rtol=1e-12, atol=1e-14)
    assert not openness.fraction.requires_grad


def test_openness_counts_valid_steps_only() -> None:
    gate = TimeGate(4, ratio_on=0.3)
    times = torch.randint(0, 500, (3, 10))
    joined = torch.cat([times[0, :4], times[2]])
    got, wanted = gate.openness(times, torch.tensor([4, 0, 10])), gate.openness(joined)
    assert torch.equal(got.fraction, wanted.fraction)
    torch.testing.assert_close(got.mean, wanted.mean)


def test_openness_mean_is_a_differentiable_penalty() -> None:
    gate = TimeGate(3, ratio_on=0.3, trainable_ratio_on=True, dtype=torch.float64)
    times = torch.arange(200)

    def mean(raw_period: Tensor, raw_shift: Tensor, raw_ratio_on: Tensor) -> Tensor:
        values = {"raw_period": raw_period, "raw_shift": raw_shift, "raw_ratio_on": raw_ratio_on}

        class Mean(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gate = gate

            def forward(self) -> Tensor:
                return self.gate.openness(times).mean

        return torch.func.functional_call(Mean(), {f"gate.{key}": value for key, value in values.items()}, ())

    assert torch.autograd.gradcheck(mean, tuple(gate.parameters()))
    before = gate.ratio_on.detach().clone()
    optimiser = torch.optim.SGD([gate.raw_ratio_on], lr=0.5)
    gate.openness(times).mean.sum().backward()
    optimiser.step()
    assert (gate.ratio_on < before).all()


def test_units_that_never_open_have_fraction_and_mean_0_and_zero_gradients() -> None:
    gate = TimeGate(2, leak=0.1, trainable_ratio_on=True)
    gate.assign_(period=100.0, shift=torch.tensor([0.0, 50.0]), ratio_on=0.045)
    openness = gate.openness(torch.arange(0, 10))
    assert openness.fraction.tolist() == [0.5, 0.0]
    assert openness.mean[1] == 0
    openness.mean.sum().backward()
    for name, parameter in gate.named_parameters():
        assert parameter.grad[1] == 0, name
        assert parameter.grad[0] != 0, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(0),), "at least one time stamp"),
        ((torch.zeros(2, 3), torch.tensor([0, 0])), "at least one time stamp"),
        ((torch.zeros(2, 3), torch.tensor([1, 4])), "from 0 to 3"),
        ((torch.zeros(2, 3), torch.tensor([1, -1])), "from 0 to 3"),
        ((torch.zeros(2, 3), torch.tensor([1])), "one for each sequence"),
        ((torch.zeros(3), torch.tensor([1])), "lengths goes with times"),
        ((torch.zeros(2, 3), torch.tensor([1.0, 2.0])), "int32 or int64, got torch.float32"),
        ((torch.tensor([0.0, math.inf]),), "finite"),
        ((torch.tensor([2**62]),), "within 2**62 of zero"),
        ((torch.zeros(2, 3, 4),), "times should be of shape"),
        ((torch.tensor(1.0),), "times should be of shape"),
    ],
)
def test_openness_errors(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TimeGate(3).openness(*arguments)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 86400.0])
def test_fit_draws_periods_to_the_scale_of_the_data(scale: float) -> None:
    gate = TimeGate(64, ratio_on=0.2)
    times = (torch.arange(200, dtype=torch.float64) * scale).expand(3, 200)
    assert gate.fit_(times) is gate
    period = gate.period.double()
    # Four median intervals up to the duration, within the rounding of a float32 logarithm below 20.
    assert period.min() >= 4 * scale * (1 - 3e-6)
    assert period.max() <= 199 * scale * (1 + 3e-6)
    # One draw from each 64th of the logarithmic range: the quarters hold 16 units each.
    part = (period.log() - math.log(4 * scale)) / math.log(199 / 4)
    counts = torch.histc(part, 4, 0, 1)
    assert ((counts >= 14) & (counts <= 18)).all()
    assert (gate.openness(times).fraction > 0).all()


def test_fit_covers_all_phases() -> None:
    gate = TimeGate(100, ratio_on=0.5)
    gate.fit_(torch.arange(1000))
    assert torch.equal((gate.shift / gate.period * 100).floor().sort().values, torch.arange(100.0))


def test_fit_sets_the_origin_to_the_earliest_time() -> None:
    times = torch.tensor([[1_700_000_500, 1_700_000_100], [1_700_000_050, 1_700_000_900]])
    assert TimeGate(4, ratio_on=1.0).fit_(times).origin.item() == 1_700_000_050
    assert TimeGate(4, ratio_on=1.0).fit_(times.double() / 3).origin.item() == math.floor(1_700_000_050 / 3)


def test_fit_is_exact_for_nanoseconds_beyond_2_to_53() -> None:
    start = 1_700_000_000_000_000_000
    here, there = TimeGate(32, ratio_on=0.2), TimeGate(32, ratio_on=0.2)
    steps = torch.arange(300) * 7
    here.fit_(steps, generator=torch.Generator().manual_seed(1))
    there.fit_(steps + start, generator=torch.Generator().manual_seed(1))
    assert there.origin.item() == start
    assert torch.equal(here.period, there.period)
    assert torch.equal(here(steps), there(steps + start))


def test_fit_survives_the_range_of_int32() -> None:
    """The span of int32 time stamps can exceed int32."""
    wide = torch.tensor([-2_000_000_000, 0, 2_000_000_000])
    gates = [TimeGate(4, ratio_on=1.0) for _ in range(2)]
    for gate, times in zip(gates, (wide, wide.to(torch.int32)), strict=True):
        gate.fit_(times, generator=torch.Generator().manual_seed(1))
    assert torch.equal(gates[0].period, gates[1].period)


def test_fit_reads_valid_steps_only() -> None:
    padded = torch.zeros(2, 100)
    padded[:, 50:] = 1e9
    padded[0, :50] = torch.arange(50)
    padded[1, :20] = torch.arange(20)
    gate = TimeGate(16, ratio_on=0.5).fit_(padded, torch.tensor([50, 20]))
    # The median of durations 49 and 19 is the lower one in torch.
    assert gate.period.max() <= 19.001
    assert gate.period.min() >= 3.999


def test_fit_is_reproducible_with_a_generator_and_takes_unsorted_times() -> None:
    times = torch.arange(100)
    order = torch.randperm(100)
    gates = [
        TimeGate(8, ratio_on=0.3).fit_(t, generator=torch.Generator().manual_seed(3)) for t in (times, times[order])
    ]
    assert torch.equal(gates[0].period, gates[1].period)
    assert torch.equal(gates[0].shift, gates[1].shift)


def test_fit_warns_of_units_that_never_open_and_names_them() -> None:
    gate = TimeGate(30, ratio_on=1e-5)
    with pytest.warns(UserWarning, match=r"units never open at the given times \(units \d") as caught:
        gate.fit_(torch.tensor([0.0, 1.3, 2.9]))
    closed = (gate.openness(torch.tensor([0.0, 1.3, 2.9])).fraction == 0).nonzero().flatten().tolist()
    message = str(caught[0].message)
    assert message.startswith(f"{len(closed)} of 30 units never open")
    assert f"(units {', '.join(map(str, closed[:20]))}" in message
    assert caught[0].filename == __file__


def test_fitting_a_layer_names_the_gate_whose_units_never_open() -> None:
    rnn = PhasedLSTM(1, 30, num_layers=2, ratio_on=1e-5)
    with pytest.warns(UserWarning, match="never open at the given times") as caught:
        rnn.fit_gates_(torch.tensor([0.0, 1.3, 2.9]))
    assert ["of gate_l0 never" in str(caught[0].message), "of gate_l1 never" in str(caught[1].message)] == [True, True]
    assert {warning.filename for warning in caught} == {__file__}


def test_fitting_a_layer_warns_of_times_laid_out_the_other_way() -> None:
    times = torch.rand(6, 40).sort(dim=1).values
    rnn = PhasedLSTM(1, 4, ratio_on=1.0)
    with pytest.warns(UserWarning, match=r"times \(6, 40\) are read as \(L, N\).* batch_first=True"):
        rnn.fit_gates_(times)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rnn.fit_gates_(times.T)
        PhasedLSTM(1, 4, ratio_on=1.0, batch_first=True).fit_gates_(times)


@pytest.mark.parametrize(
    "times", [torch.full((5,), 3.0), torch.tensor([1]), torch.zeros(0), torch.zeros(3, 4), torch.tensor([[1.0], [2.0]])]
)
def test_fit_refuses_times_without_a_scale(times: Tensor) -> None:
    gate = TimeGate(3)
    before = gate.period.detach().clone()
    with pytest.raises(ValueError, match="at least two different time stamps"):
        gate.fit_(times)
    assert torch.equal(gate.period, before)


def test_fit_refuses_times_of_another_kind() -> None:
    with pytest.raises(ValueError, match="times should be of shape"):
        TimeGate(3).fit_(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="finite"):
        TimeGate(3).fit_(torch.tensor([0.0, math.nan, 2.0]))
    with pytest.raises(ValueError, match="int32, int64, float32 or float64"):
        TimeGate(3).fit_(torch.zeros(3, dtype=torch.int16))
