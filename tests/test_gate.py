"""Phase and openness: values, exactness, gradients, and the bugs of earlier implementations."""

from __future__ import annotations

import math
from fractions import Fraction

import oracle
import pytest
import torch
from cases import operands
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from phased_lstm._checks import OSCILLATIONS
from phased_lstm.gate import TimeGate, phase, time_gate

ALL = pytest.mark.parametrize("oscillation", OSCILLATIONS)
# Three operations on numbers below two periods, each rounded to half a unit in the last place.
PHASE_TOLERANCE = 8 * 2.0**-53


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def exact_phase(time: float, period: float, shift: float) -> Fraction:
    return (Fraction(time) - Fraction(shift)) % Fraction(period) / Fraction(period)


def assert_exact_phases(times: Tensor, period: Tensor, shift: Tensor) -> None:
    """Compare with rational arithmetic, around the circle: 0 and 1 are the same phase."""
    got = phase(times, period, shift)
    assert got.dtype == torch.float64
    assert (got >= 0).all()
    assert (got < 1).all()
    for row, time in zip(got.tolist(), times.tolist(), strict=True):
        for value, tau, s in zip(row, period.tolist(), shift.tolist(), strict=True):
            distance = abs(Fraction(value) - exact_phase(time, tau, s))
            # Beyond 2^53 an integer's last bits are added apart, and may be many periods themselves.
            cycles = abs(time - int(float(time))) / tau if isinstance(time, int) else 0.0
            assert min(distance, 1 - distance) <= PHASE_TOLERANCE + 2.0**-52 * cycles, (time, tau, s)


def test_poisoned_memory_is_nan() -> None:
    """What the other tests rely on: nothing that was never written passes for a number."""
    blank = torch.ones(3)
    for made in (torch.empty(3), torch.empty_like(blank), blank.new_empty(3), torch.empty_strided((3,), (1,))):
        assert made.isnan().all()
    assert torch.get_num_threads() == 1


def test_phase_values() -> None:
    got = phase(f64(-7.0, -1.0, 0.0, 1.0, 5.0, 12.5), f64(5.0, 2.0), f64(0.0, 0.5))
    wanted = f64(0.6, 0.25, 0.8, 0.25, 0.0, 0.75, 0.2, 0.25, 0.0, 0.25, 0.5, 0.0).view(6, 2)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-15)


def test_phase_keeps_the_shape_of_the_times() -> None:
    for shape in ((), (4,), (2, 4), (2, 3, 4)):
        assert phase(torch.zeros(shape), f64(1.0, 2.0, 3.0), f64(0.0, 0.0, 0.0)).shape == (*shape, 3)


@pytest.mark.parametrize("ratio", [0.05, 0.5, 1.0, 2.0**-12])
def test_triangle_at_its_corners(ratio: float) -> None:
    """The printed inequalities are strict and send phi = r/2 to the leak; there k is 1."""
    half = 0.5 * ratio
    phases = f64(0.0, half / 2, half, 1.5 * half, ratio, 0.5 + half)
    k = time_gate(phases, f64(ratio), leak=0.125)
    for got, phi, wanted in zip(k.tolist(), phases.tolist(), (0.0, 0.5, 1.0, 0.5), strict=False):
        # 1.5 r is rounded, which the slope 2/r turns into no more than a few units of k's rounding.
        assert got == pytest.approx(wanted, abs=4e-16), phi
    if ratio < 1:
        assert k[4].item() == 0.125 * ratio
        assert k[5].item() == 0.125 * phases[5].item()
    assert k[2].item() == 1.0


def test_oscillations_while_open_and_closed() -> None:
    phases, ratio = f64(0.0, 0.1, 0.2, 0.3, 0.399, 0.4, 0.9), f64(0.4)
    square = time_gate(phases, ratio, oscillation="square")
    assert square.tolist() == [1.0] * 5 + [0.0] * 2
    cosine = time_gate(phases, ratio, oscillation="cosine")
    wanted = [(1 - math.cos(2 * math.pi * phi / 0.4)) / 2 if phi < 0.4 else 0.0 for phi in phases.tolist()]
    torch.testing.assert_close(cosine, f64(*wanted), rtol=0, atol=1e-15)


@ALL
@given(
    time=st.floats(-1e18, 1e18),
    period=st.floats(1e-9, 1e9),
    shift=st.floats(-1e12, 1e12),
    ratio=st.floats(1e-6, 1.0),
    leak=st.floats(0.0, 1.0),
)
def test_k_is_within_0_and_1(
    oscillation: str, time: float, period: float, shift: float, ratio: float, leak: float
) -> None:
    """A truncated modulo gives fmod(-1, 5) = -1 and k = -8 (pytorch_plstm)."""
    phi = phase(f64(time), f64(period), f64(shift))
    assert 0 <= phi.item() < 1
    k = time_gate(phi, f64(ratio), leak=leak, oscillation=oscillation).item()
    assert 0 <= k <= 1


def test_negative_elapsed_time_uses_the_floor_modulo() -> None:
    k = time_gate(phase(f64(-1.0), f64(5.0), f64(0.0)), f64(0.25))
    assert k.item() == 0.0
    rising = time_gate(phase(f64(-4.8), f64(5.0), f64(0.0)), f64(0.5))
    assert rising.item() == pytest.approx(0.16, abs=1e-15)


def test_gate_closes_again_after_its_peak() -> None:
    """A closing branch tested against r/2 never runs (PhasedLSTM-Keras)."""
    k = time_gate(f64(0.3, 0.4, 0.5, 0.6), f64(0.6))
    torch.testing.assert_close(k, f64(1.0, 2 / 3, 1 / 3, 0.0), rtol=0, atol=4e-16)


@ALL
def test_oracle_agrees(oscillation: str) -> None:
    values = operands("lstm", hidden=9, shared=True, steps=50)
    gate = [values[name].detach() for name in ("period", "shift", "ratio_on")]
    times = values["times"].detach()
    k = time_gate(phase(times, *gate[:2]), gate[2], leak=0.03, oscillation=oscillation)
    wanted = [[oracle.openness(t, *unit, 0.03, oscillation) for unit in zip(*gate, strict=True)] for t in times]
    # Absolute phase error of 1e-14 (times up to 60, periods from 2) through a slope of at most pi / 0.3.
    torch.testing.assert_close(k, f64(*(v.item() for row in wanted for v in row)).view(50, 9), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "base",
    [0, -1000, 1_700_000_000, 1_700_000_000_000_000, 2**53 - 20, 2**53 + 1, 1_700_000_000_000_000_000, -(2**62)],
    ids=["zero", "negative", "seconds", "microseconds", "to 2^53", "from 2^53", "nanoseconds", "-2^62"],
)
def test_integer_times_are_exact(base: int) -> None:
    steps = torch.tensor([0, 1, 2, 3, 7, 11, 13, 101, 997, 65537, 1_000_003])
    period = f64(1.0, 3.0, 37.7, math.exp(6.0), 1e9 / 3, 0.1)
    shift = f64(0.0, -0.7, 12.3, 1e5 / 7, -1e9, 0.03)
    assert_exact_phases(steps + base, period, shift)


@given(time=st.integers(-(2**62), 2**62), period=st.floats(1e-3, 1e12), shift=st.floats(-1e12, 1e12))
def test_any_int64_time_is_exact(time: int, period: float, shift: float) -> None:
    assert_exact_phases(torch.tensor([time]), f64(period), f64(shift))


@given(time=st.floats(-1e15, 1e15), period=st.floats(1e-3, 1e12), shift=st.floats(-1e12, 1e12))
def test_any_float64_time_is_exact(time: float, period: float, shift: float) -> None:
    assert_exact_phases(f64(time), f64(period), f64(shift))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float64])
def test_time_dtypes_agree(dtype: torch.dtype) -> None:
    times = torch.tensor([-16_777_215, -3, 0, 5, 16_777_215])
    period, shift = f64(37.7, 2.5), f64(1.25, -300.0)
    assert torch.equal(phase(times.to(dtype), period, shift), phase(times, period, shift))


def test_float32_parameters_at_unix_seconds_are_not_rounded_first() -> None:
    """In float32 the phase of a unix second is noise: 160 % of the mean gate at 1e8 (paper, bug 10)."""
    assert_exact_phases(torch.arange(1_700_000_000, 1_700_000_050), torch.tensor([37.7, 3.1]), torch.tensor([0.5, 9.0]))


def closed_forms(times: Tensor, values: dict[str, Tensor], leak: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of the triangle as section 1 of the paper's notes gives them, for times (L, 1)."""
    tau, s, r = values["period"], values["shift"], values["ratio_on"]
    phi = torch.remainder(times - s, tau) / tau
    opening, closing = phi < r / 2, (phi >= r / 2) & (phi < r)
    m = torch.where(opening, 2 / r, torch.where(closing, -2 / r, torch.full_like(phi, leak)))
    along_r = torch.where(opening, -2 * phi / r**2, torch.where(closing, 2 * phi / r**2, torch.zeros_like(phi)))
    return phi, {"times": m / tau, "shift": -m / tau, "period": -m * (times - s) / tau**2, "ratio_on": along_r}


@pytest.mark.parametrize("leak", [0.0, 0.001, 0.3])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_gradients_match_the_closed_forms(leak: float, offset: float) -> None:
    drawn = operands("lstm", hidden=5, shared=True, steps=40)
    values = {name: drawn[name].detach().requires_grad_() for name in ("times", "period", "shift", "ratio_on")}
    with torch.no_grad():
        # Far away by whole cycles of every unit, and on a grid on which the closed form's t - s is exact.
        values["period"].copy_(values["period"].round())
        values["shift"].mul_(1024).round_().div_(1024)
        values["times"].mul_(1024).round_().div_(1024).add_(offset * 2520)
    phi, wanted = closed_forms(values["times"].detach().unsqueeze(1), {k: v.detach() for k, v in values.items()}, leak)
    weights = torch.randn(phi.shape, dtype=torch.float64)
    k = time_gate(phase(values["times"], values["period"], values["shift"]), values["ratio_on"], leak=leak)
    (k * weights).sum().backward()
    for name, derivative in wanted.items():
        along = 1 if name == "times" else 0
        # Sums of 40 terms of magnitude |m t / tau^2|, each rounded.
        scale = (derivative * weights).abs().sum(along)
        error = (values[name].grad - (derivative * weights).sum(along)).abs()
        assert (error <= 1e-13 * scale).all(), name


def test_period_gradient_keeps_the_floor_term() -> None:
    """t = 1000, s = 0.7, tau = 3: dphi/dtau is -111.03; without the floor term it would be -0.033."""
    period = f64(3.0).requires_grad_()
    phi = phase(f64(1000.0), period, f64(0.7))
    (slope,) = torch.autograd.grad(phi.sum(), period, retain_graph=True)
    assert slope.item() == pytest.approx(-999.3 / 9, rel=1e-12)
    (slope,) = torch.autograd.grad(time_gate(phi, f64(0.5)).sum(), period)
    assert slope.item() == pytest.approx(-4 * 999.3 / 9, rel=1e-12)


@ALL
@pytest.mark.parametrize("leak", [0.0, 0.05])
def test_gradcheck(oscillation: str, leak: float) -> None:
    drawn = operands("lstm", hidden=4, shared=True, steps=6)
    arguments = tuple(drawn[name] for name in ("times", "period", "shift", "ratio_on"))

    def openness(times: Tensor, period: Tensor, shift: Tensor, ratio_on: Tensor) -> Tensor:
        return time_gate(phase(times, period, shift), ratio_on, leak=leak, oscillation=oscillation)

    assert torch.autograd.gradcheck(openness, arguments)
    assert torch.autograd.gradgradcheck(openness, arguments)


@given(
    delta=st.integers(-(10**15), 10**15),
    times=st.lists(st.integers(-(10**9), 10**9), min_size=1, max_size=5),
    shift=st.integers(-(10**6), 10**6),
)
def test_shifting_time_and_shift_together_changes_nothing(delta: int, times: list[int], shift: int) -> None:
    period = f64(2.7, 31.0, 4096.5)
    here = phase(torch.tensor(times), period, f64(shift).expand(3))
    there = phase(torch.tensor(times) + delta, period, f64(shift + delta).expand(3))
    apart = (here - there).abs()
    assert (torch.minimum(apart, 1 - apart) <= 2 * PHASE_TOLERANCE).all()


@given(exponent=st.integers(-40, 40), times=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5))
def test_scaling_time_period_and_shift_by_a_power_of_two_changes_no_bit(exponent: int, times: list[float]) -> None:
    scale = 2.0**exponent
    period, shift, stamps = f64(2.7, 31.0), f64(-4.5, 100.0), f64(*times)
    # Subnormal times lose bits when scaled down.
    stamps = torch.where(stamps.abs() < 1e-200, torch.zeros_like(stamps), stamps)
    assert torch.equal(phase(stamps * scale, period * scale, shift * scale), phase(stamps, period, shift))


@given(scale=st.floats(1e-6, 1e6), time=st.floats(-1e4, 1e4))
def test_scaling_time_period_and_shift_changes_nothing(scale: float, time: float) -> None:
    period, shift = f64(2.7, 31.0), f64(-4.5, 100.0)
    here = phase(f64(time), period, shift)
    there = phase(f64(time) * scale, period * scale, shift * scale)
    apart = (here - there).abs()
    # Scaling rounds the time and the period: up to 1e4 / 2.7 cycles, each off by a rounding.
    assert (torch.minimum(apart, 1 - apart) <= 4 * 2.0**-53 * (1e4 / 2.7 + 40)).all()


def test_gate_module_agrees_with_its_parts() -> None:
    gate = TimeGate(6, ratio_on=0.3, leak=0.1, dtype=torch.float64).assign_(origin=100)
    times = torch.arange(90, 140)
    wanted = time_gate(phase(times - 100, gate.period, gate.shift), gate.ratio_on, leak=0.1)
    assert torch.equal(gate(times), wanted)
    assert torch.equal(gate.phase(times.double()), phase(times - 100, gate.period, gate.shift))
