"""The benchmarks run, keep what they measured, and draw it; what they measure is not looked at."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
PNG = b"\x89PNG\r\n\x1a\n"
SCRIPTS = {
    "layers": ["--threads", "1", "--repeats", "2"],
    "cells": ["--steps", "600"],
    "stream": ["--events", "2000"],
    "memory": ["--threads", "1"],
    "curves": ["--threads", "1", "--repeats", "2"],
    "larger_than_memory": ["--threads", "1"],
}
READ_PROC = ("memory", "larger_than_memory")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def measure(script: str, out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    result = run(script, "--quick", "--out", str(out), *SCRIPTS[script], *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads((out / f"{script}.json").read_text()), result.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    for script in SCRIPTS:
        if script not in READ_PROC or sys.platform == "linux":
            measure(script, out)
    return out


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("timing")


@pytest.mark.parametrize("script", ["layers", "curves"])
def test_layers_and_curves_have_positive_times(results: Path, script: str) -> None:
    content = json.loads((results / f"{script}.json").read_text())
    assert {"machine", "versions", "settings"} <= content.keys()
    for point in content["points"].values():
        assert {"nn.LSTM forward", "ours forward", "nn.LSTM train", "ours train"} <= point["ms"].keys()
        assert all(value > 0 for value in point["ms"].values())
        assert point["rounds"] == 2


def test_layers_count_open_events_alone(results: Path) -> None:
    for point in json.loads((results / "layers.json").read_text())["points"].values():
        sizes = point["sizes"]
        assert point["open_events"] <= 0.25 * sizes["batch"] * sizes["steps"] * sizes["hidden"]
        assert point["multiply_adds_per_event"] == 4 * (sizes["hidden"] + sizes["inputs"])
        work = 2 * point["open_events"] * point["multiply_adds_per_event"]
        assert point["gflops"] == pytest.approx(1e-6 * work / point["ms"]["ours forward"])
        assert point["share_of_peak"] == pytest.approx(point["gflops"] / point["peak_gflops"])
        assert 0 <= point["recurrent_share"] <= 1
        assert sizes["shared"] or point["recurrent_share"] == 1


def test_units_that_stay_open_save_multiplications(timing: Any) -> None:
    comparison = timing.Comparison(timing.Sizes(4, 6, 1, 4, shared=True), ratio_on=0.5)
    comparison.phased.gates[0].assign_(period=torch.tensor([4.0, 4.0, 100.0, 100.0]), shift=torch.tensor([0, 1, 50, 0]))
    comparison.times = torch.arange(6, dtype=torch.float64)
    # Open: 0 and 3; 0, 1 and 3; 1 and 3; 3; 0 and 3; 0, 1 and 3. Kept: none; 0 and 3; none, as three units changed; 3;
    # 3; 0 and 3.
    made = 2 * 4 + (1 * 4 + 2 * 2) + 2 * 4 + 1 * 2 + (1 * 4 + 1 * 1) + (1 * 4 + 2 * 2)
    assert comparison.recurrent_share() == pytest.approx(made / (13 * 4))


def test_curves_have_every_panel_and_break_even(results: Path) -> None:
    content = json.loads((results / "curves.json").read_text())
    panels = {point["panel"] for point in content["points"].values()}
    assert panels == {"openness", "steps", "hidden", "batch", "threads"}
    assert len(content["break_even"]) == 2
    marked = [point["ms"].keys() for point in content["points"].values() if "leak train" in point["ms"]]
    assert len(marked) == 2
    assert all({"reference forward", "reference train"} <= keys for keys in marked)


def test_machines_are_compared_row_by_row(tmp_path: Path) -> None:
    floor = {"forward": 10, "train": 4}
    ms = {"nn.LSTM forward": 30.0, "ours forward": 3.0, "nn.LSTM train": 50.0, "ours train": 20.0}
    slower = ms | {"ours forward": 4.0}
    for folder, points in (
        ("one", {"a": {"ms": ms, "floor": floor}}),
        ("other", {"a": {"ms": slower, "floor": floor}, "b": {"ms": ms, "floor": floor}}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "layers.json").write_text(json.dumps({"points": points}))
    result = run("compare", f"One={tmp_path}/one", f"Other={tmp_path}/other")
    assert result.returncode == 0, result.stderr
    header, _, *rows = result.stdout.splitlines()
    assert header == "| batch, steps, in, hidden | aim | One | Other |"
    assert rows == [
        "| a | 10 / 4 | **10.0** / 2.5 | 7.5 / 2.5 |",
        "| b | 10 / 4 |  | **10.0** / 2.5 |",
        "| aims reached | 4 | 1 | 1 |",
    ]


def test_a_comparison_without_a_title_is_refused(tmp_path: Path) -> None:
    result = run("compare", str(tmp_path))
    assert result.returncode == 1
    assert "expected NAME=FOLDER" in result.stderr


def test_cells_have_positive_times(results: Path) -> None:
    (point,) = json.loads((results / "cells.json").read_text())["points"].values()
    for cell in ("nn.LSTMCell", "PhasedLSTMCell"):
        assert 0 < point["us"][cell]["median"] <= point["us"][cell]["p99"]


def test_streams_have_positive_rates_and_latencies(results: Path) -> None:
    points = json.loads((results / "stream.json").read_text())["points"]
    chunks = {"nn.LSTMCell", "chunks of 1", "chunks of 16", "chunks of 256", "chunks of 4,096"}
    for streams in (1, 1000):
        rates = points[f"rates, {streams} streams"]["events_per_second"]
        assert rates.keys() == chunks
        assert min(rates.values()) > 0
    assert all(0 < found["p50"] <= found["p99"] for found in points["latency"]["us"].values())


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc, which only Linux has")
def test_memory_has_peaks(results: Path) -> None:
    points = json.loads((results / "memory.json").read_text())["points"].values()
    assert sum(point["model"] == "nn.LSTM" for point in points) == 2
    assert sum("limit_mib" in point for point in points) == 1
    for point in points:
        assert point["before_mib"] > 0
        assert point["peak_mib"] >= point["before_mib"]
        assert point["extra_mib"] == pytest.approx(point["peak_mib"] - point["before_mib"])


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc, which only Linux has")
def test_a_table_is_trained_on_to_its_end(results: Path) -> None:
    (point,) = json.loads((results / "larger_than_memory.json").read_text())["points"].values()
    assert point["events"] == round(0.005e9 / (16 + 4 * 38))
    assert point["table_bytes"] > 0.005e9
    assert point["peak_mib"] >= point["before_mib"] > 0
    assert point["steps"] >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="memory.py reads /proc, which only Linux has")
def test_pictures(results: Path) -> None:
    result = run("report", str(results))
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    for name in ("openness", "scaling", "memory"):
        assert (results / f"{name}.png").read_bytes().startswith(PNG)


def test_pictures_of_nothing_are_refused(tmp_path: Path) -> None:
    result = run("report", str(tmp_path))
    assert result.returncode == 1
    assert "run curves.py or memory.py with --out first" in result.stderr


def test_finished_points_are_kept(tmp_path: Path) -> None:
    first, _ = measure("layers", tmp_path, "--rows", "1")
    both, said = measure("layers", tmp_path, "--rows", "1,7")
    assert "kept: 2, 20, 1, 8\nmeasuring: 1, 20, 1, 8, 1 thread\n" in said
    assert both["points"].items() >= first["points"].items()
    assert len(both["points"]) == 2
    other, said = measure("layers", tmp_path, "--rows", "1", "--ratio-on", "0.1")
    assert "measured again" in said
    assert len(other["points"]) == 1
    _, said = measure("layers", tmp_path, "--rows", "1", "--ratio-on", "0.1", "--fresh")
    assert "kept" not in said


def test_kernels_that_are_wrong_are_not_timed(timing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = timing.Comparison(timing.Sizes(2, 20, 1, 8), ratio_on=0.3)
    comparison.check()
    forward = comparison.phased.forward

    def wrong(*arguments: Any, **named: Any) -> Any:
        output, (h_n, c_n) = forward(*arguments, **named)
        return output, (h_n, c_n + 1e-4 * (comparison.phased.backend == "auto"))

    monkeypatch.setattr(comparison.phased, "forward", wrong)
    with pytest.raises(SystemExit, match="c_n: native and reference backend differ by"):
        comparison.check()


def test_a_wrong_gradient_is_refused(timing: Any) -> None:
    wanted = torch.ones(3)
    timing.refuse_difference("gradient of weight_hh_l0", wanted * (1 + 1e-5), wanted)
    for wrong in (wanted * 1.001, wanted * float("nan")):
        with pytest.raises(SystemExit, match="not timed"):
            timing.refuse_difference("gradient of weight_hh_l0", wrong, wanted)


def test_break_even_lies_between_points(timing: Any) -> None:
    import curves

    def point(openness: float, ours: float) -> dict[str, Any]:
        return {"openness": openness, "ms": {"ours train": ours, "nn.LSTM train": 10.0}}

    assert curves.crossing([point(0.1, 1.0), point(1.0, 100.0)], "train") == pytest.approx(10**-0.5)
    assert curves.crossing([point(0.1, 1.0), point(1.0, 9.0)], "train") == "never"
    assert curves.crossing([point(0.1, 11.0), point(1.0, 9.0)], "train") == "always"
