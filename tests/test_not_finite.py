"""NaN and infinity: what comes in at a step changes only the units that are open at it, on every backend, both ways."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from test_native import TOLERANCES
from torch import Tensor

from phased_lstm import PhasedGRU, PhasedLSTM, functional
from phased_lstm._checks import OSCILLATIONS
from phased_lstm.ops import native, reference

NAN, INF = float("nan"), float("inf")
needs_native = pytest.mark.skipif(bool(native.missing()), reason=f"native kernels: {native.missing()}")
PHASED = pytest.mark.parametrize("phased", [PhasedLSTM, PhasedGRU])
BACKENDS = pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "reference"])


def draw(seed: int, dtype: torch.dtype) -> tuple[bool, dict[str, Tensor], dict[str, Any]]:
    """A cell, operands of which some entries are not finite, and options."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    lstm, shared = chance.random() < 0.5, chance.random() < 0.5
    batch, steps = chance.choice([1, 2, 3, 4, 5, 9, 17, 40]), chance.choice([1, 3, 8, 21])
    inputs, hidden = chance.choice([1, 3, 4, 5, 9]), chance.choice([1, 3, 8, 17])
    rows = (4 if lstm else 3) * hidden

    def normal(*shape: int) -> Tensor:
        return 0.5 * torch.randn(shape, dtype=torch.float64)

    values = {"input": normal(batch, steps, inputs), "times": torch.rand((steps,) if shared else (batch, steps)) * 40}
    values |= {name: normal(batch, hidden) for name in (["h0", "c0"] if lstm else ["h0"])}
    values |= {"weight_ih": normal(rows, inputs), "weight_hh": normal(rows, hidden)}
    values |= {name: normal(rows) for name in (["bias"] if lstm else ["bias_ih", "bias_hh"])}
    values |= {"period": torch.rand(hidden) * 8 + 1, "shift": torch.rand(hidden) * 5 - 2}
    values["ratio_on"] = torch.rand(hidden) * 0.4 + 0.05
    if lstm and chance.random() < 0.4:
        values["peephole"] = normal(3, hidden)
    for _ in range(chance.choice([1, 1, 2])):
        sequence = chance.randrange(batch)
        if chance.random() < 0.25:
            values["h0"][sequence, chance.randrange(hidden)] = NAN
        else:
            entry = sequence, chance.randrange(steps), chance.randrange(inputs)
            values["input"][entry] = chance.choice([NAN, NAN, INF, -INF])
    options = {
        "leak": chance.choice([0.0, 0.0, 0.0, 0.01]), "oscillation": chance.choice(OSCILLATIONS),
        "reverse": chance.random() < 0.4, "return_sequence": True,
        "lengths": torch.randint(0, steps + 1, (batch,)) if chance.random() < 0.5 else None,
    }  # fmt: skip
    gate = ("times", "period", "shift", "ratio_on")
    return lstm, {name: value.to(torch.float64 if name in gate else dtype) for name, value in values.items()}, options


def run(module: Any, lstm: bool, given: dict[str, Tensor], options: Any, create_graph: bool = False) -> list[Tensor]:
    """The results, and gradients of a loss that leaves out what is not finite of them."""
    values = {name: value.clone().requires_grad_() for name, value in given.items()}
    peephole = values.pop("peephole", None)
    if lstm:
        results = module.phased_lstm(*values.values(), peephole=peephole, **options)
    else:
        results = module.phased_gru(*values.values(), **options)
    generator = torch.Generator().manual_seed(1)
    loss: Any = 0.0
    for result in results:
        weight = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype)
        loss = loss + (torch.where(torch.isfinite(result), result, 0.0) * weight).sum()
    leaves = [*values.values(), *([] if peephole is None else [peephole])]
    return [*results, *torch.autograd.grad(loss, leaves, create_graph=create_graph, materialize_grads=True)]


def assert_alike(got: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for mine, theirs in zip(got, wanted, strict=True):
        # An infinite feature of a saturated gate has a gradient of 0 * inf, or of next to 0 * inf.
        finite = torch.isfinite(theirs)
        assert torch.equal(torch.isfinite(mine), finite)
        scale = theirs[finite].abs().max().clamp(min=0.05) if bool(finite.any()) else 1.0
        assert not bool(((mine - theirs)[finite].abs() > tolerance * scale).any())


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(60))
def test_backends_agree_in_values_and_gradients(seed: int, dtype: torch.dtype) -> None:
    lstm, values, options = draw(seed, dtype)
    wanted = run(reference, lstm, values, options)
    _, tolerance = TOLERANCES[dtype]
    for create_graph in (False, True):
        # Twice, as terms of a gate's gradients cancel over all sequences and steps.
        assert_alike(run(native, lstm, values, options, create_graph), wanted, 2 * tolerance)


@BACKENDS
@PHASED
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("shared", [False, True])
def test_a_step_at_which_all_units_are_closed_is_not_seen(phased: Any, backend: str, batch: int, shared: bool) -> None:
    rnn = phased(2, 6, batch_first=True, backend=backend)
    rnn.gate_l0.assign_(period=10.0, shift=0.0, ratio_on=0.3)
    times = torch.tensor([0.5, 1.0, 5.0, 6.0, 11.0])
    times = times if shared else times.expand(batch, -1).contiguous()
    x = torch.randn(batch, 5, 2)
    found = []
    for value in (0.0, NAN, INF):
        rnn.zero_grad()
        x[0, 2:4] = value
        inputs = x.clone().requires_grad_()
        output, _ = rnn(inputs, times=times)
        output.square().sum().backward()
        found.append([output, inputs.grad, *(parameter.grad for parameter in rnn.parameters())])
    for other in found[1:]:
        for mine, theirs in zip(other, found[0], strict=True):
            if theirs is not None:
                # Where something is not finite the reference adds up gradients in another order.
                torch.testing.assert_close(mine, theirs, rtol=0.0 if backend == "native" else 1e-5, atol=0.0)


@BACKENDS
@PHASED
def test_second_derivatives_do_not_see_it_either(phased: Any, backend: str) -> None:
    rnn = phased(1, 3, batch_first=True, backend=backend, dtype=torch.float64)
    rnn.gate_l0.assign_(period=10.0, shift=0.0, ratio_on=0.3)
    times, x = torch.tensor([0.5, 1.0, 5.0, 11.0]), torch.randn(1, 4, 1, dtype=torch.float64)
    found = []
    for value in (0.0, NAN):
        x[0, 2] = value
        (first,) = torch.autograd.grad(rnn(x, times=times)[0].square().sum(), rnn.weight_hh_l0, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [rnn.weight_ih_l0, rnn.gate_l0.raw_period]))
    assert all(torch.isfinite(gradient).all() for gradient in found[1])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0.0)


@BACKENDS
def test_the_edge_at_which_a_unit_opens_has_a_gradient(backend: str) -> None:
    rnn = PhasedLSTM(1, 1, batch_first=True, backend=backend, dtype=torch.float64)
    rnn.gate_l0.assign_(period=8.0, shift=2.0, ratio_on=0.5)
    (gradient,) = torch.autograd.grad(rnn(torch.ones(1, 1, 1).double(), times=torch.tensor([10]))[0].sum(),
                                      rnn.gate_l0.raw_shift)  # fmt: skip
    assert float(gradient) != 0.0


@BACKENDS
@PHASED
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("leak", [0.0, 0.01])
def test_padding_leaves_a_spoiled_sequence_as_it_is(phased: Any, backend: str, reverse: bool, leak: float) -> None:
    batch, steps, hidden = 6, 30, 5
    rnn = phased(3, hidden, batch_first=True, bidirectional=reverse, backend=backend, leak=leak)
    for gate in rnn.gates:
        gate.assign_(period=torch.arange(hidden) + 12.0, shift=2.0 * torch.arange(hidden), ratio_on=0.2)
    x, times = torch.randn(batch, steps, 3), torch.arange(float(steps))
    x[2, 3] = NAN
    lengths = torch.tensor([30, 30, 5, 30, 0, 30])
    for given in (times, times.expand(batch, -1)):
        output, final = rnn(x, times=given, lengths=lengths)
        alone, final_alone = rnn(x[2:3, :5], times=times[:5])
        for padded, own in zip(
            final if isinstance(final, tuple) else (final,),
            final_alone if isinstance(final_alone, tuple) else (final_alone,), strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(padded[:, 2:3], own, rtol=1e-5, atol=1e-6, equal_nan=True)
        torch.testing.assert_close(output[2:3, :5], alone, rtol=1e-5, atol=1e-6, equal_nan=True)
        assert not output[2, 5:].any()


@BACKENDS
@pytest.mark.parametrize("width", range(1, 7))
@pytest.mark.parametrize("batch", [1, 3, 6])
@pytest.mark.parametrize("phased", [PhasedLSTM, PhasedGRU])
def test_an_infinite_feature_saturates_a_gate(phased: Any, backend: str, width: int, batch: int) -> None:
    rnn, plain = phased(width, 4, batch_first=True, backend=backend, ratio_on=1.0, oscillation="square"), None
    plain = (torch.nn.LSTM if phased is PhasedLSTM else torch.nn.GRU)(width, 4, batch_first=True)
    plain.load_state_dict({name: value for name, value in rnn.state_dict().items() if "gate" not in name})
    x = torch.randn(batch, 6, width)
    x[-1, 0, width - 1] = INF
    times = torch.rand(batch, 6)
    with torch.no_grad():
        wanted, _ = plain(x)
        assert torch.isfinite(wanted).all()
        torch.testing.assert_close(rnn(x, times=times)[0], wanted, rtol=1e-5, atol=1e-6)


@BACKENDS
@pytest.mark.parametrize("batch", [1, 2, 5, 20])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float32, 1e8), (torch.float64, 1e17)])
@pytest.mark.parametrize("lstm", [True, False])
def test_a_fully_open_gate_replaces_the_state_whatever_it_was(
    lstm: bool, backend: str, batch: int, shared: bool, dtype: torch.dtype, size: float
) -> None:
    """At k = 1 with a closed forget (update) gate nothing of the old state is left."""
    shape = (1,) if shared else (batch, 1)
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    x, state = torch.randn(batch, 1, 3, dtype=dtype), torch.zeros(batch, 1, dtype=dtype)
    rows, closed = (4, [0.0, -60.0, 0.0, 0.0]) if lstm else (3, [0.0, -60.0, 0.0])
    weights = torch.randn(rows, 3, dtype=dtype), torch.zeros(rows, 1, dtype=dtype)
    weights[0][1] = 0.0
    bias, gate = torch.tensor(closed, dtype=dtype), (one, zero, one)
    found = []
    for old in (0.0, size, -size):
        if lstm:
            arguments = (x, torch.zeros(shape), state + old, state + old, *weights, bias, *gate)
            results = functional.phased_lstm(*arguments, oscillation="square", backend=backend)
        else:
            arguments = (x, torch.zeros(shape), state + old, *weights, bias, None, *gate)
            results = functional.phased_gru(*arguments, oscillation="square", backend=backend)
        found.append(torch.cat([result.flatten() for result in results if result is not None]))
    for replaced in found[1:]:
        # sigmoid(-60) of the old state is left of it.
        torch.testing.assert_close(replaced, found[0], rtol=1e-6, atol=1e-26 * size)


@BACKENDS
@pytest.mark.parametrize("oscillation", OSCILLATIONS)
def test_an_infinite_state_is_replaced_too(backend: str, oscillation: Any) -> None:
    rnn = PhasedLSTM(1, 2, batch_first=True, backend=backend, oscillation=oscillation)
    # Half way through the opening k is 1, whatever the oscillation.
    rnn.gate_l0.assign_(period=8.0, shift=0.0, ratio_on=0.5)
    hidden = torch.tensor([[[INF, 0.0]]])
    with torch.no_grad():
        found = [rnn(torch.ones(1, 1, 1), (state, torch.zeros(1, 1, 2)), torch.tensor([2]))[1] for state in
                 (hidden, hidden.nan_to_num(posinf=1e6))]  # fmt: skip
    for spoiled, large in zip(*found, strict=True):
        torch.testing.assert_close(spoiled, large)


@BACKENDS
@pytest.mark.parametrize("batch", [1, 2, 5, 40])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_an_infinite_cell_is_that_of_a_plain_lstm(backend: str, batch: int, shared: bool, bias: bool) -> None:
    """Peepholes that are not there do not multiply it by nothing."""
    plain = torch.nn.LSTM(3, 5, bias=bias, batch_first=True)
    rnn = PhasedLSTM.from_lstm(plain, backend=backend, ratio_on=1.0, oscillation="square")
    x, cell = torch.randn(batch, 4, 3), torch.zeros(1, batch, 5)
    cell[0, -1, 2], cell[0, 0, 1] = INF, -INF
    with torch.no_grad():
        wanted, (_, wanted_cell) = plain(x, (torch.zeros_like(cell), cell))
        output, (_, final_cell) = rnn(x, (torch.zeros_like(cell), cell), torch.rand(*([4] if shared else [batch, 4])))
    assert torch.isfinite(wanted).all()
    torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(final_cell, wanted_cell, rtol=1e-5, atol=1e-6)


@needs_native
@pytest.mark.parametrize("spoiler", [NAN, 1e6])
@pytest.mark.parametrize("phased", [PhasedLSTM, PhasedGRU])
def test_parts_of_sixteen_steps_equal_the_whole_beside_a_spoiled_sequence(phased: Any, spoiler: float) -> None:
    for _ in range(5):
        rnn = phased(3, 24, batch_first=True, ratio_on=0.6, period_init_min=20, period_init_max=200)
        x, times = torch.randn(6, 64, 3), torch.rand(64).mul(64).sort().values
        start = torch.zeros(1, 6, 24)
        start[0, 0, 3] = spoiler
        hx = (start, torch.zeros_like(start)) if phased is PhasedLSTM else start
        with torch.no_grad():
            whole, _ = rnn(x, hx, times)
            clean, _ = rnn(x, None, times)
            parts, state = [], hx
            for first in range(0, 64, 16):
                part, state = rnn(x[:, first : first + 16], state, times[first : first + 16])
                parts.append(part)
        joined = torch.cat(parts, dim=1)
        assert torch.equal(joined[1:], whole[1:])
        assert torch.equal(joined.isnan(), whole.isnan())
        assert torch.equal(joined.nan_to_num(), whole.nan_to_num())
        assert torch.equal(clean[1:], whole[1:])


@PHASED
def test_an_infinite_state_is_that_of_the_layer_of_torch_on_the_reference(phased: Any) -> None:
    """A square gate that is always open has k = 1, so that nothing is between the two."""
    rnn = phased(3, 6, batch_first=True, ratio_on=1.0, oscillation="square", backend="reference")
    plain = (torch.nn.LSTM if phased is PhasedLSTM else torch.nn.GRU)(3, 6, batch_first=True)
    plain.load_state_dict({name: value for name, value in rnn.state_dict().items() if "gate" not in name})
    x, state = torch.randn(4, 1, 3), torch.zeros(1, 4, 6)
    with torch.no_grad():
        if phased is PhasedLSTM:
            cell = state.clone()
            cell[0, 0, 1] = INF
            for mine, theirs in zip(rnn(x, (state, cell))[1], plain(x, (state, cell))[1], strict=True):
                torch.testing.assert_close(mine, theirs)
        else:
            for layer in (rnn, plain):
                layer.weight_hh_l0.fill_(1e-3)
            state[0, 0, 1] = INF
            wanted = plain(x, state)[1]
            assert torch.isinf(wanted).any()
            torch.testing.assert_close(rnn(x, state)[1], wanted, equal_nan=True)
