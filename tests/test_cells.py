"""Cells: one step of the layers, with the contract of torch.nn's cells."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from phased_lstm import PhasedGRU, PhasedGRUCell, PhasedLSTM, PhasedLSTMCell

CELLS = pytest.mark.parametrize("made", [PhasedLSTMCell, PhasedGRUCell])
LAYER = {PhasedLSTMCell: PhasedLSTM, PhasedGRUCell: PhasedGRU}
TORCH = {PhasedLSTMCell: nn.LSTMCell, PhasedGRUCell: nn.GRUCell}


def as_tuple(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@CELLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"leak": 0.1}, {"oscillation": "cosine"}], ids=str)
def test_loop_of_cells_equals_the_layer_bitwise(made: Any, dtype: torch.dtype, options: dict[str, Any]) -> None:
    cell = made(3, 5, dtype=dtype, ratio_on=0.4, **options)
    layer = LAYER[made](3, 5, dtype=dtype, ratio_on=0.4, **options)
    layer.load_state_dict(
        {(f"gate_l0.{k[5:]}" if k.startswith("gate.") else f"{k}_l0"): v for k, v in cell.state_dict().items()}
    )
    x, times = torch.randn(13, 4, 3, dtype=dtype), torch.rand(13, 4, dtype=torch.float64).cumsum(0) * 5
    output, final = layer(x, times=times)
    state = None
    for step in range(13):
        state = cell(x[step], state, times[step])
        assert torch.equal(as_tuple(state)[0], output[step]), step
    for got, wanted in zip(as_tuple(state), as_tuple(final), strict=True):
        assert torch.equal(got, wanted[0])


@pytest.mark.parametrize("rows", [3, 4])
def test_loop_of_cells_with_peepholes_equals_the_layer(rows: int) -> None:
    """To the same bits; but for rounding where the native layer keeps products, for four that share their times."""
    cell, layer = (made(3, 5, peephole=True, ratio_on=0.4) for made in (PhasedLSTMCell, PhasedLSTM))
    layer.load_state_dict(
        {(f"gate_l0.{k[5:]}" if k.startswith("gate.") else f"{k}_l0"): v for k, v in cell.state_dict().items()}
    )
    x, state = torch.randn(13, rows, 3), None
    output, _ = layer(x)
    for step in range(13):
        state = cell(x[step], state, step)
        tolerance = 2e-6 if rows == 4 else 0.0
        torch.testing.assert_close(state[0], output[step], rtol=0, atol=tolerance)


@CELLS
def test_held_open_cell_equals_torch(made: Any) -> None:
    cell, plain = made(3, 5, dtype=torch.float64), TORCH[made](3, 5, dtype=torch.float64)
    with pytest.warns(UserWarning, match="layer without time gates"):
        cell.load_state_dict(plain.state_dict())
    cell.gate.assign_(period=1.0, shift=-0.5, ratio_on=1.0)
    x = torch.randn(4, 3, dtype=torch.float64)
    state = tuple(torch.randn(4, 5, dtype=torch.float64) for _ in range(2))
    for hx in (None, state if made is PhasedLSTMCell else state[0]):
        for got, wanted in zip(as_tuple(cell(x, hx, 7)), as_tuple(plain(x, hx)), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-14)


@CELLS
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_torchs(made: Any, bias: bool) -> None:
    mine = [(n, p.shape) for n, p in made(3, 5, bias).named_parameters() if not n.startswith("gate.")]
    assert mine == [(n, p.shape) for n, p in TORCH[made](3, 5, bias).named_parameters()]
    assert made(3, 5, bias).extra_repr() == TORCH[made](3, 5, bias).extra_repr()


@CELLS
def test_forms_of_times(made: Any) -> None:
    cell = made(3, 5, ratio_on=0.6, period_init_min=2.0, period_init_max=9.0)
    x = torch.randn(4, 3)
    wanted = as_tuple(cell(x, None, 3.0))
    for times in (3, torch.tensor(3), torch.tensor(3.0)):
        for got, state in zip(as_tuple(cell(x, None, times)), wanted, strict=True):
            assert torch.equal(got, state)
    # A backend may add up in another order when it knows that the time is shared.
    for times in (torch.full((4,), 3), torch.full((4,), 3.0).double()):
        for got, state in zip(as_tuple(cell(x, None, times)), wanted, strict=True):
            torch.testing.assert_close(got, state, rtol=1e-6, atol=1e-7)
    own = torch.tensor([0.0, 1.5, 3.0, 4.5])
    together = as_tuple(cell(x, None, own))
    for row in range(4):
        for got, state in zip(as_tuple(cell(x[row], None, own[row])), together, strict=True):
            torch.testing.assert_close(got, state[row], rtol=1e-6, atol=1e-7)
    assert not torch.equal(together[0], wanted[0])


@CELLS
def test_unbatched(made: Any) -> None:
    cell = made(3, 5, ratio_on=0.6, period_init_min=2.0, period_init_max=9.0)
    x, h, c = torch.randn(3), torch.randn(5), torch.randn(5)
    hx = (h, c) if made is PhasedLSTMCell else h
    rows = (h[None], c[None]) if made is PhasedLSTMCell else h[None]
    for times in (2.5, torch.tensor(2.5), torch.tensor([2.5])):
        alone = as_tuple(cell(x, hx, times))
        for got, wanted in zip(alone, as_tuple(cell(x[None], rows, 2.5)), strict=True):
            assert got.shape == (5,)
            assert torch.equal(got, wanted[0])


@CELLS
def test_python_times_keep_their_precision(made: Any) -> None:
    cell = made(3, 5, ratio_on=0.6, period_init_min=2.0, period_init_max=9.0)
    x, start = torch.randn(1, 3), 1_700_000_000_000_000_123
    wanted = as_tuple(cell(x, None, 3))
    cell.gate.assign_(origin=start)
    for got, state in zip(as_tuple(cell(x, None, start + 3)), wanted, strict=True):
        assert torch.equal(got, state)


@CELLS
@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        (None, ValueError, "needs times, the time stamp of this step"),
        (math.nan, ValueError, "times should be finite"),
        (torch.tensor(math.inf), ValueError, "times should be finite"),
        (torch.zeros(3), ValueError, "times of a cell's step should be a single time or of shape (2,), got shape (3,)"),
        (torch.zeros(1), ValueError, "got shape (1,)"),
        (torch.zeros(2, 1), ValueError, "got shape (2, 1)"),
        (True, TypeError, "times should be a tensor, got: bool"),
        ([0.0, 1.0], TypeError, "times should be a tensor, got: list"),
        (torch.zeros(2, dtype=torch.float16), ValueError, "int32, int64, float32 or float64"),
    ],
)
def test_errors_of_times(made: Any, times: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        made(3, 5)(torch.zeros(2, 3), None, times)


@CELLS
@pytest.mark.parametrize(
    ("input", "error", "message"),
    [
        (torch.zeros(2, 2, 3), ValueError, "Expected input to be 1D or 2D, got 3D instead"),
        (torch.zeros(()), ValueError, "Expected input to be 1D or 2D, got 0D instead"),
        (torch.zeros(2, 4), RuntimeError, "input has inconsistent input_size: got 4 expected 3"),
    ],
)
def test_errors_of_input_are_torchs(made: Any, input: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        made(3, 5)(input, None, 0.0)
    with pytest.raises(error, match=re.escape(message)):
        TORCH[made](3, 5)(input)


STATES: list[tuple[tuple[int, ...], type[Exception], str, str]] = [
    (
        (2, 2, 5),
        ValueError,
        "LSTMCell: Expected hx[0] to be 1D or 2D, got 3D",
        "GRUCell: Expected hidden to be 1D or 2D",
    ),
    ((3, 5), RuntimeError, *["Input batch size 2 doesn't match hidden0 batch size 3"] * 2),
    ((2, 4), RuntimeError, *["hidden0 has inconsistent hidden_size: got 4, expected 5"] * 2),
]


@CELLS
@pytest.mark.parametrize(("shape", "error", "lstm", "gru"), STATES)
def test_errors_of_states_are_torchs(
    made: Any, shape: tuple[int, ...], error: type[Exception], lstm: str, gru: str
) -> None:
    h = torch.zeros(shape)
    hx, message = ((h, h), lstm) if made is PhasedLSTMCell else (h, gru)
    with pytest.raises(error, match=re.escape(message)):
        made(3, 5)(torch.zeros(2, 3), hx, 0.0)
    with pytest.raises(error, match=re.escape(message)):
        TORCH[made](3, 5)(torch.zeros(2, 3), hx)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PhasedLSTMCell(3, 5)(torch.zeros(2, 3), torch.zeros(2, 5), 0), TypeError, "should be a tuple of two"),
        (lambda: PhasedGRUCell(3, 5)(torch.zeros(2, 3), (torch.zeros(2, 5),), 0), TypeError, "hx should be one tensor"),
        (lambda: PhasedGRUCell(3, 5)(torch.zeros(2, 3).double(), None, 0), ValueError, "RNN input dtype (torch"),
        (
            lambda: PhasedGRUCell(3, 5)(torch.zeros(2, 3), torch.zeros(2, 5).double(), 0),
            ValueError,
            "hidden dtype (torch.float64) does not match input dtype (torch.float32)",
        ),
        (lambda: PhasedGRUCell(3, 5)(torch.zeros(2, 3), torch.zeros(5), 0), RuntimeError, "For batched 2-D input"),
        (lambda: PhasedGRUCell(3, 5)(torch.zeros(3), torch.zeros(1, 5), 0), RuntimeError, "For unbatched 1-D input"),
        (
            lambda: PhasedLSTMCell(3, 5)(torch.zeros(2, 3), (torch.zeros(2, 5), torch.zeros(3, 5)), 0),
            RuntimeError,
            "Input batch size 2 doesn't match hidden1 batch size 3",
        ),
        (lambda: PhasedLSTMCell(3, 0), ValueError, "hidden_size must be greater than zero"),
        (lambda: PhasedGRUCell(3, 5, bias=1), TypeError, "bias should be of type bool, got: int"),
        (lambda: PhasedLSTMCell(3, 5)([0.0], None, 0), TypeError, "input should be a tensor, got: list"),
        (lambda: PhasedLSTMCell(3, 5, backend="triton"), ImportError, "backend 'triton' is not available"),
    ],
)  # fmt: skip
def test_errors_that_improve_on_torch(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


@CELLS
def test_leak_acts_in_training_only(made: Any) -> None:
    cell = made(3, 5, leak=0.5)
    cell.gate.assign_(period=10.0, shift=0.0, ratio_on=0.1)
    x, h, c = torch.randn(2, 3), torch.randn(2, 5), torch.randn(2, 5)
    hx = (h, c) if made is PhasedLSTMCell else h
    assert not torch.equal(as_tuple(cell(x, hx, 5))[0], h)
    assert torch.equal(as_tuple(cell.eval()(x, hx, 5))[0], h)


@CELLS
def test_empty_batch(made: Any) -> None:
    assert {s.shape for s in as_tuple(made(3, 5)(torch.zeros(0, 3), None, 1.0))} == {(0, 5)}
