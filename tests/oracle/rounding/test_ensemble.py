"""Inputs as a kernel gets them, and what its orders give, one after another or side by side."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle import Recipe, budget, truth
from refdiff.oracle.rounding import ensemble, round_to
from refdiff.oracle.rounding.ensemble import members_of, quantised
from refdiff.oracle.rounding.evaluation_order import DRAWS
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_budget_is_the_same(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    spec = small("hf_diffllama")
    inputs = draw(spec, dtype=np.float32)
    one = budget(spec, inputs, dtype, members=4)
    monkeypatch.setattr(ensemble, "LEAST", 0)
    other = budget(spec, inputs, dtype, members=4)
    assert np.array_equal(one.rows["out"], other.rows["out"])
    assert one.tensors["out"].slope == other.tensors["out"].slope
