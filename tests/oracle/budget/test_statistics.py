"""The three numbers by hand, and that each sees what the others do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refdiff import oracle
from refdiff.oracle.budget.statistics import (
    LIMITS,
    RowBudget,
    root_mean_square,
    slope,
    statistics,
    uncertain_share,
)
from refdiff.oracle.cases.fixed import cases, small_spec
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from tests.oracle.example_inputs import row_budget

E = 1e-3


def _case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A truth, and errors of 0.8 E at random, which hold."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(2, 3, 11, 64))
    return y, 0.8 * E * rng.normal(size=y.shape)


def _found(actual: np.ndarray, budget: RowBudget) -> dict[str, bool]:
    return {s.name: s.holds for s in statistics(actual, budget)}


def _without_slope(y: np.ndarray, e: np.ndarray) -> np.ndarray:
    return e - slope(e, y) * y


def test_by_hand() -> None:
    y = np.asarray([[[[3.0, 4.0], [0.0, 2.0]]]])
    e = np.asarray([[0.03, -0.04], [0.0, 0.01]])
    found = {s.name: s for s in statistics(y + e, row_budget(y, 0.01))}
    assert found["row"].value == pytest.approx(np.sqrt(0.0025 / 2) / 0.01)
    assert found["row"].at == (0, 0, 0)
    assert found["bulk"].value == pytest.approx(np.sqrt((0.00125 + 0.00005) / 2) / 0.01)
    assert found["bulk"].limit == pytest.approx(1.3 + 2.7 / np.sqrt(2))
    assert found["slope"].value == pytest.approx(abs(0.09 - 0.16 + 0.02) / 29)


def test_noisy_rows_have_little_weight_in_the_slope() -> None:
    y, e = np.asarray([[3.0, 4.0], [0.0, 2.0], [0.0, 0.1]]), np.asarray([[0.3, -0.4], [0.0, 0.02], [0.1, 0.1]])
    rows = np.asarray([1.0, 0.1, 0.2])  # the last is larger than its row
    found = {s.name: s for s in statistics(y + e, replace(row_budget(y, 1.0), rows=rows))}
    assert found["slope"].value == pytest.approx(abs((0.9 - 1.6) + 0.04 / 0.01) / (25 + 4 / 0.01))


@pytest.mark.parametrize("unit", [1.0, 1e-310, 1e-170, 1e-90, 1e120, 1e160, 1e307])
def test_a_root_mean_square_neither_overflows_nor_underflows(unit: float) -> None:
    x = unit * np.array([[3.0, 4.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert root_mean_square(x) == pytest.approx([2.5 * unit, unit, 0.0], rel=1e-12)
    assert root_mean_square(x[:2]) == pytest.approx([2.5 * unit, unit], rel=1e-12)
    assert root_mean_square(np.array([[np.inf, 1.0], [np.nan, 1.0]])) == pytest.approx([np.inf, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("mistake", "notices"),
    [("row", {"row"}), ("bulk", {"bulk"}), ("slope", {"slope"}), ("none", set())],
)
def test_each_number_sees_what_the_others_do_not(mistake: str, notices: set[str]) -> None:
    y, e = _case()
    e = _without_slope(y, e)
    if mistake == "row":
        e[1, 2, 7] *= 5.5
    if mistake == "bulk":
        e *= 2.2
    budget = row_budget(y)
    if mistake == "slope":
        e = e + 1e-5 * y
    else:
        budget = replace(budget, slope=1e-5)
    failed = {name for name, holds in _found(y + e, budget).items() if not holds}
    assert failed == notices


@pytest.mark.parametrize(("size", "times"), [(1000.0, 4.0), (4.1, 4.0), (3.9, 5.25), (0.0, 5.25)])
def test_rows_that_correct_kernels_miss_by_a_quarter_have_a_limit_of_their_own(size: float, times: float) -> None:
    y = size * np.where(np.arange(16) % 2, 1.0, -1.0) * np.ones((1, 2, 20, 1))
    for off, holds in ((0.99 * times, True), (1.01 * times, False)):
        actual = y.copy()
        actual[0, 1, 3] += off
        row = next(s for s in statistics(actual, row_budget(y, 1.0)) if s.name == "row")
        assert row.holds == holds
        assert row.value == pytest.approx(4 * off / times)


def test_masks_must_be_the_same() -> None:
    y, e = _case()
    y[0, 0, 0], y[0, 0, 1, 0], y[0, 0, 1, 1] = np.nan, np.inf, -np.inf
    budget = row_budget(y)
    assert _found(y + e, budget)["masks"]
    for at, value in [((0, 0, 0, 3), 1.0), ((1, 1, 1, 1), np.nan), ((0, 0, 1, 0), -np.inf), ((1, 0, 0, 0), np.inf)]:
        wrong = y + e
        wrong[at] = value
        (masks,) = (s for s in statistics(wrong, budget) if s.name == "masks")
        assert (masks.value, masks.at) == (1.0, at)


def test_rows_that_are_zero_must_be_zero() -> None:
    y, e = _case()
    y[:, :, 0], e[:, :, 0] = 0.0, 0.0
    budget = replace(row_budget(y), slope=1e-5)
    budget.rows[:, :, 0] = 0.0
    assert all(_found(y + e, budget).values())
    e[1, 1, 0, 5] = 1e-30
    assert not _found(y + e, budget)["row"]


def test_rows_that_nobody_can_judge() -> None:
    y, e = _case()
    budget = row_budget(y)
    assert uncertain_share(budget) == 0.0
    budget = replace(budget, slope=1e-5)
    budget.doubtful[0] = True
    e[0] = np.nan
    assert uncertain_share(budget) == 0.5 > LIMITS.share
    assert all(_found(y + e, budget).values())


def test_rows_below_their_own_error_have_no_slope() -> None:
    """dq of a saturated softmax is 1e-245, and an allowed error of it 1e245 times as large."""
    y, e = _case()
    assert _found(1e-245 * y + e, row_budget(1e-245 * y))["slope"]
    y[0] *= 1e-245
    assert not _found(np.where(y, 1.01 * y, 0.0) + 0.1 * e, replace(row_budget(y), slope=1e-5))["slope"]


@pytest.mark.parametrize(
    ("profile", "dtype", "factors"),
    [
        ("cancellation", "float16", (0.98, 1.02)),
        ("extreme", "bfloat16", (0.99, 1.004)),
        ("natural", "bfloat16", (0.99, 1.01)),
    ],
)
def test_a_factor_on_everything_is_refused(profile: str, dtype: str, factors: tuple[float, ...]) -> None:
    for case in cases(profile, 7, spec=small_spec("hf_diffllama"), dtype=dtype):
        allowed = oracle.budget(case.spec, case.inputs, dtype)
        for order in HELD_OUT[:3]:
            out = evaluate(case.spec, allowed.inputs, allowed.recipe, order)["out"]
            assert allowed.judge(out).status != "fail", f"{case.name} {order.name}"
            for factor in factors:
                wrong = allowed.judge(round_to(factor * out, dtype))
                assert "slope" in {s.name for s in wrong.tensors["out"].statistics if not s.holds}, (
                    f"{case.name} {factor}"
                )
