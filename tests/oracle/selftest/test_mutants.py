"""Mutants: all three ways, none of which changes nothing; every axis in every seed, every deviation once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from refdiff.oracle import Recipe, Spec, deviations
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes.catalogue import Kernel
from refdiff.oracle.mistakes.in_backward import BACKWARD_MISTAKES
from refdiff.oracle.mistakes.kernel import ops_with
from refdiff.oracle.truth.backward import backward
from tests.oracle.selftest.mutants import Mutant, mutants, way_of, with_a_row_of
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
    of_v1 = {m.name for m in BACKWARD_MISTAKES if m.layer != "diff_lambda_v2_vjp"}
    unpadded = of_v1 - {"gradient_without_mask", "activation_for_derivative"}
    assert unpadded <= names["backward"] - names["forward"]
    assert {"maps swapped", "it is to base 2, the spec's is e", "scores_not_scaled"} & names["lse"]
    local = {m.name for m in found if m.axis == "local"}
    assert len(local) == 14
    assert "one_row_loses_its_own_key" in names["forward"] & names["backward"] & names["lse"]


@pytest.mark.parametrize("seed", range(4))
def test_every_axis_in_every_seed(seed: int) -> None:
    found = [d for setting in settings(seed) for d in setting.deviations]
    assert {d.axis for d in found} >= {
        "pair", "gqa", "value layout", "rope kind", "rope dim", "rope base", "rope offset", "scale", "lambda_init",
        "lambda form", "output scale", "norm kind", "norm extent", "norm weight", "eps", "order", "clamp", "row sums",
        "mask align", "mask off by one", "window", "lse base", "maps", "v1 or v2", "ratio", "packed", "paged",
        "softcap",
    }  # fmt: skip
    names = Counter(d.name for d in found)
    assert set(names.values()) == {1}
    assert len(names) >= 85
    assert {"window_one_too_short", "window_one_too_long", "other_signal_noise_order"} <= set(names)


def test_the_main_problem_has_all_of_its_deviations() -> None:
    for seed, preset in ((0, "hf_diffllama"), (1, "ms_v1")):
        main, *others = settings(seed)
        assert main.main
        assert not any(setting.main for setting in others)
        assert main.deviations == deviations(small_spec(preset))
    assert [settings(seed)[0].structure.keys for seed in range(4)] == [44, 44, 50, 50]


DIMS = {"hf_diffllama": Structure(1, 7, 11), "diff_v2": Structure(1, 5, 7)}


def _problem(preset: str, profile: str = "natural") -> tuple[Spec, Kernel, np.ndarray]:
    spec = small_spec(preset)
    inputs = as_float64(spec, draw(spec, DIMS[preset], profile, 5))
    out = (1, spec.heads, DIMS[preset].queries, spec.out_dim)
    return spec, Kernel(spec, inputs), np.random.default_rng(5).normal(size=out)


@pytest.mark.parametrize("preset", DIMS)
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("profile", ["natural", "tiny_values", "extreme"])
def test_one_row_is_the_gradient_of_the_other_problem(preset: str, name: str, profile: str) -> None:
    spec, problem, dout = _problem(preset, profile)
    other = Kernel(spec.replace(scale=0.3), problem.inputs)
    right = backward(spec, problem.inputs, dout, ops_with(()))[name]
    exact = backward(other.spec, other.inputs, dout, ops_with(()))[name]
    found = with_a_row_of(other, dout, name, right, np.random.default_rng(0))
    rows = np.any(found != right, axis=-1)
    assert rows.sum() == 1
    np.testing.assert_allclose(found[rows], exact[rows], rtol=1e-5, atol=1e-10 * np.abs(exact).max())
    np.testing.assert_array_equal(found[~rows], right[~rows])
