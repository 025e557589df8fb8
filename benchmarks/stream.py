"""Live streams against stepping torch.nn.LSTMCell, on one thread: events a second by size of chunk, latency of a push.

    python benchmarks/stream.py [--out FOLDER] [--events 200000] [--quick]

16 inputs, 128 units, ratio_on 0.05. One stream's times rise by one an event; those of 1,000 interleaved streams by one
a thousand events, each of a stream drawn at random. For 1,000 streams nn.LSTMCell, generously, steps all of them at
once. Rates are of processor time, medians over rounds in which all take turns; latency is what a caller waits, by the
clock. Nothing is timed unless a chunk gives the same bits as single pushes and the layer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from phased_lstm import PhasedLSTM, Stream
from records import Point, Record, machine, parser, run
from timing import refuse_difference

INPUTS, HIDDEN, STREAMS = 16, 128, 1000
CHUNKS = (1, 16, 256, 4096)
DENSE = "nn.LSTMCell"

# Calls that follow each other before another takes its turn.
BLOCK = 500


@dataclass
class Source:
    """Endless events of some streams, in chunks."""

    streams: int
    chunk: int

    def __post_init__(self) -> None:
        self._values = cycle(list(torch.randn(16, self.chunk, INPUTS)))
        self._ids = cycle([None] if self.streams == 1 else list(torch.randint(self.streams, (16, self.chunk))))
        self._steps = torch.arange(self.chunk, dtype=torch.float64) / self.streams
        self._next = 0.0

    def take(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The next chunk's times, values and streams."""
        times = self._steps + self._next
        self._next += self.chunk / self.streams
        return times, next(self._values), next(self._ids)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--events", type=int, default=200_000, help="of each measurement, about")
    options = arguments.parse_args()
    events = min(options.events, 4000) if options.quick else options.events
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rnn = PhasedLSTM(INPUTS, HIDDEN).eval()
    check(rnn)
    settings = {"events": events, "inputs": INPUTS, "hidden": HIDDEN, "streams": STREAMS, "threads": 1}
    record = Record("stream", options, settings)
    print(machine())
    print("\n| events a second | one stream | 1,000 interleaved streams |\n| --- | --- | --- |")
    rates = [
        record.measured(f"rates, {streams} streams", partial(measure_rates, rnn, streams, events))
        for streams in (1, STREAMS)
    ]
    for name in rates[0]["events_per_second"]:
        print(f"| {name} | " + " | ".join(f"{rate['events_per_second'][name]:,.0f}" for rate in rates) + " |")
    point = record.measured("latency", lambda: measure_latency(rnn, min(events, 20_000)))
    print("\n| one event | p50 | p99 |\n| --- | --- | --- |")
    for name, found in point["us"].items():
        print(f"| {name} | {found['p50']:.1f} us | {found['p99']:.1f} us |")


@torch.no_grad()
def measure_rates(rnn: PhasedLSTM, streams: int, events: int) -> Point:
    """Events a second of processor time by size of chunk, and of nn.LSTMCell."""
    cell = nn.LSTMCell(INPUTS, HIDDEN).eval()
    x = torch.randn(streams, INPUTS)
    state = (torch.zeros(streams, HIDDEN), torch.zeros(streams, HIDDEN))
    plans: dict[str, tuple[int, Callable[[], Any]]] = {DENSE: (streams, lambda: cell(x, state))}
    for chunk in CHUNKS:
        plans[f"chunks of {chunk:,}"] = chunk, pushing(rnn.stream(streams), Source(streams, chunk))
    rounds = 7
    taken: dict[str, list[float]] = {name: [] for name in plans}
    for turn in range(-1, rounds):  # the turn before zero warms up
        for name, (count, call) in plans.items():
            calls = max(1, events // (rounds * count))
            started = time.process_time()
            for _ in range(calls):
                call()
            if turn >= 0:
                taken[name].append(calls * count / (time.process_time() - started))
    return {"events_per_second": {name: statistics.median(found) for name, found in taken.items()}}


def pushing(stream: Stream, source: Source) -> Callable[[], Any]:
    return lambda: stream.push(*source.take())


@torch.no_grad()
def measure_latency(rnn: PhasedLSTM, events: int) -> Point:
    """Microseconds of a push of one event at a time that is a number, and of a step of nn.LSTMCell."""
    cell = nn.LSTMCell(INPUTS, HIDDEN).eval()
    values = torch.randn(BLOCK, INPUTS)
    rows = list(values.unsqueeze(1))
    dense = [(torch.zeros(1, HIDDEN), torch.zeros(1, HIDDEN))]
    alone, many = rnn.stream(), rnn.stream(STREAMS)
    ids = torch.randint(STREAMS, (BLOCK,)).tolist()

    def step(number: int, now: float) -> None:
        dense[0] = cell(rows[number], dense[0])

    calls: dict[str, Callable[[int, float], Any]] = {
        DENSE: step,
        "push, one stream": lambda number, now: alone.push(now, values[number]),
        "push, 1,000 streams": lambda number, now: many.push(now, values[number], ids[number]),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for begin in range(-BLOCK, events, BLOCK):  # the block before zero warms up
        for name, call in calls.items():
            for number in range(BLOCK):
                now = float(begin + number)
                started = time.perf_counter_ns()
                call(number, now)
                ended = time.perf_counter_ns()
                if begin >= 0:
                    taken[name].append(1e-3 * (ended - started))
    return {"us": {name: summary(values) for name, values in taken.items()}}


def summary(values: list[float]) -> dict[str, float]:
    return {"p50": statistics.median(values), "p99": statistics.quantiles(values, n=100)[-1]}


@torch.no_grad()
def check(rnn: PhasedLSTM) -> None:
    """Refuse to time pushes that are wrong.

    Raises:
        SystemExit: chunks, single pushes and the layer differ.
    """
    times, values = torch.arange(1000, dtype=torch.float64), torch.randn(1000, INPUTS)
    whole = rnn.stream().push(times, values)
    single = rnn.stream()
    ones = torch.stack([single.push(now, value) for now, value in zip(times.tolist(), values, strict=True)])
    layer = rnn(values.unsqueeze(1), times=times.unsqueeze(1))[0][:, 0]
    if not (torch.equal(whole, ones) and torch.equal(whole, layer)):
        raise SystemExit("a chunk, single pushes and the layer differ: not timed")
    rnn.backend = "reference"
    refuse_difference("output", whole, rnn.stream().push(times, values))
    rnn.backend = "auto"


if __name__ == "__main__":
    run(main)
