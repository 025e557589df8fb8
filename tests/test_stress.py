"""Training at a high learning rate on unix time stamps stays finite, gates included."""

from __future__ import annotations

import torch
from torch import nn

from phased_lstm import PhasedLSTM


def test_training_on_unix_seconds_stays_finite() -> None:
    """The gradient in the period grows with absolute time; NaN was the usual report of earlier versions."""
    generator = torch.Generator().manual_seed(0)
    gaps = 0.5 + torch.rand(2, 1000, generator=generator, dtype=torch.float64)
    times = 1.7e9 + gaps.cumsum(1)
    x = torch.randn(2, 1000, 1, generator=generator)
    target = x.mean(1)
    rnn = PhasedLSTM(1, 6, batch_first=True, ratio_on=0.2, trainable_ratio_on=True)
    head = nn.Linear(6, 1)
    model = nn.ModuleList([rnn, head])
    gate = rnn.gate_l0
    started = gate.period.detach().clone()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(300):
        optimiser.zero_grad()
        _, (h_n, _) = rnn(x, times=times, return_sequence=False)
        loss = (head(h_n[0]) - target).square().mean()
        loss.backward()
        optimiser.step()
        assert loss.isfinite(), step
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), (step, name)
            assert parameter.isfinite().all(), (step, name)
        for value in (gate.period, gate.shift, gate.ratio_on):
            assert value.isfinite().all(), step
        assert (gate.period > 0).all(), step
        assert ((gate.ratio_on > 0) & (gate.ratio_on <= 1)).all(), step
    assert not torch.equal(gate.period, started)
