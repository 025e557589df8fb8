"""Training from a table that is larger than the memory it may use: a Parquet file, read in chunks. Linux only.

    python benchmarks/larger_than_memory.py [--gigabytes 5] [--folder FOLDER] [--threads 1] [--out FOLDER] [--quick]

A wide table of random walks with gaps, and a table of labels, are written to a folder that is removed afterwards. A
process of its own then trains on it: one epoch of `phased-lstm train --on-disk`, with validation and figures. Its
peak is the kernel's VmHWM since it began, Python, torch and pyarrow included, to stay under 2 GiB.
"""

from __future__ import annotations

import contextlib
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from phased_lstm import cli
from records import Point, Record, machine, parser, run
from resident import STATUS, status

CHANNELS = 38
LENGTHS = (500, 3500)
GROUP_ROWS = 1 << 18
# Uncompressed: id and time of 8 bytes, values of 4.
ROW_BYTES = 16 + 4 * CHANNELS
LIMIT_MIB = 2048
HIDDEN = 32
BATCH = 32

_CHILD = "train-here"


def main() -> None:
    if not STATUS.exists():
        print("larger_than_memory.py reads the resident size from /proc, which only Linux has: nothing was measured")
        return
    arguments = parser(__doc__)
    arguments.add_argument("--gigabytes", type=float, default=5.0, help="size of the table, in 10^9 bytes")
    arguments.add_argument("--folder", type=Path, help="where the table is written (default: the temporary folder)")
    arguments.add_argument("--threads", type=int, default=1)
    options = arguments.parse_args()
    size = 0.005 if options.quick else options.gigabytes
    record = Record("larger_than_memory", options, {"threads": options.threads, "gigabytes": size})
    print(machine())
    point = record.measured(f"{size:g} GB", lambda: _in_a_process(size, options.folder, options.threads))
    within = "under" if point["peak_mib"] < point["limit_mib"] else "NOT under"
    print(
        f"table of {point['table_bytes'] / 1e9:.2f} GB, {point['events']:,} events in {point['sequences']:,} "
        f"sequences, {point['steps']:,} training steps, validation loss {point['loss']:.4f}, accuracy "
        f"{point['accuracy']:.4f}\n"
        f"writing {point['writing_seconds']:.0f} s, reading, training and validation {point['training_seconds']:.0f} "
        f"s, of which training steps {point['steps_seconds']:.0f} s\n"
        f"peak resident memory {point['peak_mib']:.0f} MiB, before the table {point['before_mib']:.0f} MiB: {within} "
        f"{point['limit_mib']} MiB"
    )


def _in_a_process(gigabytes: float, folder: Path | None, threads: int) -> Point:
    with tempfile.TemporaryDirectory(dir=folder, prefix="larger-than-memory-") as made:
        began = time.perf_counter()
        _write(Path(made), round(gigabytes * 1e9 / ROW_BYTES))
        writing = time.perf_counter() - began
        command = [sys.executable, __file__, _CHILD, json.dumps([made, threads])]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if found.returncode:
            raise SystemExit(f"the training process ended with status {found.returncode}")
        measured: Point = json.loads(found.stdout)
        size = (Path(made) / "table.parquet").stat().st_size
    return measured | {"table_bytes": size, "writing_seconds": writing, "limit_mib": LIMIT_MIB}


def _write(folder: Path, rows: int) -> None:
    """Write sequences of two kinds, which differ in how far their values stray."""
    random = np.random.default_rng(0)
    names = [f"c{number}" for number in range(CHANNELS)]
    fields = [("id", pa.int64()), ("time", pa.int64()), *((name, pa.float32()) for name in names)]
    # One draw, shifted for each channel and group: what the values are matters less than the time to write them.
    noise = random.standard_normal(GROUP_ROWS, np.float32)
    noise[random.random(GROUP_ROWS) < 0.3] = np.nan
    labels: list[int] = []
    written, left = 0, 0
    with pq.ParquetWriter(folder / "table.parquet", pa.schema(fields), compression="none", use_dictionary=False) as out:
        while written < rows:
            count = min(GROUP_ROWS, rows - written)
            noise = np.roll(noise, 61)
            ids = np.empty(count, np.int64)
            begin = 0
            while begin < count:
                if not left:
                    left = int(random.integers(*LENGTHS))
                    labels.append(int(random.integers(2)))
                length = min(left, count - begin)
                ids[begin : begin + length] = len(labels) - 1
                begin, left = begin + length, left - length
            times = written * 100 + np.cumsum(random.integers(1, 200, count))
            scale = 1 + np.array(labels, np.float32)[ids]
            arrays: list[Any] = [pa.array(ids), pa.array(times)]
            for number in range(CHANNELS):
                arrays.append(pa.array(np.roll(noise, 1009 * number)[:count] * scale))
            out.write_batch(pa.record_batch(arrays, schema=pa.schema(fields)), row_group_size=GROUP_ROWS)
            written += count
    pq.write_table(pa.table({"id": range(len(labels)), "wild": labels}), folder / "labels.parquet")


def _train(folder: Path, threads: int) -> Point:
    run = folder / "run"
    before = status("VmHWM")
    began = time.perf_counter()
    code = cli.main(
        [
            "train", "--data", str(folder / "table.parquet"), "--labels", str(folder / "labels.parquet"),
            "--target", "wild", "--on-disk", "--epochs", "1", "--hidden-size", str(HIDDEN), "--batch-size", str(BATCH),
            "--threads", str(threads), "--quiet", "--out", str(run),
        ]
    )  # fmt: skip
    if code:
        raise SystemExit(code)
    took = time.perf_counter() - began
    results = json.loads((run / "results.json").read_text())
    with (run / "log.tsv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file, delimiter="\t")]
    return {
        "events": pq.ParquetFile(folder / "table.parquet").metadata.num_rows,
        "sequences": sum(results["sequences"].values()),
        "steps": len(seconds),
        "loss": results["valid"]["loss"],
        "accuracy": results["valid"]["accuracy"],
        "training_seconds": took,
        "steps_seconds": sum(seconds),
        "before_mib": before,
        "peak_mib": status("VmHWM"),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        made, threads = json.loads(sys.argv[2])
        with contextlib.redirect_stdout(sys.stderr):
            measured = _train(Path(made), threads)
        print(json.dumps(measured))
    else:
        run(main)
