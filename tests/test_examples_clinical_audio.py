"""The examples on intensive care stays and spoken digits, on files of their format that are written here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]


def run_quick(name: str, data: Path, out: Path) -> dict[str, Any]:
    """Run an example in a process of its own, and return its results."""
    script = str(ROOT / "examples" / f"{name}.py")
    command = [sys.executable, script, "--quick", "--no-checksums", "--data-dir", str(data), "--out", str(out / "out")]
    found = subprocess.run(
        [*command, "--results", str(out / "results")], capture_output=True, text=True, check=False, cwd=out,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "MPLBACKEND": "Agg"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    for folder in ("out", "results"):
        assert (out / folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    content: dict[str, Any] = json.loads((out / "results" / "results.json").read_text())
    assert content["rows"] == json.loads((out / "out" / "results.json").read_text())["rows"]
    return content


def test_physionet2012(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for sets, first in (("a", 1000), ("b", 2000)):
        folder = tmp_path / f"set-{sets}"
        folder.mkdir()
        outcomes = ["RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"]
        for record in range(first, first + 40):
            died = record % 4 == 0
            fixed = [f"RecordID,{record}", "Age,60", "Gender,1", "Height,170", f"ICUType,{1 + record % 4}"]
            lines = ["Time,Parameter,Value", *(f"00:00,{entry}" for entry in fixed)]
            lines += [f"{hour:02}:00,HR,{random.normal(120 if died else 80, 5):.1f}" for hour in range(0, 48, 2)]
            (folder / f"{record}.txt").write_text("\n".join(lines) + "\n")
            outcomes.append(f"{record},1,1,10,-1,{int(died)}")
        (tmp_path / f"Outcomes-{sets}.txt").write_text("\n".join(outcomes) + "\n")
    found = run_quick("physionet2012", tmp_path, tmp_path)
    assert [row["sets"] for row in found["rows"]] == ["ab", "a"]
    # A fifth of the stays is for test, and no stay is in both parts.
    assert [row["runs"][0]["stays"] for row in found["rows"]] == [{"train": 64, "test": 16}, {"train": 32, "test": 8}]
    assert 0 <= found["rows"][0]["summary"]["auroc of one network"][0] <= 1


def test_fsdd(tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    random = np.random.default_rng(0)
    for digit in range(10):
        for index in (0, 1, 5, 6):
            length = int(random.integers(120, 200))
            tone = np.sin(np.arange(length) * (digit + 1) / 8) + random.normal(0, 0.1, length)
            with wave.open(str(folder / f"{digit}_theo_{index}.wav"), "wb") as sound:
                sound.setparams((1, 2, 8000, length, "NONE", ""))
                sound.writeframes((tone * 8000).astype("<i2").tobytes())
    found = run_quick("fsdd", tmp_path, tmp_path)
    phased, lstm = found["rows"][:2]
    assert (phased["cell"], lstm["cell"]) == ("PhasedLSTM", "LSTM")
    for row in (phased, lstm):
        run = row["runs"][0]
        assert run["steps"] >= 1
        assert run["curve"][-1][1] == run["accuracy"]
    assert 0 < phased["runs"][0]["openness"] < 0.2
    assert "openness" not in lstm["runs"][0]
