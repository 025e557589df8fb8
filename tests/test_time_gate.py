"""The TimeGate module: initial values, assignment, robustness, diagnosis and fitting."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
import torch

from phased_lstm import PhasedGRU, PhasedLSTM, TimeGate
from phased_lstm.gate import PERIOD_INIT_MAX, PERIOD_INIT_MIN


def snapshot(gate: TimeGate) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in gate.state_dict().items()}


def assert_unchanged(gate: TimeGate, before: dict[str, torch.Tensor]) -> None:
    for key, value in gate.state_dict().items():
        assert torch.equal(value, before[key]), key


def assert_valid(gate: TimeGate) -> None:
    for value in (gate.period, gate.shift, gate.ratio_on):
        assert value.isfinite().all()
    assert (gate.period > 0).all()
    assert ((gate.ratio_on > 0) & (gate.ratio_on <= 1)).all()
    k = gate(torch.arange(-5, 50))
    assert ((k >= 0) & (k <= 1)).all()


def test_initial_periods_are_log_uniform_over_the_default_range() -> None:
    gate = TimeGate(4000)
    logs = gate.period.log()
    assert gate.period.min() >= PERIOD_INIT_MIN * (1 - 1e-6)
    assert gate.period.max() <= PERIOD_INIT_MAX * (1 + 1e-6)
    # Mean and spread of U(1, 6), within five standard errors of 4000 draws.
    assert logs.mean().item() == pytest.approx(3.5, abs=5 * 1.4434 / math.sqrt(4000))
    assert logs.std().item() == pytest.approx(1.4434, rel=0.05)


def test_initial_range_arguments_count_and_units_differ() -> None:
    """Earlier implementations ignored the range, or gave every unit the same period."""
    gate = TimeGate(50, period_init_min=1000.0, period_init_max=3000.0, ratio_on=0.2)
    assert 999.9 < gate.period.min() < gate.period.max() < 3000.1
    assert gate.period.unique().numel() == 50
    assert gate.shift.unique().numel() == 50
    assert ((gate.shift >= 0) & (gate.shift <= gate.period)).all()
    torch.testing.assert_close(gate.ratio_on, torch.full((50,), 0.2), rtol=1e-6, atol=0)
    assert gate.origin.item() == 0


def test_reset_draws_anew_and_clears_the_origin() -> None:
    gate = TimeGate(5).assign_(origin=7)
    before = gate.period.detach().clone()
    gate.reset_parameters()
    assert not torch.equal(gate.period, before)
    assert gate.origin.item() == 0


def test_ratio_is_trained_only_when_asked() -> None:
    assert [name for name, p in TimeGate(2).named_parameters() if p.requires_grad] == ["raw_period", "raw_shift"]
    assert all(p.requires_grad for p in TimeGate(2, trainable_ratio_on=True).parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_assign_round_trip(dtype: torch.dtype) -> None:
    gate = TimeGate(4, dtype=dtype)
    period, shift = torch.tensor([0.01, 1.0, 37.7, 1e6]), torch.tensor([-3.0, 0.25, 1e3, 5e5])
    ratio = torch.tensor([1e-5, 0.05, 0.5, 1.0])
    assert gate.assign_(period=period, shift=shift, ratio_on=ratio, origin=-12) is gate
    # exp of a logarithm up to 14 and the logit down to -14 magnify the parameters' rounding by as much.
    rtol = 32 * torch.finfo(dtype).eps
    torch.testing.assert_close(gate.period, period.to(dtype), rtol=rtol, atol=0)
    torch.testing.assert_close(gate.shift, shift.to(dtype), rtol=rtol, atol=0)
    torch.testing.assert_close(gate.ratio_on, ratio.to(dtype), rtol=rtol, atol=0)
    assert gate.ratio_on[3] == 1
    assert gate.origin.item() == -12


def test_assign_takes_the_values_of_another_gate() -> None:
    """The ends of the range included, which float32 cannot hold exactly."""
    for ratio in (1e-6, 1.0):
        source = TimeGate(3, ratio_on=ratio)
        target = TimeGate(3).assign_(period=source.period, shift=source.shift, ratio_on=source.ratio_on)
        torch.testing.assert_close(target.ratio_on, source.ratio_on, rtol=1e-5, atol=0)


def test_assign_leaves_what_is_not_named() -> None:
    gate = TimeGate(3, dtype=torch.float64).assign_(period=10.0, shift=4.0, ratio_on=0.3, origin=5)
    gate.assign_(period=torch.tensor([2.0, 4.0, 8.0]))
    torch.testing.assert_close(gate.shift, torch.full((3,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(gate.ratio_on, torch.full((3,), 0.3, dtype=torch.float64))
    before = snapshot(gate)
    gate.assign_(ratio_on=0.4)
    gate.assign_(origin=9)
    assert torch.equal(gate.initial_period, before["initial_period"])
    assert torch.equal(gate.initial_shift, before["initial_shift"])
    assert gate.origin.item() == 9


def test_assign_of_a_period_never_moves_the_shift() -> None:
    """However many periods the shift is then."""
    gate = TimeGate(2).assign_(period=1.0, shift=1e5)
    gate.assign_(period=1e-3)
    assert torch.equal(gate.shift, torch.full((2,), 1e5))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"period": 0.0}, ValueError, "period should be positive and finite"),
        ({"period": -1.0}, ValueError, "got -1.0 for unit 0"),
        ({"period": torch.tensor([1.0, 2.0, math.nan])}, ValueError, "got nan for unit 2"),
        ({"period": math.inf}, ValueError, "period should be positive and finite"),
        ({"period": 1e30}, ValueError, "period should be positive and finite"),
        ({"period": torch.ones(2)}, ValueError, "period should be a scalar or of shape (3,)"),
        ({"period": torch.ones(3, 1)}, ValueError, "got shape (3, 1)"),
        ({"shift": math.nan}, ValueError, "shift should be finite"),
        ({"shift": -math.inf}, ValueError, "shift should be finite"),
        ({"shift": torch.zeros(4)}, ValueError, "shift should be a scalar or of shape (3,)"),
        ({"shift": 1e30, "period": 1.0}, ValueError, "shift should be finite (at most 1e+26 in size)"),
        ({"ratio_on": 0.0}, ValueError, "ratio_on should be in [1e-06, 1]"),
        ({"ratio_on": -0.5}, ValueError, "ratio_on should be in [1e-06, 1]"),
        ({"ratio_on": torch.tensor([0.1, 1.5, 0.1])}, ValueError, "got 1.5 for unit 1"),
        ({"ratio_on": math.nan}, ValueError, "ratio_on should be in [1e-06, 1]"),
        ({"origin": 1.5}, TypeError, "origin should be of type int, got: float"),
        ({"origin": True}, TypeError, "origin should be of type int, got: bool"),
        ({"origin": 2**70}, ValueError, "origin"),
    ],
)
def test_assign_errors_leave_the_gate_unchanged(values: dict[str, Any], error: type[Exception], message: str) -> None:
    gate = TimeGate(3, ratio_on=0.2)
    before = snapshot(gate)
    good = {"period": 5.0, "shift": 1.0, "ratio_on": 0.5, "origin": 3}
    with pytest.raises(error, match=re.escape(message)):
        gate.assign_(**(good | values))
    assert_unchanged(gate, before)


@pytest.mark.parametrize("size", [1e30, -1e30, math.inf, -math.inf])
def test_absurd_raw_values_stay_valid(size: float) -> None:
    gate = TimeGate(4, trainable_ratio_on=True)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.fill_(size)
    assert_valid(gate)
    gate(torch.arange(20)).sum().backward()
    for name, parameter in gate.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("oscillation", ["triangle", "cosine"])
@pytest.mark.parametrize("start", [0, 1_700_000_000])
def test_absurd_optimiser_steps_stay_valid(oscillation: Any, start: int) -> None:
    gate = TimeGate(16, ratio_on=0.5, trainable_ratio_on=True, oscillation=oscillation)
    optimiser = torch.optim.SGD(gate.parameters(), lr=1e8)
    times = torch.arange(start, start + 200)
    for _ in range(10):
        optimiser.zero_grad()
        (gate(times) * torch.randn(200, 16)).sum().backward()
        optimiser.step()
        assert_valid(gate)


@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_16_bit_casts_leave_the_gate_float32(cast: str) -> None:
    gate = TimeGate(3)
    before = snapshot(gate)
    getattr(gate, cast)()
    gate.to(getattr(torch, "float16" if cast == "half" else cast))
    assert_unchanged(gate, before)
    assert {p.dtype for p in gate.parameters()} == {torch.float32}
    assert gate.double().raw_period.dtype == torch.float64
    assert gate.float().raw_period.dtype == torch.float32
    assert TimeGate(3, dtype=torch.bfloat16).raw_period.dtype == torch.float32


def test_leak_acts_in_training_only() -> None:
    """A leak left on at test time is the commonest bug of earlier implementations."""
    gate = TimeGate(3, leak=0.25, dtype=torch.float64).assign_(period=10.0, shift=0.0, ratio_on=0.2)
    times = torch.tensor([1, 5])
    torch.testing.assert_close(gate(times)[:, 0], torch.tensor([1.0, 0.125], dtype=torch.float64))
    assert gate.active_leak == 0.25
    gate.eval()
    torch.testing.assert_close(gate(times)[:, 0], torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert gate.active_leak == 0.0


def test_forward_checks_its_times() -> None:
    gate = TimeGate(2)
    with pytest.raises(TypeError, match="times should be a tensor, got: list"):
        gate([1.0])
    with pytest.raises(ValueError, match="int32, int64, float32 or float64"):
        gate(torch.zeros(3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="finite"):
        gate(torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hidden_size": 0}, ValueError, "hidden_size must be greater than zero"),
        ({"hidden_size": 2.0}, TypeError, "hidden_size should be of type int, got: float"),
        ({"leak": -0.1}, ValueError, "leak should be in [0, 1]"),
        ({"leak": 1.1}, ValueError, "leak should be in [0, 1]"),
        ({"leak": math.nan}, ValueError, "leak should be in [0, 1]"),
        ({"leak": True}, TypeError, "leak should be a number, got: bool"),
        ({"ratio_on": 0.0}, ValueError, "ratio_on should be in [1e-06, 1]"),
        ({"ratio_on": 1.01}, ValueError, "ratio_on should be in [1e-06, 1]"),
        ({"ratio_on": "0.1"}, TypeError, "ratio_on should be a number, got: str"),
        ({"trainable_ratio_on": 1}, TypeError, "trainable_ratio_on should be of type bool, got: int"),
        ({"period_init_min": 0.0}, ValueError, "period_init_min and period_init_max should be positive"),
        ({"period_init_min": 9.0, "period_init_max": 8.0}, ValueError, "got 9.0 and 8.0"),
        ({"period_init_max": math.inf}, ValueError, "finite and in this order"),
        ({"oscillation": "sine"}, ValueError, "oscillation should be one of triangle, square, cosine, got 'sine'"),
    ],
)
def test_constructor_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        TimeGate(**({"hidden_size": 3} | options))


def test_square_with_a_trainable_ratio_warns() -> None:
    with pytest.warns(UserWarning, match="zero derivative in ratio_on"):
        TimeGate(2, oscillation="square", trainable_ratio_on=True)


def test_repr_shows_what_differs_from_the_defaults() -> None:
    assert repr(TimeGate(5)) == "TimeGate(5)"
    gate = TimeGate(5, leak=0.001, trainable_ratio_on=True, oscillation="cosine")
    assert repr(gate) == "TimeGate(5, leak=0.001, trainable_ratio_on=True, oscillation='cosine')"


@pytest.mark.parametrize("through_a_file", [True, False])
@pytest.mark.parametrize("phased", [PhasedLSTM, PhasedGRU])
def test_a_state_of_another_oscillation_or_leak_is_told(phased: Any, through_a_file: bool) -> None:
    state = phased(2, 3, oscillation="square", leak=0.01).state_dict()
    if through_a_file:
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file)
    phased(2, 3, oscillation="square", leak=0.01).load_state_dict(state)
    with pytest.warns(
        UserWarning, match=r"gate_l0 was saved with oscillation='square'.* make the layer with oscillation='square'"
    ):
        phased(2, 3, leak=0.01).load_state_dict(state)
    with pytest.warns(UserWarning, match=r"saved with leak=0.01, and is loaded into one with leak=0.0"):
        phased(2, 3, oscillation="square").load_state_dict(state)
    assert not any("oscillation" in name or "leak" in name for name in state)


def test_a_layer_shows_what_its_gates_are_now() -> None:
    rnn = PhasedLSTM(2, 3, 2)
    rnn.gate_l0.assign_(ratio_on=0.3)
    assert "ratio_on='0.05 to 0.3'" in repr(rnn)
    rnn.gate_l1.assign_(ratio_on=0.3)
    assert "ratio_on=0.3" in repr(rnn)
    rnn.gate_l0.oscillation = rnn.gate_l1.oscillation = "cosine"
    assert "oscillation='cosine'" in repr(rnn)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_a_dtype_that_is_no_floating_one(dtype: torch.dtype) -> None:
    for made in (lambda: TimeGate(3, dtype=dtype), lambda: PhasedLSTM(2, 3, dtype=dtype)):
        with pytest.raises(ValueError, match="dtype should be a floating one, got torch"):
            made()
