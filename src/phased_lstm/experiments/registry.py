"""Which experiments there are. Imports none of them, so that listing is instant."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..errors import RunError

if TYPE_CHECKING:
    from .base import Experiment

# Name on the command line: module in this package that defines EXPERIMENTS with it.
MODULES = {
    "mnist-historic": "mnist_rows",
    "mnist-recommended": "mnist_rows",
    "mnist-large": "mnist_rows",
    "psmnist": "mnist_rows",
    "frequency-standard": "frequency",
    "frequency-high": "frequency",
    "frequency-async": "frequency",
    "frequency-two": "frequency",
    "adding": "adding",
    "nmnist": "nmnist",
    "event-mnist": "event_mnist",
    "ablation-frequency": "frequency_ablation",
    "ablation-mnist": "mnist_rows",
    "xor": "xor",
    "walker2d": "walker2d",
}


def find(name: str) -> Experiment:
    """Return an experiment by name.

    Raises:
        RunError: there is none of that name.
    """
    if name not in MODULES:
        raise RunError(f"there is no experiment {name!r}; there are {', '.join(MODULES)}")
    module = importlib.import_module(f".{MODULES[name]}", __package__)
    made: Experiment = next(experiment for experiment in module.EXPERIMENTS if experiment.name == name)
    return made
