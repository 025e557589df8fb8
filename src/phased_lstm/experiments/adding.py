"""The adding task of the Phased LSTM paper (its figure 5): the longer the periods, the faster it is learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .base import Experiment, Metric, Schedule, Variant
from .models import SequenceModel
from .supervised import Batch, SupervisedTask, generator_of

_TEST_BATCH = 250


def adding_batch(count: int, shortest: int, longest: int, generator: torch.Generator) -> Batch:
    """Draw sequences of numbers, two of them marked, whose sum is the target.

    Lengths are uniform over `shortest` to `longest`, values uniform over [-0.5, 0.5). One mark is in the first
    tenth of a sequence, the other in its last half.

    Args:
        count: number of sequences N.
        shortest: fewest steps.
        longest: most steps L.
        generator: source of randomness.

    Returns:
        values (N, L, 2), number and mark, zero after the end; times 0, 1, ... (L,); targets (N, 1).
    """
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator)
    numbers = torch.rand((count, longest), generator=generator) - 0.5
    places = torch.rand((2, count), generator=generator, dtype=torch.float64)
    first = (places[0] * (lengths // 10)).long()
    half = (lengths + 1) // 2
    second = half + (places[1] * (lengths - half)).long()
    steps = torch.arange(longest)
    marks = (steps == first.unsqueeze(1)) | (steps == second.unsqueeze(1))
    values = torch.stack([numbers, marks.float()], dim=-1)
    values[steps >= lengths.unsqueeze(1)] = 0.0
    return Batch(values, steps, lengths, (numbers * marks).sum(1, keepdim=True))


class AddingTask(SupervisedTask):
    """A run: fresh batches, and test sequences of the seed's own.

    Args:
        settings: of a variant.
        seed: of weights and data.
    """

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None:
        torch.manual_seed(seed)
        model = SequenceModel(
            settings["cell"], 2, settings["hidden_size"], 1,
            forget_bias=settings["forget_bias"], gate=settings.get("gate"),
        )  # fmt: skip
        super().__init__(model, torch.optim.Adam(model.parameters(), lr=settings["lr"]), nn.functional.mse_loss)
        self.settings, self.seed = settings, seed
        self._test = self._draw(settings["test_size"], -1)

    def batch(self, step: int) -> Batch:
        return self._draw(self.settings["batch_size"], step)

    def test(self) -> dict[str, float]:
        return self.evaluate(self._test.split(_TEST_BATCH))

    def finish(self) -> dict[str, Any]:
        times = self._test.times.expand(self._test.values.shape[:2])
        return self.test() | self.model.openness(times, self._test.lengths)

    def _draw(self, count: int, index: int) -> Batch:
        settings = self.settings
        return adding_batch(count, settings["shortest"], settings["longest"], generator_of(self.seed, index))


class AddingExperiment(Experiment):
    """Phased LSTMs that differ in their periods alone, and LSTMs without a gate."""

    name = "adding"
    title = (
        "Adding task, 490 to 510 steps, 110 units, after the paper's figure 5; batches of 32 fresh sequences, Adam at "
        "0.01 and 4000 steps are our choice (--quick: 190 to 210 steps, 32 units)"
    )
    metric = Metric("test_loss", "test mean squared error", higher_is_better=False, percent=False)
    # 4000 steps keep a run of the LSTM, which costs twenty of a Phased LSTM, to five minutes.
    schedule = Schedule(seeds=(0, 1, 2), test_every=100, epoch_steps=100, checkpoint_every=500)
    quick_schedule = Schedule(seeds=(0,), test_every=50, epoch_steps=100, checkpoint_every=500)
    columns = ("step", "train_loss", "test_loss", "seconds")
    published: Mapping[str, str] = dict.fromkeys(
        [f"PhasedLSTM-{low}-{low + 2}" for low in (0, 2, 4, 6)], "curves only: longer periods learn faster"
    )

    def variants(self, quick: bool) -> list[Variant]:
        common: dict[str, Any] = {
            "hidden_size": 110, "shortest": 490, "longest": 510, "batch_size": 32, "lr": 1e-2, "test_size": 1000,
        }  # fmt: skip
        if quick:
            common |= {"hidden_size": 32, "shortest": 190, "longest": 210, "test_size": 250}
        phased = {
            f"PhasedLSTM-{low}-{low + 2}": {
                "cell": "PhasedLSTM", "forget_bias": 0.0,
                "gate": {
                    "period_init_min": round(math.exp(low), 4), "period_init_max": round(math.exp(low + 2), 4),
                },
            }
            for low in ((0, 2, 4) if quick else (0, 2, 4, 6))
        }  # fmt: skip
        baselines: dict[str, dict[str, Any]] = {
            "LSTM": {"cell": "LSTM", "forget_bias": 0.0},
            "LSTM-forget1": {"cell": "LSTM", "forget_bias": 1.0},
            # The rate that suits the gated cells might be the LSTM's trouble.
            "LSTM-forget1-slow": {"cell": "LSTM", "forget_bias": 1.0, "lr": 1e-3},
        }
        if quick:
            baselines = {"LSTM": baselines["LSTM"]}
        steps = 800 if quick else 4000
        return [Variant(name, common | options, steps) for name, options in (phased | baselines).items()]

    def task(self, variant: Variant, seed: int) -> AddingTask:
        return AddingTask(variant.settings, seed)

    def figures(self, summary: Mapping[str, Any], out: Path) -> list[Path]:
        from ..plotting import plot_summary

        return [plot_summary(summary, out / "curves.png", log=True)]


EXPERIMENTS = [AddingExperiment()]
