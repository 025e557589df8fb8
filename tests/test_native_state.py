"""What native layers and cells keep and skip between calls: gates' values, the cell's quick step, the tape."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from test_layers import flatten
from test_native import TOLERANCES, assert_near
from test_native_numerics import OPTIONS, PHASED, assert_same_bits, keeps_products, many_rows
from torch import Tensor

from phased_lstm import PhasedGRU, PhasedGRUCell, PhasedLSTM, PhasedLSTMCell, _base, streaming
from phased_lstm.ops import native

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=f"native kernels: {native.missing()}")


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
def test_gradients_with_kept_gate_values_are_those_of_the_reference(
    phased: Any, trainable_ratio_on: bool, dtype: torch.dtype
) -> None:
    rnn = phased(3, 9, 2, **OPTIONS, trainable_ratio_on=trainable_ratio_on, dtype=dtype)
    rnn.gate_l1.assign_(origin=1)
    x, times, _ = many_rows(4)
    for _ in range(2):
        assert_gradients_near_reference(rnn, x.to(dtype), times)
        assert rnn._kept


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


@pytest.mark.parametrize("layers", [1, 2])
def test_final_states_changed_in_place_give_right_gradients(layers: int) -> None:
    rnn = PhasedLSTM(3, 9, layers, **OPTIONS)
    x, times, _ = many_rows(4)
    cells = [rnn(x, times=times)[1][1] for _ in range(2)]
    cells[0].mul_(2).sum().backward()
    found = [parameter.grad for parameter in rnn.parameters() if parameter.grad is not None]
    rnn.zero_grad()
    (cells[1] * 2).sum().backward()
    assert_same_bits(found, [parameter.grad for parameter in rnn.parameters() if parameter.grad is not None])
    kept, changed = (rnn(x, times=times)[1][0] for _ in range(2))
    changed.mul_(2)
    parameters = [rnn.weight_hh_l0, getattr(rnn, f"weight_ih_l{layers - 1}")]
    found = torch.autograd.grad(changed.sum(), parameters)
    assert_same_bits(list(found), list(torch.autograd.grad((kept * 2).sum(), parameters)))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("rows", [None, 1, 3, 4, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("origin", [0, 7])
@torch.no_grad()
def test_the_quick_step_is_the_ordinary_step_and_the_layer(
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
    layer = [whole if rows is None else whole.transpose(0, 1), *(state[0] for state in states)]
    steps = [steps_first, *as_tuple(quick)]
    if keeps_products(rows, True):
        assert_near(layer, steps, TOLERANCES[dtype][0])
    else:
        assert_same_bits(layer, steps)
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


def test_memory_kept_from_other_calls_leaves_no_trace() -> None:
    # Weights of 2.5 KB, of 1.7 MB, which several threads pack, and of 13 MB, which are not kept; few and many events.
    sizes = ((5, 40, 2, 12), (4, 200, 3, 320), (4, 3, 1, 900), (9, 300, 2, 40), (1, 2000, 1, 64))
    layers = []
    for batch, steps, inputs, hidden in sizes:
        rnn = PhasedLSTM(inputs, hidden, batch_first=True)
        times = torch.rand(batch, steps, dtype=torch.float64).sort(-1).values * steps
        layers.append((rnn, torch.randn(batch, steps, inputs), times))

    def call(index: int) -> list[Tensor]:
        rnn, x, times = layers[index]
        with torch.no_grad():
            evaluated = flatten(rnn(x, times=times))
        rnn.zero_grad()
        sum(value.sum() for value in flatten(rnn(x, times=times))).backward()
        return [*evaluated, *(p.grad for p in rnn.parameters() if p.grad is not None)]

    first = [call(index) for index in range(len(sizes))]
    try:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            for index in (2, 0, 1, 4, 3, 0, 2, 4):
                for a, b in zip(first[index], call(index), strict=True):
                    assert torch.equal(a, b)
    finally:
        torch.set_num_threads(1)
    for index, (rnn, x, times) in enumerate(layers):
        rnn.backend = "reference"
        with torch.no_grad():
            assert_near(first[index][:3], flatten(rnn(x, times=times)), TOLERANCES[torch.float32][0])


@torch.no_grad()
def test_a_write_while_values_are_made_is_seen_by_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may write to a gate's parameters at any moment: here right before or after they are read."""
    for moment in ("before", "after"):
        rnn = PhasedLSTM(3, 9, 1, **OPTIONS)
        x, times, _ = many_rows(4)
        made = _base.gate_values_and_factors

        def make_and_write(*parameters: Tensor, rnn: Any = rnn, made: Any = made, moment: str = moment) -> Any:
            if moment == "before":
                rnn.gate_l0.raw_period.add_(40.0)
            values = made(*parameters)
            if moment == "after":
                rnn.gate_l0.raw_period.add_(40.0)
            return values

        with monkeypatch.context() as patched:
            patched.setattr(_base, "gate_values_and_factors", make_and_write)
            rnn(x, times=times)
        assert_same_bits(flatten(rnn(x, times=times)), fresh(rnn, x, times))


@torch.no_grad()
def test_a_stream_keeps_the_origin_that_its_values_go_with(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn, other = (PhasedLSTM(3, 9, 1, **OPTIONS) for _ in range(2))
    other.load_state_dict(rnn.state_dict())
    other.gate_l0.assign_(origin=7)
    values, times = torch.randn(20, 3), torch.arange(20.0)
    make_plan = streaming.Plan.of

    def move_and_make(*arguments: Any) -> Any:
        rnn.gate_l0.assign_(origin=7)
        return make_plan(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(streaming.Plan, "of", staticmethod(move_and_make))
        stream = rnn.stream()
        stream.push(times, values)
    stream.reset()
    assert torch.equal(stream.push(times, values), other.stream().push(times, values))
