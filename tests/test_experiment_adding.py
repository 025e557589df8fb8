"""The adding task: its sequences follow the protocol, batches follow from seed and step, every row trains."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from phased_lstm.experiments import registry
from phased_lstm.experiments.adding import adding_batch
from phased_lstm.experiments.supervised import Batch, ShuffledEpochs, keras_rmsprop

ADDING = registry.find("adding")
TINY = {"hidden_size": 4, "shortest": 20, "longest": 26, "batch_size": 3, "test_size": 5}


def test_two_marks_where_the_protocol_wants_them_and_their_sum() -> None:
    batch = adding_batch(4000, 490, 510, torch.Generator().manual_seed(3))
    assert batch.values.shape == (4000, 510, 2)
    assert batch.times.tolist() == list(range(510))
    assert batch.lengths is not None
    assert set(batch.lengths.tolist()) == set(range(490, 511))
    places = []
    for row, length, target in zip(batch.values, batch.lengths.tolist(), batch.targets, strict=True):
        first, second = row[:, 1].nonzero().flatten().tolist()
        assert first < length // 10
        assert length / 2 <= second < length
        assert float(target) == pytest.approx(float(row[first, 0] + row[second, 0]))
        assert not row[length:].any()
        places.append((first / (length // 10), (second - length / 2) / (length / 2)))
    # Uniform over their ranges: mean 1/2 and variance 1/12, to five standard errors.
    relative = torch.tensor(places)
    assert relative.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.025)
    assert relative.var(0).tolist() == pytest.approx([1 / 12, 1 / 12], abs=0.006)
    numbers = batch.values[:, :490, 0]
    assert float(numbers.min()) >= -0.5
    assert float(numbers.max()) < 0.5
    assert float(numbers.mean()) == pytest.approx(0.0, abs=0.001)
    assert float(numbers.var()) == pytest.approx(1 / 12, abs=0.001)


def test_first_and_last_places_are_drawn_too() -> None:
    batch = adding_batch(3000, 20, 21, torch.Generator().manual_seed(0))
    assert batch.lengths is not None
    marks = [row[:, 1].nonzero().flatten().tolist() for row in batch.values]
    found = {(length, first, second) for length, (first, second) in zip(batch.lengths.tolist(), marks, strict=True)}
    # Of 21 steps, the middle one belongs to neither half.
    assert found == {(20, a, b) for a in (0, 1) for b in range(10, 20)} | {
        (21, a, b) for a in (0, 1) for b in range(11, 21)
    }


def test_a_batch_follows_from_seed_and_step() -> None:
    variant = dataclasses.replace(ADDING.variants(True)[0], settings=ADDING.variants(True)[0].settings | TINY)
    one, two, other = (ADDING.task(variant, seed) for seed in (1, 1, 2))
    for step in range(3):
        one.train_step(step)
    for first, second in zip(one.batch(7)[::2], two.batch(7)[::2], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(one.batch(7).values, two.batch(8).values)
    assert not torch.equal(one.batch(7).values, other.batch(7).values)


@pytest.mark.parametrize("variant", ADDING.variants(False), ids=lambda variant: variant.name)
def test_every_row_trains_and_gives_its_figures(variant: object) -> None:
    variant = dataclasses.replace(variant, settings=variant.settings | TINY)
    task = ADDING.task(variant, 0)
    before = [parameter.clone() for parameter in task.model.parameters()]
    rows = [task.train_step(step) for step in range(2)]
    assert all(0 < row["train_loss"] < 10 for row in rows)
    assert any(not torch.equal(old, new) for old, new in zip(before, task.model.parameters(), strict=True))
    figures = task.finish()
    assert figures["test_loss"] == task.test()["test_loss"]
    phased = variant.name.startswith("Phased")
    assert ("openness" in figures) == ("never_open_units" in figures) == phased


def test_the_test_loss_is_that_of_all_sequences_at_once() -> None:
    variant = ADDING.variants(False)[0]
    task = ADDING.task(dataclasses.replace(variant, settings=variant.settings | TINY | {"test_size": 253}), 0)
    test = task._test
    with torch.no_grad():
        outputs = task.model.eval()(test.values, test.times, test.lengths)
    assert task.test()["test_loss"] == pytest.approx(float((outputs - test.targets).square().mean()), rel=1e-5)


def test_parts_of_a_batch_lose_padding_alone() -> None:
    whole = Batch(
        torch.arange(24.0).view(3, 4, 2), torch.arange(12).view(3, 4), torch.tensor([2, 4, 1]), torch.arange(3)
    )
    parts = list(whole.split(1))
    assert [part.values.shape for part in parts] == [(1, 2, 2), (1, 4, 2), (1, 1, 2)]
    for row, part in enumerate(parts):
        length = part.values.shape[1]
        assert torch.equal(part.values[0], whole.values[row, :length])
        assert torch.equal(part.times[0], whole.times[row, :length])
        assert part.targets.tolist() == [row]
    chosen = whole._replace(times=torch.arange(4)).rows(torch.tensor([2, 0]))
    assert chosen.times.tolist() == [0, 1]
    assert chosen.targets.tolist() == [2, 0]


def test_an_epoch_takes_every_sample_once_in_an_order_of_its_own() -> None:
    epochs = ShuffledEpochs(11, 4, seed=5)
    assert epochs.steps == 3
    orders = [torch.cat([epochs.indices(step) for step in range(first, first + 3)]).tolist() for first in (0, 3)]
    assert [sorted(order) for order in orders] == [list(range(11))] * 2
    assert orders[0] != orders[1]
    assert [len(epochs.indices(step)) for step in range(3)] == [4, 4, 3]
    assert torch.equal(ShuffledEpochs(11, 4, seed=5).indices(4), epochs.indices(4))
    assert not torch.equal(ShuffledEpochs(11, 4, seed=6).indices(4), epochs.indices(4))


def test_rmsprop_is_that_of_keras() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    weight = float(layer.weight.detach())
    optimizer = keras_rmsprop(layer, 0.1)
    mean_square = 0.0
    for gradient in (2.0, -0.5):
        layer.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        weight -= 0.1 * gradient / (mean_square**0.5 + 1e-7)
    assert float(layer.weight.detach()) == pytest.approx(weight, rel=1e-6)
