"""Handwritten digits as sequences of 784 pixels: MNIST, and scikit-learn's digits enlarged to its size."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, missing_extra
from ._reading import read_bytes, reading
from .files import cache_folder, download, file_in, find_folder

SIDE = 28
STEPS = SIDE * SIDE

_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")

# SHA-256 of the four files as published.
_CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}

_IDX_IMAGES = 2051
_IDX_LABELS = 2049


class Digits(NamedTuple):
    """A split data set of digit images.

    Attributes:
        train_images: (N, 784) uint8, row by row.
        train_labels: (N,) int64, 0 to 9.
        test_images: (M, 784) uint8.
        test_labels: (M,) int64.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(name: str, data_dir: str | Path | None = None, *, progress: bool = True) -> Digits:
    """Load "mnist" or "digits".

    Args:
        name: "mnist" for the four idx files, found as `load_mnist` says; "digits" for scikit-learn's
            bundled digits.
        data_dir: folder of the idx files; only with "mnist".
        progress: whether a download shows a progress bar.

    Raises:
        DataError: an unknown name, or files that are missing or corrupt.
        ImportError: scikit-learn is needed and not installed.
    """
    if name == "mnist":
        return load_mnist(data_dir, progress=progress)
    if name == "digits":
        return load_digits()
    raise DataError(f"data should be mnist or digits, got {name!r}")


def load_mnist(data_dir: str | Path | None = None, *, progress: bool = True) -> Digits:
    """Load MNIST from `data_dir`, else `$PHASED_LSTM_DATA/mnist`, else a verified download.

    The files may be compressed (.gz) or not. Downloads go to `$XDG_CACHE_HOME/phased_lstm/mnist`
    (by default under ~/.cache) and are checked against the published SHA-256.

    Raises:
        DataError: a file is missing, corrupt, or cannot be downloaded; the message names the three ways.
    """
    folder = _mnist_folder(data_dir, progress)
    arrays = [_read_idx(folder, name.removesuffix(".gz")) for name in _CHECKSUMS]
    train_images, train_labels, test_images, test_labels = arrays
    for part, images, labels in (("train", train_images, train_labels), ("t10k", test_images, test_labels)):
        if len(images) != len(labels):
            raise DataError(f"{folder}: {part} has {len(images)} images but {len(labels)} labels")
        if not len(images):
            raise DataError(f"{folder}: {part} holds no images")
    return Digits(train_images, train_labels.long(), test_images, test_labels.long())


def load_digits() -> Digits:
    """Load scikit-learn's 1,797 bundled 8 x 8 digits, enlarged to 28 x 28; 1,437 train, 360 test.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise missing_extra("train", "scikit-learn") from error
    images, labels = bundled(return_X_y=True)
    small = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) * (255.0 / 16.0)
    enlarged = torch.nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    pixels = enlarged.round().to(torch.uint8).flatten(1)
    train, test = train_test_split(range(len(labels)), test_size=360, random_state=0, stratify=labels)
    targets = torch.from_numpy(labels).long()
    return Digits(pixels[train], targets[train], pixels[test], targets[test])


def _mnist_folder(data_dir: str | Path | None, progress: bool) -> Path:
    folder = find_folder("mnist", [(name, name.removesuffix(".gz")) for name in _CHECKSUMS], data_dir)
    if folder is not None:
        return folder
    cache = cache_folder("mnist")
    ways = (
        f"Three ways to bring MNIST: --data-dir FOLDER with the four idx files; PHASED_LSTM_DATA=FOLDER with them in "
        f"FOLDER/mnist; or a network that reaches a mirror, for a download into {cache}. Without any: --data digits "
        f"needs no download"
    )
    download(_MIRRORS, _CHECKSUMS, cache, ways, progress)
    return cache


def _read_idx(folder: Path, name: str) -> Tensor:
    """Read an idx file of images, as (N, pixels), or labels, (N,)."""
    path = file_in(folder, (f"{name}.gz", name))
    data = read_bytes(path)
    if path.suffix == ".gz":
        with reading(path, "delete it and fetch it again"):
            data = gzip.decompress(data)
    magic, rank = (_IDX_IMAGES, 3) if "images" in name else (_IDX_LABELS, 1)
    header = 4 + 4 * rank
    if len(data) < header:
        raise DataError(f"{path} is too short for an idx file: {len(data)} bytes; fetch it again")
    found, *sizes = struct.unpack(f">{1 + rank}I", data[:header])
    if found != magic:
        raise DataError(f"{path} has magic number {found}, expected {magic}: not the idx file its name says")
    if rank == 3 and sizes[1:] != [SIDE, SIDE]:
        raise DataError(f"{path} holds images of {sizes[1]} x {sizes[2]}, expected {SIDE} x {SIDE}")
    expected = header + sizes[0] * (STEPS if rank == 3 else 1)
    if len(data) != expected:
        raise DataError(f"{path} holds {len(data)} bytes, its header promises {expected}: truncated or corrupt")
    flat = torch.frombuffer(bytearray(data[header:]), dtype=torch.uint8) if len(data) > header else torch.empty(0)
    if rank == 1 and bool((flat > 9).any()):
        raise DataError(f"{path} holds a label {int(flat.max())}, expected 0 to 9")
    return flat.reshape(sizes[0], STEPS) if rank == 3 else flat
