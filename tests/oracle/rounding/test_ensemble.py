"""Inputs as a kernel gets them, and what its orders give."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import evaluate, members_of, quantised, score_errors
from refdiff.oracle.rounding.evaluation_order import DRAWS, MEMBERS
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.truth import truth
from tests.oracle.example_inputs import draw, small


def test_matrices_are_rounded_once_and_parameters_left() -> None:
    spec = small("ms_v1")
    x = draw(spec)
    x["q_positions"] = np.arange(2, 7)[None]
    found = quantised(x, Recipe("bfloat16"))
    np.testing.assert_array_equal(found["q"], round_to(x["q"], "bfloat16"))
    np.testing.assert_array_equal(found["lambda_q1"], x["lambda_q1"])
    np.testing.assert_array_equal(found["norm_weight"], x["norm_weight"])
    assert found["q_positions"].dtype.kind == "i"
    stored = {name: a.astype(ml_dtypes.bfloat16) for name, a in found.items() if a.dtype.kind == "f"}
    np.testing.assert_array_equal(quantised(stored, Recipe("bfloat16"))["v"], found["v"])


def test_a_type_that_will_be_refused_is_not_changed_first() -> None:
    """So that the message names the one that was given."""
    x = {"mask": np.zeros((5, 7), np.float32), "q_positions": np.zeros((1, 5), ml_dtypes.bfloat16)}
    assert {name: a.dtype.name for name, a in quantised(x, Recipe("float16")).items()} == {
        "mask": "float32",
        "q_positions": "bfloat16",
    }


def test_a_layer_is_evaluated_too() -> None:
    spec = small("hf_diffllama")
    x = quantised(draw(spec, layer=True), Recipe("bfloat16"))
    assert not np.array_equal(x["q_proj.weight"], draw(spec, layer=True)["q_proj.weight"])
    got, want = evaluate(spec, x, Recipe("bfloat16"), MEMBERS[0])["out"], truth(spec, x, want=("out",)).out
    assert got.shape == want.shape
    assert 1e-4 < np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) < 0.05


def test_outputs_are_of_the_storage_type() -> None:
    spec = small("diff_v2")
    x = quantised(draw(spec), Recipe("float16"))
    dout = np.ones_like(truth(spec, x, want=("out",)).out)
    runs = members_of(spec, x, Recipe("float16"), 2, dout)
    assert len(runs) == len(DRAWS) + 2
    assert set(runs[0]) == {"out", "dq", "dk", "dv", "dlambda_full", "dlambda_logits"}
    for array in runs[-1].values():
        np.testing.assert_array_equal(array, round_to(array, "float16"))
    with pytest.raises(ValueError, match="members is 1, but there are 2 to 8"):
        members_of(spec, x, Recipe("float16"), 1, None)


def test_errors_of_scores() -> None:
    spec = small("hf_diffllama")
    x = quantised(draw(spec), Recipe("bfloat16"))
    first, second = score_errors(spec, x, Recipe("bfloat16"), 2)
    assert first.shape == second.shape == (2, spec.heads, 5)
    assert 1e-3 < np.median(first) < 0.1
    exact, _ = score_errors(spec.replace(rope="none"), x, Recipe("bfloat16"), 2)
    assert np.max(exact) < 1e-5, "without RoPE the scores of bfloat16 inputs are sums in float32"
