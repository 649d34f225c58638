"""The benchmark's other sides, as they are installed: the same work, the same results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from refdiff.bench import rows as m
from refdiff.bench import runner, sides
from refdiff.bench.inputs import repeated_pattern
from refdiff.bench.report import difference, failed
from refdiff.bench.report import report as make_report
from refdiff.bench.rows import BenchRow, parse_rows
from refdiff.bench.sides import BenchSettings, Measurement, TransformersSide
from refdiff.bench.sizes import write_like

ROWS = "prefill:19,prefill:7,decode:7x3,lookup,train:tiny"
MORE = "cold,load,prefill:19,prefill:7,decode:19,lookup,memory:19,train:tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_like("tiny", folder)
    return folder


@contextmanager
def in_this_process(name: str, row: BenchRow, settings: BenchSettings) -> Iterator[Callable[[], Measurement]]:
    """Measure without a process: all rows together import torch once, and hold weights that caches hold."""
    answers = sides.make_side(name, settings).measure(row)
    next(answers)
    yield partial(next, answers)


def test_every_benchmark_row_runs_against_transformers(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "child", in_this_process)
    _measure(ROWS, tiny)


@pytest.mark.parametrize("spelled", ["prefill:7", pytest.param(MORE, marks=pytest.mark.nightly)])
def test_each_side_in_a_process_of_its_own(spelled: str, tiny: Path) -> None:
    _measure(spelled, tiny)


def _measure(spelled: str, tiny: Path) -> dict[str, Any]:
    """Measure rows on all sides, which must have done the same; returns the report."""
    against = ("transformers",)
    sizes = {"pairs": 1, "steps": 6, "lookup_tokens": 20, "min_seconds": 0, "pause": 0, "batch": 2, "context": 8}
    # more threads would wait for the cores of other tests
    settings = BenchSettings(str(tiny), against=against, threads=1, **sizes)
    rows = parse_rows(spelled)
    found = list(runner.run(rows, settings))
    report = make_report(found, settings, model=None)
    expected = [
        row.spelled for row in rows for _ in range(2 if row.name == "train" else 1)
    ]  # the speed, then the memory
    assert [(row["row"], row["error"]) for row in report["rows"]] == [(row, None) for row in expected]
    for row in report["rows"]:
        assert set(row["against"]) == {"transformers"}
        assert {entry["difference"] for entry in row["against"].values()} == {None}, row["row"]
        assert all(entry["ratio"]["low"] > 0 for entry in row["against"].values())
    assert not any(map(failed, found))
    assert json.loads(json.dumps(report)) == report
    assert {"torch", "transformers"} <= set(report["machine"]["versions"])
    return report


def test_other_weights_are_noticed(tiny: Path, tiny_checkpoint: Path) -> None:
    """The sides are compared by what they say, so two models must not pass for one."""
    row = BenchRow("decode", 7, 2)
    _, theirs = islice(sides.make_side("transformers", BenchSettings(str(tiny), steps=5)).measure(row), 2)
    _, ours = islice(sides.make_side("refdiff", BenchSettings(str(tiny_checkpoint), steps=5)).measure(row), 2)
    assert difference(ours, theirs) is not None


def test_transformers_looks_up_in_as_many_passes_as_its_model_is_called(tiny: Path) -> None:
    side = TransformersSide(BenchSettings(str(tiny), lookup_tokens=33))
    side.prepare()
    answers = side.measure(BenchRow("lookup"))
    next(answers)
    calls: list[int] = []
    side._model.register_forward_pre_hook(lambda *_: calls.append(1))
    answer = next(answers)
    assert answer["tokens"] == [repeated_pattern(m.LOOKUP_PROMPT, 34, 512)[1].tolist()]
    assert answer["passes"] == len(calls) - 1 == 3, "11 tokens a pass, after the one that reads the prompt"
