"""MNIST as 784 one-pixel steps, with seeds: the historic setting, our recommended one, and 128 units."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.mnist import Digits, load
from .ablation import DEFAULT, plot_factors
from .base import Experiment, Metric, Schedule, Variant
from .config import MnistConfig
from .mnist import MnistTask

# What we advise: a fixed ratio, no leak, periods from three rows of pixels to the whole image, a fast, clipped start.
_ADVICE: dict[str, Any] = {
    "forget_bias": 1.0, "peephole": False, "leak": 0.0, "trainable_ratio_on": False,
    "period_init_min": 80.0, "period_init_max": 784.0,
    "lr": 2e-2, "lr_warmup": 100, "lr_cosine": True, "clip_grad_norm": 1.0,
}  # fmt: skip
# What brings 32 units further: pixels of standard deviation near 1 in place of 0.31, peepholes and some weight decay.
RECOMMENDED = _ADVICE | {"pixel_scale": 3.0, "peephole": True, "weight_decay": 0.03}
_DEFAULTS = MnistConfig()
HISTORIC: dict[str, Any] = {"initial_state_std": 0.1}
# 128 units. An LSTM's step takes many times as long on a CPU: "same-time" is as many steps as fit in the same time.
_LARGE_STEPS, _LARGE_LSTM_STEPS = 4000, 120
_LONG_LSTM: dict[str, Any] = {
    "model": "BasicLSTMCell", "hidden_size": 128, "steps": _LARGE_STEPS,
    "lr_warmup": 100, "lr_cosine": True, "clip_grad_norm": 1.0,
}  # fmt: skip
_LARGE: dict[str, dict[str, Any]] = {
    "PhasedLSTMCell": _ADVICE
    | {"hidden_size": 128, "steps": _LARGE_STEPS, "dropout": 0.3, "weight_decay": 0.03},
    # As many steps, at a common rate and at a high one.
    "BasicLSTMCell": _LONG_LSTM | {"lr": 1e-3},
    "BasicLSTMCell-fast": _LONG_LSTM | {"lr": 1e-2},
    "BasicLSTMCell-same-time": {
        "model": "BasicLSTMCell", "hidden_size": 128, "steps": _LARGE_LSTM_STEPS,
        "lr": 1e-3, "clip_grad_norm": 1.0,
    },
    "BasicLSTMCell-same-time-fast": {
        "model": "BasicLSTMCell", "hidden_size": 128, "steps": _LARGE_LSTM_STEPS,
        "lr": 1e-2, "lr_warmup": 30, "lr_cosine": True, "clip_grad_norm": 1.0,
    },
}  # fmt: skip
_QUICK: dict[str, Any] = {"data": "digits", "batch_size": 64, "hidden_size": 32, "test_size": 360}


class MnistRowTask(MnistTask):
    """A run of `phased-lstm mnist` as a row of an experiment."""

    def finish(self) -> dict[str, Any]:
        figures: dict[str, Any] = dict(self.evaluate())
        if "openness" in figures:
            figures["updates_per_unit"] = figures["openness"] * len(self.model.times)
        return figures


class MnistExperiment(Experiment):
    """Rows that differ in the options of `phased-lstm mnist`.

    Args:
        name: of the experiment.
        title: what it shows.
        rows: options of each variant, beyond `MnistConfig`'s defaults.
        quick_steps: training steps with --quick, on scikit-learn's digits.
        schedule: seeds and intervals.
        metric: what is compared.
        published: published figures by variant.
        quick: further options with --quick.
        quick_rows: names of the variants with --quick; None for all.
    """

    columns = (
        "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "openness", "learning_rate", "seconds",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        title: str,
        rows: Mapping[str, dict[str, Any]],
        *,
        quick_steps: int,
        schedule: Schedule,
        metric: Metric,
        published: Mapping[str, str],
        quick: Mapping[str, Any] = types.MappingProxyType({}),
        quick_rows: tuple[str, ...] | None = None,
    ) -> None:
        self.name, self.title, self.schedule, self.metric, self.published = name, title, schedule, metric, published
        self._rows, self._quick_rows = rows, rows.keys() if quick_rows is None else quick_rows
        self._quick = _QUICK | {"steps": quick_steps, **quick}
        self.quick_schedule = Schedule(seeds=(0,), test_every=quick_steps // 4, epoch_steps=22, checkpoint_every=10)

    def variants(self, quick: bool) -> list[Variant]:
        made = []
        for name, options in self._rows.items():
            if quick and name not in self._quick_rows:
                continue
            config = MnistConfig(**options)
            if quick:
                config = dataclasses.replace(config, **self._quick, lr_warmup=min(config.lr_warmup, 20))
            # Without defaults, so that an option added later does not part runs from their rows.
            settings = {key: value for key, value in config.to_json().items() if value != getattr(_DEFAULTS, key)}
            made.append(Variant(name, settings, config.steps, fixed_length=config.lr_cosine))
        return made

    def task(self, variant: Variant, seed: int) -> MnistRowTask:
        config = dataclasses.replace(MnistConfig(**variant.settings), seed=seed)
        return MnistRowTask(config, _digits(config.data))

    def figures(self, summary: Mapping[str, Any], out: Path) -> list[Path]:
        from ..plotting import plot_summary

        return [
            plot_summary(summary, out / "accuracy.png", "train_accuracy", "training accuracy"),
            plot_summary(summary, out / "cross_entropy.png", "train_loss", "training cross-entropy"),
        ]


# By factor: what differs from the recommended setting, in it alone.
_FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "leak": {"leak-0.001": {"leak": 0.001}},
    "fixed ratio": {f"ratio-{ratio:g}": {"ratio_on": ratio} for ratio in (0.02, 0.1, 0.2)},
    "learned ratio": {
        "learned": {"trainable_ratio_on": True},
        "penalty-0.1": {"trainable_ratio_on": True, "openness_penalty": 0.1},
        "penalty-1": {"trainable_ratio_on": True, "openness_penalty": 1.0},
    },
    "oscillation": {"square": {"oscillation": "square"}, "cosine": {"oscillation": "cosine"}},
    "cell": {
        "PhasedGRU": {"model": "PhasedGRUCell", "forget_bias": None, "peephole": False},
        "no-peepholes": {"peephole": False},
    },
}


class MnistAblation(MnistExperiment):
    """One factor at a time around the recommended setting."""

    def figures(self, summary: Mapping[str, Any], out: Path) -> list[Path]:
        timing = summary.get("timing", {}).get("rows", {})
        tradeoff = plot_factors(
            summary, _FACTORS,
            lambda row: 1000.0 * timing.get(row["variant"], row["mean"])["seconds_per_step"],
            out / "tradeoff.png", "time of a training step (ms)",
        )  # fmt: skip
        return [*super().figures(summary, out), tradeoff]


@functools.cache
def _digits(name: str) -> Digits:
    return load(name)


# An epoch of 60,000 images.
_BATCHES_OF_256 = 60000 // 256
EXPERIMENTS = [
    MnistExperiment(
        "mnist-historic",
        "MNIST, 784 steps, the historic setting: 32 units, leak 0.001, trainable ratio, Adam at 1e-3, batches of 256",
        {
            "PhasedLSTMCell": HISTORIC,
            "BasicLSTMCell": HISTORIC | {"model": "BasicLSTMCell"},
        },
        quick_steps=200,
        # The historic rate takes a thousand steps to show anything.
        quick={"lr": 1e-2, "clip_grad_norm": 1.0},
        schedule=Schedule(epoch_steps=_BATCHES_OF_256),
        metric=Metric("train_accuracy_last_100", "training accuracy, mean of the last 100 steps"),
        published={
            "PhasedLSTMCell": "about 90 % (README of tensorflow-phased-lstm); its code run again 86.6 %",
            "BasicLSTMCell": "10 to 45 %, unstable (the same README)",
        },
    ),
    MnistExperiment(
        "mnist-recommended",
        "MNIST, 784 steps, our recommended setting: 32 units, ratio fixed at 0.05, no leak",
        {"PhasedLSTMCell": RECOMMENDED},
        quick_steps=200,
        # Chosen on a validation part of the training images with seeds 0 to 11.
        schedule=Schedule(seeds=(12, 13, 14, 15, 16), epoch_steps=_BATCHES_OF_256),
        metric=Metric(),
        published={},
    ),
    MnistExperiment(
        "mnist-large",
        "MNIST, 784 steps, 128 units, and LSTMs for as many steps and for the same time",
        _LARGE,
        quick_steps=150,
        quick_rows=("PhasedLSTMCell", "BasicLSTMCell-same-time-fast"),
        schedule=Schedule(epoch_steps=_BATCHES_OF_256),
        metric=Metric(),
        published={},
    ),
    MnistExperiment(
        "psmnist",
        "MNIST with permuted pixels, 784 steps, 128 units, and LSTMs for as many steps and for the same time",
        {name: options | {"permuted": True} for name, options in _LARGE.items()},
        quick_steps=150,
        quick_rows=("PhasedLSTMCell", "BasicLSTMCell-same-time-fast"),
        schedule=Schedule(epoch_steps=_BATCHES_OF_256),
        metric=Metric(),
        published={
            "PhasedLSTMCell": "89.61 %, 200 units, best checkpoint of a run that went NaN (LMU, NeurIPS 2019)",
        },
    ),
    MnistAblation(
        "ablation-mnist",
        "MNIST, 784 steps, one change at a time from the recommended setting: leak 0, ratio fixed at 0.05, triangle",
        {DEFAULT: RECOMMENDED}
        | {name: RECOMMENDED | change for rows in _FACTORS.values() for name, change in rows.items()},
        quick_steps=100,
        quick_rows=(DEFAULT, "leak-0.001", "ratio-0.2", "PhasedGRU"),
        schedule=Schedule(seeds=(12, 13, 14), epoch_steps=_BATCHES_OF_256),
        metric=Metric(),
        published={},
    ),
]
