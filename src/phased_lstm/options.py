"""Options of commands as fields of dataclasses. Imports nothing heavy, so that a command's help is instant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from dataclasses import field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from .errors import RunError

# A name in quotes, in which a quote is written twice, or one without, up to the next comma.
_NAME = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^",][^,]*|))\s*(?:,|$)')


def option(default: Any, help: str, *, choices: tuple[str, ...] = (), low: float = -1e6, high: float = 1e6) -> Any:
    """A dataclass field that is also a command-line option."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


def flag(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a text, separated by commas; one that has a comma itself is quoted, as in a CSV file.

    Raises:
        ValueError: a quote without its other one.
    """
    names: list[str] = []
    place = 0
    while place < len(text):
        found = _NAME.match(text, place)
        if found is None:
            raise ValueError(f'{text!r} should be names such as hr,bp or "Temp, °C",hr: a quote lacks its other one')
        quoted, plain = found.groups()
        if quoted is not None:
            names.append(quoted.replace('""', '"'))
        elif plain.strip():
            names.append(plain.strip())
        place = found.end()
    return tuple(names)


def join_names(names: Iterable[str]) -> str:
    """Return names as `split_names` takes them."""
    return ",".join(
        '"' + name.replace('"', '""') + '"' if "," in name or name != name.strip() or name[:1] in ('"', "") else name
        for name in names
    )


def is_names(hint: Any) -> bool:
    """Whether a field of this type holds names."""
    return get_origin(hint) is tuple


def check_ranges(options: Any) -> None:
    """Raise RunError for the first field of a dataclass that is out of range."""
    for item in fields(options):
        value = getattr(options, item.name)
        choices, low, high = (item.metadata[name] for name in ("choices", "low", "high"))
        if choices and value is not None and value not in choices:
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
        if not _fits(value, hints[name]):
            raise RunError(
                f"{source} has {name} = {value!r}, which is of the wrong type: expected {_wanted(hints[name])}"
            )


def _fits(value: Any, hint: Any) -> bool:
    if is_names(hint):
        return isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    allowed = get_args(hint) or (hint,)
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, (*allowed, int) if float in allowed else allowed)


def _wanted(hint: Any) -> str:
    if is_names(hint):
        return "a list of names"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}
    return " or ".join(words[part] for part in get_args(hint) or (hint,))


def add_options(
    parser: argparse.ArgumentParser,
    kind: type[Any],
    short: dict[str, str] | None = None,
    only: Iterable[str] | None = None,
) -> None:
    """Add an option for each field of the dataclass, or for those named by `only`.

    Options that are not given stay out of the namespace, so that what a file or a run says can hold.
    """
    hints = get_type_hints(kind)
    for item in fields(kind):
        if only is not None and item.name not in only:
            continue
        names = [*([short[item.name]] if short and item.name in short else []), flag(item.name)]
        hint = hints[item.name]
        value = hint if is_names(hint) else next(p for p in (*get_args(hint), hint) if p is not type(None))
        # Of options that follow a run the default is the run's.
        shown = "" if item.default in (None, "", ()) or only is not None else f" (default: {item.default})"
        common: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": item.metadata["help"].replace("%", "%%") + shown,
        }
        if value is bool:
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, **common)
        elif item.metadata["choices"]:
            parser.add_argument(*names, choices=item.metadata["choices"], **common)
        elif is_names(value):
            parser.add_argument(*names, type=_names, metavar="NAME,NAME", **common)
        else:
            parser.add_argument(*names, type=value, metavar=value.__name__.upper(), **common)


def path(text: str) -> Path:
    """A path of the command line; an empty one, as of a variable that is not set, is refused."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def filled(text: str) -> str:
    """A text of the command line that may not be empty."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def whole(low: int, high: int = 10**9) -> Callable[[str], int]:
    """Return what takes whole numbers of a range from the command line."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"should be a whole number from {low} to {high}, got {text!r}")
        return number

    return parse


def _names(text: str) -> tuple[str, ...]:
    try:
        return split_names(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
