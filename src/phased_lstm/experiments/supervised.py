"""What the experiments on padded sequences share: a task from batches and a loss, and shuffled epochs."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .models import SequenceModel

_SEED_STRIDE = 1_000_003


class Batch(NamedTuple):
    """Sequences and what a model should say of them.

    Attributes:
        values: (N, L, F), padded at the end.
        times: (N, L) or (L,) absolute times.
        lengths: (N,) valid steps; None for L.
        targets: (N, ...) as the loss takes them.
    """

    values: Tensor
    times: Tensor
    lengths: Tensor | None
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same sequences on a device."""
        lengths = None if self.lengths is None else self.lengths.to(device)
        return Batch(self.values.to(device), self.times.to(device), lengths, self.targets.to(device))

    def rows(self, chosen: Tensor | slice) -> Batch:
        """Some of the sequences, without padding that all of them have."""
        lengths = None if self.lengths is None else self.lengths[chosen]
        longest = self.values.shape[1] if lengths is None else int(lengths.max())
        times = self.times if self.times.dim() == 1 else self.times[chosen]
        return Batch(self.values[chosen, :longest], times[..., :longest], lengths, self.targets[chosen])

    def split(self, size: int) -> Iterator[Batch]:
        """All sequences, `size` at a time."""
        for start in range(0, len(self.values), size):
            yield self.rows(slice(start, start + size))


class SupervisedTask(abc.ABC):
    """Trains a sequence model on batches that follow from seed and step.

    Args:
        model: the network.
        optimizer: of its parameters.
        loss: of outputs and targets, a mean over the batch.
    """

    def __init__(
        self, model: SequenceModel, optimizer: torch.optim.Optimizer, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Train and evaluate there; the batches are those of any other device."""
        self.model.to(device)
        self.device = device

    @abc.abstractmethod
    def batch(self, step: int) -> Batch:
        """The training batch of a step, a function of seed and step alone."""

    @abc.abstractmethod
    def test(self) -> dict[str, float]:
        """Evaluate between training steps."""

    @abc.abstractmethod
    def finish(self) -> dict[str, Any]:
        """Evaluate after the last step."""

    def penalty(self, batch: Batch) -> Tensor | None:
        """What training adds to the loss, besides."""
        return None

    def accuracy(self, outputs: Tensor, targets: Tensor) -> float | None:
        """The share of right answers, in a task that has them."""
        return None

    def train_step(self, step: int) -> dict[str, float]:
        batch = self.batch(step).to(self.device)
        self.model.train()
        self.optimizer.zero_grad()
        outputs = self.model(batch.values, batch.times, batch.lengths)
        loss = self.loss(outputs, batch.targets)
        penalty = self.penalty(batch)
        (loss if penalty is None else loss + penalty).backward()
        self.optimizer.step()
        return self._named("train", loss.item(), self.accuracy(outputs.detach(), batch.targets))

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], prefix: str = "test") -> dict[str, float]:
        """Loss, and accuracy where there is one, over the sequences of all batches, as `prefix`_loss and so on."""
        self.model.eval()
        count, loss, accuracy = 0, 0.0, None
        for batch in (drawn.to(self.device) for drawn in batches):
            outputs = self.model(batch.values, batch.times, batch.lengths)
            size = len(batch.targets)
            loss += self.loss(outputs, batch.targets).item() * size
            share = self.accuracy(outputs, batch.targets)
            if share is not None:
                accuracy = (accuracy or 0.0) + share * size
            count += size
        return self._named(prefix, loss / count, None if accuracy is None else accuracy / count)

    @staticmethod
    def _named(prefix: str, loss: float, accuracy: float | None) -> dict[str, float]:
        figures = {f"{prefix}_loss": loss}
        return figures if accuracy is None else figures | {f"{prefix}_accuracy": accuracy}


class ShuffledEpochs:
    """Which samples a step trains on: every sample once an epoch, in an order of the epoch's own.

    The last batch of an epoch may be smaller, as in Keras.

    Args:
        count: samples.
        batch_size: of all batches but the last of an epoch.
        seed: of the orders.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.steps = -(-count // batch_size)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """(batch_size,) indices of a step's samples."""
        epoch, index = divmod(step, self.steps)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator_of(self.seed, epoch))
        return self._order[index * self.batch_size : (index + 1) * self.batch_size]


def generator_of(seed: int, index: int) -> torch.Generator:
    """A generator for the step or epoch `index` of a run; -1 for the run's test data."""
    return torch.Generator().manual_seed(seed * _SEED_STRIDE + index)


def keras_rmsprop(model: nn.Module, lr: float) -> torch.optim.RMSprop:
    """RMSprop with the defaults of Keras, which published protocols mean by that name."""
    return torch.optim.RMSprop(model.parameters(), lr=lr, alpha=0.9, eps=1e-7)
