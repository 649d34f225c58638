"""Mutants: all three ways, none of which changes nothing; every axis in every seed; local ones wrong in their place."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from refdiff.oracle import deviations, truth
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes.catalogue import Kernel
from refdiff.oracle.mistakes.in_backward import BACKWARD_MISTAKES
from refdiff.oracle.mistakes.kernel import ops_with
from refdiff.oracle.truth.attention_operands import attention_mask
from refdiff.oracle.truth.backward import backward
from tests.oracle import example_inputs
from tests.oracle.selftest.local_mistakes import KEYS, PLACES, with_a_wrong_place, with_other_keys
from tests.oracle.selftest.mutants import way_of, with_a_row_of
from tests.oracle.selftest.one_case import Trial
from tests.oracle.selftest.settings import settings

RNG = np.random.default_rng


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "preset"), [(0, "hf_diffllama"), (1, "ms_v1")])
def test_the_main_problem(seed: int, preset: str) -> None:
    main, *others = settings(seed)
    assert main.main
    assert not any(setting.main for setting in others)
    assert main.deviations == deviations(small_spec(preset))
    trial = Trial(main, seed, "float32", "natural")
    found = [mutant for mutant, _ in trial.mutants()]
    for mutant in found:
        assert mutant.wrong
        for name, y in mutant.wrong.items():
            assert way_of(name) == mutant.way
            assert y.shape == trial.right[name].shape
            assert not np.array_equal(y, trial.right[name], equal_nan=True), mutant.name
    names = {way: {m.name for m in found if m.way == way} for way in ("forward", "backward", "lse")}
    assert len(names["forward"]) >= 60
    assert len(names["backward"]) >= 70
    of_v1 = {m.name for m in BACKWARD_MISTAKES if m.layer != "diff_lambda_v2_vjp"}
    unpadded = of_v1 - {"gradient_without_mask", "activation_for_derivative"}
    assert unpadded <= names["backward"] - names["forward"]
    assert {"maps swapped", "to the other base", "scores_not_scaled"} & names["lse"]
    assert len({m.name for m in found if m.axis == "local"}) == 14
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
    assert len(names) >= 75
    assert settings(seed)[0].structure.keys == (44, 44, 50, 50)[seed]


@pytest.mark.parametrize("preset", ["hf_diffllama", "diff_v2"])
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("profile", ["natural", "tiny_values", "extreme"])
def test_one_row_is_the_gradient_of_the_other_problem(preset: str, name: str, profile: str) -> None:
    spec = small_spec(preset)
    inputs = as_float64(spec, draw(spec, Structure(1, 7, 11), profile, 5))
    dout = RNG(5).normal(size=(1, spec.heads, 7, spec.out_dim))
    other = Kernel(spec.replace(scale=0.3), inputs)
    right = backward(spec, inputs, dout, ops_with(()))[name]
    exact = backward(other.spec, other.inputs, dout, ops_with(()))[name]
    found = with_a_row_of(other, dout, name, right, RNG(0))
    rows = np.any(found != right, axis=-1)
    assert rows.sum() == 1
    np.testing.assert_allclose(found[rows], exact[rows], rtol=1e-5, atol=1e-10 * np.abs(exact).max())
    np.testing.assert_array_equal(found[~rows], right[~rows])


SPEC = example_inputs.small("hf_diffllama")
X = example_inputs.draw(SPEC, T=40, S=44)
OUT = truth(SPEC, X, want=("out",)).out


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("seed", [0, 1])
def test_is_wrong_in_its_rows_alone(name: str, seed: int) -> None:
    before = OUT.copy()
    wrong = with_a_wrong_place(name, RNG(seed), OUT)
    np.testing.assert_array_equal(OUT, before)
    assert wrong.shape == OUT.shape
    rows = np.any((wrong != OUT) | np.isnan(wrong), axis=-1)
    assert rows.sum() == (2 if name == "two_rows_swapped" else 1)


@pytest.mark.parametrize(("change", "keys"), [*zip(KEYS, (1, 1, 64, SPEC.heads), strict=True)])
@pytest.mark.parametrize("seed", [0, 1])
def test_sees_other_keys_in_its_rows_alone(change: object, keys: int, seed: int) -> None:
    spec, inputs = with_other_keys(change, RNG(seed), SPEC, X)
    right, wrong = (np.broadcast_to(attention_mask(s, x), (2, 6, 40, 44)) for s, x in ((SPEC, X), (spec, inputs)))
    assert (right != wrong).sum() == 2 * keys, "in both sequences of the batch"
    rows = np.any(right != wrong, axis=-1)
    out = truth(spec, inputs, want=("out",)).out
    np.testing.assert_allclose(out[~rows], OUT[~rows], rtol=1e-12)
    assert np.all(np.any(out[rows] != OUT[rows], axis=-1))
