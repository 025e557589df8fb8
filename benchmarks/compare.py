"""How many times faster than torch.nn.LSTM on several machines, beside each other: a table in Markdown.

python benchmarks/compare.py NAME=FOLDER [NAME=FOLDER ...], folders in which layers.py left its results
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from records import Point, read
from timing import DENSE, OURS, PARTS


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("records", nargs="+", metavar="NAME=FOLDER", help="a column's title, and its results")
    named = [given.partition("=") for given in arguments.parse_args().records]
    for name, _, folder in named:
        if not name or not folder:
            raise SystemExit(f"expected NAME=FOLDER, a column's title and its results, got {name or folder!r}")
    columns = {name: read(Path(folder) / "layers.json")["points"] for name, _, folder in named}
    rows: dict[str, Any] = {}
    for points in columns.values():
        rows |= points
    print(f"| batch, steps, in, hidden | aim | {' | '.join(columns)} |")
    print("|" + " --- |" * (2 + len(columns)))
    for row, point in rows.items():
        aim = " / ".join(f"{point['floor'][part]}" for part in PARTS)
        print(f"| {row} | {aim} | {' | '.join(_ratios(points.get(row)) for points in columns.values())} |")
    reached = [sum(_reaches(point, part) for point in points.values() for part in PARTS) for points in columns.values()]
    print(f"| aims reached | {len(PARTS) * len(rows)} | {' | '.join(map(str, reached))} |")


def _ratio(point: Point, part: str) -> float:
    return float(point["ms"][f"{DENSE} {part}"] / point["ms"][f"{OURS} {part}"])


def _reaches(point: Point, part: str) -> bool:
    return _ratio(point, part) >= point["floor"][part]


def _ratios(point: Point | None) -> str:
    """Forward / train; in bold what reaches the aim."""
    if point is None:
        return ""
    bold = {True: "**", False: ""}
    marks = [bold[_reaches(point, part)] for part in PARTS]
    return " / ".join(f"{mark}{_ratio(point, part):.1f}{mark}" for mark, part in zip(marks, PARTS, strict=True))


if __name__ == "__main__":
    main()
