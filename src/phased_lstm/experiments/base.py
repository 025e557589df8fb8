"""What an experiment is: variants that differ in one thing, run with several seeds under one protocol."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ..training.loop import Task


@dataclass(frozen=True)
class Variant:
    """One row of an experiment's table.

    Attributes:
        name: of the row, of its folder, and on the command line.
        settings: everything that decides a run's numbers, as JSON values.
        steps: training steps that the protocol asks for.
        fixed_length: whether `steps` shapes the learning rate, so that a run cannot go on beyond it.
    """

    name: str
    settings: Mapping[str, Any]
    steps: int
    fixed_length: bool = False


class ExperimentTask(Task, Protocol):
    """A training task that also gives the figures of its table row."""

    def to(self, device: torch.device) -> None:
        """Train and evaluate there; before the first step."""

    def finish(self) -> dict[str, Any]:
        """Evaluate after the last step.

        Returns:
            The experiment's metric and what else its table shows. A phased model gives "openness", the mean
            share of steps at which a unit is open, and "updates_per_unit", in one test sequence.
        """


@dataclass(frozen=True)
class Metric:
    """The figure that an experiment compares.

    Attributes:
        key: in the results of a run and, tested every epoch, in its log.
        label: on axes and in tables.
        higher_is_better: its direction.
        percent: whether to show a share as percent.
    """

    key: str = "test_accuracy"
    label: str = "test accuracy"
    higher_is_better: bool = True
    percent: bool = True

    def show(self, value: float) -> str:
        """Format a value with as many digits as a table needs."""
        return f"{100.0 * value:.2f} %" if self.percent else f"{value:.4g}"


@dataclass(frozen=True)
class Schedule:
    """How often and how long runs are trained and tested.

    Attributes:
        seeds: those of a full run.
        test_every: steps between tests.
        epoch_steps: steps in an epoch, for seconds per epoch.
        checkpoint_every: steps between checkpoints.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    test_every: int = 100
    epoch_steps: int = 100
    checkpoint_every: int = 100


class Experiment(abc.ABC):
    """Base of the experiments; each is one file and stands in `registry`.

    Attributes:
        name: on the command line and of its folder.
        title: one line on what it shows, and its source.
        metric: what it compares.
        schedule: seeds and intervals; `quick_schedule` those with --quick.
        published: published figures by variant, as text with their source.
        columns: of a run's log.
    """

    name: str
    title: str
    metric: Metric = Metric()
    schedule: Schedule = Schedule()
    quick_schedule: Schedule = Schedule(seeds=(0,), test_every=20, epoch_steps=20)
    published: Mapping[str, str] = {}
    columns: tuple[str, ...] = (
        "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds",
    )  # fmt: skip

    @abc.abstractmethod
    def variants(self, quick: bool) -> list[Variant]:
        """The rows, in the order of the table; `quick` ones are small and show the trend in seconds."""

    @abc.abstractmethod
    def task(self, variant: Variant, seed: int) -> ExperimentTask:
        """Build model, optimiser and data of a run; everything random follows from `seed`.

        Raises:
            DataError: data are missing or corrupt.
        """

    def figures(self, summary: Mapping[str, Any], out: Path) -> list[Path]:
        """Draw the pictures of a summary (see `runner.summarise`) into `out`; return the files."""
        from ..plotting import plot_summary

        return [plot_summary(summary, out / "curves.png")]
