"""Runs: interruption, resuming to the same bits, files that are whole, clear refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from phased_lstm.errors import RunError
from phased_lstm.experiments import mnist
from phased_lstm.experiments.config import MnistConfig
from phased_lstm.files import replacing
from phased_lstm.training.checkpoints import load_tensors, save_tensors
from phased_lstm.training.runs import LOG, RunFolder, read_log

SMALL = MnistConfig(
    data="digits", steps=6, batch_size=3, hidden_size=4, test_every=4, test_size=2, checkpoint_every=2,
    initial_state_std=0.1, clip_grad_norm=1.0, lr=1e-2, threads=1,
)  # fmt: skip


# The same, as the killed and the starved process get it.
ARGUMENTS = [
    "mnist", "--data=digits", "--steps=8", "--batch-size=3", "--hidden-size=4", "--test-every=4", "--test-size=2",
    "--checkpoint-every=2", "--initial-state-std=0.1", "--clip-grad-norm=1", "--lr=0.01", "--threads=1",
]  # fmt: skip
STEP = {"train_loss": 1.0, "train_accuracy": 0.5, "learning_rate": 0.1}


@pytest.fixture(autouse=True)
def _small_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole test set takes seconds; its size is not what these tests are about."""
    load = mnist.load

    def shortened(*args: Any, **kwargs: Any) -> Any:
        digits = load(*args, **kwargs)
        return digits._replace(test_images=digits.test_images[:4], test_labels=digits.test_labels[:4])

    monkeypatch.setattr(mnist, "load", shortened)


def run(out: Path, config: MnistConfig = SMALL, **options: Any) -> dict[str, Any] | None:
    return mnist.run(config, out, progress=False, **options)


def figures(out: Path) -> list[dict[str, str]]:
    """The log without the one column that measures the machine."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_log(out)]


def tensors(path: Path) -> dict[str, Tensor]:
    return load_tensors(path)[0]


def assert_same_run(one: Path, other: Path) -> None:
    assert figures(one) == figures(other)
    for name in ("model.safetensors", "checkpoint.safetensors"):
        first, second = tensors(one / name), tensors(other / name)
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), key


def test_a_run_leaves_all_its_files(tmp_path: Path) -> None:
    results = run(tmp_path / "run")
    assert results is not None
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.json", "log.tsv", "checkpoint.safetensors", "model.safetensors", "results.json", "trace.safetensors",
        ".lock",
    }  # fmt: skip
    assert MnistConfig.from_json(json.loads((tmp_path / "run" / "config.json").read_text())) == SMALL
    rows = read_log(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if row["test_accuracy"]] == ["4", "6"]
    assert results["test_images"] == 4


def test_denormal_numbers_are_zero_while_a_run_trains_and_not_to_the_caller_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def task(*given: Any) -> Any:
        seen.append(sys.float_info.min / 2.0)
        return made(*given)

    seen: list[float] = []
    made = mnist.MnistTask
    monkeypatch.setattr(mnist, "MnistTask", task)
    assert run(tmp_path / "run") is not None
    assert sys.float_info.min / 2.0 > 0.0
    can_flush = torch.set_flush_denormal(False)
    assert [value == 0.0 for value in seen] == [can_flush]


@pytest.mark.parametrize("model", ["PhasedLSTMCell", "BasicLSTMCell", "PhasedGRUCell", "GRUCell"])
def test_a_saved_model_gives_the_same_logits(tmp_path: Path, model: str) -> None:
    config = dataclasses.replace(SMALL, model=model, steps=2)
    run(tmp_path / "run", config)
    loaded = mnist.load_run(tmp_path / "run")
    task = mnist.MnistTask(config, mnist.load("digits"))
    saved = tensors(tmp_path / "run" / "model.safetensors")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, saved[name])
    assert not torch.equal(saved["head.weight"], task.model.head.weight)


def test_resuming_after_more_steps_are_asked_for_equals_one_run(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "parts", dataclasses.replace(SMALL, steps=3, test_every=4))
    config = mnist.resumed_config(tmp_path / "parts", {"steps": 6})
    run(tmp_path / "parts", config, resume=True)
    # A shorter run tests its last step, which the whole one does not.
    whole, parts = figures(tmp_path / "whole"), figures(tmp_path / "parts")
    assert [row["train_loss"] for row in whole] == [row["train_loss"] for row in parts]
    for key, value in tensors(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(value, tensors(tmp_path / "parts" / "model.safetensors")[key]), key


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole")
    step = mnist.MnistTask.train_step

    def interrupting(task: mnist.MnistTask, number: int) -> dict[str, float]:
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(task, number)

    with monkeypatch.context() as patch:
        patch.setattr(mnist.MnistTask, "train_step", interrupting)
        assert run(tmp_path / "parts") is None
    assert len(read_log(tmp_path / "parts")) == 3
    assert run(tmp_path / "parts", mnist.resumed_config(tmp_path / "parts", {}), resume=True) is not None
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, steps=8, checkpoint_every=2)
    run(tmp_path / "whole", config)
    command = [
        sys.executable,
        "-m",
        "phased_lstm.cli",
        *ARGUMENTS,
        "--out",
        str(tmp_path / "parts"),
        "--quiet",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log = tmp_path / "parts" / LOG
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) > 4):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not (tmp_path / "parts" / "results.json").exists()
    run(tmp_path / "parts", mnist.resumed_config(tmp_path / "parts", {}), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(RunError, match=r"already holds a run.*--resume.*--overwrite"):
        run(tmp_path / "run")
    assert run(tmp_path / "run", overwrite=True) is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden_size": 5}, r"--hidden-size 5 \(the run has 4\)"),
        ({"model": "GRUCell", "steps": 9}, r"--model GRUCell \(the run has PhasedLSTMCell\)"),
    ],
)
def test_resuming_with_other_options_is_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    run(tmp_path / "run")
    with pytest.raises(RunError, match=message):
        mnist.resumed_config(tmp_path / "run", given)


def test_steps_of_a_cosine_schedule_cannot_change(tmp_path: Path) -> None:
    run(tmp_path / "run", dataclasses.replace(SMALL, lr_cosine=True, steps=2))
    with pytest.raises(RunError, match="--steps 4"):
        mnist.resumed_config(tmp_path / "run", {"steps": 4})


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run")
    run(tmp_path / "other", dataclasses.replace(SMALL, hidden_size=5, steps=2))
    (tmp_path / "other" / "checkpoint.safetensors").replace(tmp_path / "run" / "checkpoint.safetensors")
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is of another configuration"):
        run(tmp_path / "run", resume=True)


def test_fewer_steps_than_done_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(RunError, match="has done 6 steps already"):
        run(tmp_path / "run", mnist.resumed_config(tmp_path / "run", {"steps": 2}), resume=True)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_extending_a_finished_run_removes_what_is_no_longer_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "run")
    monkeypatch.setattr(mnist.MnistTask, "train_step", lambda *_: os.kill(os.getpid(), signal.SIGINT) or STEP)
    assert run(tmp_path / "run", mnist.resumed_config(tmp_path / "run", {"steps": 9}), resume=True) is None
    with pytest.raises(RunError, match="is not finished: go on with phased-lstm mnist --out"):
        mnist.load_run(tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_log_that_lost_steps_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run")
    log = tmp_path / "run" / LOG
    whole = log.read_text().splitlines(keepends=True)
    log.write_text("".join(whole[:2] + whole[4:]))
    with pytest.raises(RunError, match="does not hold each of the 6 steps"):
        run(tmp_path / "run", resume=True)
    log.write_text(whole[0].replace("train_loss", "loss"))
    with pytest.raises(RunError, match="lacks the columns train_loss"):
        run(tmp_path / "run", resume=True)


def test_a_run_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "parts")
    for name in ("checkpoint.safetensors", "results.json", "model.safetensors"):
        (tmp_path / "parts" / name).unlink()
    run(tmp_path / "parts", mnist.resumed_config(tmp_path / "parts", {}), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run(tmp_path / "run")
    other = RunFolder(tmp_path / "run", mnist.COLUMNS)
    other.lock()
    with pytest.raises(RunError, match="another process is training"):
        run(tmp_path / "run", resume=True)
    other.close()
    assert run(tmp_path / "run", resume=True) is not None


@pytest.mark.parametrize("damage", ["rng", "optimizer.0.exp_avg", "optimizer.1.exp_avg_sq", "optimizer.x"])
def test_a_checkpoint_with_impossible_contents_is_refused(tmp_path: Path, damage: str) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    contents, metadata = load_tensors(path)
    if damage == "optimizer.0.exp_avg":
        del contents[damage]
    else:
        contents[damage] = torch.zeros(2, 7)
    save_tensors(path, contents, metadata)
    with pytest.raises(RunError, match="damaged"):
        run(tmp_path / "run", resume=True)


@pytest.mark.parametrize("metadata", ["[1]", '{"format": "x"}', "{}"])
def test_metadata_that_is_not_ours_is_refused(tmp_path: Path, metadata: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"phased_lstm": metadata})
    with pytest.raises(RunError, match="was not written by phased-lstm"):
        load_tensors(tmp_path / "x.safetensors")


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: writing fails in the same place."""
    script = (
        "import resource, signal, sys\n"
        "from phased_lstm import cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))\n"
        f"sys.exit(cli.main({[*ARGUMENTS, '--out', str(tmp_path / 'run'), '--quiet']!r}))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("phased-lstm: error: ")
    assert result.stderr.count("\n") == 1
    assert not list((tmp_path / "run").glob("*.part"))
    assert not list((tmp_path / "run").glob(".*.part"))


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.json does not exist"):
        mnist.resumed_config(tmp_path / "none", {})


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(RunError, match="damaged"):
        run(tmp_path / "run", resume=True)


def test_a_file_from_a_newer_version_is_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"format": 99})
    with pytest.raises(RunError, match="format 99, this version reads up to 1"):
        load_tensors(tmp_path / "x.safetensors")


def test_configurations_from_files_are_checked() -> None:
    with pytest.raises(RunError, match="unknown entry 'depth'"):
        MnistConfig.from_json({"depth": 1})
    with pytest.raises(RunError, match="steps = '10'"):
        MnistConfig.from_json({"steps": "10"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "--steps"),
        ({"lr": float("nan")}, "--lr"),
        ({"model": "LSTM"}, "--model should be one of"),
        ({"batch_size": 5000, "data": "digits"}, "--batch-size 5000 is more than the 1437"),
        ({"ratio_on": 1.5, "data": "digits"}, "ratio_on should be in"),
        ({"period_init_min": 9.0, "period_init_max": 2.0, "data": "digits"}, "period_init_min"),
    ],
)
def test_options_out_of_range(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        run(tmp_path / "run", MnistConfig(**options))
    assert not (tmp_path / "run").exists()


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="cannot be written"):
        run(tmp_path / "file" / "run")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = mnist.MnistTask.train_step
    monkeypatch.setattr(
        mnist.MnistTask, "train_step", lambda task, n: step(task, n) | ({"train_loss": float("nan")} if n == 4 else {})
    )
    with pytest.raises(RunError, match=r"loss is nan at step 5.*--clip-grad-norm"):
        run(tmp_path / "run")
    assert len(read_log(tmp_path / "run")) == 4


def test_replacing_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_log_cut_short_is_read_up_to_the_last_whole_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, ("step", "loss"))
    folder.start({}, overwrite=False)
    folder.log({"step": 1, "loss": 0.5})
    folder.close()
    with (tmp_path / LOG).open("a") as file:
        file.write("2\t0.")
    assert read_log(tmp_path) == [{"step": "1", "loss": "0.5"}]
    (tmp_path / LOG).write_text("step\tloss\n1\t0.5\t7\n")
    with pytest.raises(RunError, match="line 2"):
        read_log(tmp_path)


def test_batches_cover_an_epoch_and_depend_on_seed_and_step_alone() -> None:
    digits = mnist.load("digits")
    task = mnist.MnistTask(dataclasses.replace(SMALL, batch_size=100), digits)
    epoch = torch.cat([task._batch(step) for step in range(14)])
    assert len(epoch.unique()) == 1400
    later = task._batch(30)
    assert torch.equal(later, mnist.MnistTask(dataclasses.replace(SMALL, batch_size=100), digits)._batch(30))
    other = mnist.MnistTask(dataclasses.replace(SMALL, batch_size=100, seed=1), digits)._batch(30)
    assert not torch.equal(later, other)


def test_learning_rate_warms_up_and_falls() -> None:
    config = dataclasses.replace(SMALL, lr=0.1, lr_warmup=4, lr_cosine=True, steps=100)
    rates = [mnist.learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.025)
    assert rates[50] == pytest.approx(0.05)
    assert rates[99] < 1e-4
    assert mnist.learning_rate(SMALL, 5) == SMALL.lr
