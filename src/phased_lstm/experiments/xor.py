"""Parity of bit streams, dense or as events: the XOR task of the ODE-LSTM and CfC papers, under its protocol."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..data.xor import PADDED, TEST_SEED, TEST_SIZE, TRAIN_SEED, TRAIN_SIZE, dense_streams, event_streams
from .base import Experiment, Schedule, Variant
from .models import SequenceModel
from .supervised import Batch, ShuffledEpochs, SupervisedTask, keras_rmsprop

_TEST_BATCH = 1000
_NOT_OURS = " by that name, but no Phased LSTM: one gate for all units, fed with elapsed time"
_EPOCH_STEPS = math.ceil(TRAIN_SIZE / 256)


class XorTask(SupervisedTask):
    """A run: one answer a stream, after its last entry.

    Args:
        settings: of a variant.
        seed: of weights and order; the streams are the protocol's.
    """

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None:
        torch.manual_seed(seed)
        model = SequenceModel(
            settings["cell"], 1 + settings["elapsed_feature"], settings["hidden_size"], 1,
            forget_bias=settings["forget_bias"], gate=settings.get("gate"),
        )  # fmt: skip
        if settings.get("take_turns"):
            _take_turns(model)
        super().__init__(model, keras_rmsprop(model, settings["lr"]), nn.functional.binary_cross_entropy_with_logits)
        self.settings = settings
        make = functools.partial(_streams, settings["encoding"], settings["elapsed_feature"], settings["padded"])
        self._train, self._test = make(settings["train_size"], TRAIN_SEED), make(settings["test_size"], TEST_SEED)
        self._epochs = ShuffledEpochs(settings["train_size"], settings["batch_size"], seed)

    def batch(self, step: int) -> Batch:
        return self._train.rows(self._epochs.indices(step))

    def accuracy(self, outputs: Tensor, targets: Tensor) -> float:
        return ((outputs > 0) == (targets > 0)).double().mean().item()

    def test(self) -> dict[str, float]:
        return self.evaluate(self._test.split(_TEST_BATCH))

    def finish(self) -> dict[str, Any]:
        return self.test() | self.model.openness(self._test.times, self._test.lengths)


class XorExperiment(Experiment):
    """Both encodings, with an LSTM that gets elapsed time as an input, and Phased LSTMs that get time at the gate."""

    name = "xor"
    title = (
        "Parity of bit streams of 2 to 31 bits, dense and as events: the XOR task of the ODE-LSTM and CfC papers, 64 "
        "units, RMSprop at 0.0005, batches of 256, 200 epochs; accuracy after a stream's last entry (--quick: up to 7 "
        "bits, RMSprop at 0.005)"
    )
    schedule = Schedule(
        seeds=(0, 1, 2, 3, 4), test_every=2 * _EPOCH_STEPS, epoch_steps=_EPOCH_STEPS, checkpoint_every=_EPOCH_STEPS
    )
    quick_schedule = Schedule(seeds=(0,), test_every=100, epoch_steps=40, checkpoint_every=500)
    columns = ("step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
    published: Mapping[str, str] = {
        "dense-LSTM": "100 % (augmented LSTM; CfC-mmRNN 100 %)",
        "event-LSTM": "89.71 % (augmented LSTM; CfC-mmRNN 99.72 %)",
    } | {
        f"{encoding}-PhasedLSTM-{row}": f"{accuracy}{_NOT_OURS}"
        for encoding, accuracy in (("dense", "50.99 ± 0.76 %"), ("event", "80.29 ± 0.99 %"))
        for row in ("0.05", "0.5", "1", "turns")
    }

    def variants(self, quick: bool) -> list[Variant]:
        common: dict[str, Any] = {
            "padded": PADDED, "train_size": TRAIN_SIZE, "test_size": TEST_SIZE, "batch_size": 256, "hidden_size": 64,
            "lr": 5e-4, "forget_bias": 1.0, "elapsed_feature": False,
        }  # fmt: skip
        steps = 200 * _EPOCH_STEPS
        if quick:
            common |= {"padded": 8, "train_size": 10_000, "test_size": 1000, "lr": 5e-3}
            steps = 400
        # Streams are so short that the usual periods would leave most units shut from end to end.
        periods = {"period_init_min": 1.0, "period_init_max": 8.0}
        rows: dict[str, dict[str, Any]] = {
            "LSTM": {"cell": "LSTM", "elapsed_feature": True},
            "PhasedLSTM-0.05": {"cell": "PhasedLSTM", "gate": periods | {"ratio_on": 0.05}},
            "PhasedLSTM-0.5": {"cell": "PhasedLSTM", "gate": periods | {"ratio_on": 0.5}},
            "PhasedLSTM-1": {"cell": "PhasedLSTM", "gate": periods | {"ratio_on": 1.0}},
            "PhasedLSTM-turns": {"cell": "PhasedLSTM", "take_turns": True, "gate": {"ratio_on": 0.5}},
        }
        return [
            Variant(f"{encoding}-{name}", common | {"encoding": encoding} | options, steps)
            for encoding in ("dense", "event")
            for name, options in rows.items()
            if not quick or name in ("LSTM", "PhasedLSTM-0.5", "PhasedLSTM-turns")
        ]

    def task(self, variant: Variant, seed: int) -> XorTask:
        return XorTask(variant.settings, seed)


@functools.cache
def _streams(encoding: str, elapsed_feature: bool, padded: int, count: int, seed: int) -> Batch:
    streams = (event_streams if encoding == "event" else dense_streams)(count, seed, padded)
    features = [streams.bits, streams.elapsed()] if elapsed_feature else [streams.bits]
    return Batch(torch.stack(features, dim=-1), streams.times, streams.lengths, streams.parity.float().unsqueeze(1))


def _take_turns(model: SequenceModel) -> None:
    """Open one half of the units at even, the other at odd times, fully: with ratio 0.5, a period of 2."""
    for gate in model.rnn.gates:
        gate.assign_(period=2.0, shift=torch.arange(gate.hidden_size) % 2 - 0.5)


EXPERIMENTS = [XorExperiment()]
