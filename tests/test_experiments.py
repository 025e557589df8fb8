"""The experiments' framework: runs that survive a kill, summaries that say what is short of the protocol."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from phased_lstm import cli
from phased_lstm.errors import RunError
from phased_lstm.experiments import registry, report, runner
from phased_lstm.experiments.base import Metric, Schedule, Variant
from phased_lstm.experiments.mnist_rows import MnistExperiment, MnistRowTask
from phased_lstm.experiments.models import CELLS, SequenceModel
from phased_lstm.plotting import common_points
from phased_lstm.training.runs import LOG, read_log

TINY: dict[str, Any] = {"data": "digits", "steps": 4, "batch_size": 2, "hidden_size": 3, "test_size": 2}
PNG = b"\x89PNG\r\n\x1a\n"


def experiment(**changes: Any) -> MnistExperiment:
    rows = {"Phased": TINY | changes, "Basic": TINY | {"model": "BasicLSTMCell"}}
    made = MnistExperiment(
        "tiny", "a tiny one", rows, quick_steps=4, schedule=Schedule(seeds=(0, 1), test_every=2, epoch_steps=2),
        metric=Metric(), published={"Phased": "50 %"},
    )  # fmt: skip
    return made


@pytest.fixture(autouse=True)
def _small_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from phased_lstm.experiments import mnist_rows

    def shortened(name: str) -> Any:
        digits = whole(name)
        return digits._replace(test_images=digits.test_images[:4], test_labels=digits.test_labels[:4])

    whole = mnist_rows._digits
    monkeypatch.setattr(mnist_rows, "_digits", shortened)


def figures(folder: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_log(folder)]


def test_summary_holds_every_seed_with_mean_and_deviation(tmp_path: Path) -> None:
    tiny = experiment()
    assert runner.run(tiny, tmp_path / "runs", progress=False)
    summary = runner.summarise(tiny, tmp_path / "runs", tmp_path / "results")
    assert json.loads((tmp_path / "results" / "summary.json").read_text()) == summary
    phased, basic = summary["rows"]
    assert [run["seed"] for run in phased["runs"]] == [0, 1]
    accuracies = [run["test_accuracy"] for run in phased["runs"]]
    assert phased["mean"]["test_accuracy"] == statistics.fmean(accuracies)
    assert phased["sd"]["test_accuracy"] == statistics.stdev(accuracies)
    assert phased["mean"]["updates_per_unit"] == pytest.approx(phased["mean"]["openness"] * 784)
    assert "openness" not in basic["mean"]
    log = read_log(tmp_path / "runs" / "Phased" / "seed1")
    curve = phased["curves"][1]
    assert curve["step"] == [2, 4]
    assert curve["train_loss"][1] == statistics.fmean(float(row["train_loss"]) for row in log[2:])
    assert [path.read_bytes()[:8] for path in tiny.figures(summary, tmp_path)] == [PNG, PNG]


def test_a_summary_keeps_runs_that_are_not_here(tmp_path: Path) -> None:
    tiny = experiment()
    assert runner.run(tiny, tmp_path / "there", seeds=[0], progress=False)
    runner.time_steps(tiny, tmp_path / "there", quick=False, variants=None, rounds=1)
    before = runner.summarise(tiny, tmp_path / "there", tmp_path / "results")
    assert runner.run(tiny, tmp_path / "here", seeds=[1], variants=["Phased"], progress=False)
    phased, basic = runner.summarise(tiny, tmp_path / "here", tmp_path / "results", keep=True)["rows"]
    assert basic == before["rows"][1]
    assert [run["seed"] for run in phased["runs"]] == [0, 1]
    assert phased["runs"][0] == before["rows"][0]["runs"][0]
    assert phased["curves"][0] == before["rows"][0]["curves"][0]
    assert phased["mean"]["test_loss"] == statistics.fmean(run["test_loss"] for run in phased["runs"])
    assert runner.run(tiny, tmp_path / "short", seeds=[0], steps=2, variants=["Phased"], progress=False)
    short = runner.summarise(tiny, tmp_path / "short", tmp_path / "results", keep=True)
    assert [run["steps"] for run in short["rows"][0]["runs"]] == [4, 4]
    assert short["timing"] == before["timing"]
    alone = runner.summarise(tiny, tmp_path / "short", tmp_path / "results")
    assert [[run["steps"] for run in row["runs"]] for row in alone["rows"]] == [[2]]
    longer = runner.summarise(tiny, tmp_path / "there", tmp_path / "results", keep=True)
    assert [[run["steps"] for run in row["runs"]] for row in longer["rows"]] == [[4], [4]]
    assert longer["rows"][0]["curves"] == [before["rows"][0]["curves"][0]]


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"summary\.json does not exist: leave --keep out"):
        runner.kept_summary(experiment(), tmp_path)
    assert runner.run(experiment(), tmp_path, seeds=[0], progress=False)
    good = runner.summarise(experiment(), tmp_path, tmp_path)
    with pytest.raises(RunError, match="runs of Phased with other settings than it has now: leave --keep out"):
        runner.summarise(experiment(lr=0.5), tmp_path, tmp_path, keep=True)
    with pytest.raises(RunError, match="runs of Phased with other settings"):
        runner.kept_summary(experiment(), tmp_path, quick=True)
    row = good["rows"][0]
    for change, message in (
        ({"experiment": "adding"}, "is of adding, not of tiny"),
        ({"rows": [row | {"variant": "Gone"}]}, "runs of Gone, which is no variant of tiny"),
        ({"rows": 3}, "is damaged, or no summary"),
        ({"rows": [{}]}, "is damaged, or no summary"),
        ({"rows": [row | {"curves": []}]}, "is damaged, or no summary"),
        ({"rows": [row | {"runs": [{"seed": 0, "steps": 4}]}]}, "is damaged, or no summary"),
    ):
        (tmp_path / "summary.json").write_text(json.dumps(good | change))
        with pytest.raises(RunError, match=message):
            runner.summarise(experiment(), tmp_path, tmp_path, keep=True)


def test_timing_is_kept_for_rows_that_were_not_timed_anew(tmp_path: Path) -> None:
    tiny = experiment()
    assert runner.run(tiny, tmp_path, seeds=[0], steps=1, progress=False)
    runner.time_steps(tiny, tmp_path, quick=False, variants=None, rounds=1)
    before = runner.summarise(tiny, tmp_path, tmp_path)["timing"]["rows"]
    runner.time_steps(tiny, tmp_path, quick=False, variants=["Basic"], rounds=1)
    after = runner.summarise(tiny, tmp_path, tmp_path, keep=True)["timing"]["rows"]
    assert after["Phased"] == before["Phased"]
    assert after["Basic"] != before["Basic"]
    runner.time_steps(tiny, tmp_path, quick=False, variants=["Basic"], rounds=2)
    with pytest.raises(RunError, match="lacks Phased: time these too"):
        runner.summarise(tiny, tmp_path, tmp_path, keep=True)


def test_seconds_are_those_of_one_device(tmp_path: Path) -> None:
    tiny = experiment()
    assert runner.run(tiny, tmp_path, variants=["Phased"], progress=False)
    file = tmp_path / "Phased" / "seed1" / "results.json"
    results = json.loads(file.read_text())
    assert results["device"] == runner.processor()
    file.write_text(json.dumps(results | {"device": "a GPU", "seconds_per_step": 1e6}))
    (row,) = runner.summarise(tiny, tmp_path, tmp_path)["rows"]
    assert row["mean"]["seconds_per_step"] == row["runs"][0]["seconds_per_step"]
    assert row["mean"]["test_loss"] == statistics.fmean(run["test_loss"] for run in row["runs"])


def test_a_run_names_all_devices_that_trained_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = experiment()
    file = tmp_path / "Phased" / "seed0" / "results.json"
    for steps, name, wanted in ((1, "one", "one"), (2, "another", "another and one"), (2, "third", "another and one")):
        monkeypatch.setattr(runner, "_name", lambda device, name=name: name)
        if name == "third":
            file.unlink()
        assert runner.run(tiny, tmp_path, seeds=[0], steps=steps, variants=["Phased"], progress=False)
        assert json.loads(file.read_text())["device"] == wanted


def test_curves_of_other_steps_are_joined_where_they_meet() -> None:
    long, short = {"step": [2.0, 4.0, 6.0], "x": [0.2, 0.4, 0.6]}, {"step": [4.0, 5.0], "x": [1.4, 1.5]}
    assert common_points([long, short], "x") == ([4.0], [[0.4, 1.4]])


def test_arithmetic_is_afterwards_what_it_was(tmp_path: Path) -> None:
    class Probe(MnistExperiment):
        def task(self, variant: Variant, seed: int) -> Any:
            modes.append((sys.float_info.min / 2.0 == 0.0, torch.backends.cudnn.allow_tf32))
            return super().task(variant, seed)

    modes: list[tuple[bool, bool]] = []
    before = torch.backends.cudnn.allow_tf32
    probe = Probe(
        "tiny", "a tiny one", {"Phased": TINY}, quick_steps=4, schedule=Schedule(seeds=(0,)), metric=Metric(),
        published={},
    )  # fmt: skip
    assert runner.run(probe, tmp_path, steps=1, progress=False)
    assert modes == [(torch.set_flush_denormal(False), False)]
    with pytest.raises(RunError):
        runner.run(probe, tmp_path / "again", variants=["Nobody"])
    assert sys.float_info.min / 2.0 > 0.0
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("nowhere", "meta", "", "mps", "cuda:"):
        with pytest.raises(RunError, match=f"--device should be cpu, cuda or cuda:N, got '{name}'"):
            runner.run(experiment(), tmp_path, device=name)
    with pytest.raises(RunError, match="--device cuda:1000 is not there: torch sees"):
        runner.time_steps(experiment(), tmp_path, quick=False, variants=None, rounds=1, device="cuda:1000")
    made = registry.find("ablation-frequency")
    with pytest.raises(RunError, match="leave --device cuda out"):
        made.task(made.variants(True)[0], 0).to(torch.device("cuda"))


def test_tasks_are_moved_to_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    monkeypatch.setattr(MnistRowTask, "to", lambda task, device: moved.append(device))
    assert runner.run(experiment(), tmp_path, seeds=[0], steps=1, progress=False)
    runner.time_steps(experiment(), tmp_path, quick=False, variants=["Basic"], rounds=1)
    assert moved == [torch.device("cpu")] * 3


@pytest.mark.parametrize("name", [name for name in registry.MODULES if "mnist" not in name])
def test_batches_follow_the_model(name: str) -> None:
    class Elsewhere(Exception):
        pass

    def forward(values: torch.Tensor, times: torch.Tensor, lengths: torch.Tensor | None) -> Any:
        devices = {tensor.device.type for tensor in (values, times, lengths) if tensor is not None}
        assert devices == {"meta"}
        raise Elsewhere

    made = registry.find(name)
    task: Any = made.task(made.variants(True)[0], 0)
    # A device that every machine has; that its tensors hold nothing shows where they are.
    task.device = torch.device("meta")
    task.model.forward = forward
    with pytest.raises(Elsewhere):
        task.train_step(0)
    with pytest.raises(Elsewhere):
        task.test()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu_sees_the_batches_of_the_cpu(tmp_path: Path) -> None:
    tiny = experiment()
    losses = []
    for device in ("cpu", "cuda"):
        assert runner.run(tiny, tmp_path / device, seeds=[0], device=device, progress=False)
        losses.append([float(row["train_loss"]) for row in read_log(tmp_path / device / "Basic" / "seed0")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_table_names_what_falls_short_of_the_protocol(tmp_path: Path) -> None:
    tiny = experiment()
    assert runner.run(tiny, tmp_path, variants=["Phased"], seeds=[1], steps=2, progress=False)
    lines = runner.table(runner.summarise(tiny, tmp_path, tmp_path)).splitlines()
    assert len(lines) == 3
    assert "| 1 of 2 | 2 of 4 |" in lines[2]
    assert "| 50 % |" in lines[2]


def test_small_variants_are_not_set_beside_published_figures(tmp_path: Path) -> None:
    tiny = experiment()
    assert runner.run(tiny, tmp_path, quick=True, variants=["Phased"], progress=False)
    summary = runner.summarise(tiny, tmp_path, tmp_path, quick=True)
    assert [row["published"] for row in summary["rows"]] == [""]


def test_runs_go_on_where_they_were(tmp_path: Path) -> None:
    tiny = experiment()
    assert runner.run(tiny, tmp_path / "parts", seeds=[0], steps=2, progress=False)
    untouched = (tmp_path / "parts" / "Basic" / "seed0" / LOG).stat()
    assert runner.run(tiny, tmp_path / "parts", seeds=[0], variants=["Phased"], progress=False)
    assert runner.run(tiny, tmp_path / "whole", seeds=[0], variants=["Phased"], progress=False)
    assert figures(tmp_path / "parts" / "Phased" / "seed0") == figures(tmp_path / "whole" / "Phased" / "seed0")
    results = [json.loads((tmp_path / part / "Phased/seed0/results.json").read_text()) for part in ("parts", "whole")]
    assert results[0]["test_loss"] == results[1]["test_loss"]
    assert (tmp_path / "parts" / "Basic" / "seed0" / LOG).stat() == untouched


def test_a_killed_run_ends_with_the_same_numbers(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "phased_lstm.cli", "experiment", "mnist-historic", "--quick", "--steps", "30",
        "--variants", "PhasedLSTMCell", "--threads", "1",
        "--quiet", "--out", str(tmp_path / "killed"),
    ]  # fmt: skip
    log = tmp_path / "killed" / "PhasedLSTMCell" / "seed0" / LOG
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 13):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (log.parent / "results.json").exists()
    before = len(read_log(log.parent))
    assert subprocess.run(command, check=True, stdout=subprocess.DEVNULL).returncode == 0
    assert subprocess.run([*command[:-1], str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    assert 13 <= before < len(figures(log.parent))
    assert figures(log.parent) == figures(tmp_path / "whole" / "PhasedLSTMCell" / "seed0")


def test_other_settings_do_not_mix_with_a_run(tmp_path: Path) -> None:
    assert runner.run(experiment(), tmp_path, seeds=[0], variants=["Phased"], steps=1, progress=False)
    with pytest.raises(RunError, match="other settings"):
        runner.run(experiment(lr=0.5), tmp_path, seeds=[0], variants=["Phased"], progress=False)


def test_a_falling_learning_rate_fixes_the_length(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="leave --steps out"):
        runner.run(experiment(lr_cosine=True), tmp_path, seeds=[0], steps=2, progress=False)


def test_unknown_names_tell_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no variant Nobody; it has Phased, Basic"):
        runner.run(experiment(), tmp_path, variants=["Nobody"])
    with pytest.raises(RunError, match="mnist-historic"):
        registry.find("nothing")
    with pytest.raises(RunError, match="no finished run"):
        runner.summarise(experiment(), tmp_path, tmp_path)


def test_steps_are_timed_in_turns(tmp_path: Path) -> None:
    tiny = experiment()
    runner.time_steps(tiny, tmp_path, quick=False, variants=None, rounds=2)
    timing = json.loads((tmp_path / "timing.json").read_text())
    for row in timing["rows"].values():
        assert row["seconds_per_epoch"] == 2 * row["seconds_per_step"] > 0
    assert runner.run(tiny, tmp_path, seeds=[0], steps=1, progress=False)
    assert runner.summarise(tiny, tmp_path, tmp_path)["timing"] == timing


@pytest.mark.parametrize("name", registry.MODULES)
def test_every_experiment_describes_its_rows(name: str) -> None:
    made = registry.find(name)
    for quick in (False, True):
        variants = made.variants(quick)
        assert len({variant.name for variant in variants}) == len(variants) > 0
        for variant in variants:
            assert json.loads(json.dumps(dict(variant.settings))) == dict(variant.settings)
            assert variant.steps > 0
    assert set(made.published) <= {variant.name for variant in made.variants(False)}


def test_the_command_lists_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["experiment", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name}: " in listed for name in registry.MODULES)
    assert cli.main(["experiment"]) == 1
    command = ["experiment", "mnist-historic", "--quick", "--steps", "1", "--quiet", "--out", str(tmp_path)]
    assert cli.main([*command, "--variants", "PhasedLSTMCell"]) == 0
    assert "| PhasedLSTMCell |" in capsys.readouterr().out
    assert (tmp_path / "accuracy.png").read_bytes()[:8] == PNG
    more = [*command, "--variants", "BasicLSTMCell", "--keep", "--device", "cpu"]
    assert cli.main([*more, "--out", str(tmp_path / "more"), "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| PhasedLSTMCell |" in printed
    assert "| BasicLSTMCell |" in printed
    assert cli.main([*more, "--out", str(tmp_path / "new")]) == 1
    assert "summary.json" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert cli.main([*command, "--device", "abacus"]) == 1
    assert "got 'abacus'" in capsys.readouterr().err


def test_the_page_takes_its_tables_from_the_summaries(tmp_path: Path) -> None:
    tiny = experiment()
    assert runner.run(tiny, tmp_path / "runs", seeds=[0], steps=1, progress=False)
    summary = runner.summarise(tiny, tmp_path / "runs", tmp_path / "tiny")
    page = "# Words\n<!-- table tiny -->\nold\n<!-- end -->\nmore words\n"
    (tmp_path / "RESULTS.md").write_text(page)
    filled = report.refresh(tmp_path).read_text()
    assert filled == page.replace("old", runner.table(summary))
    assert report.fill(filled, tmp_path) == filled
    with pytest.raises(RunError, match="missing"):
        report.fill("<!-- table missing -->\n<!-- end -->", tmp_path)


def test_the_published_page_is_that_of_its_summaries() -> None:
    folder = Path(__file__).parents[1] / "docs" / "results"
    page = (folder / report.PAGE).read_text(encoding="utf-8")
    assert "<!-- table mnist-historic -->" in page
    assert report.fill(page, folder) == page


@pytest.mark.parametrize("cell", CELLS)
def test_model_reads_the_last_valid_state(cell: str) -> None:
    torch.manual_seed(0)
    model = SequenceModel(cell, 2, 4, 3, time_feature="normalised", time_scale=5.0, gate={"ratio_on": 0.9}).eval()
    values, times = torch.randn(2, 6, 2), torch.rand(2, 6).cumsum(1).double()
    padded = model(values, times, torch.tensor([6, 4]))
    alone = model(values[1:, :4], times[1:, :4])
    torch.testing.assert_close(padded[1:], alone)
    assert set(model.openness(times)) == (
        {"openness", "updates_per_unit", "never_open_units"} if cell.startswith("Phased") else set()
    )


def test_model_time_features_and_norm_leave_padding_out() -> None:
    values, times = torch.zeros(2, 3, 1), torch.tensor([[2.0, 3.0, 7.0], [4.0, 5.0, 99.0]])
    for feature, wanted in (("raw", [2.0, 3.0, 7.0]), ("delta", [0.0, 0.5, 2.0]), ("normalised", [1.0, 1.5, 3.5])):
        model = SequenceModel("LSTM", 1, 2, 1, time_feature=feature, time_scale=2.0)
        assert model._features(values, times, None)[0, :, 1].tolist() == wanted
    normed = SequenceModel("LSTM", 1, 2, 1, time_feature="raw", batch_norm=True)
    valid = normed._features(values, times, torch.tensor([3, 2]))[:, :, 1]
    stamps = torch.tensor([2.0, 3.0, 7.0, 4.0, 5.0])
    expected = (stamps - stamps.mean()) / (stamps.var(unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(torch.cat([valid[0], valid[1, :2]]), expected)
    assert valid[1, 2] == 0
    with pytest.raises(ValueError, match="cell should be one of"):
        SequenceModel("RNN", 1, 2, 1)
    with pytest.raises(ValueError, match="time_feature"):
        SequenceModel("LSTM", 1, 2, 1, time_feature="elapsed")
