"""What belongs together in the tables of a command: target, classes, labels and series, channels and their values."""

from __future__ import annotations

import csv
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from phased_lstm import cli
from phased_lstm.data import read_labels
from phased_lstm.training.runs import read_json

# Warnings as a user of the commands sees them, on stderr.
pytestmark = pytest.mark.filterwarnings("always")

SMALL = ["--epochs=1", "--hidden-size=2", "--ratio-on=0.5", "--threads=1", "--quiet"]


def table(path: Path, head: str, rows: list[str]) -> str:
    path.write_text("\n".join([head, *rows, ""]), encoding="utf-8")
    return str(path)


def measured(path: Path, count: int = 12, extra: Any = None) -> str:
    """A wide table of `count` series, with one more column if there is an `extra` entry for a series."""
    rows = [
        f"s{n},{t},{(n * 7 + t * 3) % 11}" + ("" if extra is None else f",{extra(n)}")
        for n in range(count)
        for t in range(4)
    ]
    return table(path, "id,time,hr" + ("" if extra is None else ",more"), rows)


def labelled(path: Path, name: Any, count: int = 12, column: str = "y") -> str:
    return table(path, f"id,{column}", [f"s{n},{name(n)}" for n in range(count)])


def train(data: str, labels: str, out: Path, *options: str, target: str = "y") -> int:
    tables = ["--data", data, "--labels", labels, "--target", target]
    return cli.main(["train", *tables, *SMALL, *options, "--out", str(out)])


def channels(run: Path) -> list[str]:
    found: list[str] = read_json(run / "config.json")["tables"]["channels"]
    return found


def predictions(run: Path, data: str, out: Path, *options: str) -> list[dict[str, str]]:
    assert cli.main(["predict", str(run), "--data", data, *options, "--out", str(out)]) == 0
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("entry", ["{}", "word{}"])
def test_the_target_among_the_columns_is_no_channel(
    tmp_path: Path, entry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = measured(tmp_path / "m.csv", extra=lambda n: entry.format(n % 2))
    labels = labelled(tmp_path / "y.csv", lambda n: n % 2, column="more")
    assert train(data, labels, tmp_path / "run", target="more") == 0
    error = capsys.readouterr().err
    assert "warning: " in error
    assert "has more too, the target: it is left out" in error
    assert channels(tmp_path / "run") == ["hr"]
    without = measured(tmp_path / "without.csv")
    assert predictions(tmp_path / "run", data, tmp_path / "p.csv") == predictions(
        tmp_path / "run", without, tmp_path / "q.csv"
    )
    assert cli.main(["evaluate", str(tmp_path / "run"), "--data", data, "--labels", labels]) == 0
    assert train(data, labels, tmp_path / "other", "--features=hr,more", target="more") == 1
    assert "--features names more, which is the target" in capsys.readouterr().err


def test_the_target_among_the_channels_of_a_long_table_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"s{n},{t},{name},{value}" for n in range(12) for t in range(3) for name, value in (("hr", n), ("y", n % 2))
    ]
    data = table(tmp_path / "m.csv", "id,time,channel,value", rows)
    labels = labelled(tmp_path / "y.csv", lambda n: n % 2)
    assert train(data, labels, tmp_path / "run") == 0
    assert "has y too, the target" in capsys.readouterr().err
    assert channels(tmp_path / "run") == ["hr"]
    assert len(predictions(tmp_path / "run", data, tmp_path / "p.csv")) == 12
    # Of other channels it is still an error that training did not have them.
    data = table(tmp_path / "n.csv", "id,time,channel,value", [*rows, "s11,9,bp,1"])
    assert cli.main(["predict", str(tmp_path / "run"), "--data", data, "--out", str(tmp_path / "p.csv")]) == 1
    assert "'bp' is not in the vocabulary" in (error := capsys.readouterr().err)
    assert "--unseen ignore" in error
    predictions(tmp_path / "run", data, tmp_path / "p.csv", "--unseen=ignore")


def test_a_target_called_as_the_values_of_a_long_table(tmp_path: Path) -> None:
    rows = [f"s{n},{t},{name},{n}" for n in range(12) for t in range(3) for name in ("hr", "bp")]
    data = table(tmp_path / "m.csv", "id,time,channel,value", rows)
    labels = labelled(tmp_path / "y.csv", lambda n: n % 2, column="value")
    assert train(data, labels, tmp_path / "run", target="value") == 0
    assert channels(tmp_path / "run") == ["bp", "hr"]


def test_a_table_of_the_target_alone_has_nothing_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table(tmp_path / "m.csv", "id,time,y", [f"s{n},{t},{n % 2}" for n in range(12) for t in range(3)])
    assert train(data, labelled(tmp_path / "y.csv", lambda n: n % 2), tmp_path / "run") == 1
    assert "has no channel but y, the target" in capsys.readouterr().err


def test_channels_that_the_labels_have_too_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = measured(tmp_path / "m.csv", extra=lambda n: n)
    labels = table(tmp_path / "y.csv", "id,y,More,age", [f"s{n},{n % 2},{n},{n}" for n in range(12)])
    assert train(data, labels, tmp_path / "run") == 0
    assert "more of " in (error := capsys.readouterr().err)
    assert "--features" in error
    assert train(data, labels, tmp_path / "named", "--features=hr") == 0
    assert capsys.readouterr().err == ""


KINDS: dict[str, Any] = {
    "integers": pa.array([n % 2 for n in range(12)]),
    "floats": pa.array([float(n % 2) for n in range(12)]),
    "float32": pa.array([n % 2 for n in range(12)], pa.float32()),
    "decimals": pa.array([Decimal(n % 2) for n in range(12)], pa.decimal128(5, 2)),
    "text": pa.array([str(n % 2) for n in range(12)]),
    "text of floats": pa.array([f"{n % 2}.0" for n in range(12)]),
    "bool": pa.array([n % 2 == 1 for n in range(12)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_are_classes_however_they_are_written(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = measured(tmp_path / "m.csv")
    for name, column in (("y", KINDS[kind]), *((f"to-{other}", part) for other, part in KINDS.items())):
        pq.write_table(pa.table({"id": [f"s{n}" for n in range(12)], "y": column}), tmp_path / f"{name}.parquet")
    assert train(data, str(tmp_path / "y.parquet"), tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "classification of y, 2 classes and their sequences: 0 (6), 1 (6)"
    figures = []
    for other in KINDS:
        labels = str(tmp_path / f"to-{other}.parquet")
        assert cli.main(["evaluate", str(tmp_path / "run"), "--data", data, "--labels", labels]) == 0
        figures.append(capsys.readouterr().out)
    words = labelled(tmp_path / "words.csv", lambda n: ("False", "True")[n % 2])
    assert cli.main(["evaluate", str(tmp_path / "run"), "--data", data, "--labels", words]) == 0
    assert {capsys.readouterr().out, *figures} == {figures[0]}
    assert set(predictions(tmp_path / "run", data, tmp_path / "p.csv")[0]) == {
        "id", "prediction", "probability_0", "probability_1",
    }  # fmt: skip


def test_names_that_differ_in_training_are_not_taken_for_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = measured(tmp_path / "m.csv")
    labels = labelled(tmp_path / "y.csv", lambda n: ("1", "1.0", "x")[n % 3])
    assert train(data, labels, tmp_path / "run") == 0
    assert "1 (4), 1.0 (4), x (4)" in capsys.readouterr().out
    assert cli.main(["evaluate", str(tmp_path / "run"), "--data", data, "--labels", labels]) == 0
    twos = labelled(tmp_path / "two.csv", lambda n: 2)
    assert cli.main(["evaluate", str(tmp_path / "run"), "--data", data, "--labels", twos]) == 1
    assert "y of s0 is 2, not among the classes 1, 1.0, x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "task"),
    [
        (lambda n: f"{n}.0", [], "classification"),
        (lambda n: f"{n % 2}.5", [], "regression"),
        (lambda n: f"{n % 2}.0", ["--task=regression"], "regression"),
        (lambda n: f"{1e16 * (n % 2):.0f}.0", [], "regression"),
    ],
)
def test_the_kind_of_target(tmp_path: Path, name: Any, options: list[str], task: str) -> None:
    assert train(measured(tmp_path / "m.csv"), labelled(tmp_path / "y.csv", name), tmp_path / "run", *options) == 0
    assert read_json(tmp_path / "run/config.json")["tables"]["task"] == task


def test_many_whole_floats_are_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, labels = measured(tmp_path / "m.csv", 25), labelled(tmp_path / "y.csv", lambda n: f"{n}.0", 25)
    assert train(data, labels, tmp_path / "run") == 0
    assert capsys.readouterr().out.startswith("regression of y, 25 numbers from 0 to 24\n")
    huge = labelled(tmp_path / "huge.csv", lambda n: f"{n}e300", 25)
    assert train(data, huge, tmp_path / "other", "--task=classification") == 1
    assert "y of s1 is 1e+300: not a class" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "monitor", "message"),
    [
        (lambda n: int(n == 0), "auroc", "--monitor auroc is measured where every class is there, and the validation"),
        (lambda n: int(n == 0), "balanced_accuracy", "measured where there are two classes or more"),
        (lambda n: 0.5 if n < 11 else 1.25, "r2", "--monitor r2 is measured where the targets are not all the same"),
    ],
)
def test_a_figure_that_the_validation_part_cannot_give_is_refused_before_training(
    tmp_path: Path, name: Any, monitor: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, labels = measured(tmp_path / "m.csv"), labelled(tmp_path / "y.csv", name)
    assert train(data, labels, tmp_path / "run", f"--monitor={monitor}") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert {"--seed", "--validation-fraction"} <= set(error.split())
    assert not (tmp_path / "run").exists()


def test_columns_that_are_not_there_are_named_with_their_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = table(tmp_path / "m.csv", "machine,when,hr", [f"s{n},{t},{n}" for n in range(12) for t in range(3)])
    labels = table(tmp_path / "y.csv", "machine,y", [f"s{n},{n % 2}" for n in range(12)])
    assert train(data, labels, tmp_path / "run") == 1
    assert "m.csv has no column 'id' (--id), 'time' (--time); its columns are machine, when, hr" in (
        capsys.readouterr().err
    )
    named = ["--id=machine", "--time=when"]
    assert train(data, labels, tmp_path / "run", *named, "--static=age", target="state") == 1
    assert "y.csv has no column 'state' (--target), 'age' (--static); its" in capsys.readouterr().err
    assert train(data, labels, tmp_path / "run", *named, "--features=hr,bp") == 1
    assert "has no column 'bp' (--features)" in capsys.readouterr().err
    assert train(data, labels, tmp_path / "run", *named, "--channel=what") == 1
    assert "has no column 'what' (--channel), 'value' (--value)" in capsys.readouterr().err
    assert train(data, labels, tmp_path / "run", *named) == 0
    other = table(tmp_path / "o.csv", "machine,when,bp", ["s1,1,1"])
    assert cli.main(["predict", str(tmp_path / "run"), "--data", other, "--out", str(tmp_path / "p.csv")]) == 1
    assert "has no column 'hr' (a channel of training)" in capsys.readouterr().err


def test_figures_without_meaning_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, labels = measured(tmp_path / "m.csv"), labelled(tmp_path / "y.csv", lambda n: int(n == 0))
    assert train(data, labels, tmp_path / "run") == 0
    assert set(read_json(tmp_path / "run/results.json")["valid"]) == {"loss", "accuracy"}
    assert "(too little to measure balanced_accuracy, auroc, auprc)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task=regression", "--class-weight=balanced"], "--class-weight balanced is for classes"),
        (["--cell=PhasedGRU", "--peephole"], "--peephole is for --cell PhasedLSTM"),
        (["--cell=PhasedGRU", "--forget-bias=2"], "--forget-bias is for --cell PhasedLSTM"),
        (["--validation-fraction=0", "--monitor=accuracy"], "--validation-fraction is 0"),
        (["--features=hr,hr"], "--features names hr twice"),
        (["--channel=hr", "--features=hr"], "--channel is of a long table, --features of a wide one"),
        (["--lr=0"], "--lr should be above 0"),
    ],
)
def test_options_without_a_meaning_are_refused(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, labels = measured(tmp_path / "m.csv"), labelled(tmp_path / "y.csv", lambda n: n % 2)
    assert train(data, labels, tmp_path / "run", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_labels_of_more_series_than_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, labels = measured(tmp_path / "m.csv"), labelled(tmp_path / "y.csv", lambda n: n % 2, 15)
    assert train(data, labels, tmp_path / "run") == 1
    assert "labels for 3 series that are not in the table of measurements: s12, s13, s14" in (
        error := capsys.readouterr().err
    )
    assert "--unmeasured skip" in error
    assert train(data, labels, tmp_path / "run", "--unmeasured=skip") == 0
    assert "s12, s13, s14; they are not used" in capsys.readouterr().err
    assert train(data, labelled(tmp_path / "fit.csv", lambda n: n % 2), tmp_path / "strict") == 0
    evaluate = ["evaluate", str(tmp_path / "strict"), "--data", data, "--labels", labels]
    assert cli.main(evaluate) == 1
    assert "--unmeasured skip" in capsys.readouterr().err
    assert cli.main([*evaluate, "--unmeasured=skip"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("12 sequences: ")
    assert "they are not used" in said.err


def test_series_without_labels_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = measured(tmp_path / "m.csv")
    rows = [f"s{n},{n % 2},{n}" for n in range(12)]
    labels = table(tmp_path / "y.csv", "id,y,age", rows)
    assert train(data, labels, tmp_path / "run", "--static=age") == 0
    part = table(tmp_path / "part.csv", "id,y,age", rows[:9])
    evaluate = ["evaluate", str(tmp_path / "run"), "--data", data, "--labels", part]
    predict = ["predict", str(tmp_path / "run"), "--data", data, "--labels", part, "--out", str(tmp_path / "p.csv")]
    for command in (evaluate, predict):
        capsys.readouterr()
        assert cli.main(command) == 1
        assert "no label for 3 of 12 series: s9, s10, s11" in (error := capsys.readouterr().err)
        assert "--unlabelled skip" in error
        assert cli.main([*command, "--unlabelled=skip"]) == 0
        assert "they are left out" in capsys.readouterr().err
    with (tmp_path / "p.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [f"s{n}" for n in range(9)]


@pytest.mark.parametrize("gap", ["", "NaN"])
def test_rows_without_a_target_are_left_out_where_allowed(
    tmp_path: Path, gap: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = measured(tmp_path / "m.csv")
    labels = labelled(tmp_path / "y.csv", lambda n: gap if n == 3 else n % 2)
    assert train(data, labels, tmp_path / "run") == 1
    assert "row 4: there is no y" in (error := capsys.readouterr().err)
    assert "--unlabelled skip" in error
    assert train(data, labels, tmp_path / "run", "--unlabelled=skip") == 0
    assert "series: s3; they are left out" in capsys.readouterr().err
    assert sum(read_json(tmp_path / "run/results.json")["sequences"].values()) == 11


def test_gaps_of_labels_by_column(tmp_path: Path) -> None:
    """A word is a gap among numbers alone, and the rows of an error are those of the file."""
    columns = {
        "id": ["a", "b", "c", "d"], "number": [1.0, None, float("nan"), 4.0], "age": [1.0, 2.0, 3.0, 4.0],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "n.parquet")
    found = read_labels(tmp_path / "n.parquet", ["number"], static=["age"], gaps="skip")
    assert found.ids == ("a", "d")
    assert isinstance(found.targets["number"], torch.Tensor)
    assert found.targets["number"].tolist() == [1.0, 4.0]
    assert found.static is not None
    assert found.static[:, 0].tolist() == [1.0, 4.0]
    pq.write_table(pa.table({"id": ["a", "b", "c"], "name": ["NA", "", "x"]}), tmp_path / "w.parquet")
    assert read_labels(tmp_path / "w.parquet", ["name"], gaps="skip").targets["name"] == ("NA", "x")
    infinite = pa.table({"id": ["a", "b"], "number": [None, float("inf")]})
    pq.write_table(infinite, tmp_path / "i.parquet")
    with pytest.raises(ValueError, match=r"row 2: number is inf"):
        read_labels(tmp_path / "i.parquet", ["number"], gaps="skip")
    pq.write_table(pa.table({"id": ["a"], "number": pa.array([None], pa.float64())}), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match="no row has number"):
        read_labels(tmp_path / "e.parquet", ["number"], gaps="skip")


def test_ids_that_never_meet_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = measured(tmp_path / "m.csv")
    labels = table(tmp_path / "y.csv", "id,y", [f"{n},{n % 2}" for n in range(12)])
    assert train(data, labels, tmp_path / "run", "--unmeasured=skip", "--unlabelled=skip") == 1
    error = capsys.readouterr().err
    assert "no label for any of the series" in error
    assert "'0', '1', '2'" in error
    assert "'s0', 's1', 's2'" in error
    assert "--id" in error


def test_commands_take_what_errors_advise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"s{n},{t},hr,{n + t}" for n in range(12) for t in range(3)]
    data = table(tmp_path / "m.csv", "id,time,channel,value", rows)
    labels = labelled(tmp_path / "y.csv", lambda n: n % 2)
    assert train(data, labels, tmp_path / "run") == 0
    twice = table(tmp_path / "twice.csv", "id,time,channel,value", [*rows, "s11,2,hr,5"])
    blank = table(tmp_path / "blank.csv", "id,time,channel,value", [*rows[:-3], "s11,1,hr,"])
    for other, option in ((twice, "--repeated last"), (blank, "--empty skip")):
        for command in (
            ["evaluate", str(tmp_path / "run"), "--data", other, "--labels", labels],
            ["predict", str(tmp_path / "run"), "--data", other, "--out", str(tmp_path / "p.csv")],
        ):
            capsys.readouterr()
            assert cli.main(command) == 1
            assert option in capsys.readouterr().err
            assert cli.main([*command, *option.split()]) == 0


def test_a_channel_without_any_value_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, labels = measured(tmp_path / "m.csv", extra=lambda n: n), labelled(tmp_path / "y.csv", lambda n: n % 2)
    assert train(data, labels, tmp_path / "run") == 0
    assert capsys.readouterr().err == ""
    lost = measured(tmp_path / "lost.csv", extra=lambda n: "")
    for command in (
        ["evaluate", str(tmp_path / "run"), "--data", lost, "--labels", labels],
        ["predict", str(tmp_path / "run"), "--data", lost, "--out", str(tmp_path / "p.csv")],
    ):
        assert cli.main(command) == 0
        error = capsys.readouterr().err
        assert "no value at all of more: the network was trained with" in error
        assert error.count("\n") == 1
    assert train(lost, labels, tmp_path / "never") == 0
    assert "no value at all of more: they tell nothing" in capsys.readouterr().err
    predictions(tmp_path / "never", lost, tmp_path / "p.csv")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("id", ["prediction", "probability_a", "id"])
def test_columns_of_predictions_keep_apart(tmp_path: Path, id: str) -> None:
    rows = [f"s{n},{t},{n}" for n in range(12) for t in range(3)]
    data = table(tmp_path / "m.csv", f"{id},time,hr", rows)
    names = ('"a\nb"', '"a, b"', "a")
    labels = table(tmp_path / "y.csv", f"{id},y", [f"s{n},{names[n % 3]}" for n in range(12)])
    assert train(data, labels, tmp_path / "run", "--id", id) == 0
    found = predictions(tmp_path / "run", data, tmp_path / "p.csv")
    assert [row["id"] for row in found] == [f"s{n}" for n in range(12)]
    assert set(found[0]) == {"id", "prediction", "probability_a\nb", "probability_a, b", "probability_a"}
    assert {row["prediction"] for row in found} <= {"a\nb", "a, b", "a"}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (lambda path: (table(path / "m.csv", "id,time,hr", [f"s{n},5,{n + t}" for n in range(12) for t in range(4)]),
                       labelled(path / "y.csv", lambda n: n % 2)), r"time is the same .*--time.*--id"),
        (lambda path: (measured(path / "m.csv"), labelled(path / "y.csv", lambda n: f"{n + 0.5}e300")),
         "targets are too large"),
    ],
)  # fmt: skip
def test_what_cannot_be_scaled_is_named(
    tables: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*tables(tmp_path), tmp_path / "run") == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("head", "hint"), [("id;time;hr", "separated by ';'"), ("# a comment", "remove comments")])
def test_commands_say_what_is_wrong_with_a_header(
    head: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = table(tmp_path / "m.csv", head, ["s0;1;2"])
    assert train(data, labelled(tmp_path / "y.csv", lambda n: n % 2), tmp_path / "run") == 1
    assert hint in capsys.readouterr().err
