"""Turns: which process measures when; and rows in real processes on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from refdiff.bench import report, runner
from refdiff.bench.processes import ChildError
from refdiff.bench.rows import BenchRow, parse_rows
from refdiff.bench.sides import BenchSettings

Log = list[tuple[str, str]]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What happens in processes, none of which is real; those of `prefill` fail."""
    log: Log = []

    @contextmanager
    def child(name: str, row: BenchRow, settings: BenchSettings) -> Iterator[Callable[[], dict[str, Any]]]:
        def measure() -> dict[str, Any]:
            log.append((name, "measures"))
            if name == "ceilings":
                return {"kind": "gemv", "rate": 1e9}
            return {"seconds": 2.0, "bytes": 10 * len(log), "amount": 6, "work": 1, "loss": 3.0}

        log.append((name, "starts"))
        try:
            if row.name == "prefill":
                raise ChildError("the process\nis gone")
            yield measure
        finally:
            log.append((name, "ends"))

    monkeypatch.setattr(runner, "child", child)
    return log


SETTINGS = BenchSettings("somewhere", against=("transformers", "stored"), pairs=2, pause=0)


def _measure(spelled: str) -> list[dict[str, Any]]:
    (row,) = parse_rows(spelled)
    return runner.measure(row, SETTINGS)


def test_sides_take_turns_with_the_ceilings(log: Log) -> None:
    (found,) = _measure("decode:9x2")
    a, b, s, c = "refdiff", "transformers", "stored", "ceilings"
    assert [name for name, what in log if what == "starts"] == [a, b, s, c]
    assert [name for name, what in log if what == "measures"] == [c, a, b, s, c, s, b, a, c]
    assert [what for _, what in log[-4:]] == ["ends"] * 4
    assert found["sides"][a]["rate"]["median"] == 6 / 2.0
    assert found["ceiling"]["rates"] == [1e9] * 2


@pytest.mark.parametrize(("row", "count"), [("load", 3), ("memory:9x2", 2)], ids=["warmed up", "memory"])
def test_some_rows_have_a_new_process_each_time(row: str, count: int, log: Log) -> None:
    found = _measure(row)[0]
    ours = [what for name, what in log if name == "refdiff"]
    assert ours == ["starts", "measures", "ends"] * count
    assert found["sides"]["refdiff"]["rate"]["median"] > 0
    assert set(found["against"]) == {"transformers", "stored"}


@pytest.mark.usefixtures("log")
def test_training_gives_the_memory_until_its_last_step_too() -> None:
    speed, memory = _measure("train:tiny")
    assert (speed["unit"], memory["unit"], memory["title"]) == ("tok/s", "B", "training memory, tiny")
    assert len(speed["sides"]["refdiff"]["seconds"]) == 2
    assert len(memory["sides"]["refdiff"]["bytes"]) == 1


def test_a_row_that_fails_does_not_end_the_others(log: Log) -> None:
    """Its processes end; before all rows each side is started once, so that what is not installed is said first."""
    turns: list[str] = []
    wrong, other = runner.run(
        parse_rows("prefill:4,load"), SETTINGS, lambda row, side: turns.append(f"{row.name}: {side}")
    )
    assert log[:6] == [(name, what) for name in ("refdiff", "transformers", "stored") for what in ("starts", "ends")]
    assert wrong["error"] == "the process is gone"
    assert turns[:3] == ["prefill: starting", "load: starting", "load: refdiff"]
    assert not report.failed(other)
    assert sum(what == "starts" for _, what in log) == sum(what == "ends" for _, what in log)


@pytest.mark.slow
def test_every_kind_of_row(tiny_checkpoint: Path) -> None:
    rows = parse_rows("prefill:5,decode:5x2,lookup,memory:5,load,cold,train:tiny")
    settings = BenchSettings(
        str(tiny_checkpoint), pairs=1, steps=2, lookup_tokens=20, min_seconds=0, pause=0, batch=2, context=8
    )
    turns: list[str] = []
    found = list(runner.run(rows, settings, lambda row, side: turns.append(f"{row.name} {side}")))
    assert [entry["error"] for entry in found] == [None] * 8
    assert [entry["row"] for entry in found] == [
        row.spelled for row in rows for _ in range(2 if row.kind.memory else 1)
    ]
    assert {"prefill refdiff", "prefill ceilings"} <= set(turns)
    whole = report.report(found, settings, model={"name": "tiny", "parameters": 1})
    assert json.loads(json.dumps(whole)) == whole
    for row in whole["rows"]:
        assert set(row) == {"row", "title", "unit", "sides", "against", "ceiling", "error", "commit"}
        assert all(value > 0 for value in row["sides"]["refdiff"]["rate"].values())
        if row["ceiling"]:
            assert all(0 < share < 2 for share in row["ceiling"]["share"]["refdiff"].values())
    assert str(tiny_checkpoint) not in json.dumps(whole)
