"""Errors of the layers: torch.nn's own, with their texts, and those that improve on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from phased_lstm import PhasedGRU, PhasedLSTM

PHASED = pytest.mark.parametrize("phased", [PhasedLSTM, PhasedGRU])
f64 = torch.float64


@PHASED
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"hidden_size": 5.0}, TypeError, "hidden_size should be of type int, got: float"),
        ({"input_size": "3"}, TypeError, "input_size should be of type int, got: str"),
        ({"input_size": True}, TypeError, "input_size should be of type int, got: bool"),
        ({"num_layers": 1.0}, TypeError, "num_layers should be of type int, got: float"),
        ({"hidden_size": 0}, ValueError, "hidden_size must be greater than zero"),
        ({"input_size": -1}, ValueError, "input_size must be greater than zero"),
        ({"num_layers": 0}, ValueError, "num_layers must be greater than zero"),
        ({"bias": 1}, TypeError, "bias should be of type bool, got: int"),
        ({"batch_first": None}, TypeError, "batch_first should be of type bool, got: NoneType"),
        ({"bidirectional": 0}, TypeError, "bidirectional should be of type bool, got: int"),
        *(
            (
                {"dropout": dropout},
                ValueError,
                "dropout should be a number in range [0, 1] representing the probability of an element being zeroed",
            )
            for dropout in (-0.1, 1.1, True, "0.5", float("nan"))
        ),
        ({"leak": 2.0}, ValueError, "leak should be in [0, 1], got 2.0"),
        ({"ratio_on": 0}, ValueError, "ratio_on should be in [1e-06, 1]"),
        ({"oscillation": "sine"}, ValueError, "oscillation should be one of triangle, square, cosine"),
        ({"period_init_min": -1.0}, ValueError, "period_init_min and period_init_max should be positive"),
        ({"backend": "fast"}, ValueError, "backend should be one of auto, reference, native, triton, got 'fast'"),
        ({"backend": "triton"}, ImportError, "backend 'triton' is not available"),
        ({"nonsense": 1}, TypeError, "unexpected keyword argument 'nonsense'"),
    ],
)
def test_constructor(phased: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        phased(**({"input_size": 3, "hidden_size": 5} | arguments))


@pytest.mark.parametrize(
    ("proj_size", "error", "message"),
    [
        (-1, ValueError, "proj_size should be a positive integer or zero to disable projections"),
        (5, ValueError, "proj_size has to be smaller than hidden_size"),
        (2.0, TypeError, "proj_size should be of type int, got: float"),
        (2, NotImplementedError, "one openness for each of the 5 units"),
    ],
)
def test_projection(proj_size: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        PhasedLSTM(3, 5, proj_size=proj_size)
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
        PhasedGRU(3, 5, proj_size=proj_size)


def dtype_text(got: str, own: str) -> str:
    return (
        f"RNN input dtype ({got}) does not match weight dtype ({own}). "
        f"Convert input: input.to({own}), or convert model: model.to({got})"
    )


BOTH: list[tuple[Callable[[], tuple[Any, ...]], type[Exception], str]] = [
    (lambda: (torch.zeros(2, 2, 2, 3),), ValueError, "Expected input to be 2D or 3D, got 4D instead"),
    (lambda: (torch.zeros(3),), ValueError, "Expected input to be 2D or 3D, got 1D instead"),
    (lambda: (torch.zeros(7, 2, 4),), RuntimeError, "input.size(-1) must be equal to input_size. Expected 3, got 4"),
    (lambda: (torch.zeros(7, 2, 3, dtype=f64),), ValueError, dtype_text("torch.float64", "torch.float32")),
    (lambda: (torch.zeros(7, 2, 3, dtype=torch.int64),), ValueError, dtype_text("torch.int64", "torch.float32")),
]


def state(phased: Any, *shape: int, second: tuple[int, ...] | None = None) -> Any:
    h = torch.zeros(shape)
    return (h, torch.zeros(second or shape)) if phased is PhasedLSTM else h


@PHASED
@pytest.mark.parametrize(("arguments", "error", "message"), BOTH)
def test_input(phased: Any, arguments: Callable[[], Any], error: type[Exception], message: str) -> None:
    """What torch says, word for word, which is checked against torch itself."""
    plain = {PhasedLSTM: nn.LSTM, PhasedGRU: nn.GRU}[phased]
    for made in (phased, plain):
        with pytest.raises(error, match=re.escape(message)):
            made(3, 5, 2, bidirectional=True)(*arguments())


STATES: list[tuple[Any, tuple[int, ...], Callable[[Any], Any], str]] = [
    (
        PhasedLSTM, (7, 2, 3), lambda p: state(p, 4, 5),
        "For batched 3-D input, hx and cx should also be 3-D but got (2-D, 2-D) tensors",
    ),
    (
        PhasedLSTM, (7, 3), lambda p: state(p, 4, 1, 5),
        "For unbatched 2-D input, hx and cx should also be 2-D but got (3-D, 3-D) tensors",
    ),
    (PhasedGRU, (7, 2, 3), lambda p: state(p, 4, 5), "For batched 3-D input, hx should also be 3-D but got 2-D tensor"),
    (
        PhasedGRU, (7, 3), lambda p: state(p, 4, 1, 5),
        "For unbatched 2-D input, hx should also be 2-D but got 3-D tensor",
    ),
    (PhasedLSTM, (7, 2, 3), lambda p: state(p, 2, 2, 5), "Expected hidden[0] size (4, 2, 5), got [2, 2, 5]"),
    (
        PhasedLSTM, (7, 2, 3), lambda p: state(p, 4, 2, 5, second=(4, 3, 5)),
        "Expected hidden[1] size (4, 2, 5), got [4, 3, 5]",
    ),
    (PhasedGRU, (7, 2, 3), lambda p: state(p, 2, 2, 5), "Expected hidden size (4, 2, 5), got [2, 2, 5]"),
    (PhasedGRU, (7, 2, 3), lambda p: state(p, 4, 7, 5), "Expected hidden size (4, 2, 5), got [4, 7, 5]"),
]  # fmt: skip


@pytest.mark.parametrize(("phased", "shape", "hx", "message"), STATES)
def test_states(phased: Any, shape: tuple[int, ...], hx: Callable[[Any], Any], message: str) -> None:
    plain = {PhasedLSTM: nn.LSTM, PhasedGRU: nn.GRU}[phased]
    for made in (phased, plain):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            made(3, 5, 2, bidirectional=True)(torch.zeros(shape), hx(phased))


def packed(width: int = 3, dtype: torch.dtype = torch.float32) -> Any:
    return pack_padded_sequence(torch.zeros(7, 3, width, dtype=dtype), [3, 7, 5], enforce_sorted=False)


def equal_lengths(width: int) -> Any:
    return pack_sequence([torch.zeros(4, width)] * 3)


@PHASED
@pytest.mark.parametrize(
    ("input", "message"),
    [
        (lambda: packed(4), "input.size(-1) must be equal to input_size. Expected 3, got 4"),
        (lambda: equal_lengths(4), "input.size(-1) must be equal to input_size. Expected 3, got 4"),
        (lambda: packed(dtype=f64), dtype_text("torch.float64", "torch.float32")),
    ],
)
def test_packed_input_is_checked_too(phased: Any, input: Callable[[], Any], message: str) -> None:
    """Here torch returns numbers for a wrong width."""
    with pytest.raises((RuntimeError, ValueError), match=re.escape(message)):
        phased(3, 5)(input())


@PHASED
def test_packed_input_with_states_of_another_batch(phased: Any) -> None:
    """With unsorted sequences torch takes states of a batch too large."""
    name = "hidden[0]" if phased is PhasedLSTM else "hidden"
    with pytest.raises(RuntimeError, match=re.escape(f"Expected {name} size (1, 3, 5), got [1, 7, 5]")):
        phased(3, 5)(packed(), state(phased, 1, 7, 5))


@pytest.mark.parametrize(
    ("phased", "hx", "error", "message"),
    [
        (
            PhasedLSTM, torch.zeros(1, 2, 5), TypeError,
            "hx should be a tuple of two tensors, (h_0, c_0), got: Tensor; times go by their name, times=...",
        ),
        (PhasedLSTM, (torch.zeros(1, 2, 5),), TypeError, "(h_0, c_0), got: tuple of Tensor"),
        (PhasedLSTM, (torch.zeros(1, 2, 5), None), TypeError, "got: tuple of Tensor, NoneType"),
        (PhasedGRU, (torch.zeros(1, 2, 5),), TypeError, "one tensor, the hidden state, got: tuple of Tensor"),
        (PhasedGRU, [], TypeError, "got: list of nothing"),
        (PhasedGRU, torch.zeros(1, 2, 5, dtype=f64), ValueError, "hidden dtype (torch.float64) does not match input"),
        (PhasedLSTM, (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5, dtype=f64)), ValueError, "hidden[1] dtype"),
        (PhasedLSTM, (torch.zeros(1, 2, 5, device="meta"),) * 2, RuntimeError, "hidden[0] is on meta but the input is"),
    ],
)  # fmt: skip
def test_states_of_the_wrong_kind(phased: Any, hx: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        phased(3, 5)(torch.zeros(7, 2, 3), hx)


@PHASED
@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"lengths": [7, 8]}, ValueError, "lengths should be from 0 to 7, the number of steps"),
        ({"lengths": [7]}, ValueError, "lengths should be of shape (2,), one for each sequence"),
        ({"lengths": torch.tensor([1.0, 2.0])}, ValueError, "lengths should be int32 or int64"),
        ({"return_sequence": 0}, TypeError, "return_sequence should be of type bool, got: int"),
        (
            {"times": [0.0] * 7}, TypeError,
            "times should be a tensor like the input, got: list; convert it with torch.as_tensor(times)",
        ),
        ({"times": pack_sequence([torch.zeros(7)])}, TypeError, "got: PackedSequence"),
        ({"times": torch.zeros(7, dtype=torch.bfloat16)}, ValueError, "int32, int64, float32 or float64, got"),
        ({"times": torch.full((7,), float("nan"))}, ValueError, "times should be finite"),
        ({"times": torch.zeros(7, device="meta")}, RuntimeError, "times is on meta but the input is on cpu"),
    ],
)  # fmt: skip
def test_sequence_arguments(phased: Any, keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        phased(3, 5)(torch.zeros(7, 2, 3), **keywords)


@PHASED
def test_input_of_the_wrong_kind(phased: Any) -> None:
    rnn = phased(3, 5)
    with pytest.raises(TypeError, match="input should be a tensor or PackedSequence, got: list"):
        rnn([[0.0]])
    with pytest.raises(RuntimeError, match="input is on meta but the parameters are on cpu"):
        rnn(torch.zeros(7, 2, 3, device="meta"))
    with pytest.raises(ValueError, match="lengths needs a batch"):
        rnn(torch.zeros(7, 3), lengths=[7])
    with pytest.raises(ValueError, match="lengths goes with padded input; a PackedSequence has its own"):
        rnn(packed(), lengths=[3, 7, 5])
    with pytest.raises(ValueError, match="the data of a PackedSequence should be 2D"):
        rnn(pack_sequence([torch.zeros(4, 3, 2)]))


def test_square_with_a_trainable_ratio_warns() -> None:
    with pytest.warns(UserWarning, match="zero derivative in ratio_on"):
        PhasedLSTM(3, 5, oscillation="square", trainable_ratio_on=True)
