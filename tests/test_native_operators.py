"""The raw operators, which take whatever they are handed: strided tensors, and errors for what does not fit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_native import leaves
from torch import Tensor

from phased_lstm.ops import native

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=f"native kernels: {native.missing()}")


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
    wanted = torch.ops.phased_lstm.layer(*operands, *options, True, True, False)
    got = torch.ops.phased_lstm.layer(*strided(operands), *options, True, True, False)
    output, h_n, c_n, *taped = wanted
    gradients = (torch.randn_like(output), torch.randn_like(h_n), torch.randn_like(c_n) if lstm else None)
    way_back = (*operands[:3], *operands[5:], *options, h_n, *taped, *gradients)
    wanted += torch.ops.phased_lstm.layer_backward(*way_back, True, True, None, [])
    got += torch.ops.phased_lstm.layer_backward(*strided(way_back), True, True, None, [])
    assert [name for name, (a, b) in enumerate(zip(got, wanted, strict=True)) if not torch.equal(a, b)] == []


@pytest.mark.parametrize("lstm", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("shared", [True, False])
def test_states_and_gradients_that_are_not_given_are_zeros(lstm: bool, batch: int, shared: bool) -> None:
    x, times, h, *rest = (value.detach() for value in leaves(lstm, (batch, 6, 3, 4), shared, lstm))
    weights = rest[1:] if lstm else rest
    biases = (weights[2], None) if lstm else (weights.pop(2), weights.pop(2))
    gate = weights[3:6] if lstm else weights[2:5]
    operands = (*weights[:2], *biases, weights[6] if lstm else None, *gate, 0.0, 0, False)
    zeros = torch.zeros_like(h)
    states = (zeros, zeros if lstm else None)
    ops = torch.ops.phased_lstm
    wanted = ops.layer(x, times, None, *states, *operands, True, True, False)
    found = ops.layer(x, times, None, None, None, *operands, True, True, False)
    assert [index for index, (a, b) in enumerate(zip(found, wanted, strict=True)) if not torch.equal(a, b)] == []
    output, h_n, _, *taped = wanted
    way_back = (x, times, None, *operands, h_n, *taped, torch.randn_like(output))
    wanted = ops.layer_backward(*way_back, *states, True, True, None, [])
    found = ops.layer_backward(*way_back, None, None, True, True, None, [])
    assert [index for index, (a, b) in enumerate(zip(found, wanted, strict=True)) if not torch.equal(a, b)] == []


@pytest.mark.parametrize("lstm", [True, False])
def test_final_states_of_a_layer_have_its_dimension(lstm: bool) -> None:
    x, times, *_ = leaves(lstm, (5, 6, 3, 4), False, False)
    gates = 4 if lstm else 3
    one = torch.ones(4, dtype=torch.float64)
    operands = (torch.randn(gates * 4, 3).double(), torch.randn(gates * 4, 4).double(), None, None, None, one, one, one)
    operands = (x, times, None, *operands, 0.0, 0, False)
    ops = torch.ops.phased_lstm

    def there_and_back(layered: bool) -> tuple[Tensor, ...]:
        _, h_n, c_n, *taped = ops.layer(*operands[:3], None, None, *operands[3:], True, True, layered)
        assert h_n.shape == ((1, 5, 4) if layered else (5, 4))
        assert c_n.shape == (*h_n.shape[:-2], 5 if lstm else 0, 4)
        in_states = (h_n.cos(), c_n.cos() if lstm else None)
        return (h_n, c_n, *ops.layer_backward(*operands, h_n, *taped, None, *in_states, True, True, None, []))

    (h_n, c_n, *wanted), (layered_h_n, layered_c_n, *found) = there_and_back(False), there_and_back(True)
    assert torch.equal(layered_h_n, h_n.unsqueeze(0))
    assert torch.equal(layered_c_n, c_n.unsqueeze(0))
    assert [index for index, (a, b) in enumerate(zip(found, wanted, strict=True)) if not torch.equal(a, b)] == []


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
        return ops.layer(x, times, lengths, h, h, *weights, *gate, *tail, True, True, False)

    def backward(events: Any, tape: int, weights=weights, h=h, raw=(None, [])) -> Any:
        return ops.layer_backward(
            x, times, None, *weights, *gate, *tail, h, torch.zeros(tape, 6), *events, None, h, h, False, True, *raw
        )

    of_gru = (torch.randn(15, 4), torch.randn(15, 5), None, None, None)

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
            False,
        ),
        "input of another dtype": lambda: forward(x=x.double()),
        "period of zero": lambda: forward(gate=(one * 0, one, one)),
        "too few periods": lambda: forward(gate=(one[:4], one, one)),
        "state of another batch": lambda: forward(h=h[:1]),
        "states of two layers": lambda: forward(h=torch.zeros(2, 2, 5)),
        "a cell state for a GRU": lambda: forward(weights=of_gru),
        "a cell's gradient for a GRU": lambda: backward(none, 0, weights=of_gru),
        "final states of two layers": lambda: backward(none, 0, h=torch.zeros(2, 2, 5)),
        "a gate of another size": lambda: backward(none, 0, raw=(torch.ones(8, 4), [1.0] * 7)),
        "a gate without constants": lambda: backward(none, 0, raw=(torch.ones(8, 5), [])),
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
        ("states of two layers", "h0: size 2 in dimension 0, expected 1"),
        ("a cell state for a GRU", "c0 is an LSTM's"),
        ("a cell's gradient for a GRU", "grad_c_n is an LSTM's"),
        ("final states of two layers", "h_n: size 2 in dimension 0, expected 1"),
        ("a gate of another size", "raw_gate: size 4 in dimension 1, expected 5"),
        ("a gate without constants", "parametrisation should have 7 constants, got 0"),
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


def test_offsets_that_wrap_around_are_no_places_of_events() -> None:
    """Those of a row between others rise by H a step, from 2**63 - 1 on."""
    batch, steps, hidden = 3, 50, 1000
    offsets = torch.zeros(batch, steps + 1, dtype=torch.int64)
    offsets[1, 0] = 2**63 - 1
    offsets[1, 1:] = torch.arange(1, steps + 1) * hidden - 1 - 2**63
    events = (offsets, torch.zeros(0, dtype=torch.int32), torch.zeros(0))
    one, h = torch.ones(hidden, dtype=torch.float64), torch.zeros(batch, hidden)
    with pytest.raises(RuntimeError, match="offsets should rise by at most H a step"):
        torch.ops.phased_lstm.layer_backward(
            torch.zeros(batch, steps, 1), torch.zeros(batch, steps).double(), None, torch.zeros(4 * hidden, 1),
            torch.zeros(4 * hidden, hidden), None, None, None, one, one, one, 0.0, 0, False, h, torch.zeros(0, 8),
            *events, None, h, h, False, True, None, [],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("offsets", "codes", "message"),
    [
        # Two groups of two sequences, a tick for each of two steps: those of a group are open in the same.
        ([[0, 1, 2], [2, 3, 4]], [16, 17, 16, 4 * 16], "tape: size 9 in dimension 0, expected 4"),
        ([[0, 1, 2], [2, 3, 4]], [16, 17, 16, 5 * 16], "were times changed between forward and backward"),
        ([[0, 1, 2], [2, 3, 4]], [16, 18, 16, 17], "were times changed between forward and backward"),
        ([[0, 1], [1, 4]], [16, 17, 16, 17], "were times changed between forward and backward"),
        ([[0, 1, 2]], [16, 17], "were times changed between forward and backward"),
        ([[0, 2, 2], [2, 3, 4]], [17, 16, 16, 17], "events should rise within a tick"),
        ([[0, 2, 2], [2, 3, 4]], [16, 16, 16, 17], "events should rise within a tick"),
        ([[0, 1, 2], [2, 3, 4]], [16, 17, 16, -1], "events should rise within a tick"),
        ([[0, 1, 2], [2, 3, 5]], [16, 17, 16, 17], "offsets should span all events"),
        ([[0, 1, 2], [1, 3, 4]], [16, 17, 16, 17], "offsets should rise by at most"),
        ([[0, 3, 2], [2, 3, 4]], [16, 17, 16, 17], "offsets should rise by at most"),
        ([[0, -(2**63), 2], [2, 3, 4]], [16, 17, 16, 17], "offsets should rise by at most"),
        ([[0, 0, 2**40], [2**40, 0, 4]], [16, 17, 16, 17], "offsets should rise by at most"),
    ],
)
def test_events_of_groups_are_checked(offsets: list[list[int]], codes: list[int], message: str) -> None:
    """Sequences 0 and 1, and 2 and 3, are a group each, and all have the same times."""
    events = (torch.tensor(offsets), torch.tensor(codes, dtype=torch.int32), torch.zeros(len(codes)))
    one, h = torch.ones(5, dtype=torch.float64), torch.zeros(4, 5)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.phased_lstm.layer_backward(
            torch.zeros(4, 2, 1), torch.arange(2).double().expand(4, 2), None, torch.zeros(20, 1), torch.zeros(20, 5),
            None, None, None, one, one, one, 0.0, 0, False, h, torch.zeros(9, 6), *events, None, h, h, False, True,
            None, [],
        )  # fmt: skip


def test_events_of_a_waiting_sequence_are_none() -> None:
    """The second sequence of the first group is much later than the first: it has no event in the first tick."""
    times = torch.tensor([[0.0, 1.0], [50.0, 51.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    offsets = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    one, h = torch.ones(5, dtype=torch.float64), torch.zeros(4, 5)
    for code, message in ((16, "tape: size 9"), (17, "were times changed between forward and backward")):
        events = (offsets, torch.tensor([code], dtype=torch.int32), torch.zeros(1))
        with pytest.raises(RuntimeError, match=message):
            torch.ops.phased_lstm.layer_backward(
                torch.zeros(4, 2, 1), times, None, torch.zeros(20, 1), torch.zeros(20, 5), None, None, None, one, one,
                one, 0.0, 0, False, h, torch.zeros(9, 6), *events, None, h, h, False, True, None, [],
            )  # fmt: skip


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
            torch.zeros(2, 6), *events, None, h, h, False, True, None, [],
        )  # fmt: skip
