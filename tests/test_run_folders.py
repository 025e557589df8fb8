"""A run folder holds files of one run, whenever what writes it is killed and whoever copies or edits them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phased_lstm import cli
from phased_lstm.errors import RunError
from phased_lstm.experiments import demo, mnist
from phased_lstm.experiments.config import MnistConfig
from phased_lstm.training.runs import RunFolder

SMALL = ["--epochs=2", "--hidden-size=2", "--ratio-on=0.5", "--threads=1", "--quiet", "--checkpoint-every=1"]


class Killed(BaseException):
    """Ends a process where it is, as nothing catches it."""


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Measurements, and two targets whose networks differ in nothing but their weights."""
    folder = tmp_path_factory.mktemp("tables")
    rows = [f"s{n},{t},{(n * 7 + t * 3) % 11}\n" for n in range(16) for t in range(4)]
    (folder / "m.csv").write_text("id,time,hr\n" + "".join(rows))
    (folder / "y.csv").write_text("id,y,z\n" + "".join(f"s{n},{n % 2},{n // 3 % 2}\n" for n in range(16)))
    return ["--data", str(folder / "m.csv"), "--labels", str(folder / "y.csv")]


@pytest.fixture(scope="module")
def runs(tables: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for target in "yz":
        command = ["train", *tables, *SMALL, "--target", target, "--out", str(folder / target)]
        assert cli.main(command) == 0
        assert cli.main(["inspect", str(folder / target)]) == 0
    return {target: folder / target for target in "yz"}


def predictions(run: Path, tables: list[str], out: Path) -> bytes | None:
    out.unlink(missing_ok=True)
    status = cli.main(["predict", str(run), *tables[:2], "--out", str(out)])
    return out.read_bytes() if status == 0 else None


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, list[str]], bool]:
    """Run a command that dies before it has changed so many names of files; whether it died."""

    def call(changes: int, command: list[str]) -> bool:
        count = itertools.count()

        def dying(real: Any) -> Any:
            def change(*args: Any, **kwargs: Any) -> Any:
                if next(count) >= changes:
                    raise Killed
                return real(*args, **kwargs)

            return change

        with monkeypatch.context() as patch:
            for name in ("unlink", "replace", "rmdir"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                assert cli.main(command) == 0
            except Killed:
                return True
        return False

    return call


def test_a_run_that_is_replaced_is_the_old_one_or_none_or_the_new_one(
    tables: list[str], runs: dict[str, Path], tmp_path: Path, killed: Callable[[int, list[str]], bool]
) -> None:
    """At whatever change of a file --overwrite is killed; the next one leaves nothing of either attempt."""
    made = {target: predictions(run, tables, tmp_path / "p.csv") for target, run in runs.items()}
    assert made["y"] != made["z"]
    run = tmp_path / "run"
    command = ["train", *tables, *SMALL, "--target=z", "--overwrite", "--out", str(run)]
    found = []
    for changes in itertools.count():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(runs["y"], run)
        died = killed(changes, command)
        written = predictions(run, tables, tmp_path / "p.csv")
        target = None
        if (run / "config.json").exists():
            target = json.loads((run / "config.json").read_text())["train"]["target"]
        assert written is None or written == made[target or "neither"], changes
        found.append(None if written is None else target)
        if not died:
            break
        if changes % 4 == 2:
            # What is left goes on where there is a run, and is replaced where there is none.
            assert cli.main(["train", "--resume", "--quiet", "--out", str(run)]) == (1 if target is None else 0)
            assert cli.main(command) == 0
            assert predictions(run, tables, tmp_path / "p.csv") == made["z"]
            assert {path.name for path in run.iterdir()} == {path.name for path in runs["z"].iterdir()} - {
                "periods.png"
            }
    assert found[0] == "y"
    assert None in found
    assert found[-1] == "z"
    assert [target for target, _ in itertools.groupby(found)] == ["y", None, "z"]


def test_what_a_killed_replacement_leaves_is_not_taken_for_an_empty_folder(
    tables: list[str], runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs["y"], tmp_path / "run")
    (tmp_path / "run/config.json").unlink()
    assert cli.main(["train", *tables, *SMALL, "--target=z", "--out", str(tmp_path / "run")]) == 1
    assert "no config.json, as of a run that was being replaced" in capsys.readouterr().err
    assert (tmp_path / "run/model/model.safetensors").exists()


def test_files_that_are_no_run_are_left_alone(
    tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *tables, *SMALL, "--target=y", "--overwrite", "--out"]
    other = tmp_path / "model"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "another"}')
    (other / "model.safetensors").write_bytes(b"weights")
    assert cli.main([*command, str(other)]) == 1
    assert "which is no run" in capsys.readouterr().err
    assert {path.name for path in other.iterdir()} == {"config.json", "model.safetensors"}
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("periods.png", "evaluation.json", ".notes.part"):
        (mine / name).write_text("mine")
    assert cli.main([*command, str(mine)]) == 0
    assert {
        path.read_text() for path in (mine / name for name in ("periods.png", "evaluation.json", ".notes.part"))
    } == {"mine"}


@pytest.mark.parametrize(
    "names", [["model"], ["config.json"], ["results.json"], ["model", "results.json"], ["config.json", "results.json"]]
)
def test_files_of_two_runs_are_told_apart(
    tables: list[str], runs: dict[str, Path], tmp_path: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["y"], run)
    for name in names:
        copy = shutil.copytree if (runs["z"] / name).is_dir() else shutil.copy
        if copy is shutil.copytree:
            shutil.rmtree(run / name)
        copy(runs["z"] / name, run / name)
    for command in (
        ["predict", str(run), *tables[:2], "--out", str(tmp_path / "p.csv")],
        ["evaluate", str(run), *tables],
        ["inspect", str(run), "--out", str(tmp_path)],
    ):
        assert cli.main(command) == 1
        assert "are not what the run in" in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize(
    ("part", "entries", "message"),
    [
        ("tables", {"classes": ["1", "0"]}, "are not what the run in"),
        ("tables", {"time_unit": "ms"}, "are not what the run in"),
        ("train", {"target": "z"}, "are not what the run in"),
        ("tables", {"channels": "hr"}, "channels = 'hr', which is of the wrong type"),
        ("tables", {"depth": 1}, "unknown entry 'depth'"),
        ("train", {"lr": "fast"}, "lr = 'fast', which is of the wrong type"),
    ],
)
def test_an_edited_configuration_is_refused(
    tables: list[str],
    runs: dict[str, Path],
    tmp_path: Path,
    part: str,
    entries: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["y"], run)
    content = json.loads((run / "config.json").read_text())
    content[part] |= entries
    (run / "config.json").write_text(json.dumps(content))
    assert cli.main(["predict", str(run), *tables[:2], "--out", str(tmp_path / "p.csv")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_other_tables_need_may_be_edited(tables: list[str], runs: dict[str, Path], tmp_path: Path) -> None:
    """Names of columns, and what is let pass, are no part of the network."""
    run = tmp_path / "run"
    shutil.copytree(runs["y"], run)
    content = json.loads((run / "config.json").read_text())
    content["train"] |= {"time": "when", "empty": "skip", "threads": 2}
    (run / "config.json").write_text(json.dumps(content))
    text = Path(tables[1]).read_text().replace("time", "when")
    (tmp_path / "m.csv").write_text(text)
    assert cli.main(["predict", str(run), "--data", str(tmp_path / "m.csv"), "--out", str(tmp_path / "p.csv")]) == 0
    assert (tmp_path / "p.csv").read_bytes() == predictions(runs["y"], tables, tmp_path / "q.csv")


def test_a_checkpoint_or_trace_of_another_run_is_refused(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["y"], run)
    shutil.copy(runs["z"] / "trace.safetensors", run)
    assert cli.main(["inspect", str(run), "--out", str(tmp_path)]) == 1
    assert "trace.safetensors is of another run" in capsys.readouterr().err
    shutil.copy(runs["z"] / "checkpoint.safetensors", run)
    assert cli.main(["train", "--resume", "--quiet", "--out", str(run)]) == 1
    assert "checkpoint.safetensors is of another configuration or other data" in capsys.readouterr().err
    assert (run / "results.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", '{"train": {"loss": null}, "sequences": {"train": 3}}', "results.json is damaged"),
        ("results.json", '{"train": "x"}', "results.json is damaged"),
        ("log.tsv", "step\ttrain_loss\n", "it has no steps"),
        ("log.tsv", "step\ttrain_loss\n1\tx\n", "line 2: does not fit the header"),
    ],
)
def test_damage_is_told_in_one_line(
    runs: dict[str, Path], tmp_path: Path, name: str, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["y"], run)
    (run / name).write_text(content)
    assert cli.main(["inspect", str(run), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_plot_names_the_command_for_runs_on_tables(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", str(runs["y"])]) == 1
    assert "draw it with phased-lstm inspect" in capsys.readouterr().err


DIGITS = MnistConfig(data="digits", steps=2, batch_size=2, hidden_size=2, test_size=2, threads=1)


def test_a_model_of_the_historic_command_belongs_to_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = mnist.load

    def shortened(*args: Any, **kwargs: Any) -> Any:
        digits = load(*args, **kwargs)
        return digits._replace(test_images=digits.test_images[:4], test_labels=digits.test_labels[:4])

    monkeypatch.setattr(mnist, "load", shortened)
    mnist.run(DIGITS, tmp_path / "run", progress=False)
    path = tmp_path / "run/config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"threads": 2}))
    mnist.load_run(tmp_path / "run")
    path.write_text(json.dumps(content | {"pixel_scale": 2.0}))
    with pytest.raises(RunError, match="are of two runs"):
        mnist.load_run(tmp_path / "run")
    with pytest.raises(RunError, match="of another configuration or other data"):
        mnist.run(mnist.resumed_config(tmp_path / "run", {}), tmp_path / "run", resume=True, progress=False)


def test_the_demo_leaves_no_pictures_of_runs_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("accuracy.png", "cross_entropy.png", "gate.png", "other.png"):
        (tmp_path / name).write_bytes(b"old")
    monkeypatch.setattr(demo, "run_mnist", lambda *_, **__: None)
    assert demo.run(tmp_path, steps=1, progress=False) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["other.png"]


def test_a_log_of_nothing_does_not_stop_a_new_run(tmp_path: Path) -> None:
    """Killed between its first log and its configuration, a run is none, and begins again."""
    folder = RunFolder(tmp_path, ("step",))
    (tmp_path / "log.tsv").write_text("step\n")
    folder.start({}, overwrite=False)
    folder.close()
    assert (tmp_path / "config.json").exists()
