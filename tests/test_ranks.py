"""Training by several processes: the same numbers, one writer, a clear end when one of them dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from phased_lstm import cli
from phased_lstm.training.checkpoints import load_tensors
from phased_lstm.training.runs import read_json, read_log

OPTIONS = [
    "--target=level", "--static=age", "--hidden-size=6", "--epochs=3", "--batch-size=8", "--ratio-on=0.5",
    "--threads=1", "--checkpoint-every=2", "--test-fraction=0.2", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Sequences in six row groups, cut without regard to where one ends."""
    folder = tmp_path_factory.mktemp("tables")
    generator = torch.Generator().manual_seed(0)
    level = torch.rand(30, generator=generator)
    lengths = torch.randint(5, 12, (30,), generator=generator)
    sequence = torch.arange(30).repeat_interleave(lengths)
    values = 1000.0 + level[sequence] + 0.1 * torch.randn(len(sequence), generator=generator)
    times = torch.arange(len(sequence)) * 10 + torch.randint(0, 5, (len(sequence),), generator=generator)
    columns = {"id": sequence.tolist(), "time": times.tolist(), "x": values.tolist()}
    pq.write_table(pa.table(columns), folder / "data.parquet", row_group_size=45)
    labels = {"id": list(range(30)), "level": level.tolist(), "age": list(range(20, 50))}
    pq.write_table(pa.table(labels), folder / "labels.parquet")
    return ["--data", str(folder / "data.parquet"), "--labels", str(folder / "labels.parquet")]


@pytest.fixture(scope="module")
def alone(tables: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert cli.main(["train", *tables, *OPTIONS, "--out", str(out)]) == 0
    return out


def assert_same_to_rounding(one: Path, other: Path) -> None:
    first, second = read_log(one), read_log(other)
    assert [row["step"] for row in first] == [row["step"] for row in second]
    for name in ("train_loss", "valid_loss", "valid_r2"):
        values = [[float(row[name]) for row in rows if row[name]] for rows in (first, second)]
        torch.testing.assert_close(torch.tensor(values[0]), torch.tensor(values[1]), rtol=1e-4, atol=1e-5)
    models = [load_tensors(run / "model/model.safetensors")[0] for run in (one, other)]
    torch.testing.assert_close(models[0], models[1], rtol=1e-3, atol=1e-4)
    assert read_json(one / "results.json")["test"] == pytest.approx(read_json(other / "results.json")["test"], rel=1e-3)


def test_two_ranks_under_torchrun_give_what_one_gives(tables: list[str], alone: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "phased_lstm.cli",
        "train", *tables, *OPTIONS, "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Run: ") == 1
    assert_same_to_rounding(alone, tmp_path / "run")


def start(rank: int, port: int, arguments: list[str]) -> subprocess.Popen[str]:
    """One rank of two, as torchrun would start it."""
    where = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-m", "phased_lstm.cli", *arguments], env=os.environ | where, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_killed_rank_ends_the_run_and_one_rank_goes_on(tables: list[str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Long enough to be killed on the way.
    options = [*tables, *OPTIONS, "--epochs=60", "--patience=0"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    ranks = [start(rank, port, ["train", *options, "--out", str(run)]) for rank in range(2)]
    while not (run / "checkpoint.safetensors").exists() and all(rank.poll() is None for rank in ranks):
        time.sleep(0.02)
    ranks[1].send_signal(signal.SIGKILL)
    _, error = ranks[0].communicate()
    ranks[1].communicate()
    assert ranks[0].returncode == 1, error
    assert "rank 0 of 2 has lost another rank" in error
    assert "Traceback" not in error
    assert not (run / "model").exists()

    assert cli.main(["train", "--out", str(run), "--resume", "--quiet"]) == 0
    assert cli.main(["train", *options, "--out", str(whole)]) == 0
    assert_same_to_rounding(whole, run)
