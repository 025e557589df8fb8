"""MNIST as events: the moments at which a binary image, read row by row, changes.

The protocol is that of Lechner and Hasani's ODE-LSTM (irregularly sampled data, mlech26l/ode-lstms): pixels above 128
are 1; the first pixel and each that differs from the one before is an event of its value and the pixels passed since
the event before; at most 256 events; 64 units, a linear layer on the last state, RMSprop at 5e-4 (Keras's: decay 0.9,
epsilon 1e-7), batches of 128, 200 epochs, the test set once at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.mnist import load
from .base import Experiment, Schedule, Variant
from .models import SequenceModel
from .supervised import Batch, ShuffledEpochs, SupervisedTask, keras_rmsprop

THRESHOLD = 128
LONGEST = 256

_TEST_BATCH = 500
# Of 60,000 images by 128, and of 1,437 by 32; the last is smaller.
_EPOCH = 469
_QUICK_EPOCH = 45
_QUICK_EPOCHS = 10

# The protocol has no periods for absolute times; ours reach from a row of the image to all of it.
_PERIODS = {"period_init_min": 28.0, "period_init_max": 784.0}
_ROWS: dict[str, dict[str, Any]] = {
    **{
        f"PhasedLSTM-{ratio}": {"cell": "PhasedLSTM", "options": {"gate": {"ratio_on": ratio, **_PERIODS}}}
        for ratio in (0.05, 0.2, 0.5)
    },
    "LSTM-delta": {"cell": "LSTM", "options": {"time_feature": "delta", "time_scale": float(LONGEST)}},
    "LSTM": {"cell": "LSTM", "options": {}},
}


def to_changes(images: Tensor, labels: Tensor) -> Batch:
    """Turn images into the events at which they change.

    Args:
        images: (N, P) uint8, row by row.
        labels: (N,) int64.

    Returns:
        values (N, L, 1), 0 or 1; times (N, L) int32, the pixel of each event, counted from 1; lengths, at least 1;
        and the labels. Padding is 0.
    """
    bits = images > THRESHOLD
    changed = torch.ones_like(bits)
    changed[:, 1:] = bits[:, 1:] != bits[:, :-1]
    counts = changed.sum(1)
    rows, pixels = changed.nonzero(as_tuple=True)
    places = torch.arange(len(rows)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    kept = places < LONGEST
    rows, pixels, places = rows[kept], pixels[kept], places[kept]
    lengths = counts.clamp(max=LONGEST)
    shape = (len(images), int(lengths.max()))
    values, times = torch.zeros((*shape, 1)), torch.zeros(shape, dtype=torch.int32)
    values[rows, places, 0] = bits[rows, pixels].float()
    times[rows, places] = (pixels + 1).int()
    return Batch(values, times, lengths, labels)


class EventMnistTask(SupervisedTask):
    """A run on the events of digits.

    Args:
        settings: of the variant.
        seed: of weights and order.
    """

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None:
        torch.manual_seed(seed)
        self._train, self._test = _events(settings["data"])
        model = SequenceModel(settings["cell"], 1, settings["hidden_size"], 10, **settings["options"])
        super().__init__(model, keras_rmsprop(model, settings["lr"]), nn.functional.cross_entropy)
        self._epochs = ShuffledEpochs(len(self._train.targets), settings["batch_size"], seed)

    def batch(self, step: int) -> Batch:
        return self._train.rows(self._epochs.indices(step))

    def accuracy(self, outputs: Tensor, targets: Tensor) -> float:
        return (outputs.argmax(1) == targets).double().mean().item()

    def test(self) -> dict[str, float]:
        return self.evaluate(self._test.split(_TEST_BATCH))

    def finish(self) -> dict[str, Any]:
        _, times, lengths, _ = self._test
        assert lengths is not None
        return self.test() | self.model.openness(times, lengths) | {"mean_events": lengths.double().mean().item()}


@functools.cache
def _events(data: str) -> tuple[Batch, Batch]:
    digits = load(data)
    return to_changes(digits.train_images, digits.train_labels), to_changes(digits.test_images, digits.test_labels)


class EventMnist(Experiment):
    """Rows that differ in the recurrent layer and in its open ratio."""

    name = "event-mnist"
    title = "MNIST as events, 64 units, protocol of the ODE-LSTM paper (its ODE-LSTM: 95.73 %)"
    schedule = Schedule(test_every=10 * _EPOCH, epoch_steps=_EPOCH, checkpoint_every=_EPOCH)
    quick_schedule = Schedule(seeds=(0,), test_every=2 * _QUICK_EPOCH, epoch_steps=_QUICK_EPOCH)
    published: Mapping[str, str] = {
        "PhasedLSTM-0.05": "95.79 %, with a convolution before it (NAC preprint, 2025)",
    }

    def variants(self, quick: bool) -> list[Variant]:
        protocol = {"data": "mnist", "batch_size": 128, "hidden_size": 64, "lr": 5e-4}
        if quick:
            protocol |= {"data": "digits", "batch_size": 32, "lr": 5e-3}
        steps = _QUICK_EPOCHS * _QUICK_EPOCH if quick else 200 * _EPOCH
        return [Variant(name, protocol | row, steps) for name, row in _ROWS.items()]

    def task(self, variant: Variant, seed: int) -> EventMnistTask:
        return EventMnistTask(variant.settings, seed)

    def figures(self, summary: Mapping[str, Any], out: Path) -> list[Path]:
        from ..plotting import plot_summary, plot_tradeoff

        points = {
            row["variant"]: [
                (
                    "",
                    row["mean"].get("updates_per_unit", row["mean"]["mean_events"]),
                    row["mean"]["test_accuracy"],
                    row["sd"].get("test_accuracy", 0.0),
                )
            ]
            for row in summary["rows"]
        }
        picture = plot_tradeoff(
            points, out / "updates.png", x="updates per unit and image", y="test accuracy", title=summary["title"]
        )
        return [plot_summary(summary, out / "curves.png"), picture]


EXPERIMENTS = [EventMnist()]
