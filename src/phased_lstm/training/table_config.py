"""Options of `phased-lstm train`. Imports nothing heavy, so that a command's help is instant."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..errors import RunError, missing_extra
from ..options import check_entries, check_ranges, flag, option

# Options that a resumed run may change: none of them changes what a training step does.
FREE_ON_RESUME = ("threads", "checkpoint_every", "tensorboard", "data", "labels", "on_disk")
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
    static: str = option("", "columns of the labels that are features, separated by commas")
    id: str = option("id", "column of ids, in both tables")
    time: str = option("time", "column of times")
    time_type: str | None = option(None, "what times become: int64, float64, timestamp[s], [ms], [us] or [ns]")
    channel: str | None = option(None, "column of a long table that names what was measured (default: found out)")
    value: str = option("value", "column of a long table with the values")
    features: str = option("", "columns of a wide table with values, separated by commas (default: all others)")
    unseen: str = option("error", "channels at prediction that training did not have", choices=("error", "ignore"))
    repeated: str = option("error", "second value of a channel at one time, long table", choices=("error", "last"))
    empty: str = option("error", "sequences without any value", choices=("error", "skip"))
    unlabelled: str = option("error", "sequences without a label", choices=("error", "skip"))
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
        if self.validation_fraction + self.test_fraction > 0.95:
            raise RunError("--validation-fraction and --test-fraction leave too little for training")

    def require_tables(self) -> None:
        """Raise RunError unless the data, the labels and the target are named."""
        for name in ("data", "labels", "target"):
            if not getattr(self, name):
                raise RunError(f"{flag(name)} is needed: {type(self).__dataclass_fields__[name].metadata['help']}")
        for name in self.names("static"):
            if name in (self.target, self.id):
                raise RunError(f"--static names {name}, which is the {'target' if name == self.target else 'id'}")
        if self.target == self.id:
            raise RunError(f"--target is {self.target}, the column of ids")

    @classmethod
    def from_json(cls, content: dict[str, Any], source: str = "the run's configuration") -> Self:
        """Build from entries of which each one that is absent has its default.

        Raises:
            RunError: an unknown entry, or a value of the wrong type or out of range.
        """
        entries: dict[str, Any] = {
            name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in content.items()
        }
        check_entries(cls, entries, source)
        return cls(**entries)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def names(self, field: str) -> tuple[str, ...]:
        """The parts of an entry that are separated by commas."""
        return tuple(part.strip() for part in getattr(self, field).split(",") if part.strip())


def resumed(saved: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """The configuration of a resumed run: the saved one, with the options given that may change.

    Raises:
        RunError: an option given differs from the saved one and would change the run.
    """
    differing = [
        f"{flag(name)} {value} (the run has {getattr(saved, name)})"
        for name, value in given.items()
        if name not in FREE_ON_RESUME and value != getattr(saved, name)
    ]
    if differing:
        raise RunError(
            f"--resume continues a run as it was begun, and these differ: {', '.join(differing)}; leave them out, or "
            f"start anew with another --out"
        )
    return dataclasses.replace(saved, **given)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the entries of a YAML configuration.

    Raises:
        RunError: it cannot be read, or is not a mapping.
        ImportError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise missing_extra("train", "PyYAML") from error
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise RunError(f"{path} should hold entries such as hidden_size: 64, got {type(content).__name__}")
    return {name.replace("-", "_"): value for name, value in content.items()}


def to_yaml(config: TrainConfig) -> str:
    """Return a configuration as YAML, with what each entry means."""
    try:
        import yaml
    except ImportError as error:
        raise missing_extra("train", "PyYAML") from error
    lines = []
    for item in dataclasses.fields(config):
        entry = yaml.safe_dump({item.name: getattr(config, item.name)}).strip()
        lines.append(f"{entry}  # {item.metadata['help']}")
    return "\n".join(lines)
