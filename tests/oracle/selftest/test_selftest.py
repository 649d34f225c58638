"""Cases by the right checker and by wrong ones, kernels of others, and the page: numbers in their cells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Budget, Recipe
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from refdiff.oracle.thresholds import RowLimits
from refdiff.oracle.verdict.verdict import Verdict
from tests.oracle.selftest import __main__ as command
from tests.oracle.selftest.one_case import OURS, Run, runs_of_mutants, runs_of_real_kernels
from tests.oracle.selftest.page import is_identifiable, page
from tests.oracle.selftest.settings import Setting, settings


def few(seed: int, plain: bool = False) -> tuple[Setting, ...]:
    """Of the main problem every fourth deviation, and of the others none."""
    main = settings(seed, plain=plain)[0]
    return (replace(main, deviations=main.deviations[1::4]),)


def judge_by(monkeypatch: pytest.MonkeyPatch, limits: RowLimits) -> None:
    """Let all budgets judge rows by these limits."""
    judge = Budget.judge

    def judged(self: Budget, actual: Any) -> Verdict:
        tensors = {name: replace(rows, limits=limits) for name, rows in self.tensors.items()}
        return judge(replace(self, tensors=tensors), actual)

    monkeypatch.setattr(Budget, "judge", judged)


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
def test_a_case_has_all_kinds_of_mutants_and_correct_kernels(plain: bool) -> None:
    runs = list(runs_of_mutants(41, "bfloat16", "tiny_values", few(41, plain)))
    assert command.holds(runs, 0.97)
    assert all(run.seed == 41 and run.kind in ("mutant", "own") for run in runs)
    for way, least in (("forward", 18), ("backward", 20), ("lse", 10)):
        assert sum(run.kind == "own" for run in runs if run.way == way) == 5
        assert len({run.name for run in runs if run.way == way and is_identifiable(run)}) >= least
    assert len({run.name for run in runs if run.axis == "local" and run.way == "forward"}) == 14
    correct = [run for run in runs if run.kind == "own"]
    assert any("assert_close" in run.refused_by for run in correct), "a rule that refuses correct kernels is seen to"


def test_a_tester_that_lets_pass_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_by(monkeypatch, RowLimits(row=1e9, bulk=1e9, slope=1e9))
    runs = list(runs_of_mutants(43, "float16", "natural", few(43)))
    assert not command.holds(runs, 0.9), "the masks and the sums are left"
    assert "## Identifiable mutants that passed" in page(runs, [43])


def test_a_tester_that_refuses_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_by(monkeypatch, RowLimits(row=0.1, bulk=0.1))
    main = replace(settings(44)[0], deviations=())
    runs = list(runs_of_mutants(44, "float16", "natural", (main,)))
    refused = [run for run in runs if run.verdict]
    assert len(refused) == 10, "log-sum-exps have another rule"
    assert all(run.verdict.startswith("fail") and run.kind == "own" for run in refused)
    assert not command.holds(runs, 0.5)


def correct(spec: Any, inputs: Any, dout: Any, dtype: str) -> Any:
    return evaluate(spec, inputs, Recipe(dtype), HELD_OUT[0], dout)


def wrong(spec: Any, inputs: Any, dout: Any, dtype: str) -> Any:
    found = correct(spec, inputs, dout, dtype)
    return {"out": found["out"], "dq": np.roll(found["dq"], 1, axis=2)}


def test_wrong_kernels_of_others_are_refused() -> None:
    kernels = {"correct": ("hf_diffllama", False, correct), "wrong": ("ms_v1", False, wrong)}
    runs = list(runs_of_real_kernels(7, "float16", "natural", kernels))
    assert [(run.name, run.way, bool(run.verdict)) for run in runs] == [
        ("correct", "forward", False), ("correct", "backward", False), ("wrong", "forward", False),
        ("wrong", "backward", True),
    ]  # fmt: skip
    assert runs[0].off == (1.0,), "it is one of those that noise is made of"
    assert max(runs[-1].off) > 100


def _mutants(n: int, status: str, off: float = 30.0, **fields: Any) -> list[Run]:
    refused_by = frozenset({OURS, "flex mean"} if status == "fail" else ())
    given = {"axis": "scale", "name": "scores_not_scaled", **fields}
    return n * [Run(7, "float32", "natural", "forward", "mutant", status=status, refused_by=refused_by,
                    off=(off, off / 4), **given)]  # fmt: skip


def _correct(n: int, kind: str, name: str, status: str = "pass", *refused_by: str, off: float = 1.5) -> list[Run]:
    return n * [Run(7, "float32", "natural", "forward", kind, name, status, frozenset(refused_by), off=(off,))]


def test_every_number_in_its_cell() -> None:
    runs = [*_mutants(239, "fail"), *_mutants(1, "pass", 7.0, axis="local", name="one_nan"), *_mutants(9, "fail", 4.0)]
    runs += [*_mutants(51, "pass", 4.0), *_correct(43, "own", "blas"), *_correct(7, "own", "blas", "inconclusive")]
    runs += [*_correct(16, "real", "torch"), *_correct(4, "real", "torch", "pass", "flex mean", off=3.0)]
    assert command.holds(runs, 0.995)
    assert not command.holds(runs, 0.996)
    assert not command.holds([*runs, *_correct(1, "real", "torch", "fail", OURS)], 0.9)
    assert not command.holds(_correct(5, "own", "blas"), 0.9), "nothing was identifiable"
    assert [command.least_killed(n, plain=False) for n in (1, 19, 20)] == [0.98, 0.98, 0.992]
    text = page(runs, range(7, 10), "--seeds 3")
    assert "\n    python -m tests.oracle.selftest --seeds 3\n" in text
    assert "and 1 mistakes in one place; seeds 7 to 9, on which nothing was tuned; types float32;" in text
    assert "identifiable mutants are killed. Of the 1 that are not, 0 were inconclusive." in text
    assert "errors of correct kernels, 100.0 % of 239 are killed." in text
    for line in (
        "| rows | 239 of 240 (99.6 %) | 82.7 % of 300 | 0 of 50 | 0 of 20 | 7 |",
        "| flex mean | 239 of 240 (99.6 %) | 82.7 % of 300 | 0 of 50 | 4 of 20 (20.0 %) | - |",
        "| float32 | natural | 240 | 99.6 | 0.0 | 0.0 | 0.0 | 0.0 | 99.6 | 0.0 | 0.0 | 0.0 | 0.0 | 0.0 |",
        "| float32 | natural | 50 | 20 | 7 | 0 | 0 | 0 | 0 | 0 | 4 | 0 | 0 | 0 | 0 | 0 |",
        "| torch | float32 | 1.5, at most 3 | - | - |",
        "| scale | scores_not_scaled | 239/239, 1 | - | - |",
        "| local | one_nan | 0/1, 1 | - | - |",
        "| 1 | one_nan | float32 | forward |",
    ):
        assert line in text.split("\n"), line


@pytest.mark.nightly
@pytest.mark.parametrize("plain", [False, True])
def test_a_sample(plain: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """All recipes and profiles on a seed that the table in the documentation has not."""
    assert command.main(["--first-seed", "2026", *(["--plain"] if plain else [])]) == 0, capsys.readouterr().out
