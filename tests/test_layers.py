"""torch.nn's contract: with every gate held open, the layers are nn.LSTM and nn.GRU."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from phased_lstm import PhasedGRU, PhasedLSTM

PAIRS = pytest.mark.parametrize("pair", [(PhasedLSTM, nn.LSTM), (PhasedGRU, nn.GRU)], ids=["lstm", "gru"])
PHASED = pytest.mark.parametrize("phased", [PhasedLSTM, PhasedGRU])
TABLE = [
    dict(zip(("bias", "batch_first", "bidirectional", "num_layers"), row, strict=True))
    for row in itertools.product([True, False], [True, False], [True, False], [1, 3])
]
# Ten steps of three layers; torch's kernels sum in another order.
CLOSE = {"rtol": 1e-11, "atol": 1e-13}


def hold_open(rnn: Any, ratio: float = 1.0) -> Any:
    """Make k = 1 at all integer times: a period of 1, and the gate's peak at phase 0."""
    for gate in rnn.gates:
        gate.assign_(period=1.0, shift=-ratio / 2, ratio_on=ratio)
    return rnn


def twins(pair: Any, input_size: int = 3, hidden_size: int = 5, **options: Any) -> tuple[Any, Any]:
    """A phased layer held open and a torch layer with the same weights."""
    phased, plain = pair
    theirs = plain(input_size, hidden_size, dtype=torch.float64, **options)
    convert = phased.from_lstm if phased is PhasedLSTM else phased.from_gru
    return hold_open(convert(theirs)), theirs


def flatten(result: Any) -> list[Tensor]:
    """Output and states as plain tensors."""
    output, states = result
    output = output.data if isinstance(output, PackedSequence) else output
    return [output, *(states if isinstance(states, tuple) else (states,))]


def assert_same(mine: Any, theirs: Any, close: dict[str, float] = CLOSE) -> None:
    for got, wanted in zip(flatten(mine), flatten(theirs), strict=True):
        torch.testing.assert_close(got, wanted, **close)


def states_for(rnn: Any, *batch: int) -> Any:
    shape = (rnn.num_layers * (1 + rnn.bidirectional), *batch, rnn.hidden_size)
    h = torch.randn(shape, dtype=torch.float64)
    return (h, torch.randn(shape, dtype=torch.float64)) if isinstance(rnn, PhasedLSTM) else h


@PAIRS
@pytest.mark.parametrize("options", TABLE, ids=str)
def test_equals_torch(pair: Any, options: dict[str, Any]) -> None:
    mine, theirs = twins(pair, **options)
    x = torch.randn((4, 10, 3) if options["batch_first"] else (10, 4, 3), dtype=torch.float64)
    assert_same(mine(x), theirs(x))
    hx = states_for(mine, 4)
    assert_same(mine(x, hx), theirs(x, hx))
    step = x.narrow(1 if options["batch_first"] else 0, 0, 1)
    assert_same(mine(step, hx), theirs(step, hx))


@PAIRS
@pytest.mark.parametrize("options", TABLE, ids=str)
def test_unbatched_equals_torch_and_rows_of_a_batch(pair: Any, options: dict[str, Any]) -> None:
    mine, theirs = twins(pair, **options)
    x = torch.randn(10, 3, dtype=torch.float64)
    hx = states_for(mine)
    assert_same(mine(x), theirs(x))
    assert_same(mine(x, hx), theirs(x, hx))
    batch = torch.stack([x, x.flip(0)], 0 if options["batch_first"] else 1)
    output, *states = flatten(mine(batch))
    rows = [output.select(0 if options["batch_first"] else 1, 1), *(state[:, 1] for state in states)]
    for got, wanted in zip(flatten(mine(x.flip(0))), rows, strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)


@PAIRS
@pytest.mark.parametrize("options", TABLE, ids=str)
@pytest.mark.parametrize("ordered", [True, False])
def test_packed_equals_torch(pair: Any, options: dict[str, Any], ordered: bool) -> None:
    mine, theirs = twins(pair, **options)
    x = torch.randn((4, 10, 3) if options["batch_first"] else (10, 4, 3), dtype=torch.float64)
    lengths = [10, 7, 7, 1] if ordered else [7, 1, 10, 7]
    packed = pack_padded_sequence(x, lengths, options["batch_first"], enforce_sorted=ordered)
    hx = states_for(mine, 4)
    for arguments in ((packed,), (packed, hx)):
        got, wanted = mine(*arguments), theirs(*arguments)
        assert_same(got, wanted)
        assert isinstance(got[0], PackedSequence)
        assert torch.equal(got[0].batch_sizes, wanted[0].batch_sizes)
        for name in ("sorted_indices", "unsorted_indices"):
            theirs_order, my_order = getattr(wanted[0], name), getattr(got[0], name)
            assert my_order is theirs_order if theirs_order is None else torch.equal(my_order, theirs_order)
    padded, _ = pad_packed_sequence(got[0], options["batch_first"])
    output, states = mine(x, hx, lengths=lengths)
    torch.testing.assert_close(output, padded, **CLOSE)
    assert_same((output, states), (padded, wanted[1]))


@PAIRS
@pytest.mark.parametrize("ratio", [0.05, 0.3])
def test_equals_torch_in_float32_at_other_ratios(pair: Any, ratio: float) -> None:
    mine, theirs = twins(pair)
    mine, theirs = hold_open(mine.float(), ratio), theirs.float()
    x = torch.randn(10, 4, 3)
    # The ratio's own rounding moves the peak by about 2 / r roundings.
    eps = torch.finfo(torch.float32).eps
    assert_same(mine(x), theirs(x), {"rtol": 0, "atol": 10 * 2 / ratio * eps})


@PAIRS
def test_square_gates_at_ratio_one_equal_torch_at_any_times(pair: Any) -> None:
    plain = pair[1](3, 5, 2, dtype=torch.float64, bidirectional=True)
    ours = pair[0](3, 5, 2, dtype=torch.float64, bidirectional=True, oscillation="square", ratio_on=1.0)
    ours.load_state_dict(ours.state_dict() | plain.state_dict())
    values, times = torch.randn(7, 4, 3, dtype=torch.float64), 1000.0 * torch.rand(7, 4).cumsum(0)
    got, wanted = ours(values, times=times), plain(values)
    torch.testing.assert_close(got, wanted, **CLOSE)


@PAIRS
@pytest.mark.parametrize("bidirectional", [True, False])
def test_gradients_equal_torch(pair: Any, bidirectional: bool) -> None:
    mine, theirs = twins(pair, num_layers=2, bidirectional=bidirectional)
    x = torch.randn(10, 4, 3, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for rnn, value in zip((mine, theirs), inputs, strict=True):
        sum((part * torch.arange(part.numel()).view_as(part)).sum() for part in flatten(rnn(value))).backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-9, atol=1e-9)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(mine.get_parameter(name).grad, parameter.grad, rtol=1e-9, atol=1e-9)


@PAIRS
@pytest.mark.parametrize("options", TABLE, ids=str)
def test_parameters_have_torch_names_order_and_shapes(pair: Any, options: dict[str, Any]) -> None:
    mine, theirs = (made(3, 5, **options) for made in pair)
    weights = [(n, p.shape) for n, p in mine.named_parameters() if not n.startswith("gate_")]
    assert weights == [(n, p.shape) for n, p in theirs.named_parameters()]
    assert [[w.shape for w in group] for group in mine.all_weights] == [
        [w.shape for w in group] for group in theirs.all_weights
    ]
    suffixes = [n.removeprefix("weight_hh_") for n, _ in weights if n.startswith("weight_hh_")]
    assert [n for n, _ in mine.named_children()] == [f"gate_{suffix}" for suffix in suffixes]
    assert mine.flatten_parameters() is None
    bound = 5**-0.5
    assert all(p.abs().max() <= bound for n, p in mine.named_parameters() if not n.startswith("gate_"))


def test_peepholes_are_keys_of_their_own() -> None:
    plain = {n for n, _ in PhasedLSTM(3, 5, 2, bidirectional=True).named_parameters()}
    extra = {
        n: p for n, p in PhasedLSTM(3, 5, 2, bidirectional=True, peephole=True).named_parameters() if n not in plain
    }
    suffixes = ("l0", "l0_reverse", "l1", "l1_reverse")
    assert set(extra) == {f"weight_c{gate}_{suffix}" for gate in "ifo" for suffix in suffixes}
    assert {p.shape for p in extra.values()} == {(5,)}


def test_reset_parameters_draws_everything_anew() -> None:
    rnn = PhasedLSTM(3, 5, 2, peephole=True)
    with torch.no_grad():
        rnn.gate_l0.raw_period.fill_(1.0)
    before = {name: value.clone() for name, value in rnn.state_dict().items()}
    rnn.reset_parameters()
    for name, value in rnn.state_dict().items():
        if "raw" in name:
            assert not value.any(), name
        elif "ratio_on" not in name and "origin" not in name:
            assert not torch.equal(value, before[name]), name


@PAIRS
@pytest.mark.parametrize("unbatched", [False, True])
def test_a_sequence_of_no_steps_keeps_its_state(pair: Any, unbatched: bool) -> None:
    """torch.nn raises here; a stream may well bring an empty chunk."""
    phased, _ = pair
    rnn = phased(3, 5)
    h = torch.randn(1, 5) if unbatched else torch.randn(1, 2, 5)
    hx = (h, h + 1) if phased is PhasedLSTM else h
    output, state = rnn(torch.zeros(0, 3) if unbatched else torch.zeros(0, 2, 3), hx)
    assert output.shape == ((0, 5) if unbatched else (0, 2, 5))
    for new, old in zip(
        state if phased is PhasedLSTM else (state,), hx if phased is PhasedLSTM else (hx,), strict=True
    ):
        assert torch.equal(new, old)


@PAIRS
def test_loading_a_plain_checkpoint(pair: Any) -> None:
    phased, plain = pair
    source, target = plain(3, 5, 2), phased(3, 5, 2)
    gates = {k: v.clone() for k, v in target.state_dict().items() if k.startswith("gate_")}
    with pytest.warns(UserWarning, match=r"layer without time gates: .*gate_l0\.raw_period.*gate_l1\.origin") as caught:
        result = target.load_state_dict(source.state_dict())
    assert len(caught) == 1
    assert not result.missing_keys
    assert not result.unexpected_keys
    for key, value in (source.state_dict() | gates).items():
        assert torch.equal(target.state_dict()[key], value), key
    partial = {key: value for key, value in source.state_dict().items() if key != "bias_ih_l1"}
    with (
        pytest.warns(UserWarning, match="layer without time gates"),
        pytest.raises(RuntimeError, match=r"Missing key.*bias_ih_l1"),
    ):
        target.load_state_dict(partial)


def test_a_plain_checkpoint_loads_into_a_layer_with_peepholes() -> None:
    source, target = torch.nn.LSTM(3, 5), PhasedLSTM(3, 5, peephole=True)
    with pytest.warns(
        UserWarning, match=r"layer without time gates and peepholes: weight_ci_l0, .*gate_l0\.raw_period"
    ):
        target.load_state_dict(source.state_dict())
    assert torch.equal(target.weight_hh_l0, source.weight_hh_l0)


@PAIRS
def test_a_plain_checkpoint_of_a_whole_model_loads(pair: Any) -> None:
    """Checkpoints are mostly of models that hold a layer, not of the layer."""
    phased, plain = pair
    source = torch.nn.ModuleDict({"rnn": plain(3, 5), "head": torch.nn.Linear(5, 2)})
    target = torch.nn.ModuleDict({"rnn": phased(3, 5), "head": torch.nn.Linear(5, 2)})
    with pytest.warns(UserWarning, match=r"rnn\.gate_l0\.raw_period"):
        target.load_state_dict(source.state_dict())
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


@PHASED
def test_a_checkpoint_with_an_impossible_gate_is_refused(phased: Any) -> None:
    state = phased(3, 5).state_dict()
    state["gate_l0.initial_period"] = torch.zeros(5)
    with pytest.raises(RuntimeError, match=r"gate_l0\.initial_period should be positive and finite"):
        phased(3, 5).load_state_dict(state)


@PHASED
def test_a_16_bit_checkpoint_leaves_the_gate_wide(phased: Any) -> None:
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in phased(3, 5).state_dict().items()
    }
    rnn = phased(3, 5)
    rnn.load_state_dict(state, assign=True)
    assert rnn.weight_ih_l0.dtype == torch.float16
    assert rnn.gate_l0.raw_period.dtype == torch.float32
    assert rnn.gate_l0.initial_period.dtype == torch.float32


@PHASED
def test_a_gate_of_another_size_is_refused(phased: Any) -> None:
    rnn = phased(3, 5)
    rnn.gate_l0 = phased(3, 1).gate_l0
    with pytest.raises(ValueError, match="gate_l0 is of 1 units, the layer has 5"):
        rnn(torch.zeros(2, 1, 3))


@PAIRS
def test_conversion_keeps_frozen_weights_frozen(pair: Any) -> None:
    phased, plain = pair
    source = plain(3, 5)
    source.weight_ih_l0.requires_grad_(False)
    convert = phased.from_lstm if phased is PhasedLSTM else phased.from_gru
    target = convert(source, dtype=torch.float64)
    assert not target.weight_ih_l0.requires_grad
    assert target.weight_hh_l0.requires_grad
    assert target.weight_hh_l0.dtype == torch.float64


@PHASED
def test_fit_gates_reads_times_in_the_layout_of_the_layer(phased: Any) -> None:
    rows = torch.arange(300.0) * 60 + torch.rand(8, 1) * 0.5
    lengths = torch.tensor([300, 300, 300, 200, 200, 150, 300, 300])
    packed = pack_padded_sequence(rows.unsqueeze(-1), lengths, batch_first=True, enforce_sorted=False)
    packed = PackedSequence(packed.data.squeeze(-1), *packed[1:])
    jagged = torch.nested.nested_tensor([row[:n] for row, n in zip(rows, lengths, strict=True)], layout=torch.jagged)
    fitted = []
    for times, given, batch_first in (
        (rows.T, lengths, False), (rows, lengths, True), (packed, None, False), (jagged, None, False),
    ):  # fmt: skip
        rnn = phased(3, 16, 2, batch_first=batch_first)
        assert rnn.fit_gates_(times, given, generator=torch.Generator().manual_seed(3)) is rnn
        fitted.append(rnn)
    for rnn in fitted:
        assert rnn.gate_l0.period.min() >= 4 * 60 - 1
        assert rnn.gate_l1.period.max() <= 300 * 60
        assert torch.equal(rnn.gate_l1.period, fitted[0].gate_l1.period)
    assert not torch.equal(fitted[0].gate_l0.period, fitted[0].gate_l1.period)


@PHASED
def test_a_checkpoint_with_gates_loads_strictly(phased: Any) -> None:
    source, target = phased(3, 5, 2), phased(3, 5, 2)
    source.gate_l0.assign_(origin=77)
    target.load_state_dict(source.state_dict())
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key
    partial = {k: v for k, v in source.state_dict().items() if k != "gate_l1.raw_shift"}
    with pytest.raises(RuntimeError, match=r"Missing key.*gate_l1\.raw_shift"):
        target.load_state_dict(partial)
    with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
        target.load_state_dict(phased(4, 5, 2).state_dict())


@PAIRS
def test_from_torch_copies_configuration_and_weights(pair: Any) -> None:
    phased, plain = pair
    options = {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.25, "bidirectional": True}
    source = plain(3, 5, dtype=torch.float64, **options).eval()
    convert = phased.from_lstm if phased is PhasedLSTM else phased.from_gru
    target = convert(source, ratio_on=0.3, oscillation="cosine")
    for name, value in ({"input_size": 3, "hidden_size": 5} | options).items():
        assert getattr(target, name) == value
    for name, parameter in source.named_parameters():
        assert torch.equal(target.get_parameter(name), parameter)
        assert target.get_parameter(name) is not parameter
    assert not target.training
    assert target.gate_l1_reverse.oscillation == "cosine"
    assert target.gate_l0.raw_period.dtype == torch.float64
    torch.testing.assert_close(target.gate_l0.ratio_on, torch.full((5,), 0.3, dtype=torch.float64))


def test_from_torch_with_peepholes_keeps_them_as_drawn() -> None:
    rnn = PhasedLSTM.from_lstm(nn.LSTM(3, 5), peephole=True)
    assert rnn.weight_ci_l0.abs().max() > 0


def test_from_torch_refuses_what_it_cannot_represent() -> None:
    with pytest.raises(NotImplementedError, match="proj_size=2"):
        PhasedLSTM.from_lstm(nn.LSTM(3, 5, proj_size=2))
    with pytest.raises(TypeError, match=r"from_lstm takes a torch\.nn\.LSTM, got: GRU"):
        PhasedLSTM.from_lstm(nn.GRU(3, 5))
    with pytest.raises(TypeError, match=r"from_gru takes a torch\.nn\.GRU, got: LSTM"):
        PhasedGRU.from_gru(nn.LSTM(3, 5))


@PAIRS
def test_repr_is_torchs_with_what_is_phased_behind(pair: Any) -> None:
    phased, plain = pair
    for options in ({}, {"num_layers": 2, "batch_first": True, "bidirectional": True, "dropout": 0.5, "bias": False}):
        assert phased(3, 5, **options).extra_repr() == plain(3, 5, **options).extra_repr()
    shown = phased(3, 5, leak=0.001, ratio_on=0.1, backend="reference").extra_repr()
    assert shown == "3, 5, leak=0.001, ratio_on=0.1, backend='reference'"
    assert PhasedLSTM(3, 5, peephole=True).extra_repr() == "3, 5, peephole=True"


@PHASED
def test_dropout_acts_between_layers_in_training_only(phased: Any) -> None:
    rnn = hold_open(phased(3, 50, 2, dropout=0.5))
    x = torch.randn(6, 2, 3)
    first, second = rnn(x)[0], rnn(x)[0]
    assert not torch.equal(first, second)
    assert (first != 0).all()
    rnn.eval()
    assert torch.equal(rnn(x)[0], rnn(x)[0])
    everything = hold_open(phased(3, 5, 2, dropout=1.0, bias=False))
    assert not everything(x)[0].any()
    assert flatten(everything(x))[1][0].any()


@PHASED
def test_dropout_of_a_single_layer_warns_as_torch_does(phased: Any) -> None:
    message = (
        "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
        "num_layers greater than 1, but got dropout=0.5 and num_layers=1"
    )
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        phased(3, 5, dropout=0.5)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@PHASED
def test_non_contiguous_input_and_empty_batch(phased: Any) -> None:
    rnn = phased(3, 5, ratio_on=0.5)
    x = torch.randn(4, 3, 10).transpose(1, 2).transpose(0, 1)
    assert not x.is_contiguous()
    assert_same(rnn(x), rnn(x.contiguous()), {"rtol": 0, "atol": 1e-6})
    output, *states = flatten(rnn(torch.zeros(10, 0, 3)))
    assert output.shape == (10, 0, 5)
    assert {s.shape for s in states} == {(1, 0, 5)}


@PHASED
def test_factory_keywords(phased: Any) -> None:
    rnn = phased(3, 5, device="cpu", dtype=torch.float64)
    assert {p.dtype for p in rnn.parameters()} == {torch.float64}
    assert rnn(torch.zeros(2, 1, 3, dtype=torch.float64))[0].dtype == torch.float64
    assert {p.device.type for p in phased(3, 5, device="meta").parameters()} == {"meta"}
    narrow = phased(3, 5, dtype=torch.bfloat16)
    assert narrow.weight_ih_l0.dtype == torch.bfloat16
    assert narrow.gate_l0.raw_period.dtype == torch.float32
