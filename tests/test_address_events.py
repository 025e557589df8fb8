"""Recordings of event cameras: .dat files byte by byte, arrays of other libraries, and what is wrong with bad ones."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phased_lstm.data import AddressEncoder, address_events, nmnist, read_dat
from phased_lstm.errors import DataError

HEADER = b"% Data file containing CD events\n% Date 2020-09-14 14:18:29\n% Version 2\n% Width 640\n% Height 480\n"
# column, row, polarity, microseconds; the last has every bit of its time set.
EVENTS = [(0, 0, 1, 0), (639, 479, 0, 5), (256, 255, 1, 5), (1, 2, 0, (1 << 32) - 1)]
DTYPE = [("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "?")]


def dat(events: list[tuple[int, int, int, int]], header: bytes = HEADER, kind: bytes = b"\x0c\x08") -> bytes:
    words = ((time, polarity << 28 | y << 14 | x) for x, y, polarity, time in events)
    return header + kind + b"".join(part.to_bytes(4, "little") for word in words for part in word)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def listed(batch: Any) -> list[tuple[int, ...]]:
    return [(*values, time) for values, time in zip(batch.values.tolist(), batch.times.tolist(), strict=True)]


def test_dat_files_bit_by_bit(tmp_path: Path) -> None:
    one = write(tmp_path / "one.dat", dat(EVENTS))
    two = write(tmp_path / "two.dat", dat(EVENTS[:1], b"% Version 2\n", b"\x00\x08"))
    found = read_dat([one, two])
    assert listed(found) == EVENTS + EVENTS[:1]
    assert found.lengths.tolist() == [4, 1]
    assert (found.values.dtype, found.times.dtype) == (torch.int16, torch.int64)
    assert read_dat(str(two)).equal(read_dat([two]))
    assert AddressEncoder(640, 480, 3)(found.values).shape == (5, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (dat(EVENTS)[:-1], "has 31 bytes of events, expected a multiple of 8 and not 0: truncated"),
        (dat([]), "has 0 bytes of events"),
        (HEADER + b"\x0c", "ends within its header"),
        (b"", "'% Version 2', got no such line"),
        (dat(EVENTS)[1:], "got no such line"),
        (dat(EVENTS, b"% Version 1\n"), "'% Version 2', got version 1"),
        (dat(EVENTS, kind=b"\x0e\x08"), r"events of kind 14 of 8 bytes, expected 0 \(Event2d\), 12 \(EventCd\) of 8"),
        (dat(EVENTS, kind=b"\x0c\x04"), "events of kind 12 of 4 bytes"),
        (dat([*EVENTS[:2], (640, 0, 1, 9)]), "x = 640, y = 0, expected 0 to 639 and 0 to 479"),
        (dat([*EVENTS[:2], (0, 480, 1, 9)]), "x = 0, y = 480, expected"),
        (dat([*EVENTS[:2], (0, 0, 2, 9)]), "polarity 2, expected 0 or 1"),
        (dat([*EVENTS[:2], (0, 0, 1, 4)]), "goes back in time, from 5 to 4"),
    ],
)
def test_bad_dat_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    good, bad = write(tmp_path / "good.dat", dat(EVENTS)), write(tmp_path / "bad.dat", content)
    with pytest.raises(DataError, match=rf"bad\.dat .*{message}"):
        read_dat([good, bad, good])


def test_missing_dat_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.dat cannot be read"):
        read_dat(tmp_path / "none.dat")
    with pytest.raises(DataError, match="at least one file"):
        read_dat([])


def test_the_size_that_is_given_goes_before_that_of_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dat", dat(EVENTS))
    with pytest.raises(DataError, match=r"expected 0 to 99 and 0 to 199: corrupt, or another sensor_size"):
        read_dat(path, sensor_size=(100, 200))
    assert len(read_dat(path, sensor_size=(1000, 1000))) == 1


def structured(events: list[tuple[int, int, int, int]]) -> np.ndarray[Any, Any]:
    return np.array([(time, x, y, bool(polarity)) for x, y, polarity, time in events], DTYPE)


def test_structured_arrays() -> None:
    found = address_events([structured(EVENTS), structured([]), structured(EVENTS[:1])], sensor_size=(640, 480))
    assert listed(found) == EVENTS + EVENTS[:1]
    assert found.lengths.tolist() == [4, 0, 1]
    assert address_events(structured(EVENTS))[0][1].tolist() == [time for *_, time in EVENTS]


def test_mappings_with_other_names_and_signed_polarity() -> None:
    recording = {"col": np.array([3, 1]), "row": np.array([0, 2]), "ts": np.array([0.5, 2.5]), "on": np.array([-1, 1])}
    found = address_events(recording, fields=("col", "row", "ts", "on"))
    assert listed(found) == [(3, 0, 0, 0.5), (1, 2, 1, 2.5)]
    assert found.times.dtype == torch.float64
    assert listed(address_events(recording, fields=("col", None, "ts", None))) == [(3, 0, 0, 0.5), (1, 0, 0, 2.5)]


def test_late_events_can_be_sorted_within_their_recording() -> None:
    first, second = structured(EVENTS[::-1]), structured(EVENTS)
    with pytest.raises(DataError, match=r"recordings\[1\] goes back in time, from 4294967295 to 5.*late='sort'"):
        address_events([second, first])
    found = address_events([first, second], late="sort")
    # The second and the third are at one time, and stay in the order of the array.
    assert listed(found[:1]) == [EVENTS[0], EVENTS[2], EVENTS[1], EVENTS[3]]
    assert listed(found[1:]) == EVENTS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "has no field 'x', but t, y, p: name them with fields="),
        ({"x": np.array([0.5])}, "'x' should be 1 integers, as there are times, got float64"),
        ({"y": np.array([1, 2])}, r"'y' should be 1 integers.*shape \(2,\)"),
        ({"t": np.array(["now"])}, "times 't' should be integers or floats"),
        ({"t": np.array([[1]])}, r"'t' should be of shape \(L,\), got \(1, 1\)"),
        ({"y": np.array([-1])}, "x = 2, y = -1, expected 0 to 32767"),
        ({"x": np.array([1 << 15])}, "x = 32768, y = 3, expected 0 to 32767"),
        ({"p": np.array([3])}, "polarity 3"),
        ({"t": np.array([1 << 63], np.uint64)}, "'t' has 9223372036854775808, beyond"),
        ({"t": np.array([1 << 63], ">u8")}, "'t' has 9223372036854775808, beyond"),
        ({"x": np.array([1 << 63], ">u8")}, "'x' has 9223372036854775808, beyond"),
        ({"t": np.array([(1 << 62) + 1])}, "times 't' reach 4611686018427387905, expected at most 2\\*\\*62"),
        ({"p": np.array([255], np.uint8)}, "polarity 255"),
        ({"p": np.ma.masked_array([1], [True])}, "'p' has masked entries"),
        ({"t": np.array([1], "datetime64[us]")}, r"got datetime64\[us\]: give numbers, such as"),
        ({"t": np.array([1], object)}, "times 't' should be integers or floats, got object"),
        ({"t": [[1], [1, 2]]}, r"'t' should be an array of numbers \(L,\)"),
        ({"t": torch.ones(1, dtype=torch.bfloat16)}, "'t' should be an array of numbers"),
    ],
)
def test_bad_arrays_are_named(changes: dict[str, Any], message: str) -> None:
    good = {"t": np.array([1]), "x": np.array([2]), "y": np.array([3]), "p": np.array([1])}
    bad = {name: values for name, values in (good | changes).items() if values is not None}
    with pytest.raises(DataError, match=rf"recordings\[1\].*{message}"):
        address_events([good, bad])


def test_the_recording_with_a_pixel_outside_is_named_wherever_it_is() -> None:
    good, bad = structured([(1, 2, 0, 5)]), structured([(1, 2, 0, 5), (3, 4, 1, 6), (99, 4, 1, 7)])
    for before in ([], [good], [good[:0]], [good, good]):
        with pytest.raises(DataError, match=rf"recordings\[{len(before)}\] has an event at x = 99"):
            address_events([*before, bad], sensor_size=(50, 50))


def test_zero_is_no_polarity_where_some_are_minus_one() -> None:
    recording = {"x": np.zeros(3, int), "t": np.arange(3), "p": np.array([-1, 0, 1])}
    with pytest.raises(DataError, match="polarity 0, expected 0 or 1, or -1 or 1"):
        address_events(recording, fields=("x", None, "t", "p"))


def test_a_recording_without_events_has_times_of_no_kind() -> None:
    whole = {"x": np.array([1, 2]), "t": np.array([0.5, 1.5])}
    for none in (np.zeros(0), np.zeros(0, np.int64), []):
        found = address_events([{"x": none, "t": none}, whole, {"x": none, "t": none}], fields=("x", None, "t", None))
        assert found.times.tolist() == [0.5, 1.5]
        assert found.lengths.tolist() == [0, 2, 0]
    assert address_events({"x": [], "t": np.zeros(0)}, fields=("x", None, "t", None)).times.dtype == torch.float64


def test_times_are_not_narrowed() -> None:
    wide = np.array([1, 1 << 53], np.longdouble)
    recording = {"x": [1, 2], "t": wide}
    assert address_events(recording, fields=("x", None, "t", None)).times.tolist() == [1.0, 2.0**53]
    if np.finfo(np.longdouble).nmant > 52:
        with pytest.raises(DataError, match=r"recordings\[0\]: times 't' are .*, and more exact than float64: round"):
            address_events(recording | {"t": wide + 1}, fields=("x", None, "t", None))


class Frame:
    """What a DataFrame is here: it has keys, columns and rows, and is no Mapping."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns

    def keys(self) -> list[str]:
        return list(self.columns)

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]


def test_arrays_of_any_layout() -> None:
    events = structured(EVENTS)
    shuffled = np.array(
        [(p, t, y, x) for t, x, y, p in events.tolist()], [("p", "i1"), ("t", ">u8"), ("y", ">u2"), ("x", ">i4")]
    )
    shuffled.flags.writeable = False
    strided = {name: np.stack([events[name], events[name]], axis=1)[:, 0] for name in ("x", "y", "t", "p")}
    lists = {name: events[name].tolist() for name in ("x", "y", "t", "p")}
    masked = np.ma.masked_array(events, mask=False)
    for form in (shuffled, strided, lists, Frame(strided), masked, events.view(np.recarray), events[::-1][::-1]):
        assert listed(address_events(form)) == EVENTS
    assert listed(address_events({"x": [1, 2], "t": [-5, -5]}, fields=("x", None, "t", None))) == [
        (1, 0, 0, -5),
        (2, 0, 0, -5),
    ]


@pytest.mark.parametrize(("kind", "bits"), [(np.uint32, 32), (np.int32, 32), (np.uint16, 16)])
def test_a_counter_that_began_again_is_not_sorted(kind: Any, bits: int) -> None:
    counts = np.arange(4, dtype=np.int64) + np.iinfo(kind).max - 1
    recording = {"x": np.arange(4), "t": counts.astype(kind)}
    advice = rf"a counter of {bits} bits that began again; count on first, with numpy.unwrap"
    with pytest.raises(DataError, match=rf"recordings\[0\]: times 't' go back from {counts[1]} to .*{advice}"):
        address_events(recording, fields=("x", None, "t", None), late="sort")
    unwrapped = np.unwrap(recording["t"].astype("int64"), period=2**bits)
    assert address_events(recording | {"t": unwrapped}, fields=("x", None, "t", None)).times.tolist() == counts.tolist()


def test_the_time_of_dat_files_is_counted_on(tmp_path: Path) -> None:
    period = 1 << 32
    # Two rounds of the counter, with an event that came late over the first end, and a pause of more than half of one.
    times = [5, period - 2, period + 3, period - 1, period + 4, 2 * period - 5_000_000, 2 * period + 1]
    path = write(tmp_path / "a.dat", dat([(index, 0, 1, time % period) for index, time in enumerate(times)]))
    with pytest.raises(DataError, match=rf"a\.dat goes back in time, from {period + 3} to {period - 1}"):
        read_dat(path)
    assert read_dat([path, path], late="sort").times.tolist() == 2 * sorted(times)
    rising = write(tmp_path / "b.dat", dat([(0, 0, 1, time % period) for time in sorted(times)]))
    assert read_dat([rising, path], late="sort").times.tolist() == 2 * sorted(times)
    assert read_dat(rising).times.tolist() == sorted(times)


def test_sensor_sizes_of_numpy() -> None:
    size = np.array([640, 480])
    assert address_events(structured(EVENTS), sensor_size=tuple(size)).equal(address_events(structured(EVENTS)))
    with pytest.raises(DataError, match="expected 0 to 9"):
        address_events(structured(EVENTS), sensor_size=(np.int64(10), np.uint8(10)))
    with pytest.raises(ValueError, match="two integers from 1 to 32768, got \\(\\)"):
        address_events(structured(EVENTS), sensor_size=())  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [34, (0, 0), ("34", "34"), (1 << 16, 4), (3, 4, 5)])
def test_sensors_that_are_none(size: Any) -> None:
    with pytest.raises(ValueError, match="sensor_size should be two integers from 1 to 32768"):
        address_events(structured(EVENTS), sensor_size=size)


@pytest.mark.parametrize("width", ["²", "9" * 30])
def test_a_width_that_is_none_is_not_told(tmp_path: Path, width: str) -> None:
    header = f"% Version 2\n% Width {width}\n% Height 480\n".encode("latin-1")
    assert len(read_dat(write(tmp_path / "a.dat", dat(EVENTS, header)))) == 1


def test_what_is_no_recording_is_an_error() -> None:
    with pytest.raises(DataError, match=r"recordings\[0\] should be a structured array or a mapping.*got list"):
        address_events([[1, 2]])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"recordings\[0\] has no field 't', but none at all"):
        address_events([np.zeros(3)])
    with pytest.raises(DataError, match="at least one recording"):
        address_events([])
    with pytest.raises(DataError, match=r"recordings\[0\]: times 't' should be finite"):
        address_events({"x": np.array([1]), "t": np.array([np.nan])}, fields=("x", None, "t", None))
    with pytest.raises(DataError, match=r"recordings\[1\] has times of torch.float64, .*integers in all, or floats"):
        address_events([{"x": np.array([1]), "t": np.array([kind(1)])} for kind in (int, float)],
                       fields=("x", None, "t", None))  # fmt: skip
    with pytest.raises(ValueError, match="fields should name"):
        address_events(structured(EVENTS), fields=("x", "y", None, "p"))
    with pytest.raises(ValueError, match="late should be one of error, sort, got 'drop'"):
        address_events(structured(EVENTS), late="drop")  # type: ignore[arg-type]


def test_recordings_of_nmnist_become_a_batch() -> None:
    data = bytearray(bytes([3, 33, 0x80, 1, 0, 33, 0, 0, 1, 2, 5, 6, 0x80, 0, 9]))
    batch = nmnist.decode(data, [10, 5], ["a", "b"], [1, 2]).events()
    assert listed(batch) == [(3, 33, 1, 256), (33, 0, 0, 258), (5, 6, 1, 9)]
    assert batch.lengths.tolist() == [2, 1]


def test_a_real_recording() -> None:
    path = Path(os.environ.get("PHASED_LSTM_DATA", ""), "event-format-samples", "sample_ncars.dat")
    if not path.is_file():
        pytest.skip("PHASED_LSTM_DATA has no event-format-samples/sample_ncars.dat")
    # N-CARS has crops of at most 120 x 100 pixels, of 100 ms.
    found = read_dat(path, sensor_size=(120, 100))
    header = path.read_bytes().rindex(b"\n", 0, 200)
    assert found.num_events == (path.stat().st_size - header - 3) // 8
    assert re.match(r"% Data file", path.read_text("latin-1"))
    assert 90_000 < int(found.times[-1]) <= 100_000
    assert found.values[:, 2].unique().tolist() == [0, 1]


def test_times_of_float32_that_lost_their_digits_are_told() -> None:
    ones = np.ones(3, np.int16)
    times = (np.arange(3) + 1.7e9).astype(np.float32)
    with pytest.warns(UserWarning, match="times are float32, which at 1700000000 knows steps of 128 only"):
        address_events({"x": ones, "y": ones, "t": times, "p": ones})
