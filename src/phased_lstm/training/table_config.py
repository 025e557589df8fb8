"""Options of `phased-lstm train`. Imports nothing heavy, so that a command's help is instant."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self, get_type_hints

from ..errors import RunError
from ..options import check_entries, check_ranges, flag, is_names, join_names, option, split_names

# Options that a resumed run may change: none of them changes what a training step does.
FREE_ON_RESUME = ("threads", "checkpoint_every", "tensorboard", "data", "labels", "on_disk")
# What to do with sequences and labels that are not as they should be: commands say it anew for other tables.
LENIENCE = ("unseen", "repeated", "empty", "unlabelled", "unmeasured")
# Where tables have what is read.
COLUMN_NAMES = ("id", "time", "channel", "value")
_TIME_TYPES = ("int64", "float64", *(f"timestamp[{unit}]" for unit in ("s", "ms", "us", "ns")))
_MONITORS = ("loss", "accuracy", "balanced_accuracy", "auroc", "auprc", "mae", "rmse", "r2")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the numbers of a training from tables.

    Raises:
        RunError: a value out of range.
    """

    data: str = option("", "table of measurements, long or wide: Parquet, Feather, CSV, or a folder of them")
    labels: str = option("", "table with one row a sequence: its id, target and static features")
    target: str = option("", "column of the labels to predict")
    task: str = option("auto", "kind of target", choices=("auto", "classification", "regression"))
    static: tuple[str, ...] = option((), 'columns of the labels that are features, as in: age,"weight, kg"')
    id: str = option("id", "column of ids, in both tables")
    time: str = option("time", "column of times")
    time_type: str | None = option(None, "what times become (default: what the column has)", choices=_TIME_TYPES)
    channel: str | None = option(None, "column of a long table that names what was measured (default: found out)")
    value: str = option("value", "column of a long table with the values")
    features: tuple[str, ...] = option(
        (), 'columns of a wide table with values, as in: hr,"temp, °C" (default: all others but the target)'
    )
    unseen: str = option("error", "channels at prediction that training did not have", choices=("error", "ignore"))
    repeated: str = option("error", "second value of a channel at one time, long table", choices=("error", "last"))
    empty: str = option("error", "sequences without any value", choices=("error", "skip"))
    unlabelled: str = option("error", "sequences without a label", choices=("error", "skip"))
    unmeasured: str = option("error", "labels without a sequence", choices=("error", "skip"))
    validation_fraction: float = option(0.2, "part kept to choose the best weights", low=0.0, high=0.9)
    test_fraction: float = option(0.0, "part kept for the figures at the end", low=0.0, high=0.9)
    cell: str = option("PhasedLSTM", "recurrent layer", choices=("PhasedLSTM", "PhasedGRU"))
    hidden_size: int = option(64, "units of a layer", low=1, high=65536)
    num_layers: int = option(1, "stacked layers", low=1, high=1000)
    bidirectional: bool = option(False, "layers run in both directions")
    dropout: float = option(0.0, "dropout between layers and before the head", low=0.0, high=0.99)
    head_size: int = option(0, "units of a hidden layer in the head, 0 for none", low=0)
    ratio_on: float | None = option(
        None, "open ratio of the gates (default: 0.05 from 500 steps, 0.1 from 100, else 0.2)", low=1e-6, high=1.0
    )
    leak: float = option(0.0, "leak of the gates in training", low=0.0, high=1.0)
    oscillation: str = option("triangle", "shape of the gates", choices=("triangle", "square", "cosine"))
    peephole: bool = option(False, "peephole connections of an LSTM")
    forget_bias: float = option(1.0, "initial bias of an LSTM's forget gate")
    epochs: int = option(50, "passes over the training part, at most", low=1, high=10**9)
    batch_size: int = option(32, "sequences of a batch, over all ranks", low=1)
    lr: float = option(5e-3, "highest learning rate of AdamW", low=0.0, high=1e3)
    warmup: int | None = option(None, "steps over which it rises (default: a twentieth of all, 100 at most)", low=0)
    cosine: bool = option(True, "let it fall to zero along a cosine")
    clip_grad_norm: float = option(1.0, "limit of the gradient's norm, 0 for none", low=0.0)
    weight_decay: float = option(1e-4, "of AdamW", low=0.0)
    class_weight: str = option("none", "weight of classes in the loss", choices=("none", "balanced"))
    patience: int = option(10, "epochs without a better figure until training stops, 0 for never", low=0)
    monitor: str = option("loss", "that figure, on the validation part", choices=_MONITORS)
    seed: int = option(0, "seed of everything random", low=0, high=10**9)
    threads: int = option(0, "CPU threads, 0 for torch's choice", low=0, high=1024)
    on_disk: bool = option(False, "keep the measurements in a temporary file beside the run, rather than in memory")
    checkpoint_every: int = option(100, "steps between checkpoints", low=1)
    tensorboard: bool = option(False, "log for TensorBoard too, in RUN/tensorboard")

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.lr:
            raise RunError("--lr should be above 0")
        if self.validation_fraction + self.test_fraction > 0.95:
            raise RunError("--validation-fraction and --test-fraction leave too little for training")

    def require_tables(self) -> None:
        """Raise RunError unless the data, the labels and the target are named, and no column serves as two things."""
        for name in ("data", "labels", "target"):
            if not getattr(self, name):
                raise RunError(f"{flag(name)} is needed: {type(self).__dataclass_fields__[name].metadata['help']}")
        if self.channel is not None and self.features:
            raise RunError("--channel is of a long table, --features of a wide one: leave one of them out")
        columns = {self.target: "the target", self.id: "the column of ids"}
        if len(columns) < 2:
            raise RunError(f"--target is {self.target}, the column of ids")
        for field in ("static", "features"):
            names = getattr(self, field)
            for name in names:
                if name in columns:
                    raise RunError(f"{flag(field)} names {name}, which is {columns[name]}: leave it out")
                if names.count(name) > 1:
                    raise RunError(f"{flag(field)} names {name} twice: leave one out")

    def check_use(self, task: str) -> None:
        """Raise RunError for an option that has no meaning for the task, or for the cell."""
        if task == "regression" and self.class_weight != "none":
            raise RunError(
                f"--class-weight {self.class_weight} is for classes, and {self.target} is a number: leave it out, or "
                f"say --task classification"
            )
        if self.cell == "PhasedGRU" and self.peephole:
            raise RunError("--peephole is for --cell PhasedLSTM: a GRU has no peephole connections")
        if self.cell == "PhasedGRU" and self.forget_bias != type(self).forget_bias:
            raise RunError("--forget-bias is for --cell PhasedLSTM: a GRU has no forget gate")
        if not self.validation_fraction and self.monitor != type(self).monitor:
            raise RunError(
                f"--monitor {self.monitor} is measured on the validation part, and --validation-fraction is 0"
            )

    @classmethod
    def from_json(cls, content: dict[str, Any], source: str = "the run's configuration") -> Self:
        """Build from entries of which each one that is absent has its default.

        Raises:
            RunError: an unknown entry, or a value of the wrong type or out of range.
        """
        hints = get_type_hints(cls)
        entries: dict[str, Any] = {}
        for name, value in content.items():
            if is_names(hints.get(name)) and isinstance(value, (list, str)):
                try:
                    value = split_names(value) if isinstance(value, str) else tuple(value)
                except ValueError as error:
                    raise RunError(f"{source} has {name}: {error}") from error
            entries[name] = value
        check_entries(cls, entries, source)
        return cls(**entries)

    def to_json(self) -> dict[str, Any]:
        content = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}


def resumed(saved: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """The configuration of a resumed run: the saved one, with the options given that may change.

    Raises:
        RunError: an option given differs from the saved one and would change the run.
    """
    differing = [
        f"{flag(name)} {_shown(value)} (the run has {_shown(getattr(saved, name))})"
        for name, value in given.items()
        if name not in FREE_ON_RESUME and value != getattr(saved, name)
    ]
    if differing:
        raise RunError(
            f"--resume continues a run as it was begun, and these differ: {', '.join(differing)}; leave them out, or "
            f"start anew with another --out"
        )
    return dataclasses.replace(saved, **given)


def _shown(value: Any) -> Any:
    return join_names(value) or "none" if isinstance(value, tuple) else value
