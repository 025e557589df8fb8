"""Time of Phased LSTM against torch.nn.LSTM of the same sizes, interleaved in one run.

    python benchmarks/layers.py [--repeats 9] [--threads 2] [--rows 0,3]

Both are given the same input; train is forward and backward with the loss on the last state. A row is not timed
unless native and reference backend agree on it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import phased_lstm
from phased_lstm import PhasedLSTM
from phased_lstm.ops import native


@dataclass(frozen=True)
class Row:
    """Sizes of a comparison; times are U(0, L), sorted, a row each unless shared."""

    batch: int
    steps: int
    inputs: int
    hidden: int
    shared: bool = False
    threads: int | None = None


ROWS = (
    Row(256, 784, 1, 32, shared=True),
    Row(32, 1000, 1, 128),
    Row(32, 1000, 1, 128, shared=True),
    Row(32, 1000, 40, 110),
    Row(32, 1000, 64, 256),
    Row(64, 1000, 64, 256, shared=True),
    Row(16, 1000, 128, 512),
    Row(1, 1000, 1, 128, threads=1),
    Row(1, 1000, 128, 1024, threads=1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", help="numbers of rows, comma-separated (default: all)")
    parser.add_argument("--ratio-on", type=float, default=0.05)
    options = parser.parse_args()
    chosen = range(len(ROWS)) if options.rows is None else [int(part) for part in options.rows.split(",")]
    print(machine())
    print("| batch, steps, in, hidden | nn.LSTM forward | ours | ratio | nn.LSTM train | ours | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for number in chosen:
        row = ROWS[number]
        torch.set_num_threads(row.threads or options.threads)
        print(measure(row, options.repeats, options.ratio_on), flush=True)


def machine() -> str:
    """One line on what the figures were measured with."""
    kernels = native.missing() or f"native kernels, {native.instruction_set()}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, torch {torch.__version__}, phased-lstm {phased_lstm.__version__}, {kernels}"


def measure(row: Row, repeats: int, ratio_on: float) -> str:
    """Return a line of the table: medians in milliseconds, and their ratios."""
    torch.manual_seed(0)
    dense = nn.LSTM(row.inputs, row.hidden, batch_first=True)
    phased = PhasedLSTM.from_lstm(dense, ratio_on=ratio_on)
    x = torch.randn(row.batch, row.steps, row.inputs)
    shape = (row.steps,) if row.shared else (row.batch, row.steps)
    times = torch.rand(shape, dtype=torch.float64).mul(row.steps).sort(-1).values
    check(phased, x, times)
    plans: dict[str, Callable[[], None]] = {
        "dense forward": lambda: forward(lambda: dense(x)),
        "phased forward": lambda: forward(lambda: phased(x, times=times, return_sequence=False)),
        "dense train": lambda: dense(x)[1][0].sum().backward(),
        "phased train": lambda: phased(x, times=times, return_sequence=False)[1][0].sum().backward(),
    }
    taken: dict[str, list[float]] = {name: [] for name in plans}
    for repeat in range(repeats + 1):
        for name, plan in plans.items():
            started = time.perf_counter()
            plan()
            if repeat:  # the first round warms up
                taken[name].append(1e3 * (time.perf_counter() - started))
    middle = {name: statistics.median(values) for name, values in taken.items()}
    sizes = f"{row.batch}, {row.steps}, {row.inputs}, {row.hidden}" + (", shared times" if row.shared else "")
    cells = [sizes + (f", {row.threads} thread" if row.threads else "")]
    for part in ("forward", "train"):
        dense_time, ours = middle[f"dense {part}"], middle[f"phased {part}"]
        cells += [f"{dense_time:.1f} ms", f"{ours:.2f} ms", f"{dense_time / ours:.1f}x"]
    return "| " + " | ".join(cells) + " |"


@torch.no_grad()
def forward(call: Callable[[], object]) -> None:
    call()


@torch.no_grad()
def check(phased: PhasedLSTM, x: Tensor, times: Tensor) -> None:
    """Refuse to time kernels that are wrong."""
    few = slice(0, min(4, len(x)))
    rows = times if times.dim() == 1 else times[few]
    found = phased(x[few], times=rows)[0]
    phased.backend = "reference"
    wanted = phased(x[few], times=rows)[0]
    phased.backend = "auto"
    error = float((found - wanted).abs().max() / wanted.abs().max())
    if error > 1e-5:
        raise SystemExit(f"native and reference differ by {error:.1e}: not timed")


if __name__ == "__main__":
    main()
