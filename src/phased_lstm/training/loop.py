"""A plain training loop that shows progress, can be stopped at any moment, and goes on as if it had not."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..errors import RunError, missing_extra
from .checkpoints import load_checkpoint, save_checkpoint
from .ranks import Ranks
from .runs import CHECKPOINT, RunFolder


class Task(Protocol):
    """What is trained. Batches must depend on the step alone, so that a resumed run sees the same."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def train_step(self, step: int) -> dict[str, float]:
        """Do one update; return its figures, by column of the log."""

    def test(self) -> dict[str, float]:
        """Evaluate; return figures, by column of the log."""


@runtime_checkable
class StoppingTask(Task, Protocol):
    """A task that may end before its last step, and has a state of its own besides model and optimiser."""

    @property
    def finished(self) -> bool:
        """Whether no further step is wanted; the same at all ranks."""

    def extra_state(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides."""

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore it; KeyError or ValueError if it does not fit."""


def train(
    task: Task,
    run: RunFolder,
    *,
    steps: int,
    test_every: int,
    checkpoint_every: int,
    resume: bool,
    progress: bool = True,
    label: str = "",
) -> bool:
    """Train up to `steps` updates, logging each, with checkpoints.

    Ctrl-C or SIGTERM finishes the step, saves a checkpoint and returns; a second Ctrl-C stops at once. Of several
    ranks only the first writes; all of them read its checkpoint.

    Args:
        task: model, optimiser and what a step does.
        run: the run's folder, claimed; the caller closes it.
        steps: number of updates in all, those before a resume included.
        test_every: steps between tests; the last step is tested too.
        checkpoint_every: steps between checkpoints.
        resume: whether to go on from the folder's checkpoint.
        progress: whether to show a progress bar with speed and time left.
        label: shown before the bar.

    Returns:
        True when all steps are done or a `StoppingTask` has finished, False when interrupted.

    Raises:
        RunError: the checkpoint cannot be read or written, has more than `steps` steps, or the log lacks
            some of them; or the loss is not finite.
    """
    done, ranks = 0, Ranks()
    stopping = task if isinstance(task, StoppingTask) else None
    if resume:
        # A run killed before its first checkpoint begins again, to the same figures.
        if run.file(CHECKPOINT).exists():
            restore = None if stopping is None else stopping.load_extra_state
            done = load_checkpoint(run.file(CHECKPOINT), task.model, task.optimizer, restore, run.identity)
        if done > steps:
            raise RunError(f"the run in {run.path} has done {done} steps already, --steps should be at least that")
        # The others must have read the checkpoint before the first rank writes the next.
        ranks.gather(None)
        if ranks.leads:
            run.resume(done)

    def save() -> None:
        if ranks.leads:
            extra = {} if stopping is None else stopping.extra_state()
            save_checkpoint(run.file(CHECKPOINT), done, task.model, task.optimizer, extra, run.identity)

    finished = stopping is not None and stopping.finished
    with _interruptible() as interrupted, _bar(done, steps, label, progress and ranks.leads) as bar:
        while done < steps and not finished and not ranks.any(interrupted()):
            started = time.perf_counter()
            row: dict[str, Any] = task.train_step(done)
            row["seconds"] = time.perf_counter() - started
            done += 1
            if not torch.isfinite(torch.tensor(row["train_loss"])):
                cause = getattr(task, "cause_of_nan", lambda step: None)(done - 1)
                cause = cause or "lower --lr or clip gradients with --clip-grad-norm"
                raise RunError(
                    f"the training loss is {row['train_loss']} at step {done}: {cause}; the run so far is in {run.path}"
                )
            if done % test_every == 0 or done == steps:
                row |= task.test()
            if ranks.leads:
                run.log({"step": done} | row)
            shown = ("train_loss", "train_accuracy", "valid_loss")
            bar.set_postfix({name: f"{row[name]:.3f}" for name in shown if name in row}, refresh=False)
            bar.update()
            finished = stopping is not None and stopping.finished
            if done % checkpoint_every == 0:
                save()
        save()
    return done >= steps or finished


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a question that can be asked between steps."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        restore()
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)

    def restore() -> None:
        for kind, handler in previous.items():
            signal.signal(kind, handler)

    previous: dict[int, Any] = {}
    try:
        for kind in (signal.SIGINT, signal.SIGTERM):
            # What a parent process has switched off stays off.
            if threading.current_thread() is threading.main_thread() and signal.getsignal(kind) != signal.SIG_IGN:
                previous[kind] = signal.signal(kind, ask)
        yield lambda: asked
    finally:
        restore()


def _bar(done: int, steps: int, label: str, shown: bool) -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise missing_extra("train", "tqdm") from error
    # In a log file a line every ten seconds is enough.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(initial=done, total=steps, desc=label, unit="step", disable=not shown, mininterval=interval)
