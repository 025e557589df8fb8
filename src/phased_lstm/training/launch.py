"""Joining the processes that torchrun started."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from ..errors import RunError
from .ranks import Ranks


def leave(status: int) -> int:
    """End this process with a status where it is one of several; alone, return the status.

    Threads that gloo leaves behind a group now and then abort an ordinary exit of Python.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


@contextmanager
def process_group(run: Path, *, timeout: timedelta = timedelta(minutes=10)) -> Iterator[bool]:
    """Join the others under torchrun, with gloo; alone, do nothing.

    Where another rank has ended or does not answer, this process says so and ends at once, with status 1: the group
    cannot be taken down in order any more, and the threads behind it would abort a normal exit.

    Yields:
        Whether this process is the one that writes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield True
        return
    dist.init_process_group("gloo", timeout=timeout)
    ranks = Ranks()
    try:
        yield ranks.leads
    except RuntimeError as error:
        # torch has no class of its own for what gloo reports.
        if isinstance(error, RunError) or not any(word in str(error) for word in ("gloo", "onnection", "imed out")):
            raise
        print(
            f"phased-lstm: error: rank {ranks.rank} of {ranks.size} has lost another rank, which ended or does not "
            f"answer ({error}); the run in {run} goes on from its last checkpoint with --resume, with any number of "
            f"ranks",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
    finally:
        dist.destroy_process_group()
