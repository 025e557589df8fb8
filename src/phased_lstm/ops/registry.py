"""Which implementations of the recurrences there are, and which one serves a call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import native, reference


class BackendStatus(NamedTuple):
    """Whether a backend can be used here, and why not."""

    available: bool
    reason: str


@dataclass(frozen=True)
class Backend:
    """One implementation of the recurrences.

    Attributes:
        name: what `backend=` takes.
        lstm: signature of `phased_lstm.ops.reference.phased_lstm`.
        gru: signature of `phased_lstm.ops.reference.phased_gru`.
        missing: returns why the backend cannot be used on this machine, or "".
        refuses: given a call's input tensor and leak, returns why it cannot serve it, or "".
    """

    name: str
    lstm: Callable[..., Any]
    gru: Callable[..., Any]
    missing: Callable[[], str]
    refuses: Callable[[Tensor, float], str]


_warned = False


def _never(*_: object) -> str:
    return ""


# Fastest first: "auto" takes the first that serves the call.
_BACKENDS: dict[str, Backend] = {
    "native": Backend("native", native.phased_lstm, native.phased_gru, native.missing, native.refuses),
    "reference": Backend("reference", reference.phased_lstm, reference.phased_gru, _never, _never),
}

# Names that the interface promises and this version does not carry.
_ABSENT = {"triton": "this version of phased-lstm carries no GPU kernels"}


def backends() -> dict[str, BackendStatus]:
    """Report every backend, with the reason where one cannot be used.

    Returns:
        A dictionary from name to `BackendStatus(available, reason)`.
    """
    reasons = {name: backend.missing() for name, backend in reversed(_BACKENDS.items())} | _ABSENT
    return {name: BackendStatus(not reason, reason) for name, reason in reasons.items()}


def check_backend_name(name: object) -> None:
    """Raise ValueError unless `name` is "auto" or a known backend, ImportError if it is missing."""
    if name == "auto":
        return
    status = backends()
    if not isinstance(name, str) or name not in status:
        raise ValueError(f"backend should be one of auto, {', '.join(status)}, got {name!r}")
    if not status[name].available:
        raise ImportError(
            f"backend {name!r} is not available: {status[name].reason}; use backend='auto' or 'reference'"
        )


def _warn_if_slow(input: Tensor) -> None:
    """Say once in a process that the native kernels are missing where they would serve."""
    global _warned
    if _warned or torch.compiler.is_compiling() or input.device.type != "cpu" or not native.missing():
        return
    _warned = True
    warnings.warn(
        f"phased_lstm runs without its native kernels, on the slower reference backend: {native.missing()}",
        stacklevel=2,
    )


def select(name: str, input: Tensor, leak: float) -> Backend:
    """Return the backend for a call.

    Args:
        name: "auto" for the fastest that serves the call, or a backend's name.
        input: (N, L, H_in) the call's input, for its device and dtype.
        leak: the leak that acts in this call.

    Raises:
        ValueError: no backend of that name, or the named one cannot serve the call.
        ImportError: the named backend is missing on this machine.
    """
    if name == "auto":
        _warn_if_slow(input)
        return next(
            backend for backend in _BACKENDS.values() if not backend.missing() and not backend.refuses(input, leak)
        )
    check_backend_name(name)
    backend = _BACKENDS[name]
    reason = backend.refuses(input, leak)
    if reason:
        raise ValueError(f"backend {name!r} cannot serve this call: {reason}; use backend='auto'")
    return backend
