"""Phased LSTM beside torch.nn.LSTM of the same sizes: parity first, then times taken in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from phased_lstm import PhasedLSTM
from records import Point

Plans = dict[str, Callable[[], object]]

PARTS = ("forward", "train")
DENSE = "nn.LSTM"
OURS = "ours"

_OUTPUT_TOLERANCE = 1e-5
_GRADIENT_TOLERANCE = 1e-4

# Seconds of a turn.
_TURN = 0.02


@dataclass(frozen=True)
class Sizes:
    """Sizes of a comparison; times are U(0, L), sorted, a row each unless shared."""

    batch: int
    steps: int
    inputs: int
    hidden: int
    shared: bool = False
    threads: int | None = None

    def __str__(self) -> str:
        name = f"{self.batch}, {self.steps}, {self.inputs}, {self.hidden}" + (", shared times" if self.shared else "")
        return name + (f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else "")

    @property
    def unit_steps(self) -> int:
        """The number of events if every unit were open at every step, as for nn.LSTM."""
        return self.batch * self.steps * self.hidden

    @property
    def event_work(self) -> int:
        """Multiply-adds of one unit at one step: four gates over the input and the state."""
        return 4 * (self.hidden + self.inputs)

    def tiny(self) -> Sizes:
        """The same kind of comparison in next to no time."""
        return replace(
            self,
            batch=max(1, self.batch // 16),
            steps=max(2, min(self.steps // 50, 100)),
            inputs=max(1, self.inputs // 16),
            hidden=max(2, self.hidden // 16),
        )


class Comparison:
    """An nn.LSTM and a Phased LSTM with the same weights, on the same input.

    Args:
        sizes: of both.
        **phased: keyword-only arguments of `PhasedLSTM`: `ratio_on`, `leak`, `backend`.
    """

    def __init__(self, sizes: Sizes, **phased: Any) -> None:
        torch.manual_seed(0)
        self.sizes = sizes
        self.dense = nn.LSTM(sizes.inputs, sizes.hidden, batch_first=True)
        self.phased = PhasedLSTM.from_lstm(self.dense, **phased)
        self.x = torch.randn(sizes.batch, sizes.steps, sizes.inputs)
        shape = (sizes.steps,) if sizes.shared else (sizes.batch, sizes.steps)
        self.times = torch.rand(shape, dtype=torch.float64).mul(sizes.steps).sort(-1).values

    def openness(self) -> float:
        """The measured share of (step, unit) pairs that are open."""
        return float(self.phased.gates[0].openness(self.times).fraction.mean())

    def recurrent_share(self) -> float:
        """The share of open events' recurrent multiplications that the kernels make forwards.

        With times that four sequences or more share, a unit that stays open keeps its products and adds what changed,
        but for every 16th step and where more than half of the units were open (csrc/state_products.inl).
        """
        if not self.sizes.shared or self.sizes.batch < 4:
            return 1.0
        gate = self.phased.gates[0]
        opened = gate.phase(self.times) < gate.ratio_on
        before = opened.roll(1, 0)
        changed = before.sum(-1)
        usable = (torch.arange(len(opened)) % 16 > 0) & (2 * changed <= self.sizes.hidden)
        kept = (opened & before).sum(-1) * usable
        made = (opened.sum(-1) - kept) * self.sizes.hidden + kept * changed
        return float(made.sum()) / max(1, int(opened.sum()) * self.sizes.hidden)

    def plans(self) -> Plans:
        """What is timed; train is forward and backward with the loss on the last state."""
        return {
            f"{DENSE} forward": torch.no_grad()(self._dense),
            f"{OURS} forward": torch.no_grad()(self._phased),
            f"{DENSE} train": lambda: self._dense().sum().backward(),
            f"{OURS} train": lambda: self._phased().sum().backward(),
        }

    def check(self) -> None:
        """Refuse to time kernels that are wrong: outputs, states and gradients against the reference.

        Raises:
            SystemExit: they differ.
        """
        # Few rows show what long sequences do, few steps show what the whole batch does.
        for rows, steps in ((4, 2000), (len(self.x), 200)):
            times = self.times[:steps] if self.times.dim() == 1 else self.times[:rows, :steps]
            found, wanted = (
                _results(self.phased, backend, self.x[:rows, :steps], times) for backend in ("auto", "reference")
            )
            self.phased.backend = "auto"
            for name, value in wanted.items():
                refuse_difference(name, found[name], value)

    def _dense(self) -> Tensor:
        return self.dense(self.x)[1][0]

    def _phased(self) -> Tensor:
        return self.phased(self.x, times=self.times, return_sequence=False)[1][0]


def refuse_difference(name: str, found: Tensor, wanted: Tensor) -> None:
    """Refuse what is off by more than rounding.

    Raises:
        SystemExit: it is.
    """
    tolerance = _GRADIENT_TOLERANCE if name.startswith("gradient") else _OUTPUT_TOLERANCE
    error = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3))
    if not error <= tolerance:
        raise SystemExit(f"{name}: native and reference backend differ by {error:.1e}: not timed")


def _results(phased: PhasedLSTM, backend: str, x: Tensor, times: Tensor) -> dict[str, Tensor]:
    """Return everything that one training step and the whole sequence give."""
    phased.backend = backend
    phased.zero_grad()
    h_n, c_n = phased(x, times=times, return_sequence=False)[1]
    h_n.sum().backward()
    with torch.no_grad():
        output = phased(x, times=times)[0]
    gradients = {
        f"gradient of {name}": parameter.grad
        for name, parameter in phased.named_parameters()
        if parameter.grad is not None
    }
    phased.zero_grad()
    return {"output": output, "h_n": h_n.detach(), "c_n": c_n.detach()} | gradients


def timed(plans: Plans, repeats: int, budget: float = math.inf) -> Point:
    """Call the plans in turns, after a round of warm-up.

    A turn calls a plan as often as fills 20 ms: a single call of a millisecond would mostly measure how cold the
    caches are after the other's turn.

    Args:
        plans: what to call.
        repeats: rounds.
        budget: seconds after which no round is begun, once there are three.

    Returns:
        rounds, and for each plan the median in ms and the quartiles in quartiles_ms, in milliseconds.
    """
    taken: dict[str, list[float]] = {name: [] for name in plans}
    calls: dict[str, int] = {}
    for name, plan in plans.items():
        plan()
        started = time.perf_counter()
        plan()
        calls[name] = max(1, math.ceil(_TURN / (time.perf_counter() - started)))
    begun = time.perf_counter()
    rounds = 0
    while rounds < repeats and (rounds < 3 or time.perf_counter() - begun < budget):
        for name, plan in plans.items():
            started = time.perf_counter()
            for _ in range(calls[name]):
                plan()
            taken[name].append(1e3 * (time.perf_counter() - started) / calls[name])
        rounds += 1
    return {
        "rounds": rounds,
        "ms": {name: statistics.median(values) for name, values in taken.items()},
        "quartiles_ms": {name: _quartiles(values) for name, values in taken.items()},
    }


def _quartiles(values: list[float]) -> list[float]:
    if len(values) == 1:
        return values * 2
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def peak_gflops(size: int) -> float:
    """The best rate of a square float32 matrix product on torch's present number of threads."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(40):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2e-9 * size**3 / min(seconds)
