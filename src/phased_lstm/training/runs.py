"""A run folder: configuration, log, checkpoint, model and results of one training."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..files import replacing

try:
    import fcntl
except ImportError:  # not on Windows, where a run folder is not claimed
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"
CONFIG, LOG, CHECKPOINT, MODEL, RESULTS, TRACE = (
    "config.json", "log.tsv", "checkpoint.safetensors", "model.safetensors", "results.json", "trace.safetensors",
)  # fmt: skip
MODEL_FOLDER, EVALUATION = "model", "evaluation.safetensors"
# What a finished run leaves. Results are written last and removed first: while they are there, all of it is.
_FINISHED = (RESULTS, MODEL, f"{MODEL_FOLDER}/{CONFIG}", f"{MODEL_FOLDER}/{MODEL}", TRACE, EVALUATION)
_PICTURES = (
    "accuracy", "cross_entropy", "gate", "curves", "confusion", "reliability", "predictions", "periods",
)  # fmt: skip
# All else that commands write beside the configuration. The checkpoint goes last: it tells that there is something left
# to remove.
_REST = (
    LOG, "evaluation.json", *(f"{name}.png" for name in _PICTURES), "tensorboard/events.out.tfevents.*", CHECKPOINT,
)  # fmt: skip
# What a kill in the middle of writing leaves.
_PARTS = (
    *(f"{folder}.*.{kind}.*.part" for folder in ("", f"{MODEL_FOLDER}/") for kind in ("json", "safetensors", "png")),
    f".{LOG}.*.part",
)


class RunFolder:
    """Paths and files of a run; every file in it but the log is whole at any moment.

    The log is one line a step, tab-separated, with a header. A kill or a full disk can cut its last
    line; resuming writes again what came after the checkpoint. One process at a time may write.

    All files are of one run at any moment. The configuration makes a folder a run: it is the first file to go when a
    run is replaced, and the first of the new run after everything of the old one has gone.

    Args:
        path: the folder.
        columns: names of the log's columns, the first of which is "step".
        identity: what tells the run from others, for its checkpoints; "": they are not told apart.
    """

    def __init__(self, path: str | Path, columns: tuple[str, ...], identity: str = "") -> None:
        self.path = Path(path)
        self.columns = columns
        self.identity = identity
        self._log: io.TextIOWrapper | None = None
        self._lock: io.TextIOWrapper | None = None

    def file(self, name: str) -> Path:
        return self.path / name

    def start(self, config: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the folder for a new run.

        Raises:
            RunError: it holds a run already, or a part of one, and `overwrite` is false; it holds something else of
                that name; or it cannot be written.
        """
        begun = self._guard(self.file(CONFIG).exists)
        if begun and not self._guard(self.file(LOG).exists):
            raise RunError(f"{self.path} holds a {CONFIG} without a {LOG}, which is no run: choose another --out")
        if begun and not overwrite:
            raise RunError(
                f"{self.path} already holds a run: continue it with --resume, replace it with --overwrite, or "
                f"choose another --out"
            )
        left = [name for name in (*_FINISHED, CHECKPOINT) if self._guard(self.file(name).exists)]
        if left and not overwrite:
            raise RunError(
                f"{self.path} holds {', '.join(left)} and no {CONFIG}, as of a run that was being replaced: "
                f"remove them (--overwrite does), or choose another --out"
            )
        self.lock()
        try:
            if begun or left:
                # Of a folder that holds no run nothing is ours.
                self._remove(CONFIG, *_FINISHED, *_REST)
            self._remove(*_PARTS)
            for name in (MODEL_FOLDER, "tensorboard") if begun or left else ():
                # What else is in it is not ours.
                with contextlib.suppress(OSError):
                    self.file(name).rmdir()
            self._rewrite_log([])
            self.write_json(CONFIG, config)
        except BaseException:
            self.close()
            raise

    def lock(self) -> None:
        """Claim the folder until `close` or the end of the process.

        Raises:
            RunError: another process has claimed it, or it cannot be written.
        """
        self._guard(self.path.mkdir, parents=True, exist_ok=True)
        if fcntl is None or self._lock is not None:
            return
        self._lock = self._guard(open, self.file(_LOCK), "w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            self._lock = None
            raise RunError(f"another process is training in {self.path}") from error

    def resume(self, step: int) -> None:
        """Cut the log back to the `step` steps that the checkpoint holds, and go on from there.

        What a finished run left (model, results, trace) is removed: it will be written again.

        Raises:
            RunError: the log lacks some of these steps.
        """
        rows = [row for row in read_log(self.path, self.columns) if int(row["step"]) <= step]
        if [int(row["step"]) for row in rows] != list(range(1, step + 1)):
            raise RunError(
                f"{self.file(LOG)} does not hold each of the {step} steps of the checkpoint: the run cannot go on; "
                f"start anew with --overwrite"
            )
        self._remove(*_FINISHED, *_PARTS)
        self._rewrite_log(rows)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file.

        Raises:
            RunError: it cannot be written.
        """

        self._guard(write_json, self.file(name), content)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line; columns that the row lacks stay empty."""
        if self._log is None:
            self._log = self._guard(open, self.file(LOG), "a", encoding="utf-8", newline="")
        self._guard(self._log.write, "\t".join(_cell(row.get(name)) for name in self.columns) + "\n")
        self._guard(self._log.flush)

    def close(self) -> None:
        """Give up the log and the claim on the folder."""
        if self._log is not None:
            # A full disk has been reported where it was met.
            with contextlib.suppress(OSError):
                self._log.close()
            self._log = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _remove(self, *names: str) -> None:
        for name in names:
            for path in self._guard(lambda name=name: sorted(self.path.glob(name))):
                self._guard(path.unlink, missing_ok=True)

    def _rewrite_log(self, rows: list[dict[str, str]]) -> None:
        lines = ["\t".join(self.columns)] + ["\t".join(row[name] for name in self.columns) for row in rows]

        def write() -> None:
            with replacing(self.file(LOG)) as file:
                file.write(("\n".join(lines) + "\n").encode())

        self._guard(write)

    def _guard(self, action: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return action(*args, **kwargs)
        except OSError as error:
            raise RunError(f"run folder {self.path} cannot be written: {error}") from error


def identity_of(content: Mapping[str, Any]) -> str:
    """Return what tells a run of this configuration from others."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path, what: str = "a run folder") -> dict[str, Any]:
    """Read a JSON object from a file of a folder that should be `what`.

    Raises:
        RunError: the file is missing or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: {path.parent} is not {what}") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} should hold a JSON object")
    return content


def read_log(folder: str | Path, columns: tuple[str, ...] = ("step",)) -> list[dict[str, str]]:
    """Read a run's log as one dictionary of strings for each step.

    A last line cut short by a kill is left out.

    Args:
        folder: the run's folder.
        columns: those that must be there.

    Raises:
        RunError: there is no log, a column is missing, or a line does not fit the header.
    """
    path = Path(folder) / LOG
    if not path.exists():
        raise RunError(f"{folder} is no run: it has no {LOG}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole), delimiter="\t", strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise RunError(f"{path}, line {reader.line_num}: {error}") from error
    absent = set(columns) - set(reader.fieldnames or [])
    if absent:
        raise RunError(f"{path} lacks the columns {', '.join(sorted(absent))}")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values() or not row.get("step", "").isdecimal() or not _are_numbers(row):
            raise RunError(f"{path}, line {number}: does not fit the header {', '.join(reader.fieldnames or [])}")
    return rows


def _are_numbers(row: Mapping[str, str]) -> bool:
    try:
        for cell in filter(None, row.values()):
            float(cell)
    except ValueError:
        return False
    return True


def _cell(value: Any) -> str:
    if value is None:
        return ""
    # repr keeps every bit of a float, so that two logs can be compared.
    return repr(value) if isinstance(value, float) else str(value)
