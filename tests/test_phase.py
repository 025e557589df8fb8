"""The phase, rounded once: against exact fractions, on the reference and on the kernels, at all sizes of times."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from phased_lstm import PhasedLSTM, TimeGate
from phased_lstm.gate import phase
from phased_lstm.ops import native

needs_native = pytest.mark.skipif(bool(native.missing()), reason=f"native kernels: {native.missing()}")
UNITS, STEPS = 8, 24


def uniform(low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=torch.float64)


def whole(low: int, high: int, count: int) -> Tensor:
    return torch.randint(low, high, (count,))


# Times, periods and shifts.
KINDS: dict[str, Any] = {
    "seconds": lambda: (uniform(0, 1000, STEPS), uniform(1, 400, UNITS), uniform(-500, 500, UNITS)),
    "whole numbers": lambda: (whole(-99, 99, STEPS), whole(1, 20, UNITS).double(), whole(-30, 30, UNITS).double()),
    "decimals": lambda: [x.double() / 10 for x in (torch.arange(STEPS), whole(1, 30, UNITS), whole(-30, 30, UNITS))],
    "nanoseconds since 1970": lambda: (
        whole(16 * 10**17, 18 * 10**17, STEPS), uniform(1e9, 1e11, UNITS), uniform(0, 1e9, UNITS)
    ),
    "the largest integers": lambda: (
        whole(2**61, 2**62 - 1, STEPS) * (2 * whole(0, 2, STEPS) - 1), uniform(0.5, 1e3, UNITS), uniform(-9, 9, UNITS)
    ),
    "integers and tiny periods": lambda: (
        whole(-(2**61), 2**61, STEPS), 10.0 ** whole(-25, 0, UNITS).double(), uniform(-1e-3, 1e-3, UNITS)
    ),
    "sentinels": lambda: (uniform(-1, 1, STEPS) * 1e300, uniform(1, 400, UNITS), uniform(-500, 500, UNITS)),
    "the largest times": lambda: (
        torch.tensor([1.0, -1.0, 0.5, 5e-324]).double().repeat(6) * 1.7e308,
        torch.tensor([1e-26, 3e-20, 1e-10, 0.7, 1.0, 3.0, 7e12, 1e26]).double(),
        uniform(-1, 1, UNITS) * 1e20,
    ),
    "tiny times": lambda: (uniform(-1, 1, STEPS) * 1e-300, uniform(1, 9, UNITS), uniform(-1, 1, UNITS) * 1e-300),
    "large shifts": lambda: (uniform(0, 1000, STEPS), uniform(1, 9, UNITS), uniform(-1, 1, UNITS) * 1e25),
}  # fmt: skip
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


def exact_phase(time: float, period: float, shift: float) -> float:
    turns = (Fraction(time) - Fraction(shift)) / Fraction(period)
    nearest = float(turns - math.floor(turns))
    return 0.0 if nearest == 1.0 else nearest


def exact_phases(times: Tensor, period: Tensor, shift: Tensor) -> Tensor:
    gates = list(zip(period.tolist(), shift.tolist(), strict=True))
    return torch.tensor([[exact_phase(time, *gate) for gate in gates] for time in times.tolist()], dtype=torch.float64)


def native_phases(times: Tensor, period: Tensor, shift: Tensor) -> Tensor:
    """Those of units that are always open: at times (L,), or at (N, L) in the order in which kernels visit them."""
    rows = times.dim() == 2
    batch, steps, units = (times.shape[0] if rows else 1), times.shape[-1], len(period)
    weights = torch.zeros(4 * units, 1, dtype=torch.float64), torch.zeros(4 * units, units, dtype=torch.float64)
    *_, found, phases = torch.ops.phased_lstm.layer(
        torch.zeros(batch, steps, 1, dtype=torch.float64), times, None, None, None, *weights, None, None, None,
        period, shift, torch.ones(units, dtype=torch.float64), 0.0, 0, False, False, True, False,
    )  # fmt: skip
    assert len(found) == batch * steps * units
    return phases


@EACH_KIND
def test_reference_is_the_nearest_float(kind: str) -> None:
    for _ in range(5):
        times, period, shift = KINDS[kind]()
        assert torch.equal(phase(times, period, shift), exact_phases(times, period, shift))


@needs_native
@EACH_KIND
@pytest.mark.parametrize("batch", [1, 2, 6])
def test_kernels_give_the_same_phases(kind: str, batch: int) -> None:
    times, period, shift = KINDS[kind]()
    wanted = phase(times, period, shift).flatten()
    if batch == 1:
        assert torch.equal(native_phases(times, period, shift), wanted)
    else:
        # Events of groups come tick by tick, so that they are compared as a whole.
        found = native_phases(times.expand(batch, -1).contiguous(), period, shift)
        assert torch.equal(found.sort().values, wanted.repeat(batch).sort().values)


@pytest.mark.parametrize("kind", ["seconds", "whole numbers", "nanoseconds since 1970", "sentinels", "large shifts"])
def test_first_and_second_derivatives(kind: str) -> None:
    times, period, shift = (value.double() for value in KINDS[kind]())
    times, period, shift = times.requires_grad_(), period.requires_grad_(), shift.requires_grad_()
    found = torch.autograd.grad(phase(times, period, shift).sum(), [times, period, shift], create_graph=True)
    turns = (times.unsqueeze(-1) - shift) / period
    wanted = torch.autograd.grad(turns.sum(), [times, period, shift], create_graph=True)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0.0)
    for mine, theirs in zip(
        torch.autograd.grad(found[1].sum(), [times, period]),
        torch.autograd.grad(wanted[1].sum(), [times, period]), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "reference"])
@pytest.mark.parametrize("step", [0, -1, 1, 64, 48, 47, 49])
@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 1.0), (torch.float64, 1.0), (torch.float64, 5.0 / 6.4)])
def test_a_unit_is_closed_at_the_edge_of_its_opening(backend: str, step: int, dtype: torch.dtype, unit: float) -> None:
    """Open for 16 of 64 steps from step 48 on; or for 10 of 50 from 40 on, and 0.2 has no exact double."""
    large = unit != 1.0
    period, shift, ratio_on, time = (50.0, 40.0, 0.2, round(step * unit)) if large else (64.0, 48.0, 0.25, step)
    rnn = PhasedLSTM(2, 1, batch_first=True, oscillation="square", dtype=dtype, backend=backend)
    rnn.gate_l0.assign_(period=period, shift=shift, ratio_on=ratio_on)
    is_open = (time - shift) % period < (10 if large else 16)
    assert bool(rnn(torch.randn(1, 1, 2, dtype=dtype), times=torch.tensor([time]))[0].any()) == is_open
    assert bool(rnn.gate_l0(torch.tensor([time])).any()) == is_open


def test_openness_of_whole_numbers_counts_them() -> None:
    gate = TimeGate(1, dtype=torch.float64)
    gate.assign_(period=10.0, shift=3.0, ratio_on=0.3)
    assert gate.openness(torch.arange(1000)).fraction.item() == 0.3
