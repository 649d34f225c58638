"""A factor that all rows have in common, weighed by what each row can show."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff import oracle
from refdiff.oracle.budget.statistics import common_factor, row_factors
from refdiff.oracle.cases.fixed import cases, small_spec
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import HELD_OUT

ROWS, WIDTH, RUNS = 600, 32, 10


def _rows(seed: int = 0) -> tuple[np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(ROWS, WIDTH)), rng


def _all(y: np.ndarray) -> np.ndarray:
    return np.ones(y.shape[:-1], dtype=np.bool_)


def test_a_rotated_row_behind_a_norm_has_factor_zero() -> None:
    y, rng = _rows(3)
    weight = rng.uniform(0.4, 1.6, WIDTH)
    unit = y / np.linalg.norm(y, axis=-1, keepdims=True)
    turned = unit + 0.1 * rng.normal(size=y.shape)
    turned /= np.linalg.norm(turned, axis=-1, keepdims=True)
    np.testing.assert_allclose(row_factors(weight * turned, weight * unit, weight), 0.0, atol=1e-12)
    assert np.all(row_factors(turned, unit, None) < -0.05), "as a share of the row it is shorter"
    np.testing.assert_allclose(row_factors(1.001 * weight * turned, weight * unit, weight), 0.001, rtol=1e-3)


def test_rows_near_the_smallest_number_do_not_count() -> None:
    y, _ = _rows(5)
    y[:5] *= 1e-140
    found = common_factor(y, [y] * RUNS, _all(y), "float32", lost_below=2.0**-126)
    np.testing.assert_array_equal(found.weights[:5], 0)
    assert found.estimate(np.where(np.arange(ROWS)[:, None] < 5, 1e-38, y), y) == 0


@pytest.mark.parametrize("preset", ["hf_diffllama", pytest.param("ms_v1", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("profile", "dtype"),
    [("cancellation", "float16"), ("extreme", "bfloat16"), ("tiny_values", "bfloat16"), ("natural", "bfloat16")],
)
def test_a_factor_on_everything_is_refused(profile: str, dtype: str, preset: str) -> None:
    """1.004 and 1.01 passed in these, at 50 to 128 times what valid orders are off by."""
    for case in cases(profile, 7, spec=small_spec(preset), dtype=dtype):
        allowed = oracle.budget(case.spec, case.inputs, dtype)
        for order in HELD_OUT[:3]:
            out = evaluate(case.spec, allowed.inputs, allowed.recipe, order)["out"]
            assert allowed.judge(out).status != "fail", f"{case.name} {order.name}"
            for factor in (0.99, 1.004, 1.01):
                wrong = allowed.judge(round_to(factor * out, dtype))
                assert wrong.status == "fail", f"{case.name} {order.name} {factor}"
                assert "factor" in {s.name for s in wrong.tensors["out"].statistics if not s.holds}
