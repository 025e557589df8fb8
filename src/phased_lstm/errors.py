"""Errors that a command reports in one line instead of a traceback."""

from __future__ import annotations


class DataError(ValueError):
    """A data file is missing, corrupt or not what its name says."""


class RunError(RuntimeError):
    """A run folder cannot be written, read or continued as asked."""


def missing_extra(extra: str, package: str) -> ImportError:
    """Return an error that names the extra which brings `package`."""
    return ImportError(f"{package} is not installed; it comes with: pip install 'phased-lstm[{extra}]'")
