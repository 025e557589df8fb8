"""Files as other programs leave them: encodings, comments, streams, hidden files, row numbers, odd names of columns."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from phased_lstm.data import _arrow
from phased_lstm.data.labels import read_labels
from phased_lstm.data.tables import TableFormat, read_table, scan_channels
from phased_lstm.errors import DataError

ROWS = "id,time,flow\np,1,5\np,2,6\n"
WIDE = {"id": ["p", "p"], "time": [1, 2], "flow": [5.0, 6.0]}


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes | str], Path]:
    def put(content: bytes | str, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


Put = Callable[..., Path]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_with_a_byte_order_mark_and_any_line_end(
    put: Put, monkeypatch: pytest.MonkeyPatch, encoding: str, end: str
) -> None:
    monkeypatch.setattr(_arrow, "_BLOCK", 40)
    path = put(ROWS.replace("p", "Å").replace("flow", "débit").replace("\n", end).encode(encoding))
    table = read_table(path)
    assert (table.ids, table.channels, table.events.times.tolist()) == (("Å",), ("débit",), [1, 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,time,débit\np,1,5\n".encode("cp1252"), "t.csv cannot be read as text.*save it as UTF-8.*iconv"),
        ("id,time,flow\np,1,5\nÅ,2,6\n".encode("latin-1"), r"t.csv, row 2: it is not UTF-8 text.*save it as UTF-8"),
        (ROWS.encode("utf-16-le"), "t.csv holds NUL bytes"),
        ("id,time,flow\np\0,1,5\n", "t.csv holds NUL bytes"),
        (b"", "t.csv cannot be read: it is empty"),
        ("\n \n", "t.csv cannot be read: it is empty"),
        ("id,time,flow", "t.csv cannot be read: .*Empty CSV.*no rows"),
        ("id,time,flow\n", "the table has no sequences"),
        ("# pump 3\n" + ROWS, "t.csv cannot be read: .*first line begins with #: remove comments"),
        ("# pump 3, a, b\n" + ROWS, "no column 'id'.*first line begins with #: remove comments"),
        ("sep=;\nid;time;flow\np;1;5\n", "no column 'id'.*its first line, sep=;, is for Excel alone"),
        ("id;time;flow\np;1;5\n", "no column 'id'.*separated by ';': write the table with commas"),
        ("id\ttime\tflow\np\t1\t5\n", "no column 'id'.*separated by tabs.*or call the file .tsv"),
        ("<!DOCTYPE html><html></html>\n", "no column 'id'.*a web page"),
        ("id,time,flow\np,1,5\np,2\n", r"Row #3: Expected 3 columns, got 2: p,2\. Rows are counted with the header"),
        ("id,time,flow,flow\np,1,5,6\n", "t.csv has two columns 'flow': rename one"),
        ("id, time,flow\np,1,5\n", "no column 'time'; its columns are id, ' time', flow"),
        (b"PK\3\4" + bytes(30), "t.csv is called CSV, but its content is a zip archive or Excel's"),
        (b"PAR1" + bytes(30), "but its content is Parquet"),
        (gzip.compress(ROWS.encode()), "but its content is compressed by gzip"),
    ],
)
def test_text_that_is_no_table_says_why(put: Put, content: bytes | str, message: str) -> None:
    path = put(content)
    with pytest.raises(DataError, match=message):
        read_table(path)
    if b"flow,flow" not in path.read_bytes():
        with pytest.raises(DataError, match=message.replace("has no sequences", "has no labels")):
            read_labels(path, ["time"])


def test_line_ends_in_quotes_and_rows_after_them(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_arrow, "_BLOCK", 50)
    note = '"two\nlines, and ""quotes""\n"'
    path = put("id,time,flow,note\n" + f"p,1,5,{note}\n" * 40 + f"p,1,wet,{note}\n")
    with pytest.raises(DataError, match=r"t\.csv, row 41: flow is 'wet', expected a number"):
        read_table(path, TableFormat(features=("flow",)))


def test_compressed_text(put: Put) -> None:
    halves = ROWS[: ROWS.index("p,2")].encode(), b"p,2,6\n"
    for name, content in {
        "t.csv.gz": b"".join(map(gzip.compress, halves)),
        "t.csv.bz2": b"".join(map(bz2.compress, halves)),
        "t.csv.zst": pa.compress(ROWS.encode(), codec="zstd", asbytes=True),
        "t.tsv.zst": pa.compress(ROWS.replace(",", "\t").encode(), codec="zstd", asbytes=True),
    }.items():
        assert read_table(put(content, name)).events.times.tolist() == [1, 2]
        with pytest.raises(DataError, match="cannot be read"):
            read_table(put(content[:-5], name))


def test_hidden_files_are_no_part_of_a_folder(put: Put, tmp_path: Path) -> None:
    put(bytes.fromhex("0005160700020000b0"), "._t.csv")
    put("no table", ".t.csv")
    put("no table", "_draft.csv")
    put("", "_SUCCESS")
    with pytest.raises(DataError, match="holds no table"):
        read_table(tmp_path)
    put(ROWS)
    assert read_table(tmp_path).ids == ("p",)
    assert read_labels(tmp_path, ["flow"], id="time").ids == ("1", "2")


def write_arrow(path: Path, table: Any, new: Any, rows: int = 4) -> Path:
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


@pytest.mark.parametrize("name", ["t.arrow", "t.arrows", "t.feather"])
def test_arrow_streams(tmp_path: Path, name: str) -> None:
    table = pa.table({"id": ["p"] * 10, "time": list(range(10)), "flow": [1.0] * 10})
    path = write_arrow(tmp_path / name, table, pa.ipc.new_stream)
    assert read_table(path).events.times.tolist() == list(range(10))
    whole = path.read_bytes()
    # Wherever it is cut: between two batches the rest reads like a whole stream.
    for end in range(0, len(whole), 8):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=name):
            read_table(path)
    path.write_bytes(whole + whole)
    with pytest.raises(DataError, match="several streams were joined"):
        read_table(path)


def test_damaged_offsets_of_arrow_text_are_refused(tmp_path: Path) -> None:
    table = pa.table({"id": ["pq"] * 3, "time": [1, 2, 3], "flow": [1.0] * 3})
    path = write_arrow(tmp_path / "t.arrow", table, pa.ipc.new_file)
    whole = path.read_bytes()
    offsets = np.array([0, 2, 4, 6], np.int32).tobytes()
    assert whole.count(offsets) == 1
    path.write_bytes(whole.replace(offsets, np.array([0, 2, 2**30, 6], np.int32).tobytes()))
    with pytest.raises(DataError, match=r"t\.arrow cannot be read: .*truncated or damaged"):
        read_table(path)


def test_version_1_of_feather_is_refused(put: Put) -> None:
    with pytest.raises(DataError, match="version 1 of Feather"):
        read_table(put(b"FEA1" + bytes(60) + b"FEA1", "t.feather"))


@pytest.mark.parametrize("day", ["2500-01-01", "9999-12-31", "0001-01-01"])
def test_int96_does_not_wrap(tmp_path: Path, day: str) -> None:
    stamps = np.array(["2024-02-03T04:05:06.789", "1969-12-31T23:59:59.000001", day], "datetime64[us]")
    path = tmp_path / "t.parquet"
    for count in (2, 3):
        columns = {"id": ["p"] * count, "time": stamps[:count], "flow": [1.0] * count}
        pq.write_table(pa.table(columns), path, use_deprecated_int96_timestamps=True)
        if count == 2:
            expected = np.sort(stamps[:2].astype("datetime64[ns]").astype(np.int64)).tolist()
            assert read_table(path).events.times.tolist() == expected
    with pytest.raises(DataError, match=rf"t\.parquet, row 3: time is {day}.*INT96.*microseconds"):
        read_table(path)


def test_text_that_is_not_utf8_in_parquet(tmp_path: Path) -> None:
    offsets = np.array([0, 1, 2], np.int32).tobytes()
    broken = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(b"a\xe9")])
    path = tmp_path / "t.parquet"
    for name in ("id", "time", "flow"):
        pq.write_table(pa.table({**WIDE, "id": ["a", "b"], name: broken}), path)
        with pytest.raises(DataError, match=rf"t\.parquet, row 2: {name} is not UTF-8 text"):
            read_table(path)


@pytest.mark.parametrize(
    ("content", "left_out"),
    [
        (",id,time,flow\n0,p,1,5\n1,p,2,6\n", "''"),
        ('"","id","time","flow"\n"1","p",1,5\n"2","p",2,6\n', "''"),
        ("Unnamed: 0,id,time,flow\n0,p,1,5\n1,p,2,6\n", "'Unnamed: 0'"),
        (",Unnamed: 0,id,time,flow\n0,0,p,1,5\n1,1,p,2,6\n", "'' and 'Unnamed: 0'"),
        ("id,time,flow,\np,1,5,\np,2,6,\n", "''"),
        ("Unnamed: 0.1,...2,id,time,flow\n0,0,p,1,5\n1,1,p,2,6\n", "'Unnamed: 0.1' and '...2'"),
        ("index,id,time,flow\n3,p,1,5\n8,p,2,6\n", "'index'"),
        ("Row_Number,id,time,flow\n3,p,1,5\n8,p,2,6\n", "'Row_Number'"),
    ],
)
def test_row_numbers_in_text_are_no_channel(put: Put, content: str, left_out: str) -> None:
    path = put(content)
    with pytest.warns(UserWarning, match=rf"t\.csv: left out {left_out}.*--features"):
        assert read_table(path).channels == ("flow",)
    # Nor are they unseen where the vocabulary is known.
    assert read_table(path, channels=("flow",)).channels == ("flow",)


@pytest.mark.parametrize("kind", ["parquet", "feather"])
@pytest.mark.parametrize(("name", "told"), [("__index_level_0__", False), ("__index_level_0__", True), ("visit", True)])
def test_the_index_of_pandas_is_no_channel(tmp_path: Path, kind: str, name: str, told: bool) -> None:
    table = pa.table({**WIDE, name: [4, 9]})
    if told:
        table = table.replace_schema_metadata({"pandas": json.dumps({"index_columns": [name, {"kind": "range"}]})})
    path = tmp_path / f"t.{kind}"
    (pq.write_table if kind == "parquet" else pyarrow.feather.write_feather)(table, path)
    with pytest.warns(UserWarning, match=f"left out '{name}'"):
        assert read_table(path).channels == ("flow",)
    assert read_table(path, TableFormat(features=(name,))).events.values.flatten().tolist() == [4.0, 9.0]
    assert read_table(path, TableFormat(time=name, features=("flow",))).events.times.tolist() == [4, 9]


def test_an_index_may_be_id_or_time(tmp_path: Path, put: Put) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(WIDE).replace_schema_metadata({"pandas": '{"index_columns": ["id", "time"]}'}), path)
    assert read_table(path).channels == ("flow",)
    assert read_table(put(",time,flow\np,1,5\n"), TableFormat(id="")).ids == ("p",)
    # Called index, but not growing from row to row.
    assert read_table(put("id,time,index\np,1,7.5\np,2,6\n")).channels == ("index",)
    assert read_table(put("id,time,index\np,1,7\np,2,6\n")).channels == ("index",)


def test_columns_and_channels_that_are_ignored(put: Put) -> None:
    wide = put("id,time,flow,burst\np,1,5,1\n")
    assert read_table(wide, TableFormat(ignored=("burst",))).channels == ("flow",)
    assert read_table(wide, TableFormat(ignored=("burst", "none")), channels=("flow",)).channels == ("flow",)
    long = put("id,time,channel,value\np,1,flow,5\np,1,burst,1\np,2,leak,1\n", "long.csv")
    format = TableFormat(channel="channel", ignored=("burst",))
    assert scan_channels(long, format) == ("flow", "leak")
    assert read_table(long, format).events.times.tolist() == [1, 2]
    with pytest.raises(DataError, match="row 3: channel 'leak' is not in the vocabulary"):
        read_table(long, format, channels=("flow",))


def test_a_long_table_is_not_read_as_a_wide_one(put: Put) -> None:
    long = put("id,time,channel,value\np,1,3,5\np,1,4,1\n")
    for format in (TableFormat(features=("value",)), TableFormat()):
        with pytest.raises(DataError, match=r"t\.csv has columns 'channel' and 'value'.*--features"):
            read_table(long, format, channels=("value",))
    assert read_table(long, TableFormat(features=("value", "channel"))).events.values.tolist() == [[5, 3], [1, 4]]
    single = put("channel,time,value\nC3,1,5\nC4,1,7\n")
    assert read_table(single, TableFormat.detect(single, id="channel")).ids == ("C3", "C4")


@pytest.mark.parametrize("kind", ["csv", "parquet", "feather"])
def test_any_names_of_columns(tmp_path: Path, kind: str) -> None:
    names = ("Temp, °C", "a.b", "a", " x ", "HR", "hr", "prediction", "value", 'quoted "q"')
    table = pa.table({**WIDE, **{name: [float(n), 0.0] for n, name in enumerate(names)}})
    path = tmp_path / f"t.{kind}"
    writers = {"csv": pa_csv.write_csv, "parquet": pq.write_table, "feather": pyarrow.feather.write_feather}
    writers[kind](table, str(path))
    found = read_table(path)
    assert found.channels == ("flow", *names)
    assert found.events.values[0].tolist() == [5.0, *range(len(names))]
    assert read_table(path, TableFormat(features=(names[0],))).events.values.tolist() == [[0.0], [0.0]]
    with pytest.raises(DataError, match=r"'Temp, °C', a\.b, a, ' x ', HR"):
        read_table(path, channels=names[:8])


def test_roles_of_columns_exclude_each_other() -> None:
    for options, message in (
        ({"time": "id"}, r"'id' cannot be both id and time: name another one \(--time\)"),
        ({"channel": "c", "value": "time"}, r"'time' cannot be both time and value"),
        ({"features": ("id", "flow")}, "features name 'id', which is the column of ids"),
        ({"features": ("flow",), "ignored": ("flow",)}, "features name 'flow', which is to be ignored"),
        ({"features": "flow"}, "features should be a sequence of names"),
        ({"ignored": "flow"}, "ignored should be a sequence of names"),
    ):
        with pytest.raises(DataError, match=message):
            TableFormat(**options)  # type: ignore[arg-type]
