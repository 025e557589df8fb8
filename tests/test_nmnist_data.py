"""Reading N-MNIST: the format bit by bit, folders and archives, and what is wrong with bad files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from phased_lstm.data import nmnist
from phased_lstm.errors import DataError

Events = list[tuple[int, int, int, int]]

# x, y, polarity, microseconds; the last has every bit of the time set.
ONE: Events = [(3, 33, 1, 0), (33, 0, 0, 70000), (1, 2, 1, 70000), (0, 0, 1, (1 << 23) - 1)]
TWO: Events = [(5, 6, 0, 9)]
FILES = {
    "Train/7/00002.bin": ONE, "Train/0/00001.bin": TWO, "Train/7/00003.bin": TWO, "Test/4/00001.bin": TWO + TWO,
}  # fmt: skip


def encode(events: Events) -> bytes:
    return b"".join(bytes([x, y]) + (polarity << 23 | time).to_bytes(3, "big") for x, y, polarity, time in events)


def write(folder: Path, layout: str, **replaced: bytes) -> Path:
    contents = {name: replaced.get(name.split("/")[-1][:-4], encode(events)) for name, events in FILES.items()}
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "folders":
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder
    for name, content in contents.items():
        archive = folder / ("both.zip" if layout == "one archive" else name.split("/")[0] + ".zip")
        with zipfile.ZipFile(archive, "a") as opened:
            opened.writestr(name, content)
            opened.writestr(name.replace(".bin", ".txt"), b"not a recording")
    return folder


@pytest.mark.parametrize("layout", ["folders", "two archives", "one archive"])
def test_reads_folders_and_archives(tmp_path: Path, layout: str) -> None:
    train, test = nmnist.load("nmnist", write(tmp_path, layout))
    events = TWO + ONE + TWO
    found = zip(train.x.tolist(), train.y.tolist(), train.polarity.tolist(), train.times.tolist(), strict=True)
    assert list(found) == events
    assert train.offsets.tolist() == [0, 1, 5, 6]
    assert train.labels.tolist() == [0, 7, 7]
    assert test.offsets.tolist() == [0, 2]
    assert test.labels.tolist() == [4]
    assert (train.x.dtype, train.polarity.dtype, train.times.dtype) == (torch.uint8, torch.uint8, torch.int64)


@pytest.mark.parametrize("layout", ["folders", "two archives"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes, expected a multiple of 5"),
        (encode(ONE)[:-1], "has 19 bytes, expected a multiple of 5"),
        (encode([(34, 0, 1, 10), *ONE]), "x = 34, y = 0, expected 0 to 33"),
        (encode([*TWO, (0, 255, 1, 10)]), "x = 0, y = 255, expected 0 to 33"),
        (encode([*TWO, (0, 0, 1, 8)]), "from 9 to 8 microseconds"),
    ],
)
def test_names_the_bad_file(tmp_path: Path, layout: str, content: bytes, message: str) -> None:
    folder = write(tmp_path, layout, **{"00003": content})
    with pytest.raises(DataError, match=rf"Train/7/00003\.bin .*{message}"):
        nmnist.load("nmnist", folder)


def test_a_recording_may_begin_before_the_one_before_ended(tmp_path: Path) -> None:
    train = nmnist.load("nmnist", write(tmp_path, "folders")).train
    assert train.times[4] > train.times[5]


def test_a_damaged_archive_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = write(tmp_path, "two archives")
    content = (folder / "Train.zip").read_bytes()
    (folder / "Train.zip").write_bytes(content.replace(encode(ONE), encode(ONE)[::-1]))
    with pytest.raises(DataError, match=r"Train\.zip cannot be read: Bad CRC-32"):
        nmnist.load("nmnist", folder)
    (folder / "Train.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"Train\.zip cannot be read: File is not a zip file"):
        nmnist.load("nmnist", folder)


def test_without_files_the_error_says_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PHASED_LSTM_DATA", raising=False)
    with pytest.raises(DataError, match=r"PHASED_LSTM_DATA is not set.*garrickorchard.*PHASED_LSTM_DATA/nmnist;"):
        nmnist.load("nmnist")
    monkeypatch.setenv("PHASED_LSTM_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"nmnist-small has neither Train/ and Test/ nor a zip archive"):
        nmnist.load("nmnist-small")
    write(tmp_path / "nmnist-small", "one archive")
    assert len(nmnist.load("nmnist-small").train.labels) == 3
    with pytest.raises(DataError, match="should be nmnist or nmnist-small, got 'mnist'"):
        nmnist.load("mnist")


def test_a_part_without_recordings_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "two archives")
    (tmp_path / "Test.zip").unlink()
    with pytest.raises(DataError, match=r"no recordings Test/DIGIT/NUMBER\.bin"):
        nmnist.load("nmnist", tmp_path)
