"""Pictures of a training from tables: curves, confusion or reliability, periods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import RunError
from .models import NetworkConfig
from .plotting import Figure as Figure
from .plotting import save_figure
from .training.inspection import GateReport
from .training.runs import read_log

_TRAINING, _VALIDATION = "#0072B2", "#D55E00"
_BINS = 10


def plot_log(run: Path, path: Path) -> Path:
    """Draw the loss of a run over its epochs, and the figures of the validation part.

    Raises:
        RunError: there is no log, or the picture cannot be written.
    """
    rows = read_log(run, ("step", "epoch", "train_loss"))
    if not rows:
        raise RunError(f"{run} has no steps in its log yet")
    measured = [name for name in rows[0] if name.startswith("valid_") and any(row[name] for row in rows)]
    scores = [name for name in measured if name != "valid_loss"]
    figure = Figure(figsize=(8, 7 if scores else 4), layout="constrained")
    axes: Any = figure.subplots(2 if scores else 1, 1, sharex=True, squeeze=False)[:, 0]
    epochs = [float(row["epoch"]) for row in rows]
    axes[0].plot(epochs, [float(row["train_loss"]) for row in rows], color=_TRAINING, linewidth=0.8, label="training")
    for name in measured:
        points = [(float(row["epoch"]), float(row[name])) for row in rows if row[name]]
        line = list(zip(*points, strict=True))
        if name == "valid_loss":
            axes[0].plot(*line, color=_VALIDATION, marker="o", markersize=3, label="validation")
        else:
            axes[1].plot(*line, marker="o", markersize=3, label=name.removeprefix("valid_"))
    axes[0].set_ylabel("loss")
    for part in axes:
        part.grid(alpha=0.25)
        part.legend(fontsize="small")
    axes[-1].set_xlabel("epoch")
    return save_figure(figure, path)


def plot_evaluation(config: NetworkConfig, outputs: Tensor, labels: Tensor, folder: Path) -> list[Path]:
    """Draw how answers and truth go together.

    Args:
        config: of the network.
        outputs: (N, C) probabilities, or (N, K) predictions.
        labels: (N,) class numbers, or (N, K) numbers.
        folder: where to.

    Returns:
        The files written: confusion.png, and reliability.png for two classes; predictions.png for numbers.
    """
    if config.target == "regression":
        return [_scatter(outputs[:, 0], labels[:, 0], folder / "predictions.png")]
    names = config.classes or tuple(map(str, range(config.outputs)))
    written = [_confusion(outputs.argmax(dim=1), labels, names, folder / "confusion.png")]
    if len(names) == 2:
        written.append(_reliability(outputs[:, 1], labels, names[1], folder / "reliability.png"))
    return written


def plot_periods(reports: Sequence[GateReport], unit: str, path: Path) -> Path:
    """Draw a histogram of the periods of each gate, and the openness of units over their periods."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    every = torch.cat([report.period for report in reports]).double()
    edges = torch.logspace(every.min().log10() - 1e-6, every.max().log10() + 1e-6, 25, dtype=torch.float64).numpy()
    for number, report in enumerate(reports):
        top.hist(report.period.numpy(), edges, color=f"C{number}", alpha=0.6, label=report.name)
        bottom.plot(
            report.period.numpy(), report.fraction.numpy(), color=f"C{number}", linestyle="none", marker=".",
            label=report.name,
        )  # fmt: skip
    top.set_xscale("log")
    top.set_ylabel("units")
    bottom.set_ylabel("share of steps open")
    bottom.set_xlabel(f"period ({unit})")
    for part in (top, bottom):
        part.grid(alpha=0.25)
    top.legend(fontsize="small")
    return save_figure(figure, path)


def _confusion(chosen: Tensor, labels: Tensor, names: Sequence[str], path: Path) -> Path:
    count = len(names)
    matrix = torch.bincount(labels * count + chosen, minlength=count * count).reshape(count, count)
    shares = (matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    size = min(12.0, 3.0 + 0.5 * count)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if count <= 20:
        for row in range(count):
            for column in range(count):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(int(matrix[row, column])), ha="center", va="center", color=colour)
    axes.set_xticks(range(count), names, rotation=45 if count > 5 else 0)
    axes.set_yticks(range(count), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.colorbar(picture, label="share of the true class")
    return save_figure(figure, path)


def _reliability(probability: Tensor, labels: Tensor, name: str, path: Path) -> Path:
    """How often what was given a probability came true, in bins of the probability."""
    place = (probability * _BINS).long().clamp(max=_BINS - 1)
    count = torch.bincount(place, minlength=_BINS).double()
    said = torch.zeros(_BINS, dtype=torch.float64).index_add(0, place, probability.double()) / count
    came = torch.zeros(_BINS, dtype=torch.float64).index_add(0, place, labels.double()) / count
    figure = Figure(figsize=(6, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = count > 0
    top.plot([0, 1], [0, 1], color="grey", linestyle=":")
    top.plot(said[filled].numpy(), came[filled].numpy(), color=_VALIDATION, marker="o")
    top.set_ylabel(f"share that is {name}")
    bottom.bar(
        (torch.arange(_BINS).double() + 0.5).div(_BINS).numpy(), count.numpy(), width=0.9 / _BINS, color=_TRAINING
    )
    bottom.set_ylabel("sequences")
    bottom.set_xlabel(f"predicted probability of {name}")
    return save_figure(figure, path)


def _scatter(predictions: Tensor, targets: Tensor, path: Path) -> Path:
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(targets.numpy(), predictions.numpy(), color=_TRAINING, linestyle="none", marker=".", alpha=0.5)
    ends = [float(targets.min()), float(targets.max())]
    axes.plot(ends, ends, color="grey", linestyle=":")
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    return save_figure(figure, path)
