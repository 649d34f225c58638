"""All rows, in real processes, on a tiny model; refdiff alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refdiff.bench import run as bench
from refdiff.bench.children import ChildError
from refdiff.bench.measure import Measured, Measurer, Options
from refdiff.bench.rows import Row, parse_rows
from refdiff.bench.side import Settings
from refdiff.bench.work import Work


def _options(folder: Path | None, **options: Any) -> Options:
    settings = Settings(None if folder is None else str(folder), 1)
    return Options(settings.folder, (), 1, steps=2, least=0, rest=0, batch=2, context=8, settings=settings, **options)


def test_every_kind_of_row(tiny_checkpoint: Path) -> None:
    rows = parse_rows("prefill:5,decode:5x2,lookup,edit,memory:5,load,cold,train:tiny")
    turns: list[str] = []
    found = list(bench.run(rows, _options(tiny_checkpoint), lambda row, side: turns.append(f"{row.kind} {side}")))
    assert [m.row.kind for m in found] == [
        "memory", "load", "cold", "prefill", "decode", "lookup", "edit", "train", "train",
    ]  # fmt: skip
    assert [m.error for m in found] == [None] * 9
    assert "prefill refdiff" in turns
    assert "prefill ceilings" in turns
    ordered = bench.in_order(found, rows)
    assert [m.row for m in ordered] == [*rows, rows[-1]]
    report = bench.report(ordered, _options(tiny_checkpoint), model={"name": "tiny", "parameters": 1})
    assert json.loads(json.dumps(report)) == report
    assert set(report) == {"format", "machine", "model", "settings", "rows"}
    for row in report["rows"]:
        assert set(row) == {"row", "title", "unit", "sides", "against", "ceiling", "error", "commit"}
        assert all(value > 0 for value in row["sides"]["refdiff"]["rate"].values())
        if row["ceiling"]:
            assert all(0 < share < 2 for share in row["ceiling"]["share"]["refdiff"].values())
    assert str(tiny_checkpoint) not in json.dumps(report)


def test_a_row_that_fails_does_not_end_the_others(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []

    def measure(self: Measurer, row: Row, training: Path | None = None) -> list[Measured]:
        if row.kind == "load":
            raise ChildError("the process\nis gone")
        return [Measured(row, Work("s"), {"refdiff": [{"seconds": 1.0}]})]

    monkeypatch.setattr(Measurer, "measure", measure)
    monkeypatch.setattr(Measurer, "check", lambda self: None)
    monkeypatch.setattr(Measurer, "close", lambda self: closed.append(1))
    failed, other = bench.run(parse_rows("load,cold"), _options(tiny_checkpoint))
    assert failed.error == "the process is gone"
    assert failed.failed
    assert not other.failed
    assert len(closed) == 2, "processes in an unknown state are ended, and at the end all"


def test_checkpoints(tmp_path: Path) -> None:
    with bench.checkpoint(None, "there") as folder:
        assert folder == "there"
    with bench.checkpoint("tiny", str(tmp_path / "kept")) as folder:
        assert folder == str(tmp_path / "kept")
    assert (tmp_path / "kept" / "model.safetensors").exists()
    with bench.checkpoint("tiny", None) as folder:
        assert folder is not None
        assert (Path(folder) / "tokenizer.json").exists()
    assert not Path(folder).exists()


def test_models_are_named_without_folders(tiny_checkpoint: Path) -> None:
    assert bench.describe_model(None, None, None) is None
    named = bench.describe_model(None, str(tiny_checkpoint), None)
    assert named is not None
    assert named["name"] == tiny_checkpoint.name
    assert bench.describe_model(None, str(tiny_checkpoint), "kajuma/x") == {**named, "name": "x"}
    like = bench.describe_model("tiny", str(tiny_checkpoint), None)
    assert like == {**named, "name": "random weights in the dimensions of tiny"}
