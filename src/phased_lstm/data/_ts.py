"""The .ts format of the UEA and UCR archive: a header of lines that begin with @, then a line for each series."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import DataError
from ._reading import parse_number, read_bytes, text_lines
from .events import EventBatch
from .loading import EventDataset

_LARGEST = torch.finfo(torch.float32).max


class LabelledSeries(NamedTuple):
    """N series with their classes.

    Attributes:
        data: values (S, F) float32, times (S,) int64 in steps since the beginning, and the class (N,) int64.
        classes: names of the classes.
    """

    data: EventDataset
    classes: tuple[str, ...]


def read_ts(path: str | Path) -> LabelledSeries:
    """Read a .ts file of the UEA and UCR archive: equidistant series of one or several channels, with a class.

    Values that are "?" or NaN become NaN. Of the header `@classLabel` and `@data` are needed; without `@dimensions` the
    first series tells the number of channels. Comments begin with "#". The text is UTF-8, or what a byte order mark
    tells.

    Raises:
        DataError: the file cannot be read, carries time stamps or no classes, or a line does not keep to the header; it
            names the line.
    """
    path = Path(path)
    lines = [line.strip() for line in text_lines(read_bytes(path), path, comment="#")]
    begin = next((n for n, line in enumerate(lines, start=1) if line.lower() == "@data"), 0)
    if not begin:
        raise DataError(f"{path} should have a line '@data' before its series: no .ts file, or truncated")
    entries = [line[1:].split() for line in lines[:begin] if line.startswith("@")]
    header = {name.lower(): rest for name, *rest in filter(None, entries)}
    classes = _classes(path, header)
    channels = _channels(path, header)
    series, labels = [], []
    for row, line in enumerate(lines[begin:], start=begin + 1):
        if not line or line.startswith("#"):
            continue
        *parts, label = (part.strip() for part in line.split(":"))
        try:
            values = [[_value(entry) for entry in part.split(",")] for part in parts]
        except ValueError as error:
            raise DataError(f"{path}, line {row}: {error}") from error
        channels = channels or len(values)
        if len(values) != channels or len({len(part) for part in values}) != 1 or label not in classes:
            raise DataError(
                f"{path}, line {row} should have {channels} channels of one length and a class of "
                f"{', '.join(classes)}; got lengths {[len(part) for part in values]} and class {label!r}"
            )
        series.append(torch.tensor(values).T)
        labels.append(classes.index(label))
    if not series:
        raise DataError(f"{path} holds no series")
    return LabelledSeries(labelled(torch.cat(series), [len(values) for values in series], labels), tuple(classes))


def _classes(path: Path, header: dict[str, list[str]]) -> list[str]:
    if _first(header, "timestamps") not in ("", "false"):
        raise DataError(f"{path} has time stamps in its series, which are not read: make it a table, for read_table")
    if _first(header, "classlabel") != "true":
        found = "a target for regression" if _first(header, "targetlabel") == "true" else "no classes"
        raise DataError(f"{path} has {found}, expected a line '@classLabel true' with the classes")
    classes = header["classlabel"][1:]
    if not classes:
        raise DataError(f"{path} should have the classes in its line '@classLabel true'")
    if len(set(classes)) < len(classes):
        raise DataError(f"{path} names a class twice in its line '@classLabel': {' '.join(classes)}")
    return classes


def _channels(path: Path, header: dict[str, list[str]]) -> int:
    """The number of channels, 0 where the header does not tell."""
    told = header.get("dimensions", header.get("dimension"))
    if told is None:
        return 1 if _first(header, "univariate") == "true" else 0
    if len(told) != 1 or not re.fullmatch(r"0*[1-9][0-9]{0,8}", told[0]):
        raise DataError(f"{path} should have a number after @dimensions, got {' '.join(told)!r}")
    return int(told[0])


def _first(header: dict[str, list[str]], name: str) -> str:
    return "".join(header.get(name, [])[:1]).lower()


def _value(entry: str) -> float:
    value = math.nan if entry.strip() == "?" else parse_number(entry)
    if abs(value) > _LARGEST:
        raise ValueError(f"{entry} is infinite, or more than float32 holds")
    return value


def labelled(values: torch.Tensor, lengths: list[int], labels: list[int]) -> EventDataset:
    """Series laid end to end, with the number of the step as time, and their classes."""
    counts = torch.tensor(lengths, dtype=torch.int64)
    begins = (counts.cumsum(0) - counts).repeat_interleave(counts)
    events = EventBatch.from_lengths(values, torch.arange(len(values)) - begins, counts)
    return EventDataset(events, torch.tensor(labels, dtype=torch.int64))
