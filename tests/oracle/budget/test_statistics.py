"""The four numbers by hand, and that each sees what the others do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refdiff.oracle.budget.statistics import LIMITS, RowBudget, over, root_mean_square, slope, statistics, uncertain

E = 1e-3


def _budget(y: np.ndarray, e: float = E, storage: str = "float32") -> RowBudget:
    rows = np.full(y.shape[:-1], e)
    return RowBudget(y, rows, np.full(rows.shape, np.inf), 0.0, storage, "b h t", np.zeros(rows.shape, bool))


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
    found = {s.name: s for s in statistics(y + e, _budget(y, 0.01))}
    assert found["row"].value == pytest.approx(np.sqrt(0.0025 / 2) / 0.01)
    assert found["row"].at == (0, 0, 0)
    assert found["bulk"].value == pytest.approx(np.sqrt((0.00125 + 0.00005) / 2) / 0.01)
    assert found["bulk"].limit == pytest.approx(1.3 + 2.7 / np.sqrt(2))
    assert found["element"].at == (0, 0, 0, 1)
    assert found["element"].value == pytest.approx(0.04 / (0.06 + 2 * 2.0**-24 * 4))
    assert found["slope"].value == pytest.approx(abs(0.09 - 0.16 + 0.02) / 29)


@pytest.mark.parametrize(
    ("mistake", "notices"),
    [("row", {"row"}), ("bulk", {"bulk"}), ("element", {"element"}), ("slope", {"slope"}), ("none", set())],
)
def test_each_number_sees_what_the_others_do_not(mistake: str, notices: set[str]) -> None:
    y, e = _case()
    e = _without_slope(y, e)
    if mistake == "row":
        e[1, 2, 7] *= 5.5
    if mistake == "bulk":
        e *= 2.2
    if mistake == "element":
        e[0, 1, 3, 5] = 21 * E
    budget = _budget(y)
    if mistake == "slope":
        e = e + 1e-5 * y
    else:
        budget = replace(budget, slope=1e-5)
    failed = {name for name, holds in _found(y + e, budget).items() if not holds}
    assert failed == notices


def test_a_bound_that_is_not_known_is_no_statistic() -> None:
    y, e = _case()
    without, known = (replace(_budget(y), bounds=np.full(y.shape[:-1], bound)) for bound in (np.inf, 1e9))
    assert _found(y + e, known).keys() - _found(y + e, without).keys() == {"bound"}


def test_masks_must_be_the_same() -> None:
    y, e = _case()
    y[0, 0, 0], y[0, 0, 1, 0], y[0, 0, 1, 1] = np.nan, np.inf, -np.inf
    budget = _budget(y)
    assert _found(y + e, budget)["masks"]
    for at, value in [((0, 0, 0, 3), 1.0), ((1, 1, 1, 1), np.nan), ((0, 0, 1, 0), -np.inf), ((1, 0, 0, 0), np.inf)]:
        wrong = y + e
        wrong[at] = value
        (masks,) = (s for s in statistics(wrong, budget) if s.name == "masks")
        assert (masks.value, masks.at) == (1.0, at)


def test_what_overflows_the_storage_type_is_infinite() -> None:
    y = np.full((1, 1, 2, 3), 1.0)
    y[0, 0, 0, 0] = 70_000.0
    right = np.where(y > 65_504, np.inf, y)
    assert _found(right, _budget(y, storage="float16"))["masks"]
    assert not _found(np.where(y > 65_504, 65_504.0, y), _budget(y, storage="float16"))["masks"]


def test_rows_that_are_zero_must_be_zero() -> None:
    y, e = _case()
    y[:, :, 0], e[:, :, 0] = 0.0, 0.0
    budget = replace(_budget(y), slope=1e-5)
    budget.rows[:, :, 0] = 0.0
    assert all(_found(y + e, budget).values())
    e[1, 1, 0, 5] = 1e-30
    assert not _found(y + e, budget)["row"]


def test_beyond_the_hard_bound() -> None:
    y, e = _case()
    budget = replace(_budget(y, 1.0), bounds=np.full(y.shape[:-1], 2e-3), slope=1.0)
    assert _found(y + e, budget)["bound"]
    e[0, 0, 4] *= 5
    failed = {name for name, holds in _found(y + e, budget).items() if not holds}
    assert failed == {"bound"}


def test_rows_that_nobody_can_judge() -> None:
    y, e = _case()
    budget = _budget(y)
    assert uncertain(budget) == 0.0
    budget = replace(budget, slope=1e-5)
    budget.doubtful[0] = True
    e[0] = np.nan
    assert uncertain(budget) == 0.5 > LIMITS.share
    assert all(_found(y + e, budget).values())


def test_of_a_gradient_a_row_that_is_large_is_held_against_itself() -> None:
    y, _ = _case()
    y[0, 0, 0] *= 1e4
    usual = np.sqrt(np.mean(y**2))
    budget = replace(_budget(y, 0.0), relative_to="tensor")
    budget.rows[0, 0, 0] = 0.5 * usual
    assert uncertain(budget) == 0.0, "half of the usual row, and a hundredth of its own"
    budget.rows[0, 1, 0] = 0.5 * usual
    assert uncertain(budget) > 0


def test_root_mean_square_does_not_overflow() -> None:
    assert root_mean_square(np.asarray([3e200, 4e200])) == pytest.approx(5e200 / np.sqrt(2))
    assert root_mean_square(np.asarray([3e-200, 4e-200])) == pytest.approx(5e-200 / np.sqrt(2))
    large, small = np.asarray([0.0, 1.0, 2.0, 1e308]), np.asarray([0.0, 0.0, 4.0, 1e-10])
    np.testing.assert_array_equal(over(large, small), [0.0, np.inf, 0.5, np.inf])


def test_nothing_to_measure() -> None:
    y = np.zeros((0, 2, 3, 4))
    assert all(_found(y, _budget(y)).values())
    assert uncertain(_budget(y)) == 0.0
