"""Live streams: any division into pushes gives the same bits, and a push that fails changes nothing."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phased_lstm import PhasedGRU, PhasedLSTM, Stream, _parametrisation, backends
from phased_lstm._checks import LARGEST_INTEGER_TIME

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (PhasedLSTM, {}),
    "gru": (PhasedGRU, {}),
    "peephole": (PhasedLSTM, {"peephole": True}),
    "two layers": (PhasedLSTM, {"num_layers": 2}),
    "two gru layers, no bias": (PhasedGRU, {"num_layers": 2, "bias": False}),
    "three layers, no bias": (PhasedLSTM, {"num_layers": 3, "bias": False, "peephole": True}),
    "cosine": (PhasedLSTM, {"oscillation": "cosine"}),
}
ALL = pytest.mark.parametrize("kind", KINDS)
BACKENDS = pytest.mark.parametrize(
    "backend",
    [
        "reference",
        pytest.param("native", marks=pytest.mark.skipif(not backends()["native"].available, reason="not compiled")),
    ],
)


def make(kind: str = "lstm", features: int = 3, hidden: int = 9, **options: Any) -> Any:
    phased, own = KINDS[kind]
    defaults = {"batch_first": True, "ratio_on": 0.3, "period_init_min": 2.0, "period_init_max": 30.0}
    return phased(features, hidden, **(defaults | own | options))


def draw(count: int, features: int = 3, streams: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Times that rise over all streams, values, and the stream of each event."""
    times = torch.rand(count, dtype=torch.float64).mul(2.0).cumsum(0)
    return times, torch.randn(count, features), torch.randint(streams, (count,))


def in_parts(stream: Stream, times: Tensor, values: Tensor, ids: Tensor, sizes: list[int]) -> Tensor:
    outputs = [
        stream.push(*part) for part in zip(times.split(sizes), values.split(sizes), ids.split(sizes), strict=True)
    ]
    return torch.cat(outputs)


def assert_same(mine: Stream, theirs: Stream) -> None:
    for name, state in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], state)


def one_pass(rnn: Any, times: Tensor, values: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = rnn.eval()(values.unsqueeze(0), times=times.unsqueeze(0))[0][0]
    return output


@BACKENDS
@ALL
@pytest.mark.parametrize(("features", "hidden"), [(3, 9), (16, 37)])
@pytest.mark.parametrize("streams", [1, 7, 40])
def test_chunk_size_changes_nothing(kind: str, backend: str, features: int, hidden: int, streams: int) -> None:
    rnn = make(kind, features, hidden, backend=backend)
    count = 150
    times, values, ids = draw(count, features, streams)
    # One stream has far more events than the others.
    ids[40:90] = 0
    whole, single, random = (rnn.stream(streams) for _ in range(3))
    wanted = whole.push(times, values, ids)
    assert wanted.shape == (count, hidden)
    assert (wanted != 0).any()
    ones = [
        single.push(time, value, stream)
        for time, value, stream in zip(times.tolist(), values, ids.tolist(), strict=True)
    ]
    assert torch.equal(torch.stack(ones), wanted)
    assert torch.equal(in_parts(random, times, values, ids, [1, 16, 0, 3, 100, 30]), wanted)
    assert_same(single, whole)
    assert_same(random, whole)


@BACKENDS
@ALL
@pytest.mark.parametrize("features", [2, 6])
def test_a_stream_is_the_layer_in_one_pass(kind: str, backend: str, features: int) -> None:
    rnn = make(kind, features, backend=backend)
    times, values, ids = draw(120, features, 5)
    output = rnn.stream(5).push(times, values, ids)
    for stream in range(5):
        mine = ids == stream
        assert torch.equal(output[mine], one_pass(rnn, times[mine], values[mine]))


@pytest.mark.skipif(not backends()["native"].available, reason="not compiled")
@given(data=st.data(), seed=st.integers(0, 2**31))
@settings(max_examples=80)
def test_any_division_gives_the_same_bits(data: Any, seed: int) -> None:
    torch.manual_seed(seed)
    kind = data.draw(st.sampled_from(list(KINDS)))
    features, hidden = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))
    streams, count = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 200))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    rnn = make(kind, features, hidden, dtype=dtype)
    times, values, ids = draw(count, features, streams)
    values = values.to(dtype)
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=6)))
    sizes = [end - begin for begin, end in zip([0, *cuts], [*cuts, count], strict=True)]
    whole, parts = rnn.stream(streams), rnn.stream(streams)
    assert torch.equal(in_parts(parts, times, values, ids, sizes), whole.push(times, values, ids))
    assert_same(parts, whole)


def test_threads_change_nothing() -> None:
    rnn = make("two layers", hidden=20)
    times, values, ids = draw(3000, streams=200)
    wanted = rnn.stream(200).push(times, values, ids)
    torch.set_num_threads(2)
    try:
        assert torch.equal(rnn.stream(200).push(times, values, ids), wanted)
    finally:
        torch.set_num_threads(1)


@BACKENDS
def test_a_stream_stands_alone_among_others(backend: str) -> None:
    rnn = make("two layers", backend=backend)
    times, values, ids = draw(100, streams=6)
    mixed = rnn.stream(6).push(times, values, ids)
    alone = rnn.stream().push(times[ids == 4], values[ids == 4])
    assert torch.equal(mixed[ids == 4], alone)


@BACKENDS
def test_state_is_saved_and_restored(backend: str) -> None:
    rnn = make("peephole", backend=backend)
    times, values, ids = draw(80, streams=3)
    stream = rnn.stream(3)
    stream.push(times[:50], values[:50], ids[:50])
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    rest = stream.push(times[50:], values[50:], ids[50:])
    file.seek(0)
    other = rnn.stream(3)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other.push(times[50:], values[50:], ids[50:]), rest)
    assert_same(other, stream)
    with pytest.raises(ValueError, match=r"event 0: time .* of stream \d is before"):
        other.push(times[:50], values[:50], ids[:50])


def test_a_saved_state_is_a_copy() -> None:
    stream = make().stream()
    saved = stream.state_dict()
    stream.push(3.0, torch.randn(3))
    assert saved["latest"].item() == -math.inf
    stream.load_state_dict(saved)
    saved["latest"].fill_(100.0)
    stream.push(5.0, torch.randn(3))
    output = stream.output
    output.fill_(7.0)
    assert not (stream.output == 7.0).any()


@BACKENDS
def test_inference_mode_may_come_and_go(backend: str) -> None:
    rnn = make(backend=backend)
    times, values, _ = draw(40)
    wanted = rnn.stream().push(times, values)
    with torch.inference_mode():
        stream = rnn.stream()
        stream.load_state_dict(stream.state_dict())
    first = stream.push(times[:20], values[:20])
    with torch.inference_mode():
        second = stream.push(times[20:], values[20:])
    assert torch.equal(torch.cat([first, second]), wanted)
    stream.reset()
    assert torch.equal(stream.push(times, values), wanted)


def test_a_state_that_does_not_fit_is_refused() -> None:
    stream = make().stream(2)
    stream.push(3.0, torch.randn(3), 1)
    before = stream.state_dict()
    with pytest.raises(ValueError, match="dictionary of h, c, latest, got: h"):
        stream.load_state_dict({"h": before["h"]})
    with pytest.raises(
        ValueError, match=r"latest should be torch.float64 or torch.int64 of shape \(2,\), got .*\(3,\)"
    ):
        stream.load_state_dict(before | {"h": before["h"] + 1, "latest": torch.zeros(3, dtype=torch.float64)})
    with pytest.raises(ValueError, match=r"c should be torch.float32 of shape \(1, 2, 9\), got torch.float64"):
        stream.load_state_dict(before | {"c": before["c"].double()})
    with pytest.raises(ValueError, match="dictionary of h, latest, got: h, c, latest"):
        make("gru").stream(2).load_state_dict(before)
    for name, state in stream.state_dict().items():
        assert torch.equal(state, before[name])


BAD: dict[str, tuple[dict[int, float], dict[int, int], str]] = {
    "late in the chunk": (
        {7: 0.5},
        {},
        r"event 7: time 0.5 of stream 1 is before 6.0, which it has seen: sort .*late='accept'.*; nothing of this push",
    ),
    "late after an earlier push": ({0: -3.0}, {}, r"event 0: time -3.0 of stream 0 is before -1.0, which it has seen"),
    "nan": ({5: math.nan}, {}, r"event 5: times should be finite, got nan in stream 2; drop or repair it"),
    "inf": ({9: math.inf}, {}, r"event 9: times should be finite, got inf in stream 0"),
    "no such stream": ({}, {8: 3}, r"event 8: stream_ids should be from 0 to 2, got 3; nothing of this push"),
    "negative stream": ({}, {2: -1}, r"event 2: stream_ids should be from 0 to 2, got -1"),
    "the first of several": ({6: 1.0, 8: math.nan}, {9: 9}, r"event 6: time 1.0 of stream 0 is before 4.0"),
    "late after the first": ({3: math.nan, 6: 1.0}, {}, r"event 3: times should be finite"),
}
IDS = [0, 1, 2, 0, 0, 2, 0, 1, 2, 0]


@BACKENDS
@pytest.mark.parametrize("name", BAD)
def test_a_push_that_fails_changes_nothing(name: str, backend: str) -> None:
    rnn = make("two layers", backend=backend)
    bad_times, bad_ids, message = BAD[name]
    stream = rnn.stream(3)
    stream.push(torch.tensor([-1.0, -1.0, 6.0]), torch.randn(3, 3), torch.tensor([0, 2, 1]))
    before = stream.state_dict()
    times, ids = torch.arange(10.0, dtype=torch.float64), torch.tensor(IDS)
    times[1] = 6.0
    times[7] = 7.0
    values = torch.randn(10, 3)
    for at, time in bad_times.items():
        times[at] = time
    for at, stream_id in bad_ids.items():
        ids[at] = stream_id
    with pytest.raises(ValueError, match=message):
        stream.push(times, values, ids)
    for key, state in stream.state_dict().items():
        assert torch.equal(state, before[key])


@BACKENDS
def test_late_events_can_be_accepted(backend: str) -> None:
    rnn = make("gru", backend=backend)
    times, values, _ = draw(60)
    times = times[torch.randperm(60)]
    strict, lenient = rnn.stream(), rnn.stream(late="accept")
    with pytest.raises(ValueError, match="is before"):
        strict.push(times, values)
    output = lenient.push(times, values)
    assert torch.equal(output, one_pass(rnn, times, values))
    assert lenient.state_dict()["latest"].item() == times.max()
    # Equal times are not late.
    strict.push(torch.ones(4), values[:4])
    strict.push(1.0, values[0])
    with pytest.raises(ValueError, match=r"^time 0.5 of stream 0 is before 1.0, which it has seen"):
        strict.push(0.5, values[0])
    strict.push(12.9, values[0])
    with pytest.raises(ValueError, match="as float32 they are the same number: give all times of a stream in one"):
        strict.push(torch.tensor([12.9]), values[:1])


@BACKENDS
@pytest.mark.parametrize("start", [0, 1_700_000_000_000_000, 2**60 + 1])
def test_integer_times_are_exact(start: int, backend: str) -> None:
    """Microseconds, and integers that no float64 holds; the gate counts from its origin."""
    rnn = make("two layers", backend=backend)
    _, values, _ = draw(50)
    steps = torch.randint(0, 3, (50,)).cumsum(0)
    for gate in rnn.gates:
        gate.assign_(origin=start)
    wanted = one_pass(rnn, start + steps, values)
    stream, parts = rnn.stream(), rnn.stream()
    assert torch.equal(stream.push(start + steps, values), wanted)
    ones = [parts.push(start + step, value) for step, value in zip(steps.tolist(), values, strict=True)]
    assert torch.equal(torch.stack(ones), wanted)
    last = start + int(steps[-1])
    assert stream.state_dict()["latest"].item() == last
    stream.push(last, values[0])
    with pytest.raises(ValueError, match=f"time {last - 1} of stream 0 is before {last}"):
        stream.push(last - 1, values[0])


def test_integers_beyond_floats_without_an_origin() -> None:
    rnn = make()
    _, values, _ = draw(50)
    times = 2**60 + 1 + torch.arange(50)
    assert torch.equal(rnn.stream().push(times, values), one_pass(rnn, times, values))
    assert not torch.equal(rnn.stream().push(times, values), rnn.stream().push(times.double(), values))


@BACKENDS
def test_narrow_times_are_the_same_times(backend: str) -> None:
    rnn = make(backend=backend)
    _, values, _ = draw(50)
    steps = torch.arange(50)
    wanted = rnn.stream().push(steps, values)
    for dtype in (torch.int32, torch.float32, torch.float64):
        assert torch.equal(rnn.stream().push(steps.to(dtype), values), wanted)


def test_times_stay_integers_or_floating() -> None:
    stream = make().stream(2)
    value = torch.randn(3)
    stream.push(3, value, 0)
    with pytest.raises(ValueError, match="have been integers so far, got floating"):
        stream.push(4.0, value, 0)
    with pytest.raises(ValueError, match="have been integers so far, got floating"):
        stream.push(torch.tensor([4.0]), value.unsqueeze(0), 0)
    stream.reset(0)
    stream.push(4.5, value, 0)
    # A Python int is a float as well, as far as it is one exactly.
    stream.push(5, value, 0)
    assert stream.state_dict()["latest"][0].item() == 5.0
    with pytest.raises(ValueError, match=r"beyond 2\*\*53"):
        stream.push(2**53 + 1, value, 0)
    with pytest.raises(ValueError, match="have been floating so far, got integers"):
        stream.push(torch.tensor([6]), value.unsqueeze(0), 0)


@BACKENDS
@pytest.mark.parametrize("time", [LARGEST_INTEGER_TIME, -LARGEST_INTEGER_TIME])
def test_the_largest_integer_times(time: int, backend: str) -> None:
    stream = make(backend=backend).stream()
    values = torch.randn(1, 3)
    stream.push(torch.tensor([time]), values)
    assert stream.state_dict()["latest"].item() == time
    with pytest.raises(ValueError, match=r"within 2\*\*62 of zero, got"):
        make(backend=backend).stream().push(torch.tensor([time + (1 if time > 0 else -1)]), values)


@BACKENDS
def test_reset(backend: str) -> None:
    rnn = make(backend=backend)
    times, values, ids = draw(60, streams=4)
    stream, fresh = rnn.stream(4), rnn.stream(4)
    stream.push(times, values, ids)
    kept = stream.state_dict()
    stream.reset(torch.tensor([1, 3]))
    state = stream.state_dict()
    for name, axis in {"h": 1, "c": 1, "latest": 0}.items():
        for other in (0, 2):
            assert torch.equal(state[name].select(axis, other), kept[name].select(axis, other))
    mine = ids == 3
    again = stream.push(times[mine], values[mine], 3)
    assert torch.equal(again, fresh.push(times[mine], values[mine], 3))
    stream.reset()
    assert_same(stream, rnn.stream(4))
    stream.push(times, values, ids)
    stream.reset([1, 3])
    expected = rnn.stream(4)
    expected.load_state_dict(state)
    assert_same(stream, expected)
    with pytest.raises(ValueError, match="from 0 to 3, got 4"):
        stream.reset(4)
    with pytest.raises(TypeError, match="got: float"):
        stream.reset(1.0)  # type: ignore[arg-type]


@BACKENDS
def test_empty_pushes(backend: str) -> None:
    stream = make(backend=backend).stream(2)
    before = stream.state_dict()
    output = stream.push(torch.empty(0), torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert output.shape == (0, 9)
    latest = stream.push_latest(torch.empty(0), torch.empty(0, 3), 0)
    assert latest.stream_ids.shape == (0,)
    assert latest.output.shape == (0, 9)
    for name, state in stream.state_dict().items():
        assert torch.equal(state, before[name])


@BACKENDS
def test_output_is_the_state_of_every_stream(backend: str) -> None:
    rnn = make("two layers", backend=backend)
    times, values, ids = draw(50, streams=6)
    ids[ids == 2] = 5
    stream = rnn.stream(6)
    every = rnn.stream(6).push(times, values, ids)
    latest = stream.push_latest(times, values, ids)
    last = [int((ids == touched).nonzero()[-1]) for touched in ids.unique()]
    assert torch.equal(latest.output, every[last])
    assert latest.stream_ids.tolist() == sorted(set(ids.tolist()))
    assert torch.equal(stream.output[latest.stream_ids], latest.output)
    assert torch.equal(stream.output[2], torch.zeros(9))
    one = stream.push_latest(200.0, values[0], 2)
    assert one.stream_ids.tolist() == [2]
    assert torch.equal(one.output, stream.output[[2]])


@BACKENDS
def test_streams_run_in_evaluation_semantics(backend: str) -> None:
    rnn = make("two layers", dropout=0.9, leak=0.2, backend=backend)
    times, values, _ = draw(40)
    rnn.eval()
    wanted = rnn.stream().push(times, values)
    assert torch.equal(wanted, one_pass(rnn, times, values))
    rnn.train()
    with torch.autocast("cpu", torch.bfloat16):
        output = rnn.stream().push(times, values)
    assert torch.equal(output, wanted)
    assert not output.requires_grad


@BACKENDS
def test_weights_are_read_at_each_push(backend: str) -> None:
    rnn, other = make(backend=backend), make(backend=backend)
    times, values, _ = draw(40)
    stream, fresh = rnn.stream(), other.stream()
    stream.push(times[:20], values[:20])
    with pytest.warns(UserWarning, match="other weights or gates than this one"):
        fresh.load_state_dict(stream.state_dict())
    rnn.load_state_dict(other.state_dict())
    assert torch.equal(stream.push(times[20:], values[20:]), fresh.push(times[20:], values[20:]))


def test_a_change_through_data_is_seen() -> None:
    rnn = make()
    times, values, _ = draw(40)
    stream = rnn.stream()
    before = stream.push(times, values)
    stream.reset()
    rnn.gate_l0.initial_shift.data.add_(1.0)
    assert not torch.equal(stream.push(times, values), before)


def test_strided_operands() -> None:
    rnn = make()
    times, values, ids = draw(40, streams=3)
    wanted = rnn.stream(3).push(times, values, ids)
    mixed = torch.stack([times, times], 1)[:, 0], values.t().contiguous().t(), ids.int().repeat_interleave(2)[::2]
    assert not any(tensor.is_contiguous() for tensor in mixed)
    assert torch.equal(rnn.stream(3).push(*mixed), wanted)
    rnn.weight_ih_l0.data = rnn.weight_ih_l0.data.t().contiguous().t()
    assert torch.equal(rnn.stream(3).push(times, values, ids), wanted)


def test_what_has_no_stream() -> None:
    with pytest.raises(ValueError, match="reverse direction begins at the end"):
        make(bidirectional=True).stream()
    with pytest.raises(ValueError, match=r"the model is torch.bfloat16"):
        make(dtype=torch.bfloat16).stream()
    with pytest.raises(ValueError, match="late should be one of error, accept, got 'drop'"):
        make().stream(late="drop")
    with pytest.raises(ValueError, match="streams must be greater than zero, got 0"):
        make().stream(0)
    with pytest.raises(TypeError, match="streams should be of type int, got: float"):
        make().stream(2.0)


X, T, ID = torch.zeros(4, 3), torch.arange(4.0), torch.zeros(4, dtype=torch.int64)
WRONG: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "list of values": ((T, [1.0], ID), TypeError, "values should be a tensor, got: list"),
    "dtype of values": ((T, X.double(), ID), ValueError, r"values should be torch.float32 like the model"),
    "width": ((T, X[:, :2], ID), ValueError, r"values should be of shape \(4, 3\) for 4 events, got \(4, 2\)"),
    "number of values": ((T, X[:3], ID), ValueError, r"of shape \(4, 3\) for 4 events, got \(3, 3\)"),
    "a chunk at one time": ((1.0, X, 0), ValueError, r"shape \(3,\) for one event, as times is a single time, got"),
    "times of rank 2": ((T.reshape(2, 2), X, ID), ValueError, r"times should be of shape \(E,\), or a single time"),
    "dtype of times": ((T.half(), X, ID), ValueError, "times should be int32, int64, float32 or float64"),
    "list of times": (([0.0], X, ID), TypeError, "times should be a tensor or a number, got: list"),
    "no streams": ((T, X), ValueError, "stream_ids is needed: which of the 2 streams"),
    "number of ids": ((T, X, ID[:3]), ValueError, r"an int or of shape \(4,\), as times is, got shape \(3,\)"),
    "ids of one event": ((1.0, X[0], ID[:1]), ValueError, "an int, as times is a single time, got shape"),
    "floating ids": ((T, X, ID.float()), ValueError, "stream_ids should be of an integer dtype, got torch.float32"),
    "list of ids": ((T, X, [0, 0, 0, 0]), TypeError, "a tensor of integers or an int, got: list"),
    "flag as id": ((T, X, True), TypeError, "got: bool"),
    "id out of range": ((1.0, X[0], 2), ValueError, r"^stream_ids should be from 0 to 1, got 2"),
    "nan": ((math.nan, X[0], 0), ValueError, "times should be finite, got nan in stream 0"),
    "huge integer": ((2**70, X[0], 0), ValueError, r"within 2\*\*62 of zero, got 1180591620717411303424"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    arguments, error, message = WRONG[name]
    stream = make().stream(2)
    with pytest.raises(error, match=message):
        stream.push(*arguments)
    assert not stream.output.any()


def test_a_model_that_was_converted() -> None:
    rnn = make()
    stream = rnn.stream()
    rnn.double()
    with pytest.raises(
        ValueError, match=r"the model is now torch.float64 on cpu, its stream was made in torch.float32"
    ):
        stream.push(1.0, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_number(kind: str, backend: str, bad: float) -> None:
    stream = make(kind, backend=backend).stream(2)
    times, values, ids = draw(20, streams=2)
    values[7, 1] = bad
    for push in (stream.push, stream.push_latest):
        with pytest.raises(
            ValueError, match=rf"event 7: value 1 .* stream {ids[7]} is {bad}.*invalid='accept'.*nothing"
        ):
            push(times, values, ids)
    assert not stream.output.any()
    with pytest.raises(ValueError, match=r"value 2 of the event at time 1\.5 in stream 0 is nan"):
        stream.push(1.5, torch.tensor([0.0, 0.0, float("nan")]), 0)
    # What comes first is told first.
    times[3] = float("nan")
    with pytest.raises(ValueError, match="event 3: times should be finite"):
        stream.push(times, values, ids)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_values_that_are_not_finite_pass_if_asked_for(backend: str) -> None:
    rnn = make(backend=backend)
    times, values, _ = draw(20)
    values[7] = float("nan")
    output = rnn.stream(invalid="accept").push(times, values)
    with torch.no_grad():
        wanted = rnn(values.unsqueeze(0), times=times)[0][0]
    assert bool(output.isnan().any())
    assert torch.equal(output.isnan(), wanted.isnan())
    with pytest.raises(ValueError, match="invalid should be one of error, accept"):
        rnn.stream(invalid="drop")


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_another_model_are_told(kind: str) -> None:
    rnn = make(kind)
    times, values, _ = draw(20)
    stream = rnn.stream()
    stream.push(times, values)
    state = stream.state_dict()
    copy.deepcopy(rnn).stream().load_state_dict(state)
    for change in (
        lambda other: other.weight_hh_l0.data[3, 2].add_(1e-6),
        lambda other: other.gate_l0.assign_(origin=1),
        lambda other: other.gate_l0.raw_shift.data[0].add_(1.0),
        lambda other: setattr(other.gate_l0, "oscillation", "square"),
    ):
        other = copy.deepcopy(rnn)
        change(other)
        with pytest.warns(UserWarning, match="other weights or gates than this one"):
            other.stream().load_state_dict(state)
    del state["model"]
    other.stream().load_state_dict(state)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_stream_can_be_copied_after_its_state_was_taken(backend: str) -> None:
    rnn = PhasedLSTM(2, 3, backend=backend)
    stream = rnn.stream()
    stream.push(1.0, torch.ones(2))
    state = stream.state_dict()
    other = copy.deepcopy(stream)
    assert torch.equal(other.state_dict()["h"], state["h"])
    assert torch.equal(other.push(2.0, torch.ones(2)), stream.push(2.0, torch.ones(2)))


def test_the_warning_of_coarse_times_points_to_the_push() -> None:
    with pytest.warns(UserWarning, match="float32") as caught:
        PhasedLSTM(2, 3).stream().push(1.7e9 + torch.arange(5.0), torch.ones(5, 2))
    assert caught[0].filename == __file__


def test_whose_states_they_are_does_not_depend_on_how_gate_values_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another processor's exponential differs in the last bit."""
    rnn = PhasedLSTM(2, 3)
    with torch.no_grad():
        rnn.gate_l0.raw_period.add_(1.0)
    state = rnn.stream().state_dict()
    exact = _parametrisation.growth_of
    monkeypatch.setattr(_parametrisation, "growth_of", lambda raw: exact(raw) * (1 + 2**-23))
    other = copy.deepcopy(rnn)
    other.stream().load_state_dict(state)
    with torch.no_grad():
        other.gate_l0.raw_period.add_(1e-3)
    with pytest.warns(UserWarning, match="other weights or gates"):
        other.stream().load_state_dict(state)
