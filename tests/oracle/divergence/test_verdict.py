"""Rows and single numbers that are off, in the type that a run computes in."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle.divergence.expected_values import SUMMATION, Expected, compare, growth
from refdiff.oracle.divergence.first_divergence import precision_of

U = 2.0**-24


def drawn(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 5, 64))


def test_one_number_that_is_off() -> None:
    x = drawn()
    mine = x.copy()
    mine[1, 4, 7] += 20 * U
    assert compare(mine, Expected(x, np.zeros((3, 5)), unit=U)).worst == (1, 4)
    assert not compare(mine, Expected(x, np.zeros((3, 5)), unit=U)).ok
    assert compare(mine, Expected(x, np.full((3, 5), (20 * U) ** 2), unit=U)).ok


@pytest.mark.parametrize("growth", [10 * U, 100 * U])
def test_a_large_number_may_be_off_by_its_own_growth(growth: float) -> None:
    """One activation thousands of times the others, as trained models have."""
    x = np.concatenate([drawn()] * 64, axis=-1)
    x[1, 2, 3] = 3000
    mine = x.copy()
    mine[1, 2, 3] *= 1 + 2.5 * growth
    none = np.zeros((3, 5))
    assert not compare(mine, Expected(x, none, unit=U)).ok
    assert compare(mine, Expected(x, none, growth=growth, unit=U)).ok
    mine[1, 2, 3] = x[1, 2, 3] * (1 + 30 * growth)
    assert compare(mine, Expected(x, none, growth=growth, unit=U)).worst == (1, 2)
    assert not compare(mine, Expected(x, none, growth=growth, unit=U)).ok
    mine = x.copy()
    mine[0, 2, 63] += 60 * growth * np.sqrt(np.mean(x[0, 2] ** 2))
    assert compare(mine, Expected(x, none, growth=growth, unit=U)).worst == (0, 2)
    assert not compare(mine, Expected(x, none, growth=growth, unit=U)).ok


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_must_stand_in_the_same_places(value: float) -> None:
    x = drawn()
    mine = x.copy()
    mine[0, 1, 2] = value
    found = compare(mine, Expected(x, np.zeros((3, 5)), unit=U))
    assert found.ratio == np.inf
    assert found.worst == (0, 1)
    assert compare(mine, Expected(mine.copy(), np.zeros((3, 5)), unit=U)).ok
    assert np.isnan(value) or compare(-mine, Expected(mine, np.zeros((3, 5)), unit=U)).ratio == np.inf
    hidden = np.zeros(x.shape, bool)
    hidden[0, 1, 2] = True
    assert compare(mine, Expected(x, np.zeros((3, 5)), hidden, unit=U)).ok


def test_the_coarsest_of_a_quarter() -> None:
    low, high = drawn().astype(ml_dtypes.bfloat16), drawn(1).astype(np.float32)
    assert precision_of({"a": low, "b": high, "c": high, "d": high}) == "bfloat16"
    assert precision_of({"a": low, "b": high, "c": high, "d": high, "e": high}) == "float32"
    assert precision_of({"a": drawn()}) == "float64"


@pytest.mark.parametrize("mean", [0.0, 0.1, 1.0])
def test_sums_in_float32_are_off_by_what_is_said(mean: float) -> None:
    n, u = 193, 2.0**-24
    t = np.random.default_rng(7).normal(mean, 1.0, (3000, n)).astype(np.float32)
    exact = t.astype(np.float64)
    off = np.cumsum(t, axis=-1)[:, -1] - exact.sum(-1)
    said = SUMMATION**2 * u**2 * n * (exact**2).sum(-1) + (growth(n, u) * exact.sum(-1)) ** 2
    assert (off**2).mean() == pytest.approx(said.mean(), rel=0.25)
