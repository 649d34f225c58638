"""Rows and single numbers that are off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.oracle.divergence.verdict import Expected, compare, counting

U = 2.0**-24


def drawn(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 5, 64))


@given(st.integers(0, 999))
def test_one_rounding_is_right(seed: int) -> None:
    x = drawn(seed)
    found = compare(x.astype(np.float32).astype(np.float64), Expected(x, np.zeros((3, 5))), U)
    assert found.ok
    assert found.ratio > 0


@given(st.integers(0, 999), st.sampled_from([1e-6, 1e-3, 1.0]))
def test_a_row_that_is_off(seed: int, by: float) -> None:
    x = drawn(seed)
    mine = x.copy()
    mine[2, 3] *= 1 + by
    found = compare(mine, Expected(x, np.zeros((3, 5))), U)
    assert not found.ok
    assert found.worst == (2, 3)
    assert found.error == pytest.approx(by * found.size)


def test_one_number_that_is_off() -> None:
    x = drawn()
    mine = x.copy()
    mine[1, 4, 7] += 20 * U
    assert compare(mine, Expected(x, np.zeros((3, 5))), U).worst == (1, 4)
    assert not compare(mine, Expected(x, np.zeros((3, 5))), U).ok
    assert compare(mine, Expected(x, np.full((3, 5), (20 * U) ** 2)), U).ok


@pytest.mark.parametrize("growth", [10 * U, 100 * U])
def test_a_large_number_may_be_off_by_its_own_growth(growth: float) -> None:
    """One activation thousands of times the others, as trained models have."""
    x = np.concatenate([drawn()] * 64, axis=-1)
    x[1, 2, 3] = 3000
    mine = x.copy()
    mine[1, 2, 3] *= 1 + 2.5 * growth
    none = np.zeros((3, 5))
    assert not compare(mine, Expected(x, none), U).ok
    assert compare(mine, Expected(x, none, growth=growth), U).ok
    mine[1, 2, 3] = x[1, 2, 3] * (1 + 30 * growth)
    assert compare(mine, Expected(x, none, growth=growth), U).worst == (1, 2)
    assert not compare(mine, Expected(x, none, growth=growth), U).ok
    mine = x.copy()
    mine[0, 2, 63] += 60 * growth * np.sqrt(np.mean(x[0, 2] ** 2))
    assert compare(mine, Expected(x, none, growth=growth), U).worst == (0, 2)
    assert not compare(mine, Expected(x, none, growth=growth), U).ok


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_must_stand_in_the_same_places(value: float) -> None:
    x = drawn()
    mine = x.copy()
    mine[0, 1, 2] = value
    found = compare(mine, Expected(x, np.zeros((3, 5))), U)
    assert found.ratio == np.inf
    assert found.worst == (0, 1)
    assert compare(mine, Expected(mine.copy(), np.zeros((3, 5))), U).ok
    assert np.isnan(value) or compare(-mine, Expected(mine, np.zeros((3, 5))), U).ratio == np.inf
    hidden = np.zeros(x.shape, bool)
    hidden[0, 1, 2] = True
    assert compare(mine, Expected(x, np.zeros((3, 5)), hidden), U).ok


def test_zeros_and_nothing() -> None:
    zero = np.zeros((2, 4))
    assert compare(zero, Expected(zero, np.zeros(2)), U).ratio == 0
    assert not compare(zero + 1e-30, Expected(zero, np.zeros(2)), U).ok
    assert compare(np.zeros((2, 0)), Expected(np.zeros((2, 0)), np.zeros(2)), U).ok


def test_single_numbers() -> None:
    assert compare(np.array(0.5 + U), Expected(np.array(0.5), np.array(0.0)), U).ok
    assert not compare(np.array(0.5 + 9 * U), Expected(np.array(0.5), np.array(0.0)), U).ok


def test_how_many_numbers_count() -> None:
    assert counting(Expected(np.ones((2, 7)))).tolist() == [7, 7]
    assert counting(Expected(np.array([[1.0, 1e-9, 0, 0]]))).tolist() == [1]
    assert counting(Expected(np.ones((1, 4)), hidden=np.array([[True, False, False, True]]))).tolist() == [2]
    assert counting(Expected(np.array(3.0))) == 1
    assert counting(Expected(np.zeros((1, 4)))).tolist() == [1]
    assert counting(Expected(np.array([[np.inf, 2.0]]))).tolist() == [1]
