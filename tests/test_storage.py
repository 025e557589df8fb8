"""Sequences kept in a file, and runs that train from there."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from test_table_training import OPTIONS, write_tables

from phased_lstm import cli
from phased_lstm.data import EventBatch, StoredEvents, storage
from phased_lstm.data.storage import ChosenSequences
from phased_lstm.training.checkpoints import load_tensors


def ragged(lengths: list[int], features: int = 3, times: torch.dtype = torch.int64) -> EventBatch:
    total = sum(lengths)
    generator = torch.Generator().manual_seed(total)
    values = torch.randn(total, features, generator=generator)
    return EventBatch.from_lengths(values, torch.arange(total, dtype=times) * 7 + (1 << 40), lengths)


def same(found: EventBatch, expected: EventBatch) -> None:
    assert found.offsets.equal(expected.offsets)
    assert found.values.equal(expected.values)
    assert found.times.dtype == expected.times.dtype
    assert found.times.equal(expected.times)


def test_what_is_read_is_what_was_given() -> None:
    parts = [ragged([3, 0, 5]), ragged([1]), ragged([]), ragged([2, 4])]
    whole, stored = EventBatch.cat(parts), StoredEvents(parts)
    assert len(stored) == 6
    assert stored.num_events == 15
    assert stored.lengths.equal(whole.lengths)
    for rows in ([0], [5, 1, 3, 1], [], list(range(6))):
        same(stored[rows], whole[rows])


@pytest.mark.parametrize("rows", [[6], [-7]])
def test_no_such_sequence(rows: list[int]) -> None:
    with pytest.raises(IndexError, match="of 6"):
        StoredEvents([ragged([1, 1, 1, 1, 1, 1])])[rows]


def test_parts_must_go_together() -> None:
    with pytest.raises(ValueError, match="batch 1 has 2 features"):
        StoredEvents([ragged([3]), ragged([3], features=2)])
    with pytest.raises(ValueError, match="at least one batch"):
        StoredEvents([])


def test_chosen_sequences_keep_their_labels() -> None:
    stored = StoredEvents([ragged([3, 1, 5, 2])])
    labels, static = torch.tensor([10, 11, 12, 13]), torch.arange(8.0).reshape(4, 2)
    chosen = ChosenSequences(stored, torch.arange(4), labels, static).subset(torch.tensor([3, 1, 2]))
    assert chosen.lengths.tolist() == [2, 1, 5]
    assert chosen.num_events == 8
    part = chosen[[2, 0]]
    assert part.labels is not None
    assert part.static is not None
    assert part.labels.tolist() == [12, 13]
    assert part.static.tolist() == [[4.0, 5.0], [6.0, 7.0]]
    same(part.events, stored[[2, 3]])
    same(EventBatch.cat(chosen.chunks()), stored[[3, 1, 2]])


def test_a_run_on_disk_is_bitwise_that_in_memory(tmp_path: Path) -> None:
    tables = write_tables(tmp_path / "tables")
    command = ["train", *tables, *OPTIONS, "--target=level", "--static=age", "--test-fraction=0.2"]
    for name, extra in (("memory", []), ("disk", ["--on-disk"])):
        assert cli.main([*command, *extra, "--out", str(tmp_path / name)]) == 0
    memory, disk = (load_tensors(tmp_path / name / "model" / "model.safetensors")[0] for name in ("memory", "disk"))
    assert memory.keys() == disk.keys()
    for name, tensor in memory.items():
        assert tensor.equal(disk[name]), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "memory", "tables"]


def test_a_full_disk_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.tempfile, "TemporaryFile", lambda **_: Full())
    tables = write_tables(tmp_path / "tables")
    out = tmp_path / "run"
    assert cli.main(["train", *tables, *OPTIONS, "--target=state", "--on-disk", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "No space left" in said
    assert str(tmp_path) in said
    assert not out.exists()


def test_it_is_indexed_as_a_batch_is() -> None:
    parts = [ragged([3, 0, 5]), ragged([1])]
    whole, stored = EventBatch.cat(parts), StoredEvents(parts)
    mask = torch.tensor([True, False, False, True])
    same(stored[mask], whole[mask])
    same(stored[1:], whole[1:])
    same(stored[[-1, 0]], whole[[-1, 0]])
    for wrong in ([0.7], torch.tensor([[0]]), torch.tensor(0)):
        with pytest.raises(IndexError, match="should be"):
            stored[wrong]


def test_other_parts_and_dtypes() -> None:
    half = ragged([2, 3]).to(torch.bfloat16)
    same(StoredEvents(half)[[1, 0]], half[[1, 0]])
    same(StoredEvents([ragged([2, 1], features=0)])[[1]], ragged([2, 1], features=0)[[1]])
    with pytest.raises(TypeError, match="EventBatches, got: int"):
        StoredEvents([3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor([[2j]]).conj().imag,
        lambda: torch.arange(6.0)[::3].unsqueeze(1)[1:],
    ],
)
def test_numbers_of_any_layout_are_kept(make: Any) -> None:
    values = make()
    times = torch.arange(4)[::2][: len(values)]
    kept = StoredEvents(EventBatch.from_lengths(values, times, [len(values)]))[[0]]
    assert torch.equal(kept.values, values)
    assert torch.equal(kept.times, times)
