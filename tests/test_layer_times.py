"""Times: the forms in which layers take them, and that every layer and direction reads the same ones."""

from __future__ import annotations

import gc
import math
import re
import weakref
from typing import Any

import pytest
import torch
from test_layers import flatten
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from phased_lstm import PhasedGRU, PhasedLSTM, functional

PHASED = pytest.mark.parametrize("phased", [PhasedLSTM, PhasedGRU])
LENGTHS = [4, 9, 0, 7]
CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def make(phased: Any, **options: Any) -> Any:
    """A layer whose units open and close within a few time units."""
    return phased(
        3, 5, dtype=torch.float64, ratio_on=0.4, **({"period_init_min": 2.0, "period_init_max": 9.0} | options)
    )


def batch(steps: int = 9, rows: int = 4) -> tuple[Tensor, Tensor]:
    """Input (N, L, 3) and times (N, L), all rows on different clocks."""
    x = torch.randn(rows, steps, 3, dtype=torch.float64)
    return x, torch.rand(rows, steps, dtype=torch.float64).cumsum(1) * 3 + torch.arange(rows).unsqueeze(1) * 1.7


def assert_equal(mine: Any, theirs: Any) -> None:
    for got, wanted in zip(flatten(mine), flatten(theirs), strict=True):
        assert torch.equal(got, wanted)


@PHASED
@pytest.mark.parametrize("bidirectional", [True, False])
def test_rows_on_different_clocks_equal_separate_runs(phased: Any, bidirectional: bool) -> None:
    rnn = make(phased, num_layers=2, bidirectional=bidirectional, batch_first=True)
    x, times = batch()
    output, *states = flatten(rnn(x, times=times))
    for row in range(4):
        alone = flatten(rnn(x[row], times=times[row]))
        for got, wanted in zip(alone, [output[row], *(s[:, row] for s in states)], strict=True):
            torch.testing.assert_close(got, wanted, **CLOSE)
    assert not torch.allclose(output, rnn(x, times=times[0])[0])


@PHASED
def test_layouts_agree(phased: Any) -> None:
    rnn = make(phased, num_layers=2, bidirectional=True, batch_first=True)
    x, times = batch()
    by_rows = flatten(rnn(x, times=times))
    rnn.batch_first = False
    by_steps = flatten(rnn(x.transpose(0, 1), times=times.T))
    assert torch.equal(by_rows[0], by_steps[0].transpose(0, 1))
    for got, wanted in zip(by_steps[1:], by_rows[1:], strict=True):
        assert torch.equal(got, wanted)


@PHASED
def test_shared_times_equal_expanded_times(phased: Any) -> None:
    rnn = make(phased, num_layers=2, bidirectional=True, batch_first=True)
    x, times = batch()
    # A backend may add up in another order when it knows that the times are shared.
    output, states = rnn(x, times=times[0])
    expanded, expanded_states = rnn(x, times=times[0].expand(4, 9))
    torch.testing.assert_close(output, expanded, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(states, expanded_states, rtol=1e-6, atol=1e-7)


@PHASED
def test_no_times_count_from_zero(phased: Any) -> None:
    rnn = make(phased, batch_first=True)
    x, _ = batch()
    assert_equal(rnn(x), rnn(x, times=torch.arange(9)))
    assert_equal(rnn(x[0]), rnn(x[0], times=torch.arange(9)))
    packed = pack_padded_sequence(x, [9, 7, 3, 1], batch_first=True)
    assert_equal(rnn(packed), rnn(packed, times=torch.arange(9)))


@PHASED
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float64])
def test_integers_equal_floats(phased: Any, dtype: torch.dtype) -> None:
    rnn = make(phased, batch_first=True)
    x, _ = batch()
    times = torch.randint(-1000, 16_000_000, (4, 9))
    assert_equal(rnn(x, times=times.to(dtype)), rnn(x, times=times))


@PHASED
def test_large_int64_times_in_a_float32_layer(phased: Any) -> None:
    """Unix time stamps in float32 would be noise; the reduction is exact for nanoseconds too."""
    rnn = phased(3, 5, batch_first=True, ratio_on=0.4)
    x, start = torch.randn(4, 9, 3), 1_700_000_000_000_000_123
    steps = torch.arange(9) * 3
    wanted = rnn(x, times=steps)
    for gate in rnn.gates:
        gate.assign_(origin=start)
    assert_equal(rnn(x, times=steps + start), wanted)


@PHASED
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_packed_times(phased: Any, ordered: bool, batch_first: bool) -> None:
    rnn = make(phased, num_layers=2, bidirectional=True, batch_first=batch_first)
    x, times = batch()
    lengths = [9, 7, 7, 2] if ordered else [7, 2, 9, 7]

    def pack(padded: Tensor) -> PackedSequence:
        return pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=ordered)

    from_packed = rnn(pack(x), times=pack(times))
    assert_equal(from_packed, rnn(pack(x), times=times if batch_first else times.T))
    output, *states = flatten(
        rnn(x if batch_first else x.transpose(0, 1), times=times if batch_first else times.T, lengths=lengths)
    )
    padded = output if batch_first else output.transpose(0, 1)
    assert torch.equal(from_packed[0].data, pack(padded).data)
    for got, wanted in zip(flatten(from_packed)[1:], states, strict=True):
        assert torch.equal(got, wanted)


@PHASED
def test_jagged_tensors(phased: Any) -> None:
    rnn = make(phased, num_layers=2, bidirectional=True)
    x, times = batch()
    rows = [(x[row, :length], times[row, :length]) for row, length in enumerate(LENGTHS)]
    jagged = torch.nested.nested_tensor([value for value, _ in rows], layout=torch.jagged)
    stamps = torch.nested.nested_tensor_from_jagged(torch.cat([stamp for _, stamp in rows]), jagged.offsets())
    output, *states = rnn(jagged, times=stamps)
    assert output.layout == torch.jagged
    assert torch.equal(output.offsets(), jagged.offsets())
    rnn.batch_first = True
    wanted, *wanted_states = flatten(rnn(x, times=times, lengths=LENGTHS))
    for row, part in enumerate(output.unbind()):
        assert torch.equal(part, wanted[row, : LENGTHS[row]])
    for got, state in zip(flatten((output, *states))[1:], wanted_states, strict=True):
        assert torch.equal(got, state)
    other = torch.nested.nested_tensor([stamp[:2] for _, stamp in rows if len(stamp) > 1], layout=torch.jagged)
    with pytest.raises(ValueError, match="nested tensor of other lengths"):
        rnn(jagged, times=other)


@PHASED
def test_lengths_freeze_the_state_and_zero_the_output(phased: Any) -> None:
    rnn = make(phased, num_layers=2, bidirectional=True, batch_first=True)
    x, times = batch()
    x[0, 4:] = times[0, 4:] = float("nan")
    hx = tuple(torch.randn(4, 4, 5, dtype=torch.float64) for _ in range(2))
    hx = hx if phased is PhasedLSTM else hx[0]
    output, *states = flatten(rnn(x, hx, times, lengths=LENGTHS))
    for row, length in enumerate(LENGTHS):
        assert not output[row, length:].any()
        state = tuple(s[:, row] for s in hx) if isinstance(hx, tuple) else hx[:, row]
        if length == 0:
            for got, initial in zip(states, hx if isinstance(hx, tuple) else (hx,), strict=True):
                assert torch.equal(got[:, row], initial[:, row])
            continue
        alone = flatten(rnn(x[row, :length], state, times[row, :length]))
        for got, wanted in zip([output[row, :length], *(s[:, row] for s in states)], alone, strict=True):
            torch.testing.assert_close(got, wanted, **CLOSE)


@PHASED
def test_return_sequence_false(phased: Any) -> None:
    rnn = make(phased, num_layers=2, bidirectional=True, batch_first=True)
    x, times = batch()
    for arguments in ((x,), (x[0],), (pack_padded_sequence(x, [9, 7, 3, 1], batch_first=True),)):
        _, *wanted = flatten(rnn(*arguments))
        output, states = rnn(*arguments, return_sequence=False)
        assert output is None
        for got, state in zip(states if isinstance(states, tuple) else (states,), wanted, strict=True):
            assert torch.equal(got, state)
    assert rnn(x, times=times, return_sequence=False, lengths=LENGTHS)[0] is None


@PHASED
@pytest.mark.parametrize(
    ("batch_first", "shape", "message"),
    [
        (True, (9, 4), "times should be of shape (9,), shared by all sequences, or (4, 9)"),
        (False, (4, 9), "or (9, 4), steps first like the input, since batch_first=False; got (4, 9)"),
        (True, (4,), "got (4,)"),
        (False, (4,), "got (4,)"),
        (False, (10,), "got (10,)"),
        (True, (1, 9), "got (1, 9)"),
        (False, (9, 1), "got (9, 1)"),
        (True, (4, 9, 1), "got (4, 9, 1)"),
        (False, (9, 4, 1), "got (9, 4, 1)"),
        (True, (), "got ()"),
    ],
)
def test_times_are_never_broadcast(phased: Any, batch_first: bool, shape: tuple[int, ...], message: str) -> None:
    x = torch.zeros((4, 9, 3) if batch_first else (9, 4, 3), dtype=torch.float64)
    with pytest.raises(ValueError, match=re.escape(message)):
        make(phased, batch_first=batch_first)(x, times=torch.zeros(shape))


@PHASED
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_times_that_are_not_finite_are_refused(phased: Any, backend: str, bidirectional: bool, bad: float) -> None:
    """Shared or a row each, float32 or float64, with an origin or none, wanted gradients or none; not in padding."""
    rnn = make(phased, num_layers=2, bidirectional=bidirectional, backend=backend, batch_first=True)
    x, times = batch()
    rows = times.clone()
    rows[3, 8] = bad
    message = rf"times should be finite, got {bad} (in sequence 3 )?at (step )?8; drop or repair that step"
    for wrong in (rows, rows.float(), rows[3]):
        for context in (torch.no_grad(), torch.enable_grad()):
            with context, pytest.raises(ValueError, match=message):
                rnn(x, times=wrong)
    assert_equal(rnn(x, times=rows, lengths=[9, 9, 9, 8]), rnn(x, times=times, lengths=[9, 9, 9, 8]))
    for gate in rnn.gates:
        gate.assign_(origin=5)
    with pytest.raises(ValueError, match=message):
        rnn(x, times=rows)


@PHASED
def test_a_refused_batch_is_not_held(phased: Any) -> None:
    rnn = make(phased, batch_first=True)
    x, times = batch()
    times[0, 0] = math.nan
    held = weakref.ref(x)
    gc.disable()
    try:
        with pytest.raises(ValueError, match="times should be finite"):
            rnn(x, times=times)
        del x
        assert held() is None
    finally:
        gc.enable()


@PHASED
def test_times_of_other_sequences_are_refused(phased: Any) -> None:
    rnn = make(phased)
    x = pack_sequence([torch.zeros(3, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)])
    with pytest.raises(ValueError, match="PackedSequence of other lengths or order"):
        rnn(x, times=pack_sequence([torch.zeros(3), torch.zeros(1)]))
    with pytest.raises(ValueError, match="PackedSequence of other lengths or order"):
        rnn(x, times=pack_sequence([torch.zeros(2), torch.zeros(3)], enforce_sorted=False))
    with pytest.raises(ValueError, match="the times of a PackedSequence should be 1D"):
        rnn(x, times=pack_sequence([torch.zeros(3, 1), torch.zeros(2, 1)]))
    with pytest.raises(ValueError, match=re.escape("times should be of shape (9,) for unbatched input, got (9, 1)")):
        rnn(torch.zeros(9, 3, dtype=torch.float64), times=torch.zeros(9, 1))
    nan = pack_sequence([torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, float("nan")])])
    with pytest.raises(ValueError, match="times should be finite"):
        rnn(x, times=nan)


def direction(rnn: Any, suffix: str, x: Tensor, times: Tensor, state: tuple[Tensor, ...], reverse: bool) -> Any:
    gate = getattr(rnn, f"gate_{suffix}")
    weights = [getattr(rnn, f"{name}_{suffix}") for name in ("weight_ih", "weight_hh")]
    biases = [getattr(rnn, f"{name}_{suffix}") for name in ("bias_ih", "bias_hh")]
    timing = (gate.period, gate.shift, gate.ratio_on)
    options: dict[str, Any] = {"reverse": reverse, "leak": 0.01}
    if isinstance(rnn, PhasedGRU):
        return functional.phased_gru(x, times, *state, *weights, *biases, *timing, **options)
    options["peephole"] = torch.stack([getattr(rnn, f"weight_c{name}_{suffix}") for name in "ifo"])
    return functional.phased_lstm(x, times, *state, *weights, sum(biases), *timing, **options)


@PHASED
def test_stack_equals_layers_run_by_hand_on_the_same_times(phased: Any) -> None:
    """Stacked TensorFlow cells lost the time; here every layer and direction reads it."""
    extra = {"peephole": True} if phased is PhasedLSTM else {}
    rnn = make(phased, num_layers=3, bidirectional=True, batch_first=True, leak=0.01, **extra)
    x, times = batch()
    count = 2 if phased is PhasedLSTM else 1
    initial = tuple(torch.randn(6, 4, 5, dtype=torch.float64) for _ in range(count))
    finals, layer_input = [], x
    for layer in range(3):
        outputs = []
        for reverse, suffix in ((False, f"l{layer}"), (True, f"l{layer}_reverse")):
            state = tuple(s[len(finals)] for s in initial)
            output, *final = direction(rnn, suffix, layer_input, times, state, reverse)
            outputs.append(output)
            finals.append(final)
        layer_input = torch.cat(outputs, -1)
    got = flatten(rnn(x, initial if count == 2 else initial[0], times))
    wanted = [layer_input, *(torch.stack(list(final)) for final in zip(*finals, strict=True))]
    for mine, theirs in zip(got, wanted, strict=True):
        assert torch.equal(mine, theirs)
