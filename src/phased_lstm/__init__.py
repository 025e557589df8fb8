"""Phased LSTM and Phased GRU: recurrent layers with a rhythmic time gate, for PyTorch.

Names are imported when first used, so that commands which need no tensors start at once. The operators of
`torch.ops.phased_lstm` are there as soon as both this package and torch are imported, in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import importer
from ._registration import register_operators

if TYPE_CHECKING:
    from . import functional as functional
    from .cells import PhasedGRUCell as PhasedGRUCell
    from .cells import PhasedLSTMCell as PhasedLSTMCell
    from .estimators import PhasedLSTMClassifier as PhasedLSTMClassifier
    from .estimators import PhasedLSTMRegressor as PhasedLSTMRegressor
    from .gate import Openness as Openness
    from .gate import TimeGate as TimeGate
    from .layers import PhasedGRU as PhasedGRU
    from .layers import PhasedLSTM as PhasedLSTM
    from .ops.registry import backends as backends
    from .streaming import Stream as Stream

__version__ = "0.1.0"

_HOME = {
    "Openness": ".gate",
    "PhasedGRU": ".layers",
    "PhasedGRUCell": ".cells",
    "PhasedLSTM": ".layers",
    "PhasedLSTMCell": ".cells",
    "PhasedLSTMClassifier": ".estimators",
    "PhasedLSTMRegressor": ".estimators",
    "Stream": ".streaming",
    "TimeGate": ".gate",
    "backends": ".ops.registry",
}

__all__ = ["__version__", "functional", *_HOME]


__getattr__ = importer(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)


register_operators()
