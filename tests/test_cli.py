"""The commands, as a user calls them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from phased_lstm import cli
from phased_lstm.plotting import plot_runs

ROOT = Path(__file__).parents[1]
SMALL = [
    "--data", "digits", "--steps", "3", "--batch-size", "2", "--hidden-size", "3", "--test-size", "2", "--threads", "1",
    "--quiet",
]  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "command", [["--help"], *([name, "--help"] for name in ("mnist", "demo", "plot", "train", "predict", "inspect"))]
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    script = (
        "import sys, phased_lstm.cli\n"
        f"try: phased_lstm.cli.main({command!r})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'sklearn', 'tqdm', 'yaml', 'pyarrow'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "usage: phased-lstm" in result.stdout


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "7"}, "None"),
        ({"KMP_BLOCKTIME": "7"}, "None"),
    ],
)
@pytest.mark.parametrize("command", ["cli.main(['info'])", "cli.main_mnist(['--data', 'digits'])", "runpy.run_module"])
def test_threads_of_commands_sleep_while_they_wait_unless_the_user_says_how(
    command: str, given: dict[str, str], expected: str
) -> None:
    """The runtime reads its environment when torch is loaded: what it was then is what counts."""
    if command == "runpy.run_module":
        command = "sys.argv = ['phased-lstm', 'info']; runpy.run_module('phased_lstm.cli', run_name='__main__')"
    script = (
        "import os, runpy, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('OMP_WAIT_POLICY'), flush=True)\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from phased_lstm import cli\n"
        f"{command}\n"
    )
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    result = subprocess.run(
        [sys.executable, "-c", script], env=settings | given, capture_output=True, text=True, check=False
    )
    assert result.stdout == f"{expected}\n", result.stderr


def test_the_environment_is_left_alone_where_it_would_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["info"]) == 0
    assert "OMP_WAIT_POLICY" not in os.environ


def test_the_historic_command(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "mnist_phased_lstm.py"),
        "-m",
        "BasicLSTMCell",
        *SMALL,
        "--out",
        str(tmp_path / "r"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "BasicLSTMCell after 3 steps" in result.stdout
    assert "on all 360 test images" in result.stdout


def test_the_historic_default_is_phased(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main_mnist([*SMALL, "--out", str(tmp_path / "r")]) == 0
    assert "PhasedLSTMCell after 3 steps" in capsys.readouterr().out


def test_resume_takes_the_runs_own_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "r")
    assert cli.main(["mnist", *SMALL, "-m", "GRUCell", "--out", out]) == 0
    assert cli.main(["mnist", "--out", out, "--resume", "--steps", "4", "--threads", "1", "--quiet"]) == 0
    assert "GRUCell after 4 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnist", "--resume"], "--resume needs --out"),
        (["mnist", "--resume", "--overwrite", "--out", "x"], "exclude each other"),
        (["mnist", "--data-dir", "nowhere"], "nowhere lacks"),
        (["mnist", "--steps", "-1"], "--steps should be from 1 to"),
        (["plot", "nowhere"], "nowhere"),
        (["mnist", "-m", "GRUCell", "--forget-bias", "1"], "--forget-bias has no meaning for GRUCell"),
        (["mnist", "--data", "digits", "--data-dir", "x"], "--data-dir goes with --data mnist"),
        (["mnist", "--seed", "20000000000000"], "--seed should be from 0 to"),
        (["mnist", "--data", "digits", "--out", "x" * 300], "File name too long"),
        (["demo", "--steps", "0"], "--steps"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("phased-lstm: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["mnist", "--no-such-option", "1"],
        ["mnist", "-m", "LSTM"],
        ["train", "--out", ""],
        ["predict", "run", "--data", "", "--out", "p.csv"],
        ["evaluate", "run", "--data", "m.csv", "--labels", ""],
        ["train", "--features", '"hr'],
        ["experiment", "adding", "--steps", "0"],
        ["experiment", "adding", "--threads", "100000"],
        ["experiment", "adding", "--seeds", "-1"],
    ],
)
def test_wrong_use_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2


def test_info_names_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "backend reference: available" in out
    assert "backend native: " in out
    assert "backend triton: missing: " in out


def test_demo_prints_a_table_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--steps", "2", "--threads", "1", "--out", str(tmp_path / "d"), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "steps", "training", "acc.", "test", "acc.", "s", "/", "step", "openness"]
    assert lines[1].split()[:2] == ["BasicLSTMCell", "2"]
    assert lines[1].split()[-1] == "always"
    assert lines[2].split()[:2] == ["PhasedLSTMCell", "2"]
    assert lines[2].split()[-1].endswith("%")
    for name in ("accuracy", "cross_entropy", "gate"):
        assert (tmp_path / "d" / f"{name}.png").read_bytes().startswith(PNG)


def test_plot_draws_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("GRUCell", "PhasedGRUCell"):
        assert cli.main(["mnist", *SMALL, "-m", model, "--out", str(tmp_path / model)]) == 0
    capsys.readouterr()
    assert cli.main(["plot", str(tmp_path / "GRUCell"), str(tmp_path / "PhasedGRUCell"), "--out", str(tmp_path)]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == [
        "accuracy.png",
        "cross_entropy.png",
        "gate.png",
    ]
    assert [path.name for path in plot_runs([tmp_path / "GRUCell"], tmp_path / "one")] == [
        "accuracy.png",
        "cross_entropy.png",
    ]
