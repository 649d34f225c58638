"""Mutants: all three ways, none of which changes nothing; every axis in every seed, every deviation once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from refdiff.oracle import Recipe, deviations
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.mistakes.in_backward import BACKWARD_MISTAKES
from tests.oracle.selftest.mutants import Mutant, mutants, way_of
from tests.oracle.selftest.one_case import Trial
from tests.oracle.selftest.settings import settings


def _of(seed: int, number: int) -> tuple[Trial, list[Mutant]]:
    trial = Trial(settings(seed)[number], seed, Recipe("float32"), "natural")
    rng = np.random.default_rng(0)
    return trial, list(mutants(trial.setting, trial.budget.inputs, trial.right, trial.dout, rng))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_main_problem(seed: int) -> None:
    trial, found = _of(seed, 0)
    for mutant in found:
        assert mutant.wrong
        for name, y in mutant.wrong.items():
            assert way_of(name) == mutant.way
            assert y.shape == trial.right[name].shape
            assert not np.array_equal(y, trial.right[name], equal_nan=True), mutant.name
    names = {way: {m.name for m in found if m.way == way} for way in ("forward", "backward", "lse")}
    assert len(names["forward"]) >= 70
    assert len(names["backward"]) >= 70
    unpadded = {m.name for m in BACKWARD_MISTAKES} - {"gradient_without_the_mask", "activation_for_its_slope"}
    assert unpadded <= names["backward"] - names["forward"]
    assert {"maps swapped", "it is to base 2, the spec's is e", "scores_not_scaled"} & names["lse"]
    local = {m.name for m in found if m.axis == "local"}
    assert len(local) == 14
    assert "one_row_loses_its_own_key" in names["forward"] & names["backward"] & names["lse"]


@pytest.mark.parametrize("number", range(1, 7))
def test_the_other_problems_have_output_and_gradients(number: int) -> None:
    trial, found = _of(0, number)
    tried = {d.name for d in trial.setting.deviations}
    assert {m.way for m in found} == {"forward", "backward"}
    assert {m.name for m in found if m.way == "forward"} <= tried
    assert len({m.name for m in found if m.way == "forward"}) >= 0.6 * len(tried)


AXES = {
    *("pair", "gqa", "vlay", "rope kind", "rope dim", "rope base", "rope offset", "scale", "linit base", "linit const"),
    *("lam form", "post scale", "norm kind", "norm extent", "affine", "eps", "order", "clamp", "renorm", "mask align"),
    *("mask off by one", "window", "lse base", "k1/k2 crossed", "V2-vs-V1", "ratio"),
}
"""Those of the study's section on diagnosis."""


@pytest.mark.parametrize("seed", range(4))
def test_every_axis_in_every_seed(seed: int) -> None:
    found = [d for setting in settings(seed) for d in setting.deviations]
    assert {d.axis for d in found} >= AXES
    names = Counter(d.name for d in found)
    assert set(names.values()) == {1}
    assert len(names) >= 85
    assert {"packed", "paged", "softcap"} <= {d.axis for d in found}
    assert {"window_one_less", "window_one_more", "signals_and_noises_in_the_other_order"} <= set(names)


def test_the_main_problem_has_all_of_its_deviations() -> None:
    for seed, preset in ((0, "hf_diffllama"), (1, "ms_v1")):
        main, *others = settings(seed)
        assert main.main
        assert not any(setting.main for setting in others)
        assert main.deviations == deviations(small_spec(preset))
    assert [settings(seed)[0].structure.keys for seed in range(4)] == [44, 44, 50, 50]
