"""`refdiff bench`: flags that do not fit together, a run, exit statuses, and Ctrl-C."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from refdiff.bench import runner
from refdiff.bench.report import evaluate
from refdiff.bench.rows import BenchRow
from refdiff.bench.sides import BenchSettings
from refdiff.bench.sizes import write_like

from .conftest import Cli

Calls = list[tuple[list[BenchRow], BenchSettings]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Nothing is measured: a row that is named "load" goes well, "lookup" gave other tokens, "cold" failed."""
    calls: Calls = []

    def run(rows: list[BenchRow], settings: BenchSettings, turn: Any) -> Generator[dict[str, Any], None, None]:
        calls.append((rows, settings))
        for row in rows:
            turn(row, "refdiff")
            if row.name == "cold":
                yield evaluate(row, {}, error=OSError("no room"))
            else:
                answers = {"refdiff": [{"seconds": 1.0, "amount": 1, "tokens": [1]}]}
                if settings.against:
                    answers["transformers"] = [
                        {"seconds": 2.0, "amount": 1, "tokens": [2 if row.name == "lookup" else 1]}
                    ]
                yield evaluate(row, answers)

    monkeypatch.setattr(runner, "run", run)
    return calls


@pytest.mark.parametrize(("rows", "status"), [("load", 0), ("lookup", 1), ("cold", 1), ("load,lookup", 1)])
@pytest.mark.usefixtures("calls")
def test_exit_status(rows: str, status: int, tiny_checkpoint: Path, cli: Cli) -> None:
    done = cli("bench", "-m", tiny_checkpoint, "--rows", rows, "--against", "transformers", "-q")
    assert (done.status, "FAILED" in done.out, done.err) == (status, status == 1, "")
    assert ("tokens (0,): 1 here and 2 there" in done.out) == ("lookup" in rows)


def test_a_broken_checkpoint_is_said_once(tmp_path: Path, cli: Cli) -> None:
    write_like("tiny", tmp_path)
    os.truncate(tmp_path / "model.safetensors", (tmp_path / "model.safetensors").stat().st_size // 2)
    status, out, err = cli("bench", "-m", tmp_path, "-q")
    assert (status, out) == (2, "")
    assert err.count("model.safetensors") == err.count("\n") == 1


def test_without_a_checkpoint_random_weights_are_measured_and_deleted(calls: Calls, cli: Cli) -> None:
    done = cli("bench", "--rows", "load")
    assert done.status == 0
    assert done.err.startswith("refdiff bench: random weights in the dimensions of tiny\n")
    assert not Path(str(calls[-1][1].folder)).exists()
    assert cli("bench", "--rows", "train:tiny", "-q").status == 0
    assert calls[-1][1].folder is None, "training makes its own"


@pytest.mark.usefixtures("calls")
def test_a_file_that_fails_in_the_end_hides_no_results(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "x.json")
    monkeypatch.setattr("refdiff.files.write_atomically", Mock(side_effect=full))
    done = cli("bench", "-m", tiny_checkpoint, "--rows", "load,decode:2", "-q", "--json", "x.json")
    assert done.status == 1
    assert done.out.splitlines()[1].split() == ["load", "1.00", "s"]
    assert done.err == "refdiff bench: error: x.json: No space left on device\n"


def test_rows_measured_before_ctrl_c_are_shown(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, cli: Cli
) -> None:
    def run(rows: list[BenchRow], *_: object) -> Generator[dict[str, Any], None, None]:
        yield evaluate(rows[0], {"refdiff": [{"seconds": 1.0}]})
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", run)
    done = cli("bench", "-m", tiny_checkpoint, "--rows", "load,cold", "--markdown", "-q")
    assert (done.status, done.err) == (130, "refdiff: interrupted\n")
    assert done.out.startswith("| | refdiff | share of the ceiling |\n|---|---|---|\n| load | 1.00 s | |")
