"""What experiments share that change one factor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

DEFAULT = "default"


def plot_factors(
    summary: Mapping[str, Any],
    factors: Mapping[str, Iterable[str]],
    milliseconds: Callable[[Mapping[str, Any]], float],
    path: Path,
    x: str,
) -> Path:
    """Draw test accuracy against the cost of a step, rows of a factor joined.

    Args:
        summary: from `runner.summarise`; its rows are `DEFAULT` and those that `factors` names.
        factors: names of rows by factor.
        milliseconds: a row's cost.
        path: the picture.
        x: label of the axis of cost.

    Raises:
        RunError: the picture cannot be written.
    """
    from ..plotting import plot_tradeoff

    points = {
        row["variant"]: (
            row["variant"],
            milliseconds(row),
            100.0 * row["mean"]["test_accuracy"],
            100.0 * row["sd"].get("test_accuracy", 0.0),
        )
        for row in summary["rows"]
    }
    drawn = {
        factor: [points[name] for name in names if name in points]
        for factor, names in {DEFAULT: [DEFAULT], **factors}.items()
    }
    drawn = {factor: found for factor, found in drawn.items() if found}
    return plot_tradeoff(drawn, path, x=x, y="test accuracy (%)", title=summary["title"])
