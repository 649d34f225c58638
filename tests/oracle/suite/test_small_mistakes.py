"""Kernels whose mistake is small, or small beside the terms of a sum: each fails in the cases of its profile."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Recipe, Spec, cases
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.inputs import VECTORS
from refdiff.oracle.suite.outcome import judge_case
from tests.oracle.user_kernels import dense_with_gradients

HERE = "tests.oracle.suite.test_small_mistakes"


def _of_lambda(spec: Spec, inputs: dict[str, Any], dout: Any, change: dict[str, float]) -> Any:
    found = dense_with_gradients(spec, inputs, dout)
    if dout is None or found is NotImplemented:
        return found
    return {**found, **{name: factor * found[name] for name, factor in change.items()}}


def _lambda_parts(inputs: dict[str, Any]) -> tuple[float, float]:
    q1, k1, q2, k2 = (inputs[name].astype(np.float64) for name in VECTORS)
    return float(np.exp(q1 @ k1)), float(np.exp(q2 @ k2))


def lambda_gradient_with_the_wrong_sign(spec: Spec, inputs: dict[str, Any], dout: Any = None) -> Any:
    return _of_lambda(spec, inputs, dout, {f"d{name}": -1.0 for name in (*VECTORS, "lambda_full")})


def lambda_gradient_without_its_exponential(spec: Spec, inputs: dict[str, Any], dout: Any = None) -> Any:
    """∂λ/∂λ_q1 = λ_k1 in place of λ_k1 exp(λ_q1·λ_k1)."""
    first, second = _lambda_parts(inputs)
    powers = dict(zip(VECTORS, (first, first, second, second), strict=True))
    return _of_lambda(spec, inputs, dout, {f"d{name}": 1 / power for name, power in powers.items()})


def lambda_gradient_of_the_first_map(spec: Spec, inputs: dict[str, Any], dout: Any = None) -> Any:
    """Σ G ⊙ A₁V in place of −Σ G ⊙ A₂V. Behind a norm G is at right angles to (A₁ − λ A₂) V: the first sum is λ times
    the second, up to ε."""
    first, second = _lambda_parts(inputs)
    lambda_ = first - second + 0.8 - 0.6 * math.exp(-0.3 * spec.layer)
    return _of_lambda(spec, inputs, dout, {f"d{name}": -lambda_ for name in (*VECTORS, "lambda_full")})


@functools.cache
def _outcomes(kernel: str, profile: str, dtype: str, preset: str) -> tuple[str, ...]:
    found = cases(profile, spec=small_spec(preset), dtype=dtype)
    return tuple(judge_case(kernel, Recipe(dtype), case).status for case in found)


@pytest.mark.parametrize(
    ("kernel", "profile", "dtype"),
    [
        ("lambda_gradient_with_the_wrong_sign", "natural", "bfloat16"),
        ("lambda_gradient_without_its_exponential", "natural", "bfloat16"),
        ("lambda_gradient_of_the_first_map", "natural", "bfloat16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("preset", ["hf_diffllama", pytest.param("ms_v1", marks=pytest.mark.slow)])
def test_a_small_mistake_fails(kernel: str, profile: str, dtype: str, preset: str) -> None:
    """The same cases pass with the right kernel, so that it is the mistake that fails."""
    found = _outcomes(f"{HERE}:{kernel}", profile, dtype, preset)
    fine = _outcomes("tests.oracle.user_kernels:dense_with_gradients", profile, dtype, preset)
    assert "fail" in found
    assert "fail" not in fine
    assert "pass" in fine


def test_a_gradient_of_lambda_that_rounding_hides_is_no_pass() -> None:
    """In bfloat16 `extreme` ∂L/∂λ_q1 is below its own allowance in one case: zeros do not pass, and the other shows."""
    from refdiff import oracle

    states = []
    for case in cases("extreme", spec=small_spec("hf_diffllama"), dtype="bfloat16"):
        found = dense_with_gradients(case.spec, case.inputs, case.dout)
        zeros = {"dlambda_q1": 0 * found["dlambda_q1"]}
        states.append(oracle.check(zeros, case.spec, case.inputs, recipe="bfloat16", dout=case.dout).status)
    assert set(states) == {"inconclusive", "fail"}
