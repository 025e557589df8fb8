"""The rhythmic time gate: phase, openness, initialisation and diagnosis.

Equations from Neil, Pfeiffer and Liu, "Phased LSTM: Accelerating Recurrent Network Training for
Long or Event-based Sequences" (NIPS 2016), section 2. Everything about *when* a unit may change
lives here; what it changes to lives in `phased_lstm.ops`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._checks import (
    LARGEST_INTEGER_TIME,
    RATIO_MIN,
    Oscillation,
    check_floating,
    check_gate_options,
    check_integer,
    check_number,
    check_size,
    check_time_dtype,
    check_time_values,
    check_units,
    valid_rows,
)
from ._parametrisation import gate_values, growth_of, odds_of, ratio_of, shift_of
from ._phase import phase as phase
from ._phase import wide_dtype

# Periods of e^1 to e^6 time units are what the authors' code recommends for index time.
PERIOD_INIT_MIN = math.exp(1.0)
PERIOD_INIT_MAX = math.exp(6.0)

_LARGEST_TIME = 1e26
# float32 rounds the smallest ratio to just below it.
_RATIO_MIN_ROUNDED = RATIO_MIN * (1.0 - 1e-6)

# Openness is summed in pieces of about this many (step, unit) pairs, to bound memory.
_CHUNK_ELEMENTS = 1 << 21


# What a state says of its gate besides the tensors.
_NOTED = ("oscillation", "leak")


class Openness(NamedTuple):
    """How much each unit of a gate is open over some time stamps.

    Attributes:
        fraction: (H,) float64, the share of time stamps at which the unit is open. Not differentiable.
        mean: (H,) float64, the mean of the gate's k without leak, differentiable in the gate's
            parameters.
    """

    fraction: Tensor
    mean: Tensor


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() < 4


def _wide(times: Tensor) -> Tensor:
    return times.to(wide_dtype(times.device) if times.is_floating_point() else torch.int64)


def time_gate(phase: Tensor, ratio_on: Tensor, *, leak: float = 0.0, oscillation: Oscillation = "triangle") -> Tensor:
    """Openness k of the time gate at a given phase (equation 6 of the paper).

    "triangle" rises from 0 to 1 on [0, r/2) and falls back on [r/2, r). "square" is 1 on [0, r).
    "cosine" is the smooth (1 - cos(2 pi phi / r)) / 2 there. Elsewhere k = leak * phi.

    Args:
        phase: (..., H) in [0, 1).
        ratio_on: (H,) r in (0, 1].
        leak: alpha >= 0.
        oscillation: "triangle", "square" or "cosine".

    Returns:
        (..., H) k in [0, 1], in the wider dtype of the two arguments.
    """
    progress = phase / ratio_on
    if oscillation == "triangle":
        opening = torch.where(phase < 0.5 * ratio_on, 2.0 * progress, 2.0 - 2.0 * progress)
    elif oscillation == "cosine":
        opening = 0.5 - 0.5 * torch.cos((2.0 * math.pi) * progress)
    else:
        # A constant that keeps the ratio in the graph: its gradient is zero, not None.
        opening = 1.0 + 0.0 * progress
    return torch.where(phase < ratio_on, opening, leak * phase)


class TimeGate(nn.Module):
    """The time gate of one layer and direction: a period, a shift and an open ratio for each unit.

    At time t, unit j is at phase phi = ((t - origin - s_j) mod tau_j) / tau_j and its openness is
    `time_gate(phi, r_j)`. What is trained is the deviation from the initial values: `raw_period`,
    `raw_shift` and `raw_ratio_on` start at 0, have no bounds and no unit. So no optimiser step makes a
    period or ratio invalid, training does not depend on whether time is in seconds or hours, and
    weight decay pulls to the initial values. Read and set values through `period`, `shift`,
    `ratio_on` and `assign_`.

    Everything stays in float32 or wider when the module is cast to a 16-bit type: a period of three
    significant digits would lose its phase within a few cycles. `origin` is an integer subtracted
    from the times first (0 unless `fit_` or `assign_` sets it); with unix time stamps it keeps the
    gradient in the period, which grows with |t - origin|, of a sane size.

    To freeze a part: `gate.raw_period.requires_grad_(False)`, and so on.

    Args:
        hidden_size: number of units H.
        leak: alpha, the slope of k over the closed phase; acts in training mode only.
        ratio_on: initial open ratio in [1e-6, 1].
        trainable_ratio_on: whether the ratio is learned. Learned freely it drifts towards 1; put a
            penalty on `openness(times).mean`.
        period_init_min: lower end of the log-uniform draw of initial periods, in time units.
        period_init_max: upper end of it.
        oscillation: "triangle" (the paper), "square" or "cosine".
        device: of the parameters.
        dtype: of the parameters, float32 or float64; 16-bit types give float32.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a value out of range, named with its range.
    """

    initial_period: Tensor
    initial_shift: Tensor
    initial_ratio_on: Tensor
    origin: Tensor

    def __init__(
        self,
        hidden_size: int,
        *,
        leak: float = 0.0,
        ratio_on: float = 0.05,
        trainable_ratio_on: bool = False,
        period_init_min: float = PERIOD_INIT_MIN,
        period_init_max: float = PERIOD_INIT_MAX,
        oscillation: Oscillation = "triangle",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden_size = check_size("hidden_size", hidden_size)
        options = check_gate_options(leak, ratio_on, trainable_ratio_on, period_init_min, period_init_max, oscillation)
        ratio_on, trainable_ratio_on = options["ratio_on"], options["trainable_ratio_on"]
        if oscillation == "square" and trainable_ratio_on:
            warnings.warn(
                "oscillation='square' has a zero derivative in ratio_on: trainable_ratio_on=True will "
                "not change it; use 'triangle' or 'cosine' to learn the ratio",
                stacklevel=2,
            )
        if ratio_on >= 1.0 and trainable_ratio_on:
            warnings.warn(
                "ratio_on=1 has a zero derivative: trainable_ratio_on=True will not change it; start below 1",
                stacklevel=2,
            )
        self.hidden_size = hidden_size
        self.leak: float = options["leak"]
        self.trainable_ratio_on = trainable_ratio_on
        self.oscillation: Oscillation = options["oscillation"]
        self._init_ratio_on = ratio_on
        self._init_periods = (options["period_init_min"], options["period_init_max"])
        dtype = dtype or torch.get_default_dtype()
        check_floating(dtype)
        if dtype in (torch.float16, torch.bfloat16):
            dtype = torch.float32
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.raw_period = nn.Parameter(torch.empty(hidden_size, **factory))
        self.raw_shift = nn.Parameter(torch.empty(hidden_size, **factory))
        self.raw_ratio_on = nn.Parameter(torch.empty(hidden_size, **factory), requires_grad=trainable_ratio_on)
        for name in ("initial_period", "initial_shift", "initial_ratio_on"):
            self.register_buffer(name, torch.empty(hidden_size, **factory))
        self.register_buffer("origin", torch.zeros((), device=device, dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw periods log-uniformly and shifts uniformly over the period; origin 0."""
        low, high = self._init_periods
        with torch.no_grad():
            self.origin.zero_()
            self.initial_period.uniform_(math.log(low), math.log(high)).exp_()
            self.initial_shift.uniform_(0.0, 1.0).mul_(self.initial_period)
            self.initial_ratio_on.fill_(self._init_ratio_on)
            for raw in (self.raw_period, self.raw_shift, self.raw_ratio_on):
                raw.zero_()

    @property
    def period(self) -> Tensor:
        """(H,) tau > 0, in time units; differentiable."""
        return self.initial_period * growth_of(self.raw_period)

    @property
    def shift(self) -> Tensor:
        """(H,) s, in time units after `origin`; differentiable."""
        return shift_of(self.raw_shift, self.initial_shift, self.period)

    @property
    def ratio_on(self) -> Tensor:
        """(H,) r in (0, 1]; differentiable."""
        return ratio_of(odds_of(self.raw_ratio_on), self.initial_ratio_on)

    def values(self) -> tuple[Tensor, Tensor, Tensor]:
        """Period, shift and ratio_on."""
        return gate_values(
            self.raw_period, self.raw_shift, self.raw_ratio_on,
            self.initial_period, self.initial_shift, self.initial_ratio_on,
        )  # fmt: skip

    def sources(self) -> tuple[Any, ...] | None:
        """The raw parameters, initial values and origin; None if they are not all that the values are made of."""
        raw, initial = self._parameters, self._buffers
        # A subclass may make its values in another way; pruned or parametrised, something stands in for a parameter.
        if type(self) is not TimeGate or not ("raw_period" in raw and "raw_shift" in raw and "raw_ratio_on" in raw):
            return None
        return (
            raw["raw_period"], raw["raw_shift"], raw["raw_ratio_on"],
            initial["initial_period"], initial["initial_shift"], initial["initial_ratio_on"], initial["origin"],
        )  # fmt: skip

    @property
    def active_leak(self) -> float:
        """The leak that acts now: `leak` in training mode, 0 in evaluation mode (as in the paper)."""
        return self.leak if self.training else 0.0

    def relative(self, times: Tensor) -> Tensor:
        """Times after the gate's origin: exact for integers, in float64 for floating times."""
        wide = _wide(times)
        return wide - self.origin.to(wide.dtype)

    def phase(self, times: Tensor) -> Tensor:
        """(..., H) phase in [0, 1) at `times` (...)."""
        return phase(self.relative(times), self.period, self.shift)

    def forward(self, times: Tensor) -> Tensor:
        """Openness k at `times`.

        Args:
            times: (...) absolute time stamps, any of int32, int64, float32, float64; finite.

        Returns:
            (..., H) k in [0, 1], in the dtype of the gate's parameters, leak included in training mode.
        """
        times = check_time_dtype(times)
        check_time_values(times)
        k = time_gate(self.phase(times), self.ratio_on, leak=self.active_leak, oscillation=self.oscillation)
        return k.to(self.initial_period.dtype)

    @torch.no_grad()
    def assign_(
        self,
        *,
        period: Tensor | float | None = None,
        shift: Tensor | float | None = None,
        ratio_on: Tensor | float | None = None,
        origin: int | None = None,
    ) -> TimeGate:
        """Set values by hand; what is not named keeps its value (a shift keeps its time units).

        Args:
            period: scalar or (H,), positive and finite, in time units.
            shift: scalar or (H,), finite, in time units after the origin.
            ratio_on: scalar or (H,), in [1e-6, 1].
            origin: integer time from which times and shifts count.

        Returns:
            The gate itself.

        Raises:
            ValueError: a wrong shape, or values out of range; the gate is then unchanged.
        """
        if origin is not None:
            origin = check_integer("origin", origin)
        if origin is not None and abs(origin) > LARGEST_INTEGER_TIME:
            raise ValueError(f"origin should be within 2**62 of zero, got {origin}")
        if period is not None:
            period = self._per_unit("period", period)
            smallest = 1.0 / _LARGEST_TIME
            wanted = f"positive and finite (from {smallest:g} to {_LARGEST_TIME:g})"
            check_units("period", period, (period >= smallest) & (period <= _LARGEST_TIME), wanted)
        if shift is not None:
            shift = self._per_unit("shift", shift)
            wanted = f"finite (at most {_LARGEST_TIME:g} in size)"
            check_units("shift", shift, shift.abs() <= _LARGEST_TIME, wanted)
        if ratio_on is not None:
            ratio_on = self._per_unit("ratio_on", ratio_on)
            check_units(
                "ratio_on", ratio_on, (ratio_on >= _RATIO_MIN_ROUNDED) & (ratio_on <= 1), f"in [{RATIO_MIN:g}, 1]"
            )
        kept_shift = self.shift
        if period is not None:
            self.initial_period.copy_(period)
            self.raw_period.zero_()
        if period is not None or shift is not None:
            self.initial_shift.copy_(kept_shift if shift is None else shift)
            self.raw_shift.zero_()
        if ratio_on is not None:
            self.initial_ratio_on.copy_(ratio_on)
            self.raw_ratio_on.zero_()
        if origin is not None:
            self.origin.fill_(origin)
        return self

    def _per_unit(self, name: str, value: Tensor | float) -> Tensor:
        if not isinstance(value, Tensor):
            value = check_number(name, value, "a number or a tensor")
        tensor = torch.as_tensor(value, dtype=torch.float64, device=self.origin.device).detach()
        if tensor.shape not in ((), (self.hidden_size,)):
            raise ValueError(
                f"{name} should be a scalar or of shape ({self.hidden_size},), one value for each unit, "
                f"got shape {tuple(tensor.shape)}"
            )
        return tensor.expand(self.hidden_size)

    def openness(self, times: Tensor, lengths: Tensor | None = None) -> Openness:
        """How much each unit is open over the given times, without leak.

        Args:
            times: (L,) or (N, L) absolute time stamps.
            lengths: (N,) integer number of valid steps of each row, with times (N, L).

        Returns:
            `Openness(fraction, mean)`, each (H,). `mean` is differentiable, to penalise openness
            when the ratio is trained: `loss + weight * gate.openness(times).mean.mean()`. A unit that
            never opens has fraction 0.

        Raises:
            ValueError: times of another shape, not finite, or none at all; lengths out of range.
        """
        stamps = torch.cat(valid_rows(times, lengths) or [times.flatten()])
        if stamps.numel() == 0:
            raise ValueError("openness needs at least one time stamp, got none")
        period, shift, ratio_on = self.period, self.shift, self.ratio_on
        opened = torch.zeros(self.hidden_size, dtype=torch.int64, device=stamps.device)
        total = torch.zeros(self.hidden_size, dtype=wide_dtype(stamps.device), device=stamps.device)
        for part in self.relative(stamps).split(max(1, _CHUNK_ELEMENTS // self.hidden_size)):
            phi = phase(part, period, shift)
            opened = opened + (phi < ratio_on).sum(0)
            total = total + time_gate(phi, ratio_on, oscillation=self.oscillation).sum(0)
        return Openness(opened.to(total.dtype) / stamps.numel(), total / stamps.numel())

    def fit_(
        self, times: Tensor, lengths: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> TimeGate:
        """Draw periods and shifts that suit the time scale of data.

        Periods are log-uniform from four median intervals up to the median duration of a sequence,
        shifts cover all phases, both evenly over the units; the origin becomes the earliest time,
        rounded down. From then on give real times: 0, 1, 2, ... would be far from the origin.
        Units that happen to open at none of the times are drawn again a few times.

        Args:
            times: (L,) or (N, L) absolute time stamps, a typical sample of the data, a row for each
                sequence whatever the layout of a layer; `fit_gates_` of a layer takes the layer's.
            lengths: (N,) integer number of valid steps of each row, with times (N, L).
            generator: source of randomness; default torch's global one.

        Returns:
            The gate itself.

        Raises:
            ValueError: times of the wrong shape or dtype, not finite, or without any two different
                time stamps in one sequence, so that there is no time scale to fit.

        Warns:
            UserWarning: names the units that never open at these times.
        """
        closed = self._fit(times, lengths, generator)
        if closed:
            warn_of_closed(closed, self.hidden_size)
        return self

    @torch.no_grad()
    def _fit(self, times: Tensor, lengths: Tensor | None, generator: torch.Generator | None) -> list[int]:
        """Do so, and return the units that never open."""
        rows = [_wide(row).sort().values for row in valid_rows(times, lengths)]
        intervals = [gaps[gaps > 0] for gaps in (row.diff() for row in rows)]
        rows = [row for row, gaps in zip(rows, intervals, strict=True) if gaps.numel()]
        if not rows:
            raise ValueError(
                "fitting needs a sequence with at least two different time stamps, and these have none: "
                "pass the times of whole sequences, or set the gate with assign_(period=, shift=)"
            )
        span = torch.stack([row[-1] - row[0] for row in rows]).double().median().item()
        interval = torch.cat(intervals).double().median().item()
        earliest = min(row[0].item() for row in rows)
        stamps = torch.cat(rows)
        if not 4.0 / _LARGEST_TIME <= interval <= span <= _LARGEST_TIME:
            raise ValueError(
                f"these times have a median interval of {interval:g} and span {span:g}: choose a unit in which both "
                f"are between {4.0 / _LARGEST_TIME:g} and {_LARGEST_TIME:g}"
            )
        low, high = math.log(min(4.0 * interval, span / 2.0)), math.log(span)

        count = self.hidden_size
        period = (low + (high - low) * _stratified(count, generator)).exp()
        self.assign_(
            period=period,
            shift=period * _stratified(count, generator),
            origin=min(max(math.floor(earliest), -LARGEST_INTEGER_TIME), LARGEST_INTEGER_TIME),
        )
        closed = self._closed_units(stamps)
        for _ in range(8):
            if not closed:
                break
            fresh = torch.rand((2, len(closed)), generator=generator, dtype=torch.float64)
            period[closed] = (low + (high - low) * fresh[0]).exp()
            shift = self.shift.double().cpu()
            shift[closed] = period[closed] * fresh[1]
            self.assign_(period=period, shift=shift)
            closed = self._closed_units(stamps)
        return closed

    def _closed_units(self, stamps: Tensor) -> list[int]:
        return (self.openness(stamps).fraction == 0).nonzero().flatten().tolist()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TimeGate:
        def keep_wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if _is_narrow(moved) else moved

        return super()._apply(keep_wide, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Not among the entries, where a plain layer's checkpoint would lack it: torch.save keeps the notes of a state.
        notes = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if notes is not None:
            notes.update({name: getattr(self, name) for name in _NOTED})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        errors: list[str] = args[-1]
        for name in _NOTED:
            own, noted = getattr(self, name), args[0].get(name, getattr(self, name))
            if noted != own:
                warnings.warn(
                    f"the state of {prefix[:-1] or 'the gate'} was saved with {name}={noted!r}, and is loaded into one "
                    f"with {name}={own!r}: results will differ; make the layer with {name}={noted!r}",
                    stacklevel=2,
                )
        for key in [key for key in state_dict if key.startswith(prefix)]:
            value = state_dict[key]
            if isinstance(value, Tensor) and _is_narrow(value):
                value = state_dict[key] = value.float()
            if key == prefix + "initial_period" and not bool(((value > 0) & torch.isfinite(value)).all()):
                errors.append(f"{key} should be positive and finite")
            if key == prefix + "initial_ratio_on" and not bool(((value > 0) & (value <= 1)).all()):
                errors.append(f"{key} should be in (0, 1]")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        parts = [str(self.hidden_size)]
        if self.leak:
            parts.append(f"leak={self.leak:g}")
        if self.trainable_ratio_on:
            parts.append("trainable_ratio_on=True")
        if self.oscillation != "triangle":
            parts.append(f"oscillation={self.oscillation!r}")
        return ", ".join(parts)


def warn_of_closed(closed: list[int], units: int, gate: str = "") -> None:
    """Warn of units that never open, those of a layer's gate by its name."""
    named = ", ".join(map(str, closed[:20])) + (", ..." if len(closed) > 20 else "")
    warnings.warn(
        f"{len(closed)} of {units} units {f'of {gate} ' if gate else ''}never open at the given times (units {named}): "
        f"they will keep their initial state. Raise ratio_on, give more time stamps, or set "
        f"assign_(period=, shift=) by hand",
        stacklevel=3,
    )


def _stratified(count: int, generator: torch.Generator | None) -> Tensor:
    """One uniform draw from each of `count` equal parts of [0, 1), in random order."""
    order = torch.randperm(count, generator=generator).double()
    return (order + torch.rand(count, generator=generator, dtype=torch.float64)) / count
