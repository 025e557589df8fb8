"""A trained network's predictions for a table of measurements, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ..data.labels import read_labels
from ..data.loading import EventDataset
from ..data.tables import iter_sequences
from ..errors import DataError, RunError
from ..files import replacing
from .fitting import predict
from .table_data import check_time_unit, table_format
from .table_run import answers, load_run


def predict_table(run: Path, data: str, out: Path, static: str | None = None) -> int:
    """Write a prediction for each sequence of a table, one row each, in the order of the table.

    The columns are the id, `prediction`, and for classes `probability_NAME`. One chunk of sequences is in memory at a
    time. The file appears whole or not at all.

    Args:
        run: folder of a finished run.
        data: table of measurements.
        out: file to write, .parquet or .csv.
        static: table with the static features, where the network has some.

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
            for ids, columns in _predictions(run, data, static):
                table = pa.table({**ids, **columns})
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


def _predictions(run: Path, data: str, static: str | None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    config, info, network = load_run(run)
    if info.static and static is None:
        raise DataError(f"the network reads {', '.join(info.static)}: name the table that has them with --labels")
    entries = read_labels(static, [], id=config.id, static=info.static) if info.static and static else None
    for part in iter_sequences(data, table_format(config, data, info), channels=info.channels):
        check_time_unit(data, part.time_unit, info)
        features = None
        if entries is not None and entries.static is not None:
            features = entries.static[entries.rows(part.ids)]
        outputs = predict(network, EventDataset(part.events, None, features), config.batch_size)
        found = answers(network, outputs).numpy()
        ids = {config.id: pa.array(part.ids)}
        if network.target_scale is not None:
            yield ids, {"prediction": found[:, 0]}
            continue
        chosen = [info.classes[number] for number in found.argmax(axis=1)]
        probabilities = {f"probability_{name}": found[:, number] for number, name in enumerate(info.classes)}
        yield ids, {"prediction": pa.array(chosen), **probabilities}
