"""Phased LSTM and Phased GRU layers, drop-ins for those of torch.nn."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from ._base import PEEPHOLES, PhasedModule, gate_options
from ._checks import Oscillation, check_flag, check_integer, check_size, is_plain, plain
from ._sequences import PaddedBatch, Sequences, time_rows, to_padded
from ._time_warnings import warn_of_grid, warn_of_layout
from .functional import check_sequence
from .gate import PERIOD_INIT_MAX, PERIOD_INIT_MIN, warn_of_closed
from .streaming import Invalid, Late, Stream

# Stack level of whoever calls a layer, seen from `_warn_of_times`: two frames of torch.nn.Module lie between.
_OF_CALLER = 6

_LSTM = TypeVar("_LSTM", bound="PhasedLSTM")
_GRU = TypeVar("_GRU", bound="PhasedGRU")


class PhasedRNN(PhasedModule):
    """Stacking, directions, layouts and states, common to Phased LSTM and Phased GRU."""

    num_layers: int
    batch_first: bool
    dropout: float
    bidirectional: bool

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        peephole: bool,
        backend: str,
        gate_options: dict[str, Any],
        factory: dict[str, Any],
    ) -> None:
        super().__init__(input_size, hidden_size, bias, peephole, backend, gate_options)
        input_size, hidden_size = self.input_size, self.hidden_size
        num_layers = check_size("num_layers", num_layers)
        batch_first = check_flag("batch_first", batch_first)
        bidirectional = check_flag("bidirectional", bidirectional)
        dropout = plain(dropout)
        if not isinstance(dropout, numbers.Real) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an "
                f"element being zeroed, got {dropout!r}"
            )
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout "
                f"expects num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=3,
            )
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = 0
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * self._directions
            for suffix in self._suffixes(layer):
                self._add_weights(suffix, width, factory)
        self.reset_parameters()

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}"] + [f"_l{layer}_reverse"] * self.bidirectional

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The weights of each layer and direction, as torch.nn.LSTM lists them."""
        names = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * self.bias + list(PEEPHOLES) * self.peephole
        suffixes = [suffix for layer in range(self.num_layers) for suffix in self._suffixes(layer)]
        return [[getattr(self, name + suffix) for name in names] for suffix in suffixes]

    def flatten_parameters(self) -> None:
        """Do nothing; torch.nn.LSTM has it, and code written for it calls it."""

    def fit_gates_(
        self, times: Sequences, lengths: Tensor | Sequence[int] | None = None, *, generator: Any = None
    ) -> Any:
        """Fit every time gate to the time scale of data; see `TimeGate.fit_`.

        Args:
            times: absolute time stamps in any form that `forward` takes: (L,), (L, N), or (N, L) with
                `batch_first`, a PackedSequence or a jagged tensor.
            lengths: (N,) integer number of valid steps of each padded sequence.
            generator: source of randomness; default torch's global one.

        Returns:
            The layer itself.

        Raises:
            TypeError, ValueError: as `TimeGate.fit_`.

        Warns:
            UserWarning: names the units of a gate that never open; or times go back so often that they may be laid out
                the other way.
        """
        rows, valid = time_rows(times, lengths, self.batch_first)
        if isinstance(times, Tensor) and times.dim() == 2 and lengths is None:
            warn_of_layout(rows, self.batch_first, stacklevel=2)
        if isinstance(rows, Tensor):
            warn_of_grid(rows, None, stacklevel=2)
        for name, gate in zip(self._gate_names, self.gates, strict=True):
            closed = gate._fit(rows, valid, generator)
            if closed:
                warn_of_closed(closed, gate.hidden_size, name)
        return self

    def stream(self, streams: int = 1, *, late: Late = "error", invalid: Invalid = "error") -> Stream:
        """Make the states of live streams, to push events through the layer as they come.

        Args:
            streams: how many independent streams, S.
            late: what an event does whose time is before one already seen in its stream: "error" or "accept".
            invalid: what an event does of which a value is NaN or infinite: "error" or "accept".

        Returns:
            A `Stream` with all states zero. It reads the weights at each push, and always runs in evaluation semantics.

        Raises:
            TypeError: `streams` is not an int.
            ValueError: `streams`, `late` or `invalid` out of range; a bidirectional layer; parameters of 16 bits.
        """
        return Stream(self, streams, late, invalid)

    def _run(
        self,
        input: Sequences,
        hx: Any,
        times: Sequences | None,
        lengths: Tensor | Sequence[int] | None,
        return_sequence: bool,
    ) -> tuple[Any, tuple[Tensor, ...]]:
        return_sequence = check_flag("return_sequence", return_sequence)
        batch = to_padded(self._name, input, times, lengths, self.batch_first)
        x = batch.values
        self._check_input(x, self._weight("weight_ih_l0"))
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}"
            )
        stamps = torch.arange(x.shape[1], device=x.device) if batch.times is None else batch.times
        stamps, valid_lengths = check_sequence(x, stamps, batch.lengths, finite=False)
        self._warn_of_times(batch.times is None, stamps, valid_lengths)
        states = self._initial_states(hx, batch)
        finals: list[tuple[Any, ...]] = []
        for layer in range(self.num_layers):
            last = layer == self.num_layers - 1
            outputs: list[Any] = []
            for direction, suffix in enumerate(self._suffixes(layer)):
                results = self._direction(
                    suffix, x, stamps, states[len(finals)], lengths=valid_lengths, reverse=direction == 1,
                    return_sequence=return_sequence or not last, layered=True, times_are_finite=bool(finals),
                )  # fmt: skip
                outputs.append(results[0])
                finals.append(results[1:])
            if not last or return_sequence:
                x = torch.cat(outputs, dim=-1) if self.bidirectional else outputs[0]
                if not last and self.dropout and self.training:
                    x = nn.functional.dropout(x, self.dropout)
        joined: tuple[Any, ...] = finals[0]
        if len(finals) > 1:
            joined = tuple(torch.cat(list(final)) for final in zip(*finals, strict=True))
        if batch.unbatched:
            joined = tuple(state.squeeze(1) for state in joined)
        return batch.restore(x) if return_sequence else None, joined

    def _warn_of_times(self, counted: bool, stamps: Tensor, lengths: Tensor | None) -> None:
        """Say, once for each, what is hardly meant of times (L,) or (N, L); `counted`: none were given."""
        said = self._said
        if counted:
            if "counted" not in said and is_plain(stamps) and any(int(gate.origin) for gate in self.gates):
                said.add("counted")
                warnings.warn(
                    f"times were not given, so steps count 0, 1, 2, ..., while the gates count time from "
                    f"{int(self.gates[0].origin)}, as fit_gates_ or assign_(origin=) had it: give times=, or fit the "
                    f"gates to torch.arange(L)",
                    stacklevel=_OF_CALLER,
                )
            return
        if not is_plain(stamps):
            return
        # A look takes as long as a short call: at the first call, the second, the fourth, and so on.
        self._calls[0] += 1
        if self._calls[0] & (self._calls[0] - 1):
            return
        square = stamps.dim() == 2 and stamps.shape[0] == stamps.shape[1]
        if (
            square
            and lengths is None
            and "layout" not in said
            and warn_of_layout(stamps, self.batch_first, _OF_CALLER, sure=True)
        ):
            said.add("layout")
        if stamps.dtype == torch.float32 and "grid" not in said and warn_of_grid(stamps, lengths, _OF_CALLER):
            said.add("grid")

    def _initial_states(self, hx: Any, batch: PaddedBatch) -> list[tuple[Tensor | None, ...]]:
        """Return the states of each layer and direction, each (N, H), or None for zeros."""
        count = self.num_layers * self._directions
        if hx is None:
            return [(None,) * self._state_count] * count
        input = batch.values
        shape = (count, input.shape[0], self.hidden_size)
        states = self._check_states(hx, ("h_0", "c_0"))
        ranks = [state.dim() for state in states]
        wanted = 2 if batch.unbatched else 3
        if any(rank != wanted for rank in ranks):
            kind = "unbatched 2-D" if batch.unbatched else "batched 3-D"
            if len(states) == 2:
                got = f"({ranks[0]}-D, {ranks[1]}-D) tensors"
                raise RuntimeError(f"For {kind} input, hx and cx should also be {wanted}-D but got {got}")
            raise RuntimeError(f"For {kind} input, hx should also be {wanted}-D but got {ranks[0]}-D tensor")
        if batch.unbatched:
            states = tuple(state.unsqueeze(1) for state in states)
        for index, state in enumerate(states):
            name = "hidden" if len(states) == 1 else f"hidden[{index}]"
            if tuple(state.shape) != shape:
                raise RuntimeError(f"Expected {name} size {shape}, got {list(state.shape)}")
            self._check_state_kind(name, state, input)
        return list(zip(*(state.unbind(0) for state in states), strict=True))

    def _copy_from(self, source: nn.RNNBase) -> None:
        with torch.no_grad():
            for name, parameter in self.named_parameters(recurse=False):
                if name.rsplit("_l", 1)[0] not in PEEPHOLES:
                    original = getattr(source, name)
                    parameter.copy_(original)
                    parameter.requires_grad_(original.requires_grad)
        self.train(source.training)

    def extra_repr(self) -> str:
        parts = [str(self.input_size), str(self.hidden_size)]
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        parts += [
            f"{name}={getattr(self, name)}" for name, default in defaults.items() if getattr(self, name) != default
        ]
        return ", ".join(parts + self._phased_repr())


class PhasedLSTM(PhasedRNN):
    """Phased LSTM over sequences with time stamps, a drop-in for `torch.nn.LSTM`.

    Each unit carries a rhythmic time gate and changes only while it is open: with the LSTM's step
    (h~, c~) and the gate's openness k at the step's time, c <- k c~ + (1 - k) c and
    h <- k h~ + (1 - k) h (Neil, Pfeiffer and Liu, NIPS 2016). Weights have torch's names, shapes and
    gate order i, f, g, o, so an `nn.LSTM` checkpoint loads; each layer k and direction has one
    `TimeGate`, `gate_l{k}` and `gate_l{k}_reverse`.

    Args:
        input_size: features of a step, H_in.
        hidden_size: units H.
        num_layers: stacked layers; all see the same times.
        bias: whether there are bias weights.
        batch_first: input and output are (N, L, ...) instead of (L, N, ...).
        dropout: probability of dropout after each layer but the last.
        bidirectional: adds a layer that runs backwards over the same absolute times.
        proj_size: must be 0; see Raises.
        device: of the parameters.
        dtype: of the parameters; gates stay in float32 or wider.
        peephole: adds diagonal weights from the cell to the gates, `weight_ci_l{k}` and so on.
        leak: slope of the gate over its closed phase, in training mode only. The paper trains with
            0.001; the default 0 leaves closed units untouched.
        ratio_on: share of a period for which a unit is open.
        trainable_ratio_on: whether it is learned; see `TimeGate`.
        period_init_min: lower end of the log-uniform draw of periods, in the unit of the times.
        period_init_max: upper end. For anything but index time prefer `gate.fit_(times)`.
        oscillation: "triangle" (the paper), "square" or "cosine".
        backend: "auto", or a name from `phased_lstm.backends()`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a value out of range.
        NotImplementedError: `proj_size` is not 0: the gate has one openness for each of H units, a
            projected state has fewer entries, and the paper defines no way to gate it.

    Example:
        >>> rnn = PhasedLSTM(3, 32, batch_first=True)
        >>> times = torch.rand(8, 100).mul(60.0).sort(dim=1).values
        >>> output, (h_n, c_n) = rnn(torch.randn(8, 100, 3), times=times)
        >>> output.shape
        torch.Size([8, 100, 32])
    """

    _gate_count = 4
    _state_count = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
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
        check_size("hidden_size", hidden_size)
        _check_proj_size(proj_size, hidden_size)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, peephole, backend,
            gate_options(leak, ratio_on, trainable_ratio_on, period_init_min, period_init_max, oscillation),
            {"device": device, "dtype": dtype},
        )  # fmt: skip

    def forward(
        self,
        input: Sequences,
        hx: tuple[Tensor, Tensor] | None = None,
        times: Sequences | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        return_sequence: bool = True,
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Run over whole sequences.

        Args:
            input: (L, N, H_in), (N, L, H_in) with `batch_first`, (L, H_in), a PackedSequence, or a
                jagged nested tensor.
            hx: (h_0, c_0), each (D * num_layers, N, H), without N for unbatched input; default zeros.
            times: absolute time stamps: (L,) shared by the batch; (L, N), or (N, L) with
                `batch_first`; or in the ragged form of the input. int32, int64, float32 or float64,
                any finite values in any order. None counts 0, 1, 2, ... from zero at every call, so
                give real times when you carry a state from call to call.
            lengths: (N,) integer number of valid steps of each padded sequence, 0 allowed.
            return_sequence: False gives None for the output, and saves its memory.

        Returns:
            output, in the form of the input, with D * H features (zero in padding); and (h_n, c_n),
            each (D * num_layers, N, H).

        Raises:
            TypeError: a wrong type.
            ValueError: times that are not finite, or a shape or dtype that does not fit.
            RuntimeError: sizes or devices that do not fit, with torch.nn.LSTM's messages.
        """
        output, (h_n, c_n) = self._run(input, hx, times, lengths, return_sequence)
        return output, (h_n, c_n)

    @classmethod
    def from_lstm(cls, lstm: nn.LSTM, **phased: Any) -> Self:
        """Make a Phased LSTM with the configuration and a copy of the weights of an `nn.LSTM`.

        Args:
            lstm: the source.
            **phased: keyword-only arguments of `PhasedLSTM`: `ratio_on`, `peephole`, and so on.

        Raises:
            TypeError: not an `nn.LSTM`.
            NotImplementedError: the LSTM has a projection.
        """
        if not isinstance(lstm, nn.LSTM):
            raise TypeError(f"from_lstm takes a torch.nn.LSTM, got: {type(lstm).__name__}")
        return _convert(cls, lstm, {"proj_size": lstm.proj_size} | phased)


class PhasedGRU(PhasedRNN):
    """Phased GRU over sequences with time stamps, a drop-in for `torch.nn.GRU`.

    With torch's GRU step h~ and the gate's openness k: h <- k h~ + (1 - k) h. Weights have torch's
    names, shapes and gate order r, z, n. Arguments and behaviour are those of `PhasedLSTM`, without
    `proj_size` and `peephole`; `hx` and the returned state are one tensor.

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
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
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
        **unsupported: Any,
    ) -> None:
        _reject_for_gru(unsupported)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, False, backend,
            gate_options(leak, ratio_on, trainable_ratio_on, period_init_min, period_init_max, oscillation),
            {"device": device, "dtype": dtype},
        )  # fmt: skip

    def forward(
        self,
        input: Sequences,
        hx: Tensor | None = None,
        times: Sequences | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        return_sequence: bool = True,
    ) -> tuple[Any, Tensor]:
        """Run over whole sequences; as `PhasedLSTM.forward`, with one state tensor.

        Args:
            input: as in `PhasedLSTM.forward`.
            hx: (D * num_layers, N, H) initial state, without N for unbatched input; default zeros.
            times: as in `PhasedLSTM.forward`.
            lengths: as in `PhasedLSTM.forward`.
            return_sequence: as in `PhasedLSTM.forward`.

        Returns:
            output and h_n (D * num_layers, N, H).

        Raises:
            TypeError, ValueError, RuntimeError: as `PhasedLSTM.forward`.
        """
        output, (h_n,) = self._run(input, hx, times, lengths, return_sequence)
        return output, h_n

    @classmethod
    def from_gru(cls, gru: nn.GRU, **phased: Any) -> Self:
        """Make a Phased GRU with the configuration and a copy of the weights of an `nn.GRU`.

        Args:
            gru: the source.
            **phased: keyword-only arguments of `PhasedGRU`.

        Raises:
            TypeError: not an `nn.GRU`.
        """
        if not isinstance(gru, nn.GRU):
            raise TypeError(f"from_gru takes a torch.nn.GRU, got: {type(gru).__name__}")
        return _convert(cls, gru, phased)


def _convert(cls: type[Any], source: nn.RNNBase, options: dict[str, Any]) -> Any:
    weight = source.weight_ih_l0
    target = cls(
        source.input_size, source.hidden_size, source.num_layers, source.bias, source.batch_first,
        source.dropout, source.bidirectional, **({"device": weight.device, "dtype": weight.dtype} | options),
    )  # fmt: skip
    target._copy_from(source)
    return target


def _check_proj_size(proj_size: int, hidden_size: int) -> None:
    proj_size = check_integer("proj_size", proj_size)
    if proj_size < 0:
        raise ValueError("proj_size should be a positive integer or zero to disable projections")
    if proj_size >= hidden_size:
        raise ValueError("proj_size has to be smaller than hidden_size")
    if proj_size:
        raise NotImplementedError(
            f"proj_size={proj_size}: the time gate has one openness for each of the {hidden_size} units, a projected "
            f"state has only {proj_size} entries, and the paper defines no gate for it; put an nn.Linear behind it"
        )


def _reject_for_gru(unsupported: dict[str, Any]) -> None:
    if "proj_size" in unsupported:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
    if unsupported:
        name = next(iter(unsupported))
        raise TypeError(f"PhasedGRU.__init__() got an unexpected keyword argument {name!r}")
