"""Residuals: small for the right deviation, large for others, and budgets of deviating kernels."""

from __future__ import annotations

import numpy as np

from refdiff.oracle import budget, cases, diagnose, truth
from refdiff.oracle.diagnosis.variants import (
    Target,
)
from tests.oracle.diagnosis.outputs import kernel, named, pair_of_cases

CASE = pair_of_cases("hf_diffllama", "bfloat16")[0]
WRONG = named("hf_diffllama", "layer_norm")


def target() -> Target:
    out = kernel(CASE, [WRONG])
    return Target.of(out, budget(CASE.spec, CASE.inputs, "bfloat16", members=2))


def test_a_whole_layer_has_no_heads_in_its_rows() -> None:
    """Its output is judged like any other: here that of a kernel whose triangle is not there."""
    case = next(c for c in cases("discriminating", 5, spec=CASE.spec, dtype="float32") if "x" in c.inputs)
    out = truth(case.spec.replace(causal="none"), case.inputs).out
    found = diagnose(out, case.spec, case.inputs, recipe="float32")
    assert (found.status, found.name) == ("unique", "no_causal_mask")
    noise = np.random.default_rng(0).normal(size=out.shape)
    assert diagnose(noise, case.spec, case.inputs, recipe="float32", max_deviations=1).status == "none fits"
