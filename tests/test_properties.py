"""Properties that hold for any data."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_layers import flatten, hold_open
from torch import Tensor, nn

from phased_lstm import PhasedGRU, PhasedLSTM

PHASED = pytest.mark.parametrize("phased", [PhasedLSTM, PhasedGRU])
SEEDS = st.integers(0, 2**31)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 4), st.integers(1, 6))


def make(phased: Any, features: int, hidden: int, **options: Any) -> Any:
    """A layer of the given sizes whose units open and close within a few steps."""
    defaults: dict[str, Any] = {"batch_first": True, "dtype": torch.float64, "ratio_on": 0.4}
    return phased(features, hidden, **(defaults | {"period_init_min": 2.0, "period_init_max": 9.0} | options))


def draw(rows: int, steps: int, features: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, steps, features, dtype=torch.float64), torch.randn(rows, steps, dtype=torch.float64) * 10


def states_for(rnn: Any, rows: int, dtype: torch.dtype = torch.float64) -> Any:
    h, c = torch.randn(2, rnn.num_layers * (1 + rnn.bidirectional), rows, rnn.hidden_size, dtype=dtype)
    return (h, c) if isinstance(rnn, PhasedLSTM) else h


def as_tuple(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def assert_equal(mine: Any, theirs: Any) -> None:
    for got, wanted in zip(flatten(mine), flatten(theirs), strict=True):
        assert torch.equal(got, wanted)


@PHASED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(sizes=SIZES, seed=SEEDS)
def test_closed_units_keep_their_state_bitwise(
    phased: Any, dtype: torch.dtype, sizes: tuple[int, int, int, int], seed: int
) -> None:
    rows, steps, features, hidden = sizes
    torch.manual_seed(seed)
    rnn = make(phased, features, hidden, dtype=dtype)
    x, times = draw(rows, steps, features)
    x = x.to(dtype)
    hx = states_for(rnn, rows, dtype)
    closed = rnn.gate_l0.phase(times) >= rnn.gate_l0.ratio_on
    state = hx
    for step in range(steps):
        _, new = rnn(x[:, step : step + 1], state, times[:, step : step + 1])
        for before, after in zip(as_tuple(state), as_tuple(new), strict=True):
            assert torch.equal(before[0][closed[:, step]], after[0][closed[:, step]])
            # The wrapper of a port returned the ungated state: every open unit must have moved, and only it.
            moved = rnn.gate_l0(times[:, step]) > 1e-6
            assert (before[0] != after[0])[moved].all()
        state = new
    never = closed.all(1)
    for initial, final in zip(as_tuple(hx), as_tuple(rnn(x, hx, times)[1]), strict=True):
        assert torch.equal(initial[0][never], final[0][never])


@PHASED
@given(sizes=SIZES, seed=SEEDS, start=st.integers(-(10**9), 10**9))
def test_peak_of_the_gate_is_an_ordinary_layer(
    phased: Any, sizes: tuple[int, int, int, int], seed: int, start: int
) -> None:
    rows, steps, features, hidden = sizes
    torch.manual_seed(seed)
    plain = {PhasedLSTM: nn.LSTM, PhasedGRU: nn.GRU}[phased](features, hidden, batch_first=True, dtype=torch.float64)
    rnn = hold_open(phased.from_lstm(plain) if phased is PhasedLSTM else phased.from_gru(plain))
    x, _ = draw(rows, steps, features)
    times = torch.randint(-1000, 1000, (rows, steps)) + start
    for got, wanted in zip(flatten(rnn(x, times=times)), flatten(plain(x)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-13)


@PHASED
@given(sizes=SIZES, seed=SEEDS, extra=st.integers(1, 5), filler=st.sampled_from([0.0, -7.5, math.nan, math.inf]))
def test_padding_changes_nothing(
    phased: Any, sizes: tuple[int, int, int, int], seed: int, extra: int, filler: float
) -> None:
    rows, steps, features, hidden = sizes
    torch.manual_seed(seed)
    rnn = make(phased, features, hidden, num_layers=2, bidirectional=True)
    x, times = draw(rows, steps, features)
    lengths = torch.randint(0, steps + 1, (rows,))
    longer = torch.full((rows, steps + extra, features), filler, dtype=torch.float64)
    later = torch.full((rows, steps + extra), filler, dtype=torch.float64)
    valid = torch.arange(steps) < lengths.unsqueeze(1)
    longer[:, :steps][valid], later[:, :steps][valid] = x[valid], times[valid]
    output, *states = flatten(rnn(longer, times=later, lengths=lengths))
    wanted, *wanted_states = flatten(rnn(x, times=times, lengths=lengths))
    assert not output[:, steps:].any()
    # A product over more rows may be summed in another order.
    torch.testing.assert_close(output[:, :steps], wanted, rtol=1e-12, atol=1e-14)
    for got, state in zip(states, wanted_states, strict=True):
        torch.testing.assert_close(got, state, rtol=1e-12, atol=1e-14)


@PHASED
@given(sizes=SIZES, seed=SEEDS)
def test_order_of_the_batch_changes_nothing(phased: Any, sizes: tuple[int, int, int, int], seed: int) -> None:
    rows, steps, features, hidden = sizes
    torch.manual_seed(seed)
    rnn = make(phased, features, hidden, num_layers=2, bidirectional=True)
    x, times = draw(rows, steps, features)
    lengths, order, hx = torch.randint(0, steps + 1, (rows,)), torch.randperm(rows), states_for(rnn, rows)
    moved = tuple(s[:, order] for s in as_tuple(hx))
    got = flatten(rnn(x[order], moved if phased is PhasedLSTM else moved[0], times[order], lengths=lengths[order]))
    output, *states = flatten(rnn(x, hx, times, lengths=lengths))
    for mine, theirs in zip(got, [output[order], *(s[:, order] for s in states)], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


@PHASED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(sizes=SIZES, seed=SEEDS, cuts=st.lists(st.integers(0, 9), max_size=3))
def test_streaming_in_chunks_is_bitwise_one_pass(
    phased: Any, dtype: torch.dtype, sizes: tuple[int, int, int, int], seed: int, cuts: list[int]
) -> None:
    rows, steps, features, hidden = sizes
    torch.manual_seed(seed)
    rnn = make(phased, features, hidden, num_layers=2, dtype=dtype)
    x, times = draw(rows, steps, features)
    x, hx = x.to(dtype), states_for(rnn, rows, dtype)
    whole = rnn(x, hx, times)
    edges = sorted({0, steps, *(cut for cut in cuts if cut < steps)})
    pieces, state = [], hx
    for start, stop in pairwise(edges):
        piece, state = rnn(x[:, start:stop], state, times[:, start:stop])
        pieces.append(piece)
    assert_equal((torch.cat(pieces, 1), state), whole)


@PHASED
@given(sizes=SIZES, seed=SEEDS, per_row=st.booleans())
def test_shared_times_equal_expanded_times(
    phased: Any, sizes: tuple[int, int, int, int], seed: int, per_row: bool
) -> None:
    rows, steps, features, hidden = sizes
    torch.manual_seed(seed)
    rnn = make(phased, features, hidden, num_layers=2, bidirectional=True, leak=0.01)
    x, times = draw(rows, steps, features)
    lengths = torch.randint(0, steps + 1, (rows,)) if per_row else None
    shared = rnn(x, times=times[0], lengths=lengths)
    assert_equal(shared, rnn(x, times=times[0].expand(rows, steps), lengths=lengths))


@PHASED
@given(seed=SEEDS, times=st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=9), repeat=st.booleans())
def test_unsorted_repeated_and_negative_times_are_legal(phased: Any, seed: int, times: list[int], repeat: bool) -> None:
    torch.manual_seed(seed)
    rnn = make(phased, 2, 3, leak=0.5)
    stamps = torch.tensor(times + times if repeat else times)
    output, *states = flatten(rnn(torch.randn(2, len(stamps), 2, dtype=torch.float64), times=stamps))
    assert output.isfinite().all()
    # Every state is a mean of values of tanh, whatever the times.
    assert (output.abs() <= 1).all()
    assert torch.equal(output[:, -1], states[0][0])


@PHASED
@given(sizes=SIZES, seed=SEEDS, exponent=st.integers(-20, 20))
def test_scaling_times_and_periods_together_changes_nothing(
    phased: Any, sizes: tuple[int, int, int, int], seed: int, exponent: int
) -> None:
    rows, steps, features, hidden = sizes
    torch.manual_seed(seed)
    rnn = make(phased, features, hidden, num_layers=2, bidirectional=True, leak=0.01)
    x, times = draw(rows, steps, features)
    wanted = rnn(x, times=times)
    for gate in rnn.gates:
        gate.assign_(period=gate.period * 2.0**exponent, shift=gate.shift * 2.0**exponent)
    for got, state in zip(flatten(rnn(x, times=times * 2.0**exponent)), flatten(wanted), strict=True):
        # The logarithm of the period is rounded anew, at up to 16 in magnitude and 50 cycles.
        torch.testing.assert_close(got, state, rtol=1e-9, atol=1e-11)


@PHASED
@given(sizes=SIZES, seed=SEEDS, delta=st.integers(-(2**61), 2**61))
def test_shifting_times_and_origin_together_changes_no_bit(
    phased: Any, sizes: tuple[int, int, int, int], seed: int, delta: int
) -> None:
    rows, steps, features, hidden = sizes
    torch.manual_seed(seed)
    rnn = make(phased, features, hidden, num_layers=2, bidirectional=True, leak=0.01)
    x, _ = draw(rows, steps, features)
    times = torch.randint(-1000, 1000, (rows, steps))
    wanted = rnn(x, times=times)
    for gate in rnn.gates:
        gate.assign_(origin=delta)
    assert_equal(rnn(x, times=times + delta), wanted)


@PHASED
@given(sizes=SIZES, seed=SEEDS, delta=st.integers(-4096, 4096))
def test_shifting_times_and_shifts_together_changes_nothing(
    phased: Any, sizes: tuple[int, int, int, int], seed: int, delta: int
) -> None:
    rows, steps, features, hidden = sizes
    torch.manual_seed(seed)
    rnn = make(phased, features, hidden, num_layers=2, leak=0.01)
    x, times = draw(rows, steps, features)
    wanted = rnn(x, times=times)
    for gate in rnn.gates:
        gate.assign_(shift=gate.shift + delta)
    for got, state in zip(flatten(rnn(x, times=times + delta)), flatten(wanted), strict=True):
        # Up to 2000 cycles of the shift, each rounded, through slopes of at most 5.
        torch.testing.assert_close(got, state, rtol=1e-9, atol=1e-11)
