"""What the gates of a trained network do: periods, openness, units that never open."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.events import EventBatch
from ..errors import RunError
from .checkpoints import load_tensors
from .runs import LOG, RESULTS, TRACE, read_json, read_log
from .saved_runs import load_run, run_identity


class GateReport(NamedTuple):
    """One gate over the times of the training part.

    Attributes:
        name: of the layer and direction.
        period: (H,) in the unit of the times.
        fraction: (H,) share of the steps at which a unit is open.
    """

    name: str
    period: Tensor
    fraction: Tensor


@torch.no_grad()
def gate_reports(run: Path) -> list[GateReport]:
    """Return a report of each gate of a finished run.

    Raises:
        RunError: there is no finished run, or a damaged one.
    """
    config, info, network = load_run(run)
    tensors, metadata = load_tensors(run / TRACE)
    # Traces of earlier versions do not name their run.
    if metadata.get("run", identity := run_identity(config, info)) != identity:
        raise RunError(f"{run / TRACE} is of another run: put the run's own file back")
    try:
        times, offsets = tensors["times"], tensors["offsets"]
        sample = EventBatch(torch.zeros(len(times), 1), times, offsets)
    except (KeyError, ValueError, TypeError) as error:
        raise RunError(f"{run / TRACE} is damaged: {error}") from error
    _, padded, lengths = sample.padded()
    rnn = network.rnn
    names = [
        f"layer {layer}{way}" for layer in range(rnn.num_layers) for way in ("", " reverse")[: 1 + rnn.bidirectional]
    ]
    return [
        GateReport(name, gate.period, gate.openness(padded, lengths).fraction)
        for name, gate in zip(names, rnn.gates, strict=True)
    ]


def describe(run: Path) -> str:
    """Return a run's network, gates and figures as text.

    Raises:
        RunError: there is no finished run, or a damaged one.
    """
    config, info, network = load_run(run)
    made = network.config
    results = read_json(run / RESULTS)
    rows = read_log(run, ("step", "train_loss"))
    if not rows:
        raise RunError(f"{run / LOG} is damaged: it has no steps")
    unit = info.time_unit or "of the times"
    parameters = sum(parameter.numel() for parameter in network.parameters())
    lines = [
        f"{made.cell}, {made.num_layers} x {made.hidden_size} units, {parameters} parameters, "
        f"open ratio {made.ratio_on:g}",
        f"{info.task} of {config.target}" + (f": {', '.join(info.classes)}" if info.classes else ""),
        f"{len(info.channels)} channels: {_shortened(info.channels)}",
    ]
    if info.static:
        lines.append(f"static features: {_shortened(info.static)}")
    for report in gate_reports(run):
        lines += ["", *_gate_lines(report, unit)]
    lines += ["", f"{len(rows)} steps, see {LOG}: training loss {float(rows[-1]['train_loss']):.4g}"]
    try:
        for part in ("train", "valid", "test"):
            if part in results:
                shown = ", ".join(f"{name} {value:.4f}" for name, value in results[part].items())
                lines.append(f"{part}, {results['sequences'][part]} sequences: {shown}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{run / RESULTS} is damaged: {error!r}") from error
    return "\n".join(lines)


def _gate_lines(report: GateReport, unit: str) -> list[str]:
    period, fraction = report.period.double(), report.fraction
    closed = (fraction == 0).nonzero().flatten().tolist()
    low, middle, high = torch.quantile(period, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist()
    which = f" ({', '.join(map(str, closed[:20]))})" if closed else ""
    lines = [
        f"{report.name}: periods {low:.3g} to {high:.3g}, median {middle:.3g} (unit {unit})",
        f"  open at {float(fraction.mean()):.1%} of steps, a unit at {float(fraction.min()):.1%} to "
        f"{float(fraction.max()):.1%}; never open: {len(closed)} units{which}",
    ]
    edges = torch.logspace(period.min().log10(), period.max().log10() + 1e-9, 9, dtype=torch.float64)
    counts = torch.bincount((torch.bucketize(period, edges) - 1).clamp(0, 7), minlength=8).tolist()
    for start, stop, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts, strict=True):
        bar = "#" * max(int(count > 0), round(40 * count / max(counts)))
        lines.append(f"  {start:10.3g} to {stop:<10.3g} {count:5d} {bar}".rstrip())
    return lines


def _shortened(names: tuple[str, ...]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
