"""A sample of the selftest; the whole stands behind `refdiff check --selftest`."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle.recipe import Recipe
from refdiff.oracle.selftest import PROFILES, RECIPES, selftest
from refdiff.oracle.selftest import run as module
from refdiff.oracle.selftest.run import one_case
from refdiff.oracle.statistics import LIMITS


def test_one_case_has_all_kinds_of_mutants_and_legal_kernels() -> None:
    seen: list[str] = []
    table = selftest([41], recipes=["bfloat16"], profiles=["whisper"], done=seen.append)
    assert seen == ["bfloat16 whisper 41"]
    assert table.holds, str(table)
    forward, backward = (table.total(rule="rows", direction=way) for way in ("forward", "backward"))
    assert forward.mutants >= 60
    assert forward.visible >= 50
    assert backward.mutants >= 20
    assert forward.legal == backward.legal == 5
    assert table.total(rule="flash 2x").mutants == forward.mutants
    assert table.total(rule="assert_close").refused > 0, "a rule that refuses legal kernels is seen to"


def test_a_tester_that_lets_pass_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = module.Budget.judge
    loose = type(LIMITS)(row=1e9, bulk=1e9, element=1e9, slope=1e9)
    monkeypatch.setattr(module.Budget, "judge", lambda self, x: judge(self, x, loose))
    table = one_case(43, Recipe("float16"), "natural", "float16")
    assert not table.holds
    ours = table.total(rule="rows")
    assert ours.killed_visible < 0.9 * ours.visible, "the hard bound and the masks are left"
    assert sum(table.survivors.values()) == ours.visible - ours.killed_visible


def test_a_tester_that_refuses_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = module.Budget.judge
    strict = type(LIMITS)(row=0.3, bulk=0.3)
    monkeypatch.setattr(module.Budget, "judge", lambda self, x: judge(self, x, strict))
    table = one_case(44, Recipe("float16"), "natural", "float16")
    assert not table.holds
    assert len(table.refusals) == table.total(rule="rows").refused == 10


@pytest.mark.slow
def test_all_recipes_and_profiles() -> None:
    seed = int(np.random.default_rng(2026).integers(100, 1000))
    table = selftest([seed], recipes=RECIPES, profiles=PROFILES)
    assert table.total(rule="rows").refused == 0, str(table)
    ours = table.total(rule="rows")
    assert ours.killed_visible >= 0.99 * ours.visible, str(table)
    assert ours.legal == 160
