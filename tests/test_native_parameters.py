"""The native layer's one node of autograd, from a module's own parameters to its results."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_native import TOLERANCES, assert_near
from test_native_numerics import OPTIONS, PHASED, assert_same_bits, many_rows
from torch import Tensor, nn

from phased_lstm import PhasedGRU, PhasedLSTM, PhasedLSTMCell, TimeGate
from phased_lstm._parametrisation import CONSTANTS, gate_values, growth_of, odds_of
from phased_lstm.ops import native

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=f"native kernels: {native.missing()}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lstm", [True, False])
def test_gradients_of_raw_parameters_are_those_of_autograd_bit_for_bit(lstm: bool, dtype: torch.dtype) -> None:
    batch, steps, units = 4, 12, 256
    # Periods are held at 2000, shifts at 1e5, ratios at 1.5: some lie beyond.
    raw = [(torch.randn(units, dtype=dtype) * scale).requires_grad_() for scale in (1.5e3, 8e4, 1.0)]
    with torch.no_grad():
        for tensor in raw:
            tensor[:5] = 0.0
        raw[0][5], raw[1][5], raw[2][5] = 2000.0, -1e5, 1.5
    initial = [torch.rand(units, dtype=dtype) * scale + 1e-7 for scale in (300.0, 40.0, 1.0)]
    initial[2][:3] = torch.tensor([1.0, 1e-6, 5e-7])
    values = [value.double() for value in gate_values(*raw, *initial)]
    with torch.no_grad():
        raw_gate = torch.stack([*raw, *initial, growth_of(raw[0]), odds_of(raw[2])])
    rows = (4 if lstm else 3) * units
    weights = [torch.randn(rows, size, dtype=dtype) / units for size in (3, units)]
    x, times = torch.randn(batch, steps, 3, dtype=dtype), torch.rand(batch, steps, dtype=torch.float64) * 300
    operands = (*weights, None, None, None, *(value.detach() for value in values), 0.1, 0, False)
    output, h_n, *_, tape, offsets, opened, phases = torch.ops.phased_lstm.layer(
        x, times, None, None, None, *operands, True, True, False
    )
    way_back = (x, times, None, *operands, h_n, tape, offsets, opened, phases, torch.randn_like(output), None, None)
    *others, period, shift, ratio_on, _ = torch.ops.phased_lstm.layer_backward(*way_back, False, False, None, [])
    wanted = torch.autograd.grad(values, raw, [period, shift, ratio_on])
    *same, first, second, third, _ = torch.ops.phased_lstm.layer_backward(*way_back, False, False, raw_gate, CONSTANTS)
    assert all(0 < (gradient == 0).sum() < units - 20 for gradient in wanted)
    assert_same_bits([first, second, third], list(wanted))
    assert_same_bits(same, others)


def moved(phased: Any, **options: Any) -> Any:
    """A layer whose gate is not where it began."""
    rnn = phased(3, 9, 2, **OPTIONS, bidirectional=True, trainable_ratio_on=True, **options)
    with torch.no_grad():
        for gate in rnn.gates:
            for raw in (gate.raw_period, gate.raw_shift, gate.raw_ratio_on):
                raw.uniform_(-0.05, 0.05)
    return rnn


@PHASED
def test_the_graph_is_one_node_a_direction(phased: Any) -> None:
    rnn = phased(3, 9, **OPTIONS)
    x, times, _ = many_rows(4)
    node = rnn(x, times=times)[0].grad_fn
    assert type(node).__name__ == "_LayerOfParametersBackward"
    reached = {id(edge.variable) for edge, _ in node.next_functions if edge is not None}
    assert reached == {id(parameter) for parameter in rnn.parameters() if parameter.requires_grad}


LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (PhasedLSTM, {}),
    "peephole": (PhasedLSTM, {"peephole": True}),
    "no bias": (PhasedLSTM, {"bias": False}),
    "leak": (PhasedLSTM, {"leak": 0.1}),
    "gru": (PhasedGRU, {}),
    "gru without bias": (PhasedGRU, {"bias": False}),
}


def gradients(rnn: Any, x: Tensor, times: Tensor, create_graph: bool) -> tuple[Tensor, ...]:
    wanted = [parameter for parameter in rnn.parameters() if parameter.requires_grad]
    return torch.autograd.grad(rnn(x, times=times)[0].sin().sum(), [x, *wanted], create_graph=create_graph)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("frozen", ["", "raw_", "bias_hh", "weight_hh"])
def test_gradients_and_their_gradients_are_those_of_the_reference(kind: str, frozen: str) -> None:
    phased, options = LAYERS[kind]
    rnn = moved(phased, dtype=torch.float64, **options)
    for name, parameter in rnn.named_parameters():
        parameter.requires_grad_(not (frozen and frozen in name))
    twin = copy.deepcopy(rnn)
    rnn.backend, twin.backend = "native", "reference"
    x, times, _ = many_rows(4)
    found, again = [], []
    for layer in (rnn, twin):
        given = x.double().requires_grad_()
        found.append(gradients(layer, given, times, False))
        graph = gradients(layer, given, times, True)
        again.append(torch.autograd.grad(sum(part.square().sum() for part in graph), [given, layer.weight_ih_l0]))
    assert_near(list(found[0]), list(found[1]), TOLERANCES[torch.float64][1])
    assert_near(list(again[0]), list(again[1]), TOLERANCES[torch.float64][1])


def in_two_chunks(rnn: Any, x: Tensor, times: Tensor) -> Tensor:
    _, state = rnn(x[:9], times=times[:9])
    return rnn(x[9:], state, times=times[9:])[0]


def with_a_layer_twice(rnn: Any, x: Tensor, times: Tensor) -> Tensor:
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(rnn, f"{name}_l1", getattr(rnn, f"{name}_l0"))
    return rnn(x, times=times)[0]


def with_one_bias_twice(rnn: Any, x: Tensor, times: Tensor) -> Tensor:
    rnn.bias_hh_l0 = rnn.bias_ih_l0
    return rnn(x, times=times)[0]


@PHASED
@pytest.mark.parametrize("run", [in_two_chunks, with_a_layer_twice, with_one_bias_twice])
@pytest.mark.parametrize("create_graph", [False, True])
def test_weights_that_act_twice_have_the_gradients_of_the_reference(phased: Any, run: Any, create_graph: bool) -> None:
    rnn = phased(9, 9, 2, ratio_on=0.3, period_init_max=8.0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((20, 3, 9), generator=generator, dtype=torch.float64)
    times = torch.rand((20, 3), generator=generator, dtype=torch.float64).mul(30.0).sort(dim=0).values
    twin = copy.deepcopy(rnn)
    rnn.backend, twin.backend = "native", "reference"
    found = []
    for layer in (rnn, twin):
        results = run(layer, x, times).sin().sum()
        wanted = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        parts = torch.autograd.grad(results, wanted, create_graph=create_graph)
        found.append(list(parts))
        if create_graph:
            found[-1] += torch.autograd.grad(sum(part.square().sum() for part in parts), wanted)
    assert_near(*found, TOLERANCES[torch.float64][1])


def test_a_state_given_twice_to_a_cell_has_the_gradient_of_the_reference() -> None:
    cell = PhasedLSTMCell(3, 9, ratio_on=0.9, dtype=torch.float64)
    twin = copy.deepcopy(cell)
    cell.backend, twin.backend = "native", "reference"
    x = torch.randn(4, 3, dtype=torch.float64)
    found = []
    for model in (cell, twin):
        state = torch.full((4, 9), 0.3, dtype=torch.float64, requires_grad=True)
        h, _ = model(x, (state, state), times=2.0)
        found.append(list(torch.autograd.grad(h.sin().sum(), [state], create_graph=True)))
    assert found[1][0].any()
    assert_near(*found, TOLERANCES[torch.float64][1])


def test_the_two_biases_have_gradients_of_their_own() -> None:
    rnn = PhasedLSTM(3, 9, **OPTIONS)
    x, times, _ = many_rows(4)
    rnn(x, times=times)[0].sum().backward()
    first, second = rnn.bias_ih_l0.grad, rnn.bias_hh_l0.grad
    assert first is not None
    assert second is not None
    assert first.any()
    assert torch.equal(first, second)
    second.zero_()
    assert first.any()


@PHASED
def test_a_gate_of_another_class_is_asked_for_its_values(phased: Any) -> None:
    class Shifted(nn.Module):
        def forward(self, raw: Tensor) -> Tensor:
            return raw + 50.0

    rnn = phased(3, 9, **OPTIONS)
    twin = copy.deepcopy(rnn)
    nn.utils.parametrize.register_parametrization(rnn.gate_l0, "raw_period", Shifted())
    with torch.no_grad():
        twin.gate_l0.raw_period.add_(50.0)
    x, times, _ = many_rows(4)
    assert_same_bits([rnn(x, times=times)[0]], [twin(x, times=times)[0]])


@PHASED
def test_a_gate_that_makes_its_values_in_its_own_way_is_asked_for_them(phased: Any) -> None:
    class Slower(TimeGate):
        def values(self) -> tuple[Tensor, Tensor, Tensor]:
            period, shift, ratio_on = super().values()
            return 2.0 * period, shift, ratio_on

    rnn = phased(3, 9, **OPTIONS)
    twin = copy.deepcopy(rnn)
    rnn.gate_l0.__class__ = Slower
    twin.gate_l0.assign_(period=2.0 * twin.gate_l0.period)
    x, times, _ = many_rows(4)
    assert_same_bits([rnn(x, times=times)[0]], [twin(x, times=times)[0]])
    with torch.no_grad():
        assert_same_bits([rnn(x, times=times)[0]], [twin(x, times=times)[0]])


@PHASED
@pytest.mark.parametrize("trained", [False, True])
def test_weights_of_the_other_cell_are_refused(phased: Any, trained: bool) -> None:
    cell_of_other = PhasedGRU if phased is PhasedLSTM else PhasedLSTM
    rnn, other = (cell(3, 9, bias=False, **OPTIONS) for cell in (phased, cell_of_other))
    rnn.weight_ih_l0, rnn.weight_hh_l0 = other.weight_ih_l0, other.weight_hh_l0
    x, times, _ = many_rows(4)
    message = "weight_hh: size (27|36) in dimension 0, expected (36|27)"
    with torch.set_grad_enabled(trained), pytest.raises(RuntimeError, match=message):
        rnn(x, times=times)


@PHASED
def test_strided_parameters_serve(phased: Any) -> None:
    rnn = phased(3, 9, **OPTIONS)
    twin = copy.deepcopy(rnn)
    for name, parameter in list(twin.named_parameters()):
        owner, _, own = name.rpartition(".")
        strided = torch.stack([parameter.detach()] * 2, -1)[..., 0]
        assert not strided.is_contiguous()
        setattr(twin.get_submodule(owner), own, nn.Parameter(strided, parameter.requires_grad))
    x, times, _ = many_rows(4)
    for layer in (rnn, twin):
        layer(x, times=times)[0].square().sum().backward()
    for (name, parameter), other in zip(rnn.named_parameters(), twin.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), name
        if parameter.grad is not None:
            assert_same_bits([other.grad], [parameter.grad])
