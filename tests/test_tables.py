"""Long and wide tables in three formats: what comes out, in what pieces, and what is refused where."""

from __future__ import annotations

import datetime
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch

from phased_lstm.data import _arrow
from phased_lstm.data.events import EventBatch
from phased_lstm.data.labels import read_labels
from phased_lstm.data.tables import Table, TableFormat, iter_sequences, read_table, scan_channels
from phased_lstm.errors import DataError

NAN = float("nan")
KINDS = ["parquet", "feather", "csv", "csv.gz", "tsv"]
LONG = {
    "id": ["b", "b", "b", "b", "a", "a"],
    "time": [30, 10, 10, 20, 5, 5],
    "channel": ["hr", "bp", "hr", "hr", "bp", "hr"],
    "value": [1.5, 2.5, None, 3.5, -4.0, 5.0],
}
WIDE = {
    "id": ["b", "b", "b", "a"],
    "time": [10, 20, 30, 5],
    "bp": [2.5, None, None, -4.0],
    "hr": [None, 3.5, 1.5, 5.0],
}
EXPECTED = EventBatch.from_sequences(
    [
        (torch.tensor([[2.5, NAN], [NAN, 3.5], [NAN, 1.5]]), torch.tensor([10, 20, 30])),
        (torch.tensor([[-4.0, 5.0]]), torch.tensor([5])),
    ]
)

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(columns: dict[str, Any], kind: str = "parquet", name: str = "table", **options: Any) -> Path:
        path = tmp_path / f"{name}.{kind}"
        table = pa.table(columns)
        if kind == "parquet":
            pq.write_table(table, path, **options)
        elif kind == "feather":
            pyarrow.feather.write_feather(table, path, **options)
        else:
            delimiter = "\t" if kind == "tsv" else ","
            with pa.output_stream(path, compression="detect") as stream:
                pa_csv.write_csv(table, stream, pa_csv.WriteOptions(delimiter=delimiter))
        return path

    return write


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [LONG, WIDE], ids=["long", "wide"])
def test_long_and_wide_in_every_format(write: Write, kind: str, columns: dict[str, Any]) -> None:
    table = read_table(write(columns, kind))
    assert table.ids == ("b", "a")
    assert table.channels == ("bp", "hr")
    assert table.time_unit is None
    assert table.events.equal(EXPECTED)


def test_other_names_types_and_a_subset_of_columns(write: Write) -> None:
    path = write({"t": [1, 2], "note": ["x", "y"], "w": [1, 2], "stay": [7, 8], "flag": [True, False]})
    table = read_table(path, TableFormat(id="stay", time="t", features=("flag", "w")), dtype=torch.float64)
    assert table.ids == ("7", "8")
    assert table.events.values.tolist() == [[1.0, 1.0], [0.0, 2.0]]
    assert table.events.values.dtype == torch.float64
    path = write({"who": [3], "at": [0.5], "what": [12], "level": pa.array([7], pa.int16())}, name="long")
    table = read_table(path, TableFormat(id="who", time="at", channel="what", value="level"))
    assert (table.channels, table.events.times.tolist(), table.events.values.tolist()) == (("12",), [0.5], [[7.0]])


def test_categories_of_parquet(write: Write) -> None:
    columns = {**LONG, "id": pa.array(LONG["id"]).dictionary_encode()}
    columns["channel"] = pa.array(LONG["channel"]).dictionary_encode()
    assert read_table(write(columns)).events.equal(EXPECTED)


@pytest.mark.parametrize("kind", ["parquet", "feather", "csv"])
@pytest.mark.parametrize("chunk_events", [1, 7, 100])
def test_chunks_are_whole_sequences_whatever_the_batches(
    write: Write, monkeypatch: pytest.MonkeyPatch, kind: str, chunk_events: int
) -> None:
    lengths = torch.randint(1, 12, (40,)).tolist()
    ids = [f"s{n}" for n, length in enumerate(lengths) for _ in range(length)]
    columns = {"id": ids, "time": list(range(len(ids))), "x": [n / 8 for n in range(len(ids))]}
    monkeypatch.setattr(_arrow, "_ROWS", 5)
    monkeypatch.setattr(_arrow, "_BLOCK", 64)
    options = {"parquet": {"row_group_size": 16}, "feather": {"chunksize": 9}, "csv": {}}[kind]
    chunks = list(iter_sequences(write(columns, kind, **options), chunk_events=chunk_events))
    assert [name for chunk in chunks for name in chunk.ids] == [f"s{n}" for n in range(40)]
    joined = EventBatch.cat(chunk.events for chunk in chunks)
    assert joined.lengths.tolist() == lengths
    assert joined.times.tolist() == columns["time"]
    assert joined.values[:, 0].tolist() == columns["x"]
    assert all(chunk.events.num_events >= chunk_events for chunk in chunks[:-1])
    if chunk_events == 7:
        assert max(chunk.events.num_events for chunk in chunks) < 7 + 12 + 16


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(6))
def test_ranks_together_read_every_sequence_once(
    write: Write, monkeypatch: pytest.MonkeyPatch, ranks: int, seed: int
) -> None:
    monkeypatch.setattr(_arrow, "_ROWS", 5)
    generator = torch.Generator().manual_seed(seed)
    # Up to several row groups a sequence.
    lengths = torch.randint(1, (4, 40)[seed % 2], (12,), generator=generator).tolist()
    ids = [f"s{n}" for n, length in enumerate(lengths) for _ in range(length)]
    path = write({"id": ids, "time": list(range(len(ids))), "x": [1.0] * len(ids)}, row_group_size=3)
    read: list[str] = []
    for rank in range(ranks):
        for chunk in iter_sequences(path, chunk_events=4, share=(rank, ranks)):
            read += chunk.ids
            for name, (_, times) in zip(chunk.ids, chunk.events, strict=True):
                first = ids.index(name)
                assert times.tolist() == list(range(first, first + ids.count(name)))
    assert read == [f"s{n}" for n in range(12)]


def test_shares_are_about_equal_and_rows_are_named_as_in_the_file(write: Write) -> None:
    ids = [f"s{n // 10:03}" for n in range(1000)]
    values: list[float] = [1.0] * 1000
    values[850] = float("inf")
    columns = {"id": ids, "time": list(range(1000)), "x": values}
    path = write(columns, row_group_size=50)
    for rank in range(3):
        assert sum(len(chunk.ids) for chunk in iter_sequences(path, share=(rank, 4))) == 25
    with pytest.raises(DataError, match=r"table\.parquet, row 851: x is inf"):
        list(iter_sequences(path, share=(3, 4)))
    emptied = write(columns | {"x": [1.0] * 900 + [None] * 10 + [1.0] * 90}, name="emptied", row_group_size=47)
    with pytest.raises(DataError, match=r"emptied\.parquet, row 901: id s090 has no values"):
        list(iter_sequences(emptied, share=(3, 4)))
    with pytest.raises(DataError, match="20 row groups or files cannot be shared out among 21 ranks"):
        list(iter_sequences(path, share=(0, 21)))
    with pytest.raises(ValueError, match="share should be"):
        iter_sequences(path, share=(2, 2))
    files = [write(columns | {"x": [0.5] * 1000, "id": [f"{part}{name}" for name in ids]}, "csv", name=part)
             for part in "ab"]  # fmt: skip
    parts = [[name for chunk in iter_sequences(files, share=(rank, 2)) for name in chunk.ids] for rank in range(2)]
    assert [(part[0][0], len(part)) for part in parts] == [("a", 100), ("b", 100)]


def test_several_files_are_one_table(write: Write, tmp_path: Path) -> None:
    cut = {name: [column[:2], column[2:]] for name, column in WIDE.items()}
    files = [write({name: pa.array(cut[name][n], pa.array(WIDE[name]).type) for name in WIDE}, name=f"part{n}")
             for n in range(2)]  # fmt: skip
    assert read_table(files).events.equal(EXPECTED)
    assert read_table(tmp_path).events.equal(EXPECTED)
    with pytest.raises(DataError, match=r"part0\.parquet, row 1: id b comes back"):
        read_table([files[0], files[1], files[0]])


def times_of(path: Path, **options: Any) -> tuple[Any, Table]:
    table = read_table(path, TableFormat(**options))
    return table.events.times.tolist(), table


MOMENT = datetime.datetime(2024, 3, 1, 12, 0, 0, 250_000, datetime.UTC)
SECONDS = 1_709_294_400


def test_timestamps_become_integers_in_their_unit_and_utc(write: Write) -> None:
    zone = datetime.timezone(datetime.timedelta(hours=5))
    for unit, scale in (("ms", 1000), ("us", 1_000_000), ("ns", 1_000_000_000)):
        for tz in ("Asia/Tokyo", None):
            given = MOMENT.astimezone(zone) if tz else MOMENT.replace(tzinfo=None)
            column = pa.array([given], pa.timestamp(unit, tz))
            times, table = times_of(write({"id": ["a"], "time": column, "x": [1.0]}))
            assert times == [SECONDS * scale + scale // 4]
            assert table.time_unit == unit
            assert table.events.times.dtype == torch.int64
    times, table = times_of(write({"id": ["a"], "time": column, "x": [1.0]}), time_type="timestamp[us]")
    assert (times, table.time_unit) == ([SECONDS * 1_000_000 + 250_000], "us")
    times, table = times_of(write({"id": ["a"], "time": [datetime.date(2024, 3, 1)], "x": [1.0]}))
    assert times == [SECONDS // 86400]
    duration = pa.array([datetime.timedelta(seconds=2)], pa.duration("ms"))
    assert times_of(write({"id": ["a"], "time": duration, "x": [1.0]}))[0] == [2000]


@pytest.mark.parametrize(
    ("text", "options", "expected", "unit"),
    [
        (["7", " 8"], {}, [7, 8], None),
        (["7", "8.5"], {}, [7.0, 8.5], None),
        (["7"], {"time_type": "float64"}, [7.0], None),
        (["2024-03-01T12:00:00Z", "2024-03-01T13:00:00.5+01:00"], {},
         [SECONDS * 1_000_000, SECONDS * 1_000_000 + 500_000], "us"),
        (["2024-03-01 12:00:00"], {"time_type": "timestamp[s]"}, [SECONDS], "s"),
        (["2024-03-01T17:00:00+05:00"], {"time_type": "timestamp[ms]"}, [SECONDS * 1000], "ms"),
        (["2024-03-01 12:00:00.000000001"], {}, [SECONDS * 10**9 + 1], "ns"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_times_as_strings(
    write: Write, text: list[str], options: dict[str, Any], expected: list[Any], unit: str | None, kind: str
) -> None:
    times, table = times_of(write({"id": ["a"] * len(text), "time": text, "x": [1.0] * len(text)}, kind), **options)
    assert (times, table.time_unit) == (expected, unit)


def test_integers_beyond_a_double_stay_exact(write: Write) -> None:
    big = (1 << 60) + 1
    for kind in ("parquet", "csv"):
        assert times_of(write({"id": ["a"], "time": [big], "x": [1.0]}, kind))[0] == [big]


def test_a_vocabulary_from_training(write: Write) -> None:
    path = write(LONG)
    table = read_table(path, channels=("hr", "never", "bp"))
    assert table.events.values[:1].tolist()[0][2] == 2.5
    assert bool(table.events.values[:, 1].isnan().all())
    with pytest.raises(DataError, match=r"row 2: channel 'bp' is not in the vocabulary \(hr\)"):
        read_table(path, channels=("hr",))
    ignoring = read_table(path, TableFormat(channel="channel", unseen="ignore"), channels=("hr",))
    assert ignoring.events.values.flatten().tolist() == [3.5, 1.5, 5.0]
    assert scan_channels(path, TableFormat(channel="channel")) == ("bp", "hr")
    with pytest.raises(DataError, match="has a column 'hr' that is not among the channels bp"):
        read_table(write(WIDE, name="wide"), channels=("bp",))
    with pytest.raises(DataError, match="no column 'new'"):
        read_table(write(WIDE, name="wide"), channels=("bp", "hr", "new"))
    one = read_table(write(WIDE, name="wide"), TableFormat(unseen="ignore"), channels=("hr",))
    assert one.channels == ("hr",)


def test_repeated_values_and_empty_sequences_as_chosen(write: Write) -> None:
    columns = {"id": ["a", "a", "b"], "time": [1, 1, 2], "channel": ["x"] * 3, "value": [1.0, 2.0, None]}
    path = write(columns)
    lenient = TableFormat(channel="channel", repeated="last", empty="skip")
    table = read_table(path, lenient)
    assert table.ids == ("a",)
    assert table.events.values.tolist() == [[2.0]]
    with pytest.raises(DataError, match=r"row 2: a second value of x of a at time 1"):
        read_table(path, TableFormat(channel="channel", empty="skip"))
    with pytest.raises(DataError, match=r"table\.parquet, row 3: id b has no values at all"):
        read_table(path, TableFormat(channel="channel", repeated="last"))
    wide = write({"id": ["a", "b", "b", "c"], "time": [0, 1, 2, 3], "x": [1.0, None, None, 2.0]}, name="wide")
    with pytest.raises(DataError, match="row 2: id b has no values"):
        read_table(wide)
    assert read_table(wide, TableFormat(empty="skip")).ids == ("a", "c")


def test_a_step_where_nothing_was_measured_stays_in_a_wide_table(write: Write) -> None:
    table = read_table(write({"id": ["a", "a"], "time": [1, 2], "x": [1.0, None]}))
    assert table.events.times.tolist() == [1, 2]


def test_times_are_sorted_within_a_sequence_and_equal_ones_keep_their_order(write: Write) -> None:
    columns = {"id": ["b"] * 4 + ["a"] * 2, "time": [3, 1, 3, 2, 9, 0], "x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    events = read_table(write(columns)).events
    assert events.times.tolist() == [1, 2, 3, 3, 0, 9]
    assert events.values.flatten().tolist() == [2.0, 4.0, 1.0, 3.0, 6.0, 5.0]
    assert events.lengths.tolist() == [4, 2]


def test_without_pyarrow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "phased_lstm.data._arrow")
    with pytest.raises(ImportError, match=r"pyarrow is not installed.*phased-lstm\[data\]"):
        importlib.import_module("phased_lstm.data._arrow")


def changed(columns: dict[str, Any], **replaced: Any) -> dict[str, Any]:
    return {**columns, **replaced}


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (changed(WIDE, id=["a", "b", "b", "a"]), {}, "row 4: id a comes back after other ids"),
        (changed(WIDE, id=["a", None, "b", "b"]), {}, "row 2: there is no id"),
        (changed(WIDE, id=["a", " ", "b", "b"]), {}, "row 2: there is no id"),
        (changed(WIDE, id=[0.5, 1.5, 2.5, 3.5]), {}, "column 'id' should hold strings or integers, got double"),
        (changed(WIDE, time=[1, None, 3, 4]), {}, "row 2: there is no time"),
        (changed(WIDE, time=["1", "2", "noon", "4"]), {}, "row 3: time is 'noon', expected int64"),
        (changed(WIDE, time=["2024-01-01", "2024-01-02", "2024-13-01", "2024-01-04"]), {},
         r"row 3: time is '2024-13-01', expected timestamp\[us\]"),
        (changed(WIDE, time=["2024-01-01"] * 4), {"time_type": "int64"}, "row 1: time is '2024-01-01', expected int64"),
        (changed(WIDE, time=[1.0, 2.0, 3.0, float("inf")]), {}, "row 4: time is inf, expected a finite time"),
        (changed(WIDE, time=[True, False, True, True]), {}, "column 'time' should hold times, got bool"),
        (changed(WIDE, hr=[1.0, 2.0, -float("inf"), None]), {}, "row 3: hr is -inf, expected a finite float32"),
        (changed(WIDE, hr=[1.0, 2.0, 1e300, None]), {}, r"row 3: hr is 1e\+300, expected a finite float32"),
        (changed(WIDE, hr=["1", "2", "high", "4"]), {}, "row 3: hr is 'high', expected a number"),
        (changed(WIDE, hr=[MOMENT] * 4), {}, "column 'hr' should hold numbers, got timestamp"),
        (changed(LONG, channel=["hr", None, "hr", "hr", "bp", "hr"]), {"channel": "channel"}, "row 2: there is no cha"),
        (WIDE, {"id": "stay"}, "no column 'stay'; its columns are id, time, bp, hr"),
        (WIDE, {"features": ("a",)}, "no column 'a'"),
        ({"id": [], "time": [], "x": []}, {}, "the table has no sequences"),
        ({"id": ["a"], "time": [1]}, {}, "channels should be distinct, and at least one, got none"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(write: Write, columns: dict[str, Any], options: dict[str, Any], message: str) -> None:
    path = write(columns)
    with pytest.raises(DataError, match=message):
        read_table(path, TableFormat(**options))


def test_bad_rows_are_named_far_into_a_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_arrow, "_ROWS", 7)
    monkeypatch.setattr(_arrow, "_BLOCK", 50)
    times: list[Any] = [str(n) for n in range(100)]
    times[77] = "?"
    for kind in ("parquet", "csv"):
        path = write({"id": ["a"] * 50 + ["b"] * 50, "time": times, "x": [1.0] * 100}, kind)
        with pytest.raises(DataError, match=rf"table\.{kind}, row 78: time is '\?'"):
            list(iter_sequences(path, chunk_events=1))
    ids = [f"{n // 5:02}" for n in range(100)]
    values = [1.0 if not 30 <= n < 35 else None for n in range(100)]
    with pytest.raises(DataError, match="row 31: id 06 has no values"):
        list(iter_sequences(write({"id": ids, "time": list(range(100)), "x": values}), chunk_events=1))


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_truncated_and_damaged_files_are_named(write: Write, kind: str) -> None:
    path = write({"id": ["a"] * 5000, "time": list(range(5000)), "x": [n / 7 for n in range(5000)]}, kind)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"table\.{kind} cannot be read: .*truncated or damaged"):
        read_table(path)


def test_a_ragged_csv_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,time,x\na,1,2\na,2\n")
    with pytest.raises(DataError, match=r"t\.csv cannot be read: .*Row #3: Expected 3 columns, got 2"):
        read_table(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"t\.csv cannot be read: .*[Ee]mpty"):
        read_table(path)


def test_a_damaged_gzip_file_is_named(write: Write) -> None:
    path = write({"id": ["a"] * 5000, "time": list(range(5000)), "x": [n / 7 for n in range(5000)]}, "csv.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"table\.csv\.gz cannot be read"):
        read_table(path)


def test_files_that_are_not_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no table"):
        read_table(tmp_path / "no.csv")
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match="should be Parquet, Feather or CSV"):
        read_table(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match="holds no table"):
        read_table(tmp_path)
    with pytest.raises(DataError, match="at least one table"):
        read_table([])


def test_option_errors(write: Write) -> None:
    with pytest.raises(DataError, match="unseen should be error or ignore, got 'drop'"):
        TableFormat(unseen="drop")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="give one of them"):
        TableFormat(channel="c", features=("a",))
    with pytest.raises(DataError, match=r"time_type should be one of int64.*got 'int8'"):
        TableFormat(time_type="int8")
    with pytest.raises(ValueError, match="dtype should be"):
        read_table(write(WIDE), dtype=torch.float16)
    with pytest.raises(ValueError, match="chunk_events should be at least 1"):
        iter_sequences(write(WIDE), chunk_events=0)
    with pytest.raises(DataError, match="channels should be distinct"):
        read_table(write(WIDE), channels=["hr", "hr"])


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_labels(write: Write, kind: str) -> None:
    path = write(
        {"id": [3, 1, 2], "died": [1, 0, 1], "name": ["x", "y", "x"], "score": [0.5, 1.0, 2.0], "age": [70, None, 5]},
        kind,
    )
    labels = read_labels(path, ["died", "name", "score"], static=["age"])
    assert labels.ids == ("3", "1", "2")
    assert labels.targets["died"].tolist() == [1, 0, 1]
    assert labels.targets["name"] == ("x", "y", "x")
    assert labels.targets["score"].tolist() == [0.5, 1.0, 2.0]
    torch.testing.assert_close(labels.static, torch.tensor([[70.0], [NAN], [5.0]]), equal_nan=True)
    assert labels.rows(["2", "3"]).tolist() == [2, 0]
    labels.check_all_used(["1", "2", "3", "4"])
    assert labels.classes("name")[0].tolist() == [0, 1, 0]
    assert labels.classes("died")[1] == ("0", "1")
    assert labels.classes("name", ["z", "y", "x"])[0].tolist() == [2, 1, 2]
    with pytest.raises(DataError, match=r"has no label for 2 of 3 series: 8, 9"):
        labels.rows(["1", "8", "9"])
    with pytest.raises(DataError, match=r"labels for 1 series that are not in the table of measurements: 2"):
        labels.check_all_used(["1", "3"])
    with pytest.raises(DataError, match="name of 1 is y, not among the classes x, z"):
        labels.classes("name", ["x", "z"])
    with pytest.raises(DataError, match=r"score of 3 is 0\.5: not a class"):
        labels.classes("score")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1, 2, 1], "y": [0, 1, 0]}, r"row 3: id 1 occurs a second time, first at .*row 1"),
        ({"id": [1, None, 3], "y": [0, 1, 0]}, "row 2: there is no id"),
        ({"id": [1, 2, 3], "y": [0, None, 0]}, "row 2: there is no y"),
        ({"id": [1, 2, 3], "y": [0.0, NAN, 0.0]}, "row 2: there is no y"),
        ({"id": [1, 2, 3], "y": [0.0, 1.0, float("inf")]}, "row 3: y is inf"),
        ({"id": [1, 2, 3], "y": [MOMENT] * 3}, "column 'y' should hold numbers"),
        ({"id": [1], "z": [1]}, "no column 'y'"),
        ({"id": pa.array([], pa.int64()), "y": pa.array([], pa.int64())}, "the table has no labels"),
    ],
)
def test_bad_labels_are_named(write: Write, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_labels(write(columns), ["y"])


def test_a_single_class_is_refused_but_not_at_prediction(write: Write) -> None:
    labels = read_labels(write({"id": [1, 2], "y": [3, 3]}), ["y"])
    with pytest.raises(DataError, match="y has a single class, 3"):
        labels.classes("y")
    assert labels.classes("y", ["2", "3"])[0].tolist() == [1, 1]
