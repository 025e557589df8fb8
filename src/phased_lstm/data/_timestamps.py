"""Times of every Arrow type as int64 or float64, without loss, or an error that names the row and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .._checks import LARGEST_INTEGER_TIME
from ..errors import DataError
from ._arrow import Where
from ._columns import MISSING, cast, casts, first, inexact_integer, is_number, is_string, plain, shown, without_missing

_UNITS = ("s", "ms", "us", "ns")
# Digits of a fraction of a second that a unit has.
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_TYPES = {"int64": pa.int64(), "float64": pa.float64()} | {
    str(kind): kind
    for kind in (
        *map(pa.timestamp, _UNITS), pa.date32(), pa.date64(), *map(pa.duration, _UNITS),
        *map(pa.time32, ("s", "ms")), *map(pa.time64, ("us", "ns")),
    )
}  # fmt: skip
_TIME = "2024-03-01T12:00:00Z"
_EXAMPLE = f"a number, or a time such as {_TIME}, at most with nine digits of a second, and six after 2262"


class TimeColumn:
    """Turns a column of times into int64 or float64, the same way in every batch.

    Timestamps, with a time zone or taken as UTC, become int64 in the unit of the column, since 1970 UTC; strings are
    integers, floats or ISO 8601 timestamps, whichever the first one is. All batches get the type of the first one,
    where they can without loss.

    Args:
        name: of the column.
        wanted: "int64", "float64", "timestamp[s]", "[ms]", "[us]" or "[ns]", "date32[day]", "duration[s]" and the
            like; None: as the column has it, and microseconds for timestamps in strings.
        numbers: whether integers may stand for timestamps ("accept"), are an error ("error"), or are all that is
            accepted ("only").

    Raises:
        DataError: `wanted` is none of these.
    """

    def __init__(self, name: str, wanted: str | None, numbers: str = "accept") -> None:
        if wanted is not None and wanted not in _TYPES:
            raise DataError(f"time_type should be one of {', '.join(_TYPES)}, got {wanted!r}")
        self._name = name
        self._wanted = None if wanted is None else _TYPES[wanted]
        self._numbers = numbers
        self._parsed: Any = None
        self._with_zone: bool | None = None
        self.type: Any = None

    @property
    def unit(self) -> str | None:
        """The unit of timestamps, durations and times of day; None of numbers and dates."""
        return getattr(self.type, "unit", None)

    @property
    def type_name(self) -> str:
        """The type of the times, as `wanted` names it, for other tables that are to be read alike."""
        return next(name for name, kind in _TYPES.items() if kind == _unzoned(self.type))

    def __call__(self, array: Any, where: Where) -> NDArray[Any]:
        """Return the times of a batch.

        Raises:
            DataError: a time that is missing, not finite, beyond 2**62, not to be parsed or not to be expressed exactly
                in the type of the others, or of another kind than they are.
        """
        array = plain(array, self._name, where)
        text = is_string(array.type)
        if text:
            array = without_missing(array, (*MISSING, "NaT"))
        if array.null_count:
            raise DataError(f"{where(first(array.is_null()))}: there is no {self._name}")
        array = self._whole_or_float(self._parse(array, where) if text else array, where)
        if pa.types.is_timestamp(array.type):
            self._check_zone(array.type.tz is not None, where)
        array = self._brought(array, where)
        if self.type is None:
            self.type = _unzoned(array.type)
        if pa.types.is_floating(array.type):
            return self._checked(np.asarray(array.to_numpy(zero_copy_only=False)), array, where)
        # date32 and time32 are 32 bits wide, and cannot be cast to 64 directly.
        narrow = pa.types.is_date32(array.type) or pa.types.is_time32(array.type)
        whole = pc.cast(array.view(pa.int32()), pa.int64()) if narrow else array.view(pa.int64())
        return self._checked(np.asarray(whole.to_numpy(zero_copy_only=False)), array, where)

    def _check_zone(self, zone: bool, where: Where) -> None:
        """Raise DataError where times of a zone follow others that may be of any."""
        if self._with_zone is None:
            self._with_zone = zone
        if zone != self._with_zone:
            kinds = "with a time zone, and without one" if zone else "without a time zone, and with one"
            raise DataError(f"{where(0)}: column {self._name!r} holds times {kinds} before: bring them to one")

    def _whole_or_float(self, array: Any, where: Where) -> Any:
        """Numbers as int64 or float64, other times as they are."""
        kind = array.type
        if pa.types.is_floating(kind):
            return pc.cast(array, pa.float64())
        if pa.types.is_decimal(kind):
            if kind.scale > 0:
                return pc.cast(array, pa.float64(), safe=False)
            return cast(array, pa.int64(), self._name, where, "int64")
        if pa.types.is_integer(kind):
            return cast(array, pa.int64(), self._name, where, f"an integer within 2**62 of zero{self._advice(kind)}")
        if pa.types.is_null(kind) or _family(kind):
            return array
        raise DataError(f"{where(0)}: column {self._name!r} should hold times, got {kind}")

    def _brought(self, array: Any, where: Where) -> Any:
        """An array in the type that is wanted, or else that of the batches before."""
        kind, wanted = array.type, self._wanted if self._wanted is not None else self.type
        number = not _family(kind)
        if self._numbers == "only" and not number:
            raise DataError(f"{where(0)}: column {self._name!r} holds {kind}, expected numbers")
        if wanted is None or _unzoned(kind) == wanted:
            return array
        if self._wanted is None and _family(kind) != _family(wanted):
            raise DataError(f"{where(0)}: column {self._name!r} holds {kind}, and {wanted} before: bring them to one")
        if number and _family(wanted):
            if self._numbers == "error":
                expected = "timestamps" if pa.types.is_timestamp(wanted) else wanted
                raise DataError(f"{where(0)}: column {self._name!r} holds {kind}, expected {expected}")
            return _reinterpreted(cast(array, pa.int64(), self._name, where, wanted), wanted, self._name, where)
        if number:
            if self._wanted is None:
                raise DataError(
                    f"{where(0)}: column {self._name!r} holds {kind}, and {wanted} before: bring them to one, or set "
                    f"time_type='float64' (--time-type float64)"
                )
            return cast(array, wanted, self._name, where, wanted)
        if not _family(wanted):
            # Taken as numbers they would be of one unit in this table, and of another in the next.
            raise DataError(
                f"{where(0)}: column {self._name!r} holds {kind}, expected numbers{_with_type(_unzoned(kind))}"
            )
        if _family(kind) != _family(wanted):
            raise DataError(f"{where(0)}: column {self._name!r} holds {kind}, expected {wanted}")
        return self._exact(array, wanted, where)

    def _exact(self, array: Any, wanted: Any, where: Where) -> Any:
        """Times of one family in another type, without loss."""
        kind = array.type
        zone = getattr(kind, "tz", None)
        target = pa.timestamp(wanted.unit, zone) if zone and pa.types.is_timestamp(wanted) else wanted
        units = [getattr(part, "unit", None) for part in (kind, wanted)]
        finer = None not in units and _UNITS.index(units[0]) > _UNITS.index(units[1])
        advice = _with_type(_unzoned(kind)) if finer else self._advice(wanted)
        found = cast(array, target, self._name, where, f"a time that {wanted} can express exactly{advice}")
        if pa.types.is_date(wanted):
            # pyarrow drops the time of day, and more where it does not fit.
            same = pc.equal(pc.cast(found, _unzoned(kind), safe=False), array.view(_unzoned(kind)))
            if not pc.all(same).as_py():
                row = first(pc.invert(same))
                raise DataError(
                    f"{where(row)}: {self._name} is {shown(array, row)}, expected {wanted}, without a time of day"
                    f"{_with_type(_unzoned(kind))}"
                )
        return found

    def _checked(self, times: NDArray[Any], array: Any, where: Where) -> NDArray[Any]:
        """Times that are finite, and of which differences can be computed."""
        if times.dtype == np.float64:
            wrong = ~np.isfinite(times)
            if wrong.any():
                row = int(wrong.argmax())
                raise DataError(f"{where(row)}: {self._name} is {times[row]}, expected a finite time")
        wrong = (times > LARGEST_INTEGER_TIME) | (times < -LARGEST_INTEGER_TIME)
        if wrong.any():
            row = int(wrong.argmax())
            entry = str(times[row]) if is_number(array.type) else shown(array, row)
            if entry.startswith("<"):
                entry = f"{times[row]} in {array.type}"
            raise DataError(
                f"{where(row)}: {self._name} is {entry}, expected a time within 2**62 of zero"
                f"{self._advice(array.type, int(abs(float(times[row]))) < (1 << 63) - 1)}"
            )
        return times

    def _advice(self, kind: Any, genuine: bool = True) -> str:
        if not genuine or getattr(kind, "unit", None) != "ns":
            return "; if it stands for no time at all, leave the row out"
        limit = ", which nanoseconds since 1970 leave in 2116" if pa.types.is_timestamp(kind) else ""
        return limit + _with_type(str(_unzoned(kind)).replace("ns", "us"))

    def _parse(self, text: Any, where: Where) -> Any:
        if self._parsed is None:
            wanted = self._wanted
            guessed = wanted is None or pa.types.is_date(wanted)
            # A day may be written with midnight.
            self._parsed = _guess(text, numbers=wanted is None) if guessed else _zoned(wanted, text)
        kind = self._parsed
        if kind is None:
            raise DataError(f"{where(0)}: {self._name} is {shown(text, 0)}, expected {_EXAMPLE}")
        hint = f"{kind}, as time_type or the others say (another is set with time_type)"
        if pa.types.is_timestamp(kind):
            example = f"such as {_TIME}"
            if kind.tz or casts(text[:1], kind):
                example = "with a zone, as the first one has" if kind.tz else "without a zone, as the first one"
            hint = f"{kind}, {example} (another unit is set with time_type, --time-type)"
            text = _without_zeros(text, kind.unit)
        array = cast(text, kind, self._name, where, hint)
        row = inexact_integer(text) if pa.types.is_floating(kind) else None
        if row is not None:
            raise DataError(
                f"{where(row)}: {self._name} is {shown(text, row)}, which no float expresses, beside fractions: "
                f"bring them to one type, such as timestamps"
            )
        return array


def _with_type(kind: object) -> str:
    return f": read the table with time_type='{kind}' (phased-lstm train --time-type '{kind}')"


def _reinterpreted(whole: Any, wanted: Any, name: str, where: Where) -> Any:
    """Integers that stand for times in the unit of `wanted`."""
    if pa.types.is_date32(wanted) or pa.types.is_time32(wanted):
        whole = cast(whole, pa.int32(), name, where, wanted)
    return whole.view(wanted)


def _without_zeros(text: Any, unit: str) -> Any:
    """Text without those zeros at the end of a fraction of a second that pyarrow refuses for the unit."""
    digits = _DIGITS[unit]
    kept = rf"(\.\d{{{digits}}})0+" if digits else r"()\.0+"
    return pc.replace_substring_regex(text, kept + r"($|[Z+-])", r"\1\2")


def _guess(text: Any, numbers: bool) -> Any:
    """The first type that all entries have, else that the first one has, or None."""
    stamps = [_zoned(pa.timestamp(unit), text) for unit in ("us", "ns")]
    kinds = [*([pa.int64(), pa.float64()] if numbers else []), *stamps]
    return next((kind for part in (text, text[:1]) for kind in kinds if casts(part, kind)), None)


def _zoned(kind: Any, text: Any) -> Any:
    """A timestamp type with UTC where the first of the strings names a zone."""
    if not pa.types.is_timestamp(kind) or not len(text):
        return kind
    zoned = casts(_without_zeros(text[:1], "us"), pa.timestamp("us", "UTC")) or casts(
        text[:1], pa.timestamp("ns", "UTC")
    )
    return pa.timestamp(kind.unit, "UTC") if zoned else kind


def _unzoned(kind: Any) -> Any:
    return pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else kind


def _family(kind: Any) -> str:
    """What kind of time a type is: "" for numbers."""
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "calendar"
    if pa.types.is_duration(kind):
        return "duration"
    return "time of day" if pa.types.is_time(kind) else ""
