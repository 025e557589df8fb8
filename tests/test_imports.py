"""Names that are imported when first used, and operators that are there once torch is."""

from __future__ import annotations

import ast
import importlib
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch

import phased_lstm
from phased_lstm import PhasedLSTM, data
from phased_lstm.ops import native

PACKAGES = pytest.mark.parametrize("package", [phased_lstm, data], ids=lambda package: package.__name__)


def submodules(package: ModuleType) -> list[str]:
    return [found.name for found in pkgutil.iter_modules(package.__path__)]


def fresh(code: str) -> list[str]:
    """What a new process prints, line by line."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@PACKAGES
def test_no_public_name_is_a_module_by_the_order_of_imports(package: ModuleType) -> None:
    """Importing a submodule binds its name in the package, over whatever had that name."""
    for name in set(package.__all__) & set(submodules(package)):
        assert getattr(package, name) is importlib.import_module(f"{package.__name__}.{name}")
        assert name not in package._HOME


def test_public_names_are_what_they_should_be_after_all_modules_were_imported() -> None:
    wrong = fresh(
        "import importlib, pkgutil, phased_lstm, phased_lstm.data\n"
        "for package in (phased_lstm, phased_lstm.data):\n"
        "    for found in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        if '._native' not in found.name: importlib.import_module(found.name)\n"
        "    for name, home in package._HOME.items():\n"
        "        if getattr(package, name) is not getattr(importlib.import_module(home, package.__name__), name):\n"
        "            print(name)\n"
    )
    assert wrong == []


@PACKAGES
def test_type_checkers_see_the_same_names(package: ModuleType) -> None:
    tree = ast.parse(Path(str(package.__file__)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.asname: f".{node.module}"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert told == package._HOME


def test_submodules_are_attributes_whoever_imported_them() -> None:
    code = "import phased_lstm; print(phased_lstm.data.nmnist.__name__, phased_lstm.models.__name__)"
    assert fresh(code) == ["phased_lstm.data.nmnist phased_lstm.models"]
    for package in (phased_lstm, data):
        assert not hasattr(package, "address_book")
        assert not hasattr(package, "_address_book")


def test_a_submodule_that_lacks_a_package_says_so() -> None:
    printed = fresh(
        "import sys; sys.modules['pyarrow'] = None\n"
        "from phased_lstm import data\n"
        "try: data.tables\n"
        "except ImportError as error: print(error)\n"
    )
    assert printed[0].startswith("pyarrow is not installed")


def test_names_can_be_patched_and_pickled() -> None:
    original = data.address_events
    with mock.patch("phased_lstm.data.address_events", return_value=3):
        assert data.address_events() == 3
    assert data.address_events is original
    for value in (original, data.read_dat, PhasedLSTM, data.EventBatch):
        assert pickle.loads(pickle.dumps(value)) is value


needs_native = pytest.mark.skipif(bool(native.missing()), reason=f"native kernels: {native.missing()}")


@needs_native
def test_the_import_of_the_package_is_enough_for_an_exported_program(tmp_path: Path) -> None:
    rnn = PhasedLSTM(3, 5).eval()
    x, times = torch.randn(6, 4, 3), torch.arange(6.0)
    rows = torch.export.Dim("rows", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(
            rnn, (x,), {"times": times}, dynamic_shapes={"input": {1: rows}, "times": None}, strict=False
        )
        torch.export.save(program, tmp_path / "rnn.pt2")
        torch.save((x[:, :3], times, rnn(x[:, :3], times=times)[0]), tmp_path / "expected.pt")
    for imports in ("import phased_lstm, torch", "import torch, phased_lstm"):
        printed = fresh(
            f"{imports}\n"
            f"program = torch.export.load({str(tmp_path / 'rnn.pt2')!r}).module()\n"
            f"x, times, expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
            f"print(torch.equal(program(x, times=times)[0], expected))\n"
        )
        assert printed[-1] == "True", imports


@needs_native
def test_waiting_for_torch_leaves_no_trace_and_outlives_a_torch_that_fails(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('half of it is missing')")
    printed = fresh(
        "import sys\n"
        "before = list(sys.meta_path)\n"
        "import importlib, importlib.util, phased_lstm, phased_lstm\n"
        "importlib.reload(phased_lstm)\n"
        "assert importlib.util.find_spec('torch') is not None\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        import torch\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
        "del sys.path[0]\n"
        "importlib.invalidate_caches()\n"
        "import torch\n"
        "print(torch.ops.phased_lstm.layer.default.name())\n"
        "print(sys.meta_path == before, 'exec_module' in vars(torch.__spec__.loader))\n"
    )
    assert printed == [*2 * ["half of it is missing"], "phased_lstm::layer", "True False"]


@pytest.mark.parametrize("torch_is", ["None", "types.ModuleType('torch')"])
def test_the_package_can_be_imported_without_a_real_torch(torch_is: str) -> None:
    code = f"import sys, types; sys.modules['torch'] = {torch_is}; import phased_lstm; print(phased_lstm.__version__)"
    assert fresh(code) == [phased_lstm.__version__]
