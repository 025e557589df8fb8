"""Threads that share work, and change places half way where one of them is faster."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_native import PLAIN, leaves, run
from torch import Tensor

from phased_lstm.ops import native

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=f"native kernels: {native.missing()}")

# Not every system tells which processors a process may use.
_PROCESSORS = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1

# Steps of the sequences that two threads begin with: one of them is half way when the other is not.
_LONG, _SHORT = 400, 150


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def _unequal_shares(lstm: bool, shared: bool, leak: float, batch: int = 32) -> tuple[list[Tensor], dict[str, Any]]:
    values = [value.float() for value in leaves(lstm, (batch, _LONG, 3, 21), shared, False)]
    values[1] = values[1].sort(-1).values
    lengths = torch.full((batch,), _LONG)
    # In groups of 16, whether by rows or by panels.
    lengths[16:] = _SHORT
    return values, PLAIN | {"lengths": lengths, "leak": leak}


@pytest.mark.skipif(_PROCESSORS < 2, reason="two threads need two processors to run side by side")
@pytest.mark.parametrize(("shared", "leak"), [(False, 0.0), (True, 0.0), (False, 0.01)], ids=["own", "shared", "leak"])
@pytest.mark.parametrize("lstm", [True, False])
def test_threads_change_places_and_no_bit_does(lstm: bool, shared: bool, leak: float, two_threads: None) -> None:
    values, options = _unequal_shares(lstm, shared, leak)
    torch.set_num_threads(1)
    alone = run(native, values, lstm, **options)
    torch.set_num_threads(2)
    before = torch.ops.phased_lstm.changed_places()
    # A thread that has no processor of its own at the moment does not answer.
    for _ in range(200):
        outputs, gradients = run(native, values, lstm, **options)
        for a, b in zip(alone[0] + alone[1], outputs + gradients, strict=True):
            assert torch.equal(a, b)
        if torch.ops.phased_lstm.changed_places() >= before + 6:
            return
    pytest.fail("200 runs on two threads, and they changed places fewer than 6 times")


def test_one_thread_has_nobody_to_change_places_with() -> None:
    values, options = _unequal_shares(True, False, 0.0)
    before = torch.ops.phased_lstm.changed_places()
    run(native, values, True, **options)
    assert torch.ops.phased_lstm.changed_places() == before


@pytest.mark.parametrize("batch", [17, 33, 48, 70])
def test_shares_without_a_partner_come_out_the_same(batch: int, two_threads: None) -> None:
    values, options = _unequal_shares(True, False, 0.0, batch)
    together = run(native, values, True, **options)
    torch.set_num_threads(1)
    alone = run(native, values, True, **options)
    for a, b in zip(alone[0] + alone[1], together[0] + together[1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("lstm", [True, False])
def test_an_empty_batch_has_no_share(lstm: bool, shared: bool) -> None:
    values = [value.float() for value in leaves(lstm, (0, 70, 3, 21), shared, False)]
    _, gradients = run(native, values, lstm, **PLAIN)
    assert all(not gradient.any() for gradient in gradients)


def test_threads_flush_denormal_numbers_as_their_caller_does(two_threads: None) -> None:
    """Threads of torch keep the mode that they started in, and which of them does what is a matter of time."""
    values = [value.float() for value in leaves(True, (64, 60, 3, 21), False, False)]
    values[0].requires_grad_()

    def gradient() -> Tensor:
        _, h_n, _ = native.phased_lstm(*values[:10], peephole=None, **PLAIN)
        # Of these some are denormal.
        return torch.autograd.grad((h_n * 1e-37).sum(), values[0])[0]

    def has_denormals(tensor: Tensor) -> bool:
        return bool(((tensor != 0) & (tensor.abs() < torch.finfo(tensor.dtype).tiny)).any())

    kept = gradient()
    try:
        assert torch.set_flush_denormal(True)
        flushed = [gradient() for _ in range(20)]
    finally:
        # What is denormal looks like zero before.
        torch.set_flush_denormal(False)
    assert has_denormals(kept)
    assert not any(map(has_denormals, flushed))
