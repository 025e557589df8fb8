"""Which digit an event camera saw, event by event at microsecond times; then the same network as a live stream.

A pixel's column, row and polarity become a learned vector, and a layer of Phased LSTM reads the vectors at the times
of the events. Recordings are few: in training each is moved by some pixels, and a part of its events left out.

    python examples/nmnist.py --results docs/results/examples/nmnist
"""

from __future__ import annotations

import time
from typing import Any

import torch
from reporting import options_of, parsed, report, spread
from torch import Tensor, nn
from tqdm import tqdm

from phased_lstm import PhasedLSTM
from phased_lstm.data import AddressEncoder, EventBatch, LengthBatchSampler, nmnist
from phased_lstm.plotting import Figure
from phased_lstm.training.checkpoints import save_model
from phased_lstm.training.splits import split_rows

SIDE, CLASSES = 34, 10
CHUNK = 2_000  # microseconds


class Network(nn.Module):
    """A vector for each event, one layer that reads them at their times, and a linear head on its last state."""

    def __init__(self, hidden_size: int, *, factorized: bool) -> None:
        super().__init__()
        self.encoder = AddressEncoder(SIDE, SIDE, 40, factorized=factorized)
        # From a tenth of one of the three turns of the camera, 100 ms each, to all of them.
        self.rnn = PhasedLSTM(40, hidden_size, batch_first=True, period_init_min=10e3, period_init_max=300e3)
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(hidden_size, CLASSES)

    def forward(self, addresses: Tensor, times: Tensor, lengths: Tensor) -> Tensor:
        _, (state, _) = self.rnn(self.encoder(addresses), times=times, lengths=lengths, return_sequence=False)
        return self.head(self.dropout(state[-1]))


def augmented(events: EventBatch, share: float, most: int) -> EventBatch:
    """Move each recording by up to `most` pixels, and keep each event that still hits the sensor with some chance."""
    moves = torch.randint(-most, most + 1, (len(events), 2)).repeat_interleave(events.lengths, dim=0)
    values = events.values.short()
    values[:, :2] += moves.short()
    hit = ((values[:, :2] >= 0) & (values[:, :2] < SIDE)).all(dim=1)
    return EventBatch(values, events.times, events.offsets).keep(hit & (torch.rand(events.num_events) < share))


def fit(network: Network, events: EventBatch, labels: Tensor, options: Any, seed: int) -> None:
    """Train with cross-entropy."""
    batches = LengthBatchSampler(events.lengths, options.batch_size, seed=seed)
    steps = options.epochs * len(batches)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps, pct_start=0.1)
    network.train()
    with tqdm(total=steps, desc=f"seed {seed}", mininterval=2.0) as bar:
        for epoch in range(options.epochs):
            batches.set_epoch(epoch)
            for rows in batches:
                logits = network(*augmented(events[rows], options.kept, options.shift).padded())
                loss = nn.functional.cross_entropy(logits, labels[rows])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.2f}")


@torch.no_grad()
def accuracy(network: Network, events: EventBatch, labels: Tensor, share: float = 1.0) -> float:
    """Share of recordings that are named rightly from a share of their events."""
    network.eval()
    events = augmented(events, share, 0)
    right = [network(*events[rows].padded()).argmax(1) == labels[rows] for rows in torch.arange(len(labels)).split(50)]
    return float(torch.cat(right).double().mean())


@torch.no_grad()
def followed(network: Network, addresses: Tensor, times: Tensor) -> tuple[list[float], Tensor]:
    """Push a recording to a stream in chunks of 2 ms; return the end of each (ms) and the classes' probabilities."""
    network.eval()
    stream, ends, found = network.rnn.stream(), [], []
    for number in range(int(times[0]) // CHUNK, int(times[-1]) // CHUNK + 1):
        now = (times >= number * CHUNK) & (times < (number + 1) * CHUNK)
        stream.push(times[now], network.encoder(addresses[now]))
        ends.append((number + 1) * CHUNK / 1000)
        found.append(network.head(stream.output)[0].softmax(0))
    whole = network(*EventBatch.from_sequences([(addresses, times)]).padded())[0].softmax(0)
    print(f"stream and batch differ by {float((found[-1] - whole).abs().max()):.1e} after {len(times)} events")
    return ends, torch.stack(found)


def main() -> None:
    parser = options_of(__doc__, seeds=3)
    parser.add_argument("--data", default="nmnist-small", choices=("nmnist", "nmnist-small"), help="the set or a part")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the recordings (60)")
    parser.add_argument("--batch-size", type=int, default=32, help="recordings of a batch (32)")
    parser.add_argument("--hidden-size", type=int, default=110, help="units (110)")
    parser.add_argument("--lr", type=float, default=1e-2, help="highest learning rate (0.01)")
    parser.add_argument("--kept", type=float, default=0.5, help="share of events kept in training (0.5)")
    parser.add_argument("--shift", type=int, default=2, help="pixels by which a recording moves in training (2)")
    parser.add_argument("--factorized", action="store_true", help="a vector is a sum of one for column, row, polarity")
    parser.add_argument("--validate", action="store_true", help="test on a fifth of the training recordings, to tune")
    options = parsed(parser)
    train, test = nmnist.load(options.data, options.data_dir)
    parts = [(train.events(), train.labels), (test.events(), test.labels)]
    if options.validate:
        left, drawn_rows = split_rows(len(train.labels), 0.2, 0, train.labels)
        parts = [(parts[0][0][rows], train.labels[rows]) for rows in (left, drawn_rows)]
    if options.quick:
        options.seeds, options.epochs, options.hidden_size, options.kept = 1, 1, 16, 0.1
        parts = [(events[:64], labels[:64]) for events, labels in parts]
    (events, labels), (tested, truth) = parts
    print(f"train {events}\ntest {tested}")
    scores: dict[str, list[float]] = {"all events": [], "share kept in training": []}
    seconds = 0.0
    for seed in range(options.seeds):
        begin = time.process_time()
        torch.manual_seed(seed)
        network = Network(options.hidden_size, factorized=options.factorized)
        fit(network, events, labels, options, seed)
        seconds += (time.process_time() - begin) / options.seeds
        scores["all events"].append(accuracy(network, tested, truth))
        scores["share kept in training"].append(accuracy(network, tested, truth, options.kept))
        print(f"seed {seed}: " + ", ".join(f"{name} {100 * values[-1]:.1f} %" for name, values in scores.items()))
    what = "validation" if options.validate else "test"
    print(f"{what} accuracy: {spread(scores['all events'])}, {seconds:.0f} s a fit")
    save_model(options.out / "network.safetensors", network, {"hidden_size": options.hidden_size})
    runs = [(int(truth[number]), *followed(network, *tested[number])) for number in range(min(3, len(truth)))]
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "results", "data_dir")}
    report(options, {"settings": settings, "accuracy": scores, "seconds_per_fit": round(seconds, 1)}, drawn(runs))


def drawn(runs: list[tuple[int, list[float], Tensor]]) -> Figure:
    """Probability of each class while a recording goes on, one panel a recording."""
    figure = Figure(figsize=(4 * len(runs), 3.5), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (digit, ends, found) in zip(panels, runs, strict=True):
        for other in range(CLASSES):
            axes.plot(ends, found[:, other], color=f"C{other}", linewidth=2.5 if other == digit else 1.0, label=other)
        axes.set_title(f"a recording of a {digit}")
        axes.set_xlabel("time (ms)")
    panels[0].set_ylabel("probability")
    panels[-1].legend(title="digit", fontsize="x-small", ncols=2)
    return figure


if __name__ == "__main__":
    main()
