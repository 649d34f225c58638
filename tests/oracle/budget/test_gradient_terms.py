"""The terms of the gradients that are sums, against the same sums written out."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle import Spec
from refdiff.oracle.budget.budget import budget
from refdiff.oracle.budget.gradient_terms import TermRecorder, term_norms
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.truth.backward import backward
from refdiff.oracle.truth.forward import out_factor
from tests.oracle.example_inputs import draw, small


def _norms(spec: Spec, dout: np.ndarray, **lengths: int) -> tuple[dict[str, Any], dict[str, Any]]:
    x = as_float64(spec, draw(spec, **lengths))
    heard = TermRecorder(spec)
    grads = backward(spec, x, dout, heard.ops())
    return term_norms(spec, x, heard, grads), grads


def _dout(spec: Spec) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(2, spec.heads, 5, spec.out_dim))


def test_the_sum_of_the_terms_is_the_gradient() -> None:
    spec = small("ms_v1")
    norms, grads = _norms(spec, _dout(spec))
    rows = 2 * spec.heads * 5
    assert abs(grads["lambda_full"]) <= np.sqrt(rows * spec.out_dim) * norms["lambda_full"]
    assert np.all(np.abs(grads["norm_weight"]) <= np.sqrt(rows) * norms["norm_weight"])
    ratio = grads["lambda_q1"] / grads["lambda_full"]
    np.testing.assert_allclose(norms["lambda_q1"], np.abs(ratio) * norms["lambda_full"], rtol=1e-12)


def test_the_terms_of_a_sink_are_those_of_its_query_head() -> None:
    """With one query and one head there is one term, its gradient."""
    spec = small("attention", sinks=True)
    norms, grads = _norms(spec, _dout(spec))
    assert norms["sinks"].shape == (12,)
    assert np.all(np.abs(grads["sinks"]) <= np.sqrt(2 * 5) * norms["sinks"])
    norms, grads = _norms(spec.replace(query_heads=1, key_heads=1), np.ones((1, 1, 1, 6)), B=1, T=1)
    np.testing.assert_allclose(norms["sinks"], np.abs(grads["sinks"]), rtol=1e-12)


def test_any_order_of_the_sum_of_a_norms_bias() -> None:
    """One float32 after another, as torch adds them; a term left out is more than any order."""
    spec = small("hf_diffllama", norm="layer", norm_bias=True)
    x = draw(spec, B=1, T=512)
    dout = np.random.default_rng(5).normal(size=(1, spec.heads, 512, spec.out_dim)).astype(np.float32)
    allowed = budget(spec, x, "float32", dout=dout)
    terms = (np.float32(out_factor(spec, allowed.inputs, ops_for())) * dout).reshape(-1, spec.out_dim)
    total = np.zeros(spec.out_dim, np.float32)
    for row in terms:
        total += row
    expected, _ = allowed.sums["dnorm_bias"]
    np.testing.assert_allclose(expected, np.sum(terms, axis=0, dtype=np.float64), rtol=1e-6, atol=1e-5)
    assert allowed.judge({"dnorm_bias": total}).status == "pass"
    assert allowed.judge({"dnorm_bias": total - terms[7]}).status == "fail"
