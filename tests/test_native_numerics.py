"""What the native kernels promise of their numbers: errors, the same bits, and values kept from call to call."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from test_layers import flatten
from test_native import PLAIN, TOLERANCES, assert_near, in_a_process_with, leaves, run
from torch import Tensor

from phased_lstm import PhasedGRU, PhasedLSTM
from phased_lstm.ops import native, reference

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=f"native kernels: {native.missing()}")

PHASED = pytest.mark.parametrize("phased", [PhasedLSTM, PhasedGRU])
OPTIONS: dict[str, Any] = {"batch_first": True, "ratio_on": 0.3, "period_init_min": 2.0, "period_init_max": 9.0}
LARGEST = torch.finfo(torch.float32).max


def squashed(values: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Sigmoid and tanh of each value, as the kernels for sequences alone (batch 1) or panels (from 4) compute them."""
    sigmoid, tanh = zip(*(squashed_by_units(part, batch) for part in values.split(250)), strict=True)
    return torch.cat(sigmoid).double(), torch.cat(tanh).double()


def lanes() -> int:
    """Floats in a vector."""
    return {"baseline": 4, "avx2": 8, "avx512": 16}[native.instruction_set()]


def squashed_by_units(values: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    units = len(values)
    state, one = torch.zeros(batch, units), torch.ones(units, dtype=torch.float64)
    # The input is 1, so the weights of a unit's gates are what is squashed.
    weights = (values.repeat(4).unsqueeze(1), torch.zeros(4 * units, units), None, None, None)
    *_, tape, _, _, _ = torch.ops.phased_lstm.layer(
        torch.ones(batch, 1, 1), one[:1], None, state, state, *weights, one, one, one, 0.0, 1, False, False, True, False
    )
    if batch == 1:
        i, f, g, o, *_ = tape.view(6, units)
    else:
        # Panels are one, two or four vectors wide, two panels or more where the batch allows.
        width = lanes() * max(n for n in (1, 2, 4) if n == 1 or batch >= 2 * n * lanes())
        last = tape.view(-1, units, 6, width)[(batch - 1) // width, ..., (batch - 1) % width]
        i, f, g, o, *_ = last.T
    for other in (f, o):
        torch.testing.assert_close(other, i, rtol=0, atol=0, equal_nan=True)
    return i, g


def largest_errors(batch: int) -> dict[str, float]:
    """The largest error of each kind that elementary.h bounds, over dense grids; infinite where a limit is wrong."""
    small = torch.logspace(-37, 0, 2000, dtype=torch.float64).float()
    near = torch.cat([torch.linspace(0, 1, 2000), torch.linspace(1, 20, 2000), torch.linspace(20, 80, 3000), small])
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
    script = (
        "import json, math, torch, test_native_numerics as t\n"
        "torch.set_num_threads(1)\n"
        "batches = 1, 4, 4 * t.lanes(), 8 * t.lanes()\n"
        "nans = [value.isnan().all().item() for b in batches for value in t.squashed(torch.full((9,), math.nan), b)]\n"
        "print(json.dumps([nans, *map(t.largest_errors, batches)]))\n"
    )
    nans, *found = json.loads(in_a_process_with(isa, script))
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


def keeps_products(rows: int | None, shared: bool, leak: float = 0.0) -> bool:
    """Whether units keep their products while they stay open, so that rounding depends on where a call begins."""
    return rows is not None and rows >= 4 and shared and not leak


def in_chunks(rnn: Any, x: Tensor, times: Tensor, edges: list[int]) -> list[Tensor]:
    pieces, state = [], None
    for start, stop in pairwise(edges):
        piece, state = rnn(x[:, start:stop], state, times[..., start:stop])
        pieces.append(piece)
    return flatten((torch.cat(pieces, 1), state))


CHUNKINGS = ([0, 13, 40], [0, 1, 2, 40], [0, 39, 40], list(range(41)))
# Steps after which products are made anew, where units keep them while they stay open: panels with shared times.
ANCHOR = 16


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
        found = in_chunks(rnn, x, times, edges)
        if keeps_products(rows, shared, leak):
            assert_near(found, whole, TOLERANCES[torch.float32][0])
        else:
            assert_same_bits(found, whole)
    assert_same_bits(in_chunks(rnn, x, times, [0, ANCHOR, 2 * ANCHOR, 40]), whole)


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
