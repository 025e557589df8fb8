"""Settings under which every test runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Derandomised, so that a failure in continuous integration is a failure on every machine.
settings.register_profile("phased_lstm", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("phased_lstm")


@pytest.fixture(autouse=True, scope="session")
def _single_thread_and_poisoned_memory() -> Iterator[None]:
    """Run on one thread, with NaN (or the largest integer) in memory that nobody has written yet."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20161029)
