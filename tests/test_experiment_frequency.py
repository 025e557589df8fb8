"""The frequency tasks: batches follow from seed and step, every row trains, pictures come with their summaries."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from phased_lstm.experiments import registry, runner
from phased_lstm.experiments.base import Variant
from phased_lstm.experiments.frequency import FrequencyTask, rectified_cross_entropy
from phased_lstm.experiments.supervised import Batch

NAMES = ("frequency-standard", "frequency-high", "frequency-async", "frequency-two")
TINY = {"hidden_size": 4, "batch_size": 4, "test_size": 6, "final_test_size": 12}


def tiny(name: str, variant: str = "PhasedLSTM", **changes: Any) -> Variant:
    found = next(made for made in registry.find(name).variants(False) if made.name == variant)
    return dataclasses.replace(found, settings=dict(found.settings) | TINY | changes)


def task(name: str, variant: str = "PhasedLSTM", seed: int = 1, **changes: Any) -> FrequencyTask:
    made = registry.find(name).task(tiny(name, variant, **changes), seed)
    assert isinstance(made, FrequencyTask)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_follows_from_seed_and_step(name: str) -> None:
    one, two, other = task(name), task(name), task(name, seed=2)
    for step in range(2):
        one.train_step(step)
    for first, second in zip(one.batch(7), two.batch(7), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(one.batch(7).values[:, :10], two.batch(8).values[:, :10])
    assert not torch.equal(one.batch(7).values[:, :10], other.batch(7).values[:, :10])


def test_tests_are_fresh_and_their_figures_follow_from_seed_and_step() -> None:
    one, two = task("frequency-async"), task("frequency-async")
    for made in (one, two):
        made.train_step(0)
    assert one.test() == two.test()
    before = one.test()
    one.batch(1)
    assert one.test() != before
    assert one.finish() == two.finish()


@pytest.mark.parametrize("name", NAMES)
def test_every_row_trains_and_gives_its_figures(name: str) -> None:
    for variant in registry.find(name).variants(False):
        made = task(name, variant.name)
        before = [parameter.clone() for parameter in made.model.parameters()]
        rows = [made.train_step(step) for step in range(2)]
        assert all(0.1 < row["train_loss"] < 5 and 0 <= row["train_accuracy"] <= 1 for row in rows)
        assert any(not torch.equal(old, new) for old, new in zip(before, made.model.parameters(), strict=True))
        figures = made.finish()
        assert 0 <= figures["test_accuracy"] <= 1
        assert 0 <= figures["protocol_test_accuracy"] <= 1
        phased = variant.name.startswith("Phased")
        assert ("openness" in figures) == ("updates_per_unit" in figures) == ("never_open_units" in figures) == phased


def test_the_protocol_is_kept() -> None:
    for name, epochs in zip(NAMES, (70, 70, 70, 300), strict=True):
        experiment = registry.find(name)
        assert experiment.schedule.seeds == (1, 2, 3, 4, 5)
        assert any(variant.name == "LSTM-tuned-short" for variant in experiment.variants(False)) == (epochs == 300)
        for variant in experiment.variants(False):
            settings = variant.settings
            short = variant.name == "LSTM-tuned-short"
            assert variant.steps == (100 if short else epochs) * 157
            decays = variant.name in ("PhasedLSTM-decay", "PhasedLSTM-tuned", "LSTM-tuned") or short
            assert variant.fixed_length == decays
            assert settings["decay_steps"] == (variant.steps if decays else 0)
            rate = 3e-3 if "LSTM-tuned" in variant.name else 1e-3
            assert (settings["hidden_size"], settings["batch_size"], settings["lr"]) == (110, 32, rate)
            assert settings["test_size"] == 512


def test_the_rate_falls_along_a_cosine() -> None:
    made = task("frequency-async", "PhasedLSTM-decay", decay_steps=4)
    rates = [made.train_step(step)["learning_rate"] for step in (0, 1, 2, 3)]
    assert rates == pytest.approx([1e-3, 8.535534e-4, 5e-4, 1.464466e-4])
    assert made.optimizer.param_groups[0]["lr"] == rates[-1]
    assert task("frequency-async").train_step(3000)["learning_rate"] == 1e-3


def test_the_head_is_rectified_before_the_softmax() -> None:
    outputs, targets = torch.tensor([[2.0, -3.0], [-1.0, 0.5]]), torch.tensor([1, 1])
    rectified = torch.tensor([[2.0, -0.03], [-0.01, 0.5]])
    wanted = -(rectified.exp() / rectified.exp().sum(1, keepdim=True)).log()[[0, 1], [1, 1]].mean()
    assert float(rectified_cross_entropy(outputs, targets)) == pytest.approx(float(wanted), rel=1e-6)


def test_the_tuned_lstm_remembers_from_the_start_and_keeps_its_logits() -> None:
    plain, tuned = task("frequency-async", "LSTM-raw"), task("frequency-async", "LSTM-tuned")
    units = tuned.model.rnn.hidden_size
    shift = tuned.model.rnn.bias_ih_l0 - plain.model.rnn.bias_ih_l0
    assert shift[units : 2 * units].allclose(torch.ones(units), atol=1e-6)
    assert not shift[:units].any()
    assert not shift[2 * units :].any()
    assert tuned.loss is torch.nn.functional.cross_entropy


def test_the_official_initialisation() -> None:
    made = task("frequency-async", "PhasedLSTM-official", hidden_size=200)
    rnn = made.model.rnn
    for name in ("weight_hh_l0", "weight_ci_l0", "weight_cf_l0", "weight_co_l0"):
        assert float(getattr(rnn, name).detach().std()) == pytest.approx(0.1, rel=0.25)
    assert float(rnn.weight_ih_l0.detach().std()) == pytest.approx(0.1, rel=0.25)
    bias = (rnn.bias_ih_l0 + rnn.bias_hh_l0).tolist()
    assert bias == pytest.approx([-0.1] * 200 + [0.0] * 600)
    gate = rnn.gate_l0
    assert -100 <= float(gate.shift.detach().min()) < -90
    assert -10 < float(gate.shift.detach().max()) <= 0
    assert float(gate.period.detach().min()) >= 2.718
    assert float(gate.period.detach().max()) <= 20.09
    ours = task("frequency-async", hidden_size=200).model.rnn.gate_l0
    assert float(ours.shift.detach().min()) >= 0
    assert bool((ours.shift < ours.period).all())
    with pytest.raises(ValueError, match="got 'official' of LSTM"):
        task("frequency-async", "LSTM-raw", init="official")


def test_padding_does_not_matter() -> None:
    """Padding at the beginning with the state copied, as the published code has it, comes to the same."""
    for variant in ("PhasedLSTM", "LSTM-raw"):
        made = task("frequency-async", variant)
        made.model.eval()
        batch = made.batch(3)
        together = made.model(batch.values, batch.times, batch.lengths)
        assert batch.lengths is not None
        for row, length in enumerate(batch.lengths.tolist()):
            alone = made.model(batch.values[row : row + 1, :length], batch.times[row : row + 1, :length])
            assert torch.allclose(alone[0], together[row], atol=1e-6)


def test_a_penalty_closes_the_gates() -> None:
    free, held = task("frequency-async"), task("frequency-async", openness_penalty=50.0)
    batch = free.batch(0)
    assert free.penalty(batch) is None
    penalty = held.penalty(batch)
    assert penalty is not None
    assert penalty.item() == pytest.approx(50.0 * _mean_openness(held, batch), rel=1e-4)
    for made in (free, held):
        for step in range(20):
            made.train_step(step)
    assert _mean_openness(held, batch) < _mean_openness(free, batch)


def test_the_ablation_changes_one_thing_at_a_time() -> None:
    experiment = registry.find("ablation-frequency")
    default, *others = experiment.variants(False)
    assert default.settings["gate"] == registry.find("frequency-async").variants(False)[0].settings["gate"]
    for variant in others:
        flat, wanted = ({**made.settings, **made.settings["gate"], "gate": None} for made in (variant, default))
        changed = {name for name in flat | wanted if flat.get(name) != wanted.get(name)}
        factors = {"leak", "openness_penalty", "oscillation", "cell", "peephole"}
        assert changed - {"trainable_ratio_on", "ratio_on"} <= factors
        assert 1 <= len(changed) <= 3, variant.name
    assert len({json.dumps(variant.settings) for variant in (default, *others)}) == 1 + len(others)


def test_every_row_of_the_ablation_trains_and_is_drawn(tmp_path: Path) -> None:
    experiment = registry.find("ablation-frequency")
    rows = []
    for variant in experiment.variants(False):
        made = experiment.task(dataclasses.replace(variant, settings=dict(variant.settings) | TINY), 1)
        assert made.train_step(0)["train_loss"] > 0.1
        before = [parameter.clone() for parameter in made.model.parameters()]
        figures = made.finish()
        # Timing steps must leave the model that is saved as it was tested.
        assert all(torch.equal(old, new) for old, new in zip(before, made.model.parameters(), strict=True))
        assert figures["cpu_seconds_per_step"] > 0
        assert 0 < figures["openness"] <= 1
        curve = {"step": [1.0], "test_accuracy": [0.5]}
        rows.append({"variant": variant.name, "mean": figures, "sd": {}, "curves": [curve]})
    summary = {
        "title": "", "metric": {"key": "test_accuracy", "label": "test accuracy"}, "epoch_steps": 1, "rows": rows,
    }  # fmt: skip
    assert [path.name for path in experiment.figures(summary, tmp_path)] == ["curves.png", "tradeoff.png"]
    assert (tmp_path / "tradeoff.png").stat().st_size > 5000


def _mean_openness(made: FrequencyTask, batch: Batch) -> float:
    """Over the valid steps of a batch, one after the other."""
    gate = made.model.rnn.gate_l0
    assert batch.lengths is not None
    with torch.no_grad():
        gate.eval()
        rows = [gate(times[:length]) for times, length in zip(batch.times, batch.lengths.tolist(), strict=True)]
        gate.train()
    return float(torch.cat(rows).mean())


def test_bars_are_drawn_once_all_conditions_are_there(tmp_path: Path) -> None:
    names = NAMES[:3]
    drawn = {}
    for name in names:
        experiment, out = registry.find(name), tmp_path / name
        row = {
            "variant": "PhasedLSTM", "mean": {"test_accuracy": 0.9}, "sd": {},
            "curves": [{"step": [1.0], "test_accuracy": [0.9]}],
        }  # fmt: skip
        summary = {
            "title": "", "metric": {"key": "test_accuracy", "label": "test accuracy"}, "epoch_steps": 1, "rows": [row],
        }  # fmt: skip
        out.mkdir()
        (out / runner.SUMMARY).write_text(json.dumps(summary))
        drawn[name] = [path.name for path in experiment.figures(summary, out)]
    assert drawn == {
        names[0]: ["curves.png"], names[1]: ["curves.png"], names[2]: ["curves.png", "conditions.png"],
    }  # fmt: skip
    assert (tmp_path / names[2] / "conditions.png").stat().st_size > 5000
