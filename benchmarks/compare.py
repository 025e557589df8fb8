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
    columns: dict[str, Any] = {}
    for given in arguments.parse_args().records:
        name, _, folder = given.partition("=")
        if not name or not folder or name in columns:
            raise SystemExit(f"expected NAME=FOLDER, each with a title of its own, got {given!r}")
        if not (Path(folder) / "layers.json").exists():
            raise SystemExit(f"{folder} holds no layers.json: run layers.py --out {folder} first")
        columns[name] = read(Path(folder) / "layers.json")["points"]
    # An aim may have changed since a machine was measured: all are held to the first column's.
    aims: dict[str, Any] = {}
    for points in columns.values():
        aims = {row: point["floor"] for row, point in points.items()} | aims
    print(f"| batch, steps, in, hidden | aim | {' | '.join(columns)} |")
    print("|" + " --- |" * (2 + len(columns)))
    for row, aim in aims.items():
        shown = " | ".join(_ratios(points[row], aim) if row in points else "" for points in columns.values())
        print(f"| {row} | {' / '.join(str(aim[part]) for part in PARTS)} | {shown} |")
    reached = [
        sum(_ratio(point, part) >= aims[row][part] for row, point in points.items() for part in PARTS)
        for points in columns.values()
    ]
    print(f"| aims reached | {len(PARTS) * len(aims)} | {' | '.join(map(str, reached))} |")


def _ratio(point: Point, part: str) -> float:
    return float(point["ms"][f"{DENSE} {part}"] / point["ms"][f"{OURS} {part}"])


def _ratios(point: Point, aim: dict[str, int]) -> str:
    """Forward / train; in bold what reaches the aim."""
    ratios = {part: _ratio(point, part) for part in PARTS}
    bold = {part: "**" * (ratio >= aim[part]) for part, ratio in ratios.items()}
    return " / ".join(f"{bold[part]}{ratio:.1f}{bold[part]}" for part, ratio in ratios.items())


if __name__ == "__main__":
    main()
