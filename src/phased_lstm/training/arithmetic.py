"""How numbers are computed while models are compared."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fair_arithmetic() -> Iterator[None]:
    """Let no baseline lose by the numbers that a device rounds, or is slow to compute.

    An LSTM's gradients fade over a long sequence to denormal numbers, for which some processors take a hundred times as
    long: they are zero here. A GPU's tensor cores are not to round to ten bits. Threads of torch that run already keep
    their ways, so enter this before the first operation on several of them.
    """
    flushed, rounded = sys.float_info.min / 2.0 == 0.0, torch.backends.cudnn.allow_tf32
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.backends.cudnn.allow_tf32 = rounded
