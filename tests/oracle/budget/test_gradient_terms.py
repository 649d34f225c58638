"""A gradient that is a sum of many terms: any order of the sum passes, and a sum without one of them fails."""

from __future__ import annotations

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.budget import budget
from refdiff.oracle.truth.forward import out_factor
from tests.oracle.example_inputs import draw, small


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
