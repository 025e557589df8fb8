"""MNIST as 784 one-pixel steps: the historic comparison of Basic LSTM and Phased LSTM."""

from __future__ import annotations

import platform
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..data.mnist import STEPS, Digits, load
from ..errors import RunError
from ..layers import PhasedGRU, PhasedLSTM
from ..training.arithmetic import fair_arithmetic
from ..training.checkpoints import load_model, save_model, save_tensors
from ..training.loop import train
from ..training.runs import CONFIG, MODEL, RESULTS, TRACE, RunFolder, identity_of, read_json, read_log
from ..training.schedule import warmup_cosine
from .config import FREE_ON_RESUME, MnistConfig, resumed

COLUMNS = (
    "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "openness", "learning_rate", "seconds",
)  # fmt: skip


class SequenceClassifier(nn.Module):
    """A recurrent layer over pixels, and a linear layer on its last state.

    Args:
        config: sizes, cell and gate.
    """

    times: Tensor

    def __init__(self, config: MnistConfig) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"input_size": 1, "hidden_size": config.hidden_size, "num_layers": config.num_layers}
        gate: dict[str, Any] = {
            "leak": config.leak, "ratio_on": config.ratio_on, "trainable_ratio_on": config.trainable_ratio_on,
            "period_init_min": config.period_init_min, "period_init_max": config.period_init_max,
            "oscillation": config.oscillation,
            "backend": config.backend,
        }  # fmt: skip
        self.rnn: PhasedLSTM | PhasedGRU | nn.LSTM | nn.GRU
        if config.model == "PhasedLSTMCell":
            self.rnn = PhasedLSTM(**sizes, batch_first=True, peephole=config.peephole, **gate)
        elif config.model == "PhasedGRUCell":
            self.rnn = PhasedGRU(**sizes, batch_first=True, **gate)
        else:
            self.rnn = (nn.LSTM if config.model == "BasicLSTMCell" else nn.GRU)(**sizes, batch_first=True)
        self._pixel_scale = config.pixel_scale
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden_size, 10)
        self.register_buffer("times", torch.arange(STEPS), persistent=False)
        forget_bias = (config.model == "BasicLSTMCell") if config.forget_bias is None else config.forget_bias
        if "LSTM" in config.model:
            units = slice(config.hidden_size, 2 * config.hidden_size)
            with torch.no_grad():
                for layer in range(config.num_layers):
                    getattr(self.rnn, f"bias_ih_l{layer}")[units] += forget_bias

    @property
    def is_phased(self) -> bool:
        return isinstance(self.rnn, (PhasedLSTM, PhasedGRU))

    @property
    def has_cell_state(self) -> bool:
        return isinstance(self.rnn, (PhasedLSTM, nn.LSTM))

    def forward(self, pixels: Tensor, noise: float = 0.0) -> Tensor:
        """Classify.

        Args:
            pixels: (N, 784) in [0, 1].
            noise: standard deviation of the initial state.

        Returns:
            (N, 10) logits.
        """
        hx: Any = None
        if noise:
            shape = (self.rnn.num_layers, len(pixels), self.rnn.hidden_size)
            states = [noise * torch.randn(shape, device=pixels.device) for _ in range(1 + self.has_cell_state)]
            hx = tuple(states) if self.has_cell_state else states[0]
        x = self.inputs(pixels)
        if self.is_phased:
            _, state = self.rnn(x, hx, self.times, return_sequence=False)
        else:
            _, state = self.rnn(x, hx)
        return self.head(self.dropout((state[0] if self.has_cell_state else state)[-1]))

    def inputs(self, pixels: Tensor) -> Tensor:
        """(N, 784) pixels in [0, 1] as steps of a layer, (N, 784, 1)."""
        return self._pixel_scale * pixels.unsqueeze(-1)

    def openness(self) -> float | None:
        """Mean share of the steps at which a unit is open, or None without a time gate."""
        if not isinstance(self.rnn, (PhasedLSTM, PhasedGRU)):
            return None
        with torch.no_grad():
            return statistics.fmean(float(gate.openness(self.times).fraction.mean()) for gate in self.rnn.gates)


class MnistTask:
    """Model, optimiser and data of a run, as the training loop takes them."""

    def __init__(self, config: MnistConfig, digits: Digits) -> None:
        if config.batch_size > len(digits.train_labels):
            raise RunError(
                f"--batch-size {config.batch_size} is more than the {len(digits.train_labels)} training images"
            )
        torch.manual_seed(config.seed)
        self.config = config
        self.digits = permuted(digits) if config.permuted else digits
        self.model = SequenceClassifier(config)
        parameters = self.model.parameters()
        self.optimizer: torch.optim.Optimizer
        if config.weight_decay:
            self.optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
        else:
            self.optimizer = torch.optim.Adam(parameters, lr=config.lr)
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))

    def to(self, device: torch.device) -> None:
        """Train and evaluate there."""
        self.model.to(device)
        self.digits = Digits(*(part.to(device) for part in self.digits))

    def train_step(self, step: int) -> dict[str, float]:
        config = self.config
        chosen = self._batch(step)
        pixels, labels = (_pixels(self.digits.train_images[chosen]), self.digits.train_labels[chosen])
        rate = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.optimizer.zero_grad()
        logits = self.model(pixels, config.initial_state_std)
        loss = nn.functional.cross_entropy(logits, labels)
        (loss + self._penalty()).backward()
        if config.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad_norm)
        self.optimizer.step()
        return {
            "train_loss": loss.item(),
            "train_accuracy": (logits.argmax(1) == labels).float().mean().item(),
            "learning_rate": rate,
        }

    def _penalty(self) -> Tensor | float:
        rnn = self.model.rnn
        if not self.config.openness_penalty or not isinstance(rnn, (PhasedLSTM, PhasedGRU)):
            return 0.0
        means = [gate.openness(self.model.times).mean.mean() for gate in rnn.gates]
        return self.config.openness_penalty * torch.stack(means).mean().float()

    def test(self) -> dict[str, float]:
        return self.evaluate(self.config.test_size)

    @torch.no_grad()
    def evaluate(self, count: int | None = None) -> dict[str, float]:
        """Loss and accuracy on the first `count` test images, or all."""
        self.model.eval()
        images, labels = (self.digits.test_images[:count], self.digits.test_labels[:count])
        losses, hits = 0.0, 0
        for part, wanted in zip(images.split(1000), labels.split(1000), strict=True):
            logits = self.model(_pixels(part))
            losses += nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
            hits += int((logits.argmax(1) == wanted).sum())
        figures = {"test_loss": losses / len(labels), "test_accuracy": hits / len(labels)}
        openness = self.model.openness()
        return figures if openness is None else figures | {"openness": openness}

    def _batch(self, step: int) -> Tensor:
        """The training images of a step: a function of seed and step alone."""
        per_epoch = len(self.digits.train_labels) // self.config.batch_size
        epoch, index = divmod(step, per_epoch)
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            self._epoch = (epoch, torch.randperm(len(self.digits.train_labels), generator=generator))
        return self._epoch[1][index * self.config.batch_size : (index + 1) * self.config.batch_size]


def permuted(digits: Digits) -> Digits:
    """Return the digits with their pixels in another order, drawn once and for all (seed 0 of torch's generator)."""
    order = torch.randperm(STEPS, generator=torch.Generator().manual_seed(0))
    return digits._replace(train_images=digits.train_images[:, order], test_images=digits.test_images[:, order])


def learning_rate(config: MnistConfig, step: int) -> float:
    """The learning rate of a step: linear warm-up, then constant or a cosine to zero."""
    steps = config.steps if config.lr_cosine else None
    return warmup_cosine(config.lr, step, warmup=config.lr_warmup, steps=steps)


def run(
    config: MnistConfig, out: str | Path, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> dict[str, Any] | None:
    """Train, evaluate on the whole test set, and save the model.

    Args:
        config: the run's options; when resuming, those of the run.
        out: the run's folder.
        resume: go on from the folder's checkpoint.
        overwrite: replace a run that is there.
        progress: show a progress bar.

    Returns:
        The results, also written to results.json; None when interrupted.

    Raises:
        DataError: the data are missing or corrupt.
        RunError: the folder, its checkpoint or an option does not serve.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = RunFolder(out, COLUMNS, identity_of(_fixed(config)))
    with fair_arithmetic():
        digits = load(config.data, config.data_dir, progress=progress)
        try:
            task = MnistTask(config, digits)
        except ValueError as error:
            raise RunError(str(error)) from error
        if resume:
            folder.lock()
        else:
            folder.start(config.to_json(), overwrite=overwrite)
        try:
            return _train(config, task, folder, resume=resume, progress=progress)
        finally:
            folder.close()


def _fixed(config: MnistConfig) -> dict[str, Any]:
    """What a run keeps when it is resumed."""
    return {name: value for name, value in config.to_json().items() if name not in FREE_ON_RESUME}


def _train(
    config: MnistConfig, task: MnistTask, folder: RunFolder, *, resume: bool, progress: bool
) -> dict[str, Any] | None:
    finished = train(
        task, folder, steps=config.steps, test_every=config.test_every, checkpoint_every=config.checkpoint_every,
        resume=resume, progress=progress, label=config.model,
    )  # fmt: skip
    folder.write_json(CONFIG, config.to_json())
    if not finished:
        return None
    results = _results(config, task, folder)
    save_model(folder.file(MODEL), task.model, {"config": config.to_json()})
    if task.model.is_phased:
        save_tensors(folder.file(TRACE), trace(task.model, task.digits.test_images[0]), {"model": config.model})
    folder.write_json(RESULTS, results)
    return results


def resumed_config(out: str | Path, given: dict[str, Any]) -> MnistConfig:
    """The configuration with which the run in `out` goes on; `given` are options from the command line.

    Raises:
        RunError: there is no run, or an option given would change it.
    """
    return resumed(MnistConfig.from_json(read_json(Path(out) / CONFIG)), given)


def load_run(out: str | Path) -> SequenceClassifier:
    """Load the trained model of a finished run, in evaluation mode.

    Raises:
        RunError: the folder holds no finished run, or one that does not fit this version.
    """
    config = MnistConfig.from_json(read_json(Path(out) / CONFIG))
    model = SequenceClassifier(config)
    if not (Path(out) / MODEL).exists():
        raise RunError(f"the run in {out} is not finished: go on with phased-lstm mnist --out {out} --resume")
    saved = load_model(Path(out) / MODEL, model).get("config")
    if not isinstance(saved, dict) or _fixed(MnistConfig.from_json(saved)) != _fixed(config):
        raise RunError(f"{Path(out) / MODEL} and {Path(out) / CONFIG} are of two runs: put the run's own files back")
    return model.eval()


@torch.no_grad()
def trace(model: SequenceClassifier, image: Tensor) -> dict[str, Tensor]:
    """Follow the first layer through one image, step by step.

    Args:
        model: a classifier with a time gate.
        image: (784,) uint8.

    Returns:
        times (L,), pixels (L,), openness (L, H), and state (L, H): c of an LSTM, h of a GRU.
    """
    model.eval()
    rnn, pixels = model.rnn, _pixels(image)
    inputs = model.inputs(pixels.unsqueeze(0))
    assert isinstance(rnn, (PhasedLSTM, PhasedGRU))
    states, hx = [], None
    for step in range(STEPS):
        _, hx = rnn(inputs[:, step : step + 1], hx, model.times[step : step + 1], return_sequence=False)
        states.append((hx[1] if model.has_cell_state else hx)[0, 0])
    return {
        "times": model.times, "pixels": pixels, "openness": rnn.gates[0](model.times), "state": torch.stack(states),
    }  # fmt: skip


def _results(config: MnistConfig, task: MnistTask, folder: RunFolder) -> dict[str, Any]:
    rows = read_log(folder.path, COLUMNS)
    recent = rows[-100:]
    return {
        "model": config.model,
        "data": config.data,
        "steps": len(rows),
        "train_accuracy_last_100": statistics.fmean(float(row["train_accuracy"]) for row in recent),
        "train_loss_last_100": statistics.fmean(float(row["train_loss"]) for row in recent),
        **task.evaluate(),
        "test_images": len(task.digits.test_labels),
        "seconds_per_step": statistics.median(float(row["seconds"]) for row in rows),
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
        "versions": {"phased_lstm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
    }


def _pixels(images: Tensor) -> Tensor:
    return images.float() / 255.0
