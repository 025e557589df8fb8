"""Published collections of short labelled series: Japanese vowels, character trajectories, and the .ts format."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import DataError
from ._reading import read_npz
from ._ts import LabelledSeries, labelled, read_ts
from .files import require_folder, verify

__all__ = ["LabelledSeries", "load_character_trajectories", "load_japanese_vowels", "read_ts"]

_VOWELS = {
    "JapaneseVowels_TRAIN.ts": "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd",
    "JapaneseVowels_TEST.ts": "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462",
}
_VOWELS_ORIGIN = "https://github.com/aeon-toolkit/aeon, folder aeon/datasets/data/JapaneseVowels"
_LETTERS_FILE = "character_trajectories_labelled.npz"
_LETTERS = "7d06c63312afe349ea66b23b69819cb1634bdb833029b15520fa7f93a54ff8f5"
_LETTERS_ORIGIN = (
    "trajectories_train.mat of https://github.com/ShuningZhao/Character-Trajectories, saved by numpy as values (S, 3), "
    "lengths (N,), labels (N,) from 1 and classes"
)


def load_japanese_vowels(
    data_dir: str | Path | None = None, *, verify_checksums: bool = True
) -> tuple[LabelledSeries, LabelledSeries]:
    """Load Japanese vowels: 9 speakers, 12 coefficients, 7 to 29 steps; the published 270 to train and 370 to test.

    Args:
        data_dir: folder of the two .ts files; None: `$PHASED_LSTM_DATA/japanese-vowels`, else the cache.
        verify_checksums: whether the files must be the published ones.

    Raises:
        DataError: files are missing or damaged.
    """
    folder = require_folder("japanese-vowels", [(name,) for name in _VOWELS], data_dir, _VOWELS_ORIGIN)
    if verify_checksums:
        for name, checksum in _VOWELS.items():
            verify(folder / name, checksum)
    train, test = (read_ts(folder / name) for name in _VOWELS)
    if train.classes != test.classes:
        raise DataError(f"{folder}: the two parts have other classes, {train.classes} and {test.classes}")
    return train, test


def load_character_trajectories(data_dir: str | Path | None = None, *, verify_checksums: bool = True) -> LabelledSeries:
    """Load the labelled half of character trajectories: 1,429 pen movements, 20 letters, x, y and pressure at 200 Hz.

    There is no published split of this half.

    Args:
        data_dir: folder of the .npz file; None: `$PHASED_LSTM_DATA/character-trajectories`, else the cache.
        verify_checksums: whether the file must be the one that is known.

    Raises:
        DataError: the file is missing or damaged.
        ImportError: numpy is not installed.
    """
    folder = require_folder("character-trajectories", [(_LETTERS_FILE,)], data_dir, _LETTERS_ORIGIN)
    path = folder / _LETTERS_FILE
    if verify_checksums:
        verify(path, _LETTERS)
    arrays = read_npz(path)
    if absent := [name for name in ("values", "lengths", "labels", "classes") if name not in arrays]:
        raise DataError(f"{path} lacks {', '.join(absent)}, expected {_LETTERS_ORIGIN}")
    values, lengths, labels, classes = (arrays[name] for name in ("values", "lengths", "labels", "classes"))
    if values.dtype.kind != "f" or values.ndim != 2:
        raise DataError(f"{path}: values are {values.dtype} {values.shape}, expected floats (S, channels)")
    for name, array in (("lengths", lengths), ("labels", labels)):
        if array.dtype.kind not in "iu" or array.ndim != 1 or (len(array) and int(array.min()) < 1):
            raise DataError(f"{path}: {name} are {array.dtype} {array.shape}, expected integers (N,) of 1 and more")
    if len(labels) != len(lengths) or sum(lengths.tolist()) != len(values):
        raise DataError(
            f"{path} has {len(labels)} labels and {len(lengths)} lengths that sum to {sum(lengths.tolist())}, for "
            f"{len(values)} steps"
        )
    if classes.ndim != 1 or (len(labels) and int(labels.max()) > len(classes)):
        raise DataError(f"{path} has a label {int(labels.max())}, and names of {classes.size} classes")
    return LabelledSeries(
        labelled(torch.from_numpy(values).float(), lengths.tolist(), [label - 1 for label in labels.tolist()]),
        tuple(map(str, classes)),
    )
