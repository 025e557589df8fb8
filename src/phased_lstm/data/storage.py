"""Sequences in a file: as many as the disk holds, of which those asked for come into memory."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from .events import EventBatch, as_index, positions
from .loading import EventDataset

# Sequences of a chunk, where all are gone through.
_CHUNK = 64


class StoredEvents:
    """N sequences in a temporary file, of which some are read as an `EventBatch` where one indexes it.

    Args:
        parts: the sequences, batches of one width and dtypes, of which one is in memory at a time.
        folder: where the file is; None: the system's folder for temporary files, which on some machines is memory.
            The file has no name, or is removed with the object.

    Raises:
        OSError: the file cannot be written.
        TypeError: a part that is no batch.
        ValueError: no batch, or batches of several widths or dtypes.
    """

    def __init__(self, parts: EventBatch | Iterable[EventBatch], folder: str | Path | None = None) -> None:
        self._values, self._times = _temporary(self, folder), _temporary(self, folder)
        first: EventBatch | None = None
        lengths = []
        for part in [parts] if isinstance(parts, EventBatch) else parts:
            if not isinstance(part, EventBatch):
                raise TypeError(f"parts should be EventBatches, got: {type(part).__name__}")
            # Of the kinds alone; joining them says what does not go together.
            first = EventBatch.cat([part[:0] if first is None else first, part[:0]])
            self._values.write(_bytes(part.values))
            self._times.write(_bytes(part.times))
            lengths.append(part.lengths)
        if first is None:
            raise ValueError("there should be at least one batch: the number of features would be unknown")
        for file in (self._values, self._times):
            file.flush()
        self._kind = first
        self.lengths = torch.cat(lengths)
        self._offsets = torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)])

    @property
    def num_events(self) -> int:
        """S, the number of events of all sequences."""
        return int(self._offsets[-1])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> EventBatch:
        """Read some sequences, in that order.

        Args:
            index: a slice, integers (M,), negative ones counted from the end, or bool (N,).

        Raises:
            IndexError: no such sequence, or another kind of index.
            OSError: the file cannot be read.
        """
        within = range(*index.indices(len(self))) if isinstance(index, slice) else index
        rows = positions(within, len(self), self.lengths.device)
        places = [(int(self._offsets[row]), int(self.lengths[row])) for row in rows]
        kind = self._kind
        values = _read(self._values, places, kind.values.dtype, kind.num_features)
        times = _read(self._times, places, kind.times.dtype, 1)
        return EventBatch.from_lengths(values.reshape(len(times), kind.num_features), times, self.lengths[rows])


class ChosenSequences:
    """Some of the sequences of a batch, with their labels and static features, read where one indexes it.

    Args:
        events: the batch they are of.
        rows: (M,) int64, their numbers in it.
        labels: (M, ...) of those.
        static: (M, G) of those, or None.
    """

    def __init__(self, events: EventBatch | StoredEvents, rows: Tensor, labels: Tensor, static: Tensor | None) -> None:
        self._events, self._rows = events, rows
        self.labels, self.static = labels, static
        self.lengths = events.lengths[rows]

    @property
    def num_events(self) -> int:
        """Number of events of the sequences."""
        return int(self.lengths.sum())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Tensor | Sequence[int]) -> EventDataset:
        """Read some of them; integers (K,) from 0 to M - 1."""
        part = self.subset(as_index(index).long())
        return EventDataset(self._events[part._rows], part.labels, part.static)

    def subset(self, index: Tensor) -> ChosenSequences:
        """Choose among them, without reading; int64 (K,) from 0 to M - 1."""
        static = None if self.static is None else self.static[index]
        return ChosenSequences(self._events, self._rows[index], self.labels[index], static)

    def chunks(self) -> Iterator[EventBatch]:
        """Go through all of them, few at a time."""
        for rows in self._rows.split(_CHUNK):
            yield self._events[rows]


def _temporary(owner: object, folder: str | Path | None) -> BinaryIO:
    file = cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 - open as long as its owner is there
    weakref.finalize(owner, file.close)
    return file


def _bytes(tensor: Tensor) -> memoryview:
    # The cast refuses an empty array.
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    # A single number may have any stride.
    flat = flat if not len(flat) or flat.stride(0) == 1 else flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data.cast("B") if len(flat) else memoryview(b"")


def _read(file: BinaryIO, places: Sequence[tuple[int, int]], dtype: torch.dtype, width: int) -> Tensor:
    """Read runs of rows, each given by its first one and their number, one after another."""
    size = dtype.itemsize * width
    content = torch.empty(sum(count for _, count in places) * width, dtype=dtype)
    done = 0
    for start, count in places:
        file.seek(start * size)
        part = content[done : done + count * width]
        if len(part) and file.readinto(_bytes(part)) != count * size:  # type: ignore[attr-defined]
            raise OSError("the temporary file of the sequences ends too soon")
        done += count * width
    return content
