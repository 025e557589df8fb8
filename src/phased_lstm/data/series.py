"""Published collections of short labelled series: Japanese vowels, character trajectories, and the .ts format."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import DataError, missing_extra
from .events import EventBatch
from .files import require_folder, verify
from .loading import EventDataset

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


class LabelledSeries(NamedTuple):
    """N series with their classes.

    Attributes:
        data: values (S, F) float32, times (S,) int64 in steps since the beginning, and the class (N,) int64.
        classes: names of the classes.
    """

    data: EventDataset
    classes: tuple[str, ...]


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
    try:
        import numpy as np
    except ImportError as error:
        raise missing_extra("train", "numpy") from error
    folder = require_folder("character-trajectories", [(_LETTERS_FILE,)], data_dir, _LETTERS_ORIGIN)
    path = folder / _LETTERS_FILE
    if verify_checksums:
        verify(path, _LETTERS)
    try:
        # numpy leaves a file open that it opened and could not read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            values, lengths, labels, classes = (arrays[name] for name in ("values", "lengths", "labels", "classes"))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}; it is truncated or damaged: fetch it again") from error
    if len(labels) != len(lengths) or int(lengths.sum()) != len(values):
        raise DataError(
            f"{path} has {len(labels)} labels and {len(lengths)} lengths that sum to {int(lengths.sum())}, for "
            f"{len(values)} steps"
        )
    events = _counted(torch.from_numpy(values).float(), torch.from_numpy(lengths).long())
    return LabelledSeries(EventDataset(events, torch.from_numpy(labels).long() - 1), tuple(map(str, classes)))


def read_ts(path: str | Path) -> LabelledSeries:
    """Read a .ts file of the UEA and UCR archive: equidistant series of one or several channels, with a class.

    Values that are "?" become NaN.

    Raises:
        DataError: the file cannot be read, carries time stamps or no classes, or a line does not keep to the header.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    begin = next((n for n, line in enumerate(lines, start=1) if line.strip().lower() == "@data"), 0)
    entries = [line[1:].split() for line in lines[:begin] if line.startswith("@")]
    header = {name.lower(): rest for name, *rest in entries}
    labelled, *classes = header.get("classlabel", ["false"])
    if not begin or labelled.lower() != "true" or not classes:
        raise DataError(f"{path} should have a line '@classLabel true' with the classes, and a line '@data'")
    if [word.lower() for word in header.get("timestamps", ["false"])] != ["false"]:
        raise DataError(f"{path} has time stamps in its series, which are not read")
    dimensions = header.get("dimensions", ["1"])
    if len(dimensions) != 1 or not dimensions[0].isdigit():
        raise DataError(f"{path} should have a number after @dimensions, got {' '.join(dimensions)!r}")
    channels = int(dimensions[0])
    series, labels = [], []
    for number, line in enumerate(lines[begin:], start=begin + 1):
        if not line.strip():
            continue
        *parts, label = line.strip().split(":")
        try:
            values = [[math.nan if entry == "?" else float(entry) for entry in part.split(",")] for part in parts]
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        if len(values) != channels or len({len(part) for part in values}) != 1 or label not in classes:
            raise DataError(
                f"{path}, line {number} should have {channels} channels of one length and a class of "
                f"{', '.join(classes)}; got lengths {[len(part) for part in values]} and class {label!r}"
            )
        series.append(torch.tensor(values).T)
        labels.append(classes.index(label))
    if not series:
        raise DataError(f"{path} holds no series")
    events = _counted(torch.cat(series), torch.tensor([len(values) for values in series]))
    return LabelledSeries(EventDataset(events, torch.tensor(labels)), tuple(classes))


def _counted(values: torch.Tensor, lengths: torch.Tensor) -> EventBatch:
    """Series laid end to end, with the number of the step as time."""
    begins = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return EventBatch.from_lengths(values, torch.arange(len(values)) - begins, lengths)
