"""Options of commands as fields of dataclasses. Imports nothing heavy, so that a command's help is instant."""

from __future__ import annotations

import argparse
from dataclasses import field, fields
from typing import Any, get_args, get_type_hints

from .errors import RunError


def option(default: Any, help: str, *, choices: tuple[str, ...] = (), low: float = -1e6, high: float = 1e6) -> Any:
    """A dataclass field that is also a command-line option."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


def flag(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def check_ranges(options: Any) -> None:
    """Raise RunError for the first field of a dataclass that is out of range."""
    for item in fields(options):
        value = getattr(options, item.name)
        choices, low, high = (item.metadata[name] for name in ("choices", "low", "high"))
        if choices and value not in choices:
            raise RunError(f"{flag(item.name)} should be one of {', '.join(choices)}, got {value!r}")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not low <= value <= high:
            raise RunError(f"{flag(item.name)} should be from {low:g} to {high:g}, got {value}")


def check_entries(kind: type[Any], content: dict[str, Any], source: str) -> None:
    """Raise RunError unless every entry is a field of the dataclass and of its type.

    Args:
        kind: the dataclass.
        content: by name of field.
        source: what holds the entries, for messages, as in "the run's configuration".
    """
    hints = get_type_hints(kind)
    for name, value in content.items():
        if name not in hints:
            raise RunError(f"{source} has an unknown entry {name!r}: a newer version wrote it, or it is misspelt")
        allowed = get_args(hints[name]) or (hints[name],)
        fits = isinstance(value, (*allowed, int) if float in allowed else allowed)
        if not fits or (isinstance(value, bool) and bool not in allowed):
            raise RunError(f"{source} has {name} = {value!r}, which is of the wrong type")


def add_options(parser: argparse.ArgumentParser, kind: type[Any], short: dict[str, str] | None = None) -> None:
    """Add an option for each field of the dataclass.

    Options that are not given stay out of the namespace, so that what a file or a run says can hold.
    """
    hints = get_type_hints(kind)
    for item in fields(kind):
        names = [*([short[item.name]] if short and item.name in short else []), flag(item.name)]
        value = next(part for part in (*get_args(hints[item.name]), hints[item.name]) if part is not type(None))
        shown = "" if item.default is None else f" (default: {item.default})"
        common: dict[str, Any] = {"default": argparse.SUPPRESS, "help": item.metadata["help"] + shown}
        if value is bool:
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, **common)
        elif item.metadata["choices"]:
            parser.add_argument(*names, choices=item.metadata["choices"], **common)
        else:
            parser.add_argument(*names, type=value, metavar=value.__name__.upper(), **common)
