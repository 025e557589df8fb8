"""Networks over measured sequences: what they compute, and that they are what was saved."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from phased_lstm.data import EventBatch, EventDataset
from phased_lstm.errors import RunError
from phased_lstm.models import (
    NetworkConfig,
    SequenceNetwork,
    gate_sample,
    measured_channels,
    suggested_ratio,
    warn_of_absent_channels,
)

CHANNELS = ("hr", "bp")


def events(count: int = 6, longest: int = 9) -> EventBatch:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(3, longest + 1, (count,), generator=generator)
    total = int(lengths.sum())
    values = torch.randn(total, 2, generator=generator) * torch.tensor([10.0, 0.1]) + torch.tensor([80.0, 1.0])
    values[torch.rand(total, 2, generator=generator) < 0.3] = torch.nan
    times = torch.randint(1, 50, (total,), generator=generator).cumsum(0) + 1_700_000_000
    return EventBatch.from_lengths(values, times, lengths)


def network(**options: Any) -> SequenceNetwork:
    config: dict[str, Any] = {"channels": CHANNELS, "outputs": 3, "hidden_size": 5, "ratio_on": 0.5} | options
    made = SequenceNetwork(NetworkConfig(**config))
    static = torch.randn(6, len(made.config.static)) if made.config.static else None
    return made.fit_(EventDataset(events(), None, static))


@pytest.mark.parametrize("cell", ["PhasedLSTM", "PhasedGRU"])
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_outputs_do_not_depend_on_the_batch(cell: str, per_step: bool, bidirectional: bool) -> None:
    net = network(
        cell=cell, per_step=per_step, bidirectional=bidirectional, static=("age",), head_size=4, num_layers=2
    ).eval()  # fmt: skip
    batch, static = events(), torch.randn(6, 1)
    values, times, lengths = batch.padded()
    together = net(values, times, lengths, static)
    assert together.shape == ((6, int(lengths.max()), 3) if per_step else (6, 3))
    for row in range(6):
        length = int(lengths[row])
        alone = net(
            values[row : row + 1, :length], times[row : row + 1, :length], lengths[row : row + 1], static[row : row + 1]
        )
        shared = together[row, :length] if per_step else together[row]
        torch.testing.assert_close(alone[0], shared)


def test_the_scale_of_values_and_of_time_does_not_matter() -> None:
    batch = events()
    outputs: list[Tensor] = []
    for factor, offset, unit in ((1.0, 0.0, 1), (1000.0, -7.0, 60)):
        torch.manual_seed(3)
        scaled = EventBatch(
            batch.values.double() * factor + offset, (batch.times - 1_700_000_000) * unit, batch.offsets
        )
        net = SequenceNetwork(NetworkConfig(CHANNELS, 2, hidden_size=8, ratio_on=0.4)).double()
        values, times, lengths = scaled.padded()
        net.scale.fit_(scaled)
        net.fit_times_(scaled)
        outputs.append(net(values, times, lengths))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_the_time_scale_is_the_median_interval_within_sequences() -> None:
    batch = EventBatch(torch.zeros(7, 1), torch.tensor([0, 2, 4, 10, 1000, 1003, 1005]), torch.tensor([0, 4, 4, 7]))
    net = SequenceNetwork(NetworkConfig(("a",), 1, hidden_size=4, ratio_on=1.0)).fit_times_(batch)
    assert net.time_scale == 2.0


def test_a_query_step_reads_its_time() -> None:
    """A step without measurements gets an output that follows its time."""
    net = network(per_step=True, outputs=1, target="regression").eval()
    values = torch.tensor([[[80.0, 1.0], [torch.nan, torch.nan]]])
    first, later = (
        net(values, torch.tensor([[1_700_000_000, 1_700_000_000 + dt]]), torch.tensor([2])) for dt in (1, 40)
    )
    assert torch.equal(first[:, 0], later[:, 0])
    assert first.isfinite().all()
    assert first[0, 1] != later[0, 1]


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    net = network(static=("age", "sex"), classes=("a", "b", "c")).eval()
    net.save(tmp_path / "model")
    loaded = SequenceNetwork.load(tmp_path / "model")
    assert loaded.config == net.config
    assert not loaded.training
    inputs = (*events().padded(), torch.randn(6, 2))
    assert torch.equal(loaded(*inputs), net(*inputs))
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_that_is_no_model_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not the folder of a model"):
        SequenceNetwork.load(tmp_path)
    net = network()
    net.save(tmp_path)
    config = tmp_path / "config.json"
    content = json.loads(config.read_text())
    for change, message in (
        ({"phased_lstm_network": 2}, "format 2, this version reads up to 1: upgrade"),
        ({"phased_lstm_network": None}, "does not describe a network"),
        ({"network": {}}, "damaged"),
        ({"network": content["network"] | {"depth": 3}}, "damaged: .*depth"),
        ({"network": content["network"] | {"hidden_size": 6}}, "another configuration"),
        ({"network": content["network"] | {"leak": 0.5}}, "of two models"),
    ):
        config.write_text(json.dumps(content | change))
        with pytest.raises(RunError, match=message):
            SequenceNetwork.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ()}, "at least one channel"),
        ({"cell": "LSTM"}, "cell should be one of PhasedLSTM, PhasedGRU"),
        ({"target": "ranking"}, "target should be one of"),
        ({"outputs": 2, "classes": ("a",)}, "one for each of the 1 classes"),
        ({"dropout": 1.0}, "dropout should be in"),
        ({"head_size": -1}, "head_size should be 0"),
    ],
)
def test_configurations_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**({"channels": CHANNELS, "outputs": 3} | change))


def test_configurations_are_json() -> None:
    config = NetworkConfig(CHANNELS, 2, classes=("no", "yes"), static=("age",))
    assert NetworkConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.to_json().keys() == {item.name for item in dataclasses.fields(NetworkConfig)}


def test_static_features_are_asked_for() -> None:
    values, times, lengths = events().padded()
    with pytest.raises(ValueError, match="has 1 static features, got none"):
        network(static=("age",))(values, times, lengths)
    with pytest.raises(ValueError, match="has no static features"):
        network()(values, times, lengths, torch.zeros(6, 1))
    with pytest.raises(ValueError, match=r"static should be of shape \(N, 1\), got \(6, 2\)"):
        network(static=("age",))(values, times, lengths, torch.zeros(6, 2))
    with pytest.raises(ValueError, match=r"values should be of shape \(N, L, \d\), a column for each channel, got"):
        network()(values[..., :1], times, lengths)


def test_the_sample_for_gates_is_bounded() -> None:
    many = EventBatch.from_lengths(torch.zeros(3000, 1), torch.arange(3000), [3] * 1000)
    sample = gate_sample(many)
    assert len(sample) == 512
    assert sample.times[0] == 0
    assert sample.times[-1] == 2999
    assert gate_sample(many[:10]).equal(many[:10])


@pytest.mark.parametrize(("length", "ratio"), [(20, 0.2), (100, 0.1), (499, 0.1), (500, 0.05)])
def test_short_sequences_get_a_larger_ratio(length: int, ratio: float) -> None:
    assert suggested_ratio(torch.tensor([length] * 3)) == ratio


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"per_step": True, "static": ("age",)}, {"target": "regression"}])
def test_scales_keep_their_digits_in_a_network_of_another_type(dtype: torch.dtype, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(**{"channels": ("p",), "outputs": 2, "hidden_size": 8, "ratio_on": 0.3} | options)
    # Pascals and microseconds: neither fits the range, or the digits, of 16 bits.
    values = torch.randn(4, 20, 1) * 2e4 + 101_325.0
    times = (torch.rand(4, 20, dtype=torch.float64) * 3.6e9).sort(1).values.long()
    static = torch.randn(4, 1) + 1e5 if config.static else None
    net = SequenceNetwork(config)
    net.fit_(EventDataset(EventBatch.from_padded(values, times), None, static), targets=torch.randn(4, 2) * 1e6 + 1e6)
    net.eval()
    inputs = (values, times, torch.full((4,), 20), static)
    cast = copy.deepcopy(net).to(dtype)
    again = copy.deepcopy(cast).float()
    for name in ("scale", "static_scale", "target_scale"):
        scale = getattr(net, name)
        if scale is not None:
            for other in (cast, again):
                assert torch.equal(getattr(other, name).mean, scale.mean)
                assert torch.equal(getattr(other, name).std, scale.std)
    assert cast.time_scale == net.time_scale
    assert cast.head.weight.dtype == dtype
    torch.testing.assert_close(cast(*inputs).float(), net(*inputs), rtol=0, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_network_is_loaded_in_the_type_in_which_it_was_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    net = network(head_size=3).to(dtype).eval()
    net.save(tmp_path)
    loaded = SequenceNetwork.load(tmp_path)
    inputs = events().padded()
    assert torch.equal(loaded(*inputs), net(*inputs))
    assert {name: part.dtype for name, part in loaded.state_dict().items()} == {
        name: part.dtype for name, part in net.state_dict().items()
    }


def test_a_narrow_checkpoint_is_widened_where_it_is_assigned() -> None:
    net = network()
    narrow = {name: part.half() if part.is_floating_point() else part for name, part in net.state_dict().items()}
    other = network()
    other.load_state_dict(narrow, assign=True)
    assert other.scale.mean.dtype == other.time_scale.dtype == torch.float64
    assert other.head.weight.dtype == torch.float16


def test_values_on_a_large_offset_give_what_they_give_without() -> None:
    batch = events()
    outputs = []
    for offset in (0.0, 1.7e9):
        torch.manual_seed(3)
        # Differences of binary fractions, so that adding the offset rounds nothing.
        values = (batch.values * 64).round().double() / 64 + offset
        net = SequenceNetwork(NetworkConfig(CHANNELS, 2, hidden_size=8, ratio_on=0.4))
        moved = EventBatch(values, batch.times, batch.offsets)
        outputs.append(net.fit_(EventDataset(moved))(*moved.padded()))
    assert outputs[0].dtype == torch.float32
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


def test_times_that_all_go_back_have_a_scale() -> None:
    forward = EventBatch(torch.zeros(7, 1), torch.tensor([0, 2, 4, 10, 1000, 1003, 1005]), torch.tensor([0, 4, 4, 7]))
    back = EventBatch(forward.values, -forward.times, forward.offsets)
    net = SequenceNetwork(NetworkConfig(("a",), 1, hidden_size=4, ratio_on=1.0)).fit_times_(back)
    assert net.time_scale == 2.0
    assert net(*back.padded()).isfinite().all()


def test_channels_that_prediction_lacks_are_named() -> None:
    batch = events()
    net = network()
    values = batch.values.clone()
    values[:, 1] = torch.nan
    lacking = EventBatch(values, batch.times, batch.offsets)
    with pytest.warns(UserWarning, match="1 of 2 channels have no value at all here and had some in training: bp"):
        warn_of_absent_channels(net, measured_channels(lacking))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_absent_channels(net, measured_channels(batch))
        # Some part has them, or training had none either.
        warn_of_absent_channels(net, measured_channels(lacking) | measured_channels(batch))
        warn_of_absent_channels(network().fit_(EventDataset(lacking)), measured_channels(lacking))


@pytest.mark.parametrize("what", ["static features", "targets"])
def test_what_cannot_be_scaled_is_named(what: str) -> None:
    config = NetworkConfig(CHANNELS, 1, target="regression", static=("age",), hidden_size=4, ratio_on=0.5)
    static, targets = torch.randn(6, 1), torch.randn(6, 1)
    (static if what == "static features" else targets)[2] = torch.inf
    with pytest.raises(ValueError, match=f"{what}: values of channel 0 are infinite"):
        SequenceNetwork(config).fit_(EventDataset(events(), None, static), targets=targets)


def test_intervals_of_integers_are_exact() -> None:
    """Beyond 2**53 as integers, and beyond 2**31 for those of 32 bits."""
    start = 1_700_000_000_000_000_001
    fast = EventBatch(torch.zeros(4, 1), start + torch.tensor([0, 30, 60, 90]), torch.tensor([0, 4]))
    net = SequenceNetwork(NetworkConfig(("a",), 1, hidden_size=4, ratio_on=1.0)).fit_times_(fast)
    assert net.time_scale == 30.0
    far = torch.tensor([[-(2**31), 2**31 - 1]], dtype=torch.int32)
    values, lengths = torch.zeros(1, 2, 1), torch.tensor([2])
    assert torch.equal(net(values, far, lengths), net(values, far.long(), lengths))
    assert net._inputs(values, far)[0, 1, -1] > 10.0


def test_integer_values_on_a_large_offset() -> None:
    values = torch.arange(8).reshape(1, 8, 1)
    outputs = []
    for offset in (0, 1_700_000_000):
        torch.manual_seed(0)
        net = SequenceNetwork(NetworkConfig(("a",), 1, hidden_size=4, ratio_on=0.5))
        batch = EventBatch.from_padded(values + offset, torch.arange(8))
        outputs.append(net.fit_(EventDataset(batch))(*batch.padded()))
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.parametrize("shape", [(9,), (1, 9), (9, 6)])
def test_times_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"times should be of shape \(6, 9\), a row for each sequence, got"):
        network()(torch.randn(6, 9, 2), torch.zeros(shape), torch.full((6,), 9))


def test_static_features_are_rows() -> None:
    with pytest.raises(ValueError, match=r"static should be of shape \(N, 1\), got \(1,\)"):
        network(static=("age",))(torch.randn(1, 9, 2), torch.arange(9.0)[None], torch.tensor([9]), torch.zeros(1))
