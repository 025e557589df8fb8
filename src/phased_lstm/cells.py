"""Single steps of Phased LSTM and Phased GRU, drop-ins for the cells of torch.nn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._base import PEEPHOLES, PhasedModule, gate_options
from ._checks import LARGEST_INTEGER_TIME, Oscillation, check_time_dtype, is_plain, plain
from ._time_warnings import warn_of_grid
from .functional import check_sequence
from .gate import PERIOD_INIT_MAX, PERIOD_INIT_MIN
from .ops import native

# Integers up to here are floats as well.
_EXACT = 1 << 53

# Stack level of whoever calls a cell, seen from where its times are checked.
_OF_CALLER = 7

_WIDE = (torch.float32, torch.float64)


class PhasedCell(PhasedModule):
    """One step: shapes, states and times, common to both cells."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        peephole: bool,
        backend: str,
        gate_options: dict[str, Any],
        factory: dict[str, Any],
    ) -> None:
        super().__init__(input_size, hidden_size, bias, peephole, backend, gate_options)
        self._add_weights("", self.input_size, factory)
        self.reset_parameters()

    def _step(self, input: Tensor, hx: Any, times: Tensor | float | None) -> tuple[Tensor, ...]:
        return self._quick_step(input, hx, times) or self._checked_step(input, hx, times)

    def _quick_step(self, input: Tensor, hx: Any, times: Tensor | float | None) -> tuple[Tensor, ...] | None:
        """A stream's usual step in one operator, to the same bits; None where anything is out of the ordinary."""
        gate: Any = self._modules["gate"]
        if (
            type(times) is not float
            or torch.is_grad_enabled()
            or self.backend == "reference"
            or gate.active_leak
            or torch.is_autocast_enabled("cpu")
        ):
            return None
        states = hx if self._state_count == 2 else (hx,)
        if type(states) is not tuple or len(states) != self._state_count:
            return None
        for tensor in (input, *states):
            if type(tensor) is not Tensor or tensor.dtype not in _WIDE or not tensor.is_cpu:
                return None
        own = self._parameters
        try:
            weight_ih, weight_hh = own["weight_ih"], own["weight_hh"]
            bias_ih, bias_hh = (own["bias_ih"], own["bias_hh"]) if self.bias else (None, None)
            peephole = torch.stack([own[name] for name in PEEPHOLES]) if self.peephole else None  # type: ignore[misc]
        except KeyError:
            # Pruned or parametrised: something else stands in for a parameter.
            return None
        period, shift, ratio_on, origin = self._timing("gate", gate)
        if origin is None or abs(origin) > _EXACT:
            return None
        try:
            return native.step(
                input, times - origin, states, weight_ih, weight_hh, bias_ih, bias_hh, peephole,
                period, shift, ratio_on, gate.oscillation,
            )  # fmt: skip
        except RuntimeError:
            # What the operator refuses the checked step refuses as well, in its own words.
            return None

    def _checked_step(self, input: Tensor, hx: Any, times: Tensor | float | None) -> tuple[Tensor, ...]:
        if not isinstance(input, Tensor):
            raise TypeError(f"{self._name}: input should be a tensor, got: {type(input).__name__}")
        if input.dim() not in (1, 2):
            raise ValueError(f"{self._name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        self._check_input(input, self.weight_ih)
        if input.shape[-1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {input.shape[-1]} expected {self.input_size}")
        unbatched = input.dim() == 1
        x = input.unsqueeze(0) if unbatched else input
        states = self._cell_states(hx, x, unbatched)
        stamps = self._cell_times(times, x, unbatched)
        _, *new = self._direction("", x.unsqueeze(1), stamps, states)
        return tuple(state.squeeze(0) if unbatched else state for state in new if state is not None)

    def _cell_states(self, hx: Any, x: Tensor, unbatched: bool) -> tuple[Tensor | None, ...]:
        if hx is None:
            return (None,) * self._state_count
        states = []
        for index, given in enumerate(self._check_states(hx, ("h_0", "c_0"))):
            name = "hidden" if self._state_count == 1 else f"hx[{index}]"
            if given.dim() not in (1, 2):
                raise ValueError(f"{self._name}: Expected {name} to be 1D or 2D, got {given.dim()}D instead")
            if given.dim() != (1 if unbatched else 2):
                kind = "unbatched 1-D" if unbatched else "batched 2-D"
                raise RuntimeError(f"For {kind} input, {name} should be of the same rank, got {given.dim()}-D")
            state = given.unsqueeze(0) if unbatched else given
            if state.shape[0] != x.shape[0]:
                raise RuntimeError(
                    f"Input batch size {x.shape[0]} doesn't match hidden{index} batch size {state.shape[0]}"
                )
            if state.shape[1] != self.hidden_size:
                raise RuntimeError(
                    f"hidden{index} has inconsistent hidden_size: got {state.shape[1]}, expected {self.hidden_size}"
                )
            self._check_state_kind(name, state, x)
            states.append(state)
        return tuple(states)

    def _cell_times(self, times: Tensor | float | None, x: Tensor, unbatched: bool) -> Tensor:
        if times is None:
            raise ValueError(
                f"{self._name} needs times, the time stamp of this step: a cell keeps no count of its calls, "
                f"and without a time its gate would stand still"
            )
        times = times if isinstance(times, Tensor) else plain(times)
        if isinstance(times, (int, float)) and not isinstance(times, bool):
            if isinstance(times, int) and abs(times) > LARGEST_INTEGER_TIME:
                raise ValueError(f"integer times should be within 2**62 of zero, got {times}")
            dtype = torch.int64 if isinstance(times, int) else torch.float64
            times = torch.tensor(times, dtype=dtype, device=x.device)
        times = check_time_dtype(times)
        batch = x.shape[0]
        if times.shape not in ((), (1,) if unbatched else (batch,)):
            wanted = "a single time" if unbatched else f"a single time or of shape ({batch},)"
            raise ValueError(f"times of a cell's step should be {wanted}, got shape {tuple(times.shape)}")
        if times.dtype == torch.float32 and "grid" not in self._said:
            gate: Any = self.gate
            opening = (gate.period * gate.ratio_on).detach().median().item() if is_plain(gate.raw_period) else math.inf
            if warn_of_grid(times.reshape(-1)[:1], None, _OF_CALLER, opening):
                self._said.add("grid")
        stamps, _ = check_sequence(x.unsqueeze(1), times.reshape(1) if times.dim() == 0 else times.unsqueeze(1), None)
        return stamps

    def extra_repr(self) -> str:
        parts = [str(self.input_size), str(self.hidden_size)] + ["bias=False"] * (not self.bias)
        return ", ".join(parts + self._phased_repr())


class PhasedLSTMCell(PhasedCell):
    """One step of a Phased LSTM, with the weights' names of `torch.nn.LSTMCell` and a `gate`.

    Args:
        input_size: features of a step, H_in.
        hidden_size: units H.
        bias: whether there are bias weights.
        device: of the parameters.
        dtype: of the parameters.
        peephole, leak, ratio_on, trainable_ratio_on, period_init_min, period_init_max, oscillation,
            backend: as in `PhasedLSTM`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a value out of range.
    """

    _gate_count = 4
    _state_count = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = False,
        leak: float = 0.0,
        ratio_on: float = 0.05,
        trainable_ratio_on: bool = False,
        period_init_min: float = PERIOD_INIT_MIN,
        period_init_max: float = PERIOD_INIT_MAX,
        oscillation: Oscillation = "triangle",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            input_size, hidden_size, bias, peephole, backend,
            gate_options(leak, ratio_on, trainable_ratio_on, period_init_min, period_init_max, oscillation),
            {"device": device, "dtype": dtype},
        )  # fmt: skip

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, times: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Advance by one step.

        Args:
            input: (N, H_in) or (H_in,).
            hx: (h, c), each (N, H) or (H,); default zeros.
            times: the step's absolute time stamp: a number, a scalar tensor, or (N,). Required.

        Returns:
            The new (h, c).

        Raises:
            TypeError: a wrong type.
            ValueError: no times, times that are not finite, a wrong rank or dtype.
            RuntimeError: sizes or devices that do not fit, with torch.nn.LSTMCell's messages.
        """
        h, c = self._step(input, hx, times)
        return h, c


class PhasedGRUCell(PhasedCell):
    """One step of a Phased GRU, with the weights' names of `torch.nn.GRUCell` and a `gate`.

    Arguments as in `PhasedLSTMCell`, without `peephole`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a value out of range.
    """

    _gate_count = 3
    _state_count = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        leak: float = 0.0,
        ratio_on: float = 0.05,
        trainable_ratio_on: bool = False,
        period_init_min: float = PERIOD_INIT_MIN,
        period_init_max: float = PERIOD_INIT_MAX,
        oscillation: Oscillation = "triangle",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            input_size, hidden_size, bias, False, backend,
            gate_options(leak, ratio_on, trainable_ratio_on, period_init_min, period_init_max, oscillation),
            {"device": device, "dtype": dtype},
        )  # fmt: skip

    def forward(self, input: Tensor, hx: Tensor | None = None, times: Tensor | float | None = None) -> Tensor:
        """Advance by one step; as `PhasedLSTMCell.forward`, with one state tensor.

        Args:
            input: (N, H_in) or (H_in,).
            hx: (N, H) or (H,); default zeros.
            times: the step's absolute time stamp: a number, a scalar tensor, or (N,). Required.

        Returns:
            The new h.

        Raises:
            TypeError, ValueError, RuntimeError: as `PhasedLSTMCell.forward`.
        """
        (h,) = self._step(input, hx, times)
        return h
