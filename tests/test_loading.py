"""Data set, collate function and the sampler by length, alone and in a DataLoader."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from phased_lstm.data.events import EventBatch
from phased_lstm.data.loading import IGNORED_CLASS, EventDataset, LengthBatchSampler, Sample, collate

LENGTHS = [3, 1, 4, 1, 5, 2]


def events_of(lengths: list[int]) -> EventBatch:
    steps = torch.arange(sum(lengths))
    return EventBatch.from_lengths(torch.stack([steps, -steps], dim=1).float(), steps * 10, lengths)


def data_set(**options: Any) -> EventDataset:
    return EventDataset(events_of(LENGTHS), torch.arange(6), **options)


def test_samples_and_subsets() -> None:
    static = torch.arange(12.0).reshape(6, 2)
    data = data_set(static=static)
    sample = data[2]
    assert sample.values[:, 0].tolist() == [4, 5, 6, 7]
    assert sample.times.tolist() == [40, 50, 60, 70]
    assert (sample.label, sample.static.tolist()) == (2, [4.0, 5.0])
    assert data[-1].label == 5
    for index in ([4, 0, -1], torch.tensor([4, 0, 5])):
        part = data[index]
        assert part.labels.tolist() == [4, 0, 5]
        assert part.static[:, 0].tolist() == [8.0, 0.0, 10.0]
        assert part.lengths.tolist() == [5, 3, 2]
    assert data[1:5:2].labels.tolist() == [1, 3]
    assert data[[]].labels.tolist() == []
    assert data[torch.tensor([True, False, False, False, False, True])].labels.tolist() == [0, 5]


def test_labels_of_steps_follow_their_sequences() -> None:
    data = EventDataset(events_of(LENGTHS), torch.arange(16), per_step=True)
    assert data[2].label.tolist() == [4, 5, 6, 7]
    part = data[[5, 1]]
    assert part.labels.tolist() == [14, 15, 3]
    assert part[0].label.tolist() == [14, 15]
    (values, _, lengths), labels = collate([data[0], data[1]])
    assert labels.tolist() == [[0, 1, 2], [3, IGNORED_CLASS, IGNORED_CLASS]]
    assert values.shape == (2, 3, 2)
    assert lengths.tolist() == [3, 1]


@pytest.mark.parametrize(("dtype", "filled"), [(torch.float32, "nan"), (torch.bool, "False"), (torch.int64, "-100")])
def test_what_fills_labels_of_steps(dtype: torch.dtype, filled: str) -> None:
    data = EventDataset(events_of([2, 1]), torch.ones(3, 2).to(dtype), per_step=True)
    _, labels = collate([data[0], data[1]])
    assert labels.shape == (2, 2, 2)
    assert labels.dtype == dtype
    assert [str(value) for value in labels[1, 1].tolist()] == [filled] * 2


def test_a_label_as_wide_as_the_sequence_is_long_is_not_one_of_steps() -> None:
    data = EventDataset(events_of([2, 2]), torch.eye(2))
    _, labels = collate([data[0], data[1]])
    assert labels.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_collate_with_and_without_labels_and_static() -> None:
    events = events_of(LENGTHS)
    inputs, labels = collate([EventDataset(events)[0]])
    assert len(inputs) == 3
    assert labels is None
    inputs, _ = collate([EventDataset(events, static=torch.ones(6, 4))[n] for n in range(2)])
    assert [part.shape for part in inputs] == [(2, 3, 2), (2, 3), (2,), (2, 4)]
    assert inputs[1].dtype == torch.int64


def test_collate_refuses_mixed_and_empty_batches() -> None:
    values, times = events_of([1])[0]
    with pytest.raises(ValueError, match="1 of 2 samples have a label"):
        collate([Sample(values, times, torch.tensor(1)), Sample(values, times)])
    with pytest.raises(ValueError, match="1 of 2 samples have static features"):
        collate([Sample(values, times, static=torch.ones(1)), Sample(values, times)])
    with pytest.raises(ValueError, match="at least one sample"):
        collate([])


@pytest.mark.parametrize("workers", [0, 1])
def test_in_a_data_loader(workers: int) -> None:
    data = data_set()
    sampler = LengthBatchSampler(data.lengths, 2, seed=3)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
    seen = []
    for (values, times, lengths), labels in loader:
        assert EventBatch.from_padded(values, times, lengths).equal(data.events[labels])
        seen += labels.tolist()
    assert sorted(seen) == list(range(6))


@given(
    st.lists(st.integers(0, 30), max_size=40),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2),
)
def test_ranks_together_see_what_one_sees(
    lengths: list[int], share: int, ranks: int, shuffle: bool, drop_last: bool, epoch: int
) -> None:
    def batches(rank: int, world_size: int) -> list[list[int]]:
        sampler = LengthBatchSampler(
            lengths, share * ranks, shuffle=shuffle, drop_last=drop_last, rank=rank, world_size=world_size
        )
        sampler.set_epoch(epoch)
        found = list(sampler)
        assert len(found) == len(sampler)
        return found

    alone = batches(0, 1)
    shares = [batches(rank, ranks) for rank in range(ranks)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert len({len(part) for part in parts}) == 1
        together = [index for column in zip(*parts, strict=True) for index in column]
        assert together[: len(batch)] == batch
        assert set(together) == set(batch)
    every = sorted(index for batch in alone for index in batch)
    assert len(every) == len(set(every))
    left_out = len(lengths) % (share * ranks) if drop_last else 0
    assert len(every) == len(lengths) - left_out


def test_lengths_are_similar_and_orders_differ() -> None:
    lengths = torch.randint(1, 1000, (640,))
    sampler = LengthBatchSampler(lengths, 16, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    spread = [int(lengths[batch].max() - lengths[batch].min()) for batch in first]
    assert max(spread) < 150
    longest = [int(lengths[batch].max()) for batch in first]
    assert longest != sorted(longest)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(LengthBatchSampler(lengths, 16, seed=2)) != first


def test_unshuffled_goes_from_long_to_short() -> None:
    assert list(LengthBatchSampler(LENGTHS, 4, shuffle=False)) == [[4, 2, 0, 5], [1, 3]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be greater than zero"),
        ({"batch_size": 2.0}, TypeError, "batch_size should be of type int"),
        ({"batch_size": 3, "world_size": 2}, ValueError, "multiple of world_size, 2"),
        ({"batch_size": 2, "world_size": 2, "rank": 2}, ValueError, "rank should be from 0 to 1"),
        ({"batch_size": 2, "shuffle": 1}, TypeError, "shuffle should be of type bool"),
        ({"batch_size": 2, "lengths": [1.5]}, ValueError, "lengths should be integers"),
    ],
)
def test_sampler_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LengthBatchSampler(**{"lengths": LENGTHS, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": torch.zeros(5)}, ValueError, r"labels should be \(6, ...\), one for each sequence, got \(5,\)"),
        ({"labels": torch.zeros(6), "per_step": True}, ValueError, r"\(16, ...\), one for each event"),
        ({"per_step": True}, ValueError, "per_step says what labels belong to"),
        ({"labels": [0] * 6}, TypeError, "labels should be a tensor or None, got: list"),
        ({"static": torch.zeros(6)}, ValueError, r"static should be \(6, G\)"),
        ({"events": torch.zeros(2)}, TypeError, "events should be an EventBatch"),
    ],
)
def test_data_set_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EventDataset(**{"events": events_of(LENGTHS), **arguments})


def test_labels_of_steps_keep_their_digits_beside_integers() -> None:
    whole = Sample(torch.ones(2, 1), torch.arange(2), torch.tensor([1, 0]), per_step=True)
    half = Sample(torch.ones(1, 1), torch.arange(1), torch.tensor([1.5]), per_step=True)
    labels = collate([whole, half])[1]
    assert labels is not None
    torch.testing.assert_close(labels, torch.tensor([[1.0, 0.0], [1.5, torch.nan]]), equal_nan=True)
