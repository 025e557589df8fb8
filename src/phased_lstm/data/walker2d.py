"""Walker2d rollouts under irregular sampling: the next-state task of the ODE-LSTM and CfC benchmarks."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, missing_extra
from ._reading import read_npz

try:
    import numpy
except ImportError as error:
    raise missing_extra("train", "numpy") from error

FEATURES = 17
WINDOW, STRIDE = 64, 16
_KEPT = 0.9
_SPLIT_SEED, _DROP_SEED = 125487, 891374
_FILE = "walker_float32.npz"


class Windows(NamedTuple):
    """Windows of irregularly sampled rollouts, in the rollouts' order.

    Attributes:
        states: (N, 64, 17) float32 observations.
        elapsed: (N, 64) int64 steps of the simulator since the observation before, 1 where none was dropped.
        next_states: (N, 64, 17) float32, each a step of the simulator later.
    """

    states: Tensor
    elapsed: Tensor
    next_states: Tensor


class Split(NamedTuple):
    """The three parts; no rollout is in two."""

    train: Windows
    validation: Windows
    test: Windows


def load_rollouts(data_dir: str | Path | None = None) -> list[Tensor]:
    """Read the rollouts from `data_dir`, else `$PHASED_LSTM_DATA/walker2d`, in the order of their names.

    Returns:
        A (T, 17) float32 tensor each.

    Raises:
        DataError: there is no file, or it is not what its name says.
    """
    root = os.environ.get("PHASED_LSTM_DATA")
    folder = Path(data_dir) if data_dir is not None else Path(root) / "walker2d" if root else None
    if folder is None or not (folder / _FILE).exists():
        where = "PHASED_LSTM_DATA is not set" if folder is None else f"{folder} has no {_FILE}"
        raise DataError(
            f"{where}. Walker2d has no download here: take the folder data/walker (rollout_000.npy to "
            f"rollout_399.npy) of github.com/raminmh/CfC, commit 59f6e01, save all as float32 with numpy.savez in "
            f"{_FILE} under the files' names without .npy, and set PHASED_LSTM_DATA to a folder that has it in "
            f"walker2d/. --quick needs no data"
        )
    path = folder / _FILE
    rollouts = read_npz(path, "make it again")
    for name, rollout in rollouts.items():
        if rollout.ndim != 2 or rollout.shape[1] != FEATURES or rollout.dtype != numpy.float32:
            raise DataError(f"{path}: {name} is {rollout.dtype} {rollout.shape}, expected float32 (steps, {FEATURES})")
        if not numpy.isfinite(rollout).all():
            raise DataError(f"{path}: {name} holds values that are not finite")
    return [torch.from_numpy(rollout) for rollout in rollouts.values()]


def split_windows(rollouts: Sequence[Tensor]) -> Split:
    """Split rollouts, drop a tenth of the observations, and cut windows, as the protocol does.

    NumPy's frozen `RandomState` shuffles the rollouts (15 % test, then 10 % validation, the rest for training) and
    draws which observations stay, of training, validation and test in this order. Windows have 64 observations and
    start 16 apart.

    Args:
        rollouts: (T, 17) each, in the order of their names.

    Raises:
        DataError: too few or too short rollouts to give every part a window.
    """
    order = list(range(len(rollouts)))
    numpy.random.RandomState(_SPLIT_SEED).shuffle(order)
    tests, held_out = int(0.15 * len(order)), int((0.15 + 0.1) * len(order))
    drops = numpy.random.RandomState(_DROP_SEED)
    parts = {"train": order[held_out:], "validation": order[tests:held_out], "test": order[:tests]}
    made = {}
    for name, chosen in parts.items():
        pieces = [_windows(rollouts[index], drops) for index in chosen]
        fields = [torch.cat(columns) for columns in zip(*pieces, strict=True)]
        if not fields or not len(fields[0]):
            raise DataError(f"{len(rollouts)} rollouts leave no window of {WINDOW} observations for {name}: give more")
        made[name] = Windows(*fields)
    return Split(**made)


def _windows(rollout: Tensor, drops: numpy.random.RandomState) -> tuple[Tensor, Tensor, Tensor]:
    kept = torch.from_numpy(numpy.flatnonzero(drops.rand(len(rollout) - 1) < _KEPT))
    elapsed = torch.diff(kept, prepend=torch.tensor([-1]))
    # As in the protocol, a window that ends with the rollout is left out.
    starts = torch.arange(0, max(0, len(kept) - WINDOW), STRIDE)
    places = starts.unsqueeze(1) + torch.arange(WINDOW)
    return rollout[kept][places], elapsed[places], rollout[kept + 1][places]


def oscillator_rollouts(count: int, steps: int, seed: int = 0) -> list[Tensor]:
    """Draw smooth stand-ins for the rollouts: in each channel the sum of two sines of random rhythm and phase.

    Args:
        count: number of rollouts.
        steps: of each.
        seed: of the draw.

    Returns:
        A (steps, 17) float32 tensor each.
    """
    generator = torch.Generator().manual_seed(seed)
    # Periods of 8 to 64 steps, as a gait has.
    periods = 8.0 * 8.0 ** torch.rand((count, 1, 2), generator=generator)
    phases = 2.0 * math.pi * torch.rand((count, FEATURES, 2), generator=generator)
    amplitudes = 0.5 + torch.rand((count, FEATURES, 2), generator=generator)
    angles = 2.0 * math.pi * torch.arange(steps).view(1, steps, 1, 1) / periods.unsqueeze(1) + phases.unsqueeze(1)
    return list((amplitudes.unsqueeze(1) * angles.sin()).sum(-1))
