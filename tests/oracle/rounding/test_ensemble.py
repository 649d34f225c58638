"""The orders of a budget give the same one after another and in parallel."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle import budget
from refdiff.oracle.rounding import ensemble
from tests.oracle.example_inputs import draw, small


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_budget_is_the_same(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    spec = small("hf_diffllama")
    inputs = draw(spec, dtype=np.float32)
    one = budget(spec, inputs, dtype, members=4)
    monkeypatch.setattr(ensemble, "MIN_PARALLEL_SCORES", 0)
    other = budget(spec, inputs, dtype, members=4)
    assert np.array_equal(one.rows["out"], other.rows["out"])
    assert one.tensors["out"].slope == other.tensors["out"].slope
