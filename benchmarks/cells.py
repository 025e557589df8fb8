"""Time of a single step from Python: PhasedLSTMCell against torch.nn.LSTMCell, in turns, on one thread.

    python benchmarks/cells.py [--out FOLDER] [--steps 20000] [--quick]

Batch 1, 16 inputs, 128 units, evaluation mode without gradients; the time is a Python float that rises by one a step,
and the state is fed back. The call alone is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from phased_lstm import PhasedLSTMCell
from records import Point, Record, machine, parser, run
from timing import refuse_difference

INPUTS, HIDDEN, BLOCK = 16, 128, 500

State = tuple[Tensor, Tensor]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=20_000)
    options = arguments.parse_args()
    steps = min(options.steps, 2 * BLOCK) if options.quick else options.steps
    torch.set_num_threads(1)
    record = Record("cells", options, {"steps": steps, "inputs": INPUTS, "hidden": HIDDEN, "threads": 1})
    print(machine())
    point = record.measured(f"1, {INPUTS}, {HIDDEN}", lambda: _measure(steps))
    print("| cell | median | p99 |\n| --- | --- | --- |")
    for name, found in point["us"].items():
        print(f"| {name} | {found['median']:.1f} us | {found['p99']:.1f} us |")


@torch.no_grad()
def _measure(steps: int) -> Point:
    torch.manual_seed(0)
    x = torch.randn(1, INPUTS)
    dense = nn.LSTMCell(INPUTS, HIDDEN).eval()
    phased = PhasedLSTMCell(INPUTS, HIDDEN).eval()
    _check(phased, x)
    blank = (torch.zeros(1, HIDDEN), torch.zeros(1, HIDDEN))
    calls: dict[str, Callable[[State, float], State]] = {
        "nn.LSTMCell": lambda state, _: dense(x, state),
        "PhasedLSTMCell": lambda state, now: phased(x, state, now),
    }
    states = dict.fromkeys(calls, blank)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for begin in range(-BLOCK, steps, BLOCK):  # the block before zero warms up
        for name, call in calls.items():
            state = states[name]
            for step in range(begin, min(begin + BLOCK, steps)):
                now = float(step)
                started = time.perf_counter_ns()
                state = call(state, now)
                ended = time.perf_counter_ns()
                if step >= 0:
                    taken[name].append(1e-3 * (ended - started))
            states[name] = state
    return {"us": {name: _summary(values) for name, values in taken.items()}}


def _summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "p99": statistics.quantiles(values, n=100)[-1]}


def _check(phased: PhasedLSTMCell, x: Tensor) -> None:
    ends: dict[str, Any] = {}
    for backend in ("auto", "reference"):
        phased.backend = backend
        state = None
        for step in range(200):
            state = phased(x, state, float(step))
        ends[backend] = state
    phased.backend = "auto"
    for name, found, wanted in zip(("h", "c"), ends["auto"], ends["reference"], strict=True):
        refuse_difference(name, found, wanted)


if __name__ == "__main__":
    run(main)
