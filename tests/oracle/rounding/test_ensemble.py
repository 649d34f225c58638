"""The orders of a budget give the same one after another and in parallel."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle import Recipe, budget, check, truth
from refdiff.oracle.rounding import ensemble
from refdiff.oracle.rounding.evaluation_order import DRAWS, MEMBERS, Arithmetic
from refdiff.oracle.rounding.rounded_attention import scores_of_maps
from refdiff.oracle.rounding.rounded_layers import rounded_ops
from refdiff.oracle.truth.attention_operands import attention_operands
from tests.oracle.example_inputs import draw, small


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_parallel_budget_equals_the_sequential_one(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    spec = small("hf_diffllama")
    inputs = draw(spec, dtype=np.float32)
    one = budget(spec, inputs, dtype, members=4)
    monkeypatch.setattr(ensemble, "MIN_PARALLEL_SCORES", 0)
    other = budget(spec, inputs, dtype, members=4)
    assert np.array_equal(one.rows["out"], other.rows["out"])
    assert one.tensors["out"].slope == other.tensors["out"].slope


def test_the_error_budget_of_a_single_score_exceeds_every_summation_order() -> None:
    spec, recipe = small("hf_diffllama"), Recipe("bfloat16")
    inputs = ensemble.quantise(draw(spec, T=1, S=1), recipe)
    score = np.asarray(truth(spec, inputs).lse1)  # of one key, they are the same
    errors = []
    for order in (*DRAWS, *MEMBERS[:6]):
        s = attention_operands(spec, inputs, rounded_ops(recipe, order))
        first, _ = scores_of_maps(Arithmetic(recipe, order), (s.q1, s.k1, s.q2, s.k2), s.mask, s.bias, s.causal)
        errors.append(np.abs(first[..., 0] - score))
    allowed, _ = ensemble.score_errors(spec, inputs, recipe, 6)
    np.testing.assert_allclose(allowed, np.max(errors, axis=0) + np.std(errors, axis=0), rtol=1e-6)


@pytest.mark.parametrize("name", ["bias", "k", "v"])
@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
def test_float32_inputs_are_not_rounded_to_a_16_bit_q(name: str, storage: str) -> None:
    """A bias of ALiBi, and a cache in int8 with float32 scales, have numbers that 16 bits cannot hold."""
    spec = small("diff_v2")
    narrow = np.dtype(storage if storage == "float16" else ml_dtypes.bfloat16)
    inputs = {x: y.astype(narrow) for x, y in draw(spec, T=5, S=40).items()}
    inputs["bias"] = np.zeros((1, spec.heads, 5, 40), narrow)
    inputs[name] = np.random.default_rng(1).normal(0, 4, inputs[name].shape).astype(np.float32)
    right = truth(spec, inputs)
    mine = {"out": np.asarray(right.out).astype(narrow)} | {x: np.float32(getattr(right, x)) for x in ("lse1", "lse2")}
    assert check(mine, spec, inputs, recipe=storage)
    exact = ensemble.quantise(inputs, Recipe(storage))
    assert np.array_equal(exact[name], inputs[name])
    wide = ensemble.quantise({x: np.asarray(y, np.float64) for x, y in inputs.items()}, Recipe(storage))
    assert np.array_equal(wide[name], inputs[name].astype(narrow).astype(np.float64))
