"""Numbers and times of whatever library, as tensors: nothing lost on the way, or refused by name."""

from __future__ import annotations

import datetime
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._checks import LARGEST_INTEGER_TIME, TIME_DTYPES

TIME_UNITS = ("s", "ms", "us", "ns")
_INT64 = np.iinfo(np.int64)
# Integers of these are whole in float32.
_SHORT = (np.bool_, np.int8, np.uint8, np.int16, np.uint16)
# Integers up to here are whole in float64.
_WHOLE = 1 << 53


def is_missing(entry: Any) -> bool:
    """Whether an entry of a list or an object array stands for none: None, NaN, NaT, NA, masked."""
    if entry is None or entry is np.ma.masked:
        return True
    try:
        return bool(entry != entry)
    except (TypeError, ValueError):
        # pandas' NA has no truth value.
        return type(entry).__name__ == "NAType"


def as_array(given: Any) -> NDArray[Any]:
    """Return what numpy, torch and libraries with `__array__` hold as a numpy array, a masked one where it was masked.

    Raises:
        TypeError: complex numbers, fields, or entries that are not stored one by one.
        ValueError: rows of unequal length.
    """
    if isinstance(given, Tensor):
        require_plain(given)
        tensor = given.detach().cpu().resolve_neg()
        narrow = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
        return (tensor.float() if narrow else tensor).numpy()
    if hasattr(given, "nnz") and not isinstance(given, np.ndarray):
        raise TypeError(f"a sparse {type(given).__name__} does not say what was measured: convert it with .toarray()")
    try:
        if isinstance(given, (list, tuple)) and _holds_arrays(given):
            # numpy would take what is under a mask, and a tensor one number at a time.
            parts = [as_array(part) for part in given]
            mask = np.array([np.ma.getmaskarray(part) for part in parts])
            array: NDArray[Any] = np.ma.array(np.array([np.ma.getdata(part) for part in parts]), mask=mask)
        else:
            array = np.asanyarray(given)
    except ValueError as error:
        if "inhomogeneous" in str(error):
            raise ValueError("entries are of unequal length: they should make an array") from error
        raise
    if array.dtype.names is not None:
        raise TypeError(f"a structured array of {', '.join(array.dtype.names)} has no plain numbers: take one field")
    if array.dtype.kind == "c":
        raise TypeError("complex numbers have no place here: give their real and imaginary parts as two channels")
    if not isinstance(array, np.ma.MaskedArray):
        array = np.asarray(array)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _holds_arrays(given: list[Any] | tuple[Any, ...]) -> bool:
    """Whether there are tensors or masked entries in a list, or in the lists in it."""
    return any(
        isinstance(part, (Tensor, np.ma.MaskedArray)) or (isinstance(part, (list, tuple)) and _holds_arrays(part))
        for part in given
    )


def require_plain(tensor: Tensor) -> None:
    """Raise TypeError for a tensor whose numbers are not real and stored one by one."""
    if tensor.is_complex():
        raise TypeError("complex numbers have no place here: give their real and imaginary parts as two channels")
    if tensor.is_nested:
        raise TypeError("a nested tensor has no times: make a batch with EventBatch.from_jagged(values, times)")
    if tensor.layout != torch.strided:
        raise TypeError("a sparse tensor does not say what was measured: convert it with .to_dense()")
    if tensor.is_quantized:
        raise TypeError("a quantized tensor should be converted with .dequantize()")
    if tensor.is_meta:
        raise TypeError("a tensor on the meta device has no values")


def as_floats(given: Any, *, text: bool = False) -> Tensor:
    """Return numbers as float32 where that holds them by their type, and otherwise as float64; NaN where missing.

    Args:
        given: a tensor, which stays on its device; an array, masked ones and those of objects included; or a list.
        text: whether text that spells a number is one.

    Raises:
        TypeError: complex numbers, dates, text, or what is no number.
        ValueError: rows of unequal length, or integers so large that float64 would make them one.
    """
    if isinstance(given, Tensor):
        require_plain(given)
        if given.dtype in (torch.float32, torch.float64):
            return given
        if given.is_floating_point() or given.dtype in (torch.bool, torch.int8, torch.uint8, torch.int16):
            return given.to(torch.float32)
    array = as_array(given)
    mask = np.ma.getmask(array)
    if array.dtype.kind in "iu":
        _require_telling(array)
    numbers = _floats(np.asarray(array), text)
    if mask is not np.ma.nomask and mask.any():
        numbers = np.where(mask, np.array(np.nan, numbers.dtype), numbers)
    if not numbers.flags.writeable or any(stride < 0 for stride in numbers.strides):
        numbers = numbers.copy()
    tensor = torch.from_numpy(numbers)
    return tensor.to(given.device) if isinstance(given, Tensor) else tensor


def _floats(array: NDArray[Any], text: bool) -> NDArray[Any]:
    kind = array.dtype.kind
    if kind == "f":
        if array.dtype.itemsize > 8:
            _require_same_digits(array)
        return array.astype(np.float32 if array.dtype.itemsize <= 4 else np.float64, copy=False)
    if kind in "biu":
        if array.dtype.type in _SHORT:
            return array.astype(np.float32)
        return array.astype(np.float64)
    if kind == "O":
        found = np.array([np.nan if is_missing(entry) else _float(entry, text) for entry in array.flat], np.float64)
        return found.reshape(array.shape)
    if kind == "U" and text:
        return _numbers_of(array, np.float64)
    what = {"U": "text", "S": "bytes", "M": "dates", "m": "durations"}.get(kind, str(array.dtype))
    raise TypeError(f"there should be numbers, got {what}" + (f", such as '{array.flat[0]}'" if array.size else ""))


def _numbers_of(text: NDArray[Any], wanted: Any) -> NDArray[Any]:
    """Numbers of text; ValueError also for `1_0`, which is one in Python's own language alone."""
    if marked := next((entry for entry in text.astype(str).flat if "_" in entry), None):
        raise ValueError(f"there should be numbers, got {str(marked)!r}")
    return text.astype(wanted)


def _float(entry: Any, text: bool) -> float:
    unfit = (bytes, complex, np.complexfloating, datetime.date, datetime.timedelta, np.datetime64, np.timedelta64)
    if isinstance(entry, unfit) or (isinstance(entry, str) and (not text or "_" in entry)):
        raise TypeError(f"there should be numbers, got {entry!r}")
    try:
        return float(entry)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"there should be numbers, got {entry!r}") from error


def _require_telling(array: NDArray[Any]) -> None:
    """Raise ValueError where integers differ in digits that float64 has no room for."""
    if not array.size or array.dtype.itemsize < 8:
        return
    columns = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(-1, 1)
    for low, high in zip(columns.min(axis=0).tolist(), columns.max(axis=0).tolist(), strict=True):
        # What lies under a mask does not count, and a column may be all masked.
        if low is None:
            continue
        largest = max(abs(low), abs(high))
        if largest > _WHOLE and 0 < high - low < largest >> 30:
            raise ValueError(
                f"integers from {low} to {high} differ in digits that floating numbers have no room for: take the "
                f"smallest off first"
            )


def _require_same_digits(array: NDArray[Any]) -> None:
    """Raise ValueError where wide numbers vary in a channel, and do not as float64."""
    columns = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(-1, 1)
    for column in columns.T:
        measured = column[np.isfinite(column)]
        if measured.size and measured.min() < measured.max() and float(measured.min()) == float(measured.max()):
            raise ValueError(
                f"numbers about {measured[0]} differ in digits that float64 has no room for: take the smallest off "
                "first"
            )


def as_stamps(given: Any) -> Tensor | NDArray[Any]:
    """Return times as a tensor of int32, int64, float32 or float64; dates and durations as an array of numpy's type.

    Raises:
        TypeError: complex numbers, or what is no time.
        ValueError: a time that is missing, masked or not finite, or that no allowed type can hold.
    """
    if isinstance(given, Tensor):
        require_plain(given)
        if given.dtype in TIME_DTYPES:
            _require_finite(given)
            return given
        if given.is_floating_point():
            wide = given.double()
            _require_finite(wide)
            return wide
    array = as_array(given)
    if isinstance(given, (list, tuple)) and array.dtype.kind == "f" and array.size and np.abs(array).max() >= _WHOLE:
        # Integers among floats are rounded by now.
        array = np.array(given, object)
    mask = np.ma.getmask(array)
    if mask is not np.ma.nomask and mask.any():
        raise ValueError(f"the time at step {int(np.argmax(mask))} is masked: leave that step out")
    array = _stamps(np.asarray(array))
    if array.dtype.kind in "mM":
        if np.isnat(array).any():
            raise ValueError(f"the time at step {int(np.argmax(np.isnat(array)))} is NaT: leave that step out")
        last = array.astype(np.int64) == _INT64.max
        if last.any():
            raise ValueError(
                f"the time at step {int(np.argmax(last))} is {array[last].flat[0]}, the last that 64 bits hold, and "
                f"hardly one that was measured: leave that step out"
            )
        return array
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    tensor = torch.from_numpy(array)
    _require_finite(tensor)
    return tensor.to(given.device) if isinstance(given, Tensor) else tensor


def _stamps(array: NDArray[Any]) -> NDArray[Any]:
    kind = array.dtype.kind
    if kind in "mM":
        return array
    if kind in "biu":
        if array.dtype == np.uint64 and array.size and int(array.max()) > _INT64.max:
            raise ValueError(f"the time {int(array.max())} is beyond what 64 bits with a sign hold: take an offset off")
        return array if array.dtype == np.int32 else array.astype(np.int64, copy=False)
    if kind == "f":
        if array.dtype == np.float32:
            return array
        wide = array.astype(np.float64)
        if array.dtype.itemsize > 8 and (np.diff(array) != 0)[np.diff(wide) == 0].any():
            raise ValueError("times are closer to each other than float64 can tell: take an offset off")
        return wide
    if kind == "O":
        return _stamps_of_objects(array)
    if kind in "US":
        for wanted in (np.int64, np.float64):
            try:
                return _numbers_of(array, wanted)
            except (ValueError, OverflowError):
                continue
        raise ValueError(
            f"times should be numbers or dates, got text such as '{array.flat[0]}': convert it, for instance with "
            f"numpy.array(times, 'datetime64[us]')"
        )
    raise TypeError(f"times should be numbers or dates, got {array.dtype}")


def _stamps_of_objects(array: NDArray[Any]) -> NDArray[Any]:
    entries = []
    for step, entry in enumerate(array.flat):
        if is_missing(entry):
            raise ValueError(f"the time at step {step} is missing, {entry}: leave that step out")
        entries.append(_date(entry))
    if not any(isinstance(entry, (np.datetime64, np.timedelta64)) for entry in entries):
        if all(isinstance(entry, (int, np.integer)) for entry in entries):
            if any(not _INT64.min <= entry <= _INT64.max for entry in entries):
                raise ValueError("there are times beyond what 64 bits with a sign hold: take an offset off")
            return np.array(entries, np.int64).reshape(array.shape)
        floats = [_float(entry, False) for entry in entries]
        whole = zip(entries, floats, strict=True)
        if moved := next((one for one, other in whole if isinstance(one, (int, np.integer)) and one != other), None):
            raise ValueError(
                f"the time {moved} is beyond what floating ones, among which it is, can tell: give integers"
            )
        for (one, other), (before, after) in zip(itertools.pairwise(entries), itertools.pairwise(floats), strict=True):
            if before == after and one != other:
                raise ValueError(
                    f"times {one} and {other} are closer to each other than float64 can tell: take an offset off"
                )
        return np.array(floats, np.float64).reshape(array.shape)
    if len({type(entry) for entry in entries}) > 1:
        raise TypeError("times should be of one kind, got dates, durations or numbers in one sequence")
    zones = {getattr(entry, "tzinfo", None) is None for entry in array.flat if isinstance(entry, datetime.datetime)}
    if len(zones) > 1:
        raise TypeError("times should all have a time zone, or none of them")
    units = [np.datetime_data(entry.dtype)[0] for entry in entries]
    finest = min(units, key=_FINENESS.index)
    return np.array([exactly(np.asarray(entry), finest) for entry in entries]).reshape(array.shape)


_FINENESS = ("as", "fs", "ps", "ns", "us", "ms", "s", "m", "h", "D", "W", "M", "Y", "generic")


def _date(entry: Any) -> Any:
    """Dates and durations of Python and pandas as numpy's, those of a time zone in UTC; all else as it is."""
    for convert in ("to_datetime64", "to_timedelta64"):
        if hasattr(entry, convert):
            return getattr(entry, convert)()
    if isinstance(entry, datetime.datetime) and entry.tzinfo is not None:
        entry = entry.astimezone(datetime.UTC).replace(tzinfo=None)
    if isinstance(entry, datetime.date):
        return np.datetime64(entry)
    return np.timedelta64(entry) if isinstance(entry, datetime.timedelta) else entry


class _BeyondUnit(ValueError):
    """A time for which a unit is too fine."""


def exactly(stamps: NDArray[Any], unit: str) -> NDArray[Any]:
    """Return dates or durations in another unit.

    Raises:
        ValueError: the unit has no room for them, or is too coarse, or is none of a duration.
    """
    held, count = np.datetime_data(stamps.dtype)
    if (held, count) == (unit, 1) or not stamps.size:
        return stamps.astype(f"{stamps.dtype.kind}8[{unit}]")
    name = "dates" if stamps.dtype.kind == "M" else "durations"
    try:
        if held == "generic":
            raise TypeError("no unit")
        converted = stamps.astype(f"{stamps.dtype.kind}8[{unit}]", casting="same_kind")
        right = (converted.astype(stamps.dtype) == stamps) & ~np.isnat(converted)
    except TypeError as error:
        raise ValueError(f"{name} in the unit {held!r} have no certain length: give them in s, ms, us or ns") from error
    except OverflowError:
        right = np.zeros(stamps.shape, bool)
    if not right.all():
        wrong = stamps[~right].flat[0] if stamps.ndim else stamps
        finer = _FINENESS.index(held) < _FINENESS.index(unit)
        if finer:
            raise ValueError(f"{wrong} has digits that the unit {unit!r} has no room for: round to it first")
        raise _BeyondUnit(f"{wrong} is beyond what 64 bits hold in the unit {unit!r}")
    return converted


def in_one_unit(stamps: Sequence[NDArray[Any]], names: Sequence[str], unit: str | None) -> tuple[list[Tensor], str]:
    """Return dates or durations as int64 tensors, all in one unit, exactly.

    Args:
        stamps: arrays of one of the two kinds.
        names: of the arrays, for errors.
        unit: "s", "ms", "us" or "ns"; None: nanoseconds, or microseconds where an array of nanoseconds has times that
            a gate cannot subtract from each other in 64 bits, beyond 2**62.

    Raises:
        ValueError: a unit that is none of these, or has no room for a time; it names the array.
    """
    if unit is not None and unit not in TIME_UNITS:
        raise ValueError(f"time_unit should be one of {', '.join(TIME_UNITS)}, got {unit!r}")
    wanted = unit or "ns"
    for array in stamps:
        own = np.datetime_data(array.dtype)[0]
        if unit is None and own == "ns" and array.size and _reach(array.astype(np.int64)) > LARGEST_INTEGER_TIME:
            warnings.warn(
                "there are times that nanoseconds have no room for, after 2116-02-20 or before 1823-11-12: all become "
                "microseconds; give time_unit='us' to have the same unit at every call",
                stacklevel=6,
            )
            wanted = "us"
            break
    found = []
    for name, array in zip(names, stamps, strict=True):
        try:
            counts = exactly(array, wanted).astype(np.int64)
            if counts.size and _reach(counts) > LARGEST_INTEGER_TIME:
                raise _BeyondUnit(f"{array.flat[np.abs(counts).argmax()]} is beyond 2**62 in the unit {wanted!r}")
        except ValueError as error:
            advice = ": convert all sequences, in training and later, with as_events(X, time_unit='us')"
            advice = advice if isinstance(error, _BeyondUnit) and wanted == "ns" else ""
            raise ValueError(f"{name}{error}{advice}") from error
        found.append(torch.from_numpy(counts))
    return found, wanted


def _reach(counts: NDArray[Any]) -> int:
    return max(abs(int(counts.min())), abs(int(counts.max())))


def _require_finite(times: Tensor) -> None:
    if times.is_floating_point() and not bool(times.isfinite().all()):
        step = int((~times.isfinite()).flatten().nonzero()[0])
        raise ValueError(f"the time at step {step} is {times.flatten()[step].item()}: leave that step out")
    beyond = (times > LARGEST_INTEGER_TIME) | (times < -LARGEST_INTEGER_TIME)
    if times.dtype == torch.int64 and bool(beyond.any()):
        step = int(beyond.flatten().nonzero()[0])
        raise ValueError(
            f"the time at step {step} is {times.flatten()[step].item()}, and integer times should be within 2**62 of "
            f"zero: take an offset off, or give them in a coarser unit"
        )
