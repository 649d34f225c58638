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


@pytest.mark.parametrize("divisor", [None, 1.0])
def test_noisy_rows_count_little(divisor: float | None) -> None:
    y, rng = _rows(1)
    noise = np.where(np.arange(ROWS) < 400, 0.3, 1e-3)[:, None]
    runs = [y + noise * rng.normal(size=y.shape) for _ in range(RUNS)]
    found = common_factor(y, runs, _all(y), "bfloat16", divisor)
    assert found.weights.sum() == pytest.approx(1.0)
    assert np.abs(found.weights[:400]).sum() < 0.01
    other = y + noise * rng.normal(size=y.shape)
    assert abs(found.estimate(other, y)) < 4 * found.spread < 1e-3
    assert found.estimate(1.004 * other, y) > 8 * found.spread


def test_an_error_shared_by_rows_is_distinguished_from_a_factor() -> None:
    """Such as that of λ: larger in some rows than in others, of another size in each kernel."""
    y, rng = _rows(2)
    shape = rng.uniform(0.0, 2.0, size=(ROWS, 1))
    runs = [y * (1 + s * shape) for s in 0.02 * rng.normal(size=RUNS)]
    found = common_factor(y, runs, _all(y), "bfloat16")
    assert abs(found.estimate(y * (1 + 0.03 * shape), y)) < 4 * found.spread
    assert found.estimate(y * (1.004 + 0.03 * shape), y) > 8 * found.spread


def test_rows_of_the_same_numbers_count_as_one() -> None:
    """As those of queries that attend to one and the same key: each kernel rounds them alike, in its own way."""
    beyond = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        share = 1 / (1 + np.arange(40.0)) ** 2
        key = rng.choice(40, ROWS, p=share / share.sum())
        y = rng.normal(size=(40, WIDTH))[key]
        orders = [y * (1 + 1e-4 * rng.normal(size=40)[key, None]) for _ in range(60)]
        found = common_factor(y, orders[:8], _all(y), "float16")
        beyond += [found.estimate(order, y) / found.spread for order in orders[8:]]
    assert np.sqrt(np.mean(np.square(beyond))) < 1.4
    assert np.max(np.abs(beyond)) < 5


def test_orders_that_round_the_same_numbers_are_not_independent_evidence() -> None:
    """Three are 4e-5 too small in all rows, with all but the same noise; so is a kernel, with noise of its own."""
    beyond = []
    for seed in range(6):
        y, rng = _rows(seed)

        def run(bias: float, noise: np.ndarray, y: np.ndarray = y) -> np.ndarray:
            return y * (1 + bias + 5e-5 * noise)[:, None]

        same = rng.normal(size=ROWS)
        correlated = [run(-4e-5, same + 0.1 * rng.normal(size=ROWS)) for _ in range(3)]
        runs = [*(run(0.0, rng.normal(size=ROWS)) for _ in range(7)), *correlated]
        found = common_factor(y, runs, _all(y), "float16", groups=[*range(7), -1, -1, -1])
        beyond.append(found.estimate(run(-4e-5, rng.normal(size=ROWS)), y) / found.spread)
        assert abs(found.estimate(1.001 * y, y)) > 8 * found.spread
    assert np.max(np.abs(beyond)) < 4


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_add_up_the_same_errors(seed: int) -> None:
    """As gradients of keys that all queries see alike: ten orders show a few of the many ways to agree."""
    y, rng = _rows(seed)

    def order() -> np.ndarray:
        factors = np.cumsum(1e-4 * rng.normal(size=100))
        return y * (1 + np.repeat(factors, ROWS // 100)[:, None])

    found = common_factor(y, [order() for _ in range(RUNS)], _all(y), "bfloat16")
    others = [found.estimate(order(), y) / found.spread for _ in range(300)]
    assert np.sqrt(np.mean(np.square(others))) < 1.4


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
