"""What the examples share: their options, mean and deviation over seeds, and where results go."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import phased_lstm
from phased_lstm.plotting import Figure, save_figure
from phased_lstm.training.runs import write_json


def options_of(description: str | None, *, seeds: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all examples have.

    Args:
        description: of the example, the first paragraph of its documentation.
        seeds: how many are run unless asked otherwise.
    """
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--data-dir", type=Path, help="folder of the files (default: where phased_lstm.data looks)")
    parser.add_argument("--seeds", type=int, default=seeds, metavar="N", help=f"runs, with seeds 0 to N - 1 ({seeds})")
    parser.add_argument("--out", type=Path, default=Path("runs", "examples", name), help="folder (runs/examples/NAME)")
    parser.add_argument("--results", type=Path, help="also write the results as JSON and a picture to this folder")
    parser.add_argument("--quick", action="store_true", help="a run of seconds that shows that all works, no figures")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, and set the number of threads."""
    options = parser.parse_args()
    if options.seeds < 1 or options.threads < 1 or getattr(options, "epochs", 1) < 1:
        parser.error("--seeds, --threads and --epochs should be at least 1")
    for folder in filter(None, (options.out, options.results)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"results cannot be written to {folder}: {error}")
    torch.set_num_threads(options.threads)
    # On some processors nn.LSTM's fading gradients would take many times as long, and time is what is shared out.
    torch.set_flush_denormal(True)
    return options


def spread(values: Sequence[float]) -> str:
    """Return shares as percent, their mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):.1f} ± {100 * deviation:.1f} % ({len(values)})"


def report(options: argparse.Namespace, results: dict[str, Any], picture: Figure) -> None:
    """Write results.json and picture.png to --out, and to --results if it is given.

    Raises:
        OSError, RunError: they cannot be written.
    """
    about = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), "phased_lstm": phased_lstm.__version__,
        "torch": torch.__version__, "threads": options.threads, "cpu_seconds": round(time.process_time(), 1),
    }  # fmt: skip
    for folder in filter(None, (options.out, options.results)):
        write_json(folder / "results.json", about | results)
        print("written:", folder / "results.json", save_figure(picture, folder / "picture.png"))
