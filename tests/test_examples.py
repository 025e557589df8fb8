"""The examples on series and events, run as a user runs them, on small data in the format of the published files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]


def run(name: str, data: Path, out: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Run an example with --quick; return what it wrote as JSON, and what it printed."""
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--quick", "--data-dir", str(data)]
    command += ["--out", str(out / "run"), "--results", str(out / "results"), *options]
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(command, cwd=out, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for folder in ("run", "results"):
        assert (out / folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    written = [(out / folder / "results.json").read_text() for folder in ("run", "results")]
    assert written[0] == written[1]
    results: dict[str, Any] = json.loads(written[0])
    assert results["command"].startswith(f"{name}.py --quick")
    return results, done.stdout


def test_japanese_vowels(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for part in ("TRAIN", "TEST"):
        lines = ["@problemName JapaneseVowels", "@timeStamps false", "@dimensions 12", "@classLabel true 1 2", "@data"]
        for label in (1, 2) * 4:
            channels = draw.normal(label, 0.1, (12, draw.integers(7, 30)))
            lines.append(":".join(",".join(f"{value:.4f}" for value in row) for row in channels) + f":{label}")
        (tmp_path / f"JapaneseVowels_{part}.ts").write_text("\n".join(lines) + "\n")
    results, printed = run("japanese_vowels", tmp_path, tmp_path, "--no-checksums")
    rows = results["cross_validation"]
    assert [row["kind"] for row in rows] == ["Phased LSTM"] * 4 + ["LSTM"]
    assert all(row["mean"] == sum(row["folds"]) / 2 for row in rows)
    best = max(rows[:4], key=lambda row: row["mean"])
    assert results["test"]["Phased LSTM"]["settings"] == best["settings"]
    assert all(score * 8 in range(9) for row in results["test"].values() for score in row["test_accuracy"])
    assert "test EventBatch(8 sequences" in printed


def test_character_trajectories(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(30, 60, 40)
    labels = np.arange(40) % 2 + 1
    values = draw.normal(labels.repeat(lengths)[:, None], 0.1, (lengths.sum(), 3)).astype(np.float32)
    np.savez(
        tmp_path / "character_trajectories_labelled.npz",
        values=values, lengths=lengths, labels=labels, classes=np.array(["a", "b"]),
    )  # fmt: skip
    results, _ = run("character_trajectories", tmp_path, tmp_path, "--no-checksums")
    found = [(row["kind"], row["dropped"], row["times"]) for row in results["test"]]
    both = [(kind, times) for kind in ("Phased LSTM", "LSTM") for times in (True, False)]
    assert found == [("Phased LSTM", 0.0, True), ("LSTM", 0.0, True)] + [
        (kind, share, times) for share in (0.5, 0.9) for kind, times in both
    ]
    assert all(score * 12 in range(13) for row in results["test"] for score in row["accuracy"])


def test_nmnist(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for part, count in (("Train", 4), ("Test", 2)):
        for digit in (3, 8):
            (tmp_path / part / str(digit)).mkdir(parents=True)
            for number in range(count):
                times = np.sort(draw.integers(0, 300_000, 200))
                events = [(*draw.integers(0, 34, 2), draw.integers(0, 2) << 7 | time >> 16) for time in times]
                rest = [(time >> 8 & 255, time & 255) for time in times]
                content = bytes(
                    int(byte) for pair in zip(events, rest, strict=True) for part_ in pair for byte in part_
                )
                (tmp_path / part / str(digit) / f"{digit}{number:04}.bin").write_bytes(content)
    results, printed = run("nmnist", tmp_path, tmp_path)
    assert all(score * 4 in range(5) for scores in results["accuracy"].values() for score in scores)
    differences = [float(line.split()[5]) for line in printed.splitlines() if line.startswith("stream and batch")]
    assert len(differences) == 3
    # The layer gives the same bits either way; the head's product is rounded another way for one row than for many.
    assert max(differences) < 1e-6
    assert (tmp_path / "run" / "network.safetensors").exists()
