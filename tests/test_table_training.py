"""From tables to a trained network, its figures and predictions, through the commands."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from phased_lstm import cli
from phased_lstm.errors import RunError
from phased_lstm.models import SequenceNetwork
from phased_lstm.training import loop
from phased_lstm.training.checkpoints import load_tensors
from phased_lstm.training.runs import read_json, read_log
from phased_lstm.training.splits import split_rows
from phased_lstm.training.table_config import TrainConfig

PNG = b"\x89PNG\r\n\x1a\n"
OPTIONS = [
    "--hidden-size=6", "--epochs=3", "--batch-size=8", "--ratio-on=0.5", "--threads=1", "--checkpoint-every=2",
    "--quiet",
]  # fmt: skip


def write_tables(folder: Path, count: int = 30, seed: int = 0) -> list[str]:
    """A long table, and labels with a class and a number that follow from the level of one channel."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "data.csv").open("w") as data, (folder / "labels.csv").open("w") as labels:
        print("id,time,channel,value", file=data)
        print("id,state,level,age", file=labels)
        for number in range(count):
            level = chance.uniform(-1, 1)
            minute = 0
            for _ in range(chance.randint(6, 12)):
                minute += chance.randint(1, 9)
                print(
                    f"s{number},2024-05-01T10:{minute // 60:02}:{minute % 60:02}Z,hr,{80 + 10 * level:.4f}", file=data
                )
                if chance.random() < 0.4:
                    print(
                        f"s{number},2024-05-01T10:{minute // 60:02}:{minute % 60:02}Z,bp,{chance.gauss(0, 1)}",
                        file=data,
                    )
            age = "" if number % 5 == 0 else str(20 + number)
            print(f"s{number},{'high' if level > 0 else 'low'},{level},{age}", file=labels)
    return ["--data", str(folder / "data.csv"), "--labels", str(folder / "labels.csv")]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_tables(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def finished(tables: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    command = ["train", *tables, *OPTIONS, "--target=state", "--static=age", "--epochs=25", "--lr=0.02"]
    assert cli.main([*command, "--test-fraction=0.2", "--out", str(out)]) == 0
    return out


def figures(run: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_log(run)]


def assert_same_run(one: Path, other: Path) -> None:
    assert figures(one) == figures(other)
    for name in ("model/model.safetensors", "checkpoint.safetensors", "evaluation.safetensors"):
        first, second = (load_tensors(run / name)[0] for run in (one, other))
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), (name, key)


def test_a_run_learns_and_leaves_its_files(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        ".lock", "config.json", "log.tsv", "checkpoint.safetensors", "model", "results.json", "trace.safetensors",
        "evaluation.safetensors", "curves.png", "confusion.png", "reliability.png",
    }  # fmt: skip
    results = read_json(finished / "results.json")
    assert results["sequences"] == {"train": 18, "valid": 6, "test": 6}
    assert results["test"]["auroc"] > 0.9
    assert set(results["valid"]) == {"loss", "accuracy", "balanced_accuracy", "auroc", "auprc"}
    for name in ("curves", "confusion", "reliability"):
        assert (finished / f"{name}.png").read_bytes().startswith(PNG)
    network = SequenceNetwork.load(finished / "model")
    assert network.config.channels == ("bp", "hr")
    assert network.config.classes == ("high", "low")
    assert network.config.static == ("age",)


def test_a_run_that_stops_early_says_so(
    finished: Path, tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A rate at which the network cannot hold what it has found.
    bad = ["--target=state", "--epochs=40", "--patience=1", "--lr=2", "--clip-grad-norm=0"]
    assert cli.main(["train", *tables, *OPTIONS, *bad, "--out", str(tmp_path / "run")]) == 0
    assert "stopped early: no better loss for 1 epoch(s) (--patience)\n" in capsys.readouterr().out
    assert read_json(tmp_path / "run/results.json")["stopped_early"]
    assert not read_json(finished / "results.json")["stopped_early"]


def test_evaluate_and_predict_agree_with_the_network(
    finished: Path, tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(finished), *tables, "--out", str(tmp_path / "e")]) == 0
    assert capsys.readouterr().out.startswith("30 sequences: loss ")
    evaluation = json.loads((tmp_path / "e/evaluation.json").read_text())
    for name in ("p.csv", "p.parquet"):
        assert cli.main(["predict", str(finished), *tables, "--out", str(tmp_path / name)]) == 0
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "prediction", "probability_high", "probability_low"]
    assert [row["id"] for row in rows] == [f"s{number}" for number in range(30)]
    truth = [line.split(",")[1] for line in Path(tables[3]).read_text().splitlines()[1:]]
    assert sum(row["prediction"] == name for row, name in zip(rows, truth, strict=True)) / 30 == evaluation["accuracy"]
    for row in rows:
        high, low = float(row["probability_high"]), float(row["probability_low"])
        assert high + low == pytest.approx(1.0)
        assert row["prediction"] == ("high" if high > low else "low")
    columns = pq.read_table(tmp_path / "p.parquet").to_pydict()
    assert columns["probability_low"] == [float(row["probability_low"]) for row in rows]


def test_inspect_shows_gates_and_figures(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(finished), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "PhasedLSTM, 1 x 6 units" in out
    assert re.search(r"layer 0: periods .* \(unit us\)", out)
    assert "never open: 0 units" in out
    histogram = [int(line.split()[3]) for line in out.splitlines() if re.match(r" +[\d.e+]+ to ", line)]
    assert sum(histogram) == 6
    assert "test, 6 sequences: loss" in out
    for name in ("periods", "curves"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)


def test_regression(tables: list[str], tmp_path: Path) -> None:
    command = ["train", *tables, *OPTIONS, "--target=level", "--epochs=25", "--lr=0.02", "--cell=PhasedGRU"]
    assert cli.main([*command, "--out", str(tmp_path / "r")]) == 0
    assert read_json(tmp_path / "r/results.json")["valid"]["r2"] > 0.5
    assert (tmp_path / "r/predictions.png").exists()
    assert cli.main(["predict", str(tmp_path / "r"), *tables[:2], "--out", str(tmp_path / "p.csv")]) == 0
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == '"id","prediction"'


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_resumed_it_is_bitwise_the_same(
    tables: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    command = ["train", *tables, *OPTIONS, "--target=state", "--dropout=0.2"]
    assert cli.main([*command, "--out", str(tmp_path / "whole")]) == 0
    save = loop.save_checkpoint

    class Killed(Exception):
        pass

    def save_and_die(path: Path, step: int, *rest: Any) -> None:
        save(path, step, *rest)
        if step >= stop_after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            cli.main([*command, "--out", str(tmp_path / "killed")])
    assert cli.main(["evaluate", str(tmp_path / "killed"), *tables]) == 1
    assert cli.main(["train", "--out", str(tmp_path / "killed"), "--resume", "--quiet"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_early_stopping_is_resumed_too(tables: list[str], tmp_path: Path) -> None:
    """A finished run that is resumed has nothing to do and leaves the same."""
    command = ["train", *tables, *OPTIONS, "--target=state", "--lr=3", "--clip-grad-norm=0", "--patience=1"]
    assert cli.main([*command, "--epochs=40", "--out", str(tmp_path / "run")]) == 0
    rows = figures(tmp_path / "run")
    assert len(rows) < 120
    best = min(float(row["valid_loss"]) for row in rows if row["valid_loss"])
    assert read_json(tmp_path / "run/results.json")["valid"]["loss"] == pytest.approx(best)
    before = load_tensors(tmp_path / "run/model/model.safetensors")[0]
    assert cli.main(["train", "--out", str(tmp_path / "run"), "--resume", "--quiet"]) == 0
    assert figures(tmp_path / "run") == rows
    after = load_tensors(tmp_path / "run/model/model.safetensors")[0]
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_yaml_and_command_line_say_the_same(
    tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *tables, *OPTIONS, "--target=state", "--static=age"]
    assert cli.main([*command, "--print_config"]) == 0
    text = capsys.readouterr().out
    assert "hidden_size: 6  # units of a layer" in text
    (tmp_path / "c.yaml").write_text(text.replace("static: [age]", "static: age"))
    assert cli.main([*command, "--out", str(tmp_path / "a")]) == 0
    assert cli.main(["train", "--config", str(tmp_path / "c.yaml"), "--quiet", "--out", str(tmp_path / "b")]) == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")
    capsys.readouterr()
    assert cli.main(["train", "--config", str(tmp_path / "c.yaml"), "--seed=7", "--print_config"]) == 0
    assert "seed: 7" in capsys.readouterr().out


def test_a_tensorboard_log_on_request(tables: list[str], tmp_path: Path) -> None:
    command = [
        "train",
        *tables,
        *OPTIONS,
        "--target=state",
        "--epochs=1",
        "--tensorboard",
        "--out",
        str(tmp_path / "r"),
    ]
    assert cli.main(command) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "r/tensorboard")).Reload()
    logged = [(scalar.step, scalar.value) for scalar in events.Scalars("train/loss")]
    rows = [(int(row["step"]), float(row["train_loss"])) for row in read_log(tmp_path / "r")]
    assert [step for step, _ in logged] == [step for step, _ in rows]
    assert [value for _, value in logged] == pytest.approx([value for _, value in rows])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("depth: 3", "unknown entry 'depth'"),
        ("hidden_size: many", "hidden_size = 'many', which is of the wrong type"),
        ("epochs: 0", "--epochs should be from 1"),
        ("[1, 2]", "should hold entries"),
        ("a: [", "cannot be read"),
        ("monitor: auroc\ntask: regression\ntarget: level", "--monitor should be one of loss, mae"),
        ("target: ''", "--target is needed"),
        ("target: nothing", "no column 'nothing'"),
        ("target: state\ntask: regression", "is text"),
        ("target: level\nstatic: age,level", "--static names level, which is the target"),
        ("target: level\nstatic: id", "--static names id, which is the column of ids"),
        ("target: id", "--target is id, the column of ids"),
        ("target: level\ntask: classification", "not a class"),
    ],
)
def test_bad_options_are_refused(
    tables: list[str], tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(content)
    command = ["train", "--config", str(tmp_path / "c.yaml"), *tables, "--out", str(tmp_path / "r"), "--quiet"]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("labels.csv", "s3,", "s2,", "row 4: id s2 occurs a second time"),
        ("labels.csv", "s3,", "t3,", "labels for 1 series that are not in the table of measurements: t3"),
        ("data.csv", "s3,", "t3,", "labels for 1 series that are not in the table of measurements: s3"),
        ("data.csv", "hr,", "hr,inf # ", "row 1"),
        ("data.csv", "2024-05-01T10", "yesterday", "row 1"),
        ("labels.csv", "low", "high", "a single class, high"),
    ],
)
def test_bad_tables_are_named(
    tmp_path: Path, table: str, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = write_tables(tmp_path / "t")
    path = tmp_path / "t" / table
    path.write_text(path.read_text().replace(old, new))
    assert cli.main(["train", *options, "--target=state", "--out", str(tmp_path / "r"), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_wide_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Later tables may have more columns, and theirs in another order."""
    (tmp_path / "labels.csv").write_text("id,y\n" + "".join(f"{n},{n % 2}\n" for n in range(12)))
    rows = [f"{n},{t},{n % 2 + 0.1 * t},{'' if t else 3.5}\n" for n in range(12) for t in range(4)]
    (tmp_path / "data.csv").write_text("id,time,a,b\n" + "".join(rows))
    tables = ["--data", str(tmp_path / "data.csv"), "--labels", str(tmp_path / "labels.csv")]
    assert cli.main(["train", *tables, *OPTIONS, "--target=y", "--out", str(tmp_path / "r")]) == 0
    network = SequenceNetwork.load(tmp_path / "r/model")
    assert network.config.channels == ("a", "b")
    assert network.config.classes == ("0", "1")
    other = [f"{n},7,{'' if t else 3.5},{t},{n % 2 + 0.1 * t}\n" for n in range(12) for t in range(4)]
    (tmp_path / "other.csv").write_text("id,c,b,time,a\n" + "".join(other))
    for name in ("data", "other"):
        command = ["predict", str(tmp_path / "r"), "--data", str(tmp_path / f"{name}.csv")]
        assert cli.main([*command, "--out", str(tmp_path / f"{name}-p.csv")]) == 0
    assert (tmp_path / "data-p.csv").read_bytes() == (tmp_path / "other-p.csv").read_bytes()
    (tmp_path / "less.csv").write_text("id,time,a\n0,0,1\n")
    assert cli.main(["predict", str(tmp_path / "r"), "--data", str(tmp_path / "less.csv"), "--out", "p.csv"]) == 1
    assert "less.csv has no column 'b'" in capsys.readouterr().err


def test_a_truncated_table_is_named(
    finished: Path, tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyarrow.csv import read_csv

    whole = tmp_path / "whole.parquet"
    pq.write_table(read_csv(tables[1]), whole)
    (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:-100])
    cut = ["--data", str(tmp_path / "cut.parquet"), *tables[2:]]
    for command in (
        ["train", *cut, "--target=state", "--out", str(tmp_path / "r"), "--quiet"],
        ["evaluate", str(finished), *cut],
        ["predict", str(finished), *cut, "--out", str(tmp_path / "p.csv")],
    ):
        assert cli.main(command) == 1
        assert "cut.parquet cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()


def test_a_full_disk_leaves_nothing_half_written(
    finished: Path,
    tables: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = SequenceNetwork.load(finished / "model")
    network.save(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot be written: .*No space left"):
        network.save(tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    for name in ("p.csv", "p.parquet"):
        assert cli.main(["predict", str(finished), *tables, "--out", str(tmp_path / name)]) == 1
        assert f"{name} cannot be written: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.filterwarnings("always")
def test_series_without_labels_are_an_error_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = write_tables(tmp_path / "t")
    path = tmp_path / "t/labels.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("s3,")))
    command = ["train", *options, *OPTIONS, "--target=state", "--out", str(tmp_path / "r")]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert "no label for 1 of 30 series: s3" in error
    assert "--unlabelled skip" in error
    assert cli.main([*command, "--unlabelled=skip"]) == 0
    assert "warning: " in (said := capsys.readouterr().err)
    assert "s3; they are left out" in said
    assert sum(read_json(tmp_path / "r/results.json")["sequences"].values()) == 29


def test_prediction_keeps_to_what_was_trained(
    finished: Path, tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(tables[1]).read_text()
    out = tmp_path / "p.csv"
    out.write_text("before")
    for name, content, extra, message in (
        ("new.csv", data.replace(",bp,", ",weight,"), tables[2:], "'weight' is not in the vocabulary"),
        ("numbers.csv", "id,time,channel,value\ns0,1,hr,80\n", tables[2:], "row 1: time is '1', expected timestamp"),
        ("late.csv", data + "s99,2024-05-01T10:00:00Z,hr,80\n", tables[2:], "no label for 1 of"),
        ("same.csv", data, [], "the network reads age"),
    ):
        (tmp_path / name).write_text(content)
        command = ["predict", str(finished), "--data", str(tmp_path / name), *extra, "--out", str(out)]
        assert cli.main(command) == 1, name
        assert re.search(message, error := capsys.readouterr().err), error
        assert out.read_text() == "before"
    assert not list(tmp_path.glob(".*part"))
    assert cli.main(["predict", str(finished), *tables, "--out", str(tmp_path / "p.txt")]) == 1
    assert cli.main(["predict", str(finished), *tables, "--out", tables[1]]) == 1
    assert "is the table to read" in capsys.readouterr().err
    assert Path(tables[1]).read_text() == data
    numbers = pa.table({"id": ["s0"], "time": [1714557600], "channel": ["hr"], "value": [80.0]})
    pq.write_table(numbers, tmp_path / "numbers.parquet")
    assert (
        cli.main(
            ["predict", str(finished), "--data", str(tmp_path / "numbers.parquet"), *tables[2:], "--out", str(out)]
        )
        == 1
    )
    assert "holds int64, expected timestamps" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_options_and_data(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tables(tmp_path / "other", seed=1)
    resume = ["train", "--out", str(finished), "--resume", "--quiet"]
    for extra, message in (
        (["--lr=0.5"], "these differ: --lr 0.5 (the run has 0.02)"),
        (other, "not what the run in"),
        (["--overwrite"], "exclude each other"),
    ):
        assert cli.main([*resume, *extra]) == 1
        assert message in capsys.readouterr().err
    assert cli.main(["train", *other, "--target=state", "--out", str(finished), "--quiet"]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert cli.main(["train", "--resume"]) == 1
    assert "--resume needs --out" in capsys.readouterr().err


def test_every_option_is_in_the_yaml_and_has_a_default() -> None:
    assert TrainConfig.from_json(TrainConfig().to_json()) == TrainConfig()


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_a_part_has_its_share_of_every_class(fraction: float) -> None:
    classes = torch.tensor([0] * 40 + [1] * 8 + [2])
    left, drawn = split_rows(49, fraction, 3, classes)
    assert sorted(torch.cat([left, drawn]).tolist()) == list(range(49))
    counts = torch.bincount(classes[drawn], minlength=3)
    assert abs(int(counts[0]) - 40 * fraction) < 1
    assert abs(int(counts[1]) - 8 * fraction) < 1
    assert counts[2] == 0
    assert not torch.equal(split_rows(49, fraction, 4, classes)[1], drawn)
