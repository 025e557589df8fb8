"""What layers and cells share: weights by name, time gates, and the checks of a step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._checks import (
    Oscillation,
    check_flag,
    check_floating,
    check_gate_options,
    check_size,
    check_time_values,
    is_plain,
)
from ._parametrisation import gate_values_and_factors
from .functional import NARROW_DTYPES, apply_gru, apply_lstm, autocasting
from .gate import PERIOD_INIT_MAX, PERIOD_INIT_MIN, TimeGate
from .ops import native
from .ops.registry import check_backend_name

PEEPHOLES = ("weight_ci", "weight_cf", "weight_co")
GATE_DEFAULTS: dict[str, Any] = {
    "leak": 0.0,
    "ratio_on": 0.05,
    "trainable_ratio_on": False,
    "period_init_min": PERIOD_INIT_MIN,
    "period_init_max": PERIOD_INIT_MAX,
    "oscillation": "triangle",
}


class Timing(NamedTuple):
    """A gate's valid values for one call, each (H,), and the time they count from."""

    period: Tensor
    shift: Tensor
    ratio_on: Tensor
    origin: int | None


class _Kept(NamedTuple):
    """Constants that were made of a gate's parameters.

    Attributes:
        raw_gate: (8, H) the six parameters as they were, and growth and odds.
        origin: as it was.
        timing: the values, in float64.
    """

    raw_gate: Tensor
    origin: int
    timing: Timing


class PhasedModule(nn.Module):
    """What layers and cells share: sizes, weights by name, states, checks."""

    _gate_count: int
    _state_count: int

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, peephole: bool, backend: str, gate_options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.input_size = check_size("input_size", input_size)
        self.hidden_size = check_size("hidden_size", hidden_size)
        self.bias = check_flag("bias", bias)
        self.peephole = check_flag("peephole", peephole)
        check_backend_name(backend)
        self.backend = backend
        self._gate_options = check_gate_options(**gate_options)
        self._gate_names: list[str] = []
        self._kept: dict[str, _Kept] = {}
        # Warnings that were given.
        self._said: set[str] = set()
        self._calls = [0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def _add_weights(self, suffix: str, width: int, factory: dict[str, Any]) -> None:
        check_floating(factory["dtype"])
        rows = self._gate_count * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width), "weight_hh": (rows, self.hidden_size)}
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if self.peephole:
            shapes |= dict.fromkeys(PEEPHOLES, (self.hidden_size,))
        for name, shape in shapes.items():
            self.register_parameter(name + suffix, nn.Parameter(torch.empty(shape, **factory)))
        self._gate_names.append("gate" + suffix)
        self.add_module("gate" + suffix, TimeGate(self.hidden_size, **self._gate_options, **factory))

    def reset_parameters(self) -> None:
        """Draw weights from U(-1/sqrt(H), 1/sqrt(H)) as torch.nn does, and gates anew."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        gates = self.gates
        of_gates = {id(parameter) for gate in gates for parameter in gate.parameters()}
        for parameter in self.parameters():
            if id(parameter) not in of_gates:
                nn.init.uniform_(parameter, -bound, bound)
        for gate in gates:
            gate.reset_parameters()

    @property
    def gates(self) -> list[TimeGate]:
        """The time gates, in the order of layers and directions."""
        return [getattr(self, name) for name in self._gate_names]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Let a checkpoint of a plain torch.nn layer load, with a warning that names what it lacks."""
        gates = tuple(f"{prefix}{name}." for name in self._gate_names)
        peepholes = tuple(prefix + name for name in PEEPHOLES)
        if not any(key.startswith(gates + peepholes) for key in state_dict):
            own = {prefix + key: value for key, value in self.state_dict().items()}
            absent = {key: value for key, value in own.items() if key.startswith(gates + peepholes)}
            lacks = "time gates and peepholes" if self.peephole else "time gates"
            warnings.warn(
                f"the checkpoint is of a layer without {lacks}: {', '.join(absent)} keep their present values",
                stacklevel=2,
            )
            state_dict.update(absent)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _direction(
        self,
        suffix: str,
        x: Tensor,
        times: Tensor,
        state: tuple[Tensor | None, ...],
        *,
        lengths: Tensor | None = None,
        reverse: bool = False,
        return_sequence: bool = False,
        layered: bool = False,
        times_are_finite: bool = True,
    ) -> tuple[Tensor | None, ...]:
        """Run one layer and direction over (N, L, width).

        Args:
            suffix: of the weights' names.
            x, times, lengths, reverse, return_sequence: as the backends take them.
            state: each (N, H), or None for zeros.
            layered: whether the final states are to be (1, N, H).
            times_are_finite: False if nobody has looked yet; then it is done here.

        Returns:
            output or None, and the final states, each (N, H) or (1, N, H).
        """
        gate = self._module("gate" + suffix)
        if gate.hidden_size != self.hidden_size:
            raise ValueError(f"gate{suffix} is of {gate.hidden_size} units, the layer has {self.hidden_size}")
        biases: tuple[Any, Any] = (None, None)
        if self.bias:
            biases = (self._weight("bias_ih" + suffix), self._weight("bias_hh" + suffix))
        weights = (self._weight("weight_ih" + suffix), self._weight("weight_hh" + suffix), *biases)
        peepholes = tuple(self._weight(name + suffix) for name in PEEPHOLES) if self.peephole else ()
        sources = self._sources_for_native(gate, x, (*state, *weights, *peepholes))
        if sources is not None:
            kept = self._keep("gate" + suffix, sources)
            times = times if kept.timing.origin == 0 else gate.relative(times)
            try:
                return native.layer_of_parameters(
                    x, times, state, weights, peepholes, sources[:3], kept.timing[:3], kept.raw_gate,
                    leak=gate.active_leak, oscillation=gate.oscillation, lengths=lengths, reverse=reverse,
                    return_sequence=return_sequence, layered=layered,
                )  # fmt: skip
            except RuntimeError as error:
                refusal = error
            try:
                # The operator looks at every time, too, and refuses what is refused here in better words.
                check_time_values(times)
                raise refusal
            finally:
                # The error holds this frame, and with it the batch, until it is gone.
                del refusal
        if not times_are_finite:
            check_time_values(times)
        if state[0] is None:
            state = self._blank_states(x)
        options = {
            "leak": gate.active_leak,
            "oscillation": gate.oscillation,
            "lengths": lengths,
            "reverse": reverse,
            "return_sequence": return_sequence,
            "backend": self.backend,
        }
        output, *final = self._by_operands(suffix, gate, x, times, state, weights, peepholes, options)
        return (output, *((each.unsqueeze(0) for each in final) if layered else final))

    def _by_operands(
        self,
        suffix: str,
        gate: TimeGate,
        x: Tensor,
        times: Tensor,
        state: tuple[Any, ...],
        weights: tuple[Any, Any, Any, Any],
        peepholes: tuple[Any, ...],
        options: dict[str, Any],
    ) -> tuple[Any, ...]:
        """Run one layer and direction on whatever backend takes the gate's values as operands."""
        timing = self._timing("gate" + suffix, gate)
        times = times if timing.origin == 0 else gate.relative(times)
        if self._state_count == 1:
            return apply_gru(x, times, state[0], *weights, *timing[:3], **options)
        weight_ih, weight_hh, *biases = weights
        bias = None
        if self.bias:
            # Two 16-bit biases are added in float32, like everything else.
            first, second = (b.float() if b.dtype in NARROW_DTYPES else b for b in biases)
            bias = first + second
        peephole = torch.stack(peepholes) if peepholes else None
        h0, c0 = state
        return apply_lstm(x, times, h0, c0, weight_ih, weight_hh, bias, *timing[:3], peephole=peephole, **options)

    def _weight(self, name: str) -> Any:
        # torch.nn.Module looks in three places first. Pruned or parametrised, a weight is no parameter.
        found = self._parameters.get(name)
        return getattr(self, name) if found is None else found

    def _module(self, name: str) -> Any:
        found = self._modules.get(name)
        return getattr(self, name) if found is None else found

    def _sources_for_native(
        self, gate: TimeGate, x: Tensor, others: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, ...] | None:
        """The gate's sources if the native backend is to take them and all the others as they are, else None."""
        sources = gate.sources()
        if sources is None or self.backend not in ("auto", "native") or not native.keeps_values(sources[0]):
            return None
        dtype = x.dtype
        if native.too_wide(x):
            return None
        if dtype not in (torch.float32, torch.float64) or not x.is_cpu or torch.is_autocast_enabled("cpu"):
            return None
        for tensor in others:
            if tensor is not None and tensor.dtype != dtype:
                return None
        of_gate = sources[0].dtype
        for tensor in sources[1:6]:
            if tensor.dtype != of_gate:
                return None
        for initial in sources[3:6]:
            if initial.requires_grad:
                return None
        return sources

    def _timing(self, name: str, gate: TimeGate) -> Timing:
        """Return the gate's values. Where no gradient is wanted they are kept from call to call."""
        sources = gate.sources()
        if torch.is_grad_enabled() or sources is None or not native.keeps_values(sources[0]):
            return Timing(*gate.values(), None)
        return self._keep(name, sources).timing

    def _keep(self, name: str, sources: tuple[Tensor, ...]) -> _Kept:
        """Return what was made of a gate's sources at the last call, or make it anew if they have changed.

        They must be bit for bit what they were: versions of tensors would not tell of writes through `.data`.
        """
        kept = self._kept.get(name)
        if kept is None or not native.gate_unchanged(kept.raw_gate, kept.origin, sources):
            # Tensors made in inference mode could not serve a later call that trains.
            with torch.inference_mode(False), torch.no_grad():
                *parameters, origin_now = sources
                origin = int(origin_now)
                # Values are made of the copy that later calls are compared with, so that they belong together even
                # where another thread writes to the parameters meanwhile.
                copy = torch.stack(tuple(parameters))
                *values, growth, odds = gate_values_and_factors(*copy.unbind())
                period, shift, ratio_on = (value.double() for value in values)
                raw_gate = torch.cat((copy, torch.stack((growth, odds))))
                kept = _Kept(raw_gate, origin, Timing(period, shift, ratio_on, origin))
            self._kept[name] = kept
        return kept

    def _check_input(self, input: Tensor, weight: Any) -> None:
        if input.device != weight.device:
            raise RuntimeError(
                f"input is on {input.device} but the parameters are on {weight.device}: move one with .to(device)"
            )
        if input.dtype != weight.dtype and not (autocasting(input) and input.is_floating_point()):
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
            )

    def _check_states(self, hx: Any, names: Sequence[str]) -> tuple[Tensor, ...]:
        """Return the states as a tuple, checked for type only."""
        if self._state_count == 1:
            if not isinstance(hx, Tensor):
                raise TypeError(f"{self._name}: hx should be one tensor, the hidden state, got: {_type_name(hx)}")
            return (hx,)
        if not isinstance(hx, (tuple, list)) or len(hx) != 2 or not all(isinstance(s, Tensor) for s in hx):
            hint = "; times go by their name, times=..." if isinstance(hx, Tensor) else ""
            raise TypeError(
                f"{self._name}: hx should be a tuple of two tensors, ({', '.join(names)}), got: {_type_name(hx)}{hint}"
            )
        return tuple(hx)

    def _check_state_kind(self, name: str, state: Tensor, input: Tensor) -> None:
        if state.device != input.device:
            raise RuntimeError(f"{name} is on {state.device} but the input is on {input.device}: move one with .to()")
        if state.dtype != input.dtype and not (autocasting(input) and state.is_floating_point()):
            raise ValueError(
                f"{name} dtype ({state.dtype}) does not match input dtype ({input.dtype}). "
                f"Convert it: hx.to({input.dtype})"
            )

    def _blank_states(self, input: Tensor) -> tuple[Tensor, ...]:
        blank = torch.zeros((input.shape[0], self.hidden_size), dtype=input.dtype, device=input.device)
        return (blank,) * self._state_count

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _gate_settings(self) -> dict[str, Any]:
        """What all gates have in common now of the options they were made with."""
        found: dict[str, Any] = {}
        for name in ("leak", "oscillation"):
            values = {getattr(gate, name) for gate in self.gates}
            found |= {name: values.pop()} if len(values) == 1 else {}
        ratios = [gate.ratio_on.detach() for gate in self.gates]
        if all(map(is_plain, ratios)):
            low = round(min(ratio.min().item() for ratio in ratios), 6)
            high = round(max(ratio.max().item() for ratio in ratios), 6)
            found["ratio_on"] = low if low == high else f"{low:g} to {high:g}"
        return found

    def _phased_repr(self) -> list[str]:
        options = self._gate_options | self._gate_settings()
        shown = [f"{name}={value!r}" for name, value in options.items() if value != GATE_DEFAULTS[name]]
        if self.peephole:
            shown.insert(0, "peephole=True")
        if self.backend != "auto":
            shown.append(f"backend={self.backend!r}")
        return shown


def gate_options(
    leak: float,
    ratio_on: float,
    trainable_ratio_on: bool,
    period_init_min: float,
    period_init_max: float,
    oscillation: Oscillation,
) -> dict[str, Any]:
    given = (leak, ratio_on, trainable_ratio_on, period_init_min, period_init_max, oscillation)
    return dict(zip(GATE_DEFAULTS, given, strict=True))


def _type_name(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {', '.join(type(item).__name__ for item in value) or 'nothing'}"
    return type(value).__name__
