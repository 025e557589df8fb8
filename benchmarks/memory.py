"""Peak memory of one training step, loss on the last state, each in a process of its own. Linux only.

    python benchmarks/memory.py [--out FOLDER] [--threads 2] [--quick]

Extra is the peak of the resident size during the step less the resident size just before it, after a tiny step has
loaded and allocated what any step needs. The peak is the kernel's VmHWM, reset before the step; where that is not
allowed, ru_maxrss, the peak since the process began, and the point says so. The longest sequence has only the total
resident peak, Python and torch included, to stay under 2 GiB.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from functools import partial

import torch

from records import Point, Record, machine, parser, run
from resident import STATUS, peak_since_start, reset_peak, status
from timing import DENSE, OURS, Comparison, Sizes

RATIO_ON = 0.05
SWEEP = [Sizes(32, steps, 1, 128) for steps in (1000, 3000, 10_000)]
LONGEST = Sizes(1, 1_000_000, 1, 128)
LONGEST_LIMIT_MIB = 2048

_CHILD = "measure-here"


def main() -> None:
    if not STATUS.exists():
        print("memory.py reads the resident size from /proc, which only Linux has: nothing was measured")
        return
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    record = Record("memory", options, {"threads": options.threads, "ratio_on": RATIO_ON})
    sweep = [sizes.tiny() for sizes in SWEEP[::2]] if options.quick else SWEEP
    longest = LONGEST.tiny() if options.quick else LONGEST
    torch.set_num_threads(options.threads)
    for sizes in (sweep[0], longest):
        Comparison(sizes, ratio_on=RATIO_ON).check()
    print(machine())
    print("| batch, steps, in, hidden | layer | extra peak | total resident peak |\n| --- | --- | --- | --- |")
    for sizes in sweep:
        for model in (DENSE, OURS):
            point = record.measured(f"{model}: {sizes}", partial(_in_a_process, model, sizes, options.threads))
            print(_line(sizes, point), flush=True)
    limit = {"limit_mib": LONGEST_LIMIT_MIB}
    point = record.measured(f"longest: {longest}", lambda: _in_a_process(OURS, longest, options.threads) | limit)
    within = "under" if point["peak_mib"] < point["limit_mib"] else "NOT under"
    print(f"{_line(longest, point)} {within} {point['limit_mib']} MiB")


def _line(sizes: Sizes, point: Point) -> str:
    return f"| {sizes} | {point['model']} | {point['extra_mib']:.1f} MiB | {point['peak_mib']:.0f} MiB |"


def _in_a_process(model: str, sizes: Sizes, threads: int) -> Point:
    task = json.dumps([model, asdict(sizes), threads])
    command = [sys.executable, __file__, _CHILD, task]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{model} {sizes}: the measuring process ended with status {found.returncode}")
    measured: Point = json.loads(found.stdout)
    return measured


def _measure(model: str, sizes: Sizes, threads: int) -> Point:
    torch.set_num_threads(threads)
    plan = f"{model} train"
    comparison = Comparison(sizes, ratio_on=RATIO_ON)
    x, times = comparison.x, comparison.times
    comparison.x, comparison.times = x[:, :10], times[..., :10]
    comparison.plans()[plan]()
    comparison.x, comparison.times = x, times
    step = comparison.plans()[plan]
    reset = reset_peak()
    before = status("VmRSS")
    step()
    peak = status("VmHWM") if reset else peak_since_start()
    return {
        "model": model,
        "sizes": asdict(sizes),
        "extra_mib": peak - before,
        "peak_mib": peak,
        "before_mib": before,
        "read_from": "VmHWM, reset before the step" if reset else "ru_maxrss, the peak since the process began",
    }


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        model, sizes, threads = json.loads(sys.argv[2])
        print(json.dumps(_measure(model, Sizes(**sizes), threads)))
    else:
        run(main)
