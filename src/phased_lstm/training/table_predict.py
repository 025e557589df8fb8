"""A trained network's predictions for a table of measurements, chunk by chunk."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import torch

from ..data.labels import read_labels
from ..data.loading import EventDataset
from ..data.tables import iter_sequences
from ..errors import DataError, RunError
from ..files import replacing
from ..models import fitted_channels
from ._matching import say_left_out, say_unmeasured, without_label
from .fitting import predict
from .saved_runs import load_run
from .table_data import check_time_unit, table_format
from .table_run import answers


def predict_table(
    run: Path,
    data: str,
    out: Path,
    static: str | None = None,
    lenience: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Write a prediction for each sequence of a table, one row each, in the order of the table.

    The columns are the id, `prediction`, and for classes `probability_NAME`; a column of ids with one of these names is
    written as `id`. One chunk of sequences is in memory at a time. The file appears whole or not at all.

    Args:
        run: folder of a finished run.
        data: table of measurements.
        out: file to write, .parquet or .csv.
        static: table with the static features, where the network has some.
        lenience: what is no error, by option, where it is to be other than in the run's configuration.

    Returns:
        The number of sequences.

    Raises:
        DataError: a table is bad; it names the file and row.
        RunError: there is no finished run, or the file cannot be written.
    """
    if out.suffix not in (".parquet", ".csv"):
        raise RunError(f"{out} should end in .parquet or .csv")
    if out.exists() and any(Path(given).exists() and out.samefile(given) for given in (data, static) if given):
        raise RunError(f"{out} is the table to read: choose another file for the predictions")
    count = 0
    try:
        with replacing(out) as file:
            writer: Any = None
            for table in _predictions(run, data, static, lenience):
                if writer is None:
                    made = pq.ParquetWriter if out.suffix == ".parquet" else pa_csv.CSVWriter
                    writer = made(file, table.schema)
                writer.write_table(table)
                count += table.num_rows
            if writer is None:
                raise DataError(f"{data}: the table has no sequences")
            writer.close()
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error}") from error
    return count


def _predictions(run: Path, data: str, static: str | None, lenience: Mapping[str, Any]) -> Iterator[Any]:
    config, info, network = load_run(run)
    config = dataclasses.replace(config, **lenience)
    if info.static and static is None:
        raise DataError(f"the network reads {', '.join(info.static)}: name the table that has them with --labels")
    entries = None
    if info.static and static:
        entries = read_labels(static, [], id=config.id, static=info.static, dtype=info.static_dtype)
    names = ["prediction", *(f"probability_{name}" for name in info.classes)]
    id = config.id if config.id not in names else "id"
    measured = torch.zeros(len(info.channels), dtype=torch.bool)
    absent: list[str] = []
    strange = 0
    for part in iter_sequences(data, table_format(config, data, info), channels=info.channels, dtype=info.dtype):
        check_time_unit(data, part.time_unit, info)
        measured |= ~part.events.values.isnan().all(dim=0)
        ids, events, features = part.ids, part.events, None
        if entries is not None and entries.static is not None:
            without = set(without_label(config, entries, ids))
            absent += sorted(without)
            kept = [row for row, name in enumerate(ids) if name not in without]
            ids, events = tuple(ids[row] for row in kept), events[torch.tensor(kept, dtype=torch.int64)]
            features = entries.static[entries.rows(ids)]
        if not ids:
            continue
        outputs = predict(network, EventDataset(events, None, features), config.batch_size)
        strange += int((~outputs.isfinite().all(dim=1)).sum())
        found = answers(network, outputs).numpy()
        chosen = found[:, 0]
        if info.classes:
            chosen = pa.array([info.classes[number] for number in found.argmax(axis=1)])
        columns = [pa.array(ids), chosen, *(found[:, number] for number in range(len(info.classes)))]
        yield pa.table(dict(zip([id, *names], columns, strict=True)))
    say_unmeasured(data, info.channels, measured | ~fitted_channels(network), trained=True)
    if entries is not None and absent:
        say_left_out(entries, absent)
    if strange:
        warnings.warn(
            f"{strange} predictions are not finite: look in {data} for values far beyond those of training",
            stacklevel=2,
        )
