"""Names, signatures and imports that users rely on."""

from __future__ import annotations

import ast
import inspect
import math
import subprocess
import sys
from inspect import Parameter
from pathlib import Path
from typing import Any

import pytest

import phased_lstm
from phased_lstm import (
    Openness,
    PhasedGRU,
    PhasedGRUCell,
    PhasedLSTM,
    PhasedLSTMCell,
    Stream,
    TimeGate,
    backends,
    functional,
)

PACKAGE = Path(phased_lstm.__file__).parent
EMPTY = Parameter.empty
GATE: dict[str, Any] = {
    "leak": 0.0,
    "ratio_on": 0.05,
    "trainable_ratio_on": False,
    "period_init_min": math.exp(1.0),
    "period_init_max": math.exp(6.0),
    "oscillation": "triangle",
}
STACK: dict[str, Any] = {
    "input_size": EMPTY,
    "hidden_size": EMPTY,
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
}
CELL: dict[str, Any] = {"input_size": EMPTY, "hidden_size": EMPTY, "bias": True, "device": None, "dtype": None}
FACTORY: dict[str, Any] = {"device": None, "dtype": None}
RUN: dict[str, Any] = {
    "leak": 0.0,
    "oscillation": "triangle",
    "lengths": None,
    "reverse": False,
    "return_sequence": True,
    "backend": "auto",
}
WHOLE = {"lengths": None, "return_sequence": True}
TIMING = ("period", "shift", "ratio_on")

SIGNATURES: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (PhasedLSTM, STACK | {"proj_size": 0} | FACTORY, {"peephole": False} | GATE | {"backend": "auto"}),
    (PhasedGRU, STACK | FACTORY, GATE | {"backend": "auto"}),
    (PhasedLSTMCell, CELL, {"peephole": False} | GATE | {"backend": "auto"}),
    (PhasedGRUCell, CELL, GATE | {"backend": "auto"}),
    (TimeGate, {"hidden_size": EMPTY}, GATE | FACTORY),
    (PhasedLSTM.stream, {"streams": 1}, {"late": "error", "invalid": "error"}),
    (PhasedGRU.stream, {"streams": 1}, {"late": "error", "invalid": "error"}),
    (Stream.push, {"times": EMPTY, "values": EMPTY, "stream_ids": None}, {}),
    (Stream.push_latest, {"times": EMPTY, "values": EMPTY, "stream_ids": None}, {}),
    (Stream.reset, {"stream_ids": None}, {}),
    (PhasedLSTM.forward, {"input": EMPTY, "hx": None, "times": None}, WHOLE),
    (PhasedGRU.forward, {"input": EMPTY, "hx": None, "times": None}, WHOLE),
    (PhasedLSTMCell.forward, {"input": EMPTY, "hx": None, "times": None}, {}),
    (PhasedGRUCell.forward, {"input": EMPTY, "hx": None, "times": None}, {}),
    (TimeGate.forward, {"times": EMPTY}, {}),
    (TimeGate.assign_, {}, {"period": None, "shift": None, "ratio_on": None, "origin": None}),
    (TimeGate.openness, {"times": EMPTY, "lengths": None}, {}),
    (TimeGate.fit_, {"times": EMPTY, "lengths": None}, {"generator": None}),
    (backends, {}, {}),
    (
        functional.phased_lstm,
        dict.fromkeys(("input", "times", "h0", "c0", "weight_ih", "weight_hh", "bias", *TIMING), EMPTY),
        {"peephole": None} | RUN,
    ),
    (
        functional.phased_gru,
        dict.fromkeys(("input", "times", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", *TIMING), EMPTY),
        RUN,
    ),
]


def test_public_names() -> None:
    wanted = [
        "Openness", "PhasedGRU", "PhasedGRUCell", "PhasedLSTM", "PhasedLSTMCell", "PhasedLSTMClassifier",
        "PhasedLSTMRegressor", "Stream", "TimeGate", "__version__", "backends", "functional",
    ]  # fmt: skip
    assert sorted(phased_lstm.__all__) == wanted
    assert dir(phased_lstm) == wanted
    for name in wanted:
        assert getattr(phased_lstm, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'PhasedRNN'"):
        _ = phased_lstm.PhasedRNN
    assert Openness._fields == ("fraction", "mean")


@pytest.mark.parametrize(
    ("callable_", "positional", "keyword"), SIGNATURES, ids=lambda v: getattr(v, "__qualname__", "")
)
def test_signatures(callable_: Any, positional: dict[str, Any], keyword: dict[str, Any]) -> None:
    parameters = [p for p in inspect.signature(callable_).parameters.values() if p.name != "self"]
    if callable_ is PhasedGRU:
        # Catches proj_size, to refuse it with torch's words.
        assert parameters.pop().kind is Parameter.VAR_KEYWORD
    got = [(p.name, p.kind, p.default) for p in parameters]
    wanted = [(name, Parameter.POSITIONAL_OR_KEYWORD, default) for name, default in positional.items()]
    wanted += [(name, Parameter.KEYWORD_ONLY, default) for name, default in keyword.items()]
    assert got == wanted


def test_importing_the_package_imports_no_torch() -> None:
    """Commands that need no tensors start at once."""
    code = "import sys, phased_lstm; print('torch' in sys.modules, phased_lstm.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", phased_lstm.__version__]


def imports(path: Path) -> set[str]:
    """Absolute names of what a module imports at any depth, those for type checkers left out."""
    package = ["phased_lstm", *path.relative_to(PACKAGE).parts[:-1]]
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            own = module == "phased_lstm" or (node.level and not node.module)
            found.update(f"{module}.{alias.name}" if own else module for alias in node.names)
        nodes.extend(ast.iter_child_nodes(node))
    return found


OPS = sorted(str(path.relative_to(PACKAGE)) for path in (PACKAGE / "ops").glob("*.py"))
BELOW_LAYERS = {"_checks", "_parametrisation", "gate", "ops", "functional", "_base", "_sequences"}
# What each module may import of the package, whole subpackages included.
ALLOWED: dict[str, set[str]] = {
    "_checks.py": set(),
    "_lazy.py": set(),
    "_registration.py": set(),
    "_parametrisation.py": {"_checks"},
    "_phase.py": set(),
    "_time_warnings.py": {"_checks"},
    "gate.py": {"_checks", "_parametrisation", "_phase"},
    **{path: {"_checks", "_parametrisation", "gate", "ops"} for path in OPS},
    "functional.py": {"_checks", "gate", "ops"},
    "_pushes.py": {"_checks", "ops", "functional", "_base"},
    "streaming.py": {"_checks", "_pushes", "_time_warnings"},
    "_sequences.py": set(),
    "_base.py": BELOW_LAYERS - {"_base"},
    "cells.py": BELOW_LAYERS | {"_time_warnings"},
    "layers.py": BELOW_LAYERS | {"_time_warnings", "streaming"},
}


@pytest.mark.parametrize("path", ALLOWED)
def test_imports_point_one_way(path: str) -> None:
    own = {name.split(".")[1] for name in imports(PACKAGE / path) if name.split(".")[0] == "phased_lstm"}
    assert own <= ALLOWED[path]


def test_the_reading_of_imports_sees_them() -> None:
    assert {"phased_lstm.functional", "phased_lstm._base", "torch"} <= imports(PACKAGE / "layers.py")
    assert {"phased_lstm.ops.reference", "phased_lstm.gate"} & imports(PACKAGE / "ops/registry.py")
    assert "phased_lstm.gate" in imports(PACKAGE / "ops/reference.py")


@pytest.mark.parametrize("path", [*ALLOWED, "__init__.py"])
def test_the_core_imports_torch_and_the_standard_library_only(path: str) -> None:
    outside = {name.split(".")[0] for name in imports(PACKAGE / path)} - set(sys.stdlib_module_names)
    assert outside <= {"torch", "phased_lstm"}


def test_the_core_runs_without_extras() -> None:
    """numpy and the rest live behind extras."""
    code = (
        "import sys\n"
        "blocked = ('sklearn', 'matplotlib', 'tqdm', 'scipy', 'safetensors', 'tensorboard', 'yaml')\n"
        "sys.modules.update(dict.fromkeys(blocked))\n"
        "import torch, phased_lstm\n"
        "print(phased_lstm.PhasedLSTM(3, 5)(torch.zeros(4, 2, 3))[0].shape == (4, 2, 5))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


def test_backends_are_reported_with_reasons() -> None:
    report = backends()
    assert list(report) == ["reference", "native", "triton"]
    assert report["reference"] == (True, "")
    for name in ("triton",):
        assert not report[name].available
        assert report[name].reason
