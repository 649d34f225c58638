"""y = x / √(mean x² + ε) · w."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import rms_norm
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS, rows_of_all_sizes
from tests.tolerances import FLOAT64, LIMIT, close

RNG = np.random.default_rng(5)
D = 7
WEIGHT = RNG.normal(size=D)


def test_by_hand() -> None:
    x = np.array([[1.0, 7.0], [-7.0, 1.0]])  # the mean of the squares is 25
    close(rms_norm(x, None, 0.0), np.array([[0.2, 1.4], [-1.4, 0.2]]), FLOAT64)
    close(rms_norm(x, np.array([10.0, -1.0]), 0.0), np.array([[2.0, -1.4], [-14.0, -0.2]]), FLOAT64)
    close(rms_norm(np.array([[1.0, 1.0, 1.0]]), None, 3.0), np.array([[0.5, 0.5, 0.5]]), FLOAT64)
    close(rms_norm(np.zeros((1, 3)), None, 1e-6), np.zeros((1, 3)), FLOAT64)


@given(SEEDS)
def test_mean_square_is_one_without_epsilon_and_less_with_it(rng: np.random.Generator) -> None:
    x = rows_of_all_sizes(rng, 2, 3, D)
    close(np.mean(rms_norm(x, None, 0.0) ** 2, axis=-1), np.ones((2, 3)), FLOAT64)
    m = np.mean(x**2, axis=-1)
    close(np.mean(rms_norm(x, None, 1e-5) ** 2, axis=-1)[..., None], (m / (m + 1e-5))[..., None], FLOAT64)


@given(SEEDS, st.floats(1e-3, 1e3), st.sampled_from([-1, 1]))
def test_is_homogeneous_of_degree_zero_as_epsilon_vanishes(rng: np.random.Generator, c: float, sign: int) -> None:
    x = rng.normal(size=(3, D))
    close(rms_norm(sign * c * x, WEIGHT, 1e-20), sign * rms_norm(x, WEIGHT, 1e-20), LIMIT)
    # at any ε, when ε is scaled with the square of x
    close(rms_norm(sign * c * x, WEIGHT, 0.3 * c * c), sign * rms_norm(x, WEIGHT, 0.3), FLOAT64)


@given(SEEDS)
def test_rotating_the_input_rotates_the_result(rng: np.random.Generator) -> None:
    x, turn = rng.normal(size=(3, D)), np.linalg.qr(rng.normal(size=(D, D)))[0]
    close(rms_norm(x @ turn, None, 1e-3), rms_norm(x, None, 1e-3) @ turn, FLOAT64)


@given(SEEDS, st.sampled_from([0.0, 1e-12, 1e-5, 0.1]))
def test_precision(rng: np.random.Generator, eps: float) -> None:
    x, weight = rows_of_all_sizes(rng, 2, 3, D), rng.normal(size=D)
    close(rms_norm(x, weight, eps), rounded(by_loops.rms_norm(exact(x), exact(weight), eps)), FLOAT64)
