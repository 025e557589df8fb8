"""How events go through a model's layers: in one operator, or stream by stream on any backend."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ._base import PEEPHOLES, Timing
from ._checks import LARGEST_INTEGER_TIME, OSCILLATIONS
from .functional import apply_gru, apply_lstm
from .ops import registry

if TYPE_CHECKING:
    from .gate import TimeGate

_WEIGHTS = ("weight_ih", "weight_hh")
_BIASES = ("bias_ih", "bias_hh")


class Held(NamedTuple):
    """What S streams hold: h and, for an LSTM, c (layers, S, H); the latest time of each (S,), on the CPU."""

    states: list[Tensor]
    latest: Tensor


class Events(NamedTuple):
    """Events of a push.

    Times are (E,) float64 or int64, or a number for one event with values (H_in,). Values are (E, H_in) otherwise.
    Streams are (E,), or None where all events are of stream `id`.
    """

    times: Tensor | None
    time: float
    values: Tensor
    ids: Tensor | None
    id: int

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Times (E,), in `dtype` if they are a number, values (E, H_in) and streams (E,)."""
        times = torch.tensor([self.time], dtype=dtype, device="cpu") if self.times is None else self.times
        ids = torch.full_like(times, self.id, dtype=torch.int64) if self.ids is None else self.ids
        return times, self.values.unsqueeze(0) if self.values.dim() == 1 else self.values, ids


class Layer(NamedTuple):
    """A layer's own tensors; what it does not have is None."""

    weights: tuple[Tensor, Tensor]
    biases: tuple[Tensor, Tensor] | None
    peepholes: tuple[Tensor, ...] | None
    gate: TimeGate
    timing: Timing
    origin: int


class Plan(NamedTuple):
    """What a push needs of the model, found again only when one of its parts is another object. No copies of values."""

    backend: str
    native: bool
    parameters: list[tuple[str, Tensor]]
    layers: list[Layer]
    # As the operator takes them.
    tensors: list[Tensor]
    origins: list[int]
    oscillations: list[str]
    codes: list[int]
    bias: bool
    peephole: bool

    @staticmethod
    def of(model: Any, timings: list[Timing]) -> Plan:
        """Make the plan of a model whose gates have these values.

        Raises:
            ValueError: a gate of another size than the layer.
        """
        layers, parameters, tensors = [], [], []
        names = [*_WEIGHTS, *_BIASES * model.bias, *PEEPHOLES * model.peephole]
        for index, (gate_name, timing) in enumerate(zip(model._gate_names, timings, strict=True)):
            gate = getattr(model, gate_name)
            if gate.hidden_size != model.hidden_size:
                raise ValueError(f"{gate_name} is of {gate.hidden_size} units, the layer has {model.hidden_size}")
            own = [getattr(model, f"{name}_l{index}") for name in names]
            parameters += [(f"{name}_l{index}", tensor) for name, tensor in zip(names, own, strict=True)]
            tensors += [*own, *(value.double() for value in timing[:3])]
            biases = (own[2], own[3]) if model.bias else None
            peepholes = tuple(own[-3:]) if model.peephole else None
            # Kept values know the origin that they go with; the gate's may be another one by now.
            origin = int(gate.origin) if timing.origin is None else timing.origin
            layers.append(Layer((own[0], own[1]), biases, peepholes, gate, timing, origin))
        oscillations = [layer.gate.oscillation for layer in layers]
        return Plan(
            model.backend,
            registry.select(model.backend, layers[0].weights[0], 0.0).name == "native",
            parameters,
            layers,
            tensors,
            [layer.origin for layer in layers],
            list(oscillations),
            [OSCILLATIONS.index(oscillation) for oscillation in oscillations],
            model.bias,
            model.peephole,
        )

    def fingerprint(self) -> Tensor:
        """A number () int64 made of every bit of the weights and gates; products and sums wrap.

        Of the gates as they are saved: what is made of that, periods and so on, is not the same on every processor.
        """
        gates = [tensor for layer in self.layers for tensor in (*layer.gate.parameters(), *layer.gate.buffers())]
        total = torch.tensor(0, dtype=torch.int64)
        for tensor in (*(tensor for _, tensor in self.parameters), *gates):
            bits = tensor.detach().cpu().contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int64)
            total = total * 1_000_003 + (bits.flatten().long() * torch.arange(1, bits.numel() + 1)).sum()
        for number in self.codes:
            total = total * 1_000_003 + number
        return total

    def is_of(self, model: Any, timings: list[Timing]) -> bool:
        """Whether it is what the model would give now; kept timings are one object as long as they hold."""
        own, modules = model._parameters, model._modules
        for name, parameter in self.parameters:
            if own.get(name) is not parameter:
                return False
        for name, layer, timing, oscillation in zip(
            model._gate_names, self.layers, timings, self.oscillations, strict=True
        ):
            gate = modules[name]
            if gate is not layer.gate or timing is not layer.timing or gate.oscillation != oscillation:
                return False
        return self.backend == model.backend


class Accepted(NamedTuple):
    """Which events are taken that are refused otherwise: late ones, and those with values that are not finite."""

    late: bool
    invalid: bool


def native(events: Events, plan: Plan, held: Held, accepted: Accepted, last_only: bool) -> tuple[Tensor, Any, int]:
    """Take events through the layers in one operator, or refuse them all.

    Returns:
        The last layer's h after each event (E, H), or (H,) for values (H_in,), or with `last_only` of each stream
        touched; those streams, with `last_only`; and -1, or the number of the first event that cannot be taken.
    """
    states, time = held.states, events.time
    found: tuple[Tensor, Any, int] = torch.ops.phased_lstm.stream_push.default(
        events.values, events.times, time, time if type(time) is int else 0, events.ids, events.id,
        accepted.late, accepted.invalid, last_only, held.latest, states[0], states[1] if len(states) == 2 else None,
        plan.tensors, plan.origins, plan.codes, plan.bias, plan.peephole,
    )  # fmt: skip
    return found


def each(events: Events, plan: Plan, held: Held, accepted: Accepted, last_only: bool) -> tuple[Tensor, Any, int]:
    """As `native`, a stream after the other, on any backend."""
    states, latest = held
    times, values, ids = events.tensors(latest.dtype)
    problem = _first_problem(times, values, ids, latest, accepted)
    if problem >= 0:
        return values, None, problem
    touched = ids.unique()
    output = values.new_empty((len(times), states[0].shape[-1]))
    ends: list[tuple[int, list[list[Tensor]], Tensor]] = []
    for stream in touched.tolist():
        chosen = (ids == stream).nonzero().flatten()
        there = chosen.to(values.device)
        x = values[there].unsqueeze(0)
        finals = []
        for index, layer in enumerate(plan.layers):
            start = [state[index, stream : stream + 1] for state in states]
            x, *final = _run_layer(layer, x, times[chosen].unsqueeze(0), start, plan.backend)
            finals.append(final)
        output[there] = x[0]
        ends.append((stream, finals, times[chosen].max()))
    for stream, finals, newest in ends:
        for index, final in enumerate(finals):
            for state, new in zip(states, final, strict=True):
                state[index, stream] = new[0]
        latest[stream] = torch.maximum(latest[stream], newest)
    if last_only:
        output = states[0][-1, touched.to(values.device)]
    return output[0] if events.values.dim() == 1 else output, touched, -1


def _run_layer(layer: Layer, x: Tensor, times: Tensor, start: list[Tensor], backend: str) -> Any:
    relative = (times if layer.origin == 0 else times - layer.origin).to(x.device)
    options: dict[str, Any] = {
        "leak": 0.0, "oscillation": layer.gate.oscillation, "lengths": None, "reverse": False,
        "return_sequence": True, "backend": backend,
    }  # fmt: skip
    operands = (x, relative, *start, *layer.weights)
    period, shift, ratio_on, _ = layer.timing
    apply: Any = apply_gru
    biases: tuple[Tensor | None, ...] = layer.biases or (None, None)
    if len(start) == 2:
        apply = apply_lstm
        biases = (None if layer.biases is None else layer.biases[0] + layer.biases[1],)
        options["peephole"] = None if layer.peepholes is None else torch.stack(layer.peepholes)
    with torch.autocast(x.device.type, enabled=False):
        return apply(*operands, *biases, period, shift, ratio_on, **options)


def _first_problem(times: Tensor, values: Tensor, ids: Tensor, latest: Tensor, accepted: Accepted) -> int:
    """Return the first event that cannot be taken, or -1, as the operator does."""
    usable = (
        torch.isfinite(times)
        if times.is_floating_point()
        else (times >= -LARGEST_INTEGER_TIME) & (times <= LARGEST_INTEGER_TIME)
    )
    wrong = ~usable | (ids < 0) | (ids >= len(latest))
    if not accepted.invalid:
        wrong |= ~torch.isfinite(values).all(dim=-1).to(wrong.device)
    end = int(wrong.int().argmax()) if bool(wrong.any()) else len(times)
    found = [end] if end < len(times) else []
    for stream in [] if accepted.late else ids[:end].unique().tolist():
        chosen = (ids[:end] == stream).nonzero().flatten()
        row = times[chosen]
        before = torch.cat([latest[stream : stream + 1], row]).cummax(0).values[:-1]
        found += chosen[row < before][:1].tolist()
    return min(found, default=-1)


def explanation(events: Events, held: Held, problem: int) -> str:
    """Why an event cannot be taken."""
    streams = len(held.latest)
    times, values, ids = events.tensors(held.latest.dtype)
    time, stream = times[problem].item(), int(ids[problem])
    where = "" if len(times) == 1 else f"event {problem}: "
    unchanged = "; nothing of this push was applied"
    if not 0 <= stream < streams:
        return f"{where}stream_ids should be from 0 to {streams - 1}, got {stream}{unchanged}"
    if not math.isfinite(time):
        return f"{where}times should be finite, got {time} in stream {stream}; drop or repair it{unchanged}"
    if isinstance(time, int) and abs(time) > LARGEST_INTEGER_TIME:
        return f"{where}integer times should be within 2**62 of zero, got {time} in stream {stream}{unchanged}"
    invalid = (~torch.isfinite(values[problem])).nonzero().flatten()
    if len(invalid):
        column = int(invalid[0])
        value = values[problem, column].item()
        return (
            f"{where}value {column} of the event at time {time} in stream {stream} is {value}, and would stay in the "
            f"states until reset(): replace what was not measured, or let it pass with stream(invalid='accept')"
            f"{unchanged}"
        )
    before = max([*times[:problem][ids[:problem] == stream].tolist(), held.latest[stream].item()])
    rounded = ""
    if isinstance(time, float) and torch.tensor(time).item() == torch.tensor(before).item():
        rounded = "; as float32 they are the same number: give all times of a stream in one dtype, best float64"
    return (
        f"{where}time {time} of stream {stream} is before {before}, which it has seen: sort the events of a "
        f"stream by time, or take them as they come with stream(late='accept'){rounded}{unchanged}"
    )
