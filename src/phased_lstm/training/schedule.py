"""Learning rates over the steps of a training."""

from __future__ import annotations

import math


def warmup_cosine(lr: float, step: int, *, warmup: int, steps: int | None) -> float:
    """The learning rate of a step: linear warm-up, then constant or a cosine to zero.

    Args:
        lr: the highest.
        step: from 0.
        warmup: steps over which it rises.
        steps: of the whole training, over which it falls; None: it does not.
    """
    rate = lr * min(1.0, (step + 1) / max(1, warmup))
    return rate if steps is None else rate * (0.5 + 0.5 * math.cos(math.pi * step / steps))
