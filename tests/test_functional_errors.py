"""Every way in which the functional forms refuse their arguments."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from cases import operands
from torch import Tensor

from phased_lstm import functional

RUN = {"lstm": functional.phased_lstm, "gru": functional.phased_gru}
KINDS = pytest.mark.parametrize("kind", ["lstm", "gru"])


def filled(value: Tensor, number: float) -> Tensor:
    """The tensor with its last entry replaced."""
    changed = value.detach().clone()
    changed.view(-1)[-1] = number
    return changed


def assert_refused(kind: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {name: value.detach() for name, value in operands(kind).items()}
    RUN[kind](**arguments)
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    with pytest.raises(error, match=re.escape(message)):
        RUN[kind](**arguments)


SHAPES: list[tuple[str, Any, type[Exception], str]] = [
    ("input", lambda t: t[0], ValueError, "input should be of shape (N, L, H_in), got (11, 5)"),
    ("input", lambda t: t.long(), ValueError, "input should be of a floating dtype, got torch.int64"),
    ("input", lambda t: t.tolist(), TypeError, "input should be a tensor, got: list"),
    ("times", lambda t: t[:, :-1], ValueError, "times should be of shape (11,), shared by all sequences, or (3, 11)"),
    ("times", lambda t: t.T, ValueError, "got (11, 3)"),
    ("times", lambda t: t[0, 0], ValueError, "got ()"),
    ("times", lambda t: t[:1], ValueError, "got (1, 11)"),
    ("times", lambda t: t[:, 0], ValueError, "got (3,)"),
    ("times", lambda t: t.unsqueeze(-1), ValueError, "got (3, 11, 1)"),
    ("times", lambda t: t.tolist(), TypeError, "times should be a tensor, got: list"),
    ("times", lambda _: None, TypeError, "times should be a tensor, got: NoneType"),
    ("times", lambda t: t.half(), ValueError, "times should be int32, int64, float32 or float64, got torch.float16"),
    ("times", lambda t: t.short(), ValueError, "got torch.int16"),
    ("times", lambda t: t.bool(), ValueError, "got torch.bool"),
    ("times", lambda t: filled(t, math.nan), ValueError, "times should be finite, got nan in sequence"),
    ("times", lambda t: filled(t, math.inf), ValueError, "times should be finite"),
    ("times", lambda t: filled(t, -math.inf)[-1], ValueError, "times should be finite"),
    ("h0", lambda t: t[0], ValueError, "h0 should be a tensor of shape (N, H), got (7,)"),
    ("h0", lambda _: None, ValueError, "h0 should be a tensor of shape (N, H), got NoneType"),
    ("h0", lambda t: t[:2], ValueError, "h0 should be of shape (3, 7), got (2, 7)"),
    ("h0", lambda t: t.float(), ValueError, "h0 should be torch.float64 like the input, got torch.float32"),
    ("weight_ih", lambda t: t[:-1], ValueError, "weight_ih should be of shape ("),
    ("weight_ih", lambda t: t[:, 1:], ValueError, "5), got ("),
    ("weight_ih", lambda t: t.float(), ValueError, "weight_ih should be torch.float64 like the input"),
    ("weight_hh", lambda t: t[:, 1:], ValueError, "weight_hh should be of shape ("),
    ("weight_hh", lambda _: None, TypeError, "weight_hh should be a tensor, got: NoneType"),
    ("period", lambda t: t[:1], ValueError, "period should be of shape (7,), got (1,)"),
    ("period", lambda t: filled(t, 0.0), ValueError, "period should be positive and finite"),
    ("period", lambda t: filled(t, -2.0), ValueError, "-2.0]"),
    ("period", lambda t: filled(t, math.nan), ValueError, "period should be positive and finite"),
    ("period", lambda t: filled(t, math.inf), ValueError, "period should be positive and finite"),
    ("period", lambda t: t.long(), ValueError, "period should be of a floating dtype, got torch.int64"),
    ("period", lambda _: 3.0, TypeError, "period should be a tensor, got: float"),
    ("shift", lambda t: t.unsqueeze(0), ValueError, "shift should be of shape (7,), got (1, 7)"),
    ("shift", lambda t: filled(t, math.nan), ValueError, "shift should be finite"),
    ("shift", lambda t: filled(t, math.inf), ValueError, "shift should be finite"),
    ("ratio_on", lambda t: t[1:], ValueError, "ratio_on should be of shape (7,), got (6,)"),
    ("ratio_on", lambda t: filled(t, 0.0), ValueError, "ratio_on should be in (0, 1]"),
    ("ratio_on", lambda t: filled(t, -0.1), ValueError, "ratio_on should be in (0, 1]"),
    ("ratio_on", lambda t: filled(t, 1.0001), ValueError, "ratio_on should be in (0, 1]"),
    ("ratio_on", lambda t: filled(t, math.nan), ValueError, "ratio_on should be in (0, 1]"),
]

OPTIONS: list[tuple[str, Any, type[Exception], str]] = [
    ("leak", -0.01, ValueError, "leak should be in [0, 1], got -0.01"),
    ("leak", 1.01, ValueError, "leak should be in [0, 1], got 1.01"),
    ("leak", math.nan, ValueError, "leak should be in [0, 1], got nan"),
    ("leak", True, TypeError, "leak should be a number, got: bool"),
    ("leak", "0", TypeError, "leak should be a number, got: str"),
    ("oscillation", "sine", ValueError, "oscillation should be one of triangle, square, cosine, got 'sine'"),
    ("oscillation", None, ValueError, "got None"),
    ("reverse", 1, TypeError, "reverse should be of type bool, got: int"),
    ("return_sequence", None, TypeError, "return_sequence should be of type bool, got: NoneType"),
    ("lengths", [1, 2], ValueError, "lengths should be of shape (3,), one for each sequence, got (2,)"),
    ("lengths", torch.ones(3, 1, dtype=torch.int64), ValueError, "got (3, 1)"),
    ("lengths", [1, 2, 12], ValueError, "lengths should be from 0 to 11, the number of steps, got [1, 2, 12]"),
    ("lengths", torch.tensor([1, -1, 2]), ValueError, "lengths should be from 0 to 11, the number of steps, got"),
    ("lengths", torch.tensor([1.0, 2.0, 3.0]), ValueError, "lengths should be int32 or int64, got torch.float32"),
    ("lengths", torch.tensor([True] * 3), ValueError, "lengths should be int32 or int64, got torch.bool"),
    ("lengths", [1.0, 2.0, 3.0], TypeError, "lengths should be a tensor or a sequence of int"),
    ("lengths", [True, True, True], TypeError, "lengths should be a tensor or a sequence of int"),
    ("backend", "cuda", ValueError, "backend should be one of auto, reference, native, triton, got 'cuda'"),
    ("backend", None, ValueError, "got None"),
]


@KINDS
@pytest.mark.parametrize(("name", "change", "error", "message"), SHAPES)
def test_tensors(kind: str, name: str, change: Any, error: type[Exception], message: str) -> None:
    assert_refused(kind, {name: change}, error, message)


@KINDS
@pytest.mark.parametrize(("name", "value", "error", "message"), OPTIONS)
def test_options(kind: str, name: str, value: Any, error: type[Exception], message: str) -> None:
    assert_refused(kind, {name: value}, error, message)


@pytest.mark.parametrize(
    ("kind", "name", "shape", "message"),
    [
        ("lstm", "bias", (27,), "bias should be of shape (28,), got (27,)"),
        ("lstm", "c0", (3, 6), "c0 should be of shape (3, 7), got (3, 6)"),
        ("lstm", "c0", (3,), "c0 should be a tensor of shape (N, H), got (3,)"),
        ("lstm", "peephole", (2, 7), "peephole should be of shape (3, 7), got (2, 7)"),
        ("lstm", "peephole", (7,), "peephole should be of shape (3, 7), got (7,)"),
        ("lstm", "weight_hh", (21, 7), "weight_hh should be of shape (28, 7), got (21, 7)"),
        ("gru", "weight_hh", (28, 7), "weight_hh should be of shape (21, 7), got (28, 7)"),
        ("gru", "bias_ih", (20,), "bias_ih should be of shape (21,), got (20,)"),
        ("gru", "bias_hh", (1, 21), "bias_hh should be of shape (21,), got (1, 21)"),
    ],
)
def test_shapes_of_one_kind(kind: str, name: str, shape: tuple[int, ...], message: str) -> None:
    assert_refused(kind, {name: torch.zeros(shape, dtype=torch.float64)}, ValueError, message)


def test_peephole_of_another_dtype_or_kind() -> None:
    assert_refused(
        "lstm", {"peephole": torch.zeros(3, 7)}, ValueError, "peephole should be torch.float64 like the input"
    )
    assert_refused("lstm", {"peephole": [0.0]}, TypeError, "peephole should be a tensor, got: list")


@KINDS
@pytest.mark.parametrize("name", ["times", "h0", "weight_ih", "weight_hh", "period", "shift", "ratio_on"])
def test_devices(kind: str, name: str) -> None:
    message = f"{name} is on meta but the input is on cpu; move it with .to('cpu')"
    assert_refused(kind, {name: lambda t: t.to("meta")}, RuntimeError, message)


@KINDS
@pytest.mark.parametrize("backend", ["triton"])
def test_absent_backends_are_named_with_the_reason(kind: str, backend: str) -> None:
    assert_refused(kind, {"backend": backend}, ImportError, f"backend {backend!r} is not available: this version")


@KINDS
def test_padding_does_not_excuse_a_valid_step(kind: str) -> None:
    """Shared times belong to the longest sequence, and NaN within the valid part is an error."""
    bad = operands(kind)["times"].detach().clone()
    bad[2, 3] = math.nan
    assert_refused(kind, {"times": bad, "lengths": [11, 11, 4]}, ValueError, "times should be finite")
    RUN[kind](**(operands(kind) | {"times": bad}), lengths=[11, 11, 3])
