"""The benchmark's other sides, as they are installed: the same work, the same results; and its picture."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Self

import pytest

from refdiff.bench import measure as bench
from refdiff.bench import processes
from refdiff.bench.inputs import repetition
from refdiff.bench.peers import TransformersSide
from refdiff.bench.plot import draw
from refdiff.bench.rows import parse_rows
from refdiff.bench.side import LOOKUP_PROMPT, Settings
from refdiff.bench.sizes import write_like

ROWS = "prefill:19,prefill:7,decode:7x3,lookup,product:20,train:tiny"
MORE = "cold,load,prefill:19,prefill:7,decode:19,edit,memory:19,product:1,train:tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_like("tiny", folder)
    return folder


class InThisProcess:
    """A side without a process of its own: all rows together import torch once, and hold weights that caches hold."""

    def __init__(self, name: str, settings: Settings) -> None:
        module, _, kind = processes.SIDES[name].partition(".")
        self._side = getattr(importlib.import_module(f"refdiff.bench.{module}"), kind)(settings)
        self.request("prepare")

    def request(self, do: str, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(processes.answer(self._side, json.dumps({"do": do, **arguments})))
        assert "error" not in answer, answer
        return answer

    def close(self) -> None:
        del self._side

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "Child", InThisProcess)
    monkeypatch.setattr("refdiff.bench.side.CACHES", 2**23)


@pytest.mark.usefixtures("in_this_process")
def test_all_rows_beside_all_others(tiny: Path, tmp_path: Path) -> None:
    report = _measure(ROWS, tiny)
    for name in ("picture.png", "picture.svg"):
        draw(report).savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize("spelled", ["prefill:7", pytest.param(MORE, marks=pytest.mark.nightly)])
def test_each_side_in_a_process_of_its_own(spelled: str, tiny: Path) -> None:
    _measure(spelled, tiny)


def _measure(spelled: str, tiny: Path) -> dict[str, Any]:
    """Measure rows on all sides, which must have done the same; returns the report."""
    against = ("transformers", "onnxruntime", "numpy")
    sizes = {"pairs": 1, "steps": 6, "looked_up": 20, "least": 0, "rest": 0, "batch": 2, "context": 8}
    settings = Settings(str(tiny), against=against, threads=1, **sizes)  # more would wait for the cores of other tests
    rows = parse_rows(spelled)
    found = list(bench.run(rows, settings))
    report = bench.report(found, settings, model=None)
    expected = [
        row.spelled for row in rows for _ in range(2 if row.kind == "train" else 1)
    ]  # the speed, then the memory
    assert [(row["row"], row["error"]) for row in report["rows"]] == [(row, None) for row in expected]
    for row in report["rows"]:
        others = {"transformers"} | ({"onnxruntime", "numpy"} if row["row"].startswith("product") else set())
        assert set(row["against"]) == others
        assert {entry["difference"] for entry in row["against"].values()} == {None}, row["row"]
        assert all(entry["ratio"]["low"] > 0 for entry in row["against"].values())
    assert not any(measured.failed for measured in found)
    assert json.loads(json.dumps(report)) == report
    assert {"torch", "transformers", "onnxruntime"} <= set(report["machine"]["versions"])
    return report


def test_other_weights_are_noticed(tiny: Path, tiny_checkpoint: Path) -> None:
    """The sides are compared by what they say, so two models must not pass for one."""
    from refdiff.bench.measure import difference
    from refdiff.bench.refdiff_side import RefdiffSide

    theirs = _transformers(tiny, 5)
    ours = RefdiffSide(Settings(str(tiny_checkpoint), steps=5))
    ours.load()
    assert difference(ours.decode(7, 2), theirs.decode(7, 2)) is not None


def _transformers(folder: Path, steps: int) -> TransformersSide:
    side = TransformersSide(Settings(str(folder), steps=steps, looked_up=steps))
    side.prepare()
    side.load()
    return side


def test_transformers_looks_up_in_as_many_passes_as_its_model_is_called(tiny: Path) -> None:
    side = _transformers(tiny, 33)
    calls: list[int] = []
    side._model.register_forward_pre_hook(lambda *_: calls.append(1))
    answer = side.lookup()
    assert answer["tokens"] == [repetition(LOOKUP_PROMPT, 34, side.vocab_size)[1].tolist()]
    assert answer["passes"] == len(calls) - 1 == 3, "11 tokens a pass, after the one that reads the prompt"
