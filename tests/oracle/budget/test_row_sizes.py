"""The sums over keys against the equation written out, and the estimate against what rounding does."""

from __future__ import annotations

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle import Recipe, Spec, truth
from refdiff.oracle.budget.row_sizes import RowSizeRecorder, RowSizes
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.strategies import Structure, draw
from refdiff.oracle.truth.attention_operands import attention_operands

SPEC = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=3)


def _sizes(inputs: Inputs) -> tuple[RowSizes, np.ndarray]:
    heard = RowSizeRecorder()
    out = truth(SPEC, inputs, want=("out",), ops=heard.ops()).out
    return heard.sizes(), np.asarray(out)


def _inputs(seed: int = 0, dtype: str = "float32") -> Inputs:
    return as_float64(SPEC, draw(SPEC, Structure(batch=2, queries=11, keys=13), "natural", seed, dtype))


def test_each_sum_is_that_of_its_row() -> None:
    inputs = _inputs()
    found, _ = _sizes(inputs)
    s = attention_operands(SPEC, inputs, ops_for())
    b, h, t = 1, 2, 7
    for number, (q, k) in enumerate(((s.q1, s.k1), (s.q2, s.k2))):
        seen = 13 - 11 + t + 1
        z = k[b, h, :seen] @ q[b, h, t] / 4
        p = np.zeros(13)
        p[:seen] = np.exp(z) / np.exp(z).sum()
        v = s.v[b, h]
        apart = np.linalg.norm(v - v.mean(axis=0), axis=1) * p * (1 - p)
        lengths = np.linalg.norm(k[b, h], axis=1) * np.linalg.norm(q[b, h, t])
        np.testing.assert_allclose(found.weights[number, b, h, t], np.linalg.norm(apart))
        np.testing.assert_allclose(found.scores[number, b, h, t], np.linalg.norm(apart * lengths))
        np.testing.assert_allclose(found.outputs[number, b, h, t], np.linalg.norm(p @ v))
        assert found.reach[b, h, t] >= lengths.max() * (1 - 1e-12)
    np.testing.assert_allclose(found.lambdas, abs(float(s.lambda_full)))
    assert found.values.max() == np.abs(s.v).max()


def test_more_is_estimated_where_more_is_rounded() -> None:
    inputs = _inputs()
    found, out = _sizes(inputs)

    def estimate(recipe: Recipe) -> np.ndarray:
        return found.row_error(SPEC, inputs, recipe, out)

    narrow, fused = Recipe("bfloat16"), Recipe("bfloat16", p="float32", o="float32")
    assert (estimate(Recipe("float32")) < 1e-3 * estimate(Recipe("float16"))).all()
    assert (estimate(Recipe("float16")) < estimate(narrow)).all()
    assert (estimate(fused) < estimate(narrow)).all()
    assert (estimate(narrow) <= estimate(Recipe.eager("bfloat16"))).all()
    assert (estimate(Recipe("float32")) < estimate(Recipe.of("tf32"))).all()
