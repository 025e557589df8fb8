"""Next-state prediction of Walker2d under irregular sampling, under the ODE-LSTM paper's protocol."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from ..data.walker2d import FEATURES, Split, Windows, load_rollouts, oscillator_rollouts, split_windows
from .base import Experiment, Metric, Schedule, Variant
from .models import SequenceModel
from .supervised import Batch, ShuffledEpochs, SupervisedTask, keras_rmsprop

_TEST_BATCH = 500
# The protocol's windows for training are 9684.
_EPOCH_STEPS = math.ceil(9684 / 128)


class Walker2dTask(SupervisedTask):
    """A run that ends with the weights of its lowest validation loss, as the protocol does.

    Args:
        settings: of a variant.
        seed: of weights and order; data and windows are the protocol's.

    Raises:
        DataError: data are missing.
    """

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None:
        torch.manual_seed(seed)
        model = SequenceModel(
            settings["cell"], FEATURES + settings["elapsed_feature"], settings["hidden_size"], FEATURES,
            per_step=True, num_layers=settings["num_layers"], forget_bias=settings["forget_bias"],
            gate=settings.get("gate"),
        )  # fmt: skip
        if settings.get("always_open"):
            _keep_open(model, settings["always_open"])
        # Kept in the model, so that a checkpoint has them.
        model.register_buffer("best_weights", parameters_to_vector(model.parameters()).detach().clone())
        model.register_buffer("best_validation_loss", torch.tensor(torch.inf, dtype=torch.float64))
        super().__init__(model, keras_rmsprop(model, settings["lr"]), nn.functional.mse_loss)
        split = _split(settings["data"])
        self._train, self._validation, self._test = (_batch(windows, settings["elapsed_feature"]) for windows in split)
        self._epochs = ShuffledEpochs(len(self._train.values), settings["batch_size"], seed)

    def batch(self, step: int) -> Batch:
        return self._train.rows(self._epochs.indices(step))

    def test(self) -> dict[str, float]:
        figures = self.evaluate(self._validation.split(_TEST_BATCH), "validation")
        best = self.model.get_buffer("best_validation_loss")
        if figures["validation_loss"] < best:
            best.fill_(figures["validation_loss"])
            self.model.get_buffer("best_weights").copy_(parameters_to_vector(self.model.parameters()).detach())
        return figures | self.evaluate(self._test.split(_TEST_BATCH))

    def finish(self) -> dict[str, Any]:
        parameters = list(self.model.parameters())
        parts = self.model.get_buffer("best_weights").split([parameter.numel() for parameter in parameters])
        with torch.no_grad():
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.copy_(part.view_as(parameter))
        figures: dict[str, Any] = self.evaluate(self._test.split(_TEST_BATCH))
        figures["validation_loss"] = float(self.model.get_buffer("best_validation_loss"))
        last = (self._test.values[:, :, :FEATURES] - self._test.targets).square().mean()
        return figures | {"persistence_loss": float(last)} | self.model.openness(self._test.times)


class Walker2dExperiment(Experiment):
    """The plain model of the protocol with Phased LSTMs and LSTMs, among them one of ours with two kinds of units."""

    name = "walker2d"
    title = (
        "Walker2d, next state after windows of 64 observations of which a tenth is dropped: the ODE-LSTM paper's "
        "protocol, 64 units, RMSprop at 0.005, batches of 128, 200 epochs, weights of the lowest validation loss "
        "(--quick: no Walker2d but a synthetic stand-in, sums of sines in 17 channels, and 32 units)"
    )
    metric = Metric("test_loss", "test mean squared error", higher_is_better=False, percent=False)
    schedule = Schedule(
        seeds=(0, 1, 2, 3, 4), test_every=_EPOCH_STEPS, epoch_steps=_EPOCH_STEPS, checkpoint_every=_EPOCH_STEPS
    )
    quick_schedule = Schedule(seeds=(0,), test_every=50, epoch_steps=50, checkpoint_every=500)
    columns = ("step", "train_loss", "validation_loss", "test_loss", "seconds")
    published: Mapping[str, str] = {
        "LSTM-delta": "1.065 (augmented LSTM; ODE-LSTM 0.883, CfC-mmRNN 0.617)",
        **dict.fromkeys(
            ("PhasedLSTM-0.05", "PhasedLSTM-0.5", "PhasedLSTM-1"),
            "1.063 ± 0.010 by that name, but no Phased LSTM: one gate for all units, fed with elapsed time",
        ),
    }

    def variants(self, quick: bool) -> list[Variant]:
        common: dict[str, Any] = {
            "data": "walker2d", "hidden_size": 64, "num_layers": 1, "batch_size": 128, "lr": 5e-3, "forget_bias": 1.0,
            "elapsed_feature": False,
        }  # fmt: skip
        steps = 200 * _EPOCH_STEPS
        if quick:
            common |= {"data": "synthetic stand-in: sines", "hidden_size": 32, "batch_size": 32}
            steps = 200
        # From twice the usual interval up to a window's length: the protocol knows no periods.
        periods = {"period_init_min": 2.0, "period_init_max": 64.0}
        rows: dict[str, dict[str, Any]] = {
            f"PhasedLSTM-{ratio:g}": {"cell": "PhasedLSTM", "gate": periods | {"ratio_on": ratio}}
            for ratio in (0.05, 0.5, 1.0)
        }
        # Every state is read out, so some units ought to see every observation.
        rows["PhasedLSTM-mixed"] = {
            "cell": "PhasedLSTM", "always_open": 0.5, "gate": periods | {"ratio_on": 0.05},
        }  # fmt: skip
        rows["LSTM-delta"] = {"cell": "LSTM", "elapsed_feature": True}
        rows["LSTM"] = {"cell": "LSTM"}
        return [Variant(name, common | options, steps) for name, options in rows.items()]

    def task(self, variant: Variant, seed: int) -> Walker2dTask:
        return Walker2dTask(variant.settings, seed)

    def figures(self, summary: Mapping[str, Any], out: Path) -> list[Path]:
        from ..plotting import plot_summary

        return [plot_summary(summary, out / "curves.png", log=True)]


@functools.cache
def _split(data: str) -> Split:
    return split_windows(load_rollouts() if data == "walker2d" else oscillator_rollouts(40, 160))


def _batch(windows: Windows, elapsed_feature: bool) -> Batch:
    # Gates get time since the window's first observation but for a constant, in steps of the simulator.
    values = windows.states
    if elapsed_feature:
        values = torch.cat([values, windows.elapsed.unsqueeze(-1).float()], dim=-1)
    return Batch(values, windows.elapsed.cumsum(1), None, windows.next_states)


def _keep_open(model: SequenceModel, share: float) -> None:
    """Let a share of the units start with a gate that is fully open at every whole number."""
    for gate in model.rnn.gates:
        chosen = torch.arange(gate.hidden_size) < share * gate.hidden_size
        period, shift, ratio_on = (value.detach() for value in gate.values())
        gate.assign_(
            period=torch.where(chosen, 1.0, period),
            shift=torch.where(chosen, -0.5, shift),
            ratio_on=torch.where(chosen, 1.0, ratio_on),
        )


EXPERIMENTS = [Walker2dExperiment()]
