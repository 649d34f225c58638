"""What Hypothesis draws is a case."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given

from refdiff.oracle import Case, Spec, truth
from refdiff.oracle.inputs.validation import check_inputs
from refdiff.oracle.strategies import cases, specs


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


def test_the_package_needs_no_hypothesis() -> None:
    code = "import sys; sys.modules['hypothesis'] = None; from refdiff import oracle; print(oracle.cases('natural')[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "natural-hf_diffllama-0-2x16x24-float32-0"
