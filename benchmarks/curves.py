"""Time against openness, and how time grows with steps, units, batch and threads, next to torch.nn.LSTM.

    python benchmarks/curves.py [--out FOLDER] [--repeats 9] [--threads 2] [--quick]

Openness is what the gate measures on the times, periods are the layer's default draw. Two settings of layers.py run
over ratio_on from 0.01 to 1; where ratio_on is 0.05, the reference backend and training with a leak, which opens every
unit at every step, are timed too. Break-even is the openness at which Phased LSTM takes as long as nn.LSTM in the same
run, between points on a log-log scale. Scaling is at ratio_on 0.05. nn.LSTM is left out of a point, which then says
so, when the point before lets one call be expected to take more than 20 s.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

import torch

from records import Point, Record, machine, parser, run
from timing import DENSE, OURS, PARTS, Comparison, Sizes, timed

RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
PAPER_RATIO = 0.05
PAPER_LEAK = 0.001
SETTINGS = (Sizes(32, 1000, 1, 128), Sizes(256, 784, 1, 32, shared=True))
SWEEPS = {
    "steps": [Sizes(4, steps, 16, 64) for steps in (100, 300, 1000, 3000, 10_000, 30_000, 100_000)],
    "hidden": [Sizes(8, 200, 16, hidden) for hidden in (32, 64, 128, 256, 512, 1024)],
    "batch": [Sizes(batch, 200, 16, 128) for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256)],
}
LONGEST_CALL_S = 20.0
BUDGET_S = 20.0


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=9)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    record = Record("curves", options, {"repeats": options.repeats, "threads": options.threads})
    print(machine())
    break_even = {}
    for sizes in SETTINGS:
        sizes = sizes.tiny() if options.quick else sizes
        points = []
        for ratio_on in RATIOS[2::3] if options.quick else RATIOS:
            name = f"openness: {sizes} at ratio_on {ratio_on}"
            points.append(record.measured(name, partial(_openness_point, sizes, ratio_on, options)))
            print(f"{name}, open {points[-1]['openness']:.2%}: {_summary(points[-1])}", flush=True)
        break_even[str(sizes)] = {part: crossing(points, part) for part in PARTS}
    record.note("break_even", break_even)
    for setting, parts in break_even.items():
        print(f"break-even, {setting}: " + ", ".join(f"{part} {_shown(value)}" for part, value in parts.items()))
    sweeps = SWEEPS | {"threads": [replace(SETTINGS[0], threads=count) for count in thread_counts()]}
    for panel, sweep in sweeps.items():
        before: Point | None = None
        for sizes in [sweep[0].tiny(), sweep[-1].tiny()] if options.quick else sweep:
            name = f"{panel}: {sizes}"
            before = record.measured(name, partial(_scaling_point, panel, sizes, before, options))
            print(f"{name}: {_summary(before)}", flush=True)


def thread_counts() -> list[int]:
    """1 to the number of CPUs, in doublings where those are many."""
    cpus = os.cpu_count() or 1
    return list(range(1, cpus + 1)) if cpus <= 4 else [*(2**n for n in range((cpus - 1).bit_length())), cpus]


def crossing(points: Sequence[Point], part: str) -> float | str:
    """Return the openness from which Phased LSTM is slower than nn.LSTM.

    Args:
        points: of rising openness.
        part: forward or train.

    Returns:
        The openness; "never" if it is faster at all of them, "always" if it is slower at the first.
    """
    logs = [
        (math.log(p["openness"]), math.log(p["ms"][f"{OURS} {part}"] / p["ms"][f"{DENSE} {part}"]))
        for p in points
        if p["openness"] > 0
    ]
    slower = next((index for index, (_, ratio) in enumerate(logs) if ratio >= 0), None)
    if slower is None:
        return "never"
    if slower == 0:
        return "always"
    (x0, y0), (x1, y1) = logs[slower - 1], logs[slower]
    return math.exp(x0 - y0 * (x1 - x0) / (y1 - y0))


def _openness_point(sizes: Sizes, ratio_on: float, options: argparse.Namespace) -> Point:
    torch.set_num_threads(options.threads)
    comparison = Comparison(sizes, ratio_on=ratio_on)
    comparison.check()
    plans = comparison.plans()
    if ratio_on == PAPER_RATIO:
        leaky = Comparison(sizes, ratio_on=ratio_on, leak=PAPER_LEAK)
        leaky.check()
        plans["leak train"] = leaky.plans()[f"{OURS} train"]
    point = timed(plans, options.repeats, BUDGET_S)
    if ratio_on == PAPER_RATIO:
        slow = Comparison(sizes, ratio_on=ratio_on, backend="reference").plans()
        # The reference is slow, and its marker on a log scale needs no precision.
        few = timed({f"reference {part}": slow[f"{OURS} {part}"] for part in PARTS}, min(3, options.repeats))
        for key in ("ms", "quartiles_ms"):
            point[key] |= few[key]
    openness = {"ratio_on": ratio_on, "openness": comparison.openness()}
    return {"panel": "openness", "sizes": asdict(sizes), "name": str(sizes)} | openness | point


def _scaling_point(panel: str, sizes: Sizes, before: Point | None, options: argparse.Namespace) -> Point:
    torch.set_num_threads(sizes.threads or options.threads)
    comparison = Comparison(sizes, ratio_on=PAPER_RATIO)
    comparison.check()
    plans = comparison.plans()
    expected = _expected_s(sizes, before)
    skipped = {}
    if expected > LONGEST_CALL_S:
        plans = {name: plan for name, plan in plans.items() if not name.startswith(DENSE)}
        skipped = {"skipped": f"{DENSE}: a training step would take about {expected:.0f} s"}
    point = timed(plans, options.repeats, BUDGET_S)
    return {"panel": panel, "sizes": asdict(sizes), "value": getattr(sizes, panel)} | point | skipped


def _expected_s(sizes: Sizes, before: Point | None) -> float:
    """Seconds that a training step of nn.LSTM will take if they grow as its work does."""
    if before is None:
        return 0.0
    if "skipped" in before:
        return math.inf
    smaller = Sizes(**before["sizes"])
    growth = sizes.unit_steps * sizes.event_work / (smaller.unit_steps * smaller.event_work)
    return 1e-3 * before["ms"][f"{DENSE} train"] * growth


def _summary(point: Point) -> str:
    shown = ", ".join(f"{name} {value:.2f} ms" for name, value in point["ms"].items())
    return shown + (f" (skipped {point['skipped']})" if "skipped" in point else "")


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.0%} open"


if __name__ == "__main__":
    run(main)
