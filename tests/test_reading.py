"""What readers of files share: leftovers of systems, encodings, ends of lines, archives, damage."""

from __future__ import annotations

import io
import os
import tarfile
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from phased_lstm.data import nmnist
from phased_lstm.data._reading import leftover, text_lines
from phased_lstm.data.audio import load_spoken_digits, read_wav_folder
from phased_lstm.data.physionet2012 import load_physionet2012
from phased_lstm.data.series import load_character_trajectories
from phased_lstm.data.walker2d import load_rollouts
from phased_lstm.errors import DataError

# What macOS writes beside a file on a disk of another system.
DOUBLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + b"\0" * 95 + b"\xb0"
LEFTOVERS = ("._{}", ".hidden/{}", "__MACOSX/._{}", "@eaDir/{}", ".~{}")
STAY = "Time,Parameter,Value\n00:00,RecordID,{}\n00:07,HR,70\n"
OUTCOMES = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n1,6,1,5,-1,0\n2,6,1,5,-1,1\n"


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def beside(name: str) -> list[str]:
    """Paths of leftovers beside a path in a folder or archive."""
    folder, _, file = name.rpartition("/")
    return [f"{folder}/{pattern.format(file)}" if folder else pattern.format(file) for pattern in LEFTOVERS]


def tar(path: Path, files: dict[str, bytes], mode: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sound(count: int) -> bytes:
    held = io.BytesIO()
    with wave.open(held, "wb") as written:
        written.setparams((1, 2, 8000, count, "NONE", ""))
        written.writeframes(b"\1\2" * count)
    return held.getvalue()


@pytest.mark.parametrize(
    "name", ["._1.bin", ".DS_Store", "a/.git/1.wav", "__MACOSX/a/1.txt", "x/Thumbs.db", "@eaDir/a"]
)
def test_leftovers(name: str) -> None:
    assert leftover(name)


@pytest.mark.parametrize("name", ["1.bin", "./a/1.wav", "_noise_/1.wav", "a.b/c.txt", "../a/1.txt"])
def test_data_is_no_leftover(name: str) -> None:
    assert not leftover(name)


@pytest.mark.parametrize("layout", ["folders", "archives"])
def test_nmnist_without_leftovers(tmp_path: Path, layout: str) -> None:
    # A folder of data may itself be in a hidden one.
    folder = tmp_path / ".cache" / "set"
    event = bytes([1, 2, 0x80, 0, 10])
    for part in ("Train", "Test"):
        files = {f"{part}/{digit}/1.bin": event for digit in "01"}
        files |= {name: DOUBLE for file in list(files) for name in beside(file)}
        files |= {f"__MACOSX/{part}/0/._1.bin": DOUBLE}
        if layout == "folders":
            for name, content in files.items():
                write(folder / name, content)
        else:
            write(folder / f"._{part}.zip", DOUBLE)
            with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
    train, test = nmnist.load("nmnist", folder)
    assert train.labels.tolist() == test.labels.tolist() == [0, 1]


def test_sounds_without_leftovers(tmp_path: Path) -> None:
    for name in ("no/1.wav", "yes/1.wav", "yes/_2.WAV"):
        write(tmp_path / "folder" / name, sound(3))
        for other in beside(name):
            write(tmp_path / "folder" / other, DOUBLE)
    assert read_wav_folder(tmp_path / "folder").names == ("no/1.wav", "yes/1.wav", "yes/_2.WAV")
    names = [f"recordings/{digit}_anna_{index}.wav" for digit in (0, 1) for index in (0, 9)]
    files = {name: sound(4) for name in names} | {other: DOUBLE for name in names for other in beside(name)}
    tar(tmp_path / "packed" / "recordings.tar.xz", files, "w:xz")
    for name, content in files.items():
        write(tmp_path / "open" / name, content)
    for place in ("packed", "open"):
        digits = load_spoken_digits(tmp_path / place, verify_checksums=False)
        assert digits.train.names + digits.test.names == (
            "0_anna_9.wav",
            "1_anna_9.wav",
            "0_anna_0.wav",
            "1_anna_0.wav",
        )


@pytest.mark.parametrize("mode", ["w:gz", "w", ""], ids=["gz", "tar", "folder"])
def test_stays_without_leftovers(tmp_path: Path, mode: str) -> None:
    files = {f"./set-c/{record}.txt": STAY.format(record).encode() for record in (1, 2)}
    files |= {other: DOUBLE for name in list(files) for other in beside(name)}
    write(tmp_path / "Outcomes-c.txt", OUTCOMES)
    if mode:
        # A browser may have unpacked the archive on its way and left it its name.
        tar(tmp_path / "set-c.tar.gz", files, mode)
    else:
        for name, content in files.items():
            write(tmp_path / name, content)
    assert load_physionet2012(["c"], tmp_path).ids == ("1", "2")


def test_what_is_there_twice_is_named(tmp_path: Path) -> None:
    event = bytes([1, 2, 0x80, 0, 10])
    for archive in ("Train", "Train (1)", "Test"):
        with zipfile.ZipFile(tmp_path / f"{archive}.zip", "w") as opened:
            opened.writestr(f"{archive.split()[0]}/0/1.bin", event)
    with pytest.raises(DataError, match=r"Train \(1\)\.zip: Train/0/1\.bin and .*Train\.zip.* are one recording"):
        nmnist.load("nmnist", tmp_path)
    write(tmp_path / "Outcomes-c.txt", OUTCOMES)
    stays = {
        f"{folder}/{record}.txt": STAY.format(record).encode() for folder in ("set-c", "copy") for record in (1, 2)
    }
    tar(tmp_path / "set-c.tar.gz", stays, "w:gz")
    with pytest.raises(DataError, match=r"set-c\.tar\.gz: 1\.txt occurs a second time"):
        load_physionet2012(["c"], tmp_path)
    tar(tmp_path / "recordings.tar.xz", {f"{part}/0_anna_1.wav": sound(2) for part in "ab"}, "w:xz")
    with pytest.raises(DataError, match=r"recordings\.tar\.xz has 0_anna_1\.wav twice"):
        load_spoken_digits(tmp_path, verify_checksums=False)


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    write(tmp_path / "no" / "1.wav", sound(2))
    (tmp_path / "yes").mkdir()
    os.symlink(tmp_path / "none", tmp_path / "yes" / "1.wav")
    with pytest.raises(DataError, match=r"yes/1\.wav cannot be read: .*No such file"):
        read_wav_folder(tmp_path)


def test_a_damaged_header_is_not_the_end_of_an_archive(tmp_path: Path) -> None:
    write(tmp_path / "Outcomes-c.txt", OUTCOMES.rsplit("\n", 2)[0])
    path = tar(tmp_path / "set-c.tar.gz", {f"{record}.txt": STAY.format(record).encode() for record in (1, 2)}, "w")
    content = bytearray(path.read_bytes())
    content[1024] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set-c\.tar\.gz cannot be read: bad header at byte 1024; it is truncated or"):
        load_physionet2012(["c"], tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_any_encoding_that_is_told(encoding: str, end: str) -> None:
    lines = ["Größe,\u2028 in °C", "", "\x85 3"]
    for last in ("", end):
        assert text_lines((end.join(lines) + last).encode(encoding), "a.txt") == lines
    assert text_lines(b"", "a.txt") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nTemp °C\n".encode("latin-1"), "line 2: byte 0xb0 is not of UTF-8 text: save it as UTF-8"),
        ("ab".encode("utf-16-le"), "line 1: byte 0x00 is not of UTF-8 text"),
        ("ab\n".encode("utf-16")[:-1], "begins as UTF-16 and is not: .*save it as UTF-8"),
    ],
)
def test_other_encodings_are_named(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.txt,? {message}"):
        text_lines(content, "a.txt")


def test_comments_may_be_in_any_encoding() -> None:
    content = " # Müller\nx\n".encode("latin-1")
    assert text_lines(content, "a.ts", comment="#")[1:] == ["x"]
    with pytest.raises(DataError, match="line 1: byte 0xfc"):
        text_lines(content, "a.ts")


def test_stays_and_outcomes_in_other_forms(tmp_path: Path) -> None:
    stays = [STAY.format(1).replace("\n", "\r\n").encode("utf-8-sig"), (STAY + "\n\n").format(2).encode("utf-16")]
    for record, content in enumerate(stays, start=1):
        write(tmp_path / "set-c" / f"{record}.txt", content)
    write(tmp_path / "Outcomes-c.txt", OUTCOMES.encode("utf-8-sig"))
    assert load_physionet2012(["c"], tmp_path).events.values.nansum() == 140
    for row, message in (
        ("00:08,HR,70°", r"2\.txt, line 4: byte 0xb0"),
        ("00:08,HR,1e39", "row 3 should be hh:mm,name,finite number, got '00:08,HR,1e39'"),
        ("00:08,HR,1_0", "row 3 should be"),
    ):
        write(tmp_path / "set-c" / "2.txt", (STAY.format(2) + row).encode("latin-1"))
        with pytest.raises(DataError, match=message):
            load_physionet2012(["c"], tmp_path)
    write(tmp_path / "set-c" / "2.txt", STAY.format(2))
    for content, message in (
        (OUTCOMES.replace("2,6", "2,9" + "9" * 20).encode(), r"Outcomes-c\.txt, row 2: .*integers"),
        (OUTCOMES.replace("2,6", "2,1_0").encode(), r"Outcomes-c\.txt, row 2: .*integers"),
        (OUTCOMES.replace("2,6", "2,°").encode("latin-1"), r"Outcomes-c\.txt, line 3: byte 0xb0"),
        (OUTCOMES.replace("2,6", "2," + "6" * 200_000).encode(), r"Outcomes-c\.txt cannot be read: field larger"),
    ):
        write(tmp_path / "Outcomes-c.txt", content)
        with pytest.raises(DataError, match=message):
            load_physionet2012(["c"], tmp_path)


LETTERS = {
    "values": np.zeros((3, 3), np.float32), "lengths": np.array([1, 2]), "labels": np.array([1, 2]),
    "classes": np.array(["a", "b"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([1, 3])}, "has a label 3, and names of 2 classes"),
        ({"labels": np.array([0, 1])}, "labels are int64 .*, expected integers .* of 1 and more"),
        ({"lengths": np.array([-1, 4])}, "lengths are int64 .*of 1 and more"),
        ({"lengths": np.array([1.0, 2.0])}, "lengths are float64"),
        ({"lengths": np.array([1, 255], np.uint8), "values": np.zeros((0, 3))}, "lengths that sum to 256, for 0 steps"),
        ({"values": np.zeros(3)}, r"values are float64 \(3,\), expected floats"),
        ({"values": np.array([["a"]])}, "values are <U1"),
        ({"classes": np.array(object())}, "cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_do_not_go_together(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "character_trajectories_labelled.npz"
    np.savez(path, **(LETTERS | changes))
    with pytest.raises(DataError, match=rf"labelled\.npz.*{message}"):
        load_character_trajectories(tmp_path, verify_checksums=False)


def test_arrays_of_the_other_byte_order(tmp_path: Path) -> None:
    swapped = {name: array.astype(array.dtype.newbyteorder()) for name, array in LETTERS.items() if name != "classes"}
    np.savez(tmp_path / "character_trajectories_labelled.npz", classes=LETTERS["classes"], **swapped)
    assert load_character_trajectories(tmp_path, verify_checksums=False).data.labels.tolist() == [0, 1]
    np.savez(tmp_path / "walker_float32.npz", rollout_000=np.ones((2, 17), ">f4"))
    assert torch.equal(load_rollouts(tmp_path)[0], torch.ones(2, 17))


def test_what_is_no_archive_of_arrays(tmp_path: Path) -> None:
    with (tmp_path / "walker_float32.npz").open("wb") as file:
        np.save(file, np.ones((2, 17), np.float32))
    with pytest.raises(DataError, match=r"walker_float32\.npz cannot be read: File is not a zip file; make it again"):
        load_rollouts(tmp_path)
    np.savez(tmp_path / "character_trajectories_labelled.npz", values=np.zeros(3))
    with pytest.raises(DataError, match=r"labelled\.npz lacks lengths, labels, classes, expected"):
        load_character_trajectories(tmp_path, verify_checksums=False)
