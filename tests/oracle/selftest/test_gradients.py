"""Gradients by differences are those of the derivatives, where there are both."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle import Spec, deviations
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.deviations import deviated
from refdiff.oracle.deviations.deviation import Problem, ops_with
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.strategies import Structure, draw
from refdiff.oracle.truth.backward import backward
from tests.oracle.selftest.gradients import with_a_row_of

DIMS = {"hf_diffllama": Structure(1, 7, 11), "diff_v2": Structure(1, 5, 7)}


def _problem(preset: str, profile: str = "natural") -> tuple[Spec, Problem, np.ndarray]:
    spec = small_spec(preset)
    inputs = as_float64(spec, draw(spec, DIMS[preset], profile, 5))
    out = (1, spec.heads, DIMS[preset].queries, spec.out_dim)
    return spec, Problem(spec, inputs), np.random.default_rng(5).normal(size=out)


@pytest.mark.parametrize("preset", DIMS)
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("profile", ["natural", "tiny_values", "extreme"])
def test_one_row_is_the_gradient_of_the_other_problem(preset: str, name: str, profile: str) -> None:
    spec, problem, dout = _problem(preset, profile)
    other = Problem(spec.replace(scale=0.3), problem.inputs)
    right = backward(spec, problem.inputs, dout, ops_with(()))[name]
    exact = backward(other.spec, other.inputs, dout, ops_with(()))[name]
    found = with_a_row_of(other, dout, name, right, np.random.default_rng(0))
    rows = np.any(found != right, axis=-1)
    assert rows.sum() == 1
    np.testing.assert_allclose(found[rows], exact[rows], rtol=1e-5, atol=1e-10 * np.abs(exact).max())
    np.testing.assert_array_equal(found[~rows], right[~rows])


def test_none_where_nothing_is_wrong() -> None:
    spec, problem, dout = _problem("hf_diffllama")
    right = backward(spec, problem.inputs, dout, ops_with(()))
    rng = np.random.default_rng(1)
    for name in ("q", "k", "v"):
        before = problem.inputs[name].copy()
        assert with_a_row_of(problem, dout, name, right[name], rng) is None
        np.testing.assert_array_equal(problem.inputs[name], before)


def test_mistakes_without_a_backward_have_a_wrong_row() -> None:
    spec, problem, dout = _problem("hf_diffllama")
    right = backward(spec, problem.inputs, dout, ops_with(()))["v"]
    rng = np.random.default_rng(2)
    alone = [d for d in deviations(spec) if d.mistake is not None]
    assert len(alone) >= 30
    found = 0
    for deviation in alone:
        wrong = deviated(spec, problem.inputs, [deviation])
        found += wrong is not None and with_a_row_of(wrong, dout, "v", right, rng) is not None
    assert found >= 0.8 * len(alone)
