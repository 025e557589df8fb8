"""Runs of `phased-lstm train`: a network from tables of measurements and labels, and what to do with it after."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import __version__
from ..data.encoders import Standardizer
from ..data.events import EventBatch
from ..data.storage import ChosenSequences
from ..errors import DataError, RunError, missing_extra
from ..models import NetworkConfig, SequenceNetwork, fitted_channels, gate_rows, suggested_ratio
from ._matching import say_unmeasured
from .checkpoints import save_tensors
from .fitting import MONITORS, FitConfig, SequenceTask, figures_of, monitor_fault, monitors_of, predict
from .loop import train
from .ranks import Ranks
from .runs import CONFIG, EVALUATION, MODEL_FOLDER, RESULTS, TRACE, RunFolder
from .saved_runs import load_run, run_identity, weights_fingerprint
from .saved_runs import saved as saved_run
from .splits import split_rows
from .table_config import TrainConfig
from .table_data import LabelledSequences, TableInfo, read_labelled

COLUMNS = (
    "step", "epoch", "train_loss", *(f"valid_{name}" for name in MONITORS), "learning_rate", "seconds",
)  # fmt: skip


class Parts(NamedTuple):
    """Numbers of the sequences for training, validation and test among all."""

    train: Tensor
    valid: Tensor
    test: Tensor


class Evaluated(NamedTuple):
    """A part of the data with what the network says of it.

    Attributes:
        figures: loss and metrics.
        outputs: (N, C) probabilities, or (N, 1) predictions.
        labels: (N,) class numbers, or (N, 1).
    """

    figures: dict[str, float]
    outputs: Tensor
    labels: Tensor


class _LoggedRun(RunFolder):
    """A run folder that logs for TensorBoard too."""

    def __init__(self, path: Path, tensorboard: bool, identity: str) -> None:
        super().__init__(path, COLUMNS, identity)
        self._tensorboard = tensorboard
        self._writer: Any = None

    def log(self, row: Any) -> None:
        super().log(row)
        if not self._tensorboard:
            return
        if self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise missing_extra("train", "tensorboard") from error
            self._writer = SummaryWriter(str(self.file("tensorboard")), purge_step=int(row["step"]))
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name.replace("_", "/", 1), value, int(row["step"]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        super().close()


def train_tables(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    announce: Callable[[str], object] = lambda line: None,
) -> dict[str, Any] | None:
    """Train a network, evaluate it, and save it in the run's folder.

    Called by each process of a process group, all train together and the first writes.

    Args:
        config: the options; when resuming, those of the run.
        out: the run's folder.
        resume: go on from its checkpoint.
        overwrite: replace a run that is there.
        progress: show a progress bar.
        announce: is given a line on each thing that was found out of the tables, before the first step.

    Returns:
        The results, also written to results.json; None when interrupted.

    Raises:
        DataError: a table is bad.
        RunError: the folder, its checkpoint or an option does not serve.
    """
    config.require_tables()
    if config.threads:
        torch.set_num_threads(config.threads)
    ranks = Ranks()
    saved = saved_run(out)[1] if resume else None
    sequences = _read(config, ranks, out)
    if saved is not None and saved != sequences.info:
        raise RunError(f"{config.data} and {config.labels} are not what the run in {out} was begun with")
    config.check_use(sequences.info.task)
    if ranks.leads:
        for line in describe_tables(config, sequences):
            announce(line)
    try:
        parts = split(config, sequences)
        task = _task(config, sequences, parts, ranks)
    except ValueError as error:
        raise RunError(str(error)) from error
    folder = _LoggedRun(out, config.tensorboard, run_identity(config, sequences.info))
    if ranks.leads:
        content = {"train": config.to_json(), "tables": dataclasses.asdict(sequences.info)}
        if resume:
            folder.lock()
            folder.write_json(CONFIG, content)
        else:
            folder.start(content, overwrite=overwrite)
    try:
        finished = train(
            task, folder, steps=task.steps, test_every=task.epoch_steps, checkpoint_every=config.checkpoint_every,
            resume=resume, progress=progress, label=config.cell,
        )  # fmt: skip
        return _finish(config, sequences, parts, task, folder) if finished else None
    except DataError:
        raise
    except ValueError as error:
        # Such as figures of outputs that are not finite.
        raise RunError(f"{error}; the run so far is in {out}") from error
    finally:
        folder.close()


def describe_tables(config: TrainConfig, sequences: LabelledSequences) -> list[str]:
    """Return what was found out of the tables: task, classes and channels."""
    info, labels = sequences.info, sequences.labels
    if info.task == "classification":
        counts = torch.bincount(labels, minlength=len(info.classes)).tolist()
        pairs = [f"{name} ({count})" for name, count in zip(info.classes, counts, strict=True)]
        what = f"{len(pairs)} classes and their sequences: {_first(pairs)}"
    else:
        what = f"{len(labels)} numbers from {float(labels.min()):g} to {float(labels.max()):g}"
    lines = [f"{info.task} of {config.target}, {what}", f"{len(info.channels)} channels: {_first(info.channels)}"]
    return [*lines, f"{len(info.static)} static features: {_first(info.static)}"] if info.static else lines


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _read(config: TrainConfig, ranks: Ranks, out: Path) -> LabelledSequences:
    if not config.on_disk:
        return read_labelled(config, config.data, config.labels, ranks=ranks)
    # Beside the run, where there is room for results: the system's folder for temporary files may be memory.
    folder = next(path for path in (out, *out.absolute().parents) if path.is_dir())
    try:
        return read_labelled(config, config.data, config.labels, ranks=ranks, folder=folder)
    except OSError as error:
        raise RunError(f"the measurements cannot be kept in a temporary file in {folder}: {error}") from error


def split(config: TrainConfig, sequences: LabelledSequences) -> Parts:
    """Draw the parts, a function of the seed and the labels alone."""
    classes = sequences.labels if sequences.info.task == "classification" else None
    rest, test = split_rows(len(sequences.labels), config.test_fraction, config.seed, classes)
    # Of what is left, so that the part is that of all sequences.
    fraction = config.validation_fraction / (1.0 - config.test_fraction)
    chosen, valid = split_rows(len(rest), fraction, config.seed + 1, None if classes is None else classes[rest])
    return Parts(rest[chosen], rest[valid], test)


def _task(config: TrainConfig, sequences: LabelledSequences, parts: Parts, ranks: Ranks) -> SequenceTask:
    info = sequences.info
    if config.monitor not in monitors_of(info.task):
        raise RunError(
            f"--monitor should be one of {', '.join(monitors_of(info.task))} for a {info.task}, got {config.monitor}"
        )
    training, members = sequences.part(parts.train)
    lengths = sequences.lengths[parts.train]
    labels = sequences.labels[parts.train]
    torch.manual_seed(config.seed)
    network = SequenceNetwork(network_config(config, info, lengths))
    _fit(network, training, members, lengths, labels, ranks, config.time)
    fault = monitor_fault(network, config.monitor, sequences.labels[parts.valid]) if len(parts.valid) else None
    if fault is not None:
        raise RunError(
            f"--monitor {config.monitor} {fault}; choose another --monitor, or another part with --seed or "
            f"--validation-fraction"
        )
    weight = None
    if info.task == "classification" and config.class_weight == "balanced":
        counts = torch.bincount(labels, minlength=len(info.classes))
        weight = len(labels) / (len(info.classes) * counts.clamp(min=1).float())
    fit = FitConfig(**{item.name: getattr(config, item.name) for item in dataclasses.fields(FitConfig)})
    valid = sequences.part(parts.valid)[0] if len(parts.valid) else None
    shared = None if ranks.size == 1 else members
    return SequenceTask(network, training, valid, fit, class_weight=weight, members=shared, lengths=lengths)


def network_config(config: TrainConfig, info: TableInfo, lengths: Tensor) -> NetworkConfig:
    """What the network is made of, by the options and the training part's lengths."""
    names = {item.name for item in dataclasses.fields(NetworkConfig)}
    entries: dict[str, Any] = {name: value for name, value in config.to_json().items() if name in names}
    return NetworkConfig(
        **entries | {
            "channels": info.channels, "outputs": len(info.classes) or 1, "target": info.task,
            "classes": info.classes, "static": info.static,
            "ratio_on": suggested_ratio(lengths) if config.ratio_on is None else config.ratio_on,
        }
    )  # fmt: skip


def _fit(
    network: SequenceNetwork,
    training: ChosenSequences,
    members: Tensor,
    lengths: Tensor,
    labels: Tensor,
    ranks: Ranks,
    time: str,
) -> None:
    """Fit scale and gates to the training part of all ranks, of which few sequences are in memory at a time."""
    if network.static_scale is not None:
        network.static_scale.fit_(torch.cat([part for part in ranks.gather(training.static) if part is not None]))
    if network.target_scale is not None:
        try:
            network.target_scale.fit_(labels)
        except ValueError as error:
            raise ValueError("targets are too large for a deviation: give them in another unit") from error
    if ranks.size == 1:
        network.scale.fit_(training.chunks())
    else:
        _fit_together(network.scale, training, ranks)
    chosen = gate_rows(len(lengths), int(lengths.sum()))
    mine = torch.isin(members, chosen).nonzero().flatten()
    sample = EventBatch.cat(part for part in ranks.gather(training[mine].events) if len(part))
    if not any(bool((stamps != stamps[:1]).any()) for _, stamps in sample):
        raise ValueError(
            f"{time} is the same throughout each sequence of the training part: name the column that tells when a row "
            f"was measured (--time), and see that ids name sequences rather than rows (--id)"
        )
    network.fit_times_(sample)


def _fit_together(scale: Standardizer, training: ChosenSequences, ranks: Ranks) -> None:
    """Fit to the values of all ranks by their sums, of which the second is about the common mean."""
    count, total = (torch.zeros(len(scale.mean), dtype=torch.float64) for _ in range(2))
    infinite = False
    for chunk in training.chunks():
        values = chunk.values.double()
        infinite = infinite or bool(values.isinf().any())
        count += (~values.isnan()).sum(dim=0)
        total += values.nan_to_num(0.0).sum(dim=0)
    if ranks.any(infinite):
        raise ValueError("values are infinite")
    count = ranks.total(count)
    if not bool(count.any()):
        raise ValueError("there is no measured value to fit to: all are NaN")
    mean = ranks.total(total) / count.clamp(min=1)
    squares = torch.zeros_like(mean)
    for chunk in training.chunks():
        squares += (chunk.values.double() - mean).nan_to_num(0.0).square().sum(dim=0)
    std = (ranks.total(squares) / count.clamp(min=1)).sqrt()
    scale.mean.copy_(mean)
    scale.std.copy_(torch.where(std <= 1e-12 * mean.abs(), 1.0, std))


def _finish(
    config: TrainConfig, sequences: LabelledSequences, parts: Parts, task: SequenceTask, folder: RunFolder
) -> dict[str, Any]:
    """Evaluate with the best weights, and write model, results and what pictures are made of."""
    task.restore_best()
    task.model.eval()
    results: dict[str, Any] = {"sequences": {name: len(rows) for name, rows in parts._asdict().items()}}
    results["stopped_early"] = task.finished
    last = None
    for name, rows in parts._asdict().items():
        if len(rows):
            last = evaluate_all(task, sequences.part(rows)[0])
            results[name] = last.figures
    training = sequences.part(parts.train)[0]
    if not task.ranks.leads:
        return results
    results["parameters"] = sum(parameter.numel() for parameter in task.model.parameters())
    results["versions"] = {"phased_lstm": __version__, "torch": torch.__version__, "python": platform.python_version()}
    task.model.save(folder.file(MODEL_FOLDER))
    chosen = training[gate_rows(len(training), training.num_events)].events
    save_tensors(folder.file(TRACE), {"times": chosen.times, "offsets": chosen.offsets}, {"run": folder.identity})
    if last is not None:
        save_tensors(folder.file(EVALUATION), {"outputs": last.outputs, "labels": last.labels}, {})
    results["fingerprints"] = {"run": folder.identity, "model": weights_fingerprint(folder.path)}
    # Last: they say that all of it is there.
    folder.write_json(RESULTS, results)
    return results


def evaluate_all(task: SequenceTask, data: ChosenSequences) -> Evaluated:
    """Evaluate a part of which every rank holds its share."""
    outputs = predict(task.model, data, task.config.batch_size)
    gathered = task.ranks.gather((outputs, data.labels))
    return _evaluated(task.model, *(torch.cat(parts) for parts in zip(*gathered, strict=True)))


def _evaluated(network: SequenceNetwork, outputs: Tensor, labels: Tensor) -> Evaluated:
    return Evaluated(figures_of(network, outputs, labels), answers(network, outputs), labels)


def answers(network: SequenceNetwork, outputs: Tensor) -> Tensor:
    """Outputs as probabilities, or as predictions in the unit of the target; float64."""
    if network.target_scale is None:
        return outputs.double().softmax(dim=1)
    return network.target_scale.inverse(outputs.double())


def evaluate_tables(
    run: Path, data: str, labels: str, lenience: Mapping[str, Any] = MappingProxyType({})
) -> tuple[SequenceNetwork, Evaluated]:
    """Evaluate a run's network on other tables.

    Args:
        run: folder of a finished run.
        data: table of measurements.
        labels: table of labels.
        lenience: what is no error, by option, where it is to be other than in the run's configuration.

    Raises:
        DataError: a table is bad, or has a class that training did not have.
        RunError: there is no finished run, or its outputs are not finite.
    """
    config, info, network = load_run(run)
    config = dataclasses.replace(config, **lenience)
    sequences = read_labelled(config, data, labels, info)
    say_unmeasured(data, info.channels, sequences.measured | ~fitted_channels(network), trained=True)
    outputs = predict(network, sequences.data, config.batch_size)
    strange = ~outputs.isfinite().all(dim=1)
    if strange.any():
        raise RunError(
            f"the outputs of the network in {run} are not finite for {int(strange.sum())} of {len(outputs)} sequences "
            f"of {data}: look for values far beyond those of training"
        )
    return network, _evaluated(network, outputs, sequences.labels)
