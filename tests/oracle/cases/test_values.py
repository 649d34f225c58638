"""The numbers of each profile: finite truths, and scores that overflow float16 where a kernel scales too late."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle import Recipe, Spec, budget, truth
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import VALUES, draw
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import HELD_OUT, Order
from refdiff.oracle.spec.presets import PRESETS
from tests.oracle.example_inputs import small

PLAIN = Structure(2, 6, 9)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", PRESETS)
def test_the_truth_of_all_is_finite_and_the_same_for_a_seed(name: str, values: str) -> None:
    spec = small(name)
    inputs = draw(spec, PLAIN, values, 4, "bfloat16")
    found = truth(spec, inputs)
    assert np.isfinite(found.out).all()
    again, other = draw(spec, PLAIN, values, 4, "bfloat16"), draw(spec, PLAIN, values, 5, "bfloat16")
    assert all(np.array_equal(x, again[n]) for n, x in inputs.items())
    assert not np.array_equal(inputs["q"], other["q"])
    lambda_ = found.lambda_full
    if spec.is_plain:
        assert lambda_ is None
        return
    if values == "cancellation":
        low, high = (0.8, 1.15) if spec.lambda_form == "exp" else (0.3, 1.0)
        assert low < lambda_.min() <= lambda_.max() < high
    if values == "discriminating" and spec.lambda_form == "exp":
        assert 0.33 < lambda_ < 0.87


def test_unknown_words() -> None:
    with pytest.raises(ValueError, match="values: got 'odd', expected one of natural"):
        draw(small("ms_v1"), PLAIN, "odd", 0)
    with pytest.raises(ValueError, match="dtype: got 'float8', expected one of float32"):
        draw(small("ms_v1"), PLAIN, "natural", 0, "float8")


@pytest.mark.parametrize("d", [16, 64, 96])
@pytest.mark.parametrize("structure", [Structure(2, 16, 24), Structure(1, 17, 17)])
def test_scores_that_are_scaled_after_the_product_overflow_float16(d: int, structure: Structure) -> None:
    spec = Spec.preset("hf_diffllama", query_heads=12, key_heads=4, head_dim=d, layer=2)
    allowed = budget(spec, draw(spec, structure, "extreme", 4, "float16"), "float16")
    after, before = (
        evaluate(spec, allowed.inputs, Recipe("float16", qk="float16"), Order("", scale_first=first))
        for first in (False, True)
    )
    assert not np.isfinite(after["out"][:, :, -1]).all()
    assert allowed.judge({"out": after["out"]}).status == "fail"
    assert np.isfinite(before["out"]).all()
    assert allowed.judge({"out": evaluate(spec, allowed.inputs, Recipe("float16"), HELD_OUT[3])["out"]})
