"""Columns of every type: exact, the same from each kind of file, or refused by row; times above all."""

from __future__ import annotations

import decimal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch

from phased_lstm.data.labels import read_labels
from phased_lstm.data.tables import Table, TableFormat, iter_sequences, read_table, scan_time_type
from phased_lstm.errors import DataError

Write = Callable[..., Path]
DECIMAL = decimal.Decimal
# Seconds from 1970 to the time of 2150-03-01T00:00:00Z.
LATE = 5_685_379_200


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(columns: dict[str, Any], kind: str = "arrow", name: str = "t") -> Path:
        path, table = tmp_path / f"{name}.{kind}", pa.table(columns)
        if kind == "parquet":
            pq.write_table(table, path)
        elif kind == "csv":
            pa_csv.write_csv(table, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
        return path

    return write


def stamps(unit: str, *values: int, kind: Callable[[str], Any] = pa.timestamp) -> Any:
    return pa.array(values, pa.int64()).view(kind(unit))


def read_times(write: Write, column: Any, kind: str = "arrow", **options: Any) -> Table:
    count = len(column)
    return read_table(write({"id": ["p"] * count, "time": column, "x": [1.0] * count}, kind), TableFormat(**options))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("kind", [pa.timestamp, pa.duration])
def test_times_end_where_differences_would_overflow(write: Write, unit: str, kind: Callable[[str], Any]) -> None:
    last = 2**62 - 1
    table = read_times(write, stamps(unit, -last, last, kind=kind))
    assert (table.events.times.tolist(), table.time_unit) == ([-last, last], unit)
    for wrong in (last + 1, -last - 1, 2**63 - 1, -(2**63)):
        with pytest.raises(DataError, match=r"t\.arrow, row 2: time is .*expected a time within 2\*\*62 of zero"):
            read_times(write, stamps(unit, 0, wrong, kind=kind))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2**62]), pa.array([1, 2**64 - 1], pa.uint64()), pa.array([1.0, 1e300]), pa.array([1.0, -9e36]),
        pa.array(["1", str(2**63)]), pa.array(["1", "1e300"]), pa.array([1, DECIMAL(10) ** 30]),
    ],
)  # fmt: skip
def test_sentinels_among_numbers_are_no_times(write: Write, column: Any) -> None:
    with pytest.raises(DataError, match=r"row 2: time is"):
        read_times(write, column)


@pytest.mark.parametrize("kind", ["parquet", "csv", "arrow"])
def test_nanoseconds_after_2116_are_read_in_microseconds(write: Write, kind: str) -> None:
    column = stamps("ns", LATE * 10**9, LATE * 10**9 + 2_000_001_000)
    with pytest.raises(DataError, match=r"row 1: time is 2150-03-01.*2116: read the table with.*--time-type '"):
        read_times(write, column, kind)
    table = read_times(write, column, kind, time_type="timestamp[us]")
    assert (table.events.times.tolist(), table.time_unit) == ([LATE * 10**6, LATE * 10**6 + 2_000_001], "us")
    with pytest.raises(DataError, match=r"row 1: time is '?2150-03-01"):
        read_times(write, stamps("ns", LATE * 10**9 + 1), kind, time_type="timestamp[us]")


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@pytest.mark.parametrize("seconds", [253_402_300_799, -62_135_596_800, 16_725_225_600])
def test_far_dates_stay_in_their_century(write: Write, unit: str, seconds: int) -> None:
    scale = {"s": 1, "ms": 1000, "us": 1_000_000}[unit]
    assert read_times(write, stamps(unit, seconds * scale)).events.times.tolist() == [seconds * scale]
    with pytest.raises(DataError, match=r"row 1: time is \d{4}-.*expected a time that timestamp\[ns\] can express"):
        read_times(write, stamps(unit, seconds * scale), time_type="timestamp[ns]")


def test_a_time_that_the_wanted_unit_cannot_express(write: Write) -> None:
    with pytest.raises(DataError, match=r"row 2: time is 1970-01-01 00:00:00.001000.*time_type='timestamp\[us\]'"):
        read_times(write, stamps("us", 0, 1000), time_type="timestamp[s]")
    with pytest.raises(DataError, match=r"row 2: time is 1970-01-02 00:00:00.001, expected date32.*without a time of"):
        read_times(write, stamps("ms", 0, 86_400_001), time_type="date32[day]")
    # A day that does not fit into 32 bits.
    with pytest.raises(DataError, match="row 1: time is"):
        read_times(write, stamps("s", 2**50), time_type="date32[day]")


@pytest.mark.parametrize(
    ("column", "expected", "type"),
    [
        (pa.array([3], pa.int32()).cast(pa.date32()), 3, "date32[day]"),
        (pa.array([3], pa.int32()).cast(pa.date32()).cast(pa.date64()), 3 * 86_400_000, "date64[ms]"),
        (pa.array([7], pa.time32("s")), 7, "time32[s]"),
        (pa.array([7], pa.time64("ns")), 7, "time64[ns]"),
        (stamps("ms", 7, kind=pa.duration), 7, "duration[ms]"),
        (stamps("us", 7).cast(pa.timestamp("us", "Asia/Tokyo")), 7, "timestamp[us]"),
        (stamps("ns", 7).dictionary_encode(), 7, "timestamp[ns]"),
        (pc.run_end_encode(stamps("ns", 7)), 7, "timestamp[ns]"),
        (pa.array([7], pa.uint8()), 7, "int64"),
        (pa.array([DECIMAL("1711850340123456789")]), 1711850340123456789, "int64"),
        (pa.array([DECIMAL("1711850340.5")]), 1711850340.5, "float64"),
        (pa.array([1.5], pa.float16()), 1.5, "float64"),
        (pa.array(["7"], pa.string_view()), 7, "int64"),
        (pa.array(["1970-01-01T00:00:07Z"], pa.large_string()), 7_000_000, "timestamp[us]"),
    ],
)
def test_times_of_every_type_are_read_again_by_their_type(write: Write, column: Any, expected: Any, type: str) -> None:
    path = write({"id": ["p"], "time": column, "x": [1.0]})
    assert read_table(path).events.times.tolist() == [expected]
    assert scan_time_type(path, TableFormat()) == type
    again = TableFormat(time_type=type, numbers="only" if type in ("int64", "float64") else "error")
    assert read_table(path, again).events.times.tolist() == [expected]


@pytest.mark.parametrize(
    "column",
    [pa.array([True]), pa.array([[1]]), pa.array([{"a": 1}]), pa.array([(1, 2, 3)], pa.month_day_nano_interval())],
)
def test_what_is_no_time_is_named(write: Write, column: Any) -> None:
    with pytest.raises(DataError, match="row 1: column 'time' should hold times, got"):
        read_times(write, column)


@pytest.mark.parametrize("missing", [None, "NaT", "NA", "", "nan"])
def test_a_missing_time_is_named(write: Write, missing: str | None) -> None:
    for text in ("5", "2024-03-31T01:59:00Z"):
        with pytest.raises(DataError, match="row 2: there is no time"):
            read_times(write, pa.array([text, missing]), "csv")
    with pytest.raises(DataError, match="row 2: there is no time"):
        read_times(write, pa.array([5, None]).cast(pa.timestamp("ns")))


MORNING = 1_711_850_340  # 2024-03-31T01:59:00Z


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize(
    ("text", "expected", "unit"),
    [
        (["2024-03-31T01:59:00.123456789Z"], [MORNING * 10**9 + 123456789], "ns"),
        (["2024-03-31 03:59:00.1234567+02"], [MORNING * 10**9 + 123456700], "ns"),
        (["2024-03-31T01:59:00.5Z", "2024-03-31T01:59:00.1234567Z"],
         [MORNING * 10**9 + 123456700, MORNING * 10**9 + 500000000], "ns"),
        (["2024-03-31T03:59+0200", "2024-03-31 01:59:00.000001Z", "2024-03-31T03:59:00.000002+02:00"],
         [MORNING * 10**6, MORNING * 10**6 + 1, MORNING * 10**6 + 2], "us"),
        (["9999-12-31", "0001-01-01 00:00"], [-62_135_596_800 * 10**6, 253_402_214_400 * 10**6], "us"),
    ],
)  # fmt: skip
def test_text_times(write: Write, kind: str, text: list[str], expected: list[int], unit: str) -> None:
    table = read_times(write, pa.array(text), kind)
    assert (table.events.times.tolist(), table.time_unit) == (expected, unit)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (["2024-03-31T01:59:00,5Z"], {}, "row 1: .*expected a number, or a time such as 2024-"),
        (["31.03.2024 01:59"], {}, "row 1: .*expected a number, or a time such as 2024-"),
        (["9999-12-31T23:59:59.9999999"], {}, "row 1: .*six after 2262"),
        (["2024-03-31T01:59:00Z", "2024-03-31T01:59:00"], {}, "row 2: .*with a zone, as the first one has"),
        (["2024-03-31T01:59:00", "2024-03-31T01:59:00Z"], {}, "row 2: .*without a zone, as the first one"),
        (["2024-03-31T01:59:00", "2024-03-31T01:59:00,5"], {}, "row 2: time is '2024-03-31T01:59:00,5'"),
        (["2024-03-31T01:59:00.1234567Z"], {"time_type": "timestamp[us]"}, "row 1: .*--time-type"),
        (["1711850340123456789", "1.5"], {}, "row 1: .*which no float expresses"),
    ],
)
def test_text_times_that_are_refused(write: Write, text: list[str], options: dict[str, Any], message: str) -> None:
    for kind in ("parquet", "csv"):
        with pytest.raises(DataError, match=message):
            read_times(write, pa.array(text), kind, **options)


def test_zeros_beyond_the_wanted_unit_are_exact(write: Write) -> None:
    text = pa.array(["2150-03-01T00:00:00.0000000Z", "2150-03-01T00:00:00.000001000+00:00"])
    assert read_times(write, text, time_type="timestamp[us]").events.times.tolist() == [LATE * 10**6, LATE * 10**6 + 1]
    assert read_times(write, text[:1], time_type="timestamp[s]").events.times.tolist() == [LATE]


def test_days_in_text(write: Write) -> None:
    for text in (["1970-01-03", "1970-01-02"], ["1970-01-03 00:00:00Z", "1970-01-02T00:00:00Z"]):
        assert read_times(write, pa.array(text), time_type="date32[day]").events.times.tolist() == [1, 2]
    for text in ("1970-01-02T06:00", "19700102", "2"):
        with pytest.raises(DataError, match="row 1: time is"):
            read_times(write, pa.array([text]), time_type="date32[day]")


@pytest.mark.parametrize("units", [("ns", "ms"), ("ms", "ns"), ("s", "us")])
def test_files_of_several_units_become_one_exactly(write: Write, units: tuple[str, str]) -> None:
    scale = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}
    files = [
        write({"id": [unit], "time": stamps(unit, MORNING * scale[unit]), "x": [1.0]}, name=unit) for unit in units
    ]
    table = read_table(files)
    assert (table.events.times.tolist(), table.time_unit) == ([MORNING * scale[units[0]]] * 2, units[0])
    with pytest.raises(
        DataError, match=rf"{units[0]}\.arrow, row 1: .*holds timestamp.*expected numbers: read the table"
    ):
        read_table(files, TableFormat(time_type="int64"))
    write({"id": [units[1]], "time": stamps("ns", 1), "x": [1.0]}, name=units[1])
    if units[0] != "ns":
        with pytest.raises(DataError, match=rf"{units[1]}\.arrow, row 1: .*can express exactly"):
            read_table(files)


def test_files_of_several_kinds_of_times_are_refused(write: Write) -> None:
    kinds = {
        "whole": pa.array([1]), "float": pa.array([1.5]), "stamp": stamps("s", 1),
        "length": stamps("s", 1, kind=pa.duration), "clock": pa.array([1], pa.time32("s")),
    }  # fmt: skip
    files = {name: write({"id": [name], "time": column, "x": [1.0]}, name=name) for name, column in kinds.items()}
    for first in kinds:
        for second in kinds:
            if first != second:
                with pytest.raises(DataError, match=rf"{second}\.arrow, row 1: column 'time' holds .* before"):
                    read_table([files[first], files[second]])


def test_times_with_and_without_a_zone_do_not_mix(write: Write) -> None:
    columns = {
        "naive": stamps("s", 1), "tokyo": stamps("s", 1).cast(pa.timestamp("s", "Asia/Tokyo")),
        "text": pa.array(["1970-01-01T00:00:01"]), "utc": pa.array(["1970-01-01T00:00:01Z"]),
    }  # fmt: skip
    files = {name: write({"id": [name], "time": column, "x": [1.0]}, name=name) for name, column in columns.items()}
    for pair in (("naive", "text"), ("tokyo", "utc")):
        assert len(read_table([files[name] for name in pair]).ids) == 2
    for pair, message in ((("naive", "utc"), "with a time zone, and without one before"),
                          (("tokyo", "text"), "without a time zone, and with one before")):  # fmt: skip
        for kind in (None, "timestamp[us]"):
            with pytest.raises(DataError, match=rf"{pair[1]}\.arrow, row 1: .*{message}"):
                read_table([files[name] for name in pair], TableFormat(time_type=kind))


def test_numbers_alone_or_timestamps_alone(write: Write) -> None:
    for column, numbers, message in (
        (stamps("s", 1), "only", r"holds timestamp\[s\], expected numbers"),
        (pa.array(["2024-01-01"]), "only", r"holds timestamp\[us\], expected numbers"),
        (pa.array([1]), "error", "holds int64, expected timestamps"),
    ):
        with pytest.raises(DataError, match=message):
            read_times(write, column, numbers=numbers, time_type="timestamp[s]" if numbers == "error" else None)


def test_shares_have_the_unit_of_the_whole_table(write: Write) -> None:
    early, late = (
        write({"id": [name] * 2, "time": [f"2024-03-31T01:59:0{n}{end}Z" for n in range(2)], "x": [1.0] * 2}, name=name)
        for name, end in (("a", ""), ("b", ".0000005"))
    )
    parts = [table for rank in range(2) for table in iter_sequences([late, early], share=(rank, 2))]
    assert [(part.ids, part.time_unit) for part in parts] == [(("b",), "ns"), (("a",), "ns")]
    with pytest.raises(DataError, match=r"b\.arrow, row 1: .*--time-type"):
        list(iter_sequences([early, late], share=(1, 2)))


TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]


@pytest.mark.parametrize("type", TEXT_TYPES, ids=str)
@pytest.mark.parametrize("place", ["id", "time", "channel", "value", "y"])
def test_text_of_every_type(write: Write, type: Any, place: str) -> None:
    columns = {"id": ["p", "p"], "time": ["1", "2"], "channel": ["a", "b"], "value": ["3", "NA"], "y": ["u", "NA"]}
    given = columns[place] if "string" in str(type) else [entry.encode() for entry in columns[place]]
    path = write({**columns, place: pa.array(given, type)})
    table = read_table(path, TableFormat(channel="channel", empty="skip"))
    assert (table.ids, table.channels, table.events.times.tolist()) == (("p",), ("a", "b"), [1])
    assert read_labels(path, ["y"], id="time").targets["y"] == ("u", "NA")


def test_ids_of_other_types(write: Write) -> None:
    name = uuid.UUID(int=5)
    encoded = pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.uint32()), pa.array(["p"], pa.string_view()))
    for column, expected in (
        (pa.array([name.bytes] * 2, pa.uuid()), str(name)),
        (encoded, "p"),
        (pc.run_end_encode(pa.array(["p", "p"])), "p"),
        (pa.array([DECIMAL(12)] * 2), "12"),
        (pa.array([2**64 - 1] * 2, pa.uint64()), str(2**64 - 1)),
    ):
        assert read_table(write({"id": column, "time": [1, 2], "x": [1.0, 2.0]})).ids == (expected,)
    for column in (pa.array([1.0, 1.0]), pa.array([True, True]), pa.array([[1], [1]]), pa.array([{"a": 1}] * 2)):
        with pytest.raises(DataError, match="column 'id' should hold strings or integers"):
            read_table(write({"id": column, "time": [1, 2], "x": [1.0, 2.0]}))
    with pytest.raises(DataError, match="row 2: id is 'p\\\\x00', with a NUL byte"):
        read_table(write({"id": ["p", "p\0"], "time": [1, 2], "x": [1.0, 2.0]}))


NAMES = ["None", "NA", "null", "nan", "N/A"]


@pytest.mark.parametrize("name", NAMES)
def test_names_like_words_for_gaps_are_names(write: Write, name: str) -> None:
    for kind in ("csv", "parquet"):
        long = write({"id": [name] * 2, "time": [1, 1], "channel": [name, "K"], "value": ["4.5", name]}, kind, "long")
        table = read_table(long)
        assert (table.ids, set(table.channels), table.events.num_events) == ((name,), {name, "K"}, 1)
        labels = read_labels(
            write({"id": ["p", name], "y": [name, "mild"], "age": [name, "7"]}, kind), ["y"], static=["age"]
        )
        assert (labels.ids, labels.targets["y"]) == (("p", name), (name, "mild"))
        assert labels.static is not None
        assert labels.static.isnan().flatten().tolist() == [True, False]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_gaps_among_numbers_of_text(write: Write, kind: str) -> None:
    entries = ["1", "", "NA", " NaN ", "null", "2.5"]
    path = write({"id": ["p"] * 6, "time": list(range(6)), "x": entries}, kind)
    assert read_table(path).events.values.isfinite().flatten().tolist() == [True, False, False, False, False, True]
    truths = write({"id": ["p"] * 3, "time": [1, 2, 3], "x": [True, None, False]}, kind)
    assert read_table(truths).events.values.nan_to_num(9.0).flatten().tolist() == [1.0, 9.0, 0.0]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["1", "NA", "0"], r"row 2: there is no y; leave the row out \('NA' is taken for a gap among numbers"),
        (["1.5", "nan", "0"], "row 2: there is no y"),
        (["a", "", "b"], "row 2: there is no y"),
        (["a", " ", "b"], "row 2: there is no y"),
        (["a", None, "b"], "row 2: there is no y"),
        (["1", "inf", "0"], "row 2: y is inf"),
        ([1.0, float("nan"), 0.0], "row 2: there is no y"),
    ],
)
def test_targets_that_are_missing(write: Write, kind: str, entries: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_labels(write({"id": ["p", "q", "r"], "y": entries}, kind), ["y"])


def test_classes_of_text_that_would_become_one_number_stay_text(write: Write) -> None:
    for kind in ("csv", "parquet"):
        for entries in (["01", "1", "2"], [str(2**64 - 1), str(2**64 - 2), "1"]):
            labels = read_labels(write({"id": ["p", "q", "r"], "y": entries}, kind), ["y"])
            assert labels.targets["y"] == tuple(entries)
        padded = read_labels(write({"id": ["p", "q"], "y": ["01", "02"]}, kind), ["y"])
        assert torch.equal(padded.targets["y"], torch.tensor([1, 2]))  # type: ignore[arg-type]


def test_labels_of_several_files_and_types(write: Write) -> None:
    def joined(*columns: Any) -> Any:
        files = [write({"id": [str(n)], "y": column}, name=f"y{n}") for n, column in enumerate(columns)]
        return read_labels(files, ["y"]).targets["y"]

    assert torch.equal(joined([1], [2.5]), torch.tensor([1.0, 2.5], dtype=torch.float64))
    assert torch.equal(joined([1], pa.array([2], pa.uint8()), [True]), torch.tensor([1, 2, 1]))
    assert joined(["u"], pa.array(["v"], pa.string_view())) == ("u", "v")
    with pytest.raises(DataError, match=r"y1\.arrow, row 1: column 'y' holds string, and int64 before"):
        joined([1], ["u"])
    with pytest.raises(DataError, match=r"y1\.arrow, row 1: there is no y"):
        joined([1], pa.array([None]))
    with pytest.raises(DataError, match=r"y1\.arrow, row 1: y is 18446744073709551615"):
        joined([1], pa.array([2**64 - 1], pa.uint64()))


@pytest.mark.parametrize(("label", "series"), [("01", "1"), ("1.0", "1"), (" p", "p"), ("P7", "p7")])
def test_ids_that_differ_in_spelling_are_shown(write: Write, label: str, series: str) -> None:
    labels = read_labels(write({"id": [label, "other"], "y": [1, 0]}), ["y"])
    with pytest.raises(DataError, match=rf"no label for 1 of 1 series.*'{series}' is not '{label}'"):
        labels.rows([series])
    with pytest.raises(DataError, match=r"leave those series out$"):
        labels.rows(["none"])
