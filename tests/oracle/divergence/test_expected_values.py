"""What points should be, and how far off rounding may bring them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from refdiff.oracle.divergence import expected_values
from refdiff.oracle.divergence.expected_values import ONE, ROUNDING, SUMMATION, Sampled, growth
from refdiff.oracle.divergence.noise_samples import MEMBERS

U = 2.0**-8


def run(visit: Any, *, maps: bool = False) -> None:
    """y = 3 x, z = y − 2.9 x: rounding of y counts thirty times in z."""
    x = visit("x", np.linspace(1.0, 2.0, 4000).reshape(2, 2000))
    y = visit("y", 3 * x)
    visit("z", y - 2.9 * x)
    visit("end", np.array(1.0), doubt=lambda unit: 5 * unit)


def expect(*args: Any, **how: Any) -> dict[str, Sampled]:
    return expected_values.expect(*args, axes=lambda path: "BD", **how)


def spreads(*args: Any, **how: Any) -> dict[str, np.ndarray]:
    return {path: point.spread for path, point in expect(*args, **how).items()}


def test_free_and_local() -> None:
    x = np.linspace(1.0, 2.0, 4000).reshape(2, 2000)
    given = {"y": np.full((2, 2000), 3.5)}
    free = expect(run, given, U, local=False)
    assert np.array_equal(free["z"].value, 3 * x - 2.9 * x)
    local = expect(run, given, U, local=True)
    assert np.array_equal(local["y"].value, 3 * x)
    assert np.array_equal(local["z"].value, 3.5 - 2.9 * x)


def test_spread_of_roundings() -> None:
    x = np.linspace(1.0, 2.0, 4000).reshape(2, 2000)
    spread = spreads(run, {}, U, local=False)
    square = (ROUNDING * U) ** 2 * (x**2).mean(-1)
    assert np.allclose(spread["x"], 0)
    assert np.allclose(spread["y"], 9 * square, rtol=0.15)
    assert np.allclose(spread["z"], (9 + 0.1**2) * square, rtol=0.15)
    given = {"x": x, "y": 3 * x}
    assert np.allclose(spreads(run, given, U, local=True)["z"], (9 + 2.9**2) * square, rtol=0.15)


def test_doubts_add_up() -> None:
    assert spreads(run, {}, U, local=False)["end"] == pytest.approx((5 * U) ** 2)


def test_hidden_entries_do_not_count() -> None:
    hidden = np.array([[False, True, False]])

    def with_hidden(visit: Any, *, maps: bool = False) -> None:
        x = visit("x", np.array([[1.0, 2.0, 3.0]]))
        x = visit("y", x * np.array([1, 1e9, 1]), hidden=hidden)
        visit("z", np.where(hidden, 0.0, x))

    found = expect(with_hidden, {"y": np.array([[1.0, np.nan, 3.0]])}, U, local=True)
    assert found["y"].hidden is hidden
    assert found["y"].spread < 1e-2
    assert found["z"].value.tolist() == [[1.0, 0.0, 3.0]]


def test_few_numbers_get_a_margin() -> None:
    """Of two thousand numbers and of one, the spread is hardly ever below what it is on average."""

    def one(visit: Any, *, maps: bool = False) -> None:
        visit("y", 1.0 * visit("x", np.arange(1.0, 501.0)[:, None]))

    spread = spreads(one, {}, U, local=False)["y"]
    few = int((spread < (ROUNDING * U * np.arange(1.0, 501.0)) ** 2).sum())
    assert few <= 5
    assert MEMBERS == 6


def test_partial_sums_over_all_orders() -> None:
    """The mean of Σ s² that `growth` and `SUMMATION` are made of."""
    t = np.array([3.0, -1.0, 4.0, 1.0, -5.0, 9.0])
    n, orders = len(t), np.array(list(itertools.permutations(t)))
    mean = (np.cumsum(orders, axis=-1) ** 2).sum(-1).mean()
    assert mean == pytest.approx((n + 1) * ((t**2).sum() / 6 + t.sum() ** 2 / 3))
    u = 2.0**-24
    assert pytest.approx(ONE / 6**0.5) == SUMMATION
    assert growth(n, U) ** 2 == pytest.approx((ONE * u) ** 2 * (n - 1) / 3)  # the first term is a sum by itself
    assert growth(1, U) == growth(0, U) == 0
    assert growth(5, 2.0**-50) == pytest.approx(ONE * 2.0**-50 * (4 / 3) ** 0.5)


def test_one_rounding() -> None:
    x = 2.0 ** np.random.default_rng(0).uniform(0, 8, 100_000)
    off = (x.astype(np.float32) / x - 1) * 2.0**24
    assert off.std() == pytest.approx(ONE, rel=0.03)


@pytest.mark.parametrize("mean", [0.0, 0.1, 1.0])
def test_sums_in_float32_are_off_by_what_is_said(mean: float) -> None:
    n, u = 193, 2.0**-24
    t = np.random.default_rng(7).normal(mean, 1.0, (3000, n)).astype(np.float32)
    exact = t.astype(np.float64)
    off = np.cumsum(t, axis=-1)[:, -1] - exact.sum(-1)
    said = SUMMATION**2 * u**2 * n * (exact**2).sum(-1) + (growth(n, u) * exact.sum(-1)) ** 2
    assert (off**2).mean() == pytest.approx(said.mean(), rel=0.25)


def test_the_larger_of_both_kinds() -> None:
    """Forty rows that are equal: of their mean, rounding of each for itself shows a fortieth."""

    def mean(visit: Any, *, maps: bool = False) -> None:
        x = visit("x", np.repeat(np.linspace(1.0, 2.0, 500)[None], 40, 0))
        visit("y", x.mean(axis=0, keepdims=True))

    of_one = (ROUNDING * U) ** 2 * (np.linspace(1.0, 2.0, 500) ** 2).mean()
    assert spreads(mean, {}, U, local=False)["y"] == pytest.approx(of_one, rel=0.2)


def test_growth_goes_on_where_a_point_is_not_given() -> None:
    n = 10_001  # so that growth is far above the rounding of a value

    def summed(visit: Any, *, maps: bool = False) -> None:
        x = visit("x", np.linspace(0.9, 1.1, 500)[None], terms=n)
        visit("y", 1.0 * x)

    given = {"x": np.linspace(0.9, 1.1, 500)[None]}
    u = 2.0**-24
    one = (ROUNDING + SUMMATION * 500**0.5) * u
    found = expect(summed, {}, u, local=True)
    assert (found["x"].growth, found["y"].growth) == (growth(n, u), 0.0)
    for paths, local, noise in (({}, True, one + growth(n, u)), (given, True, one), (given, False, one + growth(n, u))):
        spread = spreads(summed, paths, u, local=local)
        assert spread["x"] == 0
        assert np.allclose(spread["y"], noise**2, rtol=0.2, atol=0)
