"""A trained network takes other tables' times in the unit of its own, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phased_lstm import cli

DAY = 86_400
COUNT, STEPS = 6, 4
BASE = [COUNT * number + step for number in range(COUNT) for step in range(STEPS)]
IDS = [f"s{number}" for number in range(COUNT) for _ in range(STEPS)]
# The same moments, or lengths of time, in several types.
TIMES: dict[str, Any] = {
    "whole": pa.array(BASE),
    "fraction": pa.array([float(time) for time in BASE]),
    "day": pa.array(BASE, pa.int32()).cast(pa.date32()),
    "second": pa.array([time * DAY for time in BASE]).cast(pa.timestamp("s")),
    "nanosecond": pa.array([time * DAY * 10**9 for time in BASE]).cast(pa.timestamp("ns", "UTC")),
    "text": pa.array([time * DAY for time in BASE]).cast(pa.timestamp("s")).cast(pa.string()),
    "length": pa.array([time * DAY for time in BASE]).cast(pa.duration("s")),
    "length in ms": pa.array([time * DAY * 1000 for time in BASE]).cast(pa.duration("ms")),
}
KINDS = [["whole", "fraction"], ["day", "nanosecond", "second", "text"], ["length", "length in ms"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("times")
    for name, column in TIMES.items():
        values = [float(time % 5) for time in BASE]
        pq.write_table(pa.table({"id": IDS, "time": column, "x": values}), folder / f"{name}.parquet")
    (folder / "labels.csv").write_text("id,y\n" + "".join(f"s{n},{n % 2}\n" for n in range(COUNT)))
    return folder


@pytest.mark.parametrize("trained", ["whole", "day", "nanosecond", "length"])
def test_prediction_takes_the_unit_of_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: str
) -> None:
    command = ["train", "--data", f"{folder / trained}.parquet", "--labels", str(folder / "labels.csv"), "--target=y"]
    options = ["--hidden-size=3", "--epochs=1", "--ratio-on=0.5", "--threads=1", "--quiet", "--validation-fraction=0"]
    assert cli.main([*command, *options, "--out", str(tmp_path / "run")]) == 0
    predictions = {}
    for name in TIMES:
        out = tmp_path / f"{name}.csv"
        status = cli.main(["predict", str(tmp_path / "run"), "--data", f"{folder / name}.parquet", "--out", str(out)])
        if any({trained, name} <= set(kind) for kind in KINDS):
            assert status == 0, name
            predictions[name] = out.read_text()
        else:
            assert status == 1, name
            assert f"{name}.parquet, row 1: " in capsys.readouterr().err
    assert len(predictions) > 1
    assert len(set(predictions.values())) == 1
