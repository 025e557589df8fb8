"""Live streams: events one at a time or in chunks, from many independent streams, with states that carry on.

A push costs one operator where the native backend serves it, whatever the number of layers; elsewhere each stream goes
through the layers on its own, since the rounding of torch's matrix products depends on what they are batched with.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from ._checks import LARGEST_INTEGER_TIME, check_size, check_time_dtype, plain
from ._pushes import Accepted, Events, Held, Plan, each, explanation, native
from ._time_warnings import warn_of_grid

if TYPE_CHECKING:
    from .layers import PhasedRNN

Late = Literal["error", "accept"]
Invalid = Literal["error", "accept"]

_POLICIES = ("error", "accept")
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
        invalid: what an event does of which a value is NaN or infinite: "error", as a NaN would stay in the states
            until `reset`, or "accept".

    Raises:
        TypeError, ValueError: see `PhasedLSTM.stream`.
    """

    def __init__(self, model: PhasedRNN, streams: int = 1, late: Late = "error", invalid: Invalid = "error") -> None:
        streams = check_size("streams", streams)
        for name, policy in (("late", late), ("invalid", invalid)):
            if policy not in _POLICIES:
                raise ValueError(f"{name} should be one of {', '.join(_POLICIES)}, got {policy!r}")
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
        self.invalid = invalid
        shape = (model.num_layers, streams, model.hidden_size)
        self._dtype = weight.dtype
        self._device = weight.device
        # Tensors made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            self._states = [
                torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(model._state_count)
            ]
        self._plan: Plan | None = None
        self._hold(torch.full((streams,), -math.inf, dtype=torch.float64, device="cpu"))

    def _hold(self, latest: Tensor) -> None:
        """Take the latest time of each stream (S,), on the CPU, float64 or int64."""
        with torch.inference_mode(False), torch.no_grad():
            latest = latest.clone()
        self._held = Held(self._states, latest)
        self._number = float if latest.dtype == torch.float64 else int
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
            ValueError: a shape, dtype or value that does not fit; a late event, or one with a value that is not finite,
                unless accepted. Nothing of the push is then applied.
            RuntimeError: values on another device than the model.
        """
        return self._push(times, values, stream_ids, False)[0]

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
        output, touched = self._push(times, values, stream_ids, True)
        return Latest(touched, output)

    def reset(self, stream_ids: Tensor | Sequence[int] | int | None = None) -> None:
        """Set streams back to their beginning: states zero, no time seen.

        Args:
            stream_ids: (K,) integers, a list of them, or one int; default all.

        Raises:
            TypeError: none of these.
            ValueError: out of range, and nothing is reset.
        """
        if stream_ids is None:
            chosen = torch.arange(self.streams, device="cpu")
        elif isinstance(stream_ids, (list, tuple)):
            chosen = torch.tensor([_stream_id(stream) for stream in stream_ids], dtype=torch.int64, device="cpu")
        elif isinstance(stream_ids, Tensor):
            chosen = _integers("stream_ids", stream_ids).flatten()
        else:
            chosen = torch.tensor([_stream_id(stream_ids)], device="cpu")
        outside = chosen[(chosen < 0) | (chosen >= self.streams)]
        if len(outside):
            raise ValueError(f"stream_ids should be from 0 to {self.streams - 1}, got {outside[0].item()}")
        with torch.no_grad():
            for state in self._states:
                state[:, chosen.to(state.device)] = 0.0
            self._held.latest[chosen] = _NEVER[self._held.latest.dtype]
        self._hold(self._held.latest)

    def state_dict(self) -> dict[str, Tensor]:
        """Copy what the streams hold.

        Returns:
            "h" and, for an LSTM, "c": (num_layers, S, H); "latest": (S,) the latest time seen in each stream, float64
            or int64, the lowest value of its dtype where none was seen; "model": () int64, a fingerprint of the weights
            and gates. `torch.save` and safetensors take it.
        """
        names = ("h", "c")[: len(self._states)]
        held = dict(zip(names, self._states, strict=True)) | {"latest": self._held.latest}
        # What a push keeps of the model has no graph, and so can be copied.
        with torch.no_grad():
            fingerprint = self._current().fingerprint()
        return {name: tensor.clone() for name, tensor in held.items()} | {"model": fingerprint}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` returned, here or in another process.

        Args:
            state_dict: of a stream with as many streams, of a model with the same sizes and dtype.

        Raises:
            ValueError: names, shapes or dtypes that do not fit; nothing is then changed.

        Warns:
            UserWarning: the weights or gates are not those with which the states came about.
        """
        wanted = self.state_dict()
        # A state from before there were fingerprints is of nobody knows which model.
        own_model = wanted.pop("model")
        given_model = state_dict.get("model", own_model) if isinstance(state_dict, Mapping) else own_model
        if not isinstance(state_dict, Mapping) or state_dict.keys() - {"model"} != wanted.keys():
            got = ", ".join(map(str, state_dict)) if isinstance(state_dict, Mapping) else type(state_dict).__name__
            raise ValueError(f"the state should be a dictionary of {', '.join(wanted)}, got: {got}")
        for name, own in wanted.items():
            given = state_dict[name]
            dtypes = tuple(_NEVER) if name == "latest" else (own.dtype,)
            if not isinstance(given, Tensor) or given.shape != own.shape or given.dtype not in dtypes:
                got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
                allowed = " or ".join(map(str, dtypes))
                raise ValueError(f"{name} should be {allowed} of shape {tuple(own.shape)}, got {got}")
        if not torch.equal(torch.as_tensor(given_model).cpu(), own_model):
            warnings.warn(
                "the states came about in a model of other weights or gates than this one: load the model's own "
                "state_dict first, or reset() the streams, unless you have trained it on since",
                stacklevel=2,
            )
        with torch.no_grad():
            for own, name in zip(self._states, ("h", "c"), strict=False):
                own.copy_(state_dict[name])
        self._hold(state_dict["latest"].cpu())

    def _push(self, times: Any, values: Any, stream_ids: Any, last_only: bool) -> tuple[Tensor, Any]:
        graded = torch.is_grad_enabled()
        # torch.no_grad() would take a microsecond, of some fifteen.
        torch._C._set_grad_enabled(False)
        try:
            plan = self._current()
            events = None if last_only else self._quick(times, values, stream_ids)
            if events is None:
                events = self._checked(times, values, stream_ids, last_only)
            run = native if plan.native else each
            accepted = Accepted(self.late == "accept", self.invalid == "accept")
            output, touched, problem = run(events, plan, self._held, accepted, last_only)
        finally:
            torch._C._set_grad_enabled(graded)
        if problem >= 0:
            raise ValueError(explanation(events, self._held, problem))
        if self._unused:
            self._unused = events.times is not None and not len(events.times)
        return output, touched

    def _current(self) -> Plan:
        """Return what the push needs of the model as it is now."""
        model: Any = self.model
        modules = model._modules
        timings = [model._timing(name, modules[name]) for name in model._gate_names]
        plan = self._plan
        if plan is None or not plan.is_of(model, timings):
            plan = self._plan = Plan.of(model, timings)
        weight = plan.layers[0].weights[0]
        if weight.dtype != self._dtype or weight.device != self._device:
            raise ValueError(
                f"the model is now {weight.dtype} on {weight.device}, its stream was made in {self._dtype} on "
                f"{self._device}: make another with model.stream()"
            )
        return plan

    def _quick(self, time: Any, values: Any, stream_id: Any) -> Events | None:
        """The usual single event; None where anything is out of the ordinary."""
        if (
            type(time) is not self._number
            or type(values) is not Tensor
            or values.dtype != self._dtype
            or values.device != self._device
            or values.shape != (self.model.input_size,)
            or not values.is_contiguous()
            or not -LARGEST_INTEGER_TIME <= time <= LARGEST_INTEGER_TIME
        ):
            return None
        if stream_id is None and self.streams == 1:
            stream_id = 0
        return Events(None, time, values, None, stream_id) if type(stream_id) is int else None

    def _checked(self, times: Any, values: Any, stream_ids: Any, last_only: bool) -> Events:
        """Bring the events into one form, and check all but their values."""
        if not isinstance(values, Tensor):
            raise TypeError(f"values should be a tensor, got: {type(values).__name__}")
        if values.device != self._device:
            raise RuntimeError(f"values are on {values.device} but the model is on {self._device}: move one with .to()")
        if values.dtype != self._dtype:
            raise ValueError(
                f"values should be {self._dtype} like the model, got {values.dtype}; convert with .to({self._dtype})"
            )
        single = not isinstance(times, Tensor) or times.dim() == 0
        stamps = self._tensor_times(times) if isinstance(times, Tensor) else self._number_time(times)
        shape = (self.model.input_size,) if single else (len(stamps), self.model.input_size)
        if values.shape != shape:
            what = "one event, as times is a single time" if single else f"{len(stamps)} events"
            raise ValueError(f"values should be of shape {shape} for {what}, got {tuple(values.shape)}")
        ids, only = self._ids(stream_ids, single, len(stamps))
        values = values.contiguous()
        if single and not last_only:
            return Events(None, stamps.item(), values, ids, only)
        return Events(stamps, 0.0, values.reshape(-1, self.model.input_size), ids, only)

    def _number_time(self, time: Any) -> Tensor:
        time = plain(time)
        if isinstance(time, bool) or not isinstance(time, (int, float)):
            raise TypeError(f"times should be a tensor or a number, got: {type(time).__name__}")
        if isinstance(time, float):
            self._require_kind(torch.float64)
        elif abs(time) > LARGEST_INTEGER_TIME:
            raise ValueError(f"integer times should be within 2**62 of zero, got {time}")
        elif self._unused:
            self._require_kind(torch.int64)
        elif self._number is float and abs(time) > _EXACT:
            raise ValueError(f"integer {time} among floating times is beyond 2**53 and would be rounded")
        return torch.tensor([time], dtype=self._held.latest.dtype, device="cpu")

    def _tensor_times(self, times: Tensor) -> Tensor:
        check_time_dtype(times)
        if times.dim() > 1:
            raise ValueError(f"times should be of shape (E,), or a single time, got {tuple(times.shape)}")
        dtype = torch.float64 if times.is_floating_point() else torch.int64
        said = self.model._said
        if times.dtype == torch.float32 and "grid" not in said and self._on_a_grid(times):
            said.add("grid")
        self._require_kind(dtype)
        return _as(dtype, times).reshape(-1) if times.dim() == 0 else _as(dtype, times)

    def _on_a_grid(self, times: Tensor) -> bool:
        timing = self._current().layers[0].timing
        opening = (timing.period * timing.ratio_on).median().item()
        # Seen from a push: its internals lie between.
        return warn_of_grid(times.reshape(-1), None, 6, opening)

    def _require_kind(self, dtype: torch.dtype) -> None:
        """Let the first times decide whether times are integers or floating."""
        if self._held.latest.dtype == dtype:
            return
        if not self._unused:
            kinds = {torch.float64: "floating", torch.int64: "integers"}
            raise ValueError(
                f"times of these streams have been {kinds[self._held.latest.dtype]} so far, got {kinds[dtype]}: "
                f"rounding one to the other would lose what is late; convert them, or reset() all streams"
            )
        self._hold(torch.full((self.streams,), _NEVER[dtype], dtype=dtype, device="cpu"))

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
        return ids, 0


def _stream_id(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, (int, numbers.Integral)):
        raise TypeError(f"stream_ids should be a tensor of integers or an int, got: {type(given).__name__}")
    return int(given)


def _integers(name: str, given: Tensor) -> Tensor:
    if given.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise ValueError(f"{name} should be of an integer dtype, got {given.dtype}")
    return _as(torch.int64, given)


def _as(dtype: torch.dtype, given: Tensor) -> Tensor:
    return given.to("cpu", dtype).contiguous()
