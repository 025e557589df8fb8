"""Reading MNIST and digits: the three ways to the files, and what is wrong with bad ones."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import struct
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from phased_lstm.data import mnist
from phased_lstm.errors import DataError

FILES = {
    "train-images-idx3-ubyte": struct.pack(">4I", 2051, 3, 28, 28) + bytes(range(256)) * 9 + bytes(48),
    "train-labels-idx1-ubyte": struct.pack(">2I", 2049, 3) + bytes([7, 0, 9]),
    "t10k-images-idx3-ubyte": struct.pack(">4I", 2051, 2, 28, 28) + bytes(2 * 784),
    "t10k-labels-idx1-ubyte": struct.pack(">2I", 2049, 2) + bytes([1, 2]),
}


@pytest.fixture(autouse=True)
def _no_data_from_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PHASED_LSTM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mnist, "_MIRRORS", ("http://127.0.0.1:9/",))


def write(folder: Path, compressed: bool = True, **replaced: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        content = replaced.get(name.split("-idx")[0].replace("-", "_"), content)
        (folder / (name + ".gz" * compressed)).write_bytes(gzip.compress(content) if compressed else content)
    return folder


@pytest.mark.parametrize("compressed", [True, False])
def test_reads_idx_files(tmp_path: Path, compressed: bool) -> None:
    digits = mnist.load("mnist", write(tmp_path / "m", compressed))
    assert digits.train_images.shape == (3, 784)
    assert digits.train_images.dtype == torch.uint8
    assert digits.train_images.flatten()[:300].tolist() == [*range(256), *range(44)]
    assert digits.train_labels.tolist() == [7, 0, 9]
    assert digits.test_images.shape == (2, 784)
    assert digits.test_labels.tolist() == [1, 2]


def test_data_dir_comes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "root" / "mnist")
    other = write(tmp_path / "other", train_labels=struct.pack(">2I", 2049, 3) + bytes([1, 1, 1]))
    monkeypatch.setenv("PHASED_LSTM_DATA", str(tmp_path / "root"))
    assert mnist.load("mnist").train_labels.tolist() == [7, 0, 9]
    assert mnist.load("mnist", other).train_labels.tolist() == [1, 1, 1]


def test_a_data_dir_without_the_files_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "root" / "mnist")
    monkeypatch.setenv("PHASED_LSTM_DATA", str(tmp_path / "root"))
    with pytest.raises(DataError, match=r"empty lacks train-images-idx3-ubyte\.gz"):
        mnist.load("mnist", tmp_path / "empty")


def test_without_files_or_network_the_error_names_the_three_ways() -> None:
    with pytest.raises(DataError, match=r"--data-dir.*PHASED_LSTM_DATA.*download.*--data digits"):
        mnist.load("mnist", progress=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_labels", struct.pack(">2I", 2051, 3) + bytes(3), "magic number 2051, expected 2049"),
        ("train_images", FILES["train-images-idx3-ubyte"][:-1], "holds 2367 bytes, its header promises 2368"),
        ("train_images", b"\0\0", "too short"),
        ("t10k_images", struct.pack(">4I", 2051, 2**31, 28, 28), "its header promises"),
        ("train_labels", struct.pack(">2I", 2049, 3) + bytes([1, 2, 10]), "label 10"),
        ("train_labels", struct.pack(">2I", 2049, 2) + bytes(2), "3 images but 2 labels"),
        ("t10k_images", struct.pack(">4I", 2051, 2, 16, 49) + bytes(2 * 784), "16 x 49, expected 28 x 28"),
        ("t10k_images", struct.pack(">4I", 2051, 0, 28, 28), "t10k has 0 images but 2 labels"),
    ],
)
def test_corrupt_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    folder = write(tmp_path / "m", **{name: content})
    with pytest.raises(DataError, match=message) as caught:
        mnist.load("mnist", folder)
    assert str(folder) in str(caught.value)


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        mnist.load("mnist", folder)


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served on loopback, and the only mirror."""
    folder = write(tmp_path / "mirror")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(mnist, "_CHECKSUMS", {name: sums[name] for name in mnist._CHECKSUMS})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(mnist, "_MIRRORS", (f"http://127.0.0.1:{server.server_port}/",))
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_downloads_into_the_cache_once(mirror: Path, tmp_path: Path) -> None:
    assert mnist.load("mnist", progress=False).train_labels.tolist() == [7, 0, 9]
    for path in mirror.iterdir():
        path.unlink()
    assert mnist.load("mnist", progress=False).train_labels.tolist() == [7, 0, 9]
    assert len(list((tmp_path / "cache" / "phased_lstm" / "mnist").iterdir())) == 4


def test_a_damaged_download_is_refused_and_leaves_nothing(mirror: Path, tmp_path: Path) -> None:
    path = mirror / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"checksum of train-images-idx3-ubyte\.gz is .*, expected"):
        mnist.load("mnist", progress=False)
    assert list((tmp_path / "cache" / "phased_lstm" / "mnist").iterdir()) == []


def test_a_mirror_that_tells_no_length(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send = _QuietHandler.send_header
    monkeypatch.setattr(
        _QuietHandler, "send_header", lambda self, name, value: send(self, name, "?" if "Length" in name else value)
    )
    assert mnist.load("mnist", progress=False).train_labels.tolist() == [7, 0, 9]


def test_the_published_checksums_are_whole() -> None:
    assert [len(bytes.fromhex(value)) for value in mnist._CHECKSUMS.values()] == [32] * 4


def test_digits_have_the_size_of_mnist_and_a_fixed_split() -> None:
    digits = mnist.load("digits")
    assert digits.train_images.shape == (1437, 784)
    assert digits.test_images.shape == (360, 784)
    assert digits.train_images.dtype == torch.uint8
    assert int(digits.train_images.max()) == 255
    assert torch.bincount(digits.test_labels).min() >= 34
    again = mnist.load("digits")
    assert torch.equal(digits.train_images, again.train_images)
    assert torch.equal(digits.test_labels, again.test_labels)


def test_unknown_data() -> None:
    with pytest.raises(DataError, match="mnist or digits, got 'cifar'"):
        mnist.load("cifar")
