"""Options of commands in YAML files. Imports PyYAML when a file is read or written, so that help is instant."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

from .errors import RunError, missing_extra
from .options import is_names, split_names

_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_NOTHING = ("", "~", "null")


def read_yaml(path: Path, kind: type[Any]) -> dict[str, Any]:
    """Read the entries of a YAML file as what the fields of a dataclass take.

    The field decides what an entry is, and not YAML, for which 1e-3 is text, 010 the number 8 and `no` a truth value:
    names of columns stay as they are written. An entry that is not what its field takes comes as text, for
    `options.check_entries` to refuse.

    Raises:
        RunError: the file cannot be read, is not a mapping, or has an entry twice.
        ImportError: PyYAML is not installed.
    """
    yaml = _yaml()
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise RunError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if root is None:
        raise RunError(f"{path} is empty: it should hold entries such as hidden_size: 64")
    if not isinstance(root, yaml.MappingNode):
        kinds = {"scalar": "a single text", "sequence": "a list"}
        raise RunError(f"{path} should hold entries such as hidden_size: 64, got {kinds[root.id]}")
    hints = get_type_hints(kind)
    entries: dict[str, Any] = {}
    for key, node in root.value:
        line = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise RunError(f"{line}: there should be the name of an entry, got {key.id} in its place")
        name = key.value.replace("-", "_")
        if name in entries:
            raise RunError(f"{line}: {key.value} is there a second time: remove one")
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(part, yaml.ScalarNode) for part in parts):
            raise RunError(f"{line}: {key.value} should be one value or a list of them, got entries within it")
        if isinstance(node, yaml.SequenceNode):
            entries[name] = tuple(part.value for part in parts)
        else:
            plain = node.style is None
            entries[name] = _value(node.value, plain, hints.get(name, str), line)
    return entries


def _value(text: str, plain: bool, hint: Any, line: str) -> Any:
    """A scalar as a field's type, or the text itself where it is none."""
    kinds = get_args(hint) or (hint,)
    if plain and text.lower() in _NOTHING and (type(None) in kinds or is_names(hint)):
        return () if is_names(hint) else None
    if is_names(hint):
        try:
            return split_names(text)
        except ValueError as error:
            raise RunError(f"{line}: {error}") from error
    if bool in kinds and plain and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    for kind in (int, float):
        if kind in kinds and plain:
            try:
                return kind(text)
            except ValueError:
                pass
    return text


def to_yaml(options: Any) -> str:
    """Return a dataclass of options as YAML, with what each entry means."""
    yaml = _yaml()
    lines = []
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        entry = {item.name: list(value) if isinstance(value, tuple) else value}
        # One line an entry, so that what it means can stand behind it; lists in brackets.
        style = None if isinstance(value, tuple) else False
        text = yaml.safe_dump(entry, default_flow_style=style, allow_unicode=True, width=10**6).strip()
        lines.append(f"{text}  # {item.metadata['help']}")
    return "\n".join(lines)


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise missing_extra("train", "PyYAML") from error
    return yaml
