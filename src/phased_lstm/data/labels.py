"""Tables of labels (id, target, ...), and their match with the sequences they belong to. Needs the extra `data`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ._arrow import Piece, Source, batches, listed, table_files
from ._columns import doubles, strings
from ._columns import targets as as_targets
from ._gaps import without_gaps
from .encoders import needs_double


@dataclass(frozen=True)
class Labels:
    """Targets and static features of N sequences.

    Attributes:
        source: names the table in messages.
        ids: id of each sequence, as a string.
        targets: by column: int64 (N,), float64 (N,), or N strings; a column of strings is the first of these that
            all its entries are.
        static: (N, G) float32 or float64, NaN where missing; None where no columns were asked for.
        static_names: names of the G columns.
    """

    source: str
    ids: tuple[str, ...]
    targets: dict[str, Tensor | tuple[str, ...]]
    static: Tensor | None = None
    static_names: tuple[str, ...] = ()
    _rows: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", {name: row for row, name in enumerate(self.ids)})

    def rows(self, ids: Iterable[str]) -> Tensor:
        """Return the row of each id, (M,) int64.

        Raises:
            DataError: a series without a label.
        """
        found = [(name, self._rows.get(name, -1)) for name in ids]
        absent = [name for name, row in found if row < 0]
        if absent:
            raise DataError(
                f"{self.source} has no label for {len(absent)} of {len(found)} series: {_some(absent)}; add them, or "
                f"leave those series out{self._alike(absent)}"
            )
        return torch.tensor([row for _, row in found], dtype=torch.int64)

    def _alike(self, absent: Iterable[str]) -> str:
        """What to say where an id without a label differs from one with a label in spelling alone."""
        known = {_bare(name): name for name in reversed(self.ids)}
        name = next((name for name in absent if _bare(name) in known), None)
        return "" if name is None else f" (ids are compared as text, and {name!r} is not {known[_bare(name)]!r})"

    def check_all_used(self, ids: Iterable[str]) -> None:
        """Raise DataError if a label belongs to none of `ids`."""
        unused = self._rows.keys() - set(ids)
        if unused:
            raise DataError(
                f"{self.source} has labels for {len(unused)} series that are not in the table of measurements: "
                f"{_some(sorted(unused))}; remove them, or add the series"
            )

    def classes(self, target: str, known: Sequence[str] | None = None) -> tuple[Tensor, tuple[str, ...]]:
        """Return a target as class numbers.

        Args:
            target: name of the column.
            known: names of the classes as fixed at training; None: those that occur, numbers in order of size.

        Returns:
            (N,) int64 class numbers, and the names of the classes.

        Raises:
            DataError: the target is a fraction, has one class only while `known` is None, or a class that is not
                among those known.
        """
        values = self.targets[target]
        if isinstance(values, Tensor):
            if values.is_floating_point() and bool((values != values.round()).any()):
                row = int((values != values.round()).nonzero()[0])
                raise DataError(f"{self.source}: {target} of {self.ids[row]} is {values[row].item()}: not a class")
            whole = values.long()
            names = tuple(str(value) for value in whole.unique().tolist())
            entries: Sequence[str] = [str(value) for value in whole.tolist()]
        else:
            entries, names = values, tuple(sorted(set(values)))
        if known is None and len(names) < 2:
            raise DataError(f"{self.source}: {target} has a single class, {names[0]}: there is nothing to learn")
        classes = names if known is None else tuple(known)
        numbers = {name: number for number, name in enumerate(classes)}
        for name, entry in zip(self.ids, entries, strict=True):
            if entry not in numbers:
                raise DataError(
                    f"{self.source}: {target} of {name} is {entry}, not among the classes {listed(classes)}"
                )
        return torch.tensor([numbers[entry] for entry in entries], dtype=torch.int64), classes


def read_labels(
    source: Source,
    targets: Sequence[str],
    *,
    id: str = "id",
    static: Sequence[str] = (),
    gaps: Literal["error", "skip"] = "error",
    dtype: torch.dtype | None = None,
) -> Labels:
    """Read a table of labels.

    Args:
        source: as in `tables.iter_sequences`.
        targets: columns of targets: numbers, bool, or names of classes, which may be words such as None or NA.
        id: column of ids.
        static: numeric columns of features that do not change over a sequence; they may have gaps, in text also words
            such as NA.
        gaps: whether a row without one of the targets is an error, or left out.
        dtype: of static features, float32 or float64; None: float32, or float64 where float32 would lose what varies in
            one, as in one of unix times over an hour.

    Raises:
        DataError: naming the file and row: a missing column, an id that is missing or occurs twice, a target that is
            missing or infinite, a static feature that is no number or infinite; or an empty table.
        ImportError: pyarrow is not installed.
    """
    files = table_files(source)
    name = ", ".join(map(str, files))
    limit = np.float64 if dtype == torch.float64 else np.float32
    seen: dict[str, int] = {}
    columns: dict[str, list[Any]] = {target: [] for target in targets}
    features: list[Tensor] = []
    for batch, places, start in batches(map(Piece, files), list(dict.fromkeys([id, *targets, *static]))):
        where = places.after(start)
        for row, entry in enumerate(strings(batch.column(id), id, where).to_pylist()):
            if entry in seen:
                raise DataError(
                    f"{where(row)}: {id} {entry} occurs a second time, first at {places(seen[entry])}: keep one row "
                    f"for each sequence (the column of ids is named with id, --id)"
                )
            seen[entry] = start + row
        for target in targets:
            columns[target].append(batch.column(target))
        parts = [torch.from_numpy(doubles(batch.column(part), part, where, limit).copy()) for part in static]
        if parts:
            features.append(torch.stack(parts, dim=1))
    if not seen:
        raise DataError(f"{name}: the table has no labels")
    ids, rows = tuple(seen), np.arange(len(seen))
    if gaps == "skip":
        rows, columns = without_gaps(columns, len(seen))
        if not len(rows):
            raise DataError(f"{name}: the table has no labels: no row has {', '.join(targets)}")
        ids = tuple(ids[row] for row in rows)
    found = {target: as_targets(parts, target, lambda row: places(int(rows[row]))) for target, parts in columns.items()}
    return Labels(
        name,
        ids,
        {target: tuple(part) if isinstance(part, list) else torch.tensor(part) for target, part in found.items()},
        _narrowed(torch.cat(features)[torch.from_numpy(rows)], dtype) if features else None,
        tuple(static),
    )


def _narrowed(static: Tensor, dtype: torch.dtype | None) -> Tensor:
    wide = torch.float64 if needs_double(static) else torch.float32
    return static.to(wide if dtype is None else dtype)


def _bare(id: str) -> str:
    """An id without spaces, leading zeros, a fraction of zero and capitals."""
    return re.sub(r"^0+(?=\d)|\.0+$", "", id.strip()).casefold()


def _some(names: Sequence[str]) -> str:
    return listed(names[:5]) + (", ..." if len(names) > 5 else "")
