"""What Hypothesis draws is a case, and shrinks to the smallest structure on which something shows."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import find, given, settings

from refdiff.oracle import Case, Spec, blind_spots, truth
from refdiff.oracle.deviations import EVERY, Problem, output
from refdiff.oracle.deviations.deviation import output_with
from refdiff.oracle.inputs.validation import as_float64, check_inputs
from refdiff.oracle.strategies import cases, specs
from tests.oracle.example_inputs import small


@given(cases(longest=7))
def test_any_case_has_a_truth(case: Case) -> None:
    check_inputs(case.spec, case.inputs)
    out = truth(case.spec, case.inputs, want=("out",)).out
    assert np.isfinite(out).all()


@given(specs("gda", head_dims=(8,), layer=5))
def test_specs_keep_what_is_given(spec: Spec) -> None:
    assert spec.layer == 5
    assert spec.head_dim == 8
    assert spec.query_heads == spec.heads + spec.heads // spec.ratio


QUICK = settings(max_examples=60, database=None, derandomize=True)
BY_NAME = {d.name: d for d in EVERY}


def hides(case: Case, name: str) -> bool:
    """Whether a deviation does nothing to the output of a case."""
    exact = as_float64(case.spec, case.inputs)
    wrong = output_with(case.spec, exact, [BY_NAME[name]])
    return wrong is None or np.allclose(wrong, output(Problem(case.spec, exact)), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_finds_that_one_token_hides_22_mistakes() -> None:
    spec = small("hf_diffllama")
    drawn = cases(spec, "natural", dtype="float32", longest=3)
    case = find(drawn, lambda case: hides(case, "rope_left_out"), settings=QUICK)
    assert (case.structure.queries, case.structure.keys) == (1, 1)
    hidden = {d.name for d in blind_spots(case.spec, case.inputs)}
    assert len(hidden) >= 22
    assert {"neighbors_are_a_pair", "keys_crossed", "scores_not_scaled"} <= hidden
    assert "scale_left_out" not in hidden


def test_the_package_needs_no_hypothesis() -> None:
    code = "import sys; sys.modules['hypothesis'] = None; from refdiff import oracle; print(oracle.cases('natural')[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "natural-hf_diffllama-0-2x16x24-float32-0"
