"""A whole network over measured sequences: scale, missing values, Phased layers and a head, saved as one folder."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_type_hints

import torch
from torch import Tensor, nn

from ._checks import check_flag, check_integer, check_number, check_size
from .data.encoders import KeepsBuffersWide, Standardizer, ValuesAndMask
from .data.events import EventBatch
from .data.loading import EventDataset
from .errors import RunError
from .layers import PhasedGRU, PhasedLSTM
from .training.checkpoints import load_model, load_tensors, save_model
from .training.runs import CONFIG, MODEL, read_json, write_json

FORMAT_VERSION = 1
# Gates are fitted to so many events and sequences at most: a typical sample, not all of a large data set.
_GATE_EVENTS, _GATE_SEQUENCES = 1 << 17, 512


@dataclass(frozen=True)
class NetworkConfig:
    """What a `SequenceNetwork` is made of; every entry goes into JSON.

    Attributes:
        channels: names of the F channels of values.
        outputs: what the head gives: the number of classes, or of regressed targets.
        target: whether the outputs are logits of classes, or numbers.
        classes: names of the classes, where they have any.
        static: names of the G static features.
        per_step: whether there is an output for each step, rather than one for the sequence.
        cell: kind of layer.
        hidden_size: units of a layer.
        num_layers: stacked layers.
        bidirectional: whether each layer runs in both directions.
        dropout: between layers, and before the head, in training.
        head_size: units of a hidden layer in the head; 0: the head is linear.
        ratio_on: open ratio of the gates.
        trainable_ratio_on: whether it is learned.
        leak: of the gates, in training.
        oscillation: shape of the gates.
        peephole: whether an LSTM has peephole connections.
        forget_bias: initial bias of an LSTM's forget gate.

    Raises:
        ValueError: a value out of range.
    """

    channels: tuple[str, ...]
    outputs: int
    target: Literal["classification", "regression"] = "classification"
    classes: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    per_step: bool = False
    cell: Literal["PhasedLSTM", "PhasedGRU"] = "PhasedLSTM"
    hidden_size: int = 64
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    head_size: int = 0
    ratio_on: float = 0.05
    trainable_ratio_on: bool = False
    leak: float = 0.0
    oscillation: Literal["triangle", "square", "cosine"] = "triangle"
    peephole: bool = False
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        self._make_plain()
        if not self.channels:
            raise ValueError("channels should name at least one channel, got none")
        for name, kind in get_type_hints(type(self)).items():
            if (choices := get_args(kind)) and isinstance(choices[0], str) and getattr(self, name) not in choices:
                raise ValueError(f"{name} should be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.target == "classification" and self.classes and len(self.classes) != self.outputs:
            raise ValueError(f"outputs should be one for each of the {len(self.classes)} classes, got {self.outputs}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout should be in [0, 1), got {self.dropout}")
        if not math.isfinite(self.forget_bias):
            raise ValueError(f"forget_bias should be finite, got {self.forget_bias}")
        if self.head_size < 0:
            raise ValueError(f"head_size should be 0, for a linear head, or a number of units, got {self.head_size}")

    def _make_plain(self) -> None:
        """Keep numbers, flags and names of any library as Python's, as JSON and `repr` need them."""
        checks: dict[str, Any] = {
            **dict.fromkeys(("outputs", "hidden_size", "num_layers"), check_size),
            **dict.fromkeys(("per_step", "bidirectional", "trainable_ratio_on", "peephole"), check_flag),
            **dict.fromkeys(("dropout", "ratio_on", "leak", "forget_bias"), check_number),
        }
        made: dict[str, Any] = {name: check(name, getattr(self, name)) for name, check in checks.items()}
        try:
            made["head_size"] = check_integer("head_size", self.head_size)
        except TypeError as error:
            raise ValueError(
                f"head_size should be 0, for a linear head, or a number of units, got {self.head_size!r}"
            ) from error
        made |= {name: str(getattr(self, name)) for name in ("target", "cell", "oscillation")}
        for name in ("channels", "classes", "static"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} should be names, as a tuple, got the string {getattr(self, name)!r}")
            made[name] = tuple(map(str, getattr(self, name)))
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON holds it."""
        content = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Build from `to_json`.

        Raises:
            ValueError, TypeError: an entry that is unknown, absent or out of range.
        """
        entries: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        return cls(**entries)


class SequenceNetwork(KeepsBuffersWide):
    """Standardised values with their mask and the time since the step before, Phased layers, and a head.

    The head reads the last state and the static features. With `per_step` it reads the state after each step and that
    step's own input, so that a step at which all channels are missing asks for an output at its time.

    Scale, time scale and gates are fitted to the training part by `fit_`, and saved with the weights. They keep their
    digits where the network is cast to a 16-bit type.

    Args:
        config: what it is made of.
    """

    time_scale: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = Standardizer(len(config.channels))
        self.static_scale = Standardizer(len(config.static)) if config.static else None
        self.target_scale = Standardizer(config.outputs) if config.target == "regression" else None
        self.mask = ValuesAndMask()
        self.register_buffer("time_scale", torch.ones((), dtype=torch.float64))
        width = 2 * len(config.channels) + 1
        options: dict[str, Any] = {
            "batch_first": True, "bidirectional": config.bidirectional, "ratio_on": config.ratio_on,
            "dropout": config.dropout if config.num_layers > 1 else 0.0, "leak": config.leak,
            "trainable_ratio_on": config.trainable_ratio_on, "oscillation": config.oscillation,
        }  # fmt: skip
        self.rnn: PhasedLSTM | PhasedGRU
        if config.cell == "PhasedLSTM":
            self.rnn = PhasedLSTM(
                width, config.hidden_size, config.num_layers, peephole=config.peephole, **options
            )  # fmt: skip
            with torch.no_grad():
                for name, parameter in self.rnn.named_parameters():
                    if name.startswith("bias_ih"):
                        parameter[config.hidden_size : 2 * config.hidden_size] += config.forget_bias
        else:
            self.rnn = PhasedGRU(width, config.hidden_size, config.num_layers, **options)
        size = config.hidden_size * (1 + config.bidirectional) + 2 * len(config.static) + width * config.per_step
        self.dropout = nn.Dropout(config.dropout)
        if config.head_size:
            self.head: nn.Module = nn.Sequential(
                nn.Linear(size, config.head_size), nn.ReLU(), nn.Linear(config.head_size, config.outputs)
            )
        else:
            self.head = nn.Linear(size, config.outputs)

    @torch.no_grad()
    def fit_(self, data: EventDataset, *, targets: Tensor | None = None) -> Self:
        """Fit scale, time scale and gates; give the training part only.

        Args:
            data: the sequences, with static features if the network has them.
            targets: (M, outputs) targets of a regression, NaN where missing.

        Returns:
            The network itself. Draws from torch's global generator.

        Raises:
            ValueError: infinite values, no measured value, or times without a scale (no sequence with two times).
        """
        values = data.events.values
        self.scale.fit_(values if values.is_floating_point() else values.double())
        for name, scale, rows in (
            ("static features", self.static_scale, data.static),
            ("targets", self.target_scale, targets),
        ):
            if scale is not None and rows is not None:
                try:
                    scale.fit_(rows)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
        return self.fit_times_(gate_sample(data.events))

    @torch.no_grad()
    def fit_times_(self, sample: EventBatch) -> Self:
        """Fit time scale and gates to the times of typical sequences, as `gate_sample` takes them from many."""
        _, times, lengths = sample.padded()
        self.rnn.fit_gates_(times, lengths)
        # By time, as for the gates: where all go back, there would be no interval.
        gaps = torch.cat([_wide_times(stamps).sort().values.diff() for _, stamps in sample])
        self.time_scale.copy_(gaps[gaps > 0].double().median())
        return self

    def forward(self, values: Tensor, times: Tensor, lengths: Tensor, static: Tensor | None = None) -> Tensor:
        """Apply the network to a padded batch, as `data.collate` and `EventBatch.padded` make it.

        Args:
            values: (N, L, F) as measured, NaN where not.
            times: (N, L).
            lengths: (N,) valid steps.
            static: (N, G) static features, NaN where missing.

        Returns:
            (N, outputs), or (N, L, outputs) with `per_step`, without meaning beyond each length: logits, or
            standardised targets (`target_scale.inverse` gives them in their unit).

        Raises:
            ValueError: values of another width, times of another shape; static features that are missing, too many, or
                not expected.
        """
        if values.dim() != 3 or values.shape[-1] != len(self.config.channels):
            raise ValueError(
                f"values should be of shape (N, L, {len(self.config.channels)}), a column for each channel, "
                f"got {tuple(values.shape)}"
            )
        if times.shape != values.shape[:2]:
            raise ValueError(
                f"times should be of shape {tuple(values.shape[:2])}, a row for each sequence, got "
                f"{tuple(times.shape)}; times that all share: times.expand(N, L)"
            )
        inputs = self._inputs(values, times)
        output, state = self.rnn(inputs, None, times, lengths=lengths, return_sequence=self.config.per_step)
        if self.config.per_step:
            parts = [output, inputs]
        else:
            hidden = state[0] if isinstance(state, tuple) else state
            parts = list(hidden[-(1 + self.config.bidirectional) :])
        if (static is None) != (self.static_scale is None):
            wanted = f"{len(self.config.static)} static features" if self.config.static else "no static features"
            raise ValueError(f"the network has {wanted}, got {'none' if static is None else tuple(static.shape)}")
        if static is not None and self.static_scale is not None:
            if static.dim() != 2 or static.shape[-1] != len(self.config.static):
                raise ValueError(f"static should be of shape (N, {len(self.config.static)}), got {tuple(static.shape)}")
            wide = static.to(_wide_kind(static, inputs.dtype))
            features = self.mask(self.static_scale(wide)).to(inputs.dtype)
            parts.append(features.unsqueeze(1).expand(-1, inputs.shape[1], -1) if self.config.per_step else features)
        return self.head(self.dropout(torch.cat(parts, dim=-1)))

    def _inputs(self, values: Tensor, times: Tensor) -> Tensor:
        times = times if times.is_floating_point() else _wide_times(times)
        since = torch.diff(times, dim=1, prepend=times[:, :1]).clamp(min=0).to(self.time_scale.dtype) / self.time_scale
        weight: Any = self.rnn.weight_ih_l0
        kind = weight.dtype
        # Narrowed to the weights' type after the mean is off, which may be most of their digits.
        scaled = self.mask(self.scale(values.to(_wide_kind(values, kind))).to(kind))
        return torch.cat([scaled, since.log1p().unsqueeze(-1).to(kind)], dim=-1)

    def save(self, folder: str | Path) -> None:
        """Write the network to a folder: model.safetensors and config.json.

        Raises:
            RunError: it cannot be written.
        """
        path, config = Path(folder), self.config.to_json()
        save_model(path / MODEL, self, {"network": config})
        try:
            write_json(path / CONFIG, {"phased_lstm_network": FORMAT_VERSION, "network": config})
        except OSError as error:
            raise RunError(f"{path / CONFIG} cannot be written: {error}") from error

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote, in its types and in evaluation mode; nothing in it is run.

        Raises:
            RunError: the folder holds no network, a damaged one, or one from a newer version.
        """
        path = Path(folder)
        content = read_json(path / CONFIG, "the folder of a model")
        version = content.get("phased_lstm_network")
        if not isinstance(version, int):
            raise RunError(f"{path / CONFIG} does not describe a network of phased-lstm")
        if version > FORMAT_VERSION:
            raise RunError(
                f"{path} holds a model of format {version}, this version reads up to {FORMAT_VERSION}: upgrade "
                f"phased-lstm"
            )
        try:
            network = cls(NetworkConfig.from_json(content["network"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{path / CONFIG} is damaged: {error}") from error
        kinds = {part.dtype for name, part in load_tensors(path / MODEL)[0].items() if name.startswith("head.")}
        if (
            load_model(path / MODEL, network.to(kinds.pop()) if len(kinds) == 1 else network).get("network")
            != (content["network"])
        ):
            raise RunError(f"{path / MODEL} and {path / CONFIG} are of two models: save the model again")
        return network.eval()


def _wide_times(times: Tensor) -> Tensor:
    # Differences of integers are exact only as integers.
    return times.double() if times.is_floating_point() else times.long()


def _wide_kind(values: Tensor, weights: torch.dtype) -> torch.dtype:
    """The type in which values are scaled: theirs or that of the weights, and at least one that holds them."""
    if not values.is_floating_point():
        return torch.float64
    return torch.promote_types(torch.promote_types(values.dtype, weights), torch.float32)


def measured_channels(events: EventBatch) -> Tensor:
    """Return which channels have any value, (F,) bool; of several parts, join with `|`."""
    return (~events.values.isnan()).any(dim=0)


def fitted_channels(network: SequenceNetwork) -> Tensor:
    """Return which channels had values in training, (F,) bool: of the others the scale is as it was made."""
    return (network.scale.mean != 0) | (network.scale.std != 1)


def warn_of_absent_channels(network: SequenceNetwork, measured: Tensor, *, stacklevel: int = 2) -> None:
    """Warn, in one sentence, of the channels that training had values of and the data to predict have none of.

    Args:
        network: fitted to the training part.
        measured: (F,) bool of all data to predict, as `measured_channels` returns it.
        stacklevel: as in `warnings.warn`, 1 the caller.
    """
    absent = (fitted_channels(network).cpu() & ~measured.cpu()).nonzero().flatten().tolist()
    if absent:
        names = ", ".join(network.config.channels[place] for place in absent[:10]) + (", ..." if absent[10:] else "")
        warnings.warn(
            f"{len(absent)} of {len(network.config.channels)} channels have no value at all here and had some in "
            f"training: {names}. Predictions rest on the others alone; see whether these were lost on the way",
            stacklevel=stacklevel + 1,
        )


def gate_rows(count: int, num_events: int) -> Tensor:
    """Return which of `count` sequences, of so many events in all, gates are fitted to: enough, spread evenly."""
    share = min(1.0, _GATE_SEQUENCES / max(1, count), _GATE_EVENTS / max(1, num_events))
    return torch.linspace(0, count - 1, max(1, int(share * count))).round().long()


def gate_sample(events: EventBatch) -> EventBatch:
    """Return a spread of the sequences, enough to fit time gates to."""
    return events[gate_rows(len(events), events.num_events)]


def suggested_ratio(lengths: Tensor) -> float:
    """The open ratio for sequences of these lengths: 0.05, or more where a unit would see too few steps."""
    typical = float(lengths.double().median())
    return 0.05 if typical >= 500 else 0.1 if typical >= 100 else 0.2
