"""The page of results: its tables come from the summaries beside it, its words from whoever ran them."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import RunError
from ..files import replacing
from ..training.runs import read_json
from .runner import SUMMARY, table

PAGE = "RESULTS.md"
_TABLE = re.compile(r"(<!-- table ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, folder: Path) -> str:
    """Put tables between the page's marks `<!-- table NAME -->` and `<!-- end -->`.

    Args:
        page: text in Markdown.
        folder: where `NAME/summary.json` are.

    Returns:
        The page with each table made anew.

    Raises:
        RunError: a summary is missing or damaged.
    """

    def put(match: re.Match[str]) -> str:
        summary = read_json(folder / match[2] / SUMMARY)
        return f"{match[1]}{table(summary)}\n{match[3]}"

    return _TABLE.sub(put, page)


def refresh(folder: Path) -> Path:
    """Make the tables of `folder/RESULTS.md` anew; return its path.

    Raises:
        RunError: the page or a summary is missing, or the page cannot be written.
    """
    path = folder / PAGE
    try:
        filled = fill(path.read_text(encoding="utf-8"), folder)
        with replacing(path) as file:
            file.write(filled.encode())
    except OSError as error:
        raise RunError(f"{path} cannot be read or written: {error}") from error
    return path
