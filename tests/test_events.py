"""EventBatch: every form it converts to and from, and what it refuses."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from phased_lstm import PhasedLSTM
from phased_lstm.data.events import EventBatch

BIG = 1_700_000_000_000_000_001


def batch_of(lengths: list[int], features: int = 3, dtype: torch.dtype = torch.float64) -> EventBatch:
    """Distinct values everywhere, times beyond what a double tells apart."""
    events = sum(lengths)
    values = torch.arange(events * features).reshape(events, features).to(dtype)
    return EventBatch.from_lengths(values, BIG + torch.arange(events) ** 2, lengths)


def pairs(batch: EventBatch) -> list[tuple[list[Any], list[Any]]]:
    return [(values.tolist(), times.tolist()) for values, times in batch]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_every_form_and_back(lengths: list[int]) -> None:
    batch = batch_of(lengths)
    assert EventBatch.from_padded(*batch.padded()).equal(batch)
    assert EventBatch.from_padded(*batch.padded(batch_first=False), batch_first=False).equal(batch)
    assert EventBatch.from_jagged(*batch.jagged()).equal(batch)
    assert EventBatch.from_dense(*batch.dense()).equal(batch)
    assert EventBatch.from_sequences(batch).equal(batch)
    if all(lengths):
        assert EventBatch.from_packed(*batch.packed()).equal(batch)


def test_padded_is_what_a_layer_takes() -> None:
    batch = batch_of([3, 0, 2], dtype=torch.float32)
    values, times, lengths = batch.padded()
    assert values.tolist() == [
        [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        [[0, 0, 0]] * 3,
        [[9, 10, 11], [12, 13, 14], [0, 0, 0]],
    ]
    assert times.tolist() == [[BIG, BIG + 1, BIG + 4], [0, 0, 0], [BIG + 9, BIG + 16, 0]]
    assert lengths.tolist() == [3, 0, 2]
    assert times.dtype == torch.int64
    rnn = PhasedLSTM(3, 5, batch_first=True)
    together, _ = rnn(values, times=times, lengths=lengths)
    alone, _ = rnn(*batch[2:3].jagged()[:1], times=batch[2:3].jagged()[1])
    torch.testing.assert_close(together[2, :2], alone.values())


def test_packed_is_what_torch_packs() -> None:
    batch = batch_of([1, 4, 2])
    values, times = batch.packed()
    padded_values, padded_times, lengths = batch.padded()
    expected = pack_padded_sequence(padded_values, lengths, batch_first=True, enforce_sorted=False)
    assert torch.equal(values.data, expected.data)
    assert torch.equal(values.batch_sizes, expected.batch_sizes)
    assert torch.equal(pad_packed_sequence(times, batch_first=True)[0], padded_times)


def test_jagged_shares_memory() -> None:
    batch = batch_of([2, 1])
    values, times = batch.jagged()
    assert values.values().data_ptr() == batch.values.data_ptr()
    assert times.values().data_ptr() == batch.times.data_ptr()


def test_dense_puts_distinct_times_on_one_grid() -> None:
    batch = EventBatch.from_sequences(
        [
            (torch.tensor([[1.0, torch.nan], [2.0, 3.0]]), torch.tensor([5, 9])),
            (torch.tensor([[4.0, 5.0]]), torch.tensor([7])),
        ]
    )
    values, times = batch.dense()
    nan = torch.nan
    assert times.tolist() == [5, 7, 9]
    expected = torch.tensor([[[1.0, nan], [nan, nan], [2.0, 3.0]], [[nan, nan], [4.0, 5.0], [nan, nan]]])
    torch.testing.assert_close(values, expected, equal_nan=True)
    assert EventBatch.from_dense(values, times).equal(batch)
    assert EventBatch.from_dense(values, times.expand(2, 3)).equal(batch)


def test_dense_refuses_two_events_at_one_time() -> None:
    batch = EventBatch.from_lengths(torch.zeros(4, 1), torch.tensor([1.5, 2.5, 3.5, 3.5]), [1, 3])
    with pytest.raises(ValueError, match=r"sequence 1 has two events at time 3\.5"):
        batch.dense()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
def test_indexing_is_that_of_a_list(lengths: list[int], data: st.DataObject) -> None:
    batch = batch_of(lengths)
    expected = pairs(batch)
    count = len(lengths)
    bound = st.one_of(st.none(), st.integers(-8, 8))
    cut = slice(data.draw(bound), data.draw(bound), data.draw(st.sampled_from([None, 1, 2, -1, -2])))
    assert pairs(batch[cut]) == expected[cut]
    chosen = data.draw(st.lists(st.integers(-count, count - 1), max_size=6))
    assert pairs(batch[chosen]) == [expected[index] for index in chosen]
    assert pairs(batch[torch.tensor(chosen, dtype=torch.int32)]) == [expected[index] for index in chosen]
    mask = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    assert pairs(batch[torch.tensor(mask)]) == [pair for pair, keep in zip(expected, mask, strict=True) if keep]
    single = data.draw(st.integers(-count, count - 1))
    values, times = batch[np.int64(single)]
    assert (values.tolist(), times.tolist()) == expected[single]
    for part in (batch[cut], batch[chosen]):
        assert EventBatch(part.values, part.times, part.offsets).equal(part)


@pytest.mark.parametrize(
    "index", [3, -4, [0, 3], torch.tensor([-4]), torch.tensor([True]), torch.tensor([0.0]), torch.tensor([[1]])]
)
def test_index_errors(index: Any) -> None:
    with pytest.raises(IndexError, match="batch of 3"):
        batch_of([1, 2, 1])[index]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.data())
def test_keep_is_a_mask_of_each_sequence(lengths: list[int], data: st.DataObject) -> None:
    batch = batch_of(lengths)
    masks = [data.draw(st.lists(st.booleans(), min_size=length, max_size=length)) for length in lengths]
    kept = batch.keep(torch.tensor([flag for mask in masks for flag in mask], dtype=torch.bool))
    expected = [
        (values[mask].tolist(), times[mask].tolist()) for (values, times), mask in zip(batch, masks, strict=True)
    ]
    assert pairs(kept) == expected


def test_keep_refuses_other_masks() -> None:
    with pytest.raises(ValueError, match=r"bool \(3,\), one for each event, got torch.int64 of shape \(3,\)"):
        batch_of([1, 2]).keep(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got torch.bool of shape \(2,\)"):
        batch_of([1, 2]).keep(torch.ones(2, dtype=torch.bool))


def test_cat_and_split() -> None:
    batch = batch_of([2, 0, 3, 1])
    assert EventBatch.cat([batch[:1], batch[1:3], batch[3:]]).equal(batch)
    with pytest.raises(ValueError, match=r"batch 1 has 2 features .*, batch 0 3 features"):
        EventBatch.cat([batch, batch_of([1], features=2)])
    with pytest.raises(ValueError, match="at least one batch"):
        EventBatch.cat([])


def test_to_changes_values_and_never_times() -> None:
    batch = batch_of([2, 1]).to(dtype=torch.float16)
    assert batch.values.dtype == torch.float16
    assert batch.times.dtype == torch.int64
    assert batch.times[1].item() == BIG + 1
    assert batch_of([2, 1]).to(torch.float16).equal(batch)
    meta = batch.to("meta")
    assert (meta.values.device.type, meta.times.device.type, meta.offsets.device.type) == ("meta",) * 3


def test_pin_memory_pins_all_three(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    batch = batch_of([2, 1])
    assert batch.pin_memory().equal(batch)
    assert [id(tensor) for tensor in pinned] == [id(batch.values), id(batch.times), id(batch.offsets)]


def test_pickle_and_equal() -> None:
    batch = EventBatch.from_lengths(torch.tensor([[1.0], [torch.nan]]), torch.tensor([0.5, 1.5]), [1, 1])
    copy = pickle.loads(pickle.dumps(batch))
    assert copy.equal(batch)
    assert not batch.equal(batch.to(dtype=torch.float64))
    assert not batch.equal(EventBatch.from_lengths(batch.values, batch.times, [2, 0]))
    assert not batch.equal(EventBatch.from_lengths(batch.values, batch.times + 1, [1, 1]))
    assert not batch.equal(EventBatch.from_lengths(batch.values + 1, batch.times, [1, 1]))
    assert not batch.equal(EventBatch.from_lengths(batch.values[:1], batch.times[:1], [1, 0]))


def test_attributes_cannot_be_set() -> None:
    with pytest.raises(AttributeError):
        batch_of([1]).values = torch.zeros(1, 3)  # type: ignore[misc]


def test_repr() -> None:
    assert repr(batch_of([3, 1])) == (
        "EventBatch(2 sequences, 4 events, 3 features, lengths 1 to 3, values torch.float64, times torch.int64, cpu)"
    )
    assert "0 sequences" in repr(batch_of([1])[:0])


V, T, O = torch.zeros(3, 2), torch.arange(3), torch.tensor([0, 1, 3])  # noqa: E741


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0.0]], T, O), TypeError, "values should be a tensor, got: list"),
        ((V[0], T, O), ValueError, r"values should be of shape \(S, F\).*; got \(2,\)"),
        ((V, T[:2], O), ValueError, "a time for each event, got 2 for 3"),
        ((V, T.half(), O), ValueError, "times should be int32, int64, float32 or float64, got torch.float16"),
        ((V, torch.tensor([0.0, torch.inf, 1]), O), ValueError, "times should be finite"),
        ((V, T, O.int()), ValueError, r"offsets should be int64.*got torch\.int32"),
        ((V, T, O[:0]), ValueError, "offsets should be int64, of N"),
        ((V, T, torch.tensor([0, 2])), ValueError, r"from 0 to the number of events, 3.*got \[0, 2\]"),
        ((V, T, torch.tensor([1, 3])), ValueError, "from 0 to the number of events"),
        ((V, T, torch.tensor([0, 2, 1, 3])), ValueError, "without decreasing"),
        ((V, T.to("meta"), O), ValueError, "times is on meta, values on cpu"),
    ],
)
def test_construction_errors(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EventBatch(*arguments)


def test_conversion_errors() -> None:
    batch = batch_of([2, 1])
    values, times = batch.packed()
    with pytest.raises(TypeError, match="times should be a PackedSequence"):
        EventBatch.from_packed(values, times.data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other lengths or order"):
        EventBatch.from_packed(values, batch_of([1, 2]).packed()[1])
    with pytest.raises(ValueError, match="other lengths or layout"):
        EventBatch.from_jagged(batch.jagged()[0], batch_of([1, 2]).jagged()[1])
    with pytest.raises(TypeError, match="times should be a jagged tensor"):
        EventBatch.from_jagged(batch.jagged()[0], times.data)
    with pytest.raises(ValueError, match="sequence 1 has no events, and a PackedSequence"):
        batch_of([2, 0]).packed()
    with pytest.raises(ValueError, match=r"times should be of shape \(2,\) or \(1, 2\)"):
        EventBatch.from_padded(torch.zeros(1, 2, 3), torch.arange(3))
    with pytest.raises(ValueError, match="lengths should be from 0 to 2"):
        EventBatch.from_padded(torch.zeros(1, 2, 3), torch.arange(2), [3])
    with pytest.raises(ValueError, match="lengths should be integers"):
        EventBatch.from_lengths(V, T, [1.0, 2.0])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"sequence 1 has 1 features .* sequence 0 2 features"):
        EventBatch.from_sequences([(V, T), (V[:, :1], T)])
    with pytest.raises(ValueError, match="sequence 0 should have values"):
        EventBatch.from_sequences([(V, T[:2])])
    with pytest.raises(TypeError, match=r"sequence 1: times should be a tensor, got: list; convert it with"):
        EventBatch.from_sequences([(V, T), (V, T.tolist())])
    with pytest.raises(TypeError, match=r"^values should be a tensor, got: ndarray; convert it with torch.as_tensor"):
        EventBatch.from_padded(V[None].numpy(), T)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one sequence"):
        EventBatch.from_sequences([])
    with pytest.raises(ValueError, match="times should be of shape"):
        EventBatch.from_dense(torch.zeros(1, 2, 3), torch.arange(3))
    with pytest.raises(ValueError, match="values should be floating"):
        EventBatch.from_dense(torch.zeros(1, 2, 3).long(), torch.arange(2))


def test_integers_on_a_grid_keep_their_digits() -> None:
    for value, dtype in ((1 << 24, torch.float32), ((1 << 24) + 1, torch.float64), (1_700_000_001, torch.float64)):
        values, _ = EventBatch.from_lengths(torch.tensor([[value]]), torch.tensor([0]), [1]).dense()
        assert (values.dtype, values.item()) == (dtype, value)
