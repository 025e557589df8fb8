"""Operands for the functional forms, with times that stay clear of the gate's kinks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MARGIN = 0.01


def operands(
    kind: str,
    *,
    batch: int = 3,
    steps: int = 11,
    features: int = 5,
    hidden: int = 7,
    shared: bool = False,
    bias: bool = True,
    peephole: bool = False,
    oscillation: str = "triangle",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of `phased_lstm` (kind "lstm") or `phased_gru` ("gru"), all of them wanting gradients.

    The derivative jumps at phase 0, r/2 and r (a cosine's does not, but the leak's does), so times
    keep away from them by `MARGIN` of a period in every unit.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    gates = {"lstm": 4, "gru": 3}[kind]
    period, shift, ratio_on = uniform(2.0, 9.0, hidden), uniform(-9.0, 9.0, hidden), uniform(0.3, 0.8, hidden)
    shape = (steps,) if shared else (batch, steps)
    times = torch.stack(
        [_clear_time(period, shift, ratio_on, generator) for _ in range(torch.Size(shape).numel())]
    ).view(shape)
    values: dict[str, Tensor] = {"input": normal(batch, steps, features), "times": times}
    values["h0"] = normal(batch, hidden)
    if kind == "lstm":
        values["c0"] = normal(batch, hidden)
    values["weight_ih"] = normal(gates * hidden, features) * 0.5
    values["weight_hh"] = normal(gates * hidden, hidden) * 0.5
    biases = ["bias"] if kind == "lstm" else ["bias_ih", "bias_hh"]
    for name in biases if bias else []:
        values[name] = normal(gates * hidden)
    values |= {"period": period, "shift": shift, "ratio_on": ratio_on}
    if peephole:
        values["peephole"] = normal(3, hidden)
    leaves: dict[str, Any] = {name: value.to(dtype).requires_grad_() for name, value in values.items()}
    return leaves if bias else leaves | dict.fromkeys(biases)


def _clear_time(period: Tensor, shift: Tensor, ratio_on: Tensor, generator: torch.Generator) -> Tensor:
    kinks = torch.stack([torch.zeros_like(ratio_on), ratio_on / 2, ratio_on, torch.ones_like(ratio_on)])
    while True:
        time = -20.0 + 80.0 * torch.rand((), generator=generator, dtype=torch.float64)
        phi = torch.remainder(time - shift, period) / period
        if (phi - kinks).abs().min() > MARGIN:
            return time


def leaves_of(arguments: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in arguments.items() if isinstance(value, Tensor)}


def weighted(results: tuple[Tensor | None, ...]) -> Tensor:
    """A scalar in which every entry of every result has a weight of its own."""
    generator = torch.Generator().manual_seed(99)
    total = torch.zeros((), dtype=torch.float64)
    for result in results:
        if result is not None:
            total = total + (result.double() * torch.randn(result.shape, generator=generator).double()).sum()
    return total


def gradients(
    results: tuple[Tensor | None, ...], arguments: dict[str, Any], *, unused: bool = False
) -> dict[str, Tensor]:
    """The gradient of `weighted(results)` in every tensor argument; an error where there is none, unless `unused`."""
    leaves = leaves_of(arguments)
    found = torch.autograd.grad(weighted(results), list(leaves.values()), materialize_grads=unused)
    return dict(zip(leaves, found, strict=True))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Largest absolute error over largest absolute value."""
    return ((got.double() - wanted.double()).abs().max() / wanted.double().abs().max()).item()
