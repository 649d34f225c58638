"""y = x Wᵀ + b."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import linear
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS, says
from tests.layers.places import Case
from tests.tolerances import FLOAT64, close

RNG = np.random.default_rng(3)
IN, OUT = 5, 7
W, BIAS = RNG.normal(size=(OUT, IN)), RNG.normal(size=OUT)
CASES = [
    Case("no bias", linear, (RNG.normal(size=(2, 3, IN)), W)),
    Case("bias", linear, (RNG.normal(size=(2, 3, IN)), W, BIAS)),
    Case("named as in a checkpoint", linear, (RNG.normal(size=(3, IN)),), {"weight": W, "bias": BIAS}),
    Case("one row", linear, (RNG.normal(size=IN), W, BIAS)),
    Case("empty", linear, (np.zeros((0, 3, IN)), W, BIAS)),
]


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


@pytest.mark.parametrize(
    ("x", "weight"), [((2, 7), (7, 5)), ((2, 5), (5,)), ((2, 5), (5, 5, 5)), ((), (7, 5)), ((2, 1), (7, 5))]
)
def test_shapes_that_do_not_fit(x: tuple[int, ...], weight: tuple[int, ...]) -> None:
    message = f"linear: weight has shape {weight}, x has shape {x}: the last axis of both must be equal"
    with says(ValueError, message):
        linear(np.zeros(x), np.zeros(weight))


@pytest.mark.parametrize("bias", [(5,), (1,), (), (1, 7)])
def test_a_bias_of_another_shape(bias: tuple[int, ...]) -> None:
    with says(ValueError, f"linear: bias has shape {bias}, but weight (7, 5) needs (7,)"):
        linear(np.zeros((2, 5)), W, np.zeros(bias))


@given(SEEDS)
def test_precision(rng: np.random.Generator) -> None:
    x, weight, bias = rng.normal(size=(3, IN)), rng.normal(size=(OUT, IN)), rng.normal(size=OUT)
    expected = by_loops.linear(exact(x), exact(weight), exact(bias))
    close(linear(x, weight, bias), rounded(expected), FLOAT64)
