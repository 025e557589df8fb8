"""Pictures of what curves.py and memory.py measured: openness.png, scaling.png and memory.png.

python benchmarks/report.py FOLDER
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from phased_lstm.files import replacing
from records import Point, read
from timing import DENSE, OURS, PARTS, Sizes

# Okabe and Ito's palette, in an order of lightness that survives a print in grey; markers and dashes tell apart too.
_BLACK, _VERMILION, _SKY = "#000000", "#D55E00", "#56B4E9"
_SETTING_STYLES: tuple[dict[str, Any], ...] = (
    {"color": _VERMILION, "marker": "o", "linestyle": "-"},
    {"color": _SKY, "marker": "s", "linestyle": "--"},
)
_MODEL_STYLES = {DENSE: (_BLACK, "s"), OURS: (_VERMILION, "o")}
_MARKED = {"reference": ("D", "reference backend"), "leak": ("^", "training with leak 0.001, dense")}
_PART_DASHES = {"forward": "--", "train": "-"}
_PANELS = {"steps": "steps", "hidden": "units", "batch": "sequences", "threads": "threads"}
_FIXED = {
    "steps": "batch {batch}, {hidden} units",
    "hidden": "batch {batch}, {steps} steps",
    "batch": "{steps} steps, {hidden} units",
    "threads": "batch {batch}, {steps} steps, {hidden} units",
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path, help="where the JSON files are and the pictures go")
    folder = arguments.parse_args().folder
    drawings = {
        "curves.json": {"openness.png": _openness, "scaling.png": _scaling},
        "memory.json": {"memory.png": _memory},
    }
    found = [name for name in drawings if (folder / name).exists()]
    if not found:
        raise SystemExit(
            f"{folder} holds neither of {', '.join(drawings)}: run curves.py or memory.py with --out first"
        )
    for source in found:
        content = read(folder / source)
        for name, draw in drawings[source].items():
            figure = draw(list(content["points"].values()), content)
            figure.supxlabel(_footnote(content), fontsize="x-small", color="dimgrey")
            with replacing(folder / name) as file:
                figure.savefig(file, format="png", dpi=150)
            print(folder / name)


def _openness(points: list[Point], content: dict[str, Any]) -> Figure:
    """Time over openness as a multiple of nn.LSTM's, so that one line is nn.LSTM for both settings."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    even = content.get("break_even", {})
    settings: dict[str, list[Point]] = {}
    for point in points:
        if point["panel"] == "openness" and point["openness"] > 0:
            settings.setdefault(point["name"], []).append(point)
    for axes, part in zip(figure.subplots(1, 2, sharey=True), PARTS, strict=True):
        axes.axhline(1, color=_BLACK, linewidth=1.4)
        axes.annotate(
            DENSE, (0.01, 1), xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points",
            fontsize="small",
        )  # fmt: skip
        for (setting, own), style in zip(settings.items(), _SETTING_STYLES, strict=False):
            colour = style["color"]
            axes.plot([p["openness"] for p in own], [_relative(p, OURS, part) for p in own], **style, markersize=5)
            for name, (symbol, _) in _MARKED.items():
                marked = [p for p in own if f"{name} {part}" in p["ms"]]
                axes.plot(
                    [p["openness"] for p in marked], [_relative(p, name, part) for p in marked], color=colour,
                    marker=symbol, markeredgecolor=_BLACK, markersize=8, linestyle="none",
                )  # fmt: skip
            crossed = even.get(setting, {}).get(part)
            if isinstance(crossed, float):
                axes.plot([crossed], [1], color=colour, marker="X", markersize=11, markeredgecolor=_BLACK, zorder=4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("openness: share of (step, unit) pairs that are open")
        said = ", ".join(_faster(own, even.get(setting, {}).get(part)) for setting, own in settings.items())
        axes.set_title(f"{part.capitalize()}: faster than {DENSE}\n{said}", fontsize="medium")
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel(f"time / time of {DENSE} in the same run")
    lines = [
        Line2D([], [], **style, label=_setting(own))
        for own, style in zip(settings.values(), _SETTING_STYLES, strict=False)
    ]
    symbols = [
        Line2D([], [], color="white", marker=symbol, markeredgecolor=_BLACK, linestyle="none", markersize=8, label=text)
        for symbol, text in (*_MARKED.values(), ("X", "break-even"))
    ]
    figure.legend(handles=lines + symbols, loc="outside upper center", ncols=3, fontsize="small")
    return figure


def _faster(points: list[Point], even: float | str | None) -> str:
    times = "shared" if points[0]["sizes"]["shared"] else "own"
    where = {"never": "everywhere", "always": "nowhere", None: "not yet known"}
    return f"{f'below {even:.0%} open' if isinstance(even, float) else where[even]} ({times} times)"


def _setting(points: list[Point]) -> str:
    sizes = Sizes(**points[0]["sizes"])
    times = "shared" if sizes.shared else "own"
    forward, train = (statistics.median(p["ms"][f"{DENSE} {part}"] for p in points) for part in PARTS)
    return (
        f"{sizes.batch} x {sizes.steps} steps, {sizes.hidden} units, {times} times\n"
        f"({DENSE}: {forward:.3g} ms forward, {train:.3g} ms train)"
    )


def _relative(point: Point, name: str, part: str) -> float:
    ratio: float = point["ms"][f"{name} {part}"] / point["ms"][f"{DENSE} {part}"]
    return ratio


def _scaling(points: list[Point], content: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(10, 8), layout="constrained")
    for axes, (panel, unit) in zip(figure.subplots(2, 2).flat, _PANELS.items(), strict=True):
        own = [point for point in points if point["panel"] == panel]
        for model, (colour, marker) in _MODEL_STYLES.items():
            for part in PARTS:
                there = [point for point in own if f"{model} {part}" in point["ms"]]
                axes.plot(
                    [point["value"] for point in there], [point["ms"][f"{model} {part}"] for point in there],
                    color=colour, marker=marker, linestyle=_PART_DASHES[part], markersize=4,
                    markerfacecolor="white" if part == "forward" else colour, label=f"{_label(model)}, {part}",
                )  # fmt: skip
        axes.set_xscale("log", base=10 if panel == "steps" else 2)
        axes.set_yscale("log")
        if panel != "steps":
            axes.set_xticks([point["value"] for point in own])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(unit)
        axes.set_ylabel("time (ms)")
        fixed = _FIXED[panel].format(**own[0]["sizes"]) if own else "not measured"
        axes.set_title(f"{_gains(own, panel)} ({fixed})", fontsize="medium")
        axes.grid(alpha=0.25)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, title="at ratio_on 0.05", loc="outside upper center", ncols=4, fontsize="small")
    return figure


def _gains(points: list[Point], panel: str) -> str:
    """Say how training compares at both ends of a sweep."""
    compared = [point for point in points if f"{DENSE} train" in point["ms"]]
    if not compared:
        return f"Over {_PANELS[panel]}"
    first, last = compared[0], compared[-1]
    gains = [1 / _relative(point, OURS, "train") for point in (first, last)]
    return (
        f"Training: {gains[0]:.2g}x the speed of {DENSE} at {first['value']:,},\n"
        f"{gains[1]:.2g}x at {last['value']:,} {_PANELS[panel]}"
    )


def _memory(points: list[Point], content: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    sweep = [point for point in points if "limit_mib" not in point]
    extra: dict[str, dict[int, float]] = {}
    for model, (colour, marker) in _MODEL_STYLES.items():
        # A tiny step can fit in what was allocated before, and a log scale has no zero.
        extra[model] = {
            p["sizes"]["steps"]: p["extra_mib"] for p in sweep if p["model"] == model and p["extra_mib"] > 0
        }
        left.plot(extra[model].keys(), extra[model].values(), color=colour, marker=marker, label=_label(model))
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("steps")
    left.set_ylabel("extra peak memory of a training step (MiB)")
    left.grid(alpha=0.25)
    left.legend(fontsize="small")
    shared = sorted(extra[DENSE].keys() & extra[OURS].keys())
    if shared:
        ratio = extra[DENSE][shared[-1]] / extra[OURS][shared[-1]]
        batch, units = (sweep[0]["sizes"][name] for name in ("batch", "hidden"))
        left.set_title(
            f"{DENSE} takes {ratio:.2g}x the memory at {shared[-1]:,} steps\n(batch {batch}, {units} units, 5 % open)",
            fontsize="medium",
        )
    for point in (point for point in points if "limit_mib" in point):
        _longest(right, point)
    return figure


def _longest(axes: Any, point: Point) -> None:
    """Show what the longest sequence holds in memory, against what it may."""
    before, extra, limit = point["before_mib"], point["extra_mib"], point["limit_mib"]
    axes.bar([0], [before], color="lightgrey", edgecolor=_BLACK, width=0.5, label="before: Python, torch, input")
    axes.bar([0], [extra], bottom=[before], color=_VERMILION, edgecolor=_BLACK, width=0.5, label="training step")
    axes.axhline(limit, color=_BLACK, linestyle="--", linewidth=1.2, label=f"limit, {limit:,} MiB")
    axes.set_xlim(-0.7, 0.7)
    axes.set_xticks([])
    axes.set_ylim(0, 1.35 * max(limit, before + extra))
    axes.set_ylabel("total resident peak (MiB)")
    steps, units = (point["sizes"][name] for name in ("steps", "hidden"))
    axes.set_title(
        f"One sequence of {steps:,} steps, {units} units,\ntrains in {point['peak_mib']:,.0f} MiB in all",
        fontsize="medium",
    )
    axes.legend(fontsize="small", loc="upper center")


def _label(model: str) -> str:
    return "Phased LSTM" if model == OURS else model


def _footnote(content: dict[str, Any]) -> str:
    settings = content.get("settings", {})
    threads = f", threads: {settings['threads']} unless said" if "threads" in settings else ""
    return f"{content.get('machine', '')}{threads}" + (": tiny sizes, no results" if settings.get("quick") else "")


if __name__ == "__main__":
    main()
