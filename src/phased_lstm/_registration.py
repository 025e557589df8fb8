"""Registers the operators of `torch.ops.phased_lstm` once torch is loaded, without loading it.

`torch.export.load` and `torch._inductor.aoti_load_package` look operators up by name, in programs that use nothing
else of this package.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

_OPERATORS = "phased_lstm.ops.native"


def register_operators() -> None:
    """Register now if torch is imported, else as the last step of its import."""
    if sys.modules.get("torch") is not None:
        _register()
    elif not any(isinstance(finder, _TorchFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchFinder())


def _register() -> None:
    # A torch that is incomplete or not the real one must be importable beside this package. What is amiss is told where
    # the operators are used: that imports them again.
    try:
        importlib.import_module(_OPERATORS)
    except Exception:
        return


class _TorchFinder:
    """Finds torch as the finders after it do, and has its loader register the operators at the end."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != "torch":
            return None
        for finder in _after(self):
            spec = finder.find_spec(fullname, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                _extend(spec.loader, self)
                return spec
        return None


def _after(finder: _TorchFinder) -> list[Any]:
    finders = list(sys.meta_path)
    return finders[finders.index(finder) + 1 :] if finder in finders else finders


def _extend(loader: Any, finder: _TorchFinder) -> None:
    """Have this one loader register the operators after it executed torch; it stays the object that it was."""
    own = getattr(loader, "__dict__", None)
    # Loaders that are classes, or older than exec_module: the operators are registered where they are first used.
    if not isinstance(own, dict) or "exec_module" in own or not hasattr(loader, "exec_module"):
        return
    execute: Callable[[Any], None] = loader.exec_module

    def exec_module(module: Any) -> None:
        execute(module)
        # A loader of archives serves all of their modules.
        if module.__name__ == "torch":
            own.pop("exec_module", None)
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)
            _register()

    own["exec_module"] = exec_module
