"""Options of the experiments. Imports nothing heavy, so that a command's help is instant."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ..errors import RunError
from ..options import check_entries, check_ranges, flag, option

MODELS = ("PhasedLSTMCell", "BasicLSTMCell", "PhasedGRUCell", "GRUCell")
DATA = ("mnist", "digits")


@dataclass(frozen=True)
class MnistConfig:
    """Everything that decides the numbers of a run on MNIST as sequences of 784 pixels.

    The defaults are the historic setting: peepholes, leak 0.001, a trainable ratio, periods
    exp(U(0, 6)), Adam at 1e-3, 32 units, batches of 256.

    Raises:
        RunError: a value out of range.
    """

    model: str = option("PhasedLSTMCell", "recurrent cell", choices=MODELS)
    data: str = option("mnist", "mnist, or scikit-learn's bundled digits at the same size", choices=DATA)
    data_dir: str | None = option(None, "folder of the four MNIST idx files (default: see README)")
    permuted: bool = option(False, "shuffle the pixels, in the same way for all images (psMNIST)")
    pixel_scale: float = option(1.0, "pixels go from 0 to this", low=1e-6, high=1e6)
    steps: int = option(2000, "training steps", low=1, high=10**9)
    batch_size: int = option(256, "sequences in a batch", low=1)
    hidden_size: int = option(32, "units of a layer", low=1, high=65536)
    num_layers: int = option(1, "stacked layers", low=1, high=1000)
    lr: float = option(1e-3, "learning rate of Adam", low=0.0, high=1e3)
    lr_warmup: int = option(0, "steps over which the learning rate rises linearly", low=0)
    lr_cosine: bool = option(False, "let the learning rate fall to zero along a cosine")
    clip_grad_norm: float = option(0.0, "limit of the gradient's norm, 0 for none", low=0.0)
    seed: int = option(0, "seed of initial weights, batches and noise", low=0, high=10**9)
    dropout: float = option(
        0.0, "share of the last state that is dropped in training, before the head", low=0.0, high=1.0
    )
    weight_decay: float = option(0.0, "decoupled weight decay (AdamW)", low=0.0)
    forget_bias: float | None = option(
        None, "added to the forget gate's initial bias (default: 1 for BasicLSTMCell as in TensorFlow, else 0)"
    )
    initial_state_std: float = option(0.0, "standard deviation of noise in the initial state in training", low=0.0)
    peephole: bool = option(True, "peephole connections (PhasedLSTMCell)")
    leak: float = option(0.001, "leak of the time gate in training", low=0.0)
    ratio_on: float = option(0.05, "open ratio of the time gate, initially", low=0.0)
    trainable_ratio_on: bool = option(True, "learn the open ratio")
    openness_penalty: float = option(0.0, "weight in the loss of the gates' mean openness", low=0.0)
    period_init_min: float = option(1.0, "shortest initial period, in steps", low=0.0)
    period_init_max: float = option(round(math.exp(6.0), 4), "longest initial period, in steps", low=0.0)
    oscillation: str = option("triangle", "shape of the gate", choices=("triangle", "square", "cosine"))
    backend: str = option("auto", "what computes the phased layers", choices=("auto", "native", "reference"))
    test_every: int = option(100, "steps between tests", low=1)
    test_size: int = option(1000, "test images used between; the end takes all", low=1)
    checkpoint_every: int = option(100, "steps between checkpoints", low=1)
    threads: int = option(0, "CPU threads, 0 for torch's choice", low=0, high=1024)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.forget_bias is not None and "LSTM" not in self.model:
            raise RunError(f"--forget-bias has no meaning for {self.model}, which has no forget gate")
        if self.data_dir is not None and self.data != "mnist":
            raise RunError("--data-dir goes with --data mnist; the digits are part of scikit-learn")

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> MnistConfig:
        """Build from a run's configuration; what it does not name has its default.

        Raises:
            RunError: an unknown key, or a value of the wrong type or out of range.
        """
        check_entries(cls, content, "the run's configuration")
        return cls(**content)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


# Options that a resumed run may change: none of them changes what a training step does.
FREE_ON_RESUME = ("steps", "threads", "checkpoint_every", "data_dir")


def resumed(saved: MnistConfig, given: dict[str, Any]) -> MnistConfig:
    """The configuration of a resumed run: the saved one, with the options given that may change.

    Raises:
        RunError: an option given differs from the saved one and would change the run.
    """
    fixed = [name for name in given if name not in FREE_ON_RESUME or (name == "steps" and saved.lr_cosine)]
    differing = [
        f"{flag(name)} {given[name]} (the run has {getattr(saved, name)})"
        for name in fixed
        if given[name] != getattr(saved, name)
    ]
    if differing:
        raise RunError(
            f"--resume continues a run as it was begun, and these differ: {', '.join(differing)}; leave them out, or "
            f"start anew with another --out"
        )
    return dataclasses.replace(saved, **given)
