"""Scikit-learn's digits, moved before an event camera that is computed: a small stand-in for N-MNIST."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import missing_extra
from .nmnist import SIDE, EventDigits, Recordings

_DIGIT_SIDE = 16
# Pixels right and down of each move, twice along each side of a triangle as N-MNIST's camera turned.
_MOVES = ((1, 2), (1, 2), (1, -2), (1, -2), (-2, 0), (-2, 0))
_MICROSECONDS = 50_000


def load() -> EventDigits:
    """Load the 1,797 digits as recordings of 300 ms and some 400 events, 1,437 to train and 360 to test.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise missing_extra("train", "scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16.0
    enlarged = nn.functional.interpolate(small, size=(_DIGIT_SIDE, _DIGIT_SIDE), mode="bilinear", align_corners=False)
    targets = torch.from_numpy(labels).long()
    train, test = train_test_split(range(len(labels)), test_size=360, random_state=0, stratify=labels)
    bright = enlarged[:, 0] > 0.5
    return EventDigits(record(bright[train], targets[train], seed=0), record(bright[test], targets[test], seed=1))


def record(images: Tensor, labels: Tensor, *, seed: int) -> Recordings:
    """Move images over the sensor; a pixel that turns bright or dark is an event, at a moment of that move.

    Args:
        images: (N, 16, 16) bool.
        labels: (N,) int64.
        seed: of the moments, uniform over the 50 ms of a move.
    """
    margin = (SIDE - _DIGIT_SIDE) // 2
    frame = nn.functional.pad(images, (margin,) * 4)
    frames = [frame]
    for right, down in _MOVES:
        frames.append(frames[-1].roll((down, right), (1, 2)))
    bright = torch.stack(frames, 1)
    rows, moves, y, x = (bright[:, 1:] != bright[:, :-1]).nonzero(as_tuple=True)
    generator = torch.Generator().manual_seed(seed)
    times = moves * _MICROSECONDS + torch.randint(_MICROSECONDS, (len(rows),), generator=generator)
    order = (rows * (len(_MOVES) * _MICROSECONDS) + times).argsort(stable=True)
    rows, moves, y, x, times = (column[order] for column in (rows, moves, y, x, times))
    offsets = nn.functional.pad(rows.bincount(minlength=len(images)).cumsum(0), (1, 0))
    polarity = bright[rows, moves + 1, y, x].to(torch.uint8)
    return Recordings(x.to(torch.uint8), y.to(torch.uint8), polarity, times, offsets, labels)
