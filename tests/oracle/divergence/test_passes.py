"""What points should be, and how far off rounding may bring them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle.divergence.passes import MEMBERS, ROUNDING, expect

U = 2.0**-8


def run(visit: Any, *, maps: bool = False) -> None:
    """y = 3 x, z = y − 2.9 x: rounding of y counts thirty times in z."""
    x = visit("x", np.linspace(1.0, 2.0, 4000).reshape(2, 2000))
    y = visit("y", 3 * x)
    visit("z", y - 2.9 * x)
    visit("end", np.array(1.0), doubt=lambda unit: 5 * unit)


def test_free_and_local() -> None:
    x = np.linspace(1.0, 2.0, 4000).reshape(2, 2000)
    given = {"y": np.full((2, 2000), 3.5)}
    free = expect(run, given, U, local=False)
    assert np.array_equal(free.values["z"], 3 * x - 2.9 * x)
    local = expect(run, given, U, local=True)
    assert np.array_equal(local.values["y"], 3 * x)
    assert np.array_equal(local.values["z"], 3.5 - 2.9 * x)


def test_spread_of_roundings() -> None:
    x = np.linspace(1.0, 2.0, 4000).reshape(2, 2000)
    spread = expect(run, {}, U, local=False).spread
    square = (ROUNDING * U) ** 2 * (x**2).mean(-1)
    assert np.allclose(spread["x"], 0)
    assert np.allclose(spread["y"], 9 * square, rtol=0.15)
    assert np.allclose(spread["z"], (9 + 0.1**2) * square, rtol=0.15)
    given = {"x": x, "y": 3 * x}
    assert np.allclose(expect(run, given, U, local=True).spread["z"], (9 + 2.9**2) * square, rtol=0.15)


def test_doubts_add_up() -> None:
    assert expect(run, {}, U, local=False).spread["end"] == pytest.approx((5 * U) ** 2)


def test_hidden_entries_do_not_count() -> None:
    hidden = np.array([[False, True, False]])

    def with_hidden(visit: Any, *, maps: bool = False) -> None:
        x = visit("x", np.array([[1.0, 2.0, 3.0]]))
        x = visit("y", x * np.array([1, 1e9, 1]), hidden=hidden)
        visit("z", np.where(hidden, 0.0, x))

    found = expect(with_hidden, {"y": np.array([[1.0, np.nan, 3.0]])}, U, local=True)
    assert found.hidden["y"] is hidden
    assert found.spread["y"] < 1e-2
    assert found.values["z"].tolist() == [[1.0, 0.0, 3.0]]


def test_few_numbers_get_a_margin() -> None:
    """Of two thousand numbers and of one, the spread is hardly ever below what it is on average."""

    def one(visit: Any, *, maps: bool = False) -> None:
        visit("y", 1.0 * visit("x", np.arange(1.0, 501.0)[:, None]))

    spread = expect(one, {}, U, local=False).spread["y"]
    few = int((spread < (ROUNDING * U * np.arange(1.0, 501.0)) ** 2).sum())
    assert few <= 5
    assert MEMBERS == 6


def test_paths_that_come_again_are_numbered() -> None:
    def twice(visit: Any, *, maps: bool = False) -> None:
        visit("x", visit("x", np.ones(3)) + 1)

    assert expect(twice, {}, U, local=False).values.keys() == {"x", "x[1]"}
