"""The open events that the native kernels find: those of the reference, at any scale of time."""

from __future__ import annotations

import pytest
import torch
from test_native import in_a_process_with
from torch import Tensor

from phased_lstm import PhasedLSTM, TimeGate
from phased_lstm.ops import native

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=f"native kernels: {native.missing()}")


def events_of(times: Tensor, gate: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """The phases (N, L, H) that the forward pass of a GRU finds for its events, as float64; -1 where there is none."""
    (batch, steps), units = times.shape, len(gate[0])
    weights = (torch.zeros(3 * units, 1, dtype=dtype), torch.zeros(3 * units, units, dtype=dtype), None, None, None)
    *_, offsets, of_event, phases = torch.ops.phased_lstm.layer(
        torch.zeros(batch, steps, 1, dtype=dtype), times, None, torch.zeros(batch, units, dtype=dtype), None, *weights,
        *gate, 0.0, 0, False, False, True, False,
    )  # fmt: skip
    found = torch.full((batch * steps, units), -1.0, dtype=torch.float64)
    of_step = torch.arange(batch * steps).repeat_interleave(offsets.diff(dim=1).flatten())
    found[of_step, of_event.long()] = phases.double()
    return found.view(batch, steps, units)


def assert_events_are_those_of_the_reference(
    scale: float, ordered: bool, unit_of_time: float = 1.0, units: int = 33
) -> None:
    """For times of that size; a unit of time that is a power of two changes no phase."""
    gate = TimeGate(units, ratio_on=0.2, dtype=torch.float64)
    times = torch.randn(2, 200, dtype=torch.float64) * scale
    times = times.sort(-1).values if ordered else times
    values = tuple(v.detach() for v in (gate.period * unit_of_time, gate.shift * unit_of_time, gate.ratio_on))
    wanted = gate.phase(times)
    clear = (wanted - 0.2).abs() > 1e-9
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-7)):
        found = events_of(times * unit_of_time, values, dtype)
        torch.testing.assert_close(found[clear], torch.where(wanted < 0.2, wanted, -1.0)[clear], rtol=0, atol=tolerance)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_events_are_those_of_the_reference_at_any_scale_of_time(isa: str) -> None:
    script = (
        "import torch, test_native_events as t\n"
        "torch.manual_seed(0)\n"
        "for ordered in (False, True):\n"
        "    for scale in (1e-3, 1.0, 1e3, 1e6, 1e9, 1e15, 1e30, 2.0**70):\n"
        "        t.assert_events_are_those_of_the_reference(scale, ordered)\n"
        "    for power in (-900, -140, -100, 100, 140, 900):\n"
        "        t.assert_events_are_those_of_the_reference(1e3, ordered, 2.0**power)\n"
        "        t.assert_events_are_those_of_the_reference(1e7, ordered, 2.0**power)\n"
    )
    in_a_process_with(isa, script)


def assert_closed_candidates_are_left_out() -> None:
    """Phases that single precision cannot tell from the ratio: every other time is open by 2**-40, or closed."""
    gate = tuple(torch.full((21,), value, dtype=torch.float64) for value in (1.0, 0.0, 0.25))
    edges = torch.arange(400, dtype=torch.float64) % 7 + 0.25
    for sign in (-1, 1):
        closed = torch.arange(400) % 2 == (0 if sign > 0 else 1)
        found = events_of((edges + torch.where(closed, 1, -1) * 2.0**-40).expand(3, 400), gate, torch.float32)
        wanted = torch.where(closed, -1.0, 0.25).unsqueeze(-1).expand(3, 400, 21).double()
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)
    # Two in three times are no float64, and need exact arithmetic. One of them is before the ratio.
    times = 2**58 + 65 * (torch.arange(400) % 3 - 1) + torch.arange(400) % 4 * 2**60
    gate = tuple(torch.full((21,), value, dtype=torch.float64) for value in (2.0**60, 0.0, 0.25))
    found = events_of(times.expand(3, 400), gate, torch.float32)
    wanted = torch.where(torch.arange(400) % 3 == 0, 0.25, -1.0).unsqueeze(-1).expand(3, 400, 21).double()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_candidates_that_are_not_open_are_left_out(isa: str) -> None:
    in_a_process_with(isa, "import test_native_events as t\nt.assert_closed_candidates_are_left_out()\n")


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_events_of_wide_layers_are_those_of_the_reference(isa: str) -> None:
    """The more units, the fewer steps are searched at once."""
    script = (
        "import torch, test_native_events as t\n"
        "torch.manual_seed(0)\n"
        "for units in (1, 300, 700, 2100):\n"
        "    t.assert_events_are_those_of_the_reference(1e3, True, units=units)\n"
    )
    in_a_process_with(isa, script)


def assert_events_of_groups_are_those_of_the_reference(
    times: Tensor, units: int = 33, reverse: bool = False, lengths: Tensor | None = None
) -> None:
    """Four sequences and more go in groups, whose events come by unit << 4 | slot, tick for tick.

    A tick does not tell which step it is of a slot; but the phases of a slot and unit come in the order of its steps.
    """
    (batch, steps), size = times.shape, max(1, min(16, len(times) // 2))
    gate = TimeGate(units, ratio_on=0.2, dtype=torch.float64)
    values = tuple(value.detach() for value in gate.values())
    wanted = gate.phase(times)
    assert bool(((wanted - 0.2).abs() > 1e-9).all())
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-7)):
        weights = (torch.zeros(4 * units, 1, dtype=dtype), torch.zeros(4 * units, units, dtype=dtype), None, None, None)
        h = torch.zeros(batch, units, dtype=dtype)
        *_, offsets, codes, phases = torch.ops.phased_lstm.layer(
            torch.zeros(batch, steps, 1, dtype=dtype), times, lengths, h, h, *weights, *values, 0.0, 0, reverse, False,
            True, False,
        )  # fmt: skip
        assert len(offsets) == -(-batch // size)
        assert (int(offsets[0, 0]), int(offsets[-1, -1])) == (0, len(codes))
        for group, of_group in enumerate(offsets):
            part = slice(of_group[0], of_group[-1])
            rising = codes[part].diff() > 0
            # A tick ends before these.
            rising[of_group[(of_group > of_group[0]) & (of_group < of_group[-1])] - of_group[0] - 1] = True
            assert bool(rising.all())
            for row in range(group * size, min((group + 1) * size, batch)):
                valid = steps if lengths is None else int(lengths[row])
                of_row = wanted[row, :valid].flip(0) if reverse else wanted[row, :valid]
                of_slot = (codes[part] & 15) == row - group * size
                found, unit = phases[part][of_slot].double(), codes[part][of_slot] >> 4
                for u in range(units):
                    opened = of_row[:, u][of_row[:, u] < 0.2]
                    torch.testing.assert_close(found[unit == u], opened, rtol=0, atol=tolerance)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_events_of_groups_are_those_of_the_reference(isa: str) -> None:
    """Sorted times and others, at any scale, in one span or each sequence at a date of its own; blocks of ticks."""
    script = (
        "import torch, test_native_events as t\n"
        "torch.manual_seed(0)\n"
        "check = t.assert_events_of_groups_are_those_of_the_reference\n"
        "for scale in (1e-3, 1e2, 1e6, 1e15):\n"
        "    times = torch.randn(5, 150, dtype=torch.float64) * scale\n"
        "    check(times)\n"
        "    check(times.sort(-1).values, reverse=True)\n"
        "times = torch.rand(21, 400, dtype=torch.float64).sort(-1).values * 400\n"
        "check(times, 9)\n"
        "check(times, 9, True, torch.arange(21) * 20)\n"
        "check(times + torch.arange(21).unsqueeze(1) * 2.0**31, 20)\n"
        "for units in (1, 16, 17, 300):\n"
        "    check(times[:4, :60].contiguous(), units)\n"
    )
    in_a_process_with(isa, script)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_events_of_groups_at_times_that_are_no_float64(isa: str) -> None:
    script = (
        "import torch, test_native_events as t\n"
        "step = torch.arange(300)\n"
        "times = 2**58 + 65 * (step % 3 - 1) + step % 4 * 2**60\n"
        "gate = tuple(torch.full((21,), value, dtype=torch.float64) for value in (2.0**60, 0.0, 0.25))\n"
        "weights = (torch.zeros(84, 1), torch.zeros(84, 21), None, None, None)\n"
        "h = torch.zeros(6, 21)\n"
        "*_, codes, phases = torch.ops.phased_lstm.layer(\n"
        "    torch.zeros(6, 300, 1), times.expand(6, 300), None, h, h, *weights, *gate, 0.0, 0, False, False, True,\n"
        "    False,\n"
        ")\n"
        "assert len(codes) == 6 * 21 * 100\n"
        "assert (codes.view(-1, 21, 3) == (torch.arange(21) * 16).unsqueeze(1) + torch.arange(3)).all()\n"
        "torch.testing.assert_close(phases, torch.full((12600,), 0.25), rtol=0, atol=1e-7)\n"
    )
    in_a_process_with(isa, script)


@pytest.mark.parametrize("kind", ["far apart", "around 2**53", "nanoseconds"])
def test_a_row_has_the_bits_it_has_alone_whatever_the_times_of_others(kind: str) -> None:
    """Some times need exact arithmetic, which rounds a phase in another way than the quick one does."""
    for seed in range(30):
        torch.manual_seed(seed)
        # Of integers, the quotients are small enough, and some times are no float64.
        periods = {"far apart": 2.0, "around 2**53": 100.0, "nanoseconds": 1e4}[kind]
        limits = {"period_init_min": periods, "period_init_max": 50 * periods}
        rnn = PhasedLSTM(2, 21, batch_first=True, dtype=torch.float64, ratio_on=0.3, **limits)
        times: Tensor
        if kind == "far apart":
            times = torch.rand(8, 40, dtype=torch.float64) * 100 + (torch.arange(8) % 4).unsqueeze(1) * 2e15
        elif kind == "around 2**53":
            times = 2**53 - 400 + torch.randint(0, 800, (8, 40)).sort(-1).values
        else:
            # Those of the first row are float64s.
            times = 1_700_000_000_000_000_000 // 256 * 256 + torch.randint(0, 3_000, (8, 40)).sort(-1).values * 256
            times[1:] += torch.randint(0, 256, (7, 40))
        x = torch.randn(8, 40, 2, dtype=torch.float64)
        with torch.no_grad():
            batch = rnn(x, times=times)[0]
            for row in range(8):
                assert torch.equal(rnn(x[row : row + 1], times=times[row : row + 1])[0][0], batch[row])
