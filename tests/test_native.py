"""The native kernels against the reference: every case, every gradient, every instruction set, bit for bit again."""

from __future__ import annotations

import itertools
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
from phased_lstm import PhasedLSTM, functional
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
    # A process draws numbers of its own unless told otherwise.
    begin = f"import torch\nfrom phased_lstm.ops import native\ntorch.manual_seed({torch.initial_seed()})\n"
    script = f"{begin}assert native.instruction_set() == {isa!r}\n{script}"
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
