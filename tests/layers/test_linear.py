"""y = x Wᵀ + b."""

import numpy as np
from hypothesis import given

from refdiff.layers import linear
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS
from tests.tolerances import FLOAT64, close


def test_by_hand() -> None:
    weight = np.array([[3.0, 4.0], [5.0, 6.0], [7.0, -8.0]])
    close(linear(np.array([[1.0, 2.0]]), weight), np.array([[11.0, 17.0, -9.0]]), FLOAT64)
    bias = np.array([0.5, 100.0, 9.0])
    close(linear(np.array([[1.0, 2.0]]), weight, bias), np.array([[11.5, 117.0, 0.0]]), FLOAT64)


@given(SEEDS)
def test_precision(rng: np.random.Generator) -> None:
    x, weight, bias = rng.normal(size=(3, 5)), rng.normal(size=(7, 5)), rng.normal(size=7)
    expected = by_loops.linear(exact(x), exact(weight), exact(bias))
    close(linear(x, weight, bias), rounded(expected), FLOAT64)
