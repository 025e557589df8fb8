"""What Phased LSTM's parts are worth on the paper's asynchronous frequency task, and what they cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import RunError
from .ablation import DEFAULT, plot_factors
from .base import Experiment, Schedule, Variant
from .frequency import COMMON, EPOCH_STEPS, PHASED, QUICK, FrequencyTask

_TIMED_STEPS = 30
_EPOCHS = 20


def _gate(**changes: Any) -> dict[str, Any]:
    return PHASED | {"gate": PHASED["gate"] | changes}


def _fixed(ratio: float, **changes: Any) -> dict[str, Any]:
    return _gate(ratio_on=ratio, trainable_ratio_on=False, **changes)


# It has no peepholes, nor an argument for them.
_GRU = PHASED | {
    "cell": "PhasedGRU",
    "gate": {name: value for name, value in PHASED["gate"].items() if name != "peephole"},
}

# By factor: rows that differ from the default in it alone.
FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "leak": {"leak-0.001": _gate(leak=0.001), "leak-0.001-ratio-0.05": _fixed(0.05, leak=0.001)},
    "fixed ratio": {f"ratio-{ratio:g}": _fixed(ratio) for ratio in (0.02, 0.05, 0.1, 0.2)},
    "penalty on openness": {
        f"penalty-{weight:g}": PHASED | {"openness_penalty": weight} for weight in (0.1, 0.3, 1.0)
    },
    # A square gate has no gradient in the ratio, so that it keeps what it begins with.
    "oscillation": {
        "square-0.05": _fixed(0.05, oscillation="square"), "square-0.2": _fixed(0.2, oscillation="square"),
        "cosine": _gate(oscillation="cosine"),
    },
    "cell": {"no-peepholes": _gate(peephole=False), "PhasedGRU": _GRU},
}  # fmt: skip
_QUICK_ROWS = (DEFAULT, "leak-0.001", "ratio-0.05", "PhasedGRU")


class AblationTask(FrequencyTask):
    """A run that also tells what a training step costs once the ratio is learned."""

    def to(self, device: torch.device) -> None:
        """Refuse any device but the CPU.

        Raises:
            RunError: another device.
        """
        if device.type != "cpu":
            raise RunError(f"this experiment measures time on the CPU: leave --device {device} out")

    def finish(self) -> dict[str, Any]:
        return {**super().finish(), "cpu_seconds_per_step": self._cpu_seconds()}

    def _cpu_seconds(self) -> float:
        """Median CPU time of forward and backward on further batches, which other programs do not disturb much."""
        self.model.train()
        measured = []
        for step in range(self._done, self._done + _TIMED_STEPS):
            batch = self.batch(step)
            started = time.process_time()
            self.optimizer.zero_grad()
            self.loss(self.model(batch.values, batch.times, batch.lengths), batch.targets).backward()
            measured.append(time.process_time() - started)
        self.optimizer.zero_grad()
        return statistics.median(measured)


class FrequencyAblation(Experiment):
    """One factor at a time around the default of the frequency task."""

    name = "ablation-frequency"
    title = (
        f"Asynchronous task 1 for {_EPOCHS} epochs, one change at a time from the default: leak 0, ratio learned from "
        "0.05, triangle (--quick: 64 units, 7 epochs)"
    )
    schedule = Schedule((1, 2, 3), test_every=EPOCH_STEPS, epoch_steps=EPOCH_STEPS, checkpoint_every=EPOCH_STEPS)
    quick_schedule = Schedule((1,), test_every=EPOCH_STEPS, epoch_steps=EPOCH_STEPS)

    def variants(self, quick: bool) -> list[Variant]:
        common = COMMON | {"sampling": "async"}
        rows = {DEFAULT: PHASED} | {name: row for rows in FACTORS.values() for name, row in rows.items()}
        if quick:
            return [Variant(name, common | rows[name] | QUICK, 7 * EPOCH_STEPS) for name in _QUICK_ROWS]
        return [Variant(name, common | row, _EPOCHS * EPOCH_STEPS) for name, row in rows.items()]

    def task(self, variant: Variant, seed: int) -> AblationTask:
        return AblationTask(variant.settings, seed)

    def figures(self, summary: Mapping[str, Any], out: Path) -> list[Path]:
        """Draw accuracy against the CPU time of a step.

        Wall time, in `summary["timing"]`, is of untrained models, whose learned ratios have not grown yet.
        """
        tradeoff = plot_factors(
            summary, FACTORS, lambda row: 1000.0 * row["mean"]["cpu_seconds_per_step"], out / "tradeoff.png",
            "CPU time of a training step (ms)",
        )  # fmt: skip
        return [*super().figures(summary, out), tradeoff]


EXPERIMENTS = [FrequencyAblation()]
