"""Tables of measurements and labels as what a network is trained on, each rank holding its share."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data._spread import Spread
from ..data.events import EventBatch
from ..data.labels import Labels
from ..data.storage import ChosenSequences, StoredEvents
from ..data.tables import TableFormat, iter_sequences, scan_channels, scan_time_type
from ..errors import DataError
from ._matching import (
    as_classes,
    choose_task,
    labels_of,
    require_columns,
    require_match,
    say_shared_columns,
    say_unmeasured,
)
from .ranks import Ranks
from .table_config import TrainConfig


@dataclass(frozen=True)
class TableInfo:
    """What a trained network knows of its tables.

    Attributes:
        channels: the vocabulary.
        time_unit: unit of times that were timestamps, None of numbers.
        task: "classification" or "regression".
        classes: names of the classes.
        static: names of the static features.
        fingerprint: of the ids, lengths and targets, to know them again.
        time_type: type of the times, as `TableFormat` names it; empty in runs of older versions.
        double: whether values are read as float64, as float32 would lose what varies in a channel.
        double_static: whether static features are.
    """

    channels: tuple[str, ...]
    time_unit: str | None
    task: str
    classes: tuple[str, ...]
    static: tuple[str, ...]
    fingerprint: str = ""
    time_type: str = field(default="", compare=False)
    double: bool = field(default=False, compare=False)
    double_static: bool = field(default=False, compare=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return torch.float64 if self.double else torch.float32

    @property
    def static_dtype(self) -> torch.dtype:
        """Of the static features."""
        return torch.float64 if self.double_static else torch.float32


class Sequences(NamedTuple):
    """This rank's share of a table of measurements.

    Attributes:
        ids: of the N sequences.
        events: N sequences, values in the order of the channels.
        channels: names of the columns of values.
        time_unit: unit of times that were timestamps, None of numbers.
        measured: (F,) whether a channel has a value.
        left_out: whether the target was among the channels.
        double: whether the values are float64.
    """

    ids: tuple[str, ...]
    events: EventBatch | StoredEvents
    channels: tuple[str, ...]
    time_unit: str | None
    measured: Tensor
    left_out: bool
    double: bool


@dataclass(frozen=True)
class LabelledSequences:
    """The labelled sequences of all ranks, of which this one holds some.

    Attributes:
        data: this rank's sequences with labels, and static features if any.
        first: number of this rank's first sequence among all.
        lengths: (N,) of the sequences of all ranks.
        labels: (N,) class numbers or (N, 1) numbers, of all ranks.
        info: what they are.
        measured: (F,) whether a channel has a value in the table.
    """

    data: ChosenSequences
    first: int
    lengths: Tensor
    labels: Tensor
    info: TableInfo
    measured: Tensor

    def part(self, rows: Tensor) -> tuple[ChosenSequences, Tensor]:
        """Return this rank's share of some of the sequences, and each one's number among those rows.

        Args:
            rows: (M,) increasing numbers of sequences among all.
        """
        mine = ((rows >= self.first) & (rows < self.first + len(self.data))).nonzero().flatten()
        return self.data.subset(rows[mine] - self.first), mine


def table_format(config: TrainConfig, source: str, info: TableInfo | None = None) -> TableFormat:
    """What the columns of a table are, by the options, and as in training if `info` is given."""
    time_type, numbers = config.time_type, "accept"
    if info is not None and info.time_unit is not None:
        # Integers were timestamps in training only if the options said so.
        numbers = "error" if time_type is None else "accept"
        time_type = info.time_type or f"timestamp[{info.time_unit}]"
    elif info is not None and info.time_type and time_type is None:
        if info.time_type in ("int64", "float64"):
            numbers = "only"
        else:
            time_type, numbers = info.time_type, "error"
    features = config.features or None
    # A wide table may have more columns now; those of training are read.
    wide = info is not None and config.channel is None and features is None
    options: dict[str, Any] = {
        "id": config.id, "time": config.time, "value": config.value, "features": features, "time_type": time_type,
        "numbers": numbers,
        "unseen": config.unseen, "repeated": config.repeated, "empty": config.empty,
    }  # fmt: skip
    if config.channel is not None:
        options["channel"] = config.channel
    found = TableFormat.detect(source, **options)
    if wide and info is not None and found.channel is None:
        found = TableFormat.detect(source, **options | {"features": info.channels})
    # The target is no channel, unless an older version trained on it. Only now: a column of a long table may be called
    # as the target is.
    trained = info is not None and config.target in info.channels
    found = found if trained else dataclasses.replace(found, ignored=(config.target,))
    roles = [(found.id, "--id"), (found.time, "--time")]
    if found.channel is not None:
        roles += [(found.channel, "--channel"), (found.value, "--value")]
    else:
        role = "--features" if config.features else "a channel of training"
        roles += [(name, role) for name in found.features or ()]
    require_columns(source, roles)
    return found


def read_sequences(
    config: TrainConfig, source: str, info: TableInfo | None, ranks: Ranks | None = None, folder: Path | None = None
) -> Sequences:
    """Read a table of measurements, or this rank's share of it.

    Args:
        config: names of columns and what is an error.
        source: the table.
        info: whose channels are read; None: those that the table has.
        ranks: who reads; None: this process alone.
        folder: where the sequences are kept; None: in memory.

    Raises:
        DataError: naming the file and row; also where times are of another kind than in training.
        OSError: the folder is full.
    """
    format = table_format(config, source, info)
    left_out = False
    if info is None:
        every = scan_channels(source, dataclasses.replace(format, ignored=()))
        channels = tuple(name for name in every if name not in format.ignored)
        left_out = len(channels) < len(every)
        if not channels:
            raise DataError(f"{source} has no channel but {config.target}, the target: there is nothing to read")
    else:
        channels = info.channels
    share = None if ranks is None or ranks.size == 1 else (ranks.rank, ranks.size)
    ids: list[str] = []
    units: list[str | None] = []
    measured = torch.zeros(len(channels), dtype=torch.bool)
    spread = Spread(len(channels)) if info is None else None

    def parts(dtype: torch.dtype) -> Iterator[EventBatch]:
        ids.clear()
        units.clear()
        for part in iter_sequences(source, format, channels=channels, dtype=dtype, share=share, spread=spread):
            ids.extend(part.ids)
            units.append(part.time_unit)
            measured.logical_or_(~part.events.values.isnan().all(dim=0))
            yield part.events
        if not units:
            if share is None:
                raise DataError(f"{source}: the table has no sequences")
            yield EventBatch(
                torch.zeros(0, len(channels), dtype=dtype),
                torch.zeros(0, dtype=torch.int64),
                torch.zeros(1, dtype=torch.int64),
            )

    def read(dtype: torch.dtype) -> EventBatch | StoredEvents:
        return EventBatch.cat(parts(dtype)) if folder is None else StoredEvents(parts(dtype), folder)

    events = read(torch.float32 if info is None else info.dtype)
    double = info is not None and info.double
    if spread is not None:
        # All ranks read in one type.
        every_rank = Spread(len(channels))
        every_rank.join([spread.moments] if ranks is None else ranks.gather(spread.moments))
        double = bool(every_rank.lossy())
        if double:
            spread = None
            del events
            events = read(torch.float64)
    if units:
        check_time_unit(source, units[0], info)
    return Sequences(tuple(ids), events, tuple(channels), units[0] if units else None, measured, left_out, double)


def check_time_unit(source: str, unit: str | None, info: TableInfo | None) -> None:
    """Raise DataError where times are numbers and were timestamps in training, or the other way round."""
    if info is not None and unit != info.time_unit:
        kinds = [f"timestamps in {name}" if name else "numbers" for name in (unit, info.time_unit)]
        raise DataError(f"{source}: times are {kinds[0]}, in training they were {kinds[1]}: give them in that form")


def read_labelled(
    config: TrainConfig,
    data: str,
    labels: str,
    info: TableInfo | None = None,
    ranks: Ranks | None = None,
    folder: Path | None = None,
) -> LabelledSequences:
    """Read both tables and bring them together.

    Args:
        config: names of columns and what is an error.
        data: the table of measurements.
        labels: the table of labels.
        info: what training found; None: find it out.
        ranks: who reads; None: this process alone.
        folder: where the sequences are kept; None: in memory.

    Raises:
        DataError: a table is bad (naming the file and row), series lack labels or labels series, or there is one
            class only.
    """
    ranks = Ranks() if ranks is None else ranks
    table = read_sequences(config, data, info, ranks, folder)
    entries = labels_of(config, labels, None if info is None else info.static_dtype)
    every = [name for ids in ranks.gather(table.ids) for name in ids]
    if len(set(every)) < len(every):
        again = next(name for name, count in _counts(every).items() if count > 1)
        raise DataError(f"{data}: {config.id} {again} comes back after another one; sort the table by {config.id}")
    known = require_match(config, entries, every, data, leads=ranks.leads)
    kept = torch.tensor([row for row, name in enumerate(table.ids) if name in known], dtype=torch.int64)
    every = [name for name in every if name in known]
    measured = torch.stack(ranks.gather(table.measured)).any(dim=0)
    if ranks.leads and info is None:
        say_unmeasured(data, table.channels, measured, trained=False)
        say_shared_columns(config, table.channels, table.left_out)
    rows = entries.rows(every)
    task, targets, classes = _targets(config, entries, rows, info)
    lengths = torch.cat(ranks.gather(table.events.lengths[kept]))
    first = sum(ranks.gather(len(kept))[: ranks.rank])
    mine = slice(first, first + len(kept))
    static = None if entries.static is None else entries.static[rows]
    unit = next((found for found in ranks.gather(table.time_unit) if found is not None), None)
    time_type = scan_time_type(data, table_format(config, data, info))
    digest = hashlib.sha256("\n".join(every).encode() + lengths.numpy().tobytes() + targets.numpy().tobytes())
    return LabelledSequences(
        ChosenSequences(table.events, kept, targets[mine], None if static is None else static[mine]),
        first,
        lengths,
        targets,
        TableInfo(
            table.channels,
            unit,
            task,
            classes,
            entries.static_names,
            digest.hexdigest(),
            time_type,
            table.double,
            static is not None and static.dtype == torch.float64,
        ),
        measured,
    )


def _targets(
    config: TrainConfig, entries: Labels, rows: Tensor, info: TableInfo | None
) -> tuple[str, Tensor, tuple[str, ...]]:
    values = entries.targets[config.target]
    task = choose_task(config, values) if info is None else info.task
    if task == "classification":
        numbers, classes = as_classes(entries, config.target, None if info is None else info.classes)
        numbers = numbers[rows]
        if info is None and len(numbers.unique()) < 2:
            raise DataError(
                f"{entries.source}: all series have the class {classes[int(numbers[0])]} of {config.target}: there is "
                f"nothing to learn"
            )
        return task, numbers, classes
    if not isinstance(values, Tensor):
        raise DataError(f"{entries.source}: {config.target} is text, such as {values[0]!r}, and no number to predict")
    return task, values.double()[rows].unsqueeze(1), ()


def _counts(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts
