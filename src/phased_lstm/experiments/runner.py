"""Runs an experiment: variants times seeds, each in a folder of its own that survives being killed, and a summary."""

from __future__ import annotations

import math
import platform
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import RunError
from ..ops import native
from ..training.arithmetic import fair_arithmetic
from ..training.checkpoints import save_model
from ..training.loop import train
from ..training.runs import CHECKPOINT, CONFIG, MODEL, RESULTS, RunFolder, identity_of, read_json, read_log
from .base import Experiment, ExperimentTask, Metric, Schedule, Variant

SUMMARY = "summary.json"
# What a title says of --quick is not about a full run.
_QUICK_NOTE = re.compile(r" \(--quick: [^)]*\)")
TIMING = "timing.json"
_DEVICES = "devices.json"


def run(
    experiment: Experiment,
    out: Path,
    *,
    quick: bool = False,
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> bool:
    """Train what is not trained yet, seed by seed, so that every variant has one before any has two.

    Args:
        experiment: what to run.
        out: its folder; a run's is `out/VARIANT/seedK`. Finished runs stay as they are, others go on.
        quick: the small variants that show the trend.
        variants: names of those to run; None for all.
        seeds: None for the experiment's.
        steps: training steps instead of the variants' own; fewer than the protocol's are named in the summary.
        device: where, as torch names it. Native kernels are for the CPU; elsewhere a gate takes the reference backend.
        progress: show progress bars.

    Returns:
        True when all is trained, False when interrupted.

    Raises:
        RunError: an unknown variant, a folder that cannot be used, or a device that is not there.
        DataError: data are missing.
    """
    where = _device(device)
    schedule = experiment.quick_schedule if quick else experiment.schedule
    with fair_arithmetic():
        for seed in schedule.seeds if seeds is None else seeds:
            for variant in _chosen(experiment, quick, variants):
                if not _run_one(experiment, variant, seed, out, schedule, steps, where, progress):
                    return False
    return True


def time_steps(
    experiment: Experiment,
    out: Path,
    *,
    quick: bool,
    variants: Sequence[str] | None,
    rounds: int,
    device: str = "cpu",
) -> None:
    """Time a training step of every variant in turns, in this process, and write the medians to `out/timing.json`.

    Args:
        experiment: what to time.
        out: folder of the file.
        quick: the small variants.
        variants: names of those to time; None for all.
        rounds: how often each, after a step to warm up.
        device: as of `run`.

    Raises:
        RunError: an unknown variant, or a device that is not there.
    """
    where = _device(device)
    chosen = _chosen(experiment, quick, variants)
    tasks = [experiment.task(variant, 0) for variant in chosen]
    for task in tasks:
        task.to(where)
    seconds: list[list[float]] = [[] for _ in chosen]
    with fair_arithmetic():
        for round_ in range(rounds + 1):
            for task, measured in zip(tasks, seconds, strict=True):
                started = time.perf_counter()
                task.train_step(round_)
                measured.append(time.perf_counter() - started)
    schedule = experiment.quick_schedule if quick else experiment.schedule
    rows = {
        # The first step warms up.
        variant.name: {
            "seconds_per_step": statistics.median(measured[1:]),
            "seconds_per_epoch": statistics.median(measured[1:]) * schedule.epoch_steps,
        }
        for variant, measured in zip(chosen, seconds, strict=True)
    }
    folder = RunFolder(out, ("step",))
    out.mkdir(parents=True, exist_ok=True)
    settings = {"rounds": rounds, "threads": torch.get_num_threads(), "device": _name(where)}
    folder.write_json(TIMING, settings | {"rows": rows})


def summarise(
    experiment: Experiment, out: Path, results: Path, *, quick: bool = False, keep: bool = False
) -> dict[str, Any]:
    """Gather finished runs under `out` into `results/summary.json`: every seed, mean and standard deviation.

    Args:
        experiment: what was run.
        out: folder of the runs.
        results: folder of the summary.
        quick: whether the quick variants were run.
        keep: whether to add to the runs of the summary that `results` has. Of two runs of one seed the longer one is
            taken, and of runs equally long that in `out`. Its timing is kept, but for rows measured anew.

    Returns:
        The summary: "experiment", "title", "metric", "rows" (for each variant with a finished run its settings,
        steps, protocol_steps, protocol_seeds, runs, mean, sd, curves, published) and "timing", if measured.

    Raises:
        RunError: no run is finished, or the summary to keep cannot be (see `kept_summary`), or its timing.
    """
    schedule = experiment.quick_schedule if quick else experiment.schedule
    kept = kept_summary(experiment, results, quick=quick) if keep else {}
    kept_rows = {row["variant"]: row for row in kept.get("rows", ())}
    rows = [
        row
        for variant in experiment.variants(quick)
        if (row := _row(experiment, variant, out / variant.name, schedule, kept_rows.get(variant.name))) is not None
    ]
    if quick:
        # What was published is not about the small variants.
        rows = [row | {"published": ""} for row in rows]
    if not rows:
        raise RunError(f"{out} has no finished run of {experiment.name}")
    summary: dict[str, Any] = {
        "experiment": experiment.name,
        "title": experiment.title if quick else _QUICK_NOTE.sub("", experiment.title),
        "command": f"phased-lstm experiment {experiment.name}" + (" --quick" if quick else ""),
        "metric": vars(experiment.metric),
        "epoch_steps": schedule.epoch_steps,
        "rows": rows,
    }
    timing = _timing(out, kept.get("timing"))
    if timing is not None:
        summary["timing"] = timing
    results.mkdir(parents=True, exist_ok=True)
    RunFolder(results, ("step",)).write_json(SUMMARY, summary)
    return summary


def kept_summary(experiment: Experiment, results: Path, *, quick: bool = False) -> dict[str, Any]:
    """Read the summary in `results`, to add runs to it.

    Raises:
        RunError: there is none, it is damaged or of another experiment, or it has runs of a variant that the
            experiment lacks or that has other settings now.
    """
    path = results / SUMMARY
    if not path.exists():
        raise RunError(
            f"--keep adds to the summary in --results, and {path} does not exist: leave --keep out to begin it"
        )
    kept: dict[str, Any] = read_json(path)
    remedy = "leave --keep out, or choose another --results; --quick runs and full ones do not go together"
    settings = {variant.name: dict(variant.settings) for variant in experiment.variants(quick)}
    try:
        if kept["experiment"] != experiment.name:
            raise RunError(f"{path} is of {kept['experiment']}, not of {experiment.name}: {remedy}")
        for row in kept["rows"]:
            name = row["variant"]
            if name not in settings:
                raise RunError(f"{path} has runs of {name}, which is no variant of {experiment.name}: {remedy}")
            if row["settings"] != settings[name]:
                raise RunError(f"{path} has runs of {name} with other settings than it has now: {remedy}")
            for run, curve in zip(row["runs"], row["curves"], strict=True):
                numbers = (run["seed"], run["steps"], run["seconds_per_step"], run[experiment.metric.key])
                if not all(isinstance(value, (int, float)) for value in (*numbers, *curve["step"])):
                    raise TypeError("a run without its figures")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is damaged, or no summary ({error}): {remedy}") from error
    return kept


def table(summary: Mapping[str, Any]) -> str:
    """Format a summary as a Markdown table, a row a variant."""
    metric = Metric(**summary["metric"])
    timing = summary.get("timing", {}).get("rows", {})
    lines = [
        f"| variant | published | ours: {metric.label} | seeds | steps | openness | updates per unit | s / epoch |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in summary["rows"]:
        mean = row["mean"]
        short = "" if row["steps"] >= row["protocol_steps"] else f" of {row['protocol_steps']}"
        seeds = f"{len(row['runs'])}" + (
            "" if len(row["runs"]) >= row["protocol_seeds"] else f" of {row['protocol_seeds']}"
        )
        value = metric.show(mean[metric.key])
        if len(row["runs"]) > 1:
            value += " ± " + metric.show(row["sd"][metric.key]).replace(" %", "")
        cells = [
            row["variant"], row["published"], value, seeds, f"{row['steps']}{short}",
            f"{100 * mean['openness']:.1f} %" if "openness" in mean else "",
            f"{mean['updates_per_unit']:.1f}" if "updates_per_unit" in mean else "",
            f"{timing[row['variant']]['seconds_per_epoch']:.2f}" if row["variant"] in timing else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _chosen(experiment: Experiment, quick: bool, names: Sequence[str] | None) -> list[Variant]:
    variants = experiment.variants(quick)
    known = [variant.name for variant in variants]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise RunError(f"{experiment.name} has no variant {', '.join(unknown)}; it has {', '.join(known)}")
    return [variant for variant in variants if names is None or variant.name in names]


def _run_one(
    experiment: Experiment,
    variant: Variant,
    seed: int,
    out: Path,
    schedule: Schedule,
    steps: int | None,
    device: torch.device,
    progress: bool,
) -> bool:
    wanted = variant.steps if steps is None else steps
    if variant.fixed_length and wanted != variant.steps:
        raise RunError(
            f"{variant.name} lowers its learning rate over {variant.steps} steps: leave --steps out, or choose others "
            f"with --variants"
        )
    config = {
        "experiment": experiment.name, "variant": variant.name, "seed": seed, "settings": dict(variant.settings),
    }  # fmt: skip
    folder = RunFolder(out / variant.name / f"seed{seed}", experiment.columns, identity_of(config))
    exists = folder.file(CONFIG).exists()
    if exists and read_json(folder.file(CONFIG)) != config:
        raise RunError(f"{folder.path} holds a run with other settings; remove it, or choose another --out")
    if folder.file(RESULTS).exists() and _steps(folder.path) >= wanted:
        return True
    task = experiment.task(variant, seed)
    task.to(device)
    # Those on which the run was trained; to evaluate one that is, is not to train it.
    devices: list[str] = _devices(folder.file(_DEVICES))
    if not exists or len(read_log(folder.path)) < wanted:
        devices = sorted({*devices, _name(device)})
    if exists:
        folder.lock()
    else:
        folder.start(config, overwrite=False)
    try:
        folder.write_json(_DEVICES, {"devices": devices})
        finished = train(
            task, folder, steps=wanted, test_every=schedule.test_every, checkpoint_every=schedule.checkpoint_every,
            resume=exists, progress=progress, label=f"{experiment.name} {variant.name} seed {seed}",
        )  # fmt: skip
        if finished:
            results = _results(task, folder, wanted, devices, device.type != "cpu")
            save_model(folder.file(MODEL), task.model, config)
            # Last: they say that all of it is there.
            folder.write_json(RESULTS, results)
            # It holds nothing that a reader of results needs, and is twice the model's size.
            if wanted >= variant.steps:
                folder.file(CHECKPOINT).unlink(missing_ok=True)
        return finished
    finally:
        folder.close()


def _steps(run: Path) -> int:
    """How many steps a finished run has."""
    steps = read_json(run / RESULTS).get("steps")
    if not isinstance(steps, int):
        raise RunError(f"{run / RESULTS} is damaged: it does not say the steps; remove {run} to run it again")
    return steps


def _seed(run: Path) -> int:
    number = run.name.removeprefix("seed")
    if not number.isdecimal():
        raise RunError(f"{run} should be called seed0, seed1, ...: move it elsewhere if it is no run of the experiment")
    return int(number)


def _devices(path: Path) -> list[str]:
    devices = read_json(path).get("devices") if path.exists() else []
    if not isinstance(devices, list) or not all(isinstance(name, str) for name in devices):
        raise RunError(f"{path} is damaged: it does not list devices; remove {path.parent} to run it again")
    return devices


def _results(task: ExperimentTask, folder: RunFolder, steps: int, devices: list[str], on_gpu: bool) -> dict[str, Any]:
    rows = read_log(folder.path)
    recent = rows[-100:]
    averages = {
        f"{name}_last_100": statistics.fmean(float(row[name]) for row in recent)
        for name in ("train_loss", "train_accuracy")
        if name in rows[0] and all(row[name] for row in recent)
    }
    return {
        "steps": steps,
        **averages,
        **task.finish(),
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
        "seconds_per_step": statistics.median(float(row["seconds"]) for row in rows),
        "threads": torch.get_num_threads(),
        "device": " and ".join(devices),
        "versions": {"phased_lstm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "backend": "torch" if on_gpu else native.missing() or f"native, {native.instruction_set()}",
    }


def _row(
    experiment: Experiment, variant: Variant, folder: Path, schedule: Schedule, kept: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    found = {} if kept is None else {r["seed"]: (r, c) for r, c in zip(kept["runs"], kept["curves"], strict=True)}
    for path in folder.glob(f"seed*/{RESULTS}"):
        steps = _steps(path.parent)
        run = {"seed": _seed(path.parent), "steps": steps} | read_json(path)
        if not isinstance(run.get(experiment.metric.key), (int, float)):
            raise RunError(f"{path} is damaged: it lacks {experiment.metric.key}; remove {path.parent} to run it again")
        if run["seed"] not in found or run["steps"] >= found[run["seed"]][0]["steps"]:
            found[run["seed"]] = (run, _curve(path.parent))
    if not found:
        return None
    runs, curves = zip(*(found[seed] for seed in sorted(found)), strict=True)
    numbers = [
        name
        for name in runs[0]
        if name not in ("seed", "steps") and all(isinstance(run.get(name), (int, float)) for run in runs)
    ]
    # Seconds on one device say nothing of those on another: the first run's counts.
    alike = [run for run in runs if run.get("device") == runs[0].get("device")]
    of = {name: alike if "seconds" in name else runs for name in numbers}
    means = {name: statistics.fmean(run[name] for run in of[name]) for name in numbers}
    deviations = {
        name: statistics.stdev(run[name] for run in of[name]) if len(of[name]) > 1 else math.nan for name in numbers
    }
    return {
        "variant": variant.name,
        "published": experiment.published.get(variant.name, ""),
        "settings": dict(variant.settings),
        "steps": min(run["steps"] for run in runs),
        "protocol_steps": variant.steps,
        "protocol_seeds": len(schedule.seeds),
        "runs": list(runs),
        "mean": means,
        "sd": {name: value for name, value in deviations.items() if not math.isnan(value)},
        "curves": list(curves),
    }


def _timing(out: Path, kept: dict[str, Any] | None) -> dict[str, Any] | None:
    if not (out / TIMING).exists():
        return kept
    timing: dict[str, Any] = read_json(out / TIMING)
    if kept is None or kept["rows"].keys() <= timing["rows"].keys():
        return timing
    if any(kept.get(name) != timing.get(name) for name in ("rounds", "threads", "device")):
        raise RunError(
            f"{out / TIMING} was measured on another device, with other rounds or threads than the timing to keep, and "
            f"lacks {', '.join(sorted(kept['rows'].keys() - timing['rows'].keys()))}: time these too, with --time, or "
            f"remove the file"
        )
    return timing | {"rows": kept["rows"] | timing["rows"]}


def _device(name: str) -> torch.device:
    kind, _, number = name.partition(":")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise RunError(f"--device should be cpu, cuda or cuda:N, got {name!r}")
    # By the text: torch.device keeps a number in eight bits.
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise RunError(f"--device {name} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _curve(folder: Path) -> dict[str, list[float]]:
    """Tested figures over the steps; training figures as means since the test before."""
    curve: dict[str, list[float]] = {}
    gathered: dict[str, list[float]] = {}
    for row in read_log(folder):
        values = {name: float(value) for name, value in row.items() if value}
        for name, value in values.items():
            gathered.setdefault(name, []).append(value)
        if any(name.startswith("test_") for name in values):
            for name, means in gathered.items():
                curve.setdefault(name, []).append(values["step"] if name == "step" else statistics.fmean(means))
            gathered.clear()
    curve.pop("learning_rate", None)
    return {name: values for name, values in curve.items() if len(values) == len(curve["step"])}
