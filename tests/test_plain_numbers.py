"""Numbers and flags of numpy and torch wherever one of Python goes, kept as Python's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from phased_lstm import PhasedGRU, PhasedLSTM, PhasedLSTMCell, TimeGate
from phased_lstm.data import AddressEncoder, LengthBatchSampler, TokenEncoder
from phased_lstm.functional import phased_gru
from phased_lstm.models import NetworkConfig
from phased_lstm.training.fitting import FitConfig

INTEGERS = [np.int64(4), np.int8(4), np.array(4), torch.tensor(4)]
NUMBERS = [np.float32(0.25), np.float16(0.25), np.array(0.25), torch.tensor(0.25)]
FLAGS = [np.True_, np.array(True), torch.tensor(True)]


@pytest.mark.parametrize("number", INTEGERS)
def test_sizes(number: Any) -> None:
    for made, same in (
        (PhasedLSTM(number, number, number), PhasedLSTM(4, 4, 4)),
        (PhasedLSTMCell(number, number), PhasedLSTMCell(4, 4)),
        (TimeGate(number), TimeGate(4)),
        (TokenEncoder(number, number), TokenEncoder(4, 4)),
        (AddressEncoder(number, number, number, polarities=number), AddressEncoder(4, 4, 4, polarities=4)),
    ):
        assert repr(made) == repr(same)
        assert made.state_dict().keys() == same.state_dict().keys()
    assert type(PhasedLSTM(number, 4).input_size) is int
    assert len(LengthBatchSampler([1] * 8, number, seed=number, rank=np.int64(0))) == 2


@pytest.mark.parametrize("number", NUMBERS)
def test_gate_options(number: Any) -> None:
    gate = TimeGate(3, leak=number, ratio_on=number, period_init_min=number, period_init_max=np.int64(7))
    assert (gate.leak, type(gate.leak)) == (0.25, float)
    assert gate.ratio_on.tolist() == [0.25] * 3
    gate.assign_(period=number, origin=np.int64(5))
    assert gate.period.tolist() == [0.25] * 3
    assert gate.origin == 5
    layer = PhasedGRU(2, 3, 2, dropout=number, leak=number, ratio_on=number)
    assert repr(layer) == repr(PhasedGRU(2, 3, 2, dropout=0.25, leak=0.25, ratio_on=0.25))


@pytest.mark.parametrize("flag", FLAGS)
def test_flags(flag: Any) -> None:
    layer = PhasedLSTM(2, 3, bias=flag, batch_first=flag, bidirectional=flag, peephole=flag, trainable_ratio_on=flag)
    assert layer.batch_first is layer.bidirectional is layer.peephole is layer.bias is True
    assert layer.gate_l0.trainable_ratio_on is True
    output, _ = layer(torch.zeros(1, 4, 2), times=torch.arange(4), lengths=[np.int64(3)], return_sequence=flag)
    assert output.shape == (1, 4, 6)


def test_a_function_and_a_cell() -> None:
    x, h = torch.randn(1, 4, 2), torch.randn(1, 3)
    weights = [torch.randn(9, 2), torch.randn(9, 3), torch.randn(9), torch.randn(9)]
    gate = [torch.full((3,), number) for number in (5.0, 0.0, 0.5)]
    plain, numpys = (
        phased_gru(x, torch.arange(4), h, *weights, *gate, leak=leak, reverse=reverse)[0]
        for leak, reverse in ((0.25, True), (np.float32(0.25), np.True_))
    )
    assert torch.equal(plain, numpys)
    cell = PhasedLSTMCell(2, 3)
    states = [cell(x[0, :1], None, time)[0] for time in (3.0, np.float32(3.0), np.array(3.0))]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
    assert torch.equal(cell(x[0, :1], None, 3)[0], cell(x[0, :1], None, np.int32(3))[0])


def test_a_stream_takes_times_of_numpy() -> None:
    layer = PhasedLSTM(2, 3)
    outputs = [layer.stream().push(time, torch.ones(2)) for time in (3.0, np.float32(3.0), np.array(3.0))]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_configurations_stay_json() -> None:
    options: dict[str, Any] = {
        "outputs": np.int64(3), "hidden_size": np.array(8), "num_layers": torch.tensor(2), "head_size": np.int32(0),
        "dropout": np.float32(0.5), "ratio_on": np.float64(0.25), "leak": np.float32(0.5), "per_step": np.False_,
        "cell": np.str_("PhasedGRU"), "forget_bias": np.int64(2),
    }  # fmt: skip
    config = NetworkConfig(channels=np.array(["a", "b"]), **options)  # type: ignore[arg-type]
    plain = NetworkConfig(
        channels=("a", "b"), outputs=3, hidden_size=8, num_layers=2, dropout=0.5, ratio_on=0.25, leak=0.5,
        cell="PhasedGRU", forget_bias=2.0,
    )  # fmt: skip
    assert config == plain
    assert repr(config) == repr(plain)
    assert json.dumps(config.to_json()) == json.dumps(plain.to_json())
    fit = FitConfig(epochs=np.int64(3), lr=np.float32(0.5), cosine=np.False_, warmup=np.int8(2), seed=np.int64(7))
    assert repr(fit) == repr(FitConfig(epochs=3, lr=0.5, cosine=False, warmup=2.0, seed=7))


def test_what_is_no_such_number_is_refused() -> None:
    for value in (np.float64(4.0), np.True_, np.array([4]), "4", None):
        with pytest.raises(TypeError, match="hidden_size should be of type int, got"):
            PhasedLSTM(2, value)  # type: ignore[arg-type]
    for value in (np.int64(1), np.array([True]), "yes"):
        with pytest.raises(TypeError, match="batch_first should be of type bool, got"):
            PhasedLSTM(2, 3, batch_first=value)  # type: ignore[arg-type]
    for value in (np.True_, np.array([0.5]), 0.5j):
        with pytest.raises(TypeError, match="leak should be a number, got"):
            TimeGate(3, leak=value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ratio_on should be in"):
        TimeGate(3, ratio_on=np.float32("nan"))
    with pytest.raises(TypeError, match="channels should be names, as a tuple, got the string 'hr'"):
        NetworkConfig("hr", 2)  # type: ignore[arg-type]
    for name, value in (
        ("lr", np.inf),
        ("lr", 0.0),
        ("clip_grad_norm", -1.0),
        ("weight_decay", np.nan),
        ("warmup", -1),
    ):
        with pytest.raises(ValueError, match=f"{name} should be"):
            FitConfig(**{name: value})
