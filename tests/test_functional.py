"""The functional forms against the oracle, in outputs and every gradient, at odd sizes."""

from __future__ import annotations

import math
from typing import Any

import oracle
import pytest
import torch
from cases import gradients, leaves_of, operands, relative_error

from phased_lstm import functional
from phased_lstm._checks import OSCILLATIONS

ALL = pytest.mark.parametrize("oscillation", OSCILLATIONS)
KINDS = pytest.mark.parametrize("kind", ["lstm", "gru"])
RUN = {"lstm": functional.phased_lstm, "gru": functional.phased_gru}
ORACLE = {"lstm": oracle.phased_lstm, "gru": oracle.phased_gru}
# Relative to the largest entry: 11 steps of a few dozen float64 roundings each, in times up to 60 and slopes up to 7.
TOLERANCE = 1e-11


def assert_parity(kind: str, arguments: dict[str, Any], options: dict[str, Any], tolerance: float = TOLERANCE) -> None:
    got = RUN[kind](**arguments, **options)
    wide = {name: None if v is None else v.detach().double().requires_grad_() for name, v in arguments.items()}
    wanted = ORACLE[kind](**wide, **options)
    assert len(got) == len(wanted) == {"lstm": 3, "gru": 2}[kind]
    for index, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        assert mine.shape == theirs.shape
        assert relative_error(mine, theirs) <= tolerance, index
    # Whether the square's missing derivative in the ratio is zero or None has a test of its own.
    got_gradients = gradients(got, arguments, unused=options.get("oscillation") == "square")
    wanted_gradients = gradients(wanted, wide, unused=True)
    for name, gradient in wanted_gradients.items():
        if gradient.any():
            assert relative_error(got_gradients[name], gradient) <= tolerance, name
        else:
            assert not got_gradients[name].any(), name


@KINDS
@ALL
@pytest.mark.parametrize("leak", [0.0, 0.02])
def test_oracle_over_oscillations_and_leak(kind: str, oscillation: str, leak: float) -> None:
    assert_parity(kind, operands(kind), {"oscillation": oscillation, "leak": leak})


@KINDS
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [11, 0, 4]], ids=["full", "ragged"])
def test_oracle_over_forms(kind: str, shared: bool, reverse: bool, lengths: list[int] | None) -> None:
    assert_parity(kind, operands(kind, shared=shared, seed=1), {"reverse": reverse, "lengths": lengths, "leak": 0.02})


@KINDS
def test_oracle_without_bias(kind: str) -> None:
    assert_parity(kind, operands(kind, bias=False), {})


@pytest.mark.parametrize("name", ["bias_ih", "bias_hh"])
def test_gru_with_one_bias(name: str) -> None:
    assert_parity("gru", operands("gru") | {name: None}, {})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
def test_oracle_with_peepholes(bias: bool, reverse: bool) -> None:
    """The output gate's peephole and tanh read the candidate cell, as in the authors' erratum."""
    assert_parity("lstm", operands("lstm", peephole=True, bias=bias), {"reverse": reverse, "lengths": [11, 7, 1]})


@KINDS
@pytest.mark.parametrize(("batch", "steps", "features", "hidden"), [(1, 1, 1, 1), (2, 3, 1, 9), (5, 2, 13, 1)])
def test_oracle_at_other_sizes(kind: str, batch: int, steps: int, features: int, hidden: int) -> None:
    arguments = operands(kind, batch=batch, steps=steps, features=features, hidden=hidden, seed=4)
    assert_parity(kind, arguments, {"leak": 0.02})


@KINDS
def test_oracle_in_float32(kind: str) -> None:
    arguments = operands(kind, dtype=torch.float32)
    # Eleven steps of sums of a dozen products, each rounded, through gradients of slope up to 7 and times up to 60.
    assert_parity(kind, arguments, {}, tolerance=256 * torch.finfo(torch.float32).eps)


def test_hand_derived_gradient_of_one_unit() -> None:
    """One unit, one step: derivatives worked out on paper, and those of the oracle itself."""
    x, h, c, w, u = 0.7, -0.4, 0.9, (0.3, -0.6, 1.1, 0.8), (-0.2, 0.5, 0.4, -0.9)
    tau, s, r, t = 4.0, 0.5, 0.6, 1.3
    wanted = oracle.unit_gradient(x, h, c, w, u, k=2 * 0.2 / r, slope=2 / r / tau)

    def leaf(*shape: int, values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64).view(shape).requires_grad_()

    leaves = {
        "x": leaf(1, 1, 1, values=x), "t": leaf(1, values=t), "h": leaf(1, 1, values=h), "c": leaf(1, 1, values=c)
    }  # fmt: skip
    fixed = (leaf(4, 1, values=w), leaf(4, 1, values=u), None, *(leaf(1, values=v) for v in (tau, s, r)))
    for run in (functional.phased_lstm, oracle.phased_lstm):
        _, h_n, c_n = run(*leaves.values(), *fixed)
        for (name, gradient), got in zip(
            wanted.items(),
            torch.autograd.grad((h_n + c_n).sum(), [leaves[n] for n in wanted]),
            strict=True,
        ):
            assert got.item() == pytest.approx(gradient, rel=1e-13), (run.__module__, name)


@KINDS
def test_return_sequence_false_changes_only_the_output(kind: str) -> None:
    arguments = operands(kind)
    output, *states = RUN[kind](**arguments, lengths=[11, 3, 0])
    nothing, *others = RUN[kind](**arguments, lengths=[11, 3, 0], return_sequence=False)
    assert nothing is None
    for state, other in zip(states, others, strict=True):
        assert torch.equal(state, other)
    assert torch.equal(output[0, -1], states[0][0])
    assert torch.equal(output[1, 2], states[0][1])
    without = gradients((*others,), arguments)
    for name, gradient in gradients((*states,), arguments).items():
        assert torch.equal(gradient, without[name]), name


@KINDS
def test_shared_times_equal_rows_of_the_same_times(kind: str) -> None:
    arguments = operands(kind, shared=True)
    rows = arguments["times"].expand(3, 11)
    for got, wanted in zip(RUN[kind](**arguments), RUN[kind](**(arguments | {"times": rows})), strict=True):
        assert torch.equal(got, wanted)


@KINDS
def test_rows_have_clocks_of_their_own(kind: str) -> None:
    """One sample's time for the whole batch was a bug of earlier implementations."""
    arguments = operands(kind)
    together = RUN[kind](**arguments)
    assert not torch.equal(arguments["times"][0], arguments["times"][1])
    for row in range(3):
        alone = arguments | {n: arguments[n][row : row + 1] for n in ("input", "times", "h0", "c0") if n in arguments}
        for got, wanted in zip(together, RUN[kind](**alone), strict=True):
            torch.testing.assert_close(got[row : row + 1], wanted, rtol=1e-12, atol=1e-14)


@KINDS
@pytest.mark.parametrize("reverse", [False, True])
def test_nan_in_padding_is_ignored(kind: str, reverse: bool) -> None:
    """Padding was processed, its mask ignored, in earlier implementations."""
    lengths = [11, 0, 4]
    clean = operands(kind)
    padding = torch.arange(11) >= torch.tensor(lengths).unsqueeze(1)
    dirty = dict(clean)
    for name in ("input", "times"):
        value = clean[name].detach().clone()
        value[padding] = math.nan
        dirty[name] = value.requires_grad_()
    options = {"lengths": torch.tensor(lengths), "reverse": reverse, "leak": 0.02}
    got, wanted = RUN[kind](**dirty, **options), RUN[kind](**clean, **options)
    for mine, theirs in zip(got, wanted, strict=True):
        assert torch.equal(mine, theirs)
    assert not got[0][padding].any()
    found = gradients(got, dirty)
    for name, gradient in gradients(wanted, clean).items():
        assert torch.equal(found[name], gradient), name
    assert not found["times"][padding].any()


@KINDS
def test_sequences_of_length_0_keep_their_state(kind: str) -> None:
    arguments = operands(kind)
    output, *states = RUN[kind](**arguments, lengths=[0, 0, 0])
    assert not output.any()
    for state, name in zip(states, ("h0", "c0"), strict=False):
        assert torch.equal(state, arguments[name])


@KINDS
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_lengths_as_tensor_or_list(kind: str, dtype: torch.dtype) -> None:
    arguments = operands(kind)
    from_list = RUN[kind](**arguments, lengths=(2, 11, 5))
    for got, wanted in zip(
        RUN[kind](**arguments, lengths=torch.tensor([2, 11, 5], dtype=dtype)), from_list, strict=True
    ):
        assert torch.equal(got, wanted)


@KINDS
@pytest.mark.parametrize(("batch", "steps"), [(0, 4), (3, 0), (0, 0)])
@pytest.mark.parametrize("return_sequence", [True, False])
def test_empty_batches_and_sequences(kind: str, batch: int, steps: int, return_sequence: bool) -> None:
    arguments = {n: v.detach() for n, v in operands(kind, batch=3, steps=5).items()}
    arguments["input"] = arguments["input"][:batch, :steps]
    arguments["input"] = arguments["input"] if len(arguments["input"]) == batch else torch.zeros(batch, steps, 5)
    for times in (torch.arange(steps), torch.zeros(batch, steps)):
        arguments["times"] = times
        for name in {"h0", "c0"} & arguments.keys():
            arguments[name] = torch.randn(batch, 7, dtype=torch.float64)
        output, *states = RUN[kind](**arguments, return_sequence=return_sequence)
        assert output.shape == (batch, steps, 7) if return_sequence else output is None
        for state, name in zip(states, ("h0", "c0"), strict=False):
            assert torch.equal(state, arguments[name])


@KINDS
@ALL
@pytest.mark.parametrize("leak", [0.0, 0.05])
def test_gradcheck(kind: str, oscillation: str, leak: float) -> None:
    arguments = operands(kind, batch=2, steps=3, features=2, hidden=2, peephole=kind == "lstm", oscillation=oscillation)
    names, values = zip(*leaves_of(arguments).items(), strict=True)
    assert {"times", "period", "shift", "ratio_on"} <= set(names)

    def run(*tensors: torch.Tensor) -> Any:
        return RUN[kind](**dict(zip(names, tensors, strict=True)), oscillation=oscillation, leak=leak)

    assert torch.autograd.gradcheck(run, values)
    assert torch.autograd.gradgradcheck(run, values)


def test_gradcheck_with_lengths_and_reverse() -> None:
    arguments = operands("lstm", batch=3, steps=3, features=2, hidden=2, shared=True, peephole=True, seed=8)
    names, values = zip(*leaves_of(arguments).items(), strict=True)

    def run(*tensors: torch.Tensor) -> Any:
        return functional.phased_lstm(**dict(zip(names, tensors, strict=True)), lengths=[3, 0, 2], reverse=True)

    assert torch.autograd.gradcheck(run, values)
    assert torch.autograd.gradgradcheck(run, values)


@KINDS
def test_units_that_never_open_keep_their_state_and_get_zero_gradients(kind: str) -> None:
    arguments = operands(kind)
    with torch.no_grad():
        arguments["period"][2:4] = 1e4
        arguments["shift"][2:4] = 1e3
    results = RUN[kind](**arguments)
    for state, name in zip(results[1:], ("h0", "c0"), strict=False):
        assert torch.equal(state[:, 2:4], arguments[name][:, 2:4])
    found = gradients(results, arguments)
    for name in ("period", "shift", "ratio_on"):
        assert not found[name][2:4].any()
        assert found[name][[0, 1, 4, 5, 6]].all()
    for name in ("weight_ih", "weight_hh"):
        blocks = found[name].view(-1, 7, found[name].shape[1])
        assert not blocks[:, 2:4].any()
        assert blocks[:, [0, 1, 4, 5, 6]].any()


@KINDS
def test_square_gives_the_ratio_a_zero_gradient_not_none(kind: str) -> None:
    arguments = operands(kind)
    found = gradients(RUN[kind](**arguments, oscillation="square"), arguments)
    assert not found["ratio_on"].any()


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_operands_accumulate_in_float32(kind: str, dtype: torch.dtype) -> None:
    gate = ("period", "shift", "ratio_on", "times")
    narrow = {n: v.detach().to(dtype) if n not in gate else v.detach() for n, v in operands(kind).items()}
    wide = {n: v.float() if n not in gate else v for n, v in narrow.items()}
    for got, wanted in zip(RUN[kind](**narrow), RUN[kind](**wide), strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, wanted.to(dtype))
