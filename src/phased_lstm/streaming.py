"""Live streams: events one at a time or in chunks, from many independent streams, with states that carry on.

A push costs one operator where the native backend serves it, whatever the number of layers; elsewhere each stream goes
through the layers on its own, since the rounding of torch's matrix products depends on what they are batched with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from ._base import PEEPHOLES
from ._checks import LARGEST_INTEGER_TIME, OSCILLATIONS, check_size, check_time_dtype
from .functional import apply_gru, apply_lstm
from .ops import registry

if TYPE_CHECKING:
    from .layers import PhasedRNN

Late = Literal["error", "accept"]

_LATE = ("error", "accept")
_NEVER = {torch.float64: -math.inf, torch.int64: torch.iinfo(torch.int64).min}

# Integers up to here are floats as well.
_EXACT = 1 << 53


class Latest(NamedTuple):
    """What `Stream.push_latest` returns.

    Attributes:
        stream_ids: (T,) int64, the streams that had events in the push, in rising order.
        output: (T, H), the last layer's h after the last event of each.
    """

    stream_ids: Tensor
    output: Tensor


class _Weights(NamedTuple):
    """A layer's weights as they are at this moment; what a layer does not have is None."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    peephole: Tensor | None
    gate: tuple[Tensor, Tensor, Tensor]
    origin: int
    oscillation: Any


class _Events(NamedTuple):
    """Events of a push: times (E,) float64 or int64, values (E, H_in), and the streams (E,) or the only one."""

    times: Tensor
    values: Tensor
    ids: Tensor | None
    id: int
    single: bool


class Stream:
    """States of S independent streams that go through one model, event by event or in chunks.

    Made by `PhasedLSTM.stream` and `PhasedGRU.stream`. It is inference in evaluation semantics, whatever the model's
    mode: no gradients, no dropout, no leak, and no autocast. How events are divided into pushes changes nothing, bit
    for bit, and neither does what other streams' events come with them. The weights are the model's own, read at each
    push: a change of them acts from the next event on.

    Pushes to one `Stream` must not run at the same time: it has no lock. Different `Stream`s of one model may be used
    from different threads.

    Args:
        model: a `PhasedLSTM` or `PhasedGRU` of one direction, in float32 or float64.
        streams: how many streams, S.
        late: what an event does whose time is before one already seen in its stream: "error", or "accept", which
            takes events in the order in which they come. Equal times are never late.

    Raises:
        TypeError, ValueError: see `PhasedLSTM.stream`.
    """

    def __init__(self, model: PhasedRNN, streams: int = 1, late: Late = "error") -> None:
        check_size("streams", streams)
        if late not in _LATE:
            raise ValueError(f"late should be one of {', '.join(_LATE)}, got {late!r}")
        if model.bidirectional:
            raise ValueError(
                "a bidirectional layer has no stream: its reverse direction begins at the end of a sequence, and a "
                "live stream has none yet; make the model with bidirectional=False"
            )
        weight: Any = model.weight_ih_l0
        if weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"a stream computes in float32 or float64, the model is {weight.dtype}: a state rounded to 16 bits "
                f"would depend on where chunks end; convert it with model.float()"
            )
        self.model = model
        self.streams = streams
        self.late = late
        shape = (model.num_layers, streams, model.hidden_size)
        self._states = [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(model._state_count)]
        self._hold(torch.full((streams,), -math.inf, dtype=torch.float64))

    def _hold(self, latest: Tensor) -> None:
        """Take the latest time of each stream (S,), on the CPU, float64 or int64."""
        self._latest = latest
        self._stamp = torch.zeros(1, dtype=latest.dtype)
        self._unused = bool((latest == _NEVER[latest.dtype]).all())

    @property
    def output(self) -> Tensor:
        """(S, H) the last layer's h of every stream now, a copy; zeros where nothing came yet."""
        return self._states[0][-1].clone()

    def push(self, times: Tensor | float, values: Tensor, stream_ids: Tensor | int | None = None) -> Tensor:
        """Take one event, or a chunk of them in the order in which they came.

        Args:
            times: absolute time stamps: (E,) for a chunk; a number or a scalar tensor for one event. All integers or
                all floating for the life of the states (int32, int64, float32, float64, int, float); integers are
                used exactly.
            values: (E, H_in), or (H_in,) for one event, in the model's dtype, on its device.
            stream_ids: the stream of each event, from 0 to S - 1: (E,) integers, or one int for all of them. May be
                left out where there is one stream.

        Returns:
            (E, H), or (H,) for one event: the last layer's h after each event, in its stream, in the order given.

        Raises:
            TypeError: a wrong type.
            ValueError: a shape, dtype or value that does not fit; a late event, unless accepted. Nothing of the push
                is then applied.
            RuntimeError: values on another device than the model.
        """
        output, _, single = self._push(times, values, stream_ids, False)
        return output[0] if single else output

    def push_latest(self, times: Tensor | float, values: Tensor, stream_ids: Tensor | int | None = None) -> Latest:
        """Take events as `push` does, and return the output after the last event of each stream only.

        Cheaper than `push` in memory for long chunks: (T, H) for T streams touched, and not (E, H).

        Args:
            times: as in `push`.
            values: as in `push`.
            stream_ids: as in `push`.

        Returns:
            `Latest(stream_ids, output)`, (T,) and (T, H).

        Raises:
            TypeError, ValueError, RuntimeError: as `push`.
        """
        output, touched, _ = self._push(times, values, stream_ids, True)
        return Latest(touched, output)

    def reset(self, stream_ids: Tensor | int | None = None) -> None:
        """Set streams back to their beginning: states zero, no time seen.

        Args:
            stream_ids: (K,) integers or one int; default all.

        Raises:
            TypeError: neither.
            ValueError: out of range, and nothing is reset.
        """
        if stream_ids is None:
            chosen = torch.arange(self.streams)
        elif isinstance(stream_ids, Tensor):
            chosen = _integers("stream_ids", stream_ids).flatten()
        else:
            chosen = torch.tensor([_stream_id(stream_ids)])
        outside = chosen[(chosen < 0) | (chosen >= self.streams)]
        if len(outside):
            raise ValueError(f"stream_ids should be from 0 to {self.streams - 1}, got {outside[0].item()}")
        with torch.no_grad():
            for state in self._states:
                state[:, chosen.to(state.device)] = 0.0
            self._latest[chosen] = _NEVER[self._latest.dtype]
        self._hold(self._latest)

    def state_dict(self) -> dict[str, Tensor]:
        """Copy what the streams hold.

        Returns:
            "h" and, for an LSTM, "c": (num_layers, S, H); "latest": (S,) the latest time seen in each stream, float64
            or int64, the lowest value of its dtype where none was seen. `torch.save` and safetensors take it.
        """
        names = ("h", "c")[: len(self._states)]
        held = dict(zip(names, self._states, strict=True)) | {"latest": self._latest}
        return {name: tensor.clone() for name, tensor in held.items()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` returned, here or in another process.

        Args:
            state_dict: of a stream with as many streams, of a model with the same sizes and dtype.

        Raises:
            ValueError: names, shapes or dtypes that do not fit; nothing is then changed.
        """
        wanted = self.state_dict()
        if not isinstance(state_dict, Mapping) or state_dict.keys() != wanted.keys():
            got = ", ".join(map(str, state_dict)) if isinstance(state_dict, Mapping) else type(state_dict).__name__
            raise ValueError(f"the state should be a dictionary of {', '.join(wanted)}, got: {got}")
        for name, own in wanted.items():
            given = state_dict[name]
            dtypes = tuple(_NEVER) if name == "latest" else (own.dtype,)
            if not isinstance(given, Tensor) or given.shape != own.shape or given.dtype not in dtypes:
                got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
                allowed = " or ".join(map(str, dtypes))
                raise ValueError(f"{name} should be {allowed} of shape {tuple(own.shape)}, got {got}")
        with torch.no_grad():
            for own, name in zip(self._states, ("h", "c"), strict=False):
                own.copy_(state_dict[name])
        self._hold(state_dict["latest"].detach().clone().cpu())

    def _push(self, times: Any, values: Any, stream_ids: Any, last_only: bool) -> tuple[Tensor, Tensor, bool]:
        with torch.no_grad():
            events = self._checked(times, values, stream_ids)
            model, states = self.model, self._states
            weights = [self._weights(layer) for layer in range(model.num_layers)]
            run = self._native if registry.select(model.backend, events.values, 0.0).name == "native" else self._each
            output, touched, problem = run(events, weights, states, last_only)
        if problem >= 0:
            raise ValueError(self._explanation(events, problem))
        self._unused = self._unused and not len(events.times)
        return output, touched, events.single

    def _checked(self, times: Any, values: Any, stream_ids: Any) -> _Events:
        """Bring the events into one form, and check all but their values."""
        model = self.model
        own: Any = self._states[0]
        if not isinstance(values, Tensor):
            raise TypeError(f"values should be a tensor, got: {type(values).__name__}")
        weight: Any = model._parameters.get("weight_ih_l0", None)
        if weight is None:
            weight = model.weight_ih_l0
        if weight.dtype != own.dtype or weight.device != own.device:
            raise ValueError(
                f"the model is now {weight.dtype} on {weight.device}, its stream was made in {own.dtype} on "
                f"{own.device}: make another with model.stream()"
            )
        if values.device != own.device:
            raise RuntimeError(f"values are on {values.device} but the model is on {own.device}: move one with .to()")
        if values.dtype != own.dtype:
            raise ValueError(f"values should be {own.dtype} like the model, got {values.dtype}: values.to({own.dtype})")
        single = not isinstance(times, Tensor) or times.dim() == 0
        stamps = self._tensor_times(times) if isinstance(times, Tensor) else self._number_time(times)
        shape = (model.input_size,) if single else (len(stamps), model.input_size)
        if values.shape != shape:
            what = "one event, as times is a single time," if single else f"{len(stamps)} events"
            raise ValueError(f"values should be of shape {shape} for {what} got {tuple(values.shape)}")
        ids, only = self._ids(stream_ids, single, len(stamps))
        return _Events(stamps, (values.unsqueeze(0) if single else values).contiguous(), ids, only, single)

    def _number_time(self, time: Any) -> Tensor:
        if isinstance(time, bool) or not isinstance(time, (int, float)):
            raise TypeError(f"times should be a tensor or a number, got: {type(time).__name__}")
        floating = self._latest.dtype == torch.float64
        if isinstance(time, float):
            self._require_kind(torch.float64)
        elif abs(time) > (_EXACT if floating and not self._unused else LARGEST_INTEGER_TIME):
            if floating and not self._unused:
                raise ValueError(f"integer {time} among floating times is beyond 2**53 and would be rounded")
            raise ValueError(f"integer times should be within 2**62 of zero, got {time}")
        elif self._unused:
            self._require_kind(torch.int64)
        return self._stamp.fill_(time)

    def _tensor_times(self, times: Tensor) -> Tensor:
        check_time_dtype(times)
        if times.dim() > 1:
            raise ValueError(f"times should be of shape (E,), or a single time, got {tuple(times.shape)}")
        dtype = torch.float64 if times.is_floating_point() else torch.int64
        self._require_kind(dtype)
        return times.detach().to("cpu", dtype).reshape(-1).contiguous()

    def _require_kind(self, dtype: torch.dtype) -> None:
        """Let the first times decide whether times are integers or floating."""
        if self._latest.dtype == dtype:
            return
        if not self._unused:
            kinds = {torch.float64: "floating", torch.int64: "integers"}
            raise ValueError(
                f"times of these streams have been {kinds[self._latest.dtype]} so far, got {kinds[dtype]}: rounding "
                f"one to the other would lose what is late; convert them, or reset() all streams"
            )
        self._hold(torch.full((self.streams,), _NEVER[dtype], dtype=dtype))

    def _ids(self, stream_ids: Any, single: bool, count: int) -> tuple[Tensor | None, int]:
        if stream_ids is None:
            if self.streams > 1:
                raise ValueError(f"stream_ids is needed: which of the {self.streams} streams is each event of?")
            return None, 0
        if not isinstance(stream_ids, Tensor):
            return None, _stream_id(stream_ids)
        ids = _integers("stream_ids", stream_ids)
        if ids.dim() == 0:
            return None, int(ids)
        if single or ids.shape != (count,):
            wanted = "an int, as times is a single time" if single else f"an int or of shape ({count},), as times is"
            raise ValueError(f"stream_ids should be {wanted}, got shape {tuple(ids.shape)}")
        return ids.contiguous(), 0

    def _weights(self, layer: int) -> _Weights:
        model: Any = self.model
        suffix = f"_l{layer}"
        gate = getattr(model, "gate" + suffix)
        timing = model._timing("gate" + suffix, gate)
        if gate.hidden_size != model.hidden_size:
            raise ValueError(f"gate{suffix} is of {gate.hidden_size} units, the layer has {model.hidden_size}")
        biased, peephole = model.bias, None
        if model.peephole:
            peephole = torch.stack([getattr(model, name + suffix) for name in PEEPHOLES])
        return _Weights(
            getattr(model, "weight_ih" + suffix),
            getattr(model, "weight_hh" + suffix),
            getattr(model, "bias_ih" + suffix) if biased else None,
            getattr(model, "bias_hh" + suffix) if biased else None,
            peephole,
            timing[:3],
            int(gate.origin) if timing.origin is None else timing.origin,
            gate.oscillation,
        )

    def _native(
        self, events: _Events, layers: list[_Weights], states: list[Tensor], last_only: bool
    ) -> tuple[Tensor, Tensor, int]:
        """Return outputs, streams touched (with `last_only`), and -1 or the first event that cannot be taken."""
        tensors: list[Tensor] = []
        for layer in layers:
            given = (layer.ih, layer.hh, layer.bias_ih, layer.bias_hh, layer.peephole)
            tensors += [tensor.contiguous() for tensor in given if tensor is not None]
            tensors += [value.double() for value in layer.gate]
        found: tuple[Tensor, Tensor, int] = torch.ops.phased_lstm.stream_push.default(
            events.values, events.times, events.ids, events.id, self.late == "accept", last_only,
            self._latest, states[0], states[1] if len(states) == 2 else None, tensors,
            [layer.origin for layer in layers], [OSCILLATIONS.index(layer.oscillation) for layer in layers],
            self.model.bias, self.model.peephole,
        )  # fmt: skip
        return found

    def _each(
        self, events: _Events, layers: list[_Weights], states: list[Tensor], last_only: bool
    ) -> tuple[Tensor, Tensor, int]:
        """As `_native`, a stream after the other, on any backend."""
        times, values, ids = events.times, events.values, events.ids
        ids = torch.full_like(times, events.id, dtype=torch.int64) if ids is None else ids
        problem = self._first_problem(times, ids)
        if problem >= 0:
            return values[:0], ids[:0], problem
        touched = ids.unique()
        output = values.new_empty((len(times), self.model.hidden_size))
        ends: list[tuple[int, list[list[Tensor]], Tensor]] = []
        for stream in touched.tolist():
            chosen = (ids == stream).nonzero().flatten()
            x = values[chosen.to(values.device)].unsqueeze(0)
            finals = []
            for index, layer in enumerate(layers):
                start = [state[index, stream : stream + 1] for state in states]
                x, *final = self._run_layer(layer, x, times[chosen].unsqueeze(0), start)
                finals.append(final)
            output[chosen.to(values.device)] = x[0]
            ends.append((stream, finals, times[chosen].max()))
        for stream, finals, latest in ends:
            for index, final in enumerate(finals):
                for state, new in zip(states, final, strict=True):
                    state[index, stream] = new[0]
            self._latest[stream] = torch.maximum(self._latest[stream], latest)
        return states[0][-1, touched.to(values.device)] if last_only else output, touched, -1

    def _run_layer(self, layer: _Weights, x: Tensor, times: Tensor, start: list[Tensor]) -> Any:
        relative = (times if layer.origin == 0 else times - layer.origin).to(x.device)
        options: dict[str, Any] = {
            "leak": 0.0, "oscillation": layer.oscillation, "lengths": None, "reverse": False, "return_sequence": True,
            "backend": self.model.backend,
        }  # fmt: skip
        with torch.autocast(x.device.type, enabled=False):
            if len(start) == 1:
                biases = (layer.bias_ih, layer.bias_hh)
                return apply_gru(x, relative, start[0], layer.ih, layer.hh, *biases, *layer.gate, **options)
            bias = None if layer.bias_ih is None or layer.bias_hh is None else layer.bias_ih + layer.bias_hh
            options["peephole"] = layer.peephole
            return apply_lstm(x, relative, start[0], start[1], layer.ih, layer.hh, bias, *layer.gate, **options)

    def _first_problem(self, times: Tensor, ids: Tensor) -> int:
        """Return the first event that cannot be taken, or -1; the operator's `arrange` says the same."""
        usable = torch.isfinite(times) if times.is_floating_point() else times.abs() <= LARGEST_INTEGER_TIME
        wrong = ~usable | (ids < 0) | (ids >= self.streams)
        end = int(wrong.int().argmax()) if bool(wrong.any()) else len(times)
        found = [end] if end < len(times) else []
        for stream in ids[:end].unique().tolist() if self.late == "error" else []:
            chosen = (ids[:end] == stream).nonzero().flatten()
            row = times[chosen]
            before = torch.cat([self._latest[stream : stream + 1], row]).cummax(0).values[:-1]
            found += chosen[row < before][:1].tolist()
        return min(found, default=-1)

    def _explanation(self, events: _Events, problem: int) -> str:
        time = events.times[problem].item()
        stream = events.id if events.ids is None else int(events.ids[problem])
        where = "" if events.single else f"event {problem}: "
        unchanged = "; nothing of this push was applied"
        if not 0 <= stream < self.streams:
            return f"{where}stream_ids should be from 0 to {self.streams - 1}, got {stream}{unchanged}"
        if not math.isfinite(time):
            return f"{where}times should be finite, got {time} in stream {stream}; drop or repair it{unchanged}"
        if abs(time) > LARGEST_INTEGER_TIME and isinstance(time, int):
            return f"{where}integer times should be within 2**62 of zero, got {time} in stream {stream}{unchanged}"
        mine = torch.full_like(events.times, True, dtype=torch.bool) if events.ids is None else events.ids == stream
        before = [*events.times[:problem][mine[:problem]].tolist(), self._latest[stream].item()]
        return (
            f"{where}time {time} of stream {stream} is before {max(before)}, which it has seen: sort the events of a "
            f"stream by time, or take them as they come with stream(late='accept'){unchanged}"
        )


def _stream_id(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"stream_ids should be a tensor of integers or an int, got: {type(given).__name__}")
    return given


def _integers(name: str, given: Tensor) -> Tensor:
    if given.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise ValueError(f"{name} should be of an integer dtype, got {given.dtype}")
    return given.detach().to("cpu", torch.int64)
