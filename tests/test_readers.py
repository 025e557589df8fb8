"""Readers of published data: on files written here, and on the real ones where they are present."""

from __future__ import annotations

import io
import os
import tarfile
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phased_lstm.data import files
from phased_lstm.data.audio import load_spoken_digits, read_wav, read_wav_folder
from phased_lstm.data.physionet2012 import CHANNELS, DESCRIPTORS, load_physionet2012
from phased_lstm.data.series import load_character_trajectories, load_japanese_vowels, read_ts
from phased_lstm.errors import DataError

REAL = os.environ.get("PHASED_LSTM_DATA")
HEADER = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"


def needs(name: str) -> pytest.MarkDecorator:
    present = REAL is not None and (Path(REAL) / name).is_dir()
    return pytest.mark.skipif(not present, reason=f"PHASED_LSTM_DATA has no {name}/")


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def stay(record: int, *rows: str) -> str:
    fixed = ["00:00,Age,54", "00:00,Gender,0", "00:00,Height,-1", "00:00,ICUType,4"]
    return "\n".join(["Time,Parameter,Value", f"00:00,RecordID,{record}", *fixed, *rows]) + "\n"


STAYS = {
    "12.txt": stay(12, "00:00,Weight,81.5", "00:07,HR,73", "00:07,HR,75", "00:07,pH,7.3", "47:59,Temp,-17.8"),
    "9.txt": stay(9, "00:00,Weight,-1"),
    "13.txt": stay(13, "00:00,Weight,-1", "01:30,GCS,15", "02:00,Weight,70"),
}
OUTCOMES = HEADER + "9,6,1,5,-1,0\n12,16,8,8,30,1\n13,21,11,19,-1,0\n"


@pytest.fixture
def physionet(tmp_path: Path) -> Callable[..., Path]:
    def write(stays: dict[str, str] | None = None, outcomes: str = OUTCOMES, packed: bool = True) -> Path:
        folder = tmp_path / "p"
        folder.mkdir(exist_ok=True)
        (folder / "Outcomes-c.txt").write_text(outcomes)
        texts = STAYS if stays is None else STAYS | stays
        if packed:
            with tarfile.open(folder / "set-c.tar.gz", "w:gz") as tar:
                for name, text in texts.items():
                    info = tarfile.TarInfo(f"set-c/{name}")
                    info.size = len(text)
                    tar.addfile(info, io.BytesIO(text.encode()))
        else:
            (folder / "set-c").mkdir()
            for name, text in texts.items():
                (folder / "set-c" / name).write_text(text)
        return folder

    return write


@pytest.mark.parametrize("packed", [True, False])
def test_physionet(physionet: Callable[..., Path], packed: bool) -> None:
    stays = load_physionet2012(["c"], physionet(packed=packed))
    assert stays.ids == ("12", "13")
    assert stays.events.lengths.tolist() == [3, 2]
    assert stays.events.times.tolist() == [0, 7, 47 * 60 + 59, 90, 120]
    measured = {
        (step, CHANNELS[channel]): stays.events.values[step, channel].item()
        for step, channel in (~stays.events.values.isnan()).nonzero().tolist()
    }
    assert measured == pytest.approx(
        {(0, "Weight"): 81.5, (1, "HR"): 74.0, (1, "pH"): 7.3, (2, "Temp"): -17.8, (3, "GCS"): 15, (4, "Weight"): 70}
    )
    described = dict(zip(DESCRIPTORS, stays.static.T.tolist(), strict=True))
    assert described["Age"] == [54, 54]
    assert described["Weight"][0] == 81.5
    assert stays.static.isnan().sum(dim=1).tolist() == [1, 2]
    assert stays.died.tolist() == [1, 0]
    assert stays.outcomes.tolist() == [[16, 8, 8, 30, 1], [21, 11, 19, -1, 0]]
    assert load_physionet2012(["c"], physionet(packed=True), drop_empty=False).ids == ("12", "13", "9")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stays": {"12.txt": stay(12, "00:07,HR,fast")}}, r"set-c\.tar\.gz: 12\.txt, row 6 .*got '00:07,HR,fast'"),
        ({"stays": {"12.txt": stay(12, "00:70,HR,73")}}, "row 6 should be hh:mm"),
        ({"stays": {"12.txt": stay(12, "00:07,HR,inf")}}, "row 6 should be hh:mm,name,finite number"),
        ({"stays": {"12.txt": stay(12, "00:07,HR")}}, "row 6 should be hh:mm"),
        ({"stays": {"12.txt": stay(12, "00:07,Mood,1")}}, "row 6: 'Mood' is none of the variables"),
        ({"stays": {"12.txt": stay(14)}}, r"12\.txt has the RecordID 14, expected 12"),
        ({"stays": {"12.txt": ""}}, r"12\.txt should begin with Time,Parameter,Value"),
        ({"stays": {"14.txt": stay(14)}}, "has no outcome of stay 14"),
        ({"outcomes": OUTCOMES + "15,1,1,1,-1,0\n"}, "has no stay 15"),
        ({"outcomes": OUTCOMES + "9,1,1,1,-1,0\n"}, "row 4: RecordID 9 occurs a second time"),
        ({"outcomes": OUTCOMES + "10,1,1,1,-1,2\n"}, "row 4: In-hospital_death should be 0 or 1, got 2"),
        ({"outcomes": OUTCOMES + "10,1,x,1,-1,0\n"}, "row 4: .*should hold integers"),
        ({"outcomes": "RecordID\n9\n"}, r"Outcomes-c\.txt should have the columns"),
    ],
)
def test_bad_physionet_files_are_named(physionet: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_physionet2012(["c"], physionet(**changes))


def test_a_truncated_archive_is_named(physionet: Callable[..., Path]) -> None:
    path = physionet() / "set-c.tar.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"set-c\.tar\.gz cannot be read"):
        load_physionet2012(["c"], path.parent)


def test_published_outcomes_are_verified(physionet: Callable[..., Path]) -> None:
    folder = physionet()
    for name in ("set-{}.tar.gz", "Outcomes-{}.txt"):
        (folder / name.format("c")).rename(folder / name.format("a"))
    with pytest.raises(DataError, match=r"checksum of .*Outcomes-a\.txt is .*verify_checksums=False"):
        load_physionet2012(["a"], folder)
    assert len(load_physionet2012(["a"], folder, verify_checksums=False).ids) == 2


def test_where_the_files_are_looked_for(
    physionet: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PHASED_LSTM_DATA", raising=False)
    with pytest.raises(
        DataError, match=r"needs set-c.tar.gz or set-c, Outcomes-c.txt, from https://physionet.*data_dir"
    ):
        load_physionet2012(["c"])
    with pytest.raises(DataError, match=r"no lacks set-c\.tar\.gz or set-c, Outcomes-c\.txt"):
        load_physionet2012(["c"], tmp_path / "no")
    files.cache_folder("x").mkdir(parents=True)
    physionet().rename(files.cache_folder("physionet2012"))
    assert len(load_physionet2012(["c"]).ids) == 2
    physionet(outcomes=OUTCOMES.replace("12,16", "12,17")).rename(tmp_path / "physionet2012")
    monkeypatch.setenv("PHASED_LSTM_DATA", str(tmp_path))
    assert load_physionet2012(["c"]).outcomes[0, 0] == 17
    with pytest.raises(DataError, match="sets should be among a, b and c"):
        load_physionet2012(["d"])


@needs("physionet2012")
def test_real_physionet() -> None:
    stays = load_physionet2012(["a"], drop_empty=False)
    assert len(stays.ids) == 4000
    assert int(stays.died.sum()) == 554
    assert int(stays.events.times.max()) == 48 * 60
    assert bool((~stays.events.values.isnan()).any(dim=0).all())
    first = stays.events[0][0][:, CHANNELS.index("HR")]
    assert (stays.ids[0], first[~first.isnan()][0].item()) == ("132539", 73.0)


def wav(path: Path, samples: np.ndarray[Any, Any], width: int = 2, channels: int = 1, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        data = samples.astype("<i4").tobytes()
        if width < 4:
            kept = np.frombuffer(data, np.uint8).reshape(-1, 4)[:, :width]
            data = kept.tobytes()
        sound.writeframes(data)
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_of_every_width(tmp_path: Path, width: int) -> None:
    half = 2 ** (8 * width - 1)
    whole = np.array([0, half - 1, -half, half // 2, -half // 2, 1], np.int64)
    stored = whole + half if width == 1 else whole
    samples, rate = read_wav(wav(tmp_path / "a.wav", stored, width, channels=2, rate=11025))
    assert rate == 11025
    expected = torch.from_numpy(whole / half).float().reshape(3, 2)
    assert torch.equal(samples, expected)


def test_bad_wav_files_are_named(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", np.arange(100))
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(DataError, match=r"a\.wav holds 150 bytes of sound, its header promises 200"):
        read_wav(path)
    path.write_bytes(whole[:30])
    with pytest.raises(DataError, match=r"a\.wav cannot be read as WAV"):
        read_wav(path)
    with pytest.raises(DataError, match=r"b\.wav cannot be read"):
        read_wav(tmp_path / "b.wav")
    with pytest.raises(DataError, match="holds no sound"):
        read_wav(wav(path, np.arange(0)))


def test_wav_folder(tmp_path: Path) -> None:
    wav(tmp_path / "no" / "2.wav", np.arange(5))
    wav(tmp_path / "no" / "1.WAV", np.arange(3))
    wav(tmp_path / "yes" / "1.wav", np.arange(4))
    found = read_wav_folder(tmp_path)
    assert found.names == ("no/1.WAV", "no/2.wav", "yes/1.wav")
    assert found.classes == ("no", "yes")
    assert found.data.labels.tolist() == [0, 0, 1]
    assert found.data.lengths.tolist() == [3, 5, 4]
    assert found.data.events.times.tolist() == [*range(3), *range(5), *range(4)]
    assert read_wav_folder(tmp_path, lambda path: path.stem).classes == ("1", "2")
    with pytest.raises(DataError, match="all recordings are of one class"):
        read_wav_folder(tmp_path / "no")
    wav(tmp_path / "yes" / "2.wav", np.arange(4), rate=16000)
    with pytest.raises(DataError, match=r"yes/2\.wav has 1 channels at 16000 Hz, no/1\.WAV 1 at 8000 Hz"):
        read_wav_folder(tmp_path)
    with pytest.raises(DataError, match=r"has no \.wav files"):
        read_wav_folder(tmp_path / "cache")


def test_spoken_digits_from_a_folder(tmp_path: Path) -> None:
    for digit in (0, 7):
        for index in (4, 5, 6):
            wav(tmp_path / "recordings" / f"{digit}_anna_{index}.wav", np.arange(3 + index))
    digits = load_spoken_digits(tmp_path)
    assert digits.train.names == ("0_anna_5.wav", "0_anna_6.wav", "7_anna_5.wav", "7_anna_6.wav")
    assert digits.test.data.labels.tolist() == [0, 1]
    assert digits.test.classes == ("0", "7")
    wav(tmp_path / "recordings" / "eight.wav", np.arange(3))
    with pytest.raises(DataError, match=r"eight\.wav should be named"):
        load_spoken_digits(tmp_path)


def test_a_damaged_archive_of_digits_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recordings.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        tar.add(wav(tmp_path / "0_anna_1.wav", np.arange(2000)), "recordings/0_anna_1.wav")
    with pytest.raises(DataError, match="checksum of"):
        load_spoken_digits(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"recordings\.tar\.xz cannot be read"):
        load_spoken_digits(tmp_path, verify_checksums=False)


@needs("fsdd")
def test_real_spoken_digits() -> None:
    digits = load_spoken_digits()
    assert (len(digits.train.data), len(digits.test.data)) == (2700, 300)
    assert digits.train.data.labels.bincount().tolist() == [270] * 10
    assert int(digits.train.data.lengths.max()) == 18262
    assert digits.train.rate == 8000


TS = """#about
@problemName Two
@timeStamps false
@dimensions 2
@classLabel true up down
@data
1,2,3:4,5,?:down
6:7:up
"""


def test_ts(tmp_path: Path) -> None:
    path = tmp_path / "t.ts"
    path.write_text(TS)
    found = read_ts(path)
    assert found.classes == ("up", "down")
    assert found.data.labels.tolist() == [1, 0]
    values, times = found.data.events[0]
    torch.testing.assert_close(values, torch.tensor([[1.0, 4], [2, 5], [3, torch.nan]]), equal_nan=True)
    assert times.tolist() == [0, 1, 2]
    assert found.data.events[1][1].tolist() == [0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("6:7:up", "6:7:left", "line 8 should have 2 channels .* class 'left'"),
        ("6:7:up", "6,6:7:up", r"line 8 .*got lengths \[2, 1\]"),
        ("6:7:up", "6:up", "line 8 should have 2 channels"),
        ("6:7:up", "6:x:up", "line 8: could not convert"),
        ("@data", "", "a line '@data'"),
        ("true up down", "false", "has no classes, expected a line '@classLabel true'"),
        ("@classLabel true up down", "@targetLabel true", "has a target for regression"),
        ("true up down", "true", "the classes in its line '@classLabel true'"),
        ("true up down", "true up down up", "names a class twice .* up down up"),
        ("@dimensions 2", "@univariate true", "line 7 should have 1 channels"),
        ("@dimensions 2", "@dimensions 0", "number after @dimensions, got '0'"),
        ("@dimensions 2", "@dimensions ²", "number after @dimensions, got '²'"),
        ("@dimensions 2", f"@dimensions {'9' * 5000}", "number after @dimensions, got '999"),
        ("1,2,3", "1,2,inf", "line 7: inf is infinite, or more than float32 holds"),
        ("1,2,3", "1,2,3e38,-1e39", "line 7: -1e39 is infinite, or more"),
        ("1,2,3", "1,2,3_0", "line 7: could not convert string to float: '3_0'"),
        ("1,2,3", "1,,3", "line 7: could not convert string to float: ''"),
        (TS, "", "'@data'"),
        ("@timeStamps false", "@timeStamps true", "has time stamps"),
        ("@dimensions 2", "@dimensions two", "number after @dimensions, got 'two'"),
        ("1,2,3:4,5,?:down\n6:7:up\n", "", "holds no series"),
    ],
)
def test_bad_ts_files_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "t.ts"
    path.write_text(TS.replace(old, new))
    with pytest.raises(DataError, match=rf"t\.ts.*{message}"):
        read_ts(path)


HEADS = {
    "no number of channels": TS.replace("@dimensions 2\n", ""),
    "univariate false": TS.replace("@dimensions 2", "@univariate false"),
    "singular": TS.replace("@dimensions 2", "@Dimension\t02 "),
    "more entries": TS.replace(
        "@data", "@missing true\n@univariate false\n@equalLength false\n@targetlabel false\n@data"
    ),
    "little": "@CLASSLABEL TRUE up down\n  @DATA \n1,2,3:4,5,?:down\n6:7:up",
    "spaces": TS.replace("1,2,3:4,5,?:down", "\t1, 2 ,3 : 4,5, ? : down "),
    "comments": TS.replace("1,2,3", "\n# 1,2:3\n\n1,2,3") + "\n\n#",
    "NaN": TS.replace("?", "NaN"),
    "a mark and other ends": "\ufeff" + TS.replace("\n", "\r\n"),
}


@pytest.mark.parametrize("text", HEADS.values(), ids=HEADS)
def test_ts_headers_that_mean_the_same(tmp_path: Path, text: str) -> None:
    first, other = tmp_path / "a.ts", tmp_path / "b.ts"
    first.write_text(TS)
    other.write_bytes(text.encode())
    wanted, found = read_ts(first), read_ts(other)
    torch.testing.assert_close(found.data.events.values, wanted.data.events.values, equal_nan=True, rtol=0, atol=0)
    assert found.data.lengths.tolist() == wanted.data.lengths.tolist() == [3, 1]
    assert (found.classes, found.data.labels.tolist()) == (("up", "down"), [1, 0])


def test_ts_comments_in_another_encoding_and_data_in_utf16(tmp_path: Path) -> None:
    path = tmp_path / "t.ts"
    path.write_bytes(TS.replace("#about", "# Müller").encode("latin-1"))
    assert len(read_ts(path).data) == 2
    path.write_bytes(TS.encode("utf-16"))
    assert len(read_ts(path).data) == 2
    path.write_bytes(TS.replace("6:7:up", "6:7°:up").encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.ts, line 8: byte 0xb0 is not of UTF-8 text: save it as UTF-8"):
        read_ts(path)


def test_the_first_series_tells_the_number_of_channels(tmp_path: Path) -> None:
    path = tmp_path / "t.ts"
    path.write_text(TS.replace("@dimensions 2\n", "").replace("6:7:up", "6:7:8:up"))
    with pytest.raises(DataError, match=r"line 7 should have 2 channels .*got lengths \[1, 1, 1\]"):
        read_ts(path)


@needs("japanese-vowels")
def test_real_japanese_vowels() -> None:
    train, test = load_japanese_vowels()
    assert train.data.labels.bincount().tolist() == [30] * 9
    assert len(test.data) == 370
    assert train.data.events.num_features == 12
    lengths = torch.cat([train.data.lengths, test.data.lengths])
    assert (int(lengths.min()), int(lengths.max())) == (7, 29)
    assert train.data.events.values[0, 0].item() == pytest.approx(1.860936)


def test_japanese_vowels_are_verified(tmp_path: Path) -> None:
    for part in ("TRAIN", "TEST"):
        (tmp_path / f"JapaneseVowels_{part}.ts").write_text(TS)
    with pytest.raises(DataError, match=r"checksum of .*TRAIN\.ts"):
        load_japanese_vowels(tmp_path)
    train, _ = load_japanese_vowels(tmp_path, verify_checksums=False)
    assert len(train.data) == 2


@needs("character-trajectories")
def test_real_character_trajectories() -> None:
    found = load_character_trajectories()
    assert len(found.data) == 1429
    assert "".join(found.classes) == "abcdeghlmnopqrsuvwyz"
    assert (int(found.data.lengths.min()), int(found.data.lengths.max())) == (109, 205)
    counts = found.data.labels.bincount()
    assert (len(counts), int(counts.min()), int(counts.max())) == (20, 57, 96)


def test_bad_character_trajectories_are_named(tmp_path: Path) -> None:
    path = tmp_path / "character_trajectories_labelled.npz"
    values = {"values": np.zeros((3, 3), np.float32), "labels": np.array([1, 2]), "classes": np.array(["a", "b"])}
    np.savez(path, lengths=np.array([1, 1]), **values)
    with pytest.raises(DataError, match="2 lengths that sum to 2, for 3 steps"):
        load_character_trajectories(tmp_path, verify_checksums=False)
    np.savez(path, lengths=np.array([1, 2]), **values)
    found = load_character_trajectories(tmp_path, verify_checksums=False)
    assert found.data.labels.tolist() == [0, 1]
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"labelled\.npz cannot be read"):
        load_character_trajectories(tmp_path, verify_checksums=False)
