"""Columns of tables that lie far from zero and vary little: their digits are kept."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from phased_lstm import cli
from phased_lstm.data import TableFormat, iter_sequences, read_labels, read_table
from phased_lstm.data._spread import Spread
from phased_lstm.training.runs import read_json

FAR = 2.0**31
SERIES, STEPS = 24, 5


def reading(n: int, step: int) -> float:
    return ((n * 7 + step * 3) % 11) / 8


def wide(path: Path, offset: float, series: range = range(SERIES)) -> str:
    rows = [f"s{n},{step},{reading(n, step) + offset!r}" for n in series for step in range(STEPS)]
    path.write_text("\n".join(["id,time,hr", *rows, ""]))
    return str(path)


def long(path: Path, offset: float, series: range = range(SERIES)) -> str:
    rows = [f"s{n},{step},hr,{reading(n, step) + offset!r}" for n in series for step in range(STEPS)]
    path.write_text("\n".join(["id,time,channel,value", *rows, ""]))
    return str(path)


def labels(path: Path, offset: float) -> str:
    rows = [
        f"s{n},{sum(reading(n, step) for step in range(STEPS))!r},{reading(n, 1) + offset!r}" for n in range(SERIES)
    ]
    path.write_text("\n".join(["id,y,age", *rows, ""]))
    return str(path)


@pytest.mark.parametrize("write", [wide, long])
def test_values_stay_float64_where_float32_would_lose_what_varies(write: object, tmp_path: Path) -> None:
    assert callable(write)
    near = read_table(write(tmp_path / "near.csv", 0.0)).events.values
    far = read_table(write(tmp_path / "far.csv", FAR)).events.values
    assert near.dtype == torch.float32
    assert far.dtype == torch.float64
    assert torch.equal(far - FAR, near.double())
    assert read_table(tmp_path / "far.csv", dtype=torch.float32).events.values.dtype == torch.float32
    chunks = iter_sequences(tmp_path / "far.csv", TableFormat.detect(tmp_path / "far.csv"))
    assert {part.events.values.dtype for part in chunks} == {torch.float32}


def test_static_features_stay_float64_where_float32_would_lose_what_varies(tmp_path: Path) -> None:
    near = read_labels(labels(tmp_path / "near.csv", 0.0), ["y"], static=["age"]).static
    far = read_labels(labels(tmp_path / "far.csv", FAR), ["y"], static=["age"]).static
    assert near is not None
    assert far is not None
    assert (near.dtype, far.dtype) == (torch.float32, torch.float64)
    assert torch.equal(far - FAR, near.double())


@pytest.mark.parametrize("write", [wide, long])
@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_commands_learn_the_same_from_columns_with_an_offset(write: object, kept: str, tmp_path: Path) -> None:
    assert callable(write)
    found = []
    for name, offset in (("near", 0.0), ("far", FAR)):
        data, entries = write(tmp_path / f"{name}.csv", offset), labels(tmp_path / f"{name}-y.csv", offset)
        options = ["--static", "age", "--epochs=2", "--hidden-size=3", "--ratio-on=0.5", "--threads=1", "--quiet"]
        options += ["--on-disk"] if kept == "disk" else []
        run = tmp_path / name
        tables = ["--data", data, "--labels", entries]
        assert cli.main(["train", *tables, "--target", "y", *options, "--out", str(run)]) == 0
        assert cli.main(["evaluate", str(run), *tables, "--out", str(run / "report")]) == 0
        # One series alone does not tell how far its values are from those of training.
        alone = write(tmp_path / "alone.csv", offset, range(3, 4))
        said = []
        for source in (data, alone):
            out = tmp_path / "predictions.csv"
            assert cli.main(["predict", str(run), "--data", source, "--labels", entries, "--out", str(out)]) == 0
            with out.open(newline="") as file:
                said.append({row["id"]: float(row["prediction"]) for row in csv.DictReader(file)})
        assert said[1]["s3"] == pytest.approx(said[0]["s3"], rel=1e-6)
        assert len(set(said[0].values())) > 5
        found.append((list(said[0].values()), read_json(run / "report" / "evaluation.json")))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)


def test_a_spread_of_parts_is_that_of_all() -> None:
    values = np.random.default_rng(0).normal(size=(50, 2)) + np.array([FAR, 3.0])
    values[::7] = np.nan
    whole, parts = Spread(3), [Spread(3), Spread(3)]
    for channel in range(2):
        whole.add(channel, values[:, channel])
        for part, rows in zip(parts, (values[:20], values[20:]), strict=True):
            part.add(channel, rows[:, channel])
    joined = Spread(3)
    joined.join(part.moments for part in parts)
    # The mean itself is rounded to 2**-22.
    np.testing.assert_allclose(joined.moments, whole.moments, rtol=1e-5)
    assert joined.lossy() == whole.lossy() == [0]
    # Each part is constant, and they differ.
    steps = Spread(1)
    steps.add(0, np.full(4, FAR))
    assert steps.lossy() == []
    steps.add(0, np.full(4, FAR + 1.0))
    assert steps.lossy() == [0]
