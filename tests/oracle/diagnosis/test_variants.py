"""Residuals: small for the right deviation, large for others, and budgets of deviating kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from refdiff.oracle.budget.budget import budget
from refdiff.oracle.cases.fixed import cases
from refdiff.oracle.deviations import Problem, deviated, output
from refdiff.oracle.diagnosis import diagnose
from refdiff.oracle.diagnosis.variants import (
    FIRST,
    HOPELESS,
    Target,
    explained,
    is_wrong,
    judged,
    judgement,
    quick_residual,
    row_budget,
    rows_off,
)
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth import truth
from tests.oracle.diagnosis.outputs import kernel, named, pair_of_cases

CASE = pair_of_cases("hf_diffllama", "bfloat16")[0]
WRONG = named("hf_diffllama", "layer_norm")


def target() -> Target:
    out = kernel(CASE, [WRONG])
    assert out is not None
    return Target.of(out, budget(CASE.spec, CASE.inputs, "bfloat16", members=2))


def test_residuals() -> None:
    t = target()
    problem = deviated(CASE.spec, t.inputs, [WRONG])
    other = deviated(CASE.spec, t.inputs, [named("hf_diffllama", "keys_crossed")])
    assert problem is not None
    assert other is not None
    assert quick_residual(t, output(problem)) < 3
    assert quick_residual(t, output(other)) > THRESHOLDS.near
    assert judged(problem, t)[0]
    assert judged(problem, t)[1] < 2
    assert not judged(other, t)[0]
    assert not judged(Problem(CASE.spec, t.inputs), t)[0]


def test_what_cannot_be_compared_is_as_far_as_can_be() -> None:
    t = target()
    assert quick_residual(t, None) == np.inf
    assert quick_residual(t, t.actual[:, :, 1:]) == np.inf
    assert quick_residual(t, np.where(t.actual > 1, np.nan, t.actual)) == np.inf
    assert explained(t, None) == 0


def test_the_share_that_is_explained() -> None:
    t = target()
    assert explained(t, t.actual) == 1
    assert explained(t, t.expected) == 0
    assert explained(t, (t.actual + t.expected) / 2) == 0.75
    assert explained(t, t.expected - (t.actual - t.expected)) == 0


def test_a_budget_of_a_deviating_kernel_is_about_its_own_output() -> None:
    t = target()
    problem = deviated(CASE.spec, t.inputs, [WRONG])
    assert problem is not None
    wrong = output(problem)
    assert wrong is not None
    found = judgement(problem, t)
    assert found is not None
    assert found.fits
    allowed = row_budget(wrong, found.runs, t)
    assert np.array_equal(allowed.rows, found.rows)
    assert np.array_equal(allowed.expected, wrong)
    size = np.sqrt(np.mean(wrong**2, axis=-1))
    assert (allowed.rows >= 0.29 * 2**-8 * size * (1 - 1e-12)).all()
    assert np.median(allowed.rows / np.maximum(size, 1e-300)) < 0.05


def test_what_is_hopeless_is_not_tried_in_every_order() -> None:
    t = target()
    for name, orders in (("layer_norm", 7), ("keys_crossed", len(FIRST))):
        problem = deviated(CASE.spec, t.inputs, [named("hf_diffllama", name)])
        assert problem is not None
        every, some = judgement(problem, t), judgement(problem, t, stop=True)
        assert every is not None
        assert some is not None
        assert len(every.runs) == 7
        assert len(some.runs) == orders
        assert some.fits == every.fits
    assert some.furthest > HOPELESS


def test_a_part_that_is_right_tells_what_changes_it() -> None:
    t = target()
    right = replace(t, actual=t.expected, right=True)
    problem = deviated(CASE.spec, t.inputs, [WRONG])
    assert problem is not None
    assert explained(right, t.expected) == 1
    assert explained(right, output(problem)) == 0
    assert not is_wrong(rows_off(right, t.expected))
    assert is_wrong(rows_off(right, t.actual))


def test_a_whole_layer_has_no_heads_in_its_rows() -> None:
    """Its output is judged like any other: here that of a kernel whose triangle is not there."""
    case = next(c for c in cases("discriminating", 5, spec=CASE.spec, dtype="float32") if "x" in c.inputs)
    out = truth(case.spec.replace(causal="none"), case.inputs).out
    found = diagnose(out, case.spec, case.inputs, recipe="float32")
    assert (found.status, found.name) == ("unique", "no_causal_mask")
    noise = np.random.default_rng(0).normal(size=out.shape)
    assert diagnose(noise, case.spec, case.inputs, recipe="float32", max_deviations=1).status == "none fits"
