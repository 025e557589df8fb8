"""Bit streams and their parity, dense or as events: the XOR task of the ODE-LSTM and CfC benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import missing_extra

PADDED = 32
"""The protocol's padded length; a stream has at most one bit less."""

TRAIN_SEED, TRAIN_SIZE = 1234984, 100_000
TEST_SEED, TEST_SIZE = 48736, 10_000
_SHORTEST = 2


class Streams(NamedTuple):
    """Streams of bits, padded at the end with zeros.

    Attributes:
        bits: (N, L) float32, 0 or 1.
        times: (N, L) int64, position of the bit in its stream, from 1.
        lengths: (N,) int64, entries of each.
        parity: (N,) int64, 1 where the stream has an odd number of ones.
    """

    bits: Tensor
    times: Tensor
    lengths: Tensor
    parity: Tensor

    def elapsed(self) -> Tensor:
        """(N, L) float32, time since the entry before (since 0 at the first) over L; padding has no meaning."""
        return torch.diff(self.times, dim=1, prepend=torch.zeros_like(self.times[:, :1])) / self.times.shape[1]


def dense_streams(count: int, seed: int, padded: int = PADDED) -> Streams:
    """Draw streams with an entry for every bit.

    Lengths are uniform from 2 to `padded` - 1. The defaults give the protocol's own streams: those of NumPy's
    `RandomState(seed)`, whose numbers never change, asked for a length and then its bits, one at a time.

    Args:
        count: number of streams N.
        seed: `TRAIN_SEED` or `TEST_SEED` for the protocol's.
        padded: length L of the padded streams, from 4 to 32.

    Raises:
        ValueError: `padded` out of range.
        ImportError: numpy is not installed.
    """
    if not 4 <= padded <= PADDED:
        raise ValueError(f"padded should be from 4 to {PADDED}, got {padded}")
    try:
        import numpy
    except ImportError as error:
        raise missing_extra("train", "numpy") from error
    span = padded - _SHORTEST
    # A stream of the protocol takes 17.6 numbers in the mean, with a deviation of 9: this many do for any count.
    words = numpy.random.RandomState(seed).randint(0, 2**32, size=20 * count + 1000, dtype=numpy.uint32)
    # A length is the first number whose lowest bits, just enough of them, are in range; a bit is a number's lowest.
    candidates = (words % 2 ** (span - 1).bit_length()).tolist()
    starts, lengths, place = [], [], 0
    for _ in range(count):
        while candidates[place] >= span:
            place += 1
        starts.append(place + 1)
        lengths.append(_SHORTEST + candidates[place])
        place += 1 + lengths[-1]
    steps = torch.arange(padded)
    valid = steps < torch.tensor(lengths).unsqueeze(1)
    ones = torch.from_numpy((words % 2).astype(numpy.int64))
    taken = (torch.tensor(starts).unsqueeze(1) + steps).clamp(max=len(words) - 1)
    bits = torch.where(valid, ones[taken], 0)
    return Streams(bits.float(), torch.where(valid, steps + 1, 0), torch.tensor(lengths), bits.sum(1) % 2)


def event_streams(count: int, seed: int, padded: int = PADDED) -> Streams:
    """Draw the same streams with an entry for the first bit, for every change, and for the last bit.

    How many bits were the same is told by the times alone.

    Args:
        count: number of streams N.
        seed: as for `dense_streams`.
        padded: as there.

    Raises:
        ValueError: `padded` out of range.
        ImportError: numpy is not installed.
    """
    dense = dense_streams(count, seed, padded)
    steps = torch.arange(padded)
    changed = torch.diff(dense.bits, dim=1, prepend=torch.full((count, 1), -1.0)) != 0
    kept = (changed | (steps == dense.lengths.unsqueeze(1) - 1)) & (steps < dense.lengths.unsqueeze(1))
    order = kept.logical_not().long().argsort(dim=1, stable=True)
    lengths = kept.sum(1)
    valid = steps < lengths.unsqueeze(1)
    return Streams(
        torch.where(valid, dense.bits.gather(1, order), 0.0),
        torch.where(valid, dense.times.gather(1, order), 0),
        lengths,
        dense.parity,
    )
