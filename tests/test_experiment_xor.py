"""The XOR task: the protocol's own streams, both encodings, and rows that train."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy
import pytest
import torch

from phased_lstm.data.xor import TEST_SEED, TRAIN_SEED, dense_streams, event_streams
from phased_lstm.experiments import registry
from phased_lstm.experiments.base import Variant

XOR = registry.find("xor")


def drawn(count: int, seed: int, padded: int) -> list[list[int]]:
    """The streams as the protocol words them: a length, then its bits, one draw each."""
    random = numpy.random.RandomState(seed)
    lengths_and_bits = []
    for _ in range(count):
        length = int(random.randint(low=2, high=padded))
        lengths_and_bits.append([int(random.randint(low=0, high=2)) for _ in range(length)])
    return lengths_and_bits


def entries(bits: list[int]) -> list[tuple[int, int]]:
    """(bit, time) of the first bit, of changes, and of the last bit."""
    last = len(bits) - 1
    return [(bit, index + 1) for index, bit in enumerate(bits) if index in (0, last) or bit != bits[index - 1]]


@pytest.mark.parametrize("seed", [TRAIN_SEED, TEST_SEED])
@pytest.mark.parametrize("padded", [8, 32])
def test_dense_streams_are_the_protocols(seed: int, padded: int) -> None:
    expected = drawn(300, seed, padded)
    streams = dense_streams(300, seed, padded)
    assert streams.bits.shape == streams.times.shape == (300, padded)
    for row, bits in enumerate(expected):
        length = len(bits)
        assert streams.lengths[row] == length
        assert streams.bits[row].tolist() == [*bits, *[0] * (padded - length)]
        assert streams.times[row, :length].tolist() == list(range(1, length + 1))
        assert streams.parity[row] == sum(bits) % 2
    assert {len(bits) for bits in expected} >= {2, padded - 1}


@pytest.mark.parametrize("padded", [8, 32])
def test_event_streams_tell_the_same_by_first_bit_changes_and_last_bit(padded: int) -> None:
    streams = event_streams(300, TRAIN_SEED, padded)
    elapsed = streams.elapsed()
    for row, bits in enumerate(drawn(300, TRAIN_SEED, padded)):
        expected = entries(bits)
        length = int(streams.lengths[row])
        found = zip(streams.bits[row, :length].tolist(), streams.times[row, :length].tolist(), strict=True)
        assert list(found) == expected
        assert not streams.bits[row, length:].any()
        assert streams.parity[row] == sum(bits) % 2
        gaps = [time - before for (_, time), before in zip(expected, [0, *(t for _, t in expected)], strict=False)]
        assert elapsed[row, :length].tolist() == pytest.approx([gap / padded for gap in gaps])


def test_padded_lengths_out_of_range_are_refused() -> None:
    for padded in (3, 33):
        with pytest.raises(ValueError, match=f"from 4 to 32, got {padded}"):
            dense_streams(1, 0, padded)


def small(variant: Variant, **options: Any) -> Variant:
    sizes = {"hidden_size": 6, "train_size": 50, "test_size": 40, "batch_size": 8}
    return dataclasses.replace(variant, settings=variant.settings | sizes | options)


@pytest.mark.parametrize("variant", XOR.variants(False), ids=lambda variant: variant.name)
def test_every_row_trains_and_gives_its_figures(variant: Variant) -> None:
    task = XOR.task(small(variant), 0)
    before = [parameter.clone() for parameter in task.model.parameters()]
    rows = [task.train_step(step) for step in range(2)]
    assert all(0 < row["train_loss"] < 5 and row["train_accuracy"] * 8 % 1 == 0 for row in rows)
    assert any(not torch.equal(old, new) for old, new in zip(before, task.model.parameters(), strict=True))
    figures = task.finish()
    assert figures["test_accuracy"] * 40 == pytest.approx(round(figures["test_accuracy"] * 40))
    assert ("openness" in figures) == ("Phased" in variant.name)


def test_accuracy_is_per_stream_after_its_last_entry() -> None:
    variant = next(variant for variant in XOR.variants(False) if variant.name == "event-LSTM")
    task = XOR.task(small(variant), 0)
    streams = event_streams(40, TEST_SEED)
    elapsed, right = streams.elapsed(), 0
    with torch.no_grad():
        for row, length in enumerate(streams.lengths.tolist()):
            values = torch.stack([streams.bits[row, :length], elapsed[row, :length]], dim=-1)
            output, _ = task.model.rnn(values.unsqueeze(0))
            right += int((task.model.head(output[0, -1]) > 0) == bool(streams.parity[row]))
    assert task.test()["test_accuracy"] == pytest.approx(right / 40)


def test_taking_turns_opens_half_of_the_units_fully_at_every_step() -> None:
    variant = next(variant for variant in XOR.variants(False) if variant.name == "dense-PhasedLSTM-turns")
    (gate,) = XOR.task(small(variant), 0).model.rnn.gates
    assert gate(torch.arange(1, 5)).round(decimals=4).tolist() == [[0, 1] * 3, [1, 0] * 3] * 2


def test_a_batch_follows_from_seed_and_step() -> None:
    variant = small(XOR.variants(False)[0])
    one, two, other = (XOR.task(variant, seed) for seed in (1, 1, 2))
    one.train_step(0)
    for first, second in zip(one.batch(9), two.batch(9), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(one.batch(9).lengths, other.batch(9).lengths)


def test_the_protocol_in_full() -> None:
    assert all(variant.steps == 200 * 391 for variant in XOR.variants(False))
    settings = XOR.variants(False)[0].settings
    expected = {"padded": 32, "train_size": 100_000, "test_size": 10_000, "batch_size": 256, "hidden_size": 64}
    assert settings | expected | {"lr": 5e-4} == settings
    assert set(XOR.published) == {variant.name for variant in XOR.variants(False)}
