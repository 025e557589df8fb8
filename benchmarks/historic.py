"""Time of a training step of tf.contrib.rnn.PhasedLSTMCell, in the setting of the historic demo, against ours.

    python benchmarks/historic.py --tensorflow-python tf1/bin/python [--blocks 5] [--threads 2]

The cell left TensorFlow with 2.0, so its side runs in a process of its own, under a Python 3.7 that has TensorFlow
1.15. It steps only when asked, so that both alternate in one run and never run at once. A step is forward, backward
and Adam on rows of 784 pixels at times 0 to 783, batches of 256, 32 units with peepholes and a linear layer on the last
state. Both have the same data and initial weights, and nothing is timed unless their logits agree.

The two differ in one thing that costs time: TensorFlow's peepholes are full matrices, where ours are diagonal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from phased_lstm import PhasedLSTM
from phased_lstm.experiments.config import MnistConfig
from phased_lstm.experiments.mnist import SequenceClassifier
from records import machine

WORKER = Path(__file__).with_name("_historic_worker.py")
RECIPE = """To make a Python that has it, from any Python 3.7:
    python3.7 -m venv tf1
    tf1/bin/python -m pip install tensorflow==1.15.5 "protobuf<3.21" numpy
and then name it: --tensorflow-python tf1/bin/python"""

# Enough to see a wrong weight or gate, few enough for the reference backend.
CHECKED_ROWS = 4
# Wider, because TensorFlow's cell computes phases in float32, and ours from the exact times.
TOLERANCE_TENSORFLOW = 1e-4
TOLERANCE_REFERENCE = 1e-5
# Long enough for a quick step to repeat within a block, short enough for a run of minutes.
BLOCK_SECONDS = 2.0
MOST_STEPS = 20
WARM_UP_STEPS = 3
# What an idle machine does on its own.
BUSY_CORES = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensorflow-python", required=True, help="a Python 3.7 that has tensorflow 1.15")
    parser.add_argument("--steps", type=int, default=784)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before = others_seconds()
    started = time.perf_counter()
    with Worker(options.tensorflow_python) as worker:
        print(f"{machine()}; {worker.versions}; threads of each: {options.threads}", flush=True)
        for line in measure(worker, options):
            print(line, flush=True)
    after = others_seconds()
    if before is not None and after is not None:
        print(load((after - before) / (time.perf_counter() - started), options.threads))


def others_seconds() -> float | None:
    """Processor time that all but this process and its ended children have used, or None where nothing says it."""
    try:
        ticks = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq = (int(count) for count in ticks[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def load(others: float, threads: int) -> str:
    """Say how many cores other processes kept busy, and what that does to the figures."""
    said = f"\nOther processes kept {max(0.0, others):.2f} of {os.cpu_count()} cores busy."
    if others + threads <= (os.cpu_count() or 1) + BUSY_CORES:
        return said
    # Interleaving does not cancel it: a thread that waits in an OpenMP barrier for one without a core spins, and
    # TensorFlow's sleep.
    return f"{said} THE FIGURES DO NOT COUNT: no core was free for them, which slows torch more than TensorFlow."


class Worker:
    """The process that has TensorFlow; it waits, blocked, unless it is asked.

    Args:
        python: its interpreter.

    Raises:
        SystemExit: it cannot be started, or has no TensorFlow 1.15.
    """

    def __init__(self, python: str) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        try:
            # -E, because a PYTHONPATH meant for this interpreter would break the other.
            self._process = subprocess.Popen(
                [python, "-E", str(WORKER)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip
        except OSError as error:
            raise SystemExit(f"--tensorflow-python {python} cannot be started: {error.strerror}\n{RECIPE}") from None
        try:
            greeting = self._answer()
        except EOFError as error:
            raise SystemExit(f"--tensorflow-python {python} failed to start:\n{error}\n{RECIPE}") from None
        if "error" in greeting:
            raise SystemExit(f"--tensorflow-python {python} does not serve: {greeting['error']}\n{RECIPE}")
        self.versions: str = greeting["versions"]

    def ask(self, content: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            SystemExit: the process ended instead; says its last words.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()
            return self._answer()
        except (BrokenPipeError, EOFError):
            raise SystemExit(f"the TensorFlow process ended:\n{self._last_words()}") from None

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EOFError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        return "".join(self._log.readlines()[-8:]).rstrip() or f"exit status {self._process.returncode}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


@dataclass
class Contender:
    """What is timed: `run` trains that many steps and returns the seconds of each."""

    name: str
    run: Callable[[int], list[float]]
    steps: int = 1
    blocks: list[list[float]] = field(default_factory=list)

    def warm_up(self) -> None:
        self.steps = max(1, min(MOST_STEPS, round(BLOCK_SECONDS / min(self.run(WARM_UP_STEPS)))))

    @property
    def seconds(self) -> float:
        return statistics.median(second for block in self.blocks for second in block)


def measure(worker: Worker, options: argparse.Namespace) -> list[str]:
    """Return the table's lines: medians in seconds a step, and the ratios to TensorFlow's Phased LSTM."""
    sizes: dict[str, Any] = {"hidden_size": options.units, "threads": options.threads}
    configs = {
        "phased": MnistConfig(**sizes),
        "phased, leak 0": MnistConfig(**sizes, leak=0.0),
        "basic": MnistConfig(**sizes, model="BasicLSTMCell"),
    }
    models = {name: build(config, options.steps) for name, config in configs.items()}
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(options.batch, options.steps, generator=generator)
    labels = torch.randint(10, (options.batch,), generator=generator)
    historic = configs["phased"]
    answer = worker.ask(
        {
            "units": options.units, "threads": options.threads, "lr": historic.lr, "checked": CHECKED_ROWS,
            "x": x.tolist(), "labels": labels.tolist(),
            "gate": {
                "leak": historic.leak, "ratio_on": historic.ratio_on, "trainable_ratio_on": True,
                "period_init_min": historic.period_init_min, "period_init_max": historic.period_init_max,
            },
            "weights": {"phased": phased_weights(models["phased"]), "basic": basic_weights(models["basic"])},
        }
    )  # fmt: skip
    few = x[:CHECKED_ROWS]
    for name, model in models.items():
        check(model, few, answer["logits"].get(name), name)

    def theirs(cell: str) -> Callable[[int], list[float]]:
        return lambda steps: worker.ask({"cell": cell, "steps": steps})["seconds"]

    def ours(name: str) -> Callable[[int], list[float]]:
        return trainer(models[name], configs[name].lr, x, labels)

    contenders = [
        Contender("tf.contrib.rnn.PhasedLSTMCell", theirs("phased")),
        Contender("PhasedLSTM, the same setting (leak 0.001)", ours("phased")),
        Contender("PhasedLSTM, leak 0", ours("phased, leak 0")),
        Contender("TensorFlow's BasicLSTMCell", theirs("basic")),
        Contender("torch.nn.LSTM", ours("basic")),
    ]
    for contender in contenders:
        contender.warm_up()
    for _ in range(options.blocks):
        for contender in contenders:
            contender.blocks.append(contender.run(contender.steps))
    return table(contenders, options)


def build(config: MnistConfig, steps: int) -> SequenceClassifier:
    """Return the demo's model, the same weights for every setting of a cell."""
    torch.manual_seed(config.seed)
    model = SequenceClassifier(config)
    model.times = torch.arange(steps)
    return model.train()


def trainer(model: SequenceClassifier, lr: float, x: Tensor, labels: Tensor) -> Callable[[int], list[float]]:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def run(steps: int) -> list[float]:
        seconds = []
        for _ in range(steps):
            started = time.perf_counter()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            loss.item()
            seconds.append(time.perf_counter() - started)
        return seconds

    return run


@torch.no_grad()
def phased_weights(model: SequenceClassifier) -> dict[str, Any]:
    """Return a phased model's weights by the names of TensorFlow's variables."""
    rnn = model.rnn
    assert isinstance(rnn, PhasedLSTM)
    gate = rnn.gates[0]
    (i, f, g, o), (bias_i, bias_f, bias_g, bias_o) = by_gate(rnn)
    to_i, to_f, to_o = (
        torch.diag(rnn.get_parameter(name)) for name in ("weight_ci_l0", "weight_cf_l0", "weight_co_l0")
    )
    weights = {
        "mask_gates/kernel": torch.cat([torch.cat([i, to_i]), torch.cat([f, to_f])], dim=1),
        "mask_gates/bias": torch.cat([bias_i, bias_f]),
        "new_input/kernel": g,
        "new_input/bias": bias_g,
        "output_gate/kernel": torch.cat([o, to_o]),
        "output_gate/bias": bias_o,
        "period": gate.period,
        "phase": gate.shift,
        "ratio_on": gate.ratio_on,
    }
    return head_weights(model) | {name: weight.tolist() for name, weight in weights.items()}


@torch.no_grad()
def basic_weights(model: SequenceClassifier) -> dict[str, Any]:
    """Return a basic model's weights by the names of TensorFlow's variables."""
    (i, f, g, o), (bias_i, bias_f, bias_g, bias_o) = by_gate(model.rnn)
    # TensorFlow adds its forget bias of 1 in the cell; the model has it among the weights.
    bias = torch.cat([bias_i, bias_g, bias_f - 1.0, bias_o])
    kernel = torch.cat([i, g, f, o], dim=1)
    return head_weights(model) | {"basic_lstm_cell/kernel": kernel.tolist(), "basic_lstm_cell/bias": bias.tolist()}


def by_gate(rnn: nn.Module) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Split a layer by the gates i, f, g, o: kernels (inputs + units, units), and biases (units,)."""
    kernel = torch.cat([rnn.get_parameter("weight_ih_l0"), rnn.get_parameter("weight_hh_l0")], dim=1).T
    bias = rnn.get_parameter("bias_ih_l0") + rnn.get_parameter("bias_hh_l0")
    return kernel.chunk(4, dim=1), bias.chunk(4)


def head_weights(model: SequenceClassifier) -> dict[str, Any]:
    return {"head/kernel": model.head.weight.T.tolist(), "head/bias": model.head.bias.tolist()}


@torch.no_grad()
def check(model: SequenceClassifier, few: Tensor, wanted: list[list[float]] | None, name: str) -> None:
    """Refuse to time what computes something else than TensorFlow or, where that was not asked, the reference."""
    found = model(few)
    other, tolerance = "TensorFlow", TOLERANCE_TENSORFLOW
    if wanted is None:
        assert isinstance(model.rnn, PhasedLSTM)
        other, tolerance = "the reference backend", TOLERANCE_REFERENCE
        model.rnn.backend = "reference"
        expected = model(few)
        model.rnn.backend = "auto"
    else:
        expected = torch.tensor(wanted)
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error <= tolerance:
        raise SystemExit(f"{name}: the logits differ from those of {other} by {error:.1e}: not timed")


def table(contenders: list[Contender], options: argparse.Namespace) -> list[str]:
    lines = [
        f"batch {options.batch}, {options.steps} steps, {options.units} units; medians of {options.blocks} blocks",
        "",
        "| training step | seconds | medians of blocks | steps timed | against tf.contrib |",
        "| --- | --- | --- | --- | --- |",
    ]
    for contender in contenders:
        medians = [statistics.median(block) for block in contender.blocks]
        cells = [
            contender.name,
            f"{contender.seconds:.4f}",
            f"{min(medians):.4f} to {max(medians):.4f}",
            str(sum(len(block) for block in contender.blocks)),
            f"{contenders[0].seconds / contender.seconds:.1f}x",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
