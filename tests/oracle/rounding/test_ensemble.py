"""The orders of a budget give the same one after another and in parallel."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle import Recipe, budget, check, truth
from refdiff.oracle.rounding import ensemble
from tests.oracle.example_inputs import draw, small


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_parallel_budget_equals_the_sequential_one(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    spec = small("hf_diffllama")
    inputs = draw(spec, dtype=np.float32)
    one = budget(spec, inputs, dtype)
    monkeypatch.setattr(ensemble, "MIN_PARALLEL_SCORES", 0)
    other = budget(spec, inputs, dtype)
    assert np.array_equal(one.rows["out"], other.rows["out"])
    assert one.tensors["out"].slope == other.tensors["out"].slope


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
