"""Walker2d: splits, drops and windows of the protocol, the reader's refusals, and rows that train."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from phased_lstm.data.walker2d import load_rollouts, oscillator_rollouts, split_windows
from phased_lstm.errors import DataError
from phased_lstm.experiments import registry
from phased_lstm.experiments.base import Variant
from phased_lstm.training.checkpoints import load_checkpoint, save_checkpoint

WALKER = registry.find("walker2d")
DATA = Path(os.environ.get("PHASED_LSTM_DATA", "")) / "walker2d" / "walker_float32.npz"


def numbered(count: int) -> list[torch.Tensor]:
    """Rollouts whose first feature is 1000 * rollout + step; of different lengths."""
    steps = [torch.arange(100.0 + 7 * index) + 1000 * index for index in range(count)]
    return [column.unsqueeze(1).expand(-1, 17).contiguous() for column in steps]


def test_windows_are_the_protocols() -> None:
    rollouts = numbered(40)
    split = split_windows(rollouts)
    names = [f"rollout_{index:03d}" for index in range(40)]
    numpy.random.RandomState(125487).shuffle(names)
    order = [int(name[-3:]) for name in names]
    parts = {"train": order[10:], "validation": order[6:10], "test": order[:6]}
    random = numpy.random.RandomState(891374)
    for name, chosen in parts.items():
        states, elapsed, following = [], [], []
        for index in chosen:
            kept, skipped = [], 0
            for step in range(len(rollouts[index]) - 1):
                skipped += 1
                if random.rand() < 0.9:
                    kept.append((1000 * index + step, skipped))
                    skipped = 0
            for start in range(0, len(kept) - 64, 16):
                window = kept[start : start + 64]
                states.append([state for state, _ in window])
                elapsed.append([gap for _, gap in window])
                following.append([state + 1 for state, _ in window])
        windows = getattr(split, name)
        assert windows.states.shape == windows.next_states.shape == (len(states), 64, 17)
        assert windows.states[:, :, 0].tolist() == states
        assert windows.next_states[:, :, 16].tolist() == following
        assert windows.elapsed.tolist() == elapsed


def test_rollouts_that_leave_a_part_without_windows_are_refused() -> None:
    with pytest.raises(DataError, match="3 rollouts leave no window of 64 observations for"):
        split_windows(numbered(3))
    with pytest.raises(DataError, match="leave no window"):
        split_windows([rollout[:50] for rollout in numbered(40)])


@pytest.mark.skipif(not DATA.exists(), reason="PHASED_LSTM_DATA has no walker2d")
def test_the_published_data() -> None:
    rollouts = load_rollouts()
    assert (len(rollouts), sum(map(len, rollouts))) == (400, 254_963)
    split = split_windows(rollouts)
    assert [len(windows.states) for windows in split] == [9684, 1272, 1937]
    assert all(variant.steps == 200 * 76 for variant in WALKER.variants(False))


def test_without_data_the_error_says_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PHASED_LSTM_DATA", raising=False)
    with pytest.raises(DataError, match=r"PHASED_LSTM_DATA is not set.*raminmh/CfC.*--quick"):
        load_rollouts()
    monkeypatch.setenv("PHASED_LSTM_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"walker2d has no walker_float32\.npz.*raminmh/CfC"):
        load_rollouts()


def test_reads_rollouts_by_name_and_refuses_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASED_LSTM_DATA", str(tmp_path))
    folder = tmp_path / "walker2d"
    folder.mkdir()
    path = folder / "walker_float32.npz"
    one, two = (numpy.full((3, 17), value, dtype=numpy.float32) for value in (1, 2))
    numpy.savez(path, rollout_001=two, rollout_000=one)
    assert [float(rollout[0, 0]) for rollout in load_rollouts()] == [1.0, 2.0]
    for wrong, message in (
        (one.astype(numpy.float64), r"rollout_000 is float64 \(3, 17\), expected float32"),
        (one[:, :16], r"float32 \(3, 16\), expected float32 \(steps, 17\)"),
        (one * numpy.float32("nan"), "not finite"),
    ):
        numpy.savez(path, rollout_000=wrong)
        with pytest.raises(DataError, match=message):
            load_rollouts(folder)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        load_rollouts()


def test_the_stand_in_is_smooth_and_follows_from_its_seed() -> None:
    one, again, other = (torch.stack(oscillator_rollouts(20, 160, seed)) for seed in (0, 0, 1))
    assert one.shape == (20, 160, 17)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # A step moves a sine of period 8 or more by 2 pi / 8 of its amplitude at most; the two amplitudes are below 1.5.
    assert float(one.diff(dim=1).abs().max()) < 2 * 1.5 * 2 * torch.pi / 8
    assert float(one.std()) > 0.8


def small(variant: Variant, **options: Any) -> Variant:
    sizes = {"data": "synthetic stand-in: sines", "hidden_size": 6, "batch_size": 8}
    return dataclasses.replace(variant, settings=variant.settings | sizes | options)


@pytest.mark.parametrize("variant", WALKER.variants(False), ids=lambda variant: variant.name)
def test_every_row_trains_and_gives_its_figures(variant: Variant) -> None:
    task = WALKER.task(small(variant), 0)
    rows = [task.train_step(step) for step in range(2)]
    assert all(0 < row["train_loss"] < 10 for row in rows)
    assert set(task.test()) == {"validation_loss", "test_loss"}
    figures = task.finish()
    assert ("openness" in figures) == ("Phased" in variant.name)
    windows = split_windows(oscillator_rollouts(40, 160)).test
    persistence = float((windows.states - windows.next_states).square().mean())
    assert figures["persistence_loss"] == pytest.approx(persistence, rel=1e-5)


def test_the_end_takes_the_weights_of_the_lowest_validation_loss_after_a_checkpoint_too(tmp_path: Path) -> None:
    variant = small(next(variant for variant in WALKER.variants(False) if variant.name == "LSTM-delta"))
    task = WALKER.task(variant, 0)
    for step in range(5):
        task.train_step(step)
    best = task.test()
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.5)
    worse = task.test()
    assert worse["validation_loss"] > best["validation_loss"]
    save_checkpoint(tmp_path / "checkpoint", 5, task.model, task.optimizer)
    resumed = WALKER.task(variant, 1)
    load_checkpoint(tmp_path / "checkpoint", resumed.model, resumed.optimizer)
    assert resumed.test() == worse
    figures = resumed.finish()
    assert {name: figures[name] for name in best} == best


def test_half_of_the_mixed_units_see_every_observation() -> None:
    variant = next(variant for variant in WALKER.variants(False) if variant.name == "PhasedLSTM-mixed")
    (gate,) = WALKER.task(small(variant), 0).model.rnn.gates
    openness = gate(torch.arange(1, 65))
    assert openness[:, :3].round(decimals=5).eq(1).all()
    assert not openness[:, 3:].round(decimals=5).eq(1).all(0).any()


def test_a_batch_follows_from_seed_and_step() -> None:
    variant = small(WALKER.variants(True)[0])
    one, two, other = (WALKER.task(variant, seed) for seed in (1, 1, 2))
    one.train_step(0)
    assert torch.equal(one.batch(9).values, two.batch(9).values)
    assert torch.equal(one.batch(9).times, two.batch(9).times)
    assert not torch.equal(one.batch(9).values, other.batch(9).values)


def test_elapsed_time_is_an_input_where_the_name_says_so_and_gates_get_its_sum() -> None:
    rows = {variant.name: WALKER.task(small(variant), 0) for variant in WALKER.variants(False)}
    windows = split_windows(oscillator_rollouts(40, 160)).train
    whole = torch.arange(len(windows.states))
    for name, task in rows.items():
        batch = task._train.rows(whole)
        assert torch.equal(batch.values[..., :17], windows.states)
        assert batch.values.shape[-1] == (18 if name == "LSTM-delta" else 17)
        assert torch.equal(batch.times.diff(dim=1), windows.elapsed[:, 1:])
    assert torch.equal(rows["LSTM-delta"]._train.values[..., 17], windows.elapsed.float())
