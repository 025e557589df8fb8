"""Whether float32 would lose what varies in a channel of a table, found out while the table is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encoders import loses_digits


class Spread:
    """Mean and deviation of each channel, of parts that come one after another.

    Args:
        channels: F, their number.
    """

    def __init__(self, channels: int) -> None:
        # Of each channel: values, their mean, and the sum of squares about it.
        self.moments: NDArray[Any] = np.zeros((channels, 3))

    def add(self, channel: int, values: NDArray[Any]) -> None:
        """Take the values of a channel, float64, into account; NaN is none."""
        measured = values[~np.isnan(values)]
        if len(measured):
            mean = float(measured.mean())
            self._join(channel, len(measured), mean, float(np.square(measured - mean).sum()))

    def join(self, moments: Iterable[NDArray[Any]]) -> None:
        """Take `moments` of other parts into account, such as those of other processes."""
        for part in moments:
            for channel, (count, mean, squares) in enumerate(part.tolist()):
                if count:
                    self._join(channel, count, mean, squares)

    def lossy(self) -> list[int]:
        """The channels of which float32 would lose what varies."""
        return [
            channel
            for channel, (count, mean, squares) in enumerate(self.moments.tolist())
            if count and loses_digits(mean, (squares / count) ** 0.5)
        ]

    def _join(self, channel: int, count: float, mean: float, squares: float) -> None:
        before, middle, sum_before = self.moments[channel].tolist()
        total = before + count
        shift = mean - middle
        self.moments[channel] = (
            total, middle + shift * count / total, sum_before + squares + shift**2 * before * count / total
        )  # fmt: skip
