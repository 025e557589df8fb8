"""Time of Phased LSTM against torch.nn.LSTM of the same sizes, interleaved in one run.

    python benchmarks/layers.py [--out FOLDER] [--repeats 9] [--threads 2] [--rows 0,3] [--quick]

Both are given the same input; train is forward and backward with the loss on the last state. A row is not timed
unless native and reference backend agree on it. Floor is the ratio aimed for, forward / train. GFLOP/s counts the
multiply-adds of open events alone, forward, twice; its share is of the best rate of a large float32 torch.mm on the
same threads in the same run. "Made" is the share of the recurrent ones among them that the kernels make: with shared
times a unit that stays open keeps its products.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from records import Point, Record, machine, parser, run
from timing import DENSE, OURS, PARTS, Comparison, Sizes, peak_gflops, timed


@dataclass(frozen=True)
class Row:
    """A comparison, and how many times faster than nn.LSTM it should be."""

    sizes: Sizes
    floor_forward: int
    floor_train: int


ROWS = (
    Row(Sizes(256, 784, 1, 32, shared=True), 50, 35),
    Row(Sizes(32, 1000, 1, 128), 12, 20),
    Row(Sizes(32, 1000, 1, 128, shared=True), 25, 25),
    Row(Sizes(32, 1000, 40, 110), 12, 18),
    Row(Sizes(32, 1000, 64, 256), 10, 12),
    Row(Sizes(64, 1000, 64, 256, shared=True), 20, 20),
    Row(Sizes(16, 1000, 128, 512), 8, 10),
    Row(Sizes(1, 1000, 1, 128, threads=1), 15, 15),
    Row(Sizes(1, 1000, 128, 1024, threads=1), 15, 12),
)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=9)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--rows", help="numbers of rows, comma-separated (default: all)")
    arguments.add_argument("--ratio-on", type=float, default=0.05)
    options = arguments.parse_args()
    chosen = range(len(ROWS)) if options.rows is None else [int(part) for part in options.rows.split(",")]
    settings = {name: getattr(options, name) for name in ("repeats", "threads", "ratio_on")}
    record = Record("layers", options, settings)
    peaks: dict[int, float] = {}
    print(machine())
    print(
        "| batch, steps, in, hidden | nn.LSTM forward | ours | ratio | nn.LSTM train | ours | ratio | floor "
        "| open | GFLOP/s | of peak | made |"
    )
    print("|" + " --- |" * 12)
    for number in chosen:
        row = ROWS[number]
        if options.quick:
            row = replace(row, sizes=row.sizes.tiny())
        print(_line(row, record.measured(str(row.sizes), partial(_measure, row, options, peaks))), flush=True)


def _measure(row: Row, options: argparse.Namespace, peaks: dict[int, float]) -> Point:
    threads = row.sizes.threads or options.threads
    torch.set_num_threads(threads)
    if threads not in peaks:
        peaks[threads] = peak_gflops(64 if options.quick else 2048)
    comparison = Comparison(row.sizes, ratio_on=options.ratio_on)
    comparison.check()
    point = timed(comparison.plans(), options.repeats)
    point |= {"sizes": asdict(row.sizes), "threads": threads}
    point |= {"floor": {"forward": row.floor_forward, "train": row.floor_train}}
    point["recurrent_share"] = comparison.recurrent_share()
    return point | _roofline(row.sizes, comparison.openness(), point["ms"][f"{OURS} forward"], peaks[threads])


def _roofline(sizes: Sizes, openness: float, forward_ms: float, peak: float) -> Point:
    events = round(sizes.unit_steps * openness)
    rate = 2e-6 * events * sizes.event_work / forward_ms
    return {
        "openness": openness,
        "open_events": events,
        "multiply_adds_per_event": sizes.event_work,
        "gflops": rate,
        "peak_gflops": peak,
        "share_of_peak": rate / peak,
    }


def _line(row: Row, point: Point) -> str:
    cells = [str(row.sizes)]
    for part in PARTS:
        dense, ours = point["ms"][f"{DENSE} {part}"], point["ms"][f"{OURS} {part}"]
        cells += [f"{dense:.1f} ms", f"{ours:.2f} ms", f"{dense / ours:.1f}x"]
    cells.append(f"{row.floor_forward}x / {row.floor_train}x")
    cells += [
        f"{point['openness']:.1%}",
        f"{point['gflops']:.1f}",
        f"{point['share_of_peak']:.1%}",
        f"{point['recurrent_share']:.0%}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    run(main)
