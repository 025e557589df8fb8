"""Figures and losses that are no numbers: what they come from is said, and they are not passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phased_lstm.data import EventBatch, EventDataset
from phased_lstm.errors import RunError
from phased_lstm.models import NetworkConfig, SequenceNetwork
from phased_lstm.training import metrics
from phased_lstm.training.diagnosis import cause_of_nan
from phased_lstm.training.fitting import FitConfig, SequenceTask, figures_of, loss_sum
from phased_lstm.training.loop import train
from phased_lstm.training.runs import RunFolder


def data(labels: torch.Tensor | None = None, static: torch.Tensor | None = None) -> EventDataset:
    values = torch.arange(24.0).reshape(12, 2).sin()
    labels = torch.arange(4.0).unsqueeze(1) if labels is None else labels
    return EventDataset(EventBatch.from_lengths(values, torch.arange(12) * 10, [3] * 4), labels, static)


def network(**options: Any) -> SequenceNetwork:
    config = NetworkConfig(("hr", "bp"), 1, target="regression", hidden_size=4, ratio_on=0.5, **options)
    given = data(static=torch.randn(4, 1) if config.static else None)
    return SequenceNetwork(config).fit_(given, targets=given.labels)


def with_value(value: float) -> EventDataset:
    batch = data()
    values = batch.events.values.clone()
    values[5, 1] = value
    return EventDataset(EventBatch(values, batch.events.times, batch.events.offsets), batch.labels)


def test_what_is_ordinary_is_no_cause() -> None:
    assert cause_of_nan(network(), data()) is None
    assert cause_of_nan(network(), with_value(torch.nan)) is None
    assert cause_of_nan(network(), data()[torch.zeros(0, dtype=torch.int64)]) is None
    unlabelled = EventDataset(data().events)
    assert cause_of_nan(network(), unlabelled) is None


@pytest.mark.parametrize("value", [torch.inf, -1e30])
def test_a_value_far_from_training_is_the_cause(value: float) -> None:
    cause = cause_of_nan(network(), with_value(value))
    assert cause is not None
    assert cause.startswith(f"channel bp has the value {value:g}, where training began with a mean of ")


def test_static_features_targets_times_and_weights_are_causes() -> None:
    net = network(static=("age",))
    assert "static feature age has the value 1e+20" in str(cause_of_nan(net, data(static=torch.full((4, 1), 1e20))))
    assert "target 0 has the value 1e+30" in str(cause_of_nan(network(), data(torch.full((4, 1), 1e30))))
    far = data()
    events = EventBatch(far.events.values, far.events.times.double() * 1e300, far.events.offsets)
    assert "times span 1.1e+302" in str(cause_of_nan(network(), EventDataset(events, far.labels)))
    assert "class weights are [inf, 1.0]" in str(cause_of_nan(network(), data(), torch.tensor([torch.inf, 1.0])))
    net = network()
    net.time_scale.fill_(torch.nan)
    assert "median interval of the training part's times is nan" in str(cause_of_nan(net, data()))
    net = network()
    net.scale.std[0] = torch.nan
    assert "deviation of channel hr is not finite" in str(cause_of_nan(net, data()))


def test_a_task_names_the_cause_of_its_step() -> None:
    task = SequenceTask(network(), with_value(1e30), None, FitConfig(epochs=1, batch_size=2))
    causes = [task.cause_of_nan(step) for step in range(2)]
    assert [cause is None for cause in sorted(causes, key=str)] == [True, False]


def test_a_run_names_the_cause(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", ("step", "epoch", "train_loss", "learning_rate", "seconds"))
    folder.start({}, overwrite=False)
    task = SequenceTask(network(), data(torch.full((4, 1), 1e30)), None, FitConfig(epochs=1))
    try:
        with pytest.raises(RunError, match=r"loss is inf at step 1: target 0 has the value 1e\+30, .*; the run so far"):
            train(
                task, folder, steps=1, test_every=1, checkpoint_every=1, resume=False, progress=False
            )  # fmt: skip
    finally:
        folder.close()


def test_targets_are_standardised_before_they_are_narrowed() -> None:
    labels = torch.tensor([[0.0], [0.25], [0.5], [1.0]], dtype=torch.float64)
    losses = []
    for offset in (0.0, 1.7e9):
        torch.manual_seed(0)
        net = SequenceNetwork(NetworkConfig(("hr", "bp"), 1, target="regression", hidden_size=4, ratio_on=0.5))
        net.fit_(data(), targets=labels + offset)
        outputs = torch.zeros(4, 1)
        losses.append(float(loss_sum(net, outputs, labels + offset, None)[0]))
        figures = figures_of(net, outputs, labels + offset)
        assert figures["mae"] == pytest.approx(float((labels - labels.mean()).abs().mean()), rel=1e-6)
        assert figures["r2"] == pytest.approx(0.0, abs=1e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_target_without_any_number_leaves_r2_out() -> None:
    targets = np.array([[1.0, np.nan], [3.0, np.nan]])
    figures = metrics.regression(np.zeros((2, 2)), targets)
    assert figures == {"mae": 2.0, "rmse": pytest.approx(5.0**0.5)}


def test_a_prediction_that_is_no_number_is_not_passed_over() -> None:
    targets = np.array([[1.0], [np.nan], [3.0]])
    assert np.isnan(list(metrics.regression(np.array([[1.0], [0.0], [np.nan]]), targets).values())).all()
    figures = metrics.regression(np.array([[1.0], [np.nan], [3.0]]), targets)
    assert figures == {"mae": 0.0, "rmse": 0.0, "r2": 1.0}


def test_class_weights_of_another_type_than_the_outputs() -> None:
    net = SequenceNetwork(NetworkConfig(("hr", "bp"), 2, hidden_size=4, ratio_on=0.5))
    labels = torch.tensor([0, 1, 1, 0])
    weight = torch.tensor([1.0, 3.0])
    wide, _ = loss_sum(net, torch.zeros(4, 2).double(), labels, weight)
    assert wide.dtype == torch.float64
    assert float(wide) == pytest.approx(8.0 * np.log(2.0))
