"""The benchmark's other sides, as they are installed: the same work, the same results; and its picture."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from refdiff.bench import measure as bench
from refdiff.bench import processes
from refdiff.bench.inputs import repetition
from refdiff.bench.peers import OnnxRuntimeSide, TransformersSide
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
    settings = Settings(str(tiny), against=against, pairs=1, steps=6, looked_up=20, least=0, rest=0, batch=2, context=8)
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


def test_transformers_rewinds(tiny: Path) -> None:
    side = _transformers(tiny, 4)
    first = side.decode(9, 2)["tokens"]
    assert side.decode(9, 2)["tokens"] == first
    assert side.decode(9, 2, steps=2)["tokens"] == [row[:3] for row in first]


def test_transformers_looks_up_in_as_many_passes_as_its_model_is_called(tiny: Path) -> None:
    side = _transformers(tiny, 33)
    calls: list[int] = []
    side._model.register_forward_pre_hook(lambda *_: calls.append(1))
    answer = side.lookup()
    assert answer["tokens"] == [repetition(LOOKUP_PROMPT, 34, side.vocab_size)[1].tolist()]
    assert answer["passes"] == len(calls) - 1 == 3, "11 tokens a pass, after the one that reads the prompt"


@pytest.mark.parametrize("kind", [TransformersSide, OnnxRuntimeSide])
def test_products(kind: type[TransformersSide | OnnxRuntimeSide], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refdiff.bench.side.CACHES", 1)
    weight = np.random.default_rng(0).standard_normal((16, 37), np.float32)
    for size in (3, 1, 20):
        side = kind(Settings(least=0))
        side.prepare()
        for _ in range(2):
            answer = side.product(size, (16, 37))
            x = np.random.default_rng(1).standard_normal((size, 37), np.float32)
            expected = (x.astype(np.float64) @ weight.T)[-1, ::2]
            np.testing.assert_allclose(answer["sample"], expected, rtol=1e-4, atol=1e-4)


def test_onnxruntime_multiplies_by_all_weights_in_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    made: list[object] = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **o: made.append(a[1]) or session(*a, **o))
    side = OnnxRuntimeSide(Settings(threads=2))
    side.prepare()
    weights = [np.random.default_rng(i).standard_normal((16, 37), np.float32) for i in range(3)]
    x = np.random.default_rng(7).standard_normal((5, 37), np.float32)
    multiply = side.hold(weights, x)
    for _ in range(2):
        np.testing.assert_allclose(multiply(), x @ weights[-1].T, rtol=1e-4, atol=1e-4)
    (options,) = made
    assert options.intra_op_num_threads == 2
