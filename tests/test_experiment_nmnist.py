"""N-MNIST and its stand-in: thinning against a loop over events, the moved digits, and runs at tiny size."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from phased_lstm.data import moving_digits
from phased_lstm.data.nmnist import EventDigits, Recordings
from phased_lstm.experiments import nmnist, registry
from phased_lstm.experiments.base import Variant
from phased_lstm.experiments.nmnist import NMnistTask, thinned

EXPERIMENT = registry.find("nmnist")
Event = tuple[int, int, int]


def recordings(counts: list[int], seed: int) -> Recordings:
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    x, y = torch.randint(0, 34, (2, total), dtype=torch.uint8, generator=generator)
    polarity = torch.randint(0, 2, (total,), dtype=torch.uint8, generator=generator)
    times = torch.cat([torch.randint(0, 300_000, (count,), generator=generator).sort().values for count in counts])
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return Recordings(x, y, polarity, times, offsets, torch.randint(0, 10, (len(counts),), generator=generator))


def events_of(source: Recordings, index: int) -> list[Event]:
    part = slice(int(source.offsets[index]), int(source.offsets[index + 1]))
    columns = (source.x[part], source.y[part], source.polarity[part], source.times[part])
    return [
        (34 * y + x, polarity, time) for x, y, polarity, time in zip(*map(torch.Tensor.tolist, columns), strict=True)
    ]


def rows_of(batch: nmnist.Batch) -> list[list[Event]]:
    assert batch.lengths is not None
    return [
        [(pixel, polarity, time) for (pixel, polarity), time in zip(values, times, strict=True)][:length]
        for values, times, length in zip(
            batch.values.tolist(), batch.times.tolist(), batch.lengths.tolist(), strict=True
        )
    ]


def test_all_events_are_gathered_in_order() -> None:
    source = recordings([5, 1, 9, 3], 0)
    chosen = torch.tensor([3, 0, 2, 0])
    batch = thinned(source, chosen, 1.0, torch.Generator())
    assert batch.values.shape == (4, 9, 2)
    assert rows_of(batch) == [events_of(source, index) for index in chosen.tolist()]
    assert torch.equal(batch.targets, source.labels[chosen])


def test_thinning_keeps_each_event_with_its_probability() -> None:
    source = recordings([4000, 6000], 1)
    batch = thinned(source, torch.tensor([1, 0]), 0.4, torch.Generator().manual_seed(0))
    for index, kept in zip((1, 0), rows_of(batch), strict=True):
        events = iter(events_of(source, index))
        assert all(event in events for event in kept), "an event is new or out of order"
    assert batch.lengths is not None
    # Six standard deviations of a binomial count.
    expected = torch.tensor([2400.0, 1600.0])
    assert bool(((batch.lengths - expected).abs() < 6 * (0.6 * expected).sqrt()).all())
    halves = torch.tensor([sum(time < 150_000 for *_, time in kept) / len(kept) for kept in rows_of(batch)])
    torch.testing.assert_close(halves, torch.full((2,), 0.5), atol=0.08, rtol=0.0)


def test_moved_digits_are_the_changes_of_moved_images() -> None:
    images = torch.zeros(2, 16, 16, dtype=torch.bool)
    images[0, 4:9, 3:5] = True
    images[1, 15, 15] = True
    made = moving_digits.record(images, torch.tensor([1, 2]), seed=0)
    assert made.labels.tolist() == [1, 2]
    for index in range(2):
        bright = {(9 + x, 9 + y) for y, x in images[index].nonzero().tolist()}
        part = slice(int(made.offsets[index]), int(made.offsets[index + 1]))
        times = made.times[part]
        assert bool((times.diff() >= 0).all())
        for move, (right, down) in enumerate(moving_digits._MOVES):
            after = {(x + right, y + down) for x, y in bright}
            of_move = times // 50_000 == move
            columns = (made.x[part][of_move], made.y[part][of_move], made.polarity[part][of_move])
            found = list(zip(*map(torch.Tensor.tolist, columns), strict=True))
            assert sorted(found) == sorted([(*p, 1) for p in after - bright] + [(*p, 0) for p in bright - after])
            bright = after
        assert bool((times < 300_000).all())


def test_the_stand_in_is_a_split_of_all_digits() -> None:
    pytest.importorskip("sklearn")
    train, test = moving_digits.load()
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    assert 200 < float(train.offsets.diff().double().mean()) < 600
    assert int(train.offsets.diff().min()) > 100
    assert (train.labels.bincount() > 100).all()


@pytest.fixture
def _small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    small = EventDigits(recordings([30, 45, 20, 33, 41, 28, 37], 2), recordings([25, 31, 27], 3))
    monkeypatch.setattr(nmnist, "_recordings", lambda data: small)


def tiny(variant: Variant) -> dict[str, Any]:
    return dict(variant.settings) | {"hidden_size": 4, "batch_size": 3}


@pytest.mark.usefixtures("_small_data")
@pytest.mark.parametrize("variant", EXPERIMENT.variants(False), ids=lambda variant: variant.name)
def test_every_variant_trains_and_gives_its_figures(variant: Variant) -> None:
    task = EXPERIMENT.task(dataclasses.replace(variant, settings=tiny(variant)), seed=0)
    assert isinstance(task, NMnistTask)
    before = task.model.embedding.weight.detach().clone()
    logged = [task.train_step(step) for step in range(2)][-1] | task.test()
    assert {name for name in EXPERIMENT.columns if name.startswith("t")} == logged.keys()
    assert not torch.equal(before, task.model.embedding.weight)
    figures = task.finish()
    assert {"test_accuracy", "test_rho_0.4_accuracy", "test_rho_1.0_accuracy", "mean_events"} <= figures.keys()
    assert ("openness" in figures) == (variant.settings["cell"] == "PhasedLSTM")
    assert figures["test_loss"] != figures["test_rho_0.4_loss"] != figures["test_rho_1.0_loss"]


@pytest.mark.usefixtures("_small_data")
def test_batches_follow_from_seed_and_step() -> None:
    settings = tiny(EXPERIMENT.variants(False)[0])
    task, again, other = (NMnistTask(settings, seed) for seed in (5, 5, 6))
    early = [task.batch(step) for step in range(5)]
    assert [len(batch.targets) for batch in early] == [3, 3, 1, 3, 3]
    assert rows_of(early[4]) == rows_of(again.batch(4))
    assert rows_of(early[4]) != rows_of(other.batch(4))
    assert task.test() == task.test()


@pytest.mark.usefixtures("_small_data")
def test_inputs_are_as_wide_as_in_the_paper() -> None:
    widths = {
        variant.name: NMnistTask(dict(variant.settings), 0).model.rnn.input_size
        for variant in EXPERIMENT.variants(False)
    }
    assert widths == {"PhasedLSTM-100ms": 41, "PhasedLSTM": 41, "BN-LSTM": 42, "LSTM-delta": 42}
    model = NMnistTask(dict(EXPERIMENT.variants(False)[0].settings), 0).model
    assert (model.rnn.hidden_size, model.head.out_features) == (110, 10)
    assert torch.equal(model.rnn.gates[0].period.round(), torch.full((110,), 100_000.0))
