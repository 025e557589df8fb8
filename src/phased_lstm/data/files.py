"""Where the files of a data set are: a folder that was named, $PHASED_LSTM_DATA, the cache, a verified download."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, missing_extra
from ..files import replacing

# The names under which one file may be found, in order of preference.
Names = tuple[str, ...]


def cache_folder(name: str) -> Path:
    """Return where downloads of a data set are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "phased_lstm" / name


def find_folder(name: str, files: Sequence[Names], data_dir: str | Path | None) -> Path | None:
    """Return the folder that holds all files of a data set: `data_dir`, else `$PHASED_LSTM_DATA/name`, else the cache.

    Args:
        name: of the data set, and of its folder.
        files: for each file the names under which it is accepted.
        data_dir: a folder that must hold them; None to look for one.

    Returns:
        The folder, or None where neither the variable's folder nor the cache has all files.

    Raises:
        DataError: `data_dir` is given and lacks a file.
    """
    if data_dir is not None:
        if absent := _lacking(Path(data_dir), files):
            raise DataError(f"{data_dir} lacks {', '.join(absent)}")
        return Path(data_dir)
    root = os.environ.get("PHASED_LSTM_DATA")
    folders = [Path(root) / name] if root else []
    return next((folder for folder in [*folders, cache_folder(name)] if not _lacking(folder, files)), None)


def require_folder(name: str, files: Sequence[Names], data_dir: str | Path | None, origin: str) -> Path:
    """Return what `find_folder` finds.

    Args:
        name, files, data_dir: as in `find_folder`.
        origin: where the files come from, for the message.

    Raises:
        DataError: there is no folder with all files; the message says where to get and to put them.
    """
    found = find_folder(name, files, data_dir)
    if found is not None:
        return found
    root = os.environ.get("PHASED_LSTM_DATA")
    wanted = ", ".join(" or ".join(names) for names in files)
    tried = f"; PHASED_LSTM_DATA is {root}, where {name}/ lacks some" if root else ""
    raise DataError(
        f"the data set {name} was not found{tried}. It needs {wanted}, from {origin}. Put them in FOLDER/{name} and "
        f"set PHASED_LSTM_DATA=FOLDER, or in {cache_folder(name)}, or give their folder as data_dir"
    )


def file_in(folder: Path, names: Names) -> Path:
    """Return the file that is there, of the names under which it is accepted."""
    return next((folder / name for name in names if (folder / name).exists()), folder / names[0])


def _lacking(folder: Path, files: Sequence[Names]) -> list[str]:
    return [" or ".join(names) for names in files if not file_in(folder, names).exists()]


def verify(path: Path, checksum: str) -> None:
    """Raise DataError unless a file has this SHA-256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != checksum:
        raise DataError(
            f"checksum of {path} is {found}, expected {checksum}: it is damaged or another version; fetch it again, or "
            f"give verify_checksums=False to read it as it is"
        )


def download(mirrors: Sequence[str], checksums: Mapping[str, str], folder: Path, ways: str, progress: bool) -> None:
    """Fetch the files that a folder lacks, each from the first mirror that has it as published.

    Args:
        mirrors: addresses to which a file's name is appended.
        checksums: SHA-256 of each file by name.
        folder: where they go.
        ways: for the message: how else to bring the files.
        progress: whether a progress bar is shown.

    Raises:
        DataError: no mirror gave a file; nothing of it is left.
        ImportError: tqdm is not installed.
    """
    for name, checksum in checksums.items():
        if not (folder / name).exists():
            _download(mirrors, name, checksum, folder / name, ways, progress)


def _download(mirrors: Sequence[str], name: str, checksum: str, target: Path, ways: str, progress: bool) -> None:
    failures = []
    for mirror in mirrors:
        try:
            _fetch(mirror + name, checksum, target, progress)
            return
        except (OSError, http.client.HTTPException, DataError) as error:
            failures.append(f"{mirror}: {error}")
    root = os.environ.get("PHASED_LSTM_DATA")
    raise DataError(
        f"{name} could not be downloaded ({'; '.join(failures)}). {ways}"
        + (f". PHASED_LSTM_DATA is {root}, which has no {target.parent.name}/ with all files" if root else "")
    )


def _fetch(url: str, checksum: str, target: Path, progress: bool) -> None:
    """Download to `target`, which appears only when complete and verified."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=30) as response, replacing(target) as file:
        length = response.headers.get("Content-Length") or ""
        size = int(length) if re.fullmatch("[0-9]{1,15}", length) else 0
        with _bar(target.name, size, progress) as bar:
            while block := response.read(1 << 16):
                file.write(block)
                digest.update(block)
                bar.update(len(block))
        if digest.hexdigest() != checksum:
            raise DataError(f"checksum of {target.name} is {digest.hexdigest()}, expected {checksum}")


def _bar(name: str, size: int, shown: bool) -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise missing_extra("train", "tqdm") from error
    return tqdm(total=size or None, unit="B", unit_scale=True, desc=name, disable=not shown)
