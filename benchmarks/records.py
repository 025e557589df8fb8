"""Results that survive a stop: points in a JSON file that is written whole after each of them."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import phased_lstm
from phased_lstm.experiments.runner import processor
from phased_lstm.files import replacing
from phased_lstm.ops import native

Point = dict[str, Any]

_INTERRUPTED = 130


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, metavar="FOLDER", help="keep the results there, as JSON")
    made.add_argument("--fresh", action="store_true", help="measure again what --out has already")
    made.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, the figures mean nothing")
    made.add_argument(
        "--denormals",
        action="store_true",
        help="compute with numbers below 1e-38, as torch does unasked, in place of flushing them to zero: gradients "
        "that fade over a long sequence become such numbers, and some processors take them many times as long",
    )
    return made


def machine() -> str:
    """One line on what the figures were measured with."""
    kernels = native.missing() or f"native kernels, {native.instruction_set()}"
    return f"{processor()}, torch {torch.__version__}, phased-lstm {phased_lstm.__version__}, {kernels}"


class Record:
    """Measured points by name; with `--out`, in a file that a later run goes on with.

    Points are kept only while nothing they depend on has changed: machine, versions, settings and the
    library's code, compiled kernels included.

    Args:
        name: of the file, without .json.
        options: from `parser`.
        settings: what else the points depend on.
    """

    def __init__(self, name: str, options: argparse.Namespace, settings: dict[str, Any]) -> None:
        # Before torch has threads: they take the mode over from the one that starts them.
        flushed = torch.set_flush_denormal(True) and not options.denormals
        torch.set_flush_denormal(flushed)
        self._path: Path | None = options.out / f"{name}.json" if options.out else None
        self._content: dict[str, Any] = {
            "machine": machine(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "phased-lstm": phased_lstm.__version__,
                "code": _digest(),
            },
            "settings": settings | {"quick": options.quick, "denormals": not flushed},
            "points": {},
        }
        if self._path is not None and self._path.exists() and not options.fresh:
            earlier = read(self._path)
            if all(earlier.get(key) == self._content[key] for key in ("machine", "versions", "settings")):
                self._content = earlier
            else:
                _progress(f"{self._path} is of another machine, version or setting: it is measured again")

    def measured(self, name: str, measure: Callable[[], Point]) -> Point:
        """Return the point of that name, measured now unless an earlier run did."""
        points = self._content["points"]
        _progress(f"{'kept' if name in points else 'measuring'}: {name}")
        if name not in points:
            points[name] = measure()
            self._write()
        return points[name]

    def note(self, name: str, value: Any) -> None:
        """Add what follows from the points."""
        self._content[name] = value
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            with replacing(self._path) as file:
                file.write((json.dumps(self._content, indent=2) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """Return the content of a results file.

    Raises:
        SystemExit: it cannot be read, or is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read as results: {error}; --fresh replaces it") from error
    if not isinstance(content, dict) or not isinstance(content.get("points"), dict):
        raise SystemExit(f"{path} holds no results; --fresh replaces it")
    return content


def run(main: Callable[[], None]) -> None:
    """Call a script's main; Ctrl-C ends it in one line."""
    try:
        main()
    except KeyboardInterrupt:
        _progress("stopped; the same command, with --out and without --fresh, goes on from here")
        raise SystemExit(_INTERRUPTED) from None


def _digest() -> str:
    """Name the library's code, so that figures of an older one are not taken for its own."""
    package = Path(phased_lstm.__file__).parent
    digest = hashlib.sha256()
    for pattern in ("*.py", "ops/*.py", "_native*.so"):
        for path in sorted(package.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
