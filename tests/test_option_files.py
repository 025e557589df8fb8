"""Options as they are written: names with commas, and YAML in which the field decides what an entry is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phased_lstm import cli
from phased_lstm.errors import RunError
from phased_lstm.option_files import read_yaml, to_yaml
from phased_lstm.options import check_entries, join_names, option, split_names
from phased_lstm.training.table_config import TrainConfig, resumed


@dataclass(frozen=True)
class Made:
    """A field of each kind."""

    name: str = option("", "a name")
    rate: float = option(0.5, "a number")
    ratio: float | None = option(None, "a number, or none")
    count: int = option(3, "a whole number")
    on: bool = option(False, "yes or no")
    columns: tuple[str, ...] = option((), "names")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("hr, bp", ("hr", "bp")),
        ('"Temp, °C",hr', ("Temp, °C", "hr")),
        (' "a" , b ,', ("a", "b")),
        ('" a"', (" a",)),
        ('"say ""x"", twice"', ('say "x", twice',)),
        ('5" pipe,hr', ('5" pipe', "hr")),
    ],
)
def test_names_are_separated_by_commas_unless_quoted(text: str, names: tuple[str, ...]) -> None:
    assert split_names(text) == names


@pytest.mark.parametrize("text", ['"hr', '"a"b', 'x,"y'])
def test_a_quote_alone_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="lacks its other one"):
        split_names(text)


@given(st.lists(st.text(min_size=1)))
def test_names_come_back_as_they_were(names: list[str]) -> None:
    assert split_names(join_names(names)) == tuple(names)


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("rate: 1e-3", {"rate": 1e-3}),
        ("rate: 2", {"rate": 2.0}),
        ("ratio: null", {"ratio": None}),
        ("ratio:", {"ratio": None}),
        ("ratio: 1e-2", {"ratio": 0.01}),
        ("count: 12", {"count": 12}),
        ("on: yes", {"on": True}),
        ("on: False", {"on": False}),
        ("name: 007", {"name": "007"}),
        ("name: no", {"name": "no"}),
        ("name: 2024-01-01", {"name": "2024-01-01"}),
        ("name: 12:30", {"name": "12:30"}),
        ("columns: [1, yes, 1.50, 'a, b']", {"columns": ("1", "yes", "1.50", "a, b")}),
        ('columns: hr,"a, b"', {"columns": ("hr",)}),
        ("columns:", {"columns": ()}),
        ("columns:\n- 'a, b'\n- hr", {"columns": ("a, b", "hr")}),
    ],
)
def test_the_field_decides_what_an_entry_is(tmp_path: Path, text: str, entries: dict[str, Any]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    if entries == {"columns": ("hr",)}:
        entries = {"columns": ("hr", "a, b")}
    found = read_yaml(path, Made)
    assert found == entries
    assert [type(value) for value in found.values()] == [type(value) for value in entries.values()]
    check_entries(Made, found, "the file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate: fast", "rate = 'fast', which is of the wrong type: expected a number"),
        ("count: 1.5", "expected a whole number"),
        ("on: 1", "expected true or false"),
        ("rate: [1]", "expected a number"),
        ("name: [a]", "expected text"),
        ("rate: 1\ncount: 2\nrate: 3", "line 3: rate is there a second time"),
        ("rate: {a: 1}", "one value or a list"),
        ("columns: [[a]]", "one value or a list"),
        ("columns: '\"a'", "lacks its other one"),
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- a", "got a list"),
        ("a", "got a single text"),
        ("? [a]\n: 1", "line 1: there should be the name of an entry"),
        ("a: *b", "cannot be read"),
        ("a: 1\n--- \nb: 1", "cannot be read"),
    ],
)
def test_what_is_no_entry_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(RunError) as error:
        check_entries(Made, read_yaml(path, Made), str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_options_come_back_from_yaml_and_json(tmp_path: Path) -> None:
    config = TrainConfig(
        target="no", features=("Temp, °C", "null", "1.50", "#", "a\nb"), static=(), lr=1e-6, ratio_on=None, id="007"
    )  # fmt: skip
    (tmp_path / "c.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert TrainConfig.from_json(read_yaml(tmp_path / "c.yaml", TrainConfig)) == config
    assert TrainConfig.from_json(config.to_json()) == config
    assert resumed(config, {"features": config.features}) == config
    with pytest.raises(RunError, match=r'--features hr \(the run has "Temp, °C",null'):
        resumed(config, {"features": ("hr",)})


def test_runs_of_earlier_versions_hold_names_as_one_text() -> None:
    assert TrainConfig.from_json({"static": "age,sex"}).static == ("age", "sex")


@pytest.mark.parametrize("given", [["--config"], ["--features", '"Temp, °C"']])
def test_a_column_whose_name_has_a_comma(tmp_path: Path, given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{n},{t},{n % 2 + t},7\n" for n in range(10) for t in range(3)]
    (tmp_path / "m.csv").write_text('id,time,"Temp, °C",flag\n' + "".join(rows), encoding="utf-8")
    (tmp_path / "y.csv").write_text("id,y\n" + "".join(f"{n},{n % 2}\n" for n in range(10)))
    if given == ["--config"]:
        (tmp_path / "c.yaml").write_text('features:\n- "Temp, °C"\n', encoding="utf-8")
        given = ["--config", str(tmp_path / "c.yaml")]
    run = str(tmp_path / "run")
    command = ["train", "--data", str(tmp_path / "m.csv"), "--labels", str(tmp_path / "y.csv"), "--target=y", *given]
    assert cli.main([*command, "--epochs=1", "--hidden-size=2", "--quiet", "--out", run]) == 0
    assert "1 channels: Temp, °C\n" in capsys.readouterr().out
    assert cli.main(["train", "--resume", "--quiet", "--out", run]) == 0
