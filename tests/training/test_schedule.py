"""Learning rates at the ends and in the middle, and the length of gradients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from refdiff.training.schedule import add, clip, global_norm, learning_rate


def test_cosine_at_its_corners() -> None:
    rates = [learning_rate(step, peak=2.0, steps=110, warmup=10) for step in range(111)]
    np.testing.assert_allclose(rates[:10], 0.2 * np.arange(1, 11))
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.1)
    assert rates[110] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_constant_after_the_warm_up() -> None:
    rates = [learning_rate(step, peak=3.0, steps=9, warmup=2, schedule="constant") for step in range(9)]
    assert rates == [1.5] + 8 * [3.0]


def test_no_warm_up_and_past_the_end() -> None:
    assert learning_rate(0, peak=1.0, steps=4, warmup=0) == 1.0
    assert learning_rate(9, peak=1.0, steps=4, warmup=0) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="cosine, constant"):
        learning_rate(0, peak=1.0, steps=4, warmup=0, schedule="linear")


def test_clipping_keeps_directions_and_short_gradients() -> None:
    grads = {"a": np.array([3.0]), "b": np.array([[0.0, 4.0]])}
    assert global_norm(grads) == 5.0
    shorter, norm = clip(grads, 1.0)
    assert norm == 5.0
    np.testing.assert_allclose(shorter["b"], [[0.0, 0.8]], rtol=1e-6)
    same, _ = clip(grads, 6.0)
    assert same is grads


def test_gradients_add_up_in_their_nests() -> None:
    one = {"layers": [{"w": np.array([1.0, 2.0])}]}
    total = add(add(None, one, 0.5), {"layers": [{"w": np.array([3.0, 4.0])}]}, 0.5)
    np.testing.assert_array_equal(total["layers"][0]["w"], [2.0, 3.0])
    np.testing.assert_array_equal(one["layers"][0]["w"], [1.0, 2.0])
