"""Joining the processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from ..errors import RunError
from .ranks import Ranks


@contextmanager
def process_group(run: Path, *, timeout: timedelta = timedelta(minutes=10)) -> Iterator[bool]:
    """Join the others under torchrun, with gloo; alone, do nothing.

    Yields:
        Whether this process is the one that writes.

    Raises:
        RunError: another rank has ended or does not answer.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield True
        return
    dist.init_process_group("gloo", timeout=timeout)
    ranks = Ranks()
    try:
        yield ranks.leads
    except RunError:
        raise
    except RuntimeError as error:
        raise RunError(
            f"rank {ranks.rank} of {ranks.size} has lost another rank, which ended or does not answer ({error}); the "
            f"run in {run} goes on from its last checkpoint with --resume, with any number of ranks"
        ) from error
    finally:
        dist.destroy_process_group()
