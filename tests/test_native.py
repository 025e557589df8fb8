"""The native kernels against the reference: every case, every gradient, every instruction set, bit for bit again."""

from __future__ import annotations

import itertools
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import phased_lstm
from phased_lstm import PhasedLSTM, TimeGate, functional
from phased_lstm._checks import OSCILLATIONS
from phased_lstm.ops import native, reference, registry

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=f"native kernels: {native.missing()}")

BATCHES = {"rows": (5, 37, 3, 13), "panel": (70, 11, 2, 9), "one": (1, 50, 4, 20), "wide": (9, 6, 33, 35)}
BATCHES["few"] = (3, 13, 33, 35)
TOLERANCES = {torch.float32: (2e-6, 2e-5), torch.float64: (1e-14, 1e-13)}


def leaves(lstm: bool, sizes: tuple[int, int, int, int], shared: bool, peephole: bool) -> list[Tensor]:
    """Operands in float64, with gate values that float32 holds exactly."""
    batch, steps, inputs, hidden = sizes
    gates = 4 if lstm else 3

    def normal(*shape: int) -> Tensor:
        return 0.5 * torch.randn(*shape, dtype=torch.float64)

    states = [normal(batch, hidden) for _ in range(2 if lstm else 1)]
    weights = [normal(gates * hidden, inputs), normal(gates * hidden, hidden)]
    biases = [normal(gates * hidden) for _ in range(1 if lstm else 2)]
    times = torch.rand((steps,) if shared else (batch, steps), dtype=torch.float64) * 60 - 20
    gate = [torch.rand(hidden) * 8 + 1, torch.rand(hidden) * 5 - 2, torch.rand(hidden) * 0.5 + 0.1]
    peepholes = [normal(3, hidden)] if peephole else []
    return [normal(batch, steps, inputs), times, *states, *weights, *biases, *(g.double() for g in gate), *peepholes]


def run(module: Any, values: list[Tensor], lstm: bool, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and all gradients of a fixed random projection of them."""
    values = [value.detach().requires_grad_() for value in values]
    if lstm:
        results = module.phased_lstm(*values[:10], peephole=values[10] if len(values) > 10 else None, **options)
    else:
        results = module.phased_gru(*values, **options)
    outputs = [result for result in results if result is not None]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs]
    loss = sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))
    return outputs, list(torch.autograd.grad(loss, values, materialize_grads=True))


def assert_near(got: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for index, (a, b) in enumerate(zip(got, wanted, strict=True)):
        scale = b.abs().max().clamp(min=1e-3)
        error = (a.double() - b.double()).abs().max() / scale
        assert error <= tolerance, (index, float(error))


def cases() -> Iterator[tuple[Any, ...]]:
    """A covering sample of all combinations: each value of each option meets each of the others."""
    grid = itertools.product(
        (True, False), (False, True), OSCILLATIONS, (0.0, 0.1), (False, True), (False, True), (False, True),
        (False, True), BATCHES,
    )  # fmt: skip
    for number, case in enumerate(grid):
        if (case[0] or not case[1]) and number % 7 == 0:
            yield case


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_agrees_with_the_reference(case: tuple[Any, ...], dtype: torch.dtype) -> None:
    lstm, peephole, oscillation, leak, some_lengths, reverse, shared, return_sequence, name = case
    sizes = BATCHES[name]
    values = leaves(lstm, sizes, shared, peephole)
    lengths = torch.arange(sizes[0]) * 7 % (sizes[1] + 1) if some_lengths else None
    options = {
        "leak": leak, "oscillation": oscillation, "lengths": lengths, "reverse": reverse,
        "return_sequence": return_sequence,
    }  # fmt: skip
    wanted, wanted_gradients = run(reference, values, lstm, **options)
    # Times stay in float64, as they do in a layer.
    cast = [value if index == 1 else value.to(dtype) for index, value in enumerate(values)]
    got, gradients = run(native, cast, lstm, **options)
    in_outputs, in_gradients = TOLERANCES[dtype]
    assert_near(got, wanted, in_outputs)
    assert_near(gradients, wanted_gradients, in_gradients)


PLAIN: dict[str, Any] = {
    "leak": 0.0, "oscillation": "triangle", "lengths": None, "reverse": False, "return_sequence": True,
}  # fmt: skip


def test_long_sequences_stay_accurate() -> None:
    values = leaves(True, (3, 10_000, 2, 17), False, False)
    values[1] = values[1] * 300
    values[9] = torch.full_like(values[9], 0.05).float().double()
    wanted, wanted_gradients = run(reference, values, True, **PLAIN)
    got, gradients = run(native, [v if i == 1 else v.float() for i, v in enumerate(values)], True, **PLAIN)
    assert_near(got, wanted, 2e-6)
    assert_near(gradients, wanted_gradients, 2e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("lstm", [True, False])
def test_the_same_bits_from_run_to_run_and_for_any_number_of_threads(lstm: bool, shared: bool) -> None:
    values = [v.float() for v in leaves(lstm, (70, 40, 3, 21), shared, False)]
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(run(native, values, lstm, **PLAIN))
    finally:
        torch.set_num_threads(1)
    for outputs, gradients in results[1:]:
        for a, b in zip(results[0][0] + results[0][1], outputs + gradients, strict=True):
            assert torch.equal(a, b)


def in_a_process_with(isa: str, script: str) -> str:
    """Run a script on an instruction set, which is chosen once in a process; return what it prints."""
    script = f"from phased_lstm.ops import native\nassert native.instruction_set() == {isa!r}\n" + script
    environment = os.environ | {"PHASED_LSTM_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    if f"PHASED_LSTM_ISA={isa} is not available here" in result.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_code_of_an_instruction_set_stays_in_its_kernels() -> None:
    """Elsewhere, in what runs on loading or in a function that sources share, it ends the process on older CPUs."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the instruction sets are those of x86-64")
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(*Path(phased_lstm.__file__).parent.glob("_native*.so"))]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = re.findall(r"^[0-9a-f]+ <(.+)>:\n((?:.+\n)+)", code, re.MULTILINE)
    # VEX and EVEX, that is AVX and later, are what has a "v" in front. Clones are a source's own.
    newer = [name for name, body in functions if re.search(r":\tv[a-z]", body)]
    assert newer
    assert [name for name in newer if "(anonymous namespace)" not in name and "[clone " not in name] == []


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    script = (
        "import torch, test_native as t\n"
        "from phased_lstm.ops import native, reference\n"
        "torch.manual_seed(0)\n"
        "for lstm in (True, False):\n"
        "    for name, sizes in t.BATCHES.items():\n"
        "        for shared in (True, False):\n"
        "            values = t.leaves(lstm, sizes, shared, lstm)\n"
        "            wanted = t.run(reference, values, lstm, **t.PLAIN)\n"
        "            cast = [v if i == 1 else v.float() for i, v in enumerate(values)]\n"
        "            got = t.run(native, cast, lstm, **t.PLAIN)\n"
        "            t.assert_near(got[0], wanted[0], 2e-6)\n"
        "            t.assert_near(got[1], wanted[1], 2e-5)\n"
    )
    in_a_process_with(isa, script)


@pytest.mark.parametrize("shared", [False, True])
def test_a_nan_stays_in_its_row(shared: bool) -> None:
    values = [v.float() for v in leaves(True, (6, 20, 3, 8), shared, False)]
    clean, _ = run(native, values, True, **PLAIN)
    values[0][2, 5] = float("nan")
    dirty, gradients = run(native, values, True, **PLAIN)
    others = [0, 1, 3, 4, 5]
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a[others], b[others])
    assert dirty[0][2].isnan().any()
    assert not gradients[0][others].isnan().any()


@pytest.mark.parametrize("shared", [False, True])
def test_nan_in_padding_is_ignored(shared: bool) -> None:
    values = [v.float() for v in leaves(True, (6, 20, 3, 8), shared, False)]
    lengths = torch.tensor([20, 0, 7, 19, 1, 12])
    options = PLAIN | {"lengths": lengths}
    clean = run(native, values, True, **options)
    for row, length in enumerate(lengths):
        values[0][row, length:] = float("nan")
    dirty = run(native, values, True, **options)
    for a, b in zip(clean[0] + clean[1], dirty[0] + dirty[1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shared", [False, True])
def test_a_nan_before_padding_leaves_zeros_in_it(shared: bool) -> None:
    """The row beside is longer, so that a panel goes on after this one has ended."""
    values = [v.float() for v in leaves(True, (6, 20, 3, 8), shared, False)]
    values[0][2, 3] = float("nan")
    for leak in (0.0, 0.1):
        options = PLAIN | {"lengths": torch.tensor([20, 0, 7, 19, 1, 12]), "leak": leak}
        _, gradients = run(native, values, True, **options)
        assert gradients[0][2, :7].isnan().any()
        assert not gradients[0][2, 7:].any()


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("leak", [0.0, 0.1])
@pytest.mark.parametrize("oscillation", OSCILLATIONS)
def test_rounding_carries_no_phase_over_the_ratio(batch: int, shared: bool, leak: float, oscillation: str) -> None:
    """A gate jumps there: what is open, or closed, by a hair stays so in float32."""
    phases = [1 - 1e-9, 0.5 - 1e-9, 0.3 + 1e-9, 0.3 - 1e-9]
    values = leaves(True, (batch, 1, 3, len(phases)), shared, False)
    values[1].fill_(0.0)
    values[7], values[8] = torch.ones(4, dtype=torch.float64), -torch.tensor(phases, dtype=torch.float64)
    values[9] = torch.tensor([1.0, 0.5, 0.3, 0.3], dtype=torch.float64)
    options = PLAIN | {"leak": leak, "oscillation": oscillation}
    # Times and the gate are float64 in either.
    narrow = [v if i in (1, 7, 8, 9) else v.float() for i, v in enumerate(values)]
    found, gradients = run(native, narrow, True, **options)
    rounded = [v if i in (1, 7, 8, 9) else v.float().double() for i, v in enumerate(values)]
    wanted, wanted_gradients = run(reference, rounded, True, **options)
    assert_near(found, wanted, 2e-6)
    # The other shapes are all but 0 there, and so are gradients through them: rounding is all that is left.
    if oscillation == "square":
        assert_near(gradients, wanted_gradients, 2e-5)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("reverse", [False, True])
def test_units_that_never_open_get_zero_gradients_and_keep_their_state(rows: int, reverse: bool) -> None:
    values = [v.float() for v in leaves(True, (rows, 10, 3, 8), False, False)]
    values[1] = torch.full((rows, 10), 5.0, dtype=torch.float64)
    values[7], values[8], values[9] = torch.full((8,), 10.0), torch.zeros(8), torch.full((8,), 0.1)
    (output, h_n, c_n), gradients = run(native, values, True, **PLAIN | {"reverse": reverse})
    assert torch.equal(h_n, values[2])
    assert torch.equal(c_n, values[3])
    assert torch.equal(output, values[2].unsqueeze(1).expand_as(output))
    for index in (0, 4, 5, 6, 7, 8, 9):
        assert not gradients[index].any()


def events_of(times: Tensor, gate: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """The phases (N, L, H) that the forward pass of a GRU finds for its events, as float64; -1 where there is none."""
    (batch, steps), units = times.shape, len(gate[0])
    weights = (torch.zeros(3 * units, 1, dtype=dtype), torch.zeros(3 * units, units, dtype=dtype), None, None, None)
    *_, offsets, of_event, phases = torch.ops.phased_lstm.layer(
        torch.zeros(batch, steps, 1, dtype=dtype), times, None, torch.zeros(batch, units, dtype=dtype), None, *weights,
        *gate, 0.0, 0, False, False, True,
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
        "import torch, test_native as t\n"
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
    in_a_process_with(isa, "import test_native as t\nt.assert_closed_candidates_are_left_out()\n")


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_events_of_wide_layers_are_those_of_the_reference(isa: str) -> None:
    """The more units, the fewer steps are searched at once."""
    script = (
        "import torch, test_native as t\n"
        "torch.manual_seed(0)\n"
        "for units in (1, 300, 700, 2100):\n"
        "    t.assert_events_are_those_of_the_reference(1e3, True, units=units)\n"
    )
    in_a_process_with(isa, script)


def test_nanoseconds_beyond_float64_agree_with_the_reference() -> None:
    values = [v.float() for v in leaves(True, (3, 30, 2, 7), False, False)]
    values[1] = 1_700_000_000_000_000_000 + torch.arange(90).reshape(3, 30) * 3
    out = [m.phased_lstm(*values, peephole=None, **PLAIN)[0] for m in (reference, native)]
    torch.testing.assert_close(out[1], out[0], rtol=2e-6, atol=1e-6)


def test_gradcheck_and_double_backward() -> None:
    values = [v.requires_grad_() for v in leaves(True, (2, 4, 2, 3), False, True)]

    def f(*operands: Tensor) -> tuple[Tensor, ...]:
        return native.phased_lstm(*operands[:10], peephole=operands[10], **PLAIN | {"oscillation": "cosine"})

    assert torch.autograd.gradcheck(f, values)
    assert torch.autograd.gradgradcheck(f, values)


def test_strided_and_misaligned_tensors() -> None:
    values = [v.float() for v in leaves(True, (4, 12, 3, 8), False, False)]
    wanted = run(native, values, True, **PLAIN)
    strided = [torch.stack([v, v], -1)[..., 0] for v in values]
    shifted = [torch.cat([v.new_zeros(1), v.flatten()])[1:].reshape(v.shape) for v in values]
    for other in (strided, shifted):
        got = run(native, other, True, **PLAIN)
        for a, b in zip(wanted[0] + wanted[1], got[0] + got[1], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(
    ("ratio", "period", "time", "dtype"),
    [(0.18, 100.0, 9.0, torch.float64), (0.36, 50.0, 9.0, torch.float64), (0.42, 100.0, 21.0, torch.float32)],
)
def test_the_gate_turns_exactly_at_half_the_ratio(
    ratio: float, period: float, time: float, dtype: torch.dtype, rows: int
) -> None:
    """There k is on its way down, and its slope is negative, in the reference as here."""
    slopes = {}
    for backend in ("native", "reference"):
        shift = torch.zeros(1, dtype=dtype, requires_grad=True)
        one, none = torch.ones(rows, 1, 1, dtype=dtype), torch.zeros(rows, 1, dtype=dtype)
        weight = torch.ones(4, 1, dtype=dtype)
        gate = (torch.full((1,), period, dtype=dtype), shift, torch.full((1,), ratio, dtype=dtype))
        times = torch.full((rows, 1), time, dtype=torch.float64)
        _, h_n, _ = functional.phased_lstm(one, times, none, none, weight, weight, None, *gate, backend=backend)
        h_n.sum().backward()
        slopes[backend] = shift.grad.item()
    assert slopes["native"] == pytest.approx(slopes["reference"], rel=1e-5)


@pytest.mark.parametrize("lstm", [True, False])
def test_the_raw_operators_take_strided_tensors(lstm: bool) -> None:
    """A program that torch.export made calls them as they are."""

    def strided(operands: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(torch.stack([v, v], -1)[..., 0] if isinstance(v, Tensor) else v for v in operands)

    x, times, h0, *rest = leaves(lstm, (5, 6, 3, 4), False, lstm)
    c0, *weights = rest if lstm else (None, *rest)
    bias_hh = None if lstm else weights.pop(3)
    peephole = weights[6] if lstm else None
    operands = (x, times, torch.tensor([6, 0, 3, 5, 1]), h0, c0, *weights[:3], bias_hh, peephole, *weights[3:6])
    operands = tuple(None if v is None else v.detach() for v in operands)
    options = (0.0, 0, False)
    wanted = torch.ops.phased_lstm.layer(*operands, *options, True, True)
    got = torch.ops.phased_lstm.layer(*strided(operands), *options, True, True)
    output, h_n, c_n, *taped = wanted
    gradients = (torch.randn_like(output), torch.randn_like(h_n), torch.randn_like(c_n) if lstm else None)
    way_back = (*operands[:3], *operands[5:], *options, h_n, *taped, *gradients)
    wanted += torch.ops.phased_lstm.layer_backward(*way_back, True, True)
    got += torch.ops.phased_lstm.layer_backward(*strided(way_back), True, True)
    assert [name for name, (a, b) in enumerate(zip(got, wanted, strict=True)) if not torch.equal(a, b)] == []


def raw_call(name: str) -> Any:
    """Call a raw operator with one argument out of bounds."""
    x, h = torch.randn(2, 3, 4), torch.zeros(2, 5)
    weights = (torch.randn(20, 4), torch.randn(20, 5), None, None, None)
    one = torch.ones(5, dtype=torch.float64)
    gate, times = (one, one, one * 0.1), torch.zeros(2, 3, dtype=torch.float64)
    tail = (0.0, 0, False)
    none = (torch.zeros(2, 4, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0))
    few = (torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]), torch.tensor([4], dtype=torch.int32), torch.zeros(1))
    twice = (torch.tensor([[0, 2, 2, 2], [2, 2, 2, 2]]), torch.tensor([3, 3], dtype=torch.int32), torch.zeros(2))
    fall = (torch.tensor([[0, 2, 2, 4], [4, 4, 4, 4]]), torch.tensor([1, 3, 2, 1], dtype=torch.int32), torch.zeros(4))
    apart = torch.tensor([[0, 1, 1, 1], [2, 2, 2, 2]])
    ops = torch.ops.phased_lstm

    def forward(x=x, times=times, lengths=None, h=h, weights=weights, gate=gate, tail=tail) -> Any:
        return ops.layer(x, times, lengths, h, h, *weights, *gate, *tail, True, True)

    def backward(events: Any, tape: int) -> Any:
        return ops.layer_backward(
            x, times, None, *weights, *gate, *tail, h, torch.zeros(tape, 6), *events, None, h, h, False, True
        )

    calls = {
        "times of rank 3": lambda: forward(times=times.unsqueeze(0)),
        "times of another length": lambda: forward(times=times[:, :2].contiguous()),
        "times that are infinite": lambda: forward(times=times / 0.0),
        "input of rank 2": lambda: forward(x=x[0]),
        "input of integers": lambda: forward(x=x.long()),
        "input of too many features": lambda: ops.layer(
            torch.empty(4, 1, 1 << 26),
            torch.zeros(4, 1, dtype=torch.float64),
            None,
            torch.zeros(4, 1),
            None,
            torch.empty(3, 1 << 26),
            torch.zeros(3, 1),
            None,
            None,
            None,
            one[:1],
            one[:1],
            one[:1],
            *tail,
            True,
            True,
        ),
        "input of another dtype": lambda: forward(x=x.double()),
        "period of zero": lambda: forward(gate=(one * 0, one, one)),
        "too few periods": lambda: forward(gate=(one[:4], one, one)),
        "state of another batch": lambda: forward(h=h[:1]),
        "length out of range": lambda: forward(lengths=torch.tensor([4, 1])),
        "unknown oscillation": lambda: forward(tail=(0.0, 3, False)),
        "unit out of range": lambda: backward((few[0], few[1] + 1, few[2]), 1),
        "offsets beyond the events": lambda: backward((few[0] * 2, *few[1:]), 1),
        "offsets that fall": lambda: backward((torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1]]), *few[1:]), 1),
        "an offset of -2**63": lambda: backward((torch.tensor([[0, 1, -(2**63), 1], [1, 1, 1, 1]]), *few[1:]), 1),
        "a unit twice in a step": lambda: backward(twice, 2),
        "units that fall within a step": lambda: backward(
            (twice[0], torch.tensor([3, 2], dtype=torch.int32), twice[2]), 2
        ),
        "units that fall within a step, and between": lambda: backward(fall, 4),
        "offsets of two rows that do not meet": lambda: backward((apart, *twice[1:]), 2),
        "phases of another number": lambda: backward((*few[:2], torch.zeros(3)), 1),
        "tape of another size": lambda: backward(none, 3),
        "step of rank 3": lambda: ops.step(x, 0.0, h, h, *weights, *gate, 0),
        "step at no time": lambda: ops.step(x[:, 0].contiguous(), math.nan, h, h, *weights, *gate, 0),
        "step from another state": lambda: ops.step(x[0, 0], 0.0, h, h, *weights, *gate, 0),
    }
    return calls[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("times of rank 3", r"times should be \(L,\) or \(N, L\)"),
        ("times of another length", r"times should be \(L,\) or \(N, L\)"),
        ("times that are infinite", "times should be finite"),
        ("input of rank 2", r"input should be \(N, L, I\)"),
        ("input of integers", "input should be float32 or float64"),
        ("input of too many features", "a step should have fewer than 67108864 features, got 67108864"),
        ("input of another dtype", "weight_ih has the wrong dtype"),
        ("period of zero", "unit 0: period should be positive"),
        ("too few periods", "period: size 4 in dimension 0, expected 5"),
        ("state of another batch", "h0: size 1 in dimension 0, expected 2"),
        ("length out of range", "lengths should be from 0 to L"),
        ("unknown oscillation", "unknown oscillation"),
        ("unit out of range", "units should be from 0 to H - 1"),
        ("offsets beyond the events", "offsets should span all events"),
        ("offsets that fall", "offsets should rise by at most H a step"),
        ("an offset of -2**63", "offsets should rise by at most H a step"),
        ("a unit twice in a step", "units should rise within a step"),
        ("units that fall within a step", "units should rise within a step"),
        ("units that fall within a step, and between", "units should rise within a step"),
        ("offsets of two rows that do not meet", "offsets should rise by at most H a step"),
        ("phases of another number", "phases: size 3 in dimension 0, expected 1"),
        ("tape of another size", "tape: size 3 in dimension 0, expected 0"),
        ("step of rank 3", r"for a step \(N, I\) or \(I\)"),
        ("step at no time", "times should be finite"),
        ("step from another state", "h has the wrong number of dimensions"),
    ],
)
def test_operators_check_their_arguments(name: str, message: str) -> None:
    """Whatever is handed to the raw operators is an error, not a read past an array."""
    with pytest.raises(RuntimeError, match=message):
        raw_call(name)()


def test_units_may_fall_or_repeat_from_step_to_step() -> None:
    """With empty steps between, and from row to row. What is refused next is the tape, which is of other events."""
    events = (
        torch.tensor([[0, 1, 1, 2], [2, 4, 4, 5]]),
        torch.tensor([3, 3, 1, 4, 0], dtype=torch.int32),
        torch.zeros(5),
    )
    one = torch.ones(5, dtype=torch.float64)
    weights, h = (torch.zeros(20, 4), torch.zeros(20, 5), None, None, None), torch.zeros(2, 5)
    with pytest.raises(RuntimeError, match="tape: size 2 in dimension 0, expected 5"):
        torch.ops.phased_lstm.layer_backward(
            torch.zeros(2, 3, 4), torch.zeros(2, 3).double(), None, *weights, one, one, one, 0.0, 0, False, h,
            torch.zeros(2, 6), *events, None, h, h, False, True,
        )  # fmt: skip


def test_auto_takes_the_native_backend_where_it_serves() -> None:
    x = torch.randn(2, 3, 4)
    assert registry.select("auto", x, 0.0).name == "native"
    assert registry.select("auto", x.to("meta"), 0.0).name == "reference"
    with pytest.raises(ValueError, match="backend 'native' cannot serve this call: the input is on meta"):
        registry.select("native", x.to("meta"), 0.0)
    seen = []
    torch.vmap(lambda row: seen.append(registry.select("auto", row, 0.0).name) or row)(x)
    assert seen == ["reference"]


def test_steps_too_wide_for_the_native_backend_are_left_to_the_reference() -> None:
    """From as many features on as the operators refuse; see the raw calls."""
    for features, name in ((1 << 26, "reference"), ((1 << 26) - 1, "native")):
        assert registry.select("auto", torch.empty(2, 1, features), 0.0).name == name


def test_a_missing_library_is_said_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_REASON", "it was not compiled")
    assert registry.backends()["native"] == (False, "it was not compiled")
    monkeypatch.setattr(registry, "_warned", False)
    x = torch.randn(2, 3, 4)
    with pytest.warns(
        UserWarning, match="without its native kernels, on the slower reference backend: it was not"
    ) as caught:
        assert [registry.select("auto", x, 0.0).name for _ in range(3)] == ["reference"] * 3
    assert len(caught) == 1
    with pytest.raises(ImportError, match="backend 'native' is not available: it was not compiled"):
        PhasedLSTM(3, 4, backend="native")


def test_functional_by_name() -> None:
    values = [v.float() for v in leaves(True, (2, 5, 3, 4), False, False)]
    got = functional.phased_lstm(*values, backend="native")
    wanted = functional.phased_lstm(*values, backend="reference")
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)
