"""Training a `SequenceNetwork`: loss, batches, schedule, validation, early stopping."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .._checks import check_integer, check_number, plain
from ..data.loading import IGNORED_CLASS, EventDataset, LengthBatchSampler
from ..data.storage import ChosenSequences
from ..models import SequenceNetwork
from . import metrics
from .diagnosis import cause_of_nan
from .ranks import Ranks
from .schedule import warmup_cosine

# Of these, less is better.
_FALLING = ("loss", "mae", "rmse")
MONITORS = ("loss", *metrics.CLASSIFICATION, *metrics.REGRESSION)


def check_switch(name: str, value: object) -> bool:
    """Return whether a setting is on, 0, 1 and None included; TypeError for text, as "False" would be true."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} should be of type bool, got: {value!r}")
    return bool(plain(value))


@dataclass(frozen=True)
class FitConfig:
    """How a network is trained.

    Attributes:
        epochs: passes over the training part, at most.
        batch_size: sequences of a batch, over all ranks.
        lr: highest learning rate of AdamW.
        warmup: steps over which it rises; None: a twentieth of all, 100 at most.
        cosine: whether it falls to zero along a cosine.
        clip_grad_norm: limit of the gradient's norm; 0: none.
        weight_decay: of AdamW.
        patience: epochs without a better figure on the validation part after which training stops; 0: it does not.
        monitor: that figure.
        seed: of the order of sequences.
    """

    epochs: int = 50
    batch_size: int = 32
    lr: float = 5e-3
    warmup: int | None = None
    cosine: bool = True
    clip_grad_norm: float = 1.0
    weight_decay: float = 1e-4
    patience: int = 10
    monitor: str = "loss"
    seed: int = 0

    def __post_init__(self) -> None:
        # Numbers and flags of any library are kept as Python's.
        made: dict[str, Any] = {"seed": check_integer("seed", self.seed), "monitor": str(self.monitor)}
        for name, least in (("epochs", 1), ("batch_size", 1), ("patience", 0)):
            value = made[name] = plain(getattr(self, name))
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
                raise ValueError(f"{name} should be a whole number from {least} on, got {value!r}")
        for name in ("lr", "clip_grad_norm", "weight_decay", *([] if self.warmup is None else ["warmup"])):
            made[name] = check_number(name, getattr(self, name))
            if not 0.0 <= made[name] < math.inf or (name == "lr" and not made[name]):
                wanted = "finite" if made[name] == math.inf else "above 0" if name == "lr" else "from 0 on"
                raise ValueError(f"{name} should be {wanted}, got {made[name]!r}")
        made["cosine"] = check_switch("cosine", self.cosine)
        for name, value in made.items():
            object.__setattr__(self, name, value)


class SequenceTask:
    """Trains a network on labelled sequences, step by step; see `training.loop.Task`.

    A step is a function of seed and step, whatever the number of ranks: every rank knows all batches, and
    computes the part of each that it holds. With a validation part the best weights are kept.

    Args:
        network: already fitted to the training part.
        train: labels (N,) int64 or (N, K) floating, NaN where missing; with per_step, those of the events, (S,) with
            `IGNORED_CLASS` or (S, K) with NaN where an event has none.
        valid: the same for validation, or None.
        config: how to train.
        class_weight: (C,) weight of each class in the loss.
        optimizer: one that has been used before; None: a new one.
        members: (N,) numbers of the training sequences of this rank among those of all ranks; None: there is one rank.
        lengths: lengths of the training sequences of all ranks, with `members`.

    Raises:
        ValueError: the validation part cannot give the figure to monitor.
    """

    def __init__(
        self,
        network: SequenceNetwork,
        train: EventDataset | ChosenSequences,
        valid: EventDataset | ChosenSequences | None,
        config: FitConfig,
        *,
        class_weight: Tensor | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        members: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        self.model, self.train, self.valid, self.config, self.class_weight = network, train, valid, config, class_weight
        self.optimizer = optimizer or torch.optim.AdamW(
            network.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.ranks = Ranks()
        if valid is not None:
            # Before the first step: an epoch is much to lose.
            assert valid.labels is not None
            fault = monitor_fault(network, config.monitor, torch.cat(self.ranks.gather(valid.labels)), class_weight)
            if fault is not None:
                raise ValueError(
                    f"monitor {config.monitor!r} {fault}; choose another monitor, random_state or validation_fraction"
                )
        self.sampler = LengthBatchSampler(
            train.lengths if lengths is None else lengths, config.batch_size, seed=config.seed
        )
        self.epoch_steps = len(self.sampler)
        self.steps = config.epochs * self.epoch_steps
        self._places = None if members is None else {int(name): row for row, name in enumerate(members)}
        self._warmup = min(100, self.steps // 20) if config.warmup is None else config.warmup
        self._network: nn.Module = DistributedDataParallel(network) if self.ranks.size > 1 else network
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        self._best: dict[str, Tensor] = {}
        self._best_score, self._waited = -math.inf, 0

    @property
    def finished(self) -> bool:
        """Whether training should stop early."""
        return self.valid is not None and 0 < self.config.patience <= self._waited

    def train_step(self, step: int) -> dict[str, float]:
        batch = self._batch(step)
        rate = warmup_cosine(
            self.config.lr, step, warmup=self._warmup, steps=self.steps if self.config.cosine else None
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.ranks.rank:
            # The first rank's generator goes on with the run; the others must not drop out the same units.
            torch.manual_seed((self.config.seed * self.steps + step) * self.ranks.size + self.ranks.rank)
        self.model.train()
        self.optimizer.zero_grad()
        loss, weight = self._loss(self._network, batch)
        total = self.ranks.total(torch.stack([loss.detach().double(), weight.double()]))
        # Gradients are averaged over the ranks; a batch without any target has no gradient.
        (loss * (self.ranks.size / max(float(total[1]), 1e-12))).backward()
        if self.config.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        self.optimizer.step()
        return {
            "epoch": (step + 1) / self.epoch_steps,
            "train_loss": float(total[0] / total[1]) if total[1] > 0 else 0.0,
            "learning_rate": rate,
        }

    def test(self) -> dict[str, float]:
        """Evaluate on the validation part, and keep the weights if they are the best so far."""
        if self.valid is None:
            return {}
        figures = self.evaluate(self.valid)
        monitor = self.config.monitor
        score = -figures[monitor] if monitor in _FALLING else figures[monitor]
        if score > self._best_score:
            self._best_score, self._waited = score, 0
            self._best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        else:
            self._waited += 1
        return {f"valid_{name}": value for name, value in figures.items()}

    def restore_best(self) -> None:
        """Go back to the best weights, where there was a validation part."""
        if self._best:
            self.model.load_state_dict(self._best)

    def evaluate(self, data: EventDataset | ChosenSequences) -> dict[str, float]:
        """Return the loss and all figures of a part that all ranks hold their share of."""
        outputs = predict(self.model, data, self.config.batch_size)
        assert data.labels is not None
        gathered = self.ranks.gather((outputs, data.labels))
        return figures_of(
            self.model, torch.cat([part[0] for part in gathered]), torch.cat([part[1] for part in gathered]),
            self.class_weight,
        )  # fmt: skip

    def cause_of_nan(self, step: int) -> str | None:
        """Return what in the batch of a step makes the loss infinite or NaN; None: nothing in it does."""
        return cause_of_nan(self.model, self._batch(step), self.class_weight)

    def extra_state(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides model and optimiser."""
        progress = torch.tensor([self._best_score, self._waited], dtype=torch.float64)
        return {"progress": progress} | {f"best.{name}": tensor for name, tensor in self._best.items()}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `extra_state` gave; KeyError or ValueError if it does not fit."""
        self._best_score, waited = state["progress"].tolist()
        self._waited = int(waited)
        self._best = {name.removeprefix("best."): part for name, part in state.items() if name.startswith("best.")}

    def _batch(self, step: int) -> EventDataset:
        epoch, index = divmod(step, self.epoch_steps)
        if self._epoch[0] != epoch:
            self.sampler.set_epoch(epoch)
            self._epoch = (epoch, list(self.sampler))
        rows = self._epoch[1][index]
        if self._places is not None:
            rows = [self._places[row] for row in rows if row in self._places]
        return self.train[rows]

    def _loss(self, network: nn.Module, batch: EventDataset) -> tuple[Tensor, Tensor]:
        """The sum of the loss over the targets of a batch, and the sum of their weights."""
        outputs = _outputs(network, batch)
        assert batch.labels is not None
        return loss_sum(self.model, outputs, batch.labels, self.class_weight)


def loss_sum(
    network: SequenceNetwork, outputs: Tensor, labels: Tensor, class_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the sum of the loss over all targets that are there, and the sum of their weights.

    The loss is cross-entropy, or the squared error of standardised targets.
    """
    if class_weight is not None:
        class_weight = class_weight.to(outputs.dtype)
    if network.target_scale is None:
        loss = nn.functional.cross_entropy(outputs, labels, class_weight, ignore_index=IGNORED_CLASS, reduction="sum")
        known = labels[labels != IGNORED_CLASS]
        return loss, torch.as_tensor(len(known)) if class_weight is None else class_weight[known].sum()
    # Standardised before they are narrowed: most of their digits may be those of the mean.
    targets = network.target_scale(labels.double()).to(outputs.dtype)
    known = ~targets.isnan()
    return (outputs[known] - targets[known]).square().sum(), known.sum()


@torch.no_grad()
def predict(network: SequenceNetwork, data: EventDataset | ChosenSequences, batch_size: int) -> Tensor:
    """Return the outputs for all sequences, (N, outputs), or (S, outputs) of all steps; see `SequenceNetwork`."""
    network.eval()
    if not len(data):
        return torch.zeros(0, network.config.outputs)
    order = torch.cat([torch.tensor(rows) for rows in LengthBatchSampler(data.lengths, batch_size, shuffle=False)])
    outputs = torch.cat([_outputs(network, data[rows]) for rows in order.split(batch_size)])
    if not network.config.per_step:
        return outputs[order.argsort()]
    sorted_rows = data[order].events
    return type(sorted_rows)._unchecked(outputs, sorted_rows.times, sorted_rows.offsets)[order.argsort()].values


def _outputs(network: nn.Module, data: EventDataset) -> Tensor:
    values, times, lengths = data.events.padded()
    outputs: Tensor = network(values, times, lengths, data.static)
    if outputs.dim() == 2:
        return outputs
    return outputs[torch.arange(outputs.shape[1]) < lengths.unsqueeze(1)]


def figures_of(
    network: SequenceNetwork, outputs: Tensor, labels: Tensor, class_weight: Tensor | None = None
) -> dict[str, float]:
    """Return the loss and the metrics of outputs, against labels of which some may be missing."""
    total, weight = loss_sum(network, outputs, labels, class_weight)
    figures: dict[str, Any] = {"loss": float(total / weight)} if weight > 0 else {}
    if network.target_scale is None:
        known = labels != IGNORED_CLASS
        if bool(known.any()):
            figures |= metrics.classification(outputs[known].softmax(1).double().numpy(), labels[known].numpy())
    elif weight > 0:
        predictions = network.target_scale.inverse(outputs.double())
        figures |= metrics.regression(predictions.numpy(), labels.double().numpy())
    return figures


def monitors_of(target: str) -> tuple[str, ...]:
    """Return the figures that can be monitored for a kind of target."""
    return ("loss", *(metrics.CLASSIFICATION if target == "classification" else metrics.REGRESSION))


def monitor_fault(
    network: SequenceNetwork, monitor: str, labels: Tensor, class_weight: Tensor | None = None
) -> str | None:
    """Return why the labels of a validation part cannot give a figure, or None where they can.

    Args:
        network: whose outputs would be measured.
        monitor: name of the figure.
        labels: of the part, as `figures_of` takes them.
        class_weight: (C,) weight of each class in the loss.
    """
    if monitor not in monitors_of(network.config.target):
        return f"is no figure of a {network.config.target}, which has {', '.join(monitors_of(network.config.target))}"
    # What is measured of any outputs tells what can be.
    if monitor in figures_of(network, torch.zeros(len(labels), network.config.outputs), labels, class_weight):
        return None
    why = {
        "r2": "where the targets are not all the same", "balanced_accuracy": "where there are two classes or more",
        "auroc": "where every class is there", "auprc": "where every class is there",
    }.get(monitor, "where there are targets within the range of float32")  # fmt: skip
    if monitor == "loss" and class_weight is not None:
        why = "where there are targets of some weight"
    if network.target_scale is not None:
        targets = labels[~labels.isnan()].unique().tolist()
        found = f"has only {', '.join(f'{value:g}' for value in targets[:5])}" if targets else "has no target"
    else:
        numbers = labels[labels != IGNORED_CLASS].unique().tolist()
        names = [network.config.classes[number] if network.config.classes else str(number) for number in numbers]
        found = f"has only {', '.join(names[:5])}" if names else "has no target"
    return f"is measured {why}, and the validation part of {len(labels)} {found}"


def fit_in_memory(task: SequenceTask, *, progress: bool = False) -> int:
    """Train without a run folder, to the end or until validation says to stop; return the epochs done."""
    done = 0
    while done < task.steps and not task.finished:
        figures = task.train_step(done)
        done += 1
        if not math.isfinite(figures["train_loss"]):
            cause = task.cause_of_nan(done - 1) or "lower lr or clip gradients"
            raise ValueError(f"the training loss is {figures['train_loss']} at step {done}: {cause}")
        if done % task.epoch_steps == 0:
            figures |= task.test()
            if progress:
                shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if "loss" in name)
                print(f"epoch {done // task.epoch_steps}: {shown}")
    task.restore_best()
    return done // task.epoch_steps
