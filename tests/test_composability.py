"""Layers and cells under the rest of torch: copies, transforms, compilation, casts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from test_layers import flatten
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.parametrizations import weight_norm

from phased_lstm import PhasedGRU, PhasedGRUCell, PhasedLSTM, PhasedLSTMCell, TimeGate

PHASED = pytest.mark.parametrize("phased", [PhasedLSTM, PhasedGRU])
OPTIONS: dict[str, Any] = {"batch_first": True, "ratio_on": 0.4, "period_init_min": 2.0, "period_init_max": 9.0}
EPS = torch.finfo(torch.float32).eps


def make(phased: Any, *sizes: int, **options: Any) -> Any:
    return phased(*(sizes or (3, 5)), **(OPTIONS | options))


def batch(steps: int = 6, rows: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, steps, 3), torch.rand(rows, steps, dtype=torch.float64).cumsum(1) * 4


def assert_equal(mine: Any, theirs: Any) -> None:
    for got, wanted in zip(flatten(mine), flatten(theirs), strict=True):
        assert torch.equal(got, wanted)


def assert_close(mine: Any, theirs: Any, roundings: int = 64) -> None:
    """Equal up to the order of summation over a few steps."""
    for got, wanted in zip(flatten(mine), flatten(theirs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=roundings * EPS)


@PHASED
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda rnn: pickle.loads(pickle.dumps(rnn))], ids=["copy", "pickle"]
)
def test_duplicates_are_equal_and_apart(phased: Any, duplicate: Any) -> None:
    rnn = make(phased, 3, 5, 2, bidirectional=True)
    rnn.gate_l0.assign_(origin=5)
    x, times = batch()
    other = duplicate(rnn)
    wanted = flatten(rnn(x, times=times))
    assert_equal(other(x, times=times), rnn(x, times=times))
    with torch.no_grad():
        other.weight_ih_l0.zero_()
        other.gate_l0.initial_period.fill_(1.0)
    for got, expected in zip(flatten(rnn(x, times=times)), wanted, strict=True):
        assert torch.equal(got, expected)


@PHASED
def test_meta_device_and_to_empty(phased: Any) -> None:
    rnn = make(phased, 3, 5, 2, device="meta")
    output, *states = flatten(rnn(torch.zeros(4, 6, 3, device="meta"), times=torch.zeros(4, 6, device="meta")))
    assert output.shape == (4, 6, 5)
    assert {s.shape for s in states} == {(2, 4, 5)}
    rnn.to_empty(device="cpu")
    assert rnn.weight_ih_l0.isnan().all()
    rnn.reset_parameters()
    assert all(value.isfinite().all() for value in rnn.state_dict().values())
    assert rnn.gate_l0.origin.item() == 0
    rnn.to_empty(device="cpu").load_state_dict(source := make(phased, 3, 5, 2).state_dict())
    for key, value in rnn.state_dict().items():
        assert torch.equal(value, source[key]), key


@PHASED
def test_functional_call_and_assigned_weights(phased: Any) -> None:
    rnn, other = make(phased), make(phased)
    x, times = batch()
    state = other.state_dict()
    assert_equal(functional_call(rnn, state, (x,), {"times": times}), other(x, times=times))
    rnn.load_state_dict(state, assign=True)
    assert rnn.weight_ih_l0.data_ptr() == other.weight_ih_l0.data_ptr()
    assert_equal(rnn(x, times=times), other(x, times=times))
    rnn.weight_hh_l0 = nn.Parameter(torch.zeros_like(rnn.weight_hh_l0))
    with torch.no_grad():
        other.weight_hh_l0.zero_()
    assert_equal(rnn(x, times=times), other(x, times=times))


@PHASED
def test_plain_checkpoint_assigned(phased: Any) -> None:
    plain = {PhasedLSTM: nn.LSTM, PhasedGRU: nn.GRU}[phased](3, 5)
    rnn = make(phased)
    with pytest.warns(UserWarning, match="layer without time gates"):
        rnn.load_state_dict(plain.state_dict(), assign=True)
    assert torch.equal(rnn.weight_ih_l0, plain.weight_ih_l0)
    assert all(p.requires_grad for n, p in rnn.named_parameters() if "ratio_on" not in n)
    assert not rnn.gate_l0.raw_ratio_on.requires_grad


@PHASED
def test_parametrisation(phased: Any) -> None:
    rnn = make(phased)
    x, times = batch()
    wanted = flatten(rnn(x, times=times))
    weight_norm(rnn, "weight_hh_l0")
    assert_close(rnn(x, times=times), (wanted[0], tuple(wanted[1:])))
    rnn(x, times=times)[0].sum().backward()
    assert rnn.parametrizations.weight_hh_l0.original0.grad.any()
    assert rnn.gates == [rnn.gate_l0]
    rnn.load_state_dict(rnn.state_dict())


@PHASED
@pytest.mark.parametrize("shared", [True, False])
def test_vmap_over_inputs(phased: Any, shared: bool) -> None:
    rnn = make(phased, 3, 5, 2, bidirectional=True, leak=0.01)
    x, times = batch()
    if shared:
        got = vmap(lambda row: rnn(row, times=times[0]))(x)
        wanted = rnn(x, times=times[0])
    else:
        got = vmap(lambda row, stamps: rnn(row, times=stamps))(x, times)
        wanted = rnn(x, times=times)
    torch.testing.assert_close(got[0], wanted[0], rtol=0, atol=64 * EPS)
    for state, expected in zip(flatten(got)[1:], flatten(wanted)[1:], strict=True):
        torch.testing.assert_close(state, expected.transpose(0, 1), rtol=0, atol=64 * EPS)


@PHASED
def test_vmap_over_an_ensemble(phased: Any) -> None:
    members = [make(phased) for _ in range(3)]
    members[1].gate_l0.assign_(origin=2)
    parameters, buffers = stack_module_state(members)
    x, times = batch()
    base = copy.deepcopy(members[0]).to("meta")
    output = vmap(lambda p, b: functional_call(base, (p, b), (x,), {"times": times})[0])(parameters, buffers)
    for got, member in zip(output, members, strict=True):
        torch.testing.assert_close(got, member(x, times=times)[0], rtol=0, atol=64 * EPS)


@PHASED
def test_vmap_refuses_times_that_are_not_finite(phased: Any) -> None:
    rnn = make(phased)
    x, times = batch()
    times[2, 1] = float("nan")
    with pytest.raises(ValueError, match="times should be finite"):
        vmap(lambda row, stamps: rnn(row, times=stamps))(x, times)


@PHASED
def test_per_sample_gradients(phased: Any) -> None:
    rnn = make(phased)
    x, times = batch()
    parameters = {n: p.detach() for n, p in rnn.named_parameters()}
    buffers = dict(rnn.named_buffers())

    def loss(values: dict[str, Tensor], row: Tensor, stamps: Tensor) -> Tensor:
        return functional_call(rnn, (values, buffers), (row,), {"times": stamps})[0].square().sum()

    got = vmap(grad(loss), (None, 0, 0))(parameters, x, times)
    for row in range(4):
        rnn.zero_grad()
        rnn(x[row], times=times[row])[0].square().sum().backward()
        for name, parameter in rnn.named_parameters():
            if parameter.requires_grad:
                scale = parameter.grad.abs().max().item()
                # Gradients of gates carry slopes of up to 5 and times of up to 24.
                torch.testing.assert_close(got[name][row], parameter.grad, rtol=0, atol=512 * EPS * max(scale, 1.0))


# torch itself scripts a decomposition when forward mode is first used, and warns of its own call.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@PHASED
def test_forward_mode_in_float32(phased: Any) -> None:
    rnn = make(phased)
    x, times = batch()
    direction = torch.randn_like(x)
    _, tangent = jvp(lambda value: rnn(value, times=times)[0], (x,), (direction,))
    x.requires_grad_()
    output = rnn(x, times=times)[0]
    weights = torch.randn_like(output)
    (gradient,) = torch.autograd.grad((output * weights).sum(), x)
    torch.testing.assert_close((tangent * weights).sum(), (gradient * direction).sum(), rtol=1e3 * EPS, atol=1e3 * EPS)
    assert tangent.any()


@PHASED
@pytest.mark.parametrize("lengths", [None, [6, 2, 0, 5]], ids=["full", "ragged"])
def test_compile(phased: Any, lengths: list[int] | None) -> None:
    torch._dynamo.reset()
    rnn = make(phased)
    x, times = batch(steps=3 if lengths is None else 6)
    keywords = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    got, wanted = compiled(x, times=times, **keywords), rnn(x, times=times, **keywords)
    assert_close(got, wanted)
    grads = []
    for result in (got, wanted):
        rnn.zero_grad()
        result[0].square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in rnn.named_parameters() if p.requires_grad})
    for name, gradient in grads[1].items():
        torch.testing.assert_close(
            grads[0][name], gradient, rtol=0, atol=512 * EPS * max(1.0, gradient.abs().max().item())
        )


@PHASED
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("shared", [True, False])
def test_fake_tensors_with_gradients(phased: Any, backend: str, shared: bool) -> None:
    with FakeTensorMode():
        rnn = make(phased, 3, 5, 2, backend=backend, bidirectional=True)
        x, times = torch.randn(4, 6, 3, requires_grad=True), torch.rand(*([6] if shared else [4, 6]))
        output, _ = rnn(x, times=times, lengths=torch.tensor([6, 2, 0, 5]))
        assert output.shape == (4, 6, 10)
        output.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape
        assert all(parameter.grad is not None for name, parameter in rnn.named_parameters() if "ratio" not in name)


@PHASED
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("times", [None, torch.arange(6), torch.rand(4, 6)], ids=["counted", "shared", "own"])
def test_make_fx(phased: Any, backend: str, mode: Any, times: Tensor | None) -> None:
    rnn = make(phased, 3, 5, backend=backend)
    x, other = (torch.randn(4, 6, 3) for _ in range(2))
    given = () if times is None else (times,)
    state = dict(rnn.named_parameters()) | dict(rnn.named_buffers())

    def call(state: dict[str, Tensor], input: Tensor, *stamps: Tensor) -> Tensor:
        return functional_call(rnn, state, (input,), {"times": stamps[0] if stamps else None})[0]

    with torch.no_grad():
        traced = make_fx(call, tracing_mode=mode)(state, x, *given)
        torch.testing.assert_close(traced(state, other, *given), rnn(other, times=times)[0])


@PHASED
def test_make_fx_of_a_derivative(phased: Any) -> None:
    rnn = make(phased, 3, 5)
    x, other = (torch.randn(4, 6, 3) for _ in range(2))

    def derivative(input: Tensor) -> Tensor:
        input = input.detach().requires_grad_()
        return torch.autograd.grad(rnn(input)[0].square().sum(), input)[0]

    torch.testing.assert_close(make_fx(derivative)(x)(other), derivative(other))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_compiled_layers_still_refuse_times_that_are_not_finite(bad: float) -> None:
    torch._dynamo.reset()
    rnn = make(PhasedLSTM)
    x, times = batch(steps=3)
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    compiled(x, times=times)
    times[1, 2] = bad
    with pytest.raises((ValueError, RuntimeError), match="times should be finite"):
        compiled(x, times=times)


@PHASED
def test_export(phased: Any) -> None:
    rnn = make(phased).eval()
    x, times = batch(steps=3)
    program = torch.export.export(rnn, (x,), {"times": times}, strict=False)
    other, stamps = batch(steps=3)
    assert_close(program.module()(other, times=stamps), rnn(other, times=stamps))


@PHASED
@pytest.mark.parametrize("narrow_input", [True, False])
def test_autocast_gives_float32_from_rounded_operands(phased: Any, narrow_input: bool) -> None:
    rnn = make(phased, 3, 5, 2)
    x, times = batch()
    with torch.autocast("cpu", torch.bfloat16):
        got = flatten(rnn(x.bfloat16() if narrow_input else x, times=times))
        hx = torch.randn(2, 4, 5)
        assert flatten(rnn(x, (hx, hx) if phased is PhasedLSTM else hx, times))[0].dtype == torch.float32
    assert {part.dtype for part in got} == {torch.float32}
    single = make(phased)
    rounded = copy.deepcopy(single)
    with torch.no_grad():
        if phased is PhasedLSTM:
            # The layer adds the biases in float32 and rounds their sum.
            rounded.bias_ih_l0.add_(rounded.bias_hh_l0)
            rounded.bias_hh_l0.zero_()
        for name, parameter in rounded.named_parameters():
            if not name.startswith("gate_"):
                parameter.copy_(parameter.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        got = single(x, times=times)
    assert_equal(got, rounded(x.bfloat16().float(), times=times))


@pytest.mark.parametrize("made", [PhasedLSTMCell, PhasedGRUCell])
def test_autocast_of_cells(made: Any) -> None:
    cell = made(3, 5, ratio_on=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        for x in (torch.randn(4, 3), torch.randn(4, 3, dtype=torch.bfloat16)):
            state = cell(x, None, 1_700_000_000)
            state = cell(x, state, 1_700_000_001)
            assert {s.dtype for s in (state if isinstance(state, tuple) else (state,))} == {torch.float32}


@PHASED
def test_autocast_never_touches_times(phased: Any) -> None:
    """In bfloat16 the steps of a second after 1e6 would all be one time."""
    rnn = make(phased)
    x, _ = batch(steps=6)
    times = torch.arange(6, dtype=torch.float32) + 1_000_000
    rnn.gate_l0.assign_(period=6.0, shift=1_000_000.0, ratio_on=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        output = rnn(x, times=times)[0]
    changed = [not torch.equal(output[:, step], output[:, step - 1]) for step in range(1, 6)]
    assert changed == [True, True, False, False, False]


@PHASED
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_accumulate_in_float32(phased: Any, dtype: torch.dtype) -> None:
    narrow = make(phased).to(dtype)
    if phased is PhasedLSTM:
        with torch.no_grad():
            narrow.bias_hh_l0.zero_()
    wide = copy.deepcopy(narrow).float()
    x, times = batch(steps=40)
    got, wanted = narrow(x.to(dtype), times=times), wide(x.to(dtype).float(), times=times)
    for mine, theirs in zip(flatten(got), flatten(wanted), strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, theirs.to(dtype))
    got[0].float().sum().backward()
    assert narrow.weight_ih_l0.grad.dtype == dtype
    assert narrow.gate_l0.raw_period.grad.dtype == torch.float32


@PHASED
@pytest.mark.parametrize("oscillation", ["triangle", "square", "cosine"])
@pytest.mark.parametrize("return_sequence", [True, False])
def test_every_parameter_gets_a_gradient_zero_where_a_unit_never_opened(
    phased: Any, oscillation: str, return_sequence: bool
) -> None:
    """As distributed training needs it: a gradient of None would hang the reduction."""
    options = {"oscillation": oscillation, "peephole": True} if phased is PhasedLSTM else {"oscillation": oscillation}
    rnn = make(phased, 3, 5, 2, bidirectional=True, trainable_ratio_on=oscillation != "square", **options)
    for gate in rnn.gates:
        gate.assign_(period=torch.tensor([2.0, 3.0, 1e6, 2.5, 1e6]), shift=torch.tensor([0.1, 0.2, 1e5, 0.4, 1e5]))
    x, times = batch()
    output, *states = flatten(rnn(x, times=times, return_sequence=return_sequence))
    (output if return_sequence else sum(states)).sum().backward()
    for name, parameter in rnn.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        if "weight_ih" in name or "weight_hh" in name or "bias" in name:
            assert not parameter.grad.unflatten(0, (-1, 5))[:, [2, 4]].any(), name
            assert parameter.grad.unflatten(0, (-1, 5))[:, [0, 1, 3]].any(), name
        else:
            assert not parameter.grad[[2, 4]].any(), name


def test_16_bit_cast_of_a_module_leaves_its_gates_wide() -> None:
    model = nn.Sequential(nn.Linear(3, 3), make(PhasedLSTM)).bfloat16()
    assert model[0].weight.dtype == torch.bfloat16
    gates = [m for m in model.modules() if isinstance(m, TimeGate)]
    assert [p.dtype for gate in gates for p in gate.parameters()] == [torch.float32] * 3
