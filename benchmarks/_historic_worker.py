"""TensorFlow's side of historic.py, for Python 3.7: trains k steps whenever a line on stdin asks for them.

Every line, either way, is a JSON object. The first out says the versions, the first in sets up; after that
{"cell": name, "steps": k} is answered with the seconds of each step.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
from typing import Any, TextIO

WANTED = "1.15"


def main() -> None:
    # Whatever libraries print would break the answers' lines: it goes to stderr, and stdout is kept for answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        tf = _tensorflow()
    except ImportError as error:
        _answer(answers, {"error": str(error)})
        return
    _answer(answers, {"versions": f"tensorflow {tf.__version__}, Python {platform.python_version()}"})
    setup = json.loads(sys.stdin.readline())
    cells = {name: Training(tf, setup, name) for name in ("phased", "basic")}
    _answer(answers, {"logits": {name: cell.logits(setup["checked"]) for name, cell in cells.items()}})
    for line in sys.stdin:
        asked = json.loads(line)
        _answer(answers, {"seconds": cells[asked["cell"]].run(asked["steps"])})


class Training:
    """Graph and session of one cell with its head and Adam.

    Args:
        tf: the module.
        setup: sizes, data, and by cell the initial weights.
        name: "phased" or "basic".
    """

    def __init__(self, tf: Any, setup: dict[str, Any], name: str) -> None:
        np: Any = importlib.import_module("numpy")
        x = np.asarray(setup["x"], np.float32)[..., None]
        units, (batch, steps) = setup["units"], x.shape[:2]
        times = np.tile(np.arange(steps, dtype=np.float32)[:, None], (batch, 1, 1))
        with tf.Graph().as_default() as graph:
            inputs: Any = tf.placeholder(tf.float32, x.shape)
            labels = tf.placeholder(tf.int32, [batch])
            self._feed = {inputs: x, labels: np.asarray(setup["labels"], np.int32)}
            if name == "phased":
                stamps = tf.placeholder(tf.float32, times.shape)
                self._feed[stamps] = times
                inputs = (stamps, inputs)
                cell = tf.contrib.rnn.PhasedLSTMCell(units, use_peepholes=True, **setup["gate"])
            else:
                cell = tf.nn.rnn_cell.BasicLSTMCell(units)
            _, state = tf.nn.dynamic_rnn(cell, inputs, dtype=tf.float32)
            self._logits = tf.layers.dense(state.h, 10, name="head")
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=self._logits)
            self._loss = tf.reduce_mean(losses)
            self._train = tf.train.AdamOptimizer(setup["lr"]).minimize(self._loss)
            threads = {kind + "_op_parallelism_threads": setup["threads"] for kind in ("intra", "inter")}
            self._session = tf.Session(graph=graph, config=tf.ConfigProto(device_count={"GPU": 0}, **threads))
            self._session.run(tf.global_variables_initializer())
            given = dict(setup["weights"][name])
            for variable in tf.trainable_variables():
                (key,) = [key for key in given if variable.op.name.endswith("/" + key) or variable.op.name == key]
                variable.load(np.asarray(given.pop(key), np.float32), self._session)
            if given:
                raise ValueError(f"weights without a variable: {sorted(given)}")

    def logits(self, rows: int) -> Any:
        """Logits of the first rows, before any training."""
        return self._session.run(self._logits, self._feed)[:rows].tolist()

    def run(self, steps: int) -> list[float]:
        """Train, and return the seconds of each step."""
        seconds = []
        for _ in range(steps):
            started = time.perf_counter()
            self._session.run([self._train, self._loss], self._feed)
            seconds.append(time.perf_counter() - started)
        return seconds


def _tensorflow() -> Any:
    tf = importlib.import_module("tensorflow")
    if not tf.__version__.startswith(WANTED + "."):
        raise ImportError(f"it has TensorFlow {tf.__version__}, and the cell needs {WANTED}")
    importlib.import_module("tensorflow.contrib.rnn")
    return tf


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
