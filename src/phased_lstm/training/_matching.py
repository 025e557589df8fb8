"""Labels and the sequences they belong to, in the words of the commands."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data._arrow import column_names, listed, table_files
from ..data._formats import header_hint
from ..data.labels import Labels, read_labels
from ..errors import DataError
from .table_config import TrainConfig

# A column of more distinct whole numbers than this is taken for numbers, not classes.
_MOST_CLASSES = 20
# Beyond it floats cannot tell whole numbers apart.
_LARGEST = 2.0**53


def require_columns(source: str, roles: Iterable[tuple[str, str]]) -> None:
    """Check that the first file of a table has what is read, all at once.

    Args:
        source: the table.
        roles: pairs of a column and what names it, such as an option.

    Raises:
        DataError: some are not there.
    """
    path = table_files(source)[0]
    names = column_names(path)
    absent = list(dict.fromkeys(f"{column!r} ({role})" for column, role in roles if column not in names))
    if absent:
        hint = header_hint(names)
        raise DataError(
            f"{path} has no column {', '.join(absent)}; its columns are {listed(names)}{hint and '; '}{hint}"
        )


def require_match(
    config: TrainConfig, labels: Labels, ids: Sequence[str], data: str, *, leads: bool = True
) -> set[str]:
    """Return the ids that have a label.

    Args:
        config: what is an error.
        labels: the table of labels.
        ids: of all sequences.
        data: names the table of measurements in messages.
        leads: whether to say what is left out.

    Raises:
        DataError: sequences without labels, or labels without sequences, where the options do not let them pass; or
            none that go together.
    """
    known = set(labels.ids)
    found = known.intersection(ids)
    if not found:
        raise DataError(
            f"{labels.source} has no label for any of the series in {data}: ids are {_quoted(labels.ids)} there and "
            f"{_quoted(ids)} here; they are compared as text, and --id names their column in both tables"
        )
    unused = sorted(known - found)
    if unused and "skip" not in (config.unmeasured, config.empty):
        try:
            labels.check_all_used(ids)
        except DataError as error:
            raise DataError(f"{error} (--unmeasured skip leaves these labels unused)") from error
    absent = without_label(config, labels, ids)
    if unused and leads:
        warnings.warn(
            f"{labels.source} has labels for {len(unused)} series that are not in {data}: {some(unused)}; they are not "
            f"used",
            stacklevel=2,
        )
    if absent and leads:
        say_left_out(labels, absent)
    return found


def without_label(config: TrainConfig, labels: Labels, ids: Sequence[str]) -> list[str]:
    """Return the ids without a label.

    Raises:
        DataError: there are some, and the options do not let them pass.
    """
    known = set(labels.ids)
    absent = [name for name in ids if name not in known]
    if absent and config.unlabelled == "error":
        try:
            labels.rows(ids)
        except DataError as error:
            raise DataError(f"{error} (--unlabelled skip leaves them out)") from error
    return absent


def labels_of(config: TrainConfig, source: str, dtype: torch.dtype | None = None) -> Labels:
    """Read the target and the static features, of the type `dtype` as in `read_labels`, from a table of labels.

    Raises:
        DataError: as `read_labels`; where rows without the target may be left out, it names the option.
    """
    require_columns(
        source, [(config.id, "--id"), (config.target, "--target"), *((name, "--static") for name in config.static)]
    )
    given: dict[str, Any] = {"id": config.id, "static": config.static, "dtype": dtype}
    if config.unlabelled == "skip":
        return read_labels(source, [config.target], **given, gaps="skip")
    try:
        return read_labels(source, [config.target], **given)
    except DataError as error:
        try:
            read_labels(source, [config.target], **given, gaps="skip")
        except DataError:
            raise error from None
        raise DataError(f"{error} (--unlabelled skip leaves such rows out)") from error


def say_left_out(labels: Labels, absent: Sequence[str]) -> None:
    """Warn that sequences without a label are not used."""
    warnings.warn(
        f"{labels.source} has no label for {len(absent)} series: {some(absent)}; they are left out", stacklevel=3
    )


def say_shared_columns(config: TrainConfig, channels: Sequence[str], left_out: bool) -> None:
    """Warn of channels that the table of labels has too: they may tell the target.

    Args:
        config: names the tables and columns.
        channels: what the network reads.
        left_out: whether the target was among the channels.
    """
    if left_out:
        warnings.warn(
            f"{config.data} has {config.target} too, the target: it is left out of the channels. If it is something "
            f"else there, give one of them another name",
            stacklevel=2,
        )
    if config.features:
        return
    names = [name for path in table_files(config.labels) for name in column_names(path) if name != config.id]
    folded = {name.strip().casefold() for name in names}
    shared = [name for name in channels if name.strip().casefold() in folded]
    if shared:
        warnings.warn(
            f"{some(shared)} of {config.data} {'are columns' if len(shared) > 1 else 'is a column'} of {config.labels} "
            f"too, and read as channels: name the channels with --features if some are not known at prediction",
            stacklevel=2,
        )


def say_unmeasured(data: str, channels: Sequence[str], measured: Tensor, *, trained: bool) -> None:
    """Warn of channels without a single value.

    Args:
        data: names the table.
        channels: F names.
        measured: (F,) whether a channel has a value.
        trained: whether a network was trained with these channels.
    """
    names = [name for name, found in zip(channels, measured.tolist(), strict=True) if not found]
    if not names:
        return
    advice = (
        "the network was trained with these channels, and takes all their values for missing; see that they are there"
        if trained
        else "they tell nothing; see that they are there, or name the channels with --features"
    )
    warnings.warn(f"{data} has no value at all of {some(names)}: {advice}", stacklevel=2)


def choose_task(config: TrainConfig, values: Tensor | Sequence[str]) -> str:
    """Whether the target is a class or a number: text and few whole numbers are classes, unless the options say it."""
    if config.task != "auto":
        return config.task
    if not isinstance(values, Tensor):
        return "classification"
    return "classification" if _are_whole(values) and len(values.unique()) <= _MOST_CLASSES else "regression"


def as_classes(labels: Labels, target: str, known: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...]]:
    """Return a target as class numbers and the names of the classes; see `Labels.classes`.

    Classes known from training are found however the table writes them: 1, 1.0 and true are one class, unless there
    are several such in training.

    Raises:
        DataError: as `Labels.classes`.
    """
    values = labels.targets[target]
    if isinstance(values, Tensor):
        if not _are_whole(values):
            row = int(((values != values.round()) | (values.abs() > _LARGEST)).nonzero()[0])
            raise DataError(
                f"{labels.source}: {target} of {labels.ids[row]} is {values[row].item()}: not a class, which is text "
                f"or a whole number; --task regression predicts numbers"
            )
        values = tuple(map(str, values.long().tolist()))
        if known is None:
            return labels.classes(target)
    if known is not None:
        plain = {_plain_class(name): name for name in known}
        if len(plain) == len(known):
            values = tuple(name if name in known else plain.get(_plain_class(name), name) for name in values)
        labels = dataclasses.replace(labels, targets=labels.targets | {target: values})
    return labels.classes(target, known)


def _are_whole(values: Tensor) -> bool:
    if not values.is_floating_point():
        return True
    return bool(((values == values.round()) & (values.abs() <= _LARGEST)).all())


def _plain_class(name: str) -> str:
    truth = {"true": "1", "false": "0"}
    try:
        number = float(name)
    except ValueError:
        return truth.get(name.lower(), name)
    return str(int(number)) if number.is_integer() and abs(number) <= _LARGEST else name


def some(names: Sequence[str]) -> str:
    """The first few of them."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _quoted(names: Iterable[str]) -> str:
    return some([repr(name) for name in names])
