"""y = x Wᵀ + b."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import linear
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS
from tests.tolerances import FLOAT64, close

RNG = np.random.default_rng(3)
IN, OUT = 5, 7
W = RNG.normal(size=(OUT, IN))


def test_by_hand() -> None:
    weight = np.array([[3.0, 4.0], [5.0, 6.0], [7.0, -8.0]])
    close(linear(np.array([[1.0, 2.0]]), weight), np.array([[11.0, 17.0, -9.0]]), FLOAT64)
    bias = np.array([0.5, 100.0, 9.0])
    close(linear(np.array([[1.0, 2.0]]), weight, bias), np.array([[11.5, 117.0, 0.0]]), FLOAT64)


@given(SEEDS, st.floats(-3, 3))
def test_is_linear_in_x_and_in_the_weight(rng: np.random.Generator, c: float) -> None:
    x, y, v = rng.normal(size=(2, 3, IN)), rng.normal(size=(2, 3, IN)), rng.normal(size=(OUT, IN))
    close(linear(x + c * y, W) - c * linear(y, W), linear(x, W), 10 * FLOAT64)
    close(linear(x, W + c * v) - c * linear(x, v), linear(x, W), 10 * FLOAT64)


@given(SEEDS)
def test_precision(rng: np.random.Generator) -> None:
    x, weight, bias = rng.normal(size=(3, IN)), rng.normal(size=(OUT, IN)), rng.normal(size=OUT)
    expected = by_loops.linear(exact(x), exact(weight), exact(bias))
    close(linear(x, weight, bias), rounded(expected), FLOAT64)
