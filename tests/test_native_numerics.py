"""What the native kernels promise of their numbers: errors, the same bits, and values kept from call to call."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from test_layers import flatten
from test_native import PLAIN, TOLERANCES, assert_near, leaves, run
from torch import Tensor

from phased_lstm import PhasedGRU, PhasedGRUCell, PhasedLSTM, PhasedLSTMCell
from phased_lstm.ops import native, reference

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=f"native kernels: {native.missing()}")

PHASED = pytest.mark.parametrize("phased", [PhasedLSTM, PhasedGRU])
OPTIONS: dict[str, Any] = {"batch_first": True, "ratio_on": 0.3, "period_init_min": 2.0, "period_init_max": 9.0}
LARGEST = torch.finfo(torch.float32).max


def squashed(values: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Sigmoid and tanh of each value, as the kernels for rows (batch 1) or panels (batch 4) compute them."""
    sigmoid, tanh = zip(*(squashed_by_units(part, batch) for part in values.split(250)), strict=True)
    return torch.cat(sigmoid).double(), torch.cat(tanh).double()


def squashed_by_units(values: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    units = len(values)
    state, one = torch.zeros(batch, units), torch.ones(units, dtype=torch.float64)
    # The input is 1, so the weights of a unit's gates are what is squashed.
    weights = (values.repeat(4).unsqueeze(1), torch.zeros(4 * units, units), None, None, None)
    *_, tape, _, _, _ = torch.ops.phased_lstm.layer(
        torch.ones(batch, 1, 1), one[:1], None, state, state, *weights, one, one, one, 0.0, 1, False, False, True
    )
    i, f, g, o, *_ = tape.view(8, units) if batch == 1 else tape.view(units, 6, -1)[:, :, batch - 1].T
    for other in (f, o):
        torch.testing.assert_close(other, i, rtol=0, atol=0, equal_nan=True)
    return i, g


def largest_errors(batch: int) -> dict[str, float]:
    """The largest error of each kind that csrc/simd.h bounds, over dense grids; infinite where a limit is wrong."""
    small = torch.logspace(-37, 0, 2000, dtype=torch.float64).float()
    near = torch.cat([torch.linspace(0, 1, 2000), torch.linspace(1, 20, 2000), torch.linspace(20, 80, 1000), small])
    far = torch.cat([torch.linspace(80, 1000, 500)[1:], torch.logspace(3, 38, 200), torch.tensor([LARGEST, math.inf])])
    near, far = torch.cat([near, -near]), torch.cat([far, -far])

    sigmoid, tanh = squashed(near, batch)
    exact_sigmoid, exact_tanh = torch.sigmoid(near.double()), torch.tanh(near.double())
    far_sigmoid, far_tanh = squashed(far, batch)
    apart = exact_tanh != 0
    errors = {
        "sigmoid": ((sigmoid - exact_sigmoid).abs() / exact_sigmoid).max(),
        "far sigmoid": (far_sigmoid - torch.sigmoid(far.double())).abs().max(),
        "tanh": ((tanh - exact_tanh).abs() / exact_tanh.abs())[apart].max(),
        "tanh at 0": tanh[~apart].abs().max(),
        "far tanh": (far_tanh - torch.tanh(far.double())).abs().max(),
    }
    return {name: float(error) if error.isfinite() else math.inf for name, error in errors.items()}


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_elementary_functions_keep_their_stated_errors(isa: str) -> None:
    """Each instruction set in a process of its own, since the choice is made once."""
    script = (
        "import json, math, torch, test_native_numerics as t\n"
        "from phased_lstm.ops import native\n"
        f"assert not native.missing() and native.instruction_set() == {isa!r}, native.missing()\n"
        "torch.set_num_threads(1)\n"
        "nans = [value.isnan().all().item() for b in (1, 4) for value in t.squashed(torch.full((9,), math.nan), b)]\n"
        "print(json.dumps([nans, t.largest_errors(1), t.largest_errors(4)]))\n"
    )
    environment = os.environ | {"PHASED_LSTM_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    if f"PHASED_LSTM_ISA={isa} is not available here" in result.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert result.returncode == 0, result.stderr
    nans, *found = json.loads(result.stdout)
    assert all(nans)
    for errors in found:
        assert errors["sigmoid"] < 4e-7, errors
        assert errors["far sigmoid"] < 2e-35, errors
        assert errors["tanh"] < 4e-7, errors
        assert errors["tanh at 0"] == 0, errors
        # Beyond 80 tanh is 1 in float64 too, so relative and absolute errors are the same.
        assert errors["far tanh"] < 4e-7, errors


@pytest.mark.parametrize(
    ("lstm", "sizes", "shared", "leak"),
    [
        (True, (5, 10_000, 3, 13), False, 0.0),
        (True, (7, 10_000, 1, 19), True, 0.0),
        (True, (1, 10_000, 5, 37), False, 0.0),
        (False, (3, 10_000, 2, 17), False, 0.0),
        (True, (32, 200, 3, 128), False, 0.001),
        (True, (256, 200, 3, 32), True, 0.001),
        (False, (32, 200, 3, 128), False, 0.001),
        (False, (256, 200, 3, 32), True, 0.001),
    ],
    ids=str,
)
def test_long_sums_stay_accurate(lstm: bool, sizes: tuple[int, int, int, int], shared: bool, leak: float) -> None:
    _, steps, _, hidden = sizes
    values = leaves(lstm, sizes, shared, False)
    for index in range(4, 7) if lstm else range(3, 7):
        # As layers draw them: larger weights make a chaotic system, in which any two orders of summation part.
        values[index] = (torch.rand_like(values[index]) * 2 - 1) / math.sqrt(hidden)
    values[1] = (torch.rand_like(values[1]) * steps).sort(dim=-1).values
    values[9] = torch.full_like(values[9], 0.05).float().double()
    cast = [value if index == 1 else value.float() for index, value in enumerate(values)]
    exact = [value.double() for value in cast]
    wanted, wanted_gradients = run(reference, exact, lstm, **PLAIN | {"leak": leak})
    got, gradients = run(native, cast, lstm, **PLAIN | {"leak": leak})
    in_outputs, in_gradients = TOLERANCES[torch.float32]
    assert_near(got, wanted, in_outputs)
    assert_near(gradients, wanted_gradients, in_gradients)


def assert_same_bits(got: list[Tensor], wanted: list[Tensor]) -> None:
    for index, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert torch.equal(a, b), index


def at_rows(outputs: list[Tensor], rows: Any) -> list[Tensor]:
    output, *states = outputs
    return [output[rows], *(state[:, rows] for state in states)]


def many_rows(rows: int = 33, steps: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Input, times in order, and lengths that are all different or nearly so."""
    times = torch.rand(rows, steps, dtype=torch.float64).cumsum(1) * 4
    return torch.randn(rows, steps, 3), times, torch.arange(rows) * 17 % (steps + 1)


@PHASED
@pytest.mark.parametrize("hidden", [5, 37])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("some_lengths", [False, True], ids=["full", "ragged"])
@torch.no_grad()
def test_a_row_is_the_same_in_every_batch(phased: Any, hidden: int, reverse: bool, some_lengths: bool) -> None:
    """With times of its own, since rows that are walked together share nothing but reads of weights."""
    rnn = phased(3, hidden, **OPTIONS, bidirectional=reverse)
    x, times, lengths = many_rows()

    def called(rows: Any, stamps: Tensor = times) -> list[Tensor]:
        return flatten(rnn(x[rows], times=stamps[rows], lengths=lengths[rows] if some_lengths else None))

    whole = called(slice(None))
    for count in (1, 2, 3, 4, 5, 17, 32):
        assert_same_bits(called(slice(count)), at_rows(whole, slice(count)))
        assert_same_bits(called(slice(33 - count, 33)), at_rows(whole, slice(33 - count, 33)))
    order = torch.randperm(33)
    assert_same_bits(called(order), at_rows(whole, order))

    others, kept = slice(1, None, 2), slice(0, None, 2)
    for changed in (times + 1e6, times.flip(1), times * 1e-3, times[:, torch.randperm(40)]):
        mixed = times.clone()
        mixed[others] = changed[others]
        assert_same_bits(at_rows(called(slice(None), mixed), kept), at_rows(whole, kept))


@PHASED
@pytest.mark.parametrize(("hidden", "ratio_on"), [(1, 0.6), (5, 1.0)])
@torch.no_grad()
def test_a_row_is_the_same_in_every_batch_when_all_units_are_open(phased: Any, hidden: int, ratio_on: float) -> None:
    """All units of a few rows are open at once, by the clock or by the ratio."""
    for _ in range(10):
        rnn = phased(3, hidden, **OPTIONS | {"ratio_on": ratio_on})
        x, times, _ = many_rows(steps=2)
        state = torch.randn(1, 33, hidden)
        hx = (state, state) if phased is PhasedLSTM else state
        whole = flatten(rnn(x, hx, times))
        for count in (1, 2, 4, 5, 17):
            few = (state[:, :count],) * 2 if phased is PhasedLSTM else state[:, :count]
            assert_same_bits(flatten(rnn(x[:count], few, times[:count])), at_rows(whole, slice(count)))


def in_chunks(rnn: Any, x: Tensor, times: Tensor, edges: list[int]) -> list[Tensor]:
    pieces, state = [], None
    for start, stop in pairwise(edges):
        piece, state = rnn(x[:, start:stop], state, times[..., start:stop])
        pieces.append(piece)
    return flatten((torch.cat(pieces, 1), state))


CHUNKINGS = ([0, 13, 40], [0, 1, 2, 40], [0, 39, 40], list(range(41)))


@PHASED
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 21])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("leak", [0.0, 0.01])
@torch.no_grad()
def test_chunks_that_carry_the_state_give_the_bits_of_one_pass(
    phased: Any, rows: int, shared: bool, leak: float
) -> None:
    rnn = phased(3, 21, **OPTIONS, num_layers=2, leak=leak)
    x, times, _ = many_rows(rows)
    times = times[0] if shared else times
    whole = flatten(rnn(x, times=times))
    for edges in CHUNKINGS:
        assert_same_bits(in_chunks(rnn, x, times, edges), whole)


@PHASED
@pytest.mark.parametrize(("hidden", "ratio_on"), [(1, 0.6), (2, 0.6), (5, 0.95), (20, 0.95)])
@torch.no_grad()
def test_chunks_in_which_all_units_are_open_give_the_bits_of_one_pass(
    phased: Any, hidden: int, ratio_on: float
) -> None:
    """With times of their own, whatever the units that happen to be open in a chunk."""
    for _ in range(10):
        rnn = phased(3, hidden, **OPTIONS | {"ratio_on": ratio_on})
        x, times, _ = many_rows(4)
        assert_same_bits(in_chunks(rnn, x, times, list(range(41))), flatten(rnn(x, times=times)))


@PHASED
@pytest.mark.parametrize("rows", [3, 6, 35])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("leak", [0.0, 0.01])
def test_a_nan_leaves_the_bits_of_all_other_rows(phased: Any, rows: int, shared: bool, leak: float) -> None:
    rnn = phased(3, 9, **OPTIONS, num_layers=2, leak=leak)
    x, times, _ = many_rows(rows)
    times = times[0] if shared else times
    lengths = torch.arange(rows) * 17 % 30 + 5
    lengths[1] = 40
    found = []
    for value in (0.5, math.nan):
        x[1, 3] = value
        leaf = x.clone().requires_grad_()
        outputs = flatten(rnn(leaf, times=times, lengths=lengths))
        found.append([*outputs, *torch.autograd.grad(outputs[0].square().sum(), leaf)])
    others = [row for row in range(rows) if row != 1]
    for clean, dirty in zip(*found, strict=True):
        # States have the layers first.
        axis = 0 if clean.shape[0] == rows else 1
        assert dirty.select(axis, 1).isnan().any()
        index = torch.tensor(others)
        assert torch.equal(dirty.index_select(axis, index), clean.index_select(axis, index))


def fresh(rnn: Any, x: Tensor, times: Tensor) -> list[Tensor]:
    """What a copy, which keeps nothing, gives."""
    other = copy.deepcopy(rnn)
    assert not other._kept
    return flatten(other(x, times=times))


def stepped(rnn: Any) -> None:
    optimizer = torch.optim.SGD([p for gate in rnn.gates for p in gate.parameters() if p.requires_grad], lr=1.0)
    with torch.enable_grad():
        x, times, _ = many_rows(4)
        rnn(x, times=times)[0].square().sum().backward()
    optimizer.step()


def loaded(rnn: Any) -> None:
    rnn.load_state_dict(type(rnn)(3, 9, 2, **OPTIONS | {"period_init_max": 5.0, "ratio_on": 0.5}).state_dict())


def assigned_as_data(rnn: Any) -> None:
    rnn.gate_l1.raw_shift.data = rnn.gate_l1.raw_shift.data + 30


CHANGES: dict[str, Any] = {
    "a step of an optimizer": stepped,
    "a copy into the data": lambda rnn: rnn.gate_l1.raw_period.data.copy_(torch.linspace(-50, 50, 9)),
    "data of its own": assigned_as_data,
    "one value of many": lambda rnn: rnn.gate_l0.initial_shift.data[8].add_(0.7),
    "assigned values": lambda rnn: rnn.gate_l0.assign_(ratio_on=0.6),
    "a state dict": loaded,
    "fitted gates": lambda rnn: rnn.fit_gates_(many_rows(4)[1] * 2),
    "an origin": lambda rnn: rnn.gate_l0.assign_(origin=3),
    "the origin's data": lambda rnn: rnn.gate_l1.origin.data.fill_(-2),
    "gates drawn anew": lambda rnn: rnn.gate_l1.reset_parameters(),
    "another gate": lambda rnn: setattr(rnn, "gate_l1", copy.deepcopy(rnn.gate_l0)),
}


@PHASED
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("inference", [False, True])
def test_kept_gate_values_follow_changes(phased: Any, change: str, inference: bool) -> None:
    rnn = phased(3, 9, 2, **OPTIONS)
    x, times, _ = many_rows(4)
    with torch.inference_mode() if inference else torch.no_grad():
        before = flatten(rnn(x, times=times))
    assert rnn._kept
    CHANGES[change](rnn)
    with torch.inference_mode() if inference else torch.no_grad():
        after = flatten(rnn(x, times=times))
        assert_same_bits(after, fresh(rnn, x, times))
    assert not torch.equal(before[0], after[0])
    assert_same_bits(flatten(rnn(x, times=times)), after)


@PHASED
@torch.no_grad()
def test_kept_gate_values_follow_casts(phased: Any) -> None:
    rnn = phased(3, 9, 2, **OPTIONS)
    x, times, _ = many_rows(4)
    single = flatten(rnn(x, times=times))
    # A third that float32 does not hold, so that the way back changes the value.
    rnn.double().gate_l0.initial_period.div_(3)
    wide = flatten(rnn(x.double(), times=times))
    assert {part.dtype for part in wide} == {torch.float64}
    assert_same_bits(wide, fresh(rnn, x.double(), times))
    rnn.float()
    narrow = flatten(rnn(x, times=times))
    assert_same_bits(narrow, fresh(rnn, x, times))
    rnn.gate_l0.initial_period.mul_(3)
    torch.testing.assert_close(flatten(rnn(x, times=times))[0], single[0], rtol=0, atol=1e-5)


def assert_gradients_near_reference(rnn: Any, x: Tensor, times: Tensor) -> None:
    twin = copy.deepcopy(rnn)
    rnn.backend, twin.backend = "native", "reference"
    found = []
    for layer in (rnn, twin):
        layer.zero_grad()
        layer(x, times=times)[0].sin().sum().backward()
        found.append({name: p.grad for name, p in layer.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    assert any("raw_shift" in name and gradient.any() for name, gradient in found[1].items())
    assert_near(list(found[0].values()), list(found[1].values()), TOLERANCES[x.dtype][1])


@PHASED
@pytest.mark.parametrize("trainable_ratio_on", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_with_kept_ratios_are_those_of_the_reference(
    phased: Any, trainable_ratio_on: bool, dtype: torch.dtype
) -> None:
    rnn = phased(3, 9, 2, **OPTIONS, trainable_ratio_on=trainable_ratio_on, dtype=dtype)
    rnn.gate_l1.assign_(origin=1)
    x, times, _ = many_rows(4)
    for _ in range(2):
        assert_gradients_near_reference(rnn, x.to(dtype), times)
        assert bool(rnn._kept) != trainable_ratio_on


@PHASED
@pytest.mark.parametrize("kept_in", [torch.inference_mode, torch.no_grad], ids=["inference", "no_grad"])
def test_a_first_call_without_gradients_does_not_hinder_training(phased: Any, kept_in: Any) -> None:
    rnn = phased(3, 9, 2, **OPTIONS)
    x, times, _ = many_rows(4)
    with kept_in():
        without = flatten(rnn(x, times=times))
    assert_same_bits(flatten(rnn(x, times=times)), without)
    assert_gradients_near_reference(rnn, x, times)
    optimizer = torch.optim.Adam(rnn.parameters(), lr=0.1)
    optimizer.step()
    assert_gradients_near_reference(rnn, x, times)


CELLS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "lstm": (PhasedLSTMCell, PhasedLSTM, {}),
    "peephole": (PhasedLSTMCell, PhasedLSTM, {"peephole": True}),
    "gru": (PhasedGRUCell, PhasedGRU, {}),
    "no bias": (PhasedLSTMCell, PhasedLSTM, {"bias": False}),
    "gru without bias": (PhasedGRUCell, PhasedGRU, {"bias": False}),
    "cosine": (PhasedLSTMCell, PhasedLSTM, {"oscillation": "cosine"}),
    "leak in training alone": (PhasedLSTMCell, PhasedLSTM, {"leak": 0.1}),
}


def cell_and_layer(kind: str, dtype: torch.dtype, origin: int) -> tuple[Any, Any]:
    made, layer, options = CELLS[kind]
    gate_options = {name: value for name, value in OPTIONS.items() if name != "batch_first"}
    cell = made(3, 13, dtype=dtype, **gate_options, **options).eval()
    cell.gate.assign_(origin=origin)
    rnn = layer(3, 13, dtype=dtype, **OPTIONS, **options).eval()
    rnn.load_state_dict(
        {
            name.replace("gate.", "gate_l0.") if "gate." in name else f"{name}_l0": value
            for name, value in cell.state_dict().items()
        }
    )
    return cell, rnn


def as_tuple(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("rows", [None, 1, 3, 4, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("origin", [0, 7])
@torch.no_grad()
def test_the_quick_step_is_the_layer_and_the_ordinary_step_bit_for_bit(
    kind: str, rows: int | None, dtype: torch.dtype, origin: int
) -> None:
    cell, rnn = cell_and_layer(kind, dtype, origin)
    batch = () if rows is None else (rows,)
    x = torch.randn(25, *batch, 3, dtype=dtype)
    times = torch.rand(25, dtype=torch.float64).cumsum(0) * 4
    zeros = torch.zeros(*batch, 13, dtype=dtype)
    blank = zeros if kind.startswith("gru") else (zeros, zeros)
    quick, ordinary, with_gradients = blank, blank, blank
    outputs = []
    for value, time in zip(x, times, strict=True):
        assert cell._quick_step(value, quick, time.item()) is not None
        quick = cell(value, quick, time.item())
        assert cell._quick_step(value, ordinary, time) is None
        ordinary = cell(value, ordinary, time)
        with torch.enable_grad():
            assert cell._quick_step(value, with_gradients, time.item()) is None
            with_gradients = cell(value, with_gradients, time.item())
        outputs.append(as_tuple(quick)[0])
    assert_same_bits(list(as_tuple(ordinary)), list(as_tuple(quick)))
    assert_same_bits(list(as_tuple(with_gradients)), list(as_tuple(quick)))
    steps_first = torch.stack(outputs)
    whole, *states = flatten(rnn(x if rows is None else x.transpose(0, 1), times=times))
    assert_same_bits([whole if rows is None else whole.transpose(0, 1)], [steps_first])
    assert_same_bits([state[0] for state in states], list(as_tuple(quick)))
    assert steps_first.any()


@torch.no_grad()
def test_the_quick_step_leaves_what_it_was_given() -> None:
    cell, _ = cell_and_layer("lstm", torch.float32, 0)
    x, h, c = torch.randn(5, 3), torch.randn(5, 13), torch.randn(5, 13)
    before = [value.clone() for value in (x, h, c)]
    new = cell(x, (h, c), 2.5)
    assert_same_bits([x, h, c], before)
    strided = [torch.stack([value, value], -1)[..., 0] for value in (x, h, c)]
    assert_same_bits(list(cell(strided[0], tuple(strided[1:]), 2.5)), list(new))


BAD_STEPS: dict[str, Any] = {
    "hidden size": lambda x, h: (x, (torch.zeros(4, 12),) * 2, 1.5),
    "batch of the state": lambda x, h: (x, (torch.zeros(3, 13),) * 2, 1.5),
    "rank of the state": lambda x, h: (x, (torch.zeros(13),) * 2, 1.5),
    "features": lambda x, h: (torch.randn(4, 2), (h, h), 1.5),
    "rank of the input": lambda x, h: (torch.randn(2, 4, 3), (torch.zeros(2, 4, 13),) * 2, 1.5),
    "time of NaN": lambda x, h: (x, (h, h), math.nan),
    "infinite time": lambda x, h: (x, (h, h), math.inf),
    "dtype of the input": lambda x, h: (x.double(), (h.double(),) * 2, 1.5),
    "dtype of the state": lambda x, h: (x, (h, h.double()), 1.5),
    "integers": lambda x, h: (x.long(), (h.long(),) * 2, 1.5),
    "one state of two": lambda x, h: (x, (h,), 1.5),
    "a tensor for two states": lambda x, h: (x, h, 1.5),
    "no tensor": lambda x, h: ([1.0, 2.0, 3.0], (h, h), 1.5),
    "device of the state": lambda x, h: (x, (h, h.to("meta")), 1.5),
    "device of the input": lambda x, h: (x.to("meta"), (h.to("meta"),) * 2, 1.5),
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_the_quick_step_refuses_what_the_ordinary_step_refuses(name: str) -> None:
    cell, _ = cell_and_layer("lstm", torch.float32, 0)
    arguments = BAD_STEPS[name](torch.randn(4, 3), torch.zeros(4, 13))
    raised = []
    for context in (torch.no_grad, torch.enable_grad):
        with context(), pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
            cell(*arguments)
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]


@torch.no_grad()
def test_the_quick_step_refuses_a_gate_of_another_size() -> None:
    cell, _ = cell_and_layer("lstm", torch.float32, 0)
    other, _ = cell_and_layer("gru", torch.float32, 0)
    cell.gate = type(other.gate)(12)
    with pytest.raises(ValueError, match="gate is of 12 units, the layer has 13"):
        cell(torch.randn(4, 3), (torch.zeros(4, 13),) * 2, 1.5)


@pytest.mark.parametrize("tool", ["prune", "parametrize", "weight_norm"])
@pytest.mark.parametrize("name", ["bias_ih", "weight_hh", "weight_ih"])
def test_the_cells_quick_step_minds_what_stands_in_for_a_parameter(tool: str, name: str) -> None:
    cell = PhasedLSTMCell(3, 8, ratio_on=1.0).eval()
    with torch.no_grad():
        cell.bias_ih.fill_(3.0)
    if tool == "prune":
        torch.nn.utils.prune.random_unstructured(cell, name, 0.25)
    elif tool == "parametrize":
        torch.nn.utils.parametrize.register_parametrization(cell, name, torch.nn.Identity())
    else:
        torch.nn.utils.parametrizations.weight_norm(cell, name)
    x, state = torch.randn(2, 3), (torch.randn(2, 8), torch.randn(2, 8))
    wanted = cell(x, state, 5.0)
    with torch.no_grad():
        assert torch.equal(cell(x, state, 5.0)[0], wanted[0])


def test_a_parametrised_gate_works() -> None:
    rnn = PhasedLSTM(3, 8, batch_first=True)
    x, times = torch.randn(2, 30, 3), torch.rand(2, 30).cumsum(1)
    with torch.no_grad():
        wanted = rnn(x, times=times)[0]
    torch.nn.utils.parametrize.register_parametrization(rnn.gate_l0, "raw_period", torch.nn.Identity())
    with torch.no_grad():
        assert torch.equal(rnn(x, times=times)[0], wanted)
    rnn(x, times=times)[0].sum().backward()


@pytest.mark.parametrize("inputs", [1, 9])
def test_times_overwritten_before_backward_are_an_error(inputs: int) -> None:
    """Not even torch sees a write through numpy; the tape then belongs to other events."""
    rnn = PhasedLSTM(inputs, 64, batch_first=True, ratio_on=1.0)
    times = torch.arange(100, dtype=torch.float64).repeat(4, 1)
    times[1::2] += 100
    output, _ = rnn(torch.randn(4, 100, inputs, requires_grad=True), times=times)
    times.numpy()[:] = times.roll(1, 0).numpy()
    with pytest.raises(RuntimeError, match="were times changed between forward and backward"):
        output.sum().backward()
