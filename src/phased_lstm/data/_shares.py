"""Consecutive parts of a table for several readers, each with whole sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ._arrow import Piece, Rows, Source, batches, shares
from ._columns import leading, strings


def shared_batches(source: Source, columns: Sequence[str], rank: int, ranks: int) -> Iterator[tuple[Any, Rows, int]]:
    """The rows of the sequences that begin in one rank's part, as `batches` gives them."""
    parts = shares(source, ranks)
    # The sequence with which the part before ends belongs to that part.
    previous = _last_id([piece for part in parts[:rank] for piece in part], columns[0])
    current: str | None = None
    beyond = False

    def pieces() -> Iterator[Piece]:
        nonlocal beyond
        yield from parts[rank]
        beyond = True
        for part in parts[rank + 1 :]:
            yield from part

    for batch, rows, start in batches(pieces(), columns):
        if beyond and current is None:
            return
        ids = strings(batch.column(0), columns[0], rows.after(start))
        begin = 0 if previous is None else leading(ids, previous)
        if begin == len(ids):
            continue
        previous = None
        end = leading(ids, current) if beyond and current is not None else len(ids)
        if end > begin:
            yield batch.slice(begin, end - begin), rows, start + begin
        if end < len(ids):
            return
        current = ids[-1].as_py()


def _last_id(pieces: Sequence[Piece], id: str) -> str | None:
    for piece in reversed(pieces):
        last: str | None = None
        for batch, rows, start in batches([piece], [id]):
            last = strings(batch.column(0), id, rows.after(start))[-1].as_py()
        if last is not None:
            return last
    return None
