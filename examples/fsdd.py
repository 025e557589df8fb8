"""Which digit was spoken, from the raw 8 kHz waveform: Phased LSTM and torch.nn.LSTM, given equal training time.

Recordings are 1,148 to 18,262 samples long, and every sample is a step. The window option gives a step several
samples instead. Time is the CPU time of training steps; tests are not counted.

    python examples/fsdd.py --results docs/results/examples/fsdd
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from reporting import options_of, parsed, report, spread
from torch import Tensor, nn
from tqdm import tqdm

from phased_lstm import PhasedLSTM
from phased_lstm.data import EventBatch, EventDataset, LengthBatchSampler, Standardizer
from phased_lstm.data.audio import Recordings, load_spoken_digits
from phased_lstm.plotting import Figure

VALIDATION_INDICES = ("5", "6", "7", "8", "9")
# Of a training; fewer where they would take more than a quarter of the time, as an LSTM's do.
TESTS = 20


@dataclass(frozen=True)
class Row:
    """A network and how it learns: samples of a step, units, rate, periods in seconds, latest begin of a recording."""

    name: str
    cell: str
    window: int
    hidden: int
    lr: float
    period: tuple[float, float] = (0.0, 0.0)
    ratio_on: float = 0.05
    dropout: float = 0.0
    begin: float = 0.0


ROWS = (
    Row("Phased LSTM, samples", "PhasedLSTM", 1, 128, 5e-3, (0.1, 1.0)),
    Row("LSTM, samples", "LSTM", 1, 128, 5e-3),
    Row("Phased LSTM, windows of 8 samples", "PhasedLSTM", 8, 128, 5e-3, (0.05, 0.5), dropout=0.3, begin=1.0),
    Row("LSTM, windows of 8 samples", "LSTM", 8, 128, 5e-3, dropout=0.3),
)


class Network(nn.Module):
    """Standardised samples, one recurrent layer, and a linear head on its last state."""

    def __init__(self, row: Row, classes: int) -> None:
        super().__init__()
        self.scale = Standardizer(row.window)
        if row.cell == "LSTM":
            self.rnn: nn.LSTM | PhasedLSTM = nn.LSTM(row.window, row.hidden, batch_first=True)
        else:
            low, high = row.period
            self.rnn = PhasedLSTM(
                row.window, row.hidden, batch_first=True, ratio_on=row.ratio_on, period_init_min=low,
                period_init_max=high,
            )  # fmt: skip
        nn.init.ones_(self.rnn.get_parameter("bias_ih_l0")[row.hidden : 2 * row.hidden])
        self.head = nn.Sequential(nn.Dropout(row.dropout), nn.Linear(row.hidden, classes))

    def forward(self, values: Tensor, times: Tensor, lengths: Tensor) -> Tensor:
        inputs = self.scale(values)
        if isinstance(self.rnn, PhasedLSTM):
            # All recordings start at 0 and have one rate, so that one row of times, the longest, is that of all.
            shared = times[int(lengths.argmax())]
            _, (state, _) = self.rnn(inputs, times=shared, lengths=lengths, return_sequence=False)
        else:
            # Not packed: on packed sequences of this length one step of training took more than half a minute.
            output, _ = self.rnn(inputs)
            return self.head(output[torch.arange(len(lengths)), lengths - 1])
        return self.head(state[-1])


def steps_of(recordings: Recordings, window: int) -> EventDataset:
    """Return recordings with `window` samples a step, at the time in seconds of the last of them."""
    parts = []
    for values, times in recordings.data.events:
        whole = len(values) // window * window
        parts.append(
            (values[:whole].reshape(-1, window), times[window - 1 : whole : window].double() / recordings.rate)
        )
    return EventDataset(EventBatch.from_sequences(parts), recordings.data.labels)


@torch.no_grad()
def accuracy(network: Network, data: EventDataset, batch_size: int) -> float:
    assert data.labels is not None
    network.eval()
    right = 0
    for rows in LengthBatchSampler(data.lengths, batch_size, shuffle=False):
        right += int((network(*data.events[rows].padded()).argmax(1) == data.labels[rows]).sum())
    return right / len(data)


def train(row: Row, data: EventDataset, held_out: EventDataset, budget: float, batch_size: int, seed: int) -> Any:
    """Train for so many seconds of CPU time; return accuracy on what was held out, along the way and at the end."""
    torch.manual_seed(seed)
    assert data.labels is not None
    network = Network(row, int(data.labels.max()) + 1)
    network.scale.fit_(data.events)
    optimizer = torch.optim.AdamW(network.parameters(), lr=row.lr)
    sampler = LengthBatchSampler(data.lengths, batch_size, seed=seed)
    used, testing, steps, epoch = 0.0, 0.0, 0, 0
    curve: list[tuple[float, float]] = []
    with tqdm(total=budget, unit="s", desc=f"{row.name}, seed {seed}", bar_format="{l_bar}{bar}| {postfix}") as bar:
        while used < budget:
            sampler.set_epoch(epoch)
            for rows in sampler:
                network.train()
                began = time.process_time()
                # The rate follows the time used, so that fast and slow networks go through one whole schedule.
                share = used / budget
                for group in optimizer.param_groups:
                    group["lr"] = row.lr * min(1.0, (steps + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * share))
                optimizer.zero_grad()
                values, times, lengths = data.events[rows].padded()
                # Where recordings begin at another time in each step, units are open in other parts of them.
                logits = network(values, times + row.begin * torch.rand((), dtype=times.dtype), lengths)
                loss = nn.functional.cross_entropy(logits, data.labels[rows])
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                seconds = time.process_time() - began
                used, steps = used + seconds, steps + 1
                due = used >= budget * (len(curve) + 1) / TESTS and testing <= used / 4
                if due or used >= budget:
                    began = time.process_time()
                    curve.append((used, accuracy(network, held_out, batch_size)))
                    testing += time.process_time() - began
                shown = f"{steps} steps, loss {loss.item():.3f}, accuracy {curve[-1][1] if curve else math.nan:.3f}"
                bar.set_postfix_str(shown, refresh=False)
                bar.update(min(seconds, budget - bar.n))
                if used >= budget:
                    break
            else:
                epoch += 1
    figures = {"seed": seed, "accuracy": curve[-1][1], "curve": curve, "seconds": used, "steps": steps}
    figures["epochs"] = steps / len(sampler)
    if isinstance(network.rnn, PhasedLSTM):
        _, times, lengths = held_out.events.padded()
        openness = float(network.rnn.gates[0].openness(times, lengths).fraction.mean())
        figures |= {"openness": openness, "updates_per_unit": openness * float(lengths.double().mean())}
    return figures


def main() -> None:
    parser = options_of(__doc__, seeds=1)
    parser.add_argument("--budget", type=float, default=600.0, help="CPU seconds of training of each network (600)")
    parser.add_argument("--batch-size", type=int, default=32, help="recordings of a step of training (32)")
    parser.add_argument("--validate", action="store_true", help="hold recordings 5 to 9 back instead of the test")
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(ROWS)), help="numbers of the networks (all)")
    parser.add_argument("--no-checksums", action="store_true", help="read other files of the same names and format")
    options = parsed(parser)
    split = load_spoken_digits(options.data_dir, verify_checksums=not options.no_checksums)
    results = []
    for row in (ROWS[number] for number in options.rows):
        train_part, held_out = steps_of(split.train, row.window), steps_of(split.test, row.window)
        if options.validate:
            kept = torch.tensor([name[:-4].split("_")[2] in VALIDATION_INDICES for name in split.train.names])
            train_part, held_out = train_part[~kept], train_part[kept]
        budget, seeds = (0.3, 1) if options.quick else (options.budget, options.seeds)
        runs = [train(row, train_part, held_out, budget, options.batch_size, seed) for seed in range(seeds)]
        print(f"{row.name}: {spread([run['accuracy'] for run in runs])}")
        results.append(vars(row) | {"runs": runs})
    report(options, {"held_out": "validation" if options.validate else "test", "rows": results}, drawn(results))


def drawn(rows: list[dict[str, Any]]) -> Figure:
    """Accuracy against seconds of training, of the first seed."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for index, row in enumerate(rows):
        line = "-" if row["cell"] == "PhasedLSTM" else "--"
        axes.plot(*zip(*row["runs"][0]["curve"], strict=True), line, color=f"C{index // 2}", label=row["name"])
    axes.axhline(0.1, color="grey", linestyle=":", linewidth=1, label="chance")
    axes.set_xlabel("CPU seconds of training, one thread")
    axes.set_ylabel("test accuracy")
    axes.set_ylim(0, 1)
    axes.set_title("Free Spoken Digit Dataset, raw waveform")
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", ncols=3, loc="upper left")
    return figure


if __name__ == "__main__":
    main()
