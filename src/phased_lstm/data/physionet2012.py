"""PhysioNet / CinC Challenge 2012: the first 48 hours of 4,000 intensive care stays a set, and how they ended."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from ._reading import files_in, parse_number, read_bytes, reading, tar_files, text_lines
from .events import EventBatch
from .files import Names, file_in, require_folder, verify

CHANNELS = (
    "ALP", "ALT", "AST", "Albumin", "BUN", "Bilirubin", "Cholesterol", "Creatinine", "DiasABP", "FiO2", "GCS",
    "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "MAP", "MechVent", "Mg", "NIDiasABP", "NIMAP", "NISysABP", "Na",
    "PaCO2", "PaO2", "Platelets", "RespRate", "SaO2", "SysABP", "Temp", "TroponinI", "TroponinT", "Urine", "WBC",
    "Weight", "pH",
)  # fmt: skip
DESCRIPTORS = ("Age", "Gender", "Height", "ICUType", "Weight")
OUTCOMES = ("SAPS-I", "SOFA", "Length_of_stay", "Survival", "In-hospital_death")
ORIGIN = "https://physionet.org/content/challenge-2012/1.0.0/"

_UNKNOWN = -1.0
_LARGEST = torch.finfo(torch.float32).max
# The archives are packed anew by whoever passes them on; the outcomes are one file everywhere.
_CHECKSUMS = {
    "Outcomes-a.txt": "2613ea60ccda29f87571a7d6b09ad130858a8ccd66325bd073365925026883c2",
    "Outcomes-b.txt": "1305f29734da374a809483229a99f33a9230aa8d4fa74b1a2d6ad788136423d5",
}


class Stays(NamedTuple):
    """N intensive care stays.

    Attributes:
        ids: RecordID of each.
        events: values (S, 37) float32 of `CHANNELS`, NaN where not measured, the mean where measured several times
            in a minute; times (S,) int64 in minutes since admission.
        static: (N, 5) float32 of `DESCRIPTORS` at admission, NaN where unknown. Weight is a channel too.
        outcomes: (N, 5) int64 of `OUTCOMES`, -1 where unknown or, for Survival, where no death is known.
        died: (N,) int64, 1 for a death in hospital.
    """

    ids: tuple[str, ...]
    events: EventBatch
    static: Tensor
    outcomes: Tensor
    died: Tensor


def load_physionet2012(
    sets: Sequence[str] = ("a", "b"),
    data_dir: str | Path | None = None,
    *,
    drop_empty: bool = True,
    verify_checksums: bool = True,
) -> Stays:
    """Load sets of stays, each with set-X.tar.gz (or the unpacked folder set-X) and Outcomes-X.txt.

    Args:
        sets: "a", "b" or "c", in this order.
        data_dir: folder of the files; None: `$PHASED_LSTM_DATA/physionet2012`, else the cache.
        drop_empty: whether stays without any measurement, 12 in all three sets, are left out, as is usual.
        verify_checksums: whether the outcomes of sets a and b must be the published files.

    Raises:
        DataError: files are missing or damaged, or a stay has no outcome or an outcome no stay; it names the file.
    """
    if not sets or any(name not in ("a", "b", "c") for name in sets) or len(set(sets)) < len(sets):
        raise DataError(f"sets should be among a, b and c, each once, got {', '.join(sets) or 'none'}")
    files: list[Names] = []
    for name in sets:
        files += [(f"set-{name}.tar.gz", f"set-{name}"), (f"Outcomes-{name}.txt",)]
    folder = require_folder("physionet2012", files, data_dir, ORIGIN)
    parts = [_load_set(folder, name, verify_checksums) for name in sets]
    stays = Stays(
        tuple(entry for part in parts for entry in part.ids),
        EventBatch.cat(part.events for part in parts),
        *(torch.cat(tensors) for tensors in zip(*(part[2:] for part in parts), strict=True)),
    )
    if drop_empty and not bool((stays.events.lengths > 0).all()):
        kept = stays.events.lengths > 0
        ids = tuple(entry for entry, keep in zip(stays.ids, kept.tolist(), strict=True) if keep)
        stays = Stays(ids, stays.events[kept], *(tensor[kept] for tensor in stays[2:]))
    return stays


def _load_set(folder: Path, name: str, verify_checksums: bool) -> Stays:
    outcomes_path = folder / f"Outcomes-{name}.txt"
    if verify_checksums and outcomes_path.name in _CHECKSUMS:
        verify(outcomes_path, _CHECKSUMS[outcomes_path.name])
    outcomes = _read_outcomes(outcomes_path)
    archive = file_in(folder, (f"set-{name}.tar.gz", f"set-{name}"))
    reader = _StayReader()
    for path, content in _texts(archive):
        reader.add(f"{archive}: {path}", path, content)
    if missing := outcomes.keys() - set(reader.ids):
        raise DataError(f"{archive} has no stay {min(missing)}, for which {outcomes_path} has an outcome")
    if missing := set(reader.ids) - outcomes.keys():
        raise DataError(f"{outcomes_path} has no outcome of stay {min(missing)}, which is in {archive}")
    table = torch.tensor([outcomes[entry] for entry in reader.ids], dtype=torch.int64)
    events, static = reader.finish()
    return Stays(tuple(reader.ids), events, static, table, table[:, OUTCOMES.index("In-hospital_death")])


def _texts(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The stays of an archive or folder, in order of RecordID."""
    if archive.is_dir():
        for path in files_in(archive, ".txt"):
            yield path.name, read_bytes(path)
    else:
        yield from sorted((path.name, content) for path, content in tar_files(archive, ".txt"))


def _read_outcomes(path: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    rows = csv.DictReader(text_lines(read_bytes(path), path))
    with reading(path, "it is damaged: fetch it again"):
        table = list(rows)
    if not {"RecordID", *OUTCOMES} <= set(rows.fieldnames or ()):
        raise DataError(f"{path} should have the columns RecordID, {', '.join(OUTCOMES)}, got {rows.fieldnames}")
    for place, row in enumerate(table, start=1):
        try:
            values = [_integer(row[name]) for name in OUTCOMES]
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, row {place}: {row} should hold integers") from error
        if row["RecordID"] in found:
            raise DataError(f"{path}, row {place}: RecordID {row['RecordID']} occurs a second time")
        if values[-1] not in (0, 1):
            raise DataError(f"{path}, row {place}: {OUTCOMES[-1]} should be 0 or 1, got {values[-1]}")
        found[row["RecordID"]] = values
    return found


def _integer(entry: str) -> int:
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", entry):
        raise ValueError(entry)
    return int(entry)


class _StayReader:
    """Gathers the measurements of stays as (stay, minute, channel, value)."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._taken: set[str] = set()
        self._static: list[list[float]] = []
        self._counts: list[int] = []
        self._minutes: list[int] = []
        self._channels: list[int] = []
        self._values: list[float] = []
        self._codes = {name: code for code, name in enumerate(CHANNELS)}
        self._clock = {f"{hour:02}:{minute:02}": 60 * hour + minute for hour in range(100) for minute in range(60)}

    def add(self, place: str, name: str, content: bytes) -> None:
        """Take in the file of one stay."""
        header, *lines = text_lines(content, place) or [""]
        if header.strip() != "Time,Parameter,Value":
            raise DataError(f"{place} should begin with Time,Parameter,Value, got {header[:80]!r}")
        descriptors: dict[str, float] = {}
        record = None
        before = len(self._values)
        for row, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                time, channel, entry = line.split(",")
                minute, value = self._clock[time], parse_number(entry)
                if not abs(value) <= _LARGEST:
                    raise ValueError(entry)
            except (ValueError, KeyError) as error:
                raise DataError(f"{place}, row {row} should be hh:mm,name,finite number, got {line[:80]!r}") from error
            if channel == "RecordID":
                record = entry
                continue
            if minute == 0 and channel in DESCRIPTORS and channel not in descriptors:
                descriptors[channel] = value
            if channel in self._codes:
                if value != _UNKNOWN:
                    self._minutes.append(minute)
                    self._channels.append(self._codes[channel])
                    self._values.append(value)
            elif channel not in DESCRIPTORS and channel:
                raise DataError(f"{place}, row {row}: {channel!r} is none of the variables of this data set")
        if record is None or record != Path(name).stem:
            raise DataError(f"{place} has the RecordID {record}, expected {Path(name).stem}")
        if record in self._taken:
            raise DataError(f"{place} occurs a second time: leave one of them out")
        self._taken.add(record)
        self.ids.append(record)
        self._static.append([descriptors.get(part, _UNKNOWN) for part in DESCRIPTORS])
        self._counts.append(len(self._values) - before)

    def finish(self) -> tuple[EventBatch, Tensor]:
        """Return the stays, a step for each minute with a measurement, and their descriptors."""
        count = len(self.ids)
        stay = torch.arange(count).repeat_interleave(torch.tensor(self._counts, dtype=torch.int64))
        span = 100 * 60
        keys, step = torch.unique(stay * span + torch.tensor(self._minutes, dtype=torch.int64), return_inverse=True)
        place = step * len(CHANNELS) + torch.tensor(self._channels, dtype=torch.int64)
        size = len(keys) * len(CHANNELS)
        total = torch.zeros(size, dtype=torch.float64).index_add(
            0, place, torch.tensor(self._values, dtype=torch.float64)
        )
        values = (total / torch.bincount(place, minlength=size)).float().reshape(len(keys), len(CHANNELS))
        lengths = torch.bincount(keys // span, minlength=count)
        static = torch.tensor(self._static)
        return EventBatch.from_lengths(values, keys % span, lengths), static.where(static != _UNKNOWN, torch.nan)
