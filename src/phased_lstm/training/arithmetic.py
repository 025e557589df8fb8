"""How numbers are computed while models are compared."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fair_arithmetic() -> Iterator[None]:
    """Let no baseline lose by the numbers that a device rounds, or is slow to compute.

    An LSTM's gradients fade over a long sequence to denormal numbers, for which some processors take many times as
    long: they are zero here. A GPU's tensor cores are not to round to ten bits. A thread of torch keeps the mode that
    it started in: enter this before the first operation on several threads, which then go on to flush.
    """
    flushed, rounded = sys.float_info.min / 2.0 == 0.0, torch.backends.cudnn.allow_tf32
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.backends.cudnn.allow_tf32 = rounded
