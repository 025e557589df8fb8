"""N-MNIST, event by event: the event-camera experiment of the Phased LSTM paper (section 4.3 there).

An event is its pixel's learned embedding of 40 numbers and its polarity, at a time in microseconds; 110 units read the
events, and a linear layer their last state. Of each recording's events a share rho is kept, drawn anew each time:
0.75 in training. The paper does not tell batch size, epochs and learning rate; they are ours.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import moving_digits, nmnist
from ..data.nmnist import SIDE, EventDigits, Recordings
from .base import Experiment, Schedule, Variant
from .models import SequenceModel
from .supervised import Batch, ShuffledEpochs, SupervisedTask, generator_of

TRAIN_RHO = 0.75
TEST_RHOS = (0.75, 0.4, 1.0)

_EMBEDDING = 40
_TEST_BATCH = 100
# Of 1,000 recordings by 32, and of 1,437 made ones.
_EPOCH = 32
_QUICK_EPOCH = 45
_QUICK_STEPS = 135

_ROWS: dict[str, dict[str, Any]] = {
    # The paper's: one period of 100 ms for all units.
    "PhasedLSTM-100ms": {
        "cell": "PhasedLSTM", "options": {"gate": {"period_init_min": 100e3, "period_init_max": 100e3}},
    },
    # Ours: from a tenth of one of the three turns of the camera to all three.
    "PhasedLSTM": {
        "cell": "PhasedLSTM", "options": {"gate": {"period_init_min": 10e3, "period_init_max": 300e3}},
    },
    "BN-LSTM": {"cell": "LSTM", "options": {"time_feature": "raw", "batch_norm": True}},
    # In units of about the mean interval of events.
    "LSTM-delta": {"cell": "LSTM", "options": {"time_feature": "delta", "time_scale": 100.0}},
}  # fmt: skip
# Enough for all to fit the training recordings.
_EPOCHS = 20


class EventModel(SequenceModel):
    """A `SequenceModel` over events: the pixel's embedding and the polarity are a step's features.

    Args:
        cell: as of `SequenceModel`.
        hidden_size: as of `SequenceModel`.
        **options: others of `SequenceModel`.
    """

    def __init__(self, cell: str, hidden_size: int, **options: Any) -> None:
        super().__init__(cell, _EMBEDDING + 1, hidden_size, 10, **options)
        self.embedding = nn.Embedding(SIDE * SIDE, _EMBEDDING)

    def forward(self, values: Tensor, times: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Classify.

        Args:
            values: (N, L, 2) int64, pixel (34 y + x) and polarity of each event.
            times: (N, L) microseconds.
            lengths: (N,) events of each recording.

        Returns:
            (N, 10) logits.
        """
        pixels, polarity = values.unbind(-1)
        features = torch.cat([self.embedding(pixels), polarity.unsqueeze(-1).to(self.embedding.weight.dtype)], dim=-1)
        return super().forward(features, times, lengths)


def thinned(recordings: Recordings, chosen: Tensor, rho: float, generator: torch.Generator) -> Batch:
    """Gather recordings, keep each event with probability `rho`, and pad.

    Args:
        recordings: all.
        chosen: (N,) indices.
        rho: share of events to keep; 1 keeps all.
        generator: source of randomness.
    """
    starts, ends = recordings.offsets[chosen], recordings.offsets[chosen + 1]
    counts = ends - starts
    events = torch.arange(int(counts.sum())) + (starts - counts.cumsum(0) + counts).repeat_interleave(counts)
    rows = torch.arange(len(chosen)).repeat_interleave(counts)
    kept = torch.rand(len(events), generator=generator) < rho
    rows, events = rows[kept], events[kept]
    lengths = rows.bincount(minlength=len(chosen))
    places = torch.arange(len(rows)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    shape = (len(chosen), int(lengths.max()))
    values, times = torch.zeros((*shape, 2), dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    values[rows, places, 0] = recordings.y[events].long() * SIDE + recordings.x[events]
    values[rows, places, 1] = recordings.polarity[events].long()
    times[rows, places] = recordings.times[events]
    return Batch(values, times, lengths, recordings.labels[chosen])


class NMnistTask(SupervisedTask):
    """A run on recordings of digits.

    Args:
        settings: of the variant.
        seed: of weights, order, and the events that are kept.
    """

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None:
        torch.manual_seed(seed)
        self._data, self._seed = _recordings(settings["data"]), seed
        model = EventModel(settings["cell"], settings["hidden_size"], **settings["options"])
        super().__init__(model, torch.optim.Adam(model.parameters(), lr=settings["lr"]), nn.functional.cross_entropy)
        self._epochs = ShuffledEpochs(len(self._data.train.labels), settings["batch_size"], seed)

    def batch(self, step: int) -> Batch:
        return thinned(self._data.train, self._epochs.indices(step), TRAIN_RHO, generator_of(self._seed, step))

    def accuracy(self, outputs: Tensor, targets: Tensor) -> float:
        return (outputs.argmax(1) == targets).double().mean().item()

    def test(self) -> dict[str, float]:
        return self.evaluate(self._test_batches(TRAIN_RHO))

    def finish(self) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for rho in TEST_RHOS:
            figures |= self.evaluate(self._test_batches(rho), _prefix(rho))
        every = next(self._test_batches(TRAIN_RHO, len(self._data.test.labels)))
        assert every.lengths is not None
        return figures | {"mean_events": every.lengths.double().mean().item()} | self.model.openness(*every[1:3])

    def _test_batches(self, rho: float, size: int = _TEST_BATCH) -> Iterator[Batch]:
        generator = generator_of(self._seed, -1)
        for part in torch.arange(len(self._data.test.labels)).split(size):
            yield thinned(self._data.test, part, rho, generator)


@functools.cache
def _recordings(data: str) -> EventDigits:
    return moving_digits.load() if data == "moving-digits" else nmnist.load(data)


class NMnist(Experiment):
    """Rows that differ in the recurrent layer and in how it learns of time."""

    name = "nmnist"
    title = (
        "N-MNIST event by event, 1,000 recordings to train, 100 to test: too few to compare with published figures "
        "(--quick: digits moved before a computed camera)"
    )
    schedule = Schedule(test_every=_EPOCH, epoch_steps=_EPOCH, checkpoint_every=_EPOCH)
    quick_schedule = Schedule(seeds=(0,), test_every=_QUICK_EPOCH, epoch_steps=_QUICK_EPOCH)
    columns = ("step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")

    def variants(self, quick: bool) -> list[Variant]:
        protocol = {"data": "nmnist-small", "batch_size": 32, "hidden_size": 110, "lr": 5e-3}
        if quick:
            protocol |= {"data": "moving-digits"}
        return [
            Variant(name, protocol | row, _QUICK_STEPS if quick else _EPOCHS * _EPOCH) for name, row in _ROWS.items()
        ]

    def task(self, variant: Variant, seed: int) -> NMnistTask:
        return NMnistTask(variant.settings, seed)

    def figures(self, summary: Mapping[str, Any], out: Path) -> list[Path]:
        from ..plotting import plot_bars, plot_summary, plot_tradeoff

        rows, title = summary["rows"], summary["title"]
        updates = {row["variant"]: [("", _updates(row), *_figure(row, "test_accuracy"))] for row in rows}
        shares = {
            f"rho = {rho}": {row["variant"]: _figure(row, _prefix(rho) + "_accuracy") for row in rows}
            for rho in TEST_RHOS
        }
        times = {row["variant"]: _over_time(row, _seconds_per_step(summary, row)) for row in rows}
        accuracy = "test accuracy"
        return [
            plot_summary(summary, out / "curves.png"),
            plot_tradeoff(updates, out / "updates.png", x="updates per unit and recording", y=accuracy, title=title),
            plot_tradeoff(times, out / "time.png", x="seconds of training", y=accuracy, title=title),
            plot_bars(shares, out / "rho.png", label=accuracy, title=title),
        ]


def _prefix(rho: float) -> str:
    return "test" if rho == TRAIN_RHO else f"test_rho_{rho}"


def _figure(row: Mapping[str, Any], key: str) -> tuple[float, float]:
    return row["mean"][key], row["sd"].get(key, 0.0)


def _updates(row: Mapping[str, Any]) -> float:
    mean: Mapping[str, float] = row["mean"]
    return mean.get("updates_per_unit", mean["mean_events"])


def _seconds_per_step(summary: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    """What --time measured in turns, if anything; else the run's own median, which other work may have slowed."""
    measured = summary.get("timing", {}).get("rows", {}).get(row["variant"], row["mean"])
    seconds: float = measured["seconds_per_step"]
    return seconds


def _over_time(row: Mapping[str, Any], seconds_per_step: float) -> list[tuple[str, float, float, float]]:
    """Accuracy at each test against the seconds that training took until then; means over seeds."""
    from ..plotting import common_points

    return [
        ("", step * seconds_per_step, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for step, values in zip(*common_points(row["curves"], "test_accuracy"), strict=True)
    ]


EXPERIMENTS = [NMnist()]
