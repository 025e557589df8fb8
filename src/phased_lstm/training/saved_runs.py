"""Finished runs of `phased-lstm train`, read back: whether all their files are of one run."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..models import SequenceNetwork
from ..options import check_entries
from .runs import CONFIG, MODEL, MODEL_FOLDER, RESULTS, identity_of, read_json
from .table_config import COLUMN_NAMES, FREE_ON_RESUME, LENIENCE, TrainConfig
from .table_data import TableInfo


def run_identity(config: TrainConfig, info: TableInfo) -> str:
    """What tells a run from others: all that its network follows from, and nothing that may be said anew later."""
    free = {*FREE_ON_RESUME, *LENIENCE, *COLUMN_NAMES}
    # Options that a later version adds are at their defaults.
    defaults = TrainConfig().to_json()
    said = {
        name: value for name, value in config.to_json().items() if name not in free and value != defaults[name]
    }  # fmt: skip
    tables = {item.name: getattr(info, item.name) for item in dataclasses.fields(info) if item.compare}
    return identity_of({"train": said, "tables": tables})


def weights_fingerprint(run: Path) -> str:
    """Of the weights in a run's folder."""
    path = run / MODEL_FOLDER / MODEL
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def saved(run: Path) -> tuple[TrainConfig, TableInfo]:
    """Return the configuration of the run in a folder, and the tables' description.

    Raises:
        RunError: there is none, or a damaged one.
    """
    path = run / CONFIG
    content = read_json(path)
    if not {"train", "tables"} <= content.keys():
        raise RunError(f"{run} is not a run of: phased-lstm train")
    if not all(isinstance(content[name], dict) for name in ("train", "tables")):
        raise RunError(f"{path} is damaged: train and tables should hold entries")
    try:
        entries: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content["tables"].items()
        }
        check_entries(TableInfo, entries, str(path))
        return TrainConfig.from_json(content["train"], str(path)), TableInfo(**entries)
    except TypeError as error:
        raise RunError(f"{path} is damaged: {error}") from error


def load_run(run: Path) -> tuple[TrainConfig, TableInfo, SequenceNetwork]:
    """Return the configuration, the tables' description and the network of a finished run.

    Raises:
        RunError: there is none, or its files are not of one run.
    """
    config, info = saved(run)
    if not (run / RESULTS).is_file() or not (run / MODEL_FOLDER).is_dir():
        raise RunError(f"the run in {run} has not finished: go on with phased-lstm train --out {run} --resume")
    network = SequenceNetwork.load(run / MODEL_FOLDER)
    made, results = network.config, read_json(run / RESULTS)
    # Runs of earlier versions have no fingerprints.
    fingerprints = results.get("fingerprints", {})
    wanted = {"run": run_identity(config, info), "model": weights_fingerprint(run)}
    if (
        (made.channels, made.target, made.classes, made.static) != (info.channels, info.task, info.classes, info.static)
        or not isinstance(fingerprints, dict)
        or any(fingerprints.get(name, value) != value for name, value in wanted.items())
    ):
        raise RunError(
            f"{run / CONFIG} and {run / MODEL_FOLDER} are not what the run in {run} was finished with: one was "
            f"changed, or is of another run; put the run's own files back, or train again with --overwrite"
        )
    return config, info, network
