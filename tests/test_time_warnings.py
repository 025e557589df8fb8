"""Warnings about times that are valid and hardly what was meant: each once, and none where nothing is wrong."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from phased_lstm import PhasedGRU, PhasedGRUCell, PhasedLSTM, PhasedLSTMCell

PHASED = pytest.mark.parametrize("phased", [PhasedLSTM, PhasedGRU])
UNIX = 1_700_000_000


def count(call: Any) -> list[str]:
    """The warnings of two calls."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
        call()
    return [str(warning.message) for warning in found]


@PHASED
@pytest.mark.parametrize("shared", [True, False])
def test_float32_times_on_a_coarse_grid(phased: Any, shared: bool) -> None:
    exact = UNIX + torch.arange(40.0, dtype=torch.float64)
    times = exact if shared else exact.expand(3, -1).contiguous()
    rnn, x = phased(2, 4, batch_first=True), torch.randn(3, 40, 2)
    (message,) = count(lambda: rnn(x, times=times.float()))
    assert "steps of 128 only" in message
    assert "float64" in message
    assert count(lambda: phased(2, 4, batch_first=True)(x, times=times)) == []
    jump = times.float() + 128 * (times > UNIX + 20)
    found = count(lambda: phased(2, 4, batch_first=True).fit_gates_(jump))
    assert any("steps of 128 only" in message for message in found)


@PHASED
def test_float32_times_that_are_fine_or_cannot_be_judged(phased: Any) -> None:
    rnn, x = phased(2, 4, batch_first=True), torch.randn(3, 40, 2)
    day = torch.arange(40.0) * 1024
    fine = [torch.rand(3, 40) * 3600, torch.zeros(40), torch.full((40,), 5.0), UNIX + day, torch.rand(3, 40) * 1e-30]
    for times in fine:
        assert count(lambda times=times: rnn(x, times=times.float())) == []
    lengths = torch.tensor([0, 5, 40])
    assert count(lambda: rnn(x, times=(UNIX + day).expand(3, -1), lengths=lengths)) == []
    assert count(lambda: rnn(x[:, :0], times=day[:0])) == []
    assert count(lambda: rnn(x[:, :1], times=day[:1] + UNIX)) == []


@pytest.mark.parametrize("made", [PhasedLSTMCell, PhasedGRUCell])
def test_a_cell_and_a_stream_compare_with_the_opening(made: Any) -> None:
    cell = made(2, 4)
    (message,) = count(lambda: cell(torch.randn(3, 2), None, torch.tensor(float(UNIX))))
    assert "steps of 128 only" in message
    assert count(lambda: made(2, 4)(torch.randn(3, 2), None, float(UNIX))) == []
    assert count(lambda: made(2, 4)(torch.randn(3, 2), None, torch.tensor(3.5))) == []
    stream = PhasedLSTM(2, 4).stream()
    times = torch.full((5,), float(UNIX))
    (message,) = count(lambda: stream.push(times, torch.randn(5, 2)))
    assert "steps of 128 only" in message


@PHASED
@pytest.mark.parametrize("layers", [1, 2])
def test_times_forgotten_after_gates_were_fitted_to_real_ones(phased: Any, layers: int) -> None:
    rnn, x = phased(2, 4, layers, batch_first=True), torch.randn(3, 40, 2)
    times = UNIX + torch.rand(3, 40, dtype=torch.float64).sort().values * 3600
    assert count(lambda: rnn(x)) == []
    rnn.fit_gates_(times)
    assert count(lambda: rnn(x, times=times)) == []
    (message,) = count(lambda: rnn(x))
    assert f"count time from {int(rnn.gate_l0.origin)}" in message
    assert "give times=" in message
    rnn.fit_gates_(torch.arange(40))
    assert count(lambda: phased(2, 4, batch_first=True)(x)) == []


@PHASED
def test_square_times_in_the_other_layout(phased: Any) -> None:
    times, x = torch.arange(6.0).expand(6, -1) + torch.rand(6, 1), torch.randn(6, 6, 2)
    rnn = phased(2, 4)
    (message,) = count(lambda: rnn(x, times=times))
    assert "batch_first=True" in message
    assert count(lambda: phased(2, 4, batch_first=True)(x, times=times)) == []
    assert count(lambda: rnn(x, times=times.t())) == []
    assert count(lambda: phased(2, 4)(x, times=torch.rand(6, 6))) == []


def test_the_warning_is_of_the_callers_line() -> None:
    rnn, x = PhasedLSTM(2, 4), torch.randn(40, 3, 2)
    with pytest.warns(UserWarning, match="float32") as found:
        rnn(x, times=(UNIX + torch.arange(40)).float())
    assert [warning.filename for warning in found] == [__file__]
