"""The rules of others, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle.rounding import round_to
from tests.oracle.selftest.baseline_rules import BASELINE_RULES, Given

Y = np.random.default_rng(0).normal(size=(1, 2, 5, 8))


def _given(storage: str, error: float) -> Given:
    eager = Y.copy()
    eager[0, 0, 0, 0] += error
    return Given(Y, eager, storage)


def test_flash_allows_twice_the_largest_error_of_the_eager_run() -> None:
    given = _given("float32", 0.01)
    out = round_to(Y, "float32")
    assert BASELINE_RULES["flash 2x"](out + 0.0199, given), "anywhere, in every row"
    out[0, 1, 4, 7] += 0.0201
    assert not BASELINE_RULES["flash 2x"](out, given)


@pytest.mark.parametrize(("storage", "factor"), [("float32", 10), ("bfloat16", 1.1)])
def test_flex_allows_a_factor_of_the_mean_error(storage: str, factor: float) -> None:
    given = _given(storage, 0.8)  # 0.01 in the mean of 80 numbers
    assert BASELINE_RULES["flex mean"](Y + 0.0099 * factor, given)
    assert not BASELINE_RULES["flex mean"](Y + 0.0101 * factor, given)


def test_fixed_tolerances() -> None:
    given = _given("bfloat16", 0.0)
    ref = given.reference
    assert BASELINE_RULES["assert_close"](ref * 1.015, given)
    assert not BASELINE_RULES["assert_close"](ref * 1.017 + 1e-5, given)
    assert BASELINE_RULES["allclose 1e-2"](ref + 0.0099, given)
    assert not BASELINE_RULES["allclose 1e-2"](ref + 0.0101 + 0.01 * np.abs(ref), given)
