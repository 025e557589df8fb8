"""Products that units keep while they stay open, with times that sequences share: right, and right for long."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_native import PLAIN, TOLERANCES, assert_near, in_a_process_with, leaves, run
from test_native_numerics import ANCHOR
from torch import Tensor

from phased_lstm.ops import native, reference

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=f"native kernels: {native.missing()}")

LSTM = pytest.mark.parametrize("lstm", [True, False], ids=["lstm", "gru"])


def slow_units(
    lstm: bool, sizes: tuple[int, int, int, int], periods: tuple[float, float], peephole: bool = False
) -> list[Tensor]:
    """Operands whose units stay open for many steps of 1, a quarter of them at a time."""
    values = leaves(lstm, sizes, True, peephole)
    # Of states that no step leaves nothing is kept.
    values[2] = values[2].clamp(-1, 1)
    _, steps, _, hidden = sizes
    for index in range(4, 7) if lstm else range(3, 7):
        values[index] = (torch.rand_like(values[index]) * 2 - 1) / math.sqrt(hidden)
    values[1] = torch.arange(steps, dtype=torch.float64)
    # Spread evenly, so that at all times more than half of the units are closed.
    values[7] = torch.linspace(*periods, hidden).double()
    values[8] = (values[7] * torch.arange(hidden) * 0.618).float().double()
    values[9] = torch.full_like(values[9], 0.25)
    # Larger peepholes let cells grow, and rounding with them.
    values[10:] = [0.2 * weights for weights in values[10:]]
    return values


def assert_agrees(
    lstm: bool, sizes: tuple[int, int, int, int], dtype: torch.dtype, peephole: bool = False, **options: Any
) -> None:
    """Outputs and all gradients are those of the reference in float64."""
    values = slow_units(lstm, sizes, (30.0, 300.0), peephole)
    cast = [value if index == 1 else value.to(dtype) for index, value in enumerate(values)]
    found = run(native, cast, lstm, **PLAIN | options)
    wanted = run(reference, [value.double() for value in cast], lstm, **PLAIN | options)
    for got, exact, tolerance in zip(found, wanted, TOLERANCES[dtype], strict=True):
        assert_near(got, exact, tolerance)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@LSTM
def test_units_that_stay_open_agree_with_the_reference(isa: str, lstm: bool) -> None:
    """Panels of one, two and four vectors, whole, ragged and of very different lengths, in both directions."""
    script = (
        "import torch, test_native_products as t\n"
        "torch.set_num_threads(1)\n"
        "for batch in 5, 64, 130:\n"
        "    ragged, rising = torch.arange(batch) * 37 % 91, torch.arange(batch) * 90 // batch\n"
        "    all_options = ({}, {'reverse': True}, {'lengths': ragged}, {'lengths': rising, 'reverse': True},\n"
        f"        {{'oscillation': 'square', 'peephole': {lstm}}}, {{'oscillation': 'cosine'}})\n"
        "    for number, options in enumerate(all_options):\n"
        "        for dtype in torch.float32, torch.float64:\n"
        f"            t.assert_agrees({lstm}, (batch, 90, 3, 18 + number), dtype, **options)\n"
    )
    in_a_process_with(isa, script)


@LSTM
def test_what_is_kept_does_not_drift(lstm: bool) -> None:
    """Units are open for up to 10,000 steps on end."""
    values = [value.float() for value in slow_units(lstm, (5, 20_000, 3, 128), (8000.0, 40_000.0))]
    with torch.no_grad():
        found = call(native, values, lstm)
        wanted = call(reference, [value.double() for value in values], lstm)
    assert_near(found, wanted, TOLERANCES[torch.float32][0])


def test_a_large_state_leaves_no_rounding_behind() -> None:
    """The first step of a square gate replaces a state whole; what it was must not be felt any more."""
    values = [value.float() for value in slow_units(True, (5, 12, 3, 32), (1000.0, 2000.0))]
    open_units = (values[1][0] - values[8]).remainder(values[7]) < 0.25 * values[7]
    assert 2 < open_units.sum() < 16
    values[2][:, open_units] *= 1e5
    # Else the cell would carry the rounding of the first step's own products on.
    values[6][32:64] = -30
    with torch.no_grad():
        found = call(native, values, True, oscillation="square")
        wanted = call(reference, [value.double() for value in values], True, oscillation="square")
    assert wanted[0][:, 0].abs().max() < 5
    torch.testing.assert_close(found[0][:, 8:].double(), wanted[0][:, 8:], rtol=0, atol=2e-6)


@LSTM
def test_infinite_weights_are_those_of_the_reference(lstm: bool) -> None:
    """They saturate gates. A product that is kept could not get away from infinity."""
    values = [value.float() for value in slow_units(lstm, (8, 60, 3, 32), (30.0, 300.0))]
    values[2] = values[2].abs().clamp(0.1, 1)
    values[5 if lstm else 4][:, 5] = math.inf
    with torch.no_grad():
        found, wanted = (call(module, values, lstm) for module in (native, reference))
    assert wanted[0].isfinite().all()
    for got, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, exact, rtol=0, atol=2e-6)


@LSTM
@pytest.mark.parametrize("reverse", [False, True])
def test_the_bits_of_a_row_do_not_depend_on_the_lengths_of_others(lstm: bool, reverse: bool) -> None:
    values = [value.float() for value in slow_units(lstm, (8, 60, 3, 32), (30.0, 300.0))]
    lengths = torch.full((8,), 40)
    others = torch.arange(8) != 3
    with torch.no_grad():
        wanted = call(native, values, lstm, reverse=reverse, lengths=lengths)
        for length in (0, 17, 47, 60):
            lengths[3] = length
            found = call(native, values, lstm, reverse=reverse, lengths=lengths)
            for got, expected in zip(found, wanted, strict=True):
                assert torch.equal(got[others], expected[others])


@LSTM
def test_products_are_kept(lstm: bool) -> None:
    """Rounding tells: a part that begins between two steps at which all is multiplied has nothing to keep."""
    values = [value.float() for value in slow_units(lstm, (8, 60, 3, 32), (30.0, 300.0))]
    with torch.no_grad():
        whole = call(native, values, lstm)
        for cut, same in ((ANCHOR, True), (2 * ANCHOR, True), (ANCHOR + 8, False)):
            first = call(native, [values[0][:, :cut], values[1][:cut], *values[2:]], lstm)
            state = first[1:]
            rest = call(native, [values[0][:, cut:], values[1][cut:], *state, *values[2 + len(state) :]], lstm)
            assert torch.equal(torch.cat([first[0], rest[0]], 1), whole[0]) == same


def call(module: Any, values: list[Tensor], lstm: bool, **options: Any) -> list[Tensor]:
    if lstm:
        return list(module.phased_lstm(*values, peephole=None, **PLAIN | options))
    return list(module.phased_gru(*values, **PLAIN | options))
