"""MNIST as events: the conversion against a loop over pixels, and runs at tiny size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from phased_lstm.data.mnist import Digits
from phased_lstm.experiments import event_mnist, registry
from phased_lstm.experiments.base import Variant
from phased_lstm.experiments.event_mnist import EventMnistTask, to_changes

EXPERIMENT = registry.find("event-mnist")


def events_of(image: list[int]) -> list[tuple[int, int]]:
    """Value and place of each change, pixel by pixel."""
    found, last = [], -1
    for place, pixel in enumerate(image, 1):
        value = int(pixel > 128)
        if value != last:
            found.append((value, place))
        last = value
    return found[:256]


def listed(values: Tensor, times: Tensor, length: Tensor) -> list[tuple[int, int]]:
    return list(zip(values[:length].tolist(), times[:length].tolist(), strict=True))


def test_changes_are_those_of_a_loop_over_pixels() -> None:
    images = torch.randint(0, 256, (6, 784), dtype=torch.uint8)
    images[1] = 0
    images[2] = 255
    images[3, :400] = 0
    images[4] = torch.tensor([128, 129] * 392)
    images[5, 1:] = images[5, 0]
    labels = torch.arange(6)
    values, times, lengths, targets = to_changes(images, labels)
    assert lengths is not None
    for image, *events in zip(images.tolist(), values[:, :, 0], times, lengths, strict=True):
        assert listed(*events) == events_of(image)
    assert targets is labels
    assert lengths.tolist()[1:3] == [1, 1]
    assert lengths[4] == 256
    assert int(times[4, -1]) == 256
    padding = torch.arange(values.shape[1]) >= lengths.unsqueeze(1)
    assert not values[padding].any()
    assert not times[padding].any()


@pytest.fixture
def _small_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (13, 784), dtype=torch.uint8, generator=generator)
    images[::2, 20:] = 0
    labels = torch.randint(0, 10, (13,), generator=generator)
    small = Digits(images[:8], labels[:8], images[8:], labels[8:])
    monkeypatch.setattr(event_mnist, "load", lambda name: small)
    event_mnist._events.cache_clear()
    yield
    event_mnist._events.cache_clear()


def tiny(variant: Variant) -> dict[str, Any]:
    return dict(variant.settings) | {"hidden_size": 4, "batch_size": 3}


@pytest.mark.usefixtures("_small_data")
@pytest.mark.parametrize("variant", EXPERIMENT.variants(False), ids=lambda variant: variant.name)
def test_every_variant_trains_and_gives_its_figures(variant: Variant) -> None:
    task = EXPERIMENT.task(dataclasses.replace(variant, settings=tiny(variant)), seed=0)
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    logged = [task.train_step(step) for step in range(2)][-1] | task.test()
    assert {name for name in EXPERIMENT.columns if name.startswith("t")} == logged.keys()
    assert any(not torch.equal(old, new) for old, new in zip(before, task.model.parameters(), strict=True))
    figures = task.finish()
    assert ("openness" in figures) == (variant.settings["cell"] == "PhasedLSTM")
    lengths = event_mnist._events("mnist")[1].lengths
    assert lengths is not None
    assert figures["mean_events"] == lengths.double().mean()
    assert 0.0 <= figures["test_accuracy"] <= 1.0


@pytest.mark.usefixtures("_small_data")
def test_batches_follow_from_seed_and_step_and_cover_an_epoch() -> None:
    settings = tiny(EXPERIMENT.variants(False)[0])
    task, again, other = (EventMnistTask(settings, seed) for seed in (5, 5, 6))
    batches = [task.batch(step) for step in range(6)]
    assert [len(batch.targets) for batch in batches] == [3, 3, 2, 3, 3, 2]
    late = again.batch(4)
    assert all(torch.equal(one, two) for one, two in zip(batches[4][:2], late[:2], strict=True))
    assert torch.equal(batches[4].targets, late.targets)
    orders = [torch.cat([t._epochs.indices(step) for step in range(3)]).tolist() for t in (task, other)]
    assert sorted(orders[0]) == list(range(8))
    assert orders[0] != orders[1]


@pytest.mark.usefixtures("_small_data")
def test_an_image_padded_in_a_batch_counts_as_it_does_alone() -> None:
    for variant in EXPERIMENT.variants(False):
        task = EventMnistTask(tiny(variant), 0)
        task.model.eval()
        together = event_mnist._events("mnist")[0]
        alone = together.rows(torch.tensor([2]))
        assert alone.values.shape[1] < together.values.shape[1]
        outputs = task.model(together.values, together.times, together.lengths)
        torch.testing.assert_close(outputs[2:3], task.model(alone.values, alone.times, alone.lengths))


def test_the_protocol_is_that_of_the_ode_lstm_scripts() -> None:
    for variant in EXPERIMENT.variants(False):
        chosen = {name: variant.settings[name] for name in ("data", "batch_size", "hidden_size", "lr")}
        assert chosen == {"data": "mnist", "batch_size": 128, "hidden_size": 64, "lr": 5e-4}
        assert variant.steps == 200 * -(-60000 // 128)
