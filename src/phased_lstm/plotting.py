"""The pictures of a run: curves over steps, and the gate above the state it holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import RunError, missing_extra
from .files import replacing
from .training.checkpoints import load_tensors
from .training.runs import CONFIG, TRACE, read_json, read_log

try:
    from matplotlib.figure import Figure as Figure
except ImportError as error:
    raise missing_extra("train", "matplotlib") from error

# Okabe and Ito's palette, told apart by colour-blind readers too.
_COLOURS = {
    "PhasedLSTMCell": "#D55E00", "BasicLSTMCell": "#0072B2", "PhasedGRUCell": "#CC79A7", "GRUCell": "#009E73",
}  # fmt: skip
_SPARE_COLOURS = ("#E69F00", "#56B4E9", "#000000", "#F0E442", "#999999", "#8B4513")
# A longer legend would cover the curves.
_ROWS_INSIDE = 5
_PALETTE = (*_COLOURS.values(), *_SPARE_COLOURS)
_GATE_UNITS = 8
GATE = "gate.png"
# What `plot_runs` draws.
PICTURES = ("accuracy.png", "cross_entropy.png", GATE)
_COLUMNS = ("step", "train_loss", "train_accuracy", "test_loss", "test_accuracy")


def plot_runs(runs: list[Path], out: Path) -> list[Path]:
    """Draw accuracy and cross-entropy over steps for all runs, and the gate of the first phased one.

    Args:
        runs: run folders.
        out: folder for the pictures.

    Returns:
        The files written: accuracy.png, cross_entropy.png and, if a finished run has a time gate, gate.png.

    Raises:
        RunError: a folder holds no run, or a picture cannot be written.
    """
    for run in runs:
        if (run / CONFIG).is_file() and "train" in read_json(run / CONFIG):
            raise RunError(f"{run} is a run of phased-lstm train: draw it with phased-lstm inspect {run}")
    logs = {run: read_log(run, _COLUMNS) for run in runs}
    names = {run: str(read_json(run / CONFIG).get("model", run.name)) for run in runs}
    labels = {run: names[run] if list(names.values()).count(names[run]) == 1 else run.name for run in runs}
    for run, rows in logs.items():
        if not rows:
            raise RunError(f"{run} has no steps in its log yet")
    written = [
        save_figure(_curves(logs, names, labels, "accuracy", "accuracy"), out / "accuracy.png"),
        save_figure(_curves(logs, names, labels, "loss", "cross-entropy"), out / "cross_entropy.png"),
    ]
    traced = next((run for run in runs if (run / TRACE).exists()), None)
    if traced is not None:
        tensors, _ = load_tensors(traced / TRACE)
        if not {"times", "openness", "state"} <= tensors.keys():
            raise RunError(f"{traced / TRACE} does not hold a trace of a time gate")
        state = "cell state c" if "LSTM" in names[traced] else "hidden state h"
        written.append(save_figure(_gate(tensors, labels[traced], state), out / GATE))
    return written


def _curves(logs: dict[Path, Any], names: dict[Path, str], labels: dict[Path, str], key: str, title: str) -> Figure:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    spare = iter(_SPARE_COLOURS * (1 + len(logs)))
    used: set[str] = set()
    for run, rows in logs.items():
        colour = _COLOURS.get(names[run]) if names[run] not in used else None
        colour = colour or next(spare)
        used.add(names[run])
        steps = [int(row["step"]) for row in rows]
        values = [float(row[f"train_{key}"]) for row in rows]
        window = max(1, min(50, len(values) // 10))
        axes.plot(steps, values, color=colour, alpha=0.18, linewidth=0.6)
        axes.plot(steps, _trailing_mean(values, window), color=colour, linewidth=1.8, label=f"{labels[run]}, training")
        tested = [row for row in rows if row[f"test_{key}"]]
        axes.plot(
            [int(row["step"]) for row in tested], [float(row[f"test_{key}"]) for row in tested],
            color=colour, linestyle="none", marker="o", markersize=4, markerfacecolor="white",
            label=f"{labels[run]}, test",
        )  # fmt: skip
    chance = 0.1 if key == "accuracy" else math.log(10)
    axes.axhline(chance, color="grey", linestyle=":", linewidth=1, label="chance")
    axes.set_xlabel("step")
    axes.set_ylabel(title)
    if key == "accuracy":
        axes.set_ylim(0, 1)
    axes.set_title(f"Digits as 784 one-pixel steps: {title}")
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small")
    return figure


def plot_summary(
    summary: Mapping[str, Any], path: Path, key: str | None = None, label: str | None = None, *, log: bool = False
) -> Path:
    """Draw an experiment's learning curves: the mean over seeds, and a band of one standard deviation.

    Args:
        summary: from `experiments.runner.summarise`.
        path: the picture.
        key: what to draw; default the experiment's metric.
        label: of the axis; default the metric's.
        log: whether its axis is logarithmic.

    Raises:
        RunError: the picture cannot be written.
    """
    key, label = key or summary["metric"]["key"], label or summary["metric"]["label"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for index, (row, colour) in enumerate(zip(summary["rows"], _row_colours(summary["rows"]), strict=False)):
        # The colours come again when there are many rows.
        style = "-" if index < len(_PALETTE) else "--"
        curves = [curve for curve in row["curves"] if key in curve]
        if not curves:
            continue
        steps, columns = common_points(curves, key)
        if not steps:
            continue
        epochs = [step / summary["epoch_steps"] for step in steps]
        means = [statistics.fmean(column) for column in columns]
        seeds = "1 seed" if len(curves) == 1 else f"{len(curves)} seeds"
        # A line through one point would not be seen.
        marker = "o" if len(steps) == 1 else None
        label_of_row = f"{row['variant']} ({seeds})"
        axes.plot(epochs, means, color=colour, linewidth=1.8, linestyle=style, marker=marker, label=label_of_row)
        if len(curves) > 1:
            spreads = [statistics.stdev(column) for column in columns]
            low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
            high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
            axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    if log:
        axes.set_yscale("log")
    axes.set_title(summary["title"], fontsize="medium", wrap=True)
    axes.grid(alpha=0.25)
    if len(summary["rows"]) > _ROWS_INSIDE:
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        axes.legend(fontsize="small")
    return save_figure(figure, path)


def common_points(curves: Sequence[Mapping[str, list[float]]], key: str) -> tuple[list[float], list[list[float]]]:
    """Return the steps that all curves have, and at each of them the values of all: runs differ in length and tests."""
    found = [dict(zip(curve["step"], curve[key], strict=True)) for curve in curves]
    steps = [step for step in found[0] if all(step in values for values in found)]
    return steps, [[values[step] for values in found] for step in steps]


def plot_bars(groups: Mapping[str, Mapping[str, tuple[float, float]]], path: Path, *, label: str, title: str) -> Path:
    """Draw groups of bars with error bars.

    Args:
        groups: for each group on the axis, by series: mean and standard deviation.
        path: the picture.
        label: of the axis of values.
        title: of the picture.

    Raises:
        RunError: the picture cannot be written.
    """
    series = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    width = 0.8 / max(1, len(series))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, colour) in enumerate(zip(series, _PALETTE * (1 + len(series)), strict=False)):
        places = [place for place, bars in enumerate(groups.values()) if name in bars]
        values = [bars[name] for bars in groups.values() if name in bars]
        axes.bar(
            [place + (index - (len(series) - 1) / 2) * width for place in places], [mean for mean, _ in values],
            width=width * 0.92, yerr=[spread for _, spread in values], capsize=3, color=colour, label=name,
        )  # fmt: skip
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel(label)
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.grid(alpha=0.25, axis="y")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save_figure(figure, path)


def plot_tradeoff(
    points: Mapping[str, list[tuple[str, float, float, float]]], path: Path, *, x: str, y: str, title: str
) -> Path:
    """Draw points in the plane of cost and quality, joined within a series, each with its name.

    Args:
        points: by series: name, cost, mean and standard deviation of the quality of each point.
        path: the picture.
        x: label of the axis of cost.
        y: label of the axis of quality.
        title: of the picture.

    Raises:
        RunError: the picture cannot be written.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for (name, row), colour in zip(points.items(), _PALETTE * (1 + len(points)), strict=False):
        costs, means, spreads = ([point[index] for point in row] for index in (1, 2, 3))
        axes.errorbar(costs, means, yerr=spreads, color=colour, marker="o", capsize=3, linewidth=1.2, label=name)
        for text, cost, mean, _ in row:
            axes.annotate(text, (cost, mean), xytext=(5, 5), textcoords="offset points", fontsize="x-small")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small")
    return save_figure(figure, path)


def _row_colours(rows: list[Mapping[str, Any]]) -> list[str]:
    """A colour for each row: a cell's own where a row has its name, else the palette's in turn."""
    if all(row["variant"] in _COLOURS for row in rows):
        return [_COLOURS[row["variant"]] for row in rows]
    return [colour for _, colour in zip(rows, _PALETTE * (1 + len(rows)), strict=False)]


def _gate(tensors: dict[str, Any], label: str, name: str) -> Figure:
    """Openness of units over time, above the state that holds between openings."""
    times, openness, state = (tensors[name].double().numpy() for name in ("times", "openness", "state"))
    # Units with a few openings each show the rhythm best.
    openings = (openness[1:] > 0) & (openness[:-1] == 0)
    counts = openings.sum(0)
    suited = [unit for unit in counts.argsort() if counts[unit] >= 1] or list(range(openness.shape[1]))
    units = suited[:: max(1, len(suited) // _GATE_UNITS)][:_GATE_UNITS]
    figure = Figure(figsize=(9, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.3))
    for row, unit in enumerate(units):
        colour = f"C{row}"
        top.fill_between(times, row, row + 0.9 * openness[:, unit], color=colour, linewidth=0.5)
        bottom.plot(times, state[:, unit], color=colour, linewidth=1.2)
        open_steps = openness[:, unit] > 0
        bottom.plot(
            times[open_steps], state[open_steps, unit], color=colour, linestyle="none", marker=".", markersize=4
        )
    top.set_yticks([row + 0.45 for row in range(len(units))], [f"unit {unit}" for unit in units], fontsize="small")
    top.set_title(f"{label}: openness k of the time gate")
    bottom.set_title(f"{name} of the same units: it moves only while the gate is open (dots)")
    bottom.set_xlabel("time (steps)")
    bottom.set_ylabel(name)
    bottom.grid(alpha=0.25)
    return figure


def _trailing_mean(values: list[float], window: int) -> list[float]:
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a picture that appears whole or not at all; RunError if it cannot be."""
    try:
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=150)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}") from error
    return path
