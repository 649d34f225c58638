"""A case by the right checker, and by checkers that are wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from refdiff.oracle import Budget, Recipe
from refdiff.oracle.thresholds import RowLimits
from refdiff.oracle.verdict.verdict import Verdict
from tests.oracle.selftest import one_case as module
from tests.oracle.selftest.one_case import one_case
from tests.oracle.selftest.settings import Setting, settings
from tests.oracle.selftest.table import Table


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the main problem every fourth deviation, and of the others none."""

    def some(seed: int) -> tuple[Setting, ...]:
        main = settings(seed)[0]
        return (replace(main, deviations=main.deviations[1::4]),)

    monkeypatch.setattr(module, "settings", some)


def _judge_by(monkeypatch: pytest.MonkeyPatch, limits: RowLimits) -> None:
    """Let all budgets judge rows by these limits."""
    judge = module.Budget.judge

    def judged(self: Budget, actual: Any) -> Verdict:
        tensors = {name: replace(rows, limits=limits) for name, rows in self.tensors.items()}
        return judge(replace(self, tensors=tensors), actual)

    monkeypatch.setattr(module.Budget, "judge", judged)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_one_case_has_all_kinds_of_mutants_and_correct_kernels() -> None:
    table, other = (one_case(seed, Recipe("bfloat16"), "tiny_values", "bfloat16") for seed in (41, 42))
    forward, backward, lse = (table.total(rule="rows", direction=way) for way in ("forward", "backward", "lse"))
    assert forward.mutants >= 28
    assert forward.identifiable >= 20
    assert backward.mutants >= 25
    assert lse.mutants >= 10
    assert forward.own == backward.own == lse.own == 5
    whole = table.total(rule="rows")
    assert whole.own_refused == 0, table.refusals
    both = whole, other.total(rule="rows")
    assert both[1].own_refused == 0, other.refusals
    assert sum(c.killed_identifiable for c in both) >= 0.97 * sum(c.identifiable for c in both), f"{table}\n{other}"
    assert table.total(rule="flash 2x", direction="forward").mutants == forward.mutants
    assert table.total(rule="assert_close").refused > 0, "a rule that refuses correct kernels is seen to"
    assert sum(c.mutants for c in table.by_name.values()) == whole.mutants
    identified = {key for key, count in table.by_name.items() if count.identifiable}
    assert len(identified) >= 30
    assert all(table.seeds[key] == {41} for key in identified)
    assert len([key for key in table.by_name if key[:2] == ("forward", "local")]) == 14


def _killed(table: Table) -> float:
    ours = table.total(rule="rows")
    return ours.killed_identifiable / ours.identifiable


@pytest.mark.usefixtures("few")
def test_a_tester_that_lets_pass_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    _judge_by(monkeypatch, RowLimits(row=1e9, bulk=1e9, element=1e9, slope=1e9, factor=1e9))
    table = one_case(43, Recipe("float16"), "natural", "float16")
    assert not table.holds
    assert _killed(table) < 0.9, "the masks and the sums are left"
    assert sum(table.survivors.values()) > 0


@pytest.mark.usefixtures("few")
def test_a_tester_that_refuses_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    _judge_by(monkeypatch, RowLimits(row=0.1, bulk=0.1))
    table = one_case(44, Recipe("float16"), "natural", "float16")
    assert not table.holds
    assert len(table.refusals) == table.total(rule="rows").refused == 10, "log-sum-exps have another rule"
