"""The demo: Basic LSTM and Phased LSTM on the same digits for the same number of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .config import MnistConfig
from .mnist import run as run_mnist

_MODELS = ("BasicLSTMCell", "PhasedLSTMCell")


def configuration(model: str, steps: int, threads: int) -> MnistConfig:
    """The demo's options: the same for both models, so that they differ in the cell alone."""
    return MnistConfig(
        model=model,
        data="digits",
        steps=steps,
        threads=threads,
        batch_size=64,
        lr=2e-2,
        lr_warmup=50,
        lr_cosine=True,
        clip_grad_norm=1.0,
        forget_bias=1.0,
        peephole=False,
        leak=0.0,
        trainable_ratio_on=False,
        period_init_min=20.0,
        period_init_max=784.0,
        test_every=50,
        test_size=360,
    )


def run(out: Path, *, steps: int, threads: int = 0, progress: bool = True) -> int:
    """Train both models, print a table, and draw the curves and the gate.

    Args:
        out: folder of the runs and pictures; runs that are there are replaced.
        steps: training steps of each model.
        threads: CPU threads, 0 for torch's choice.
        progress: show progress bars.

    Returns:
        The exit status: 0, or 130 when interrupted.
    """
    from ..plotting import PICTURES, plot_runs

    # Those of runs that are replaced now.
    for name in PICTURES:
        (out / name).unlink(missing_ok=True)
    folders = [out / model for model in _MODELS]
    rows = []
    for model, folder in zip(_MODELS, folders, strict=True):
        results = run_mnist(configuration(model, steps, threads), folder, overwrite=True, progress=progress)
        if results is None:
            print("interrupted")
            return 130
        rows.append(results)
    print(table(rows))
    for path in plot_runs(folders, out):
        print(f"picture: {path}")
    return 0


def table(rows: list[dict[str, Any]]) -> str:
    """Format results as a table of accuracy after equal steps, seconds per step and openness."""
    lines = [f"{'model':<16}{'steps':>7}{'training acc.':>15}{'test acc.':>11}{'s / step':>10}{'openness':>10}"]
    for row in rows:
        openness = f"{row['openness']:.1%}" if "openness" in row else "always"
        lines.append(
            f"{row['model']:<16}{row['steps']:>7}{row['train_accuracy_last_100']:>15.3f}{row['test_accuracy']:>11.3f}"
            f"{row['seconds_per_step']:>10.3f}{openness:>10}"
        )
    return "\n".join(lines)
