"""y = x / √(mean x² + ε) · w."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import rms_norm
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS, rows_of_all_sizes
from tests.tolerances import FLOAT64, close


def test_by_hand() -> None:
    x = np.array([[1.0, 7.0], [-7.0, 1.0]])  # the mean of the squares is 25
    close(rms_norm(x, None, 0.0), np.array([[0.2, 1.4], [-1.4, 0.2]]), FLOAT64)
    close(rms_norm(x, np.array([10.0, -1.0]), 0.0), np.array([[2.0, -1.4], [-14.0, -0.2]]), FLOAT64)
    close(rms_norm(np.array([[1.0, 1.0, 1.0]]), None, 3.0), np.array([[0.5, 0.5, 0.5]]), FLOAT64)
    close(rms_norm(np.zeros((1, 3)), None, 1e-6), np.zeros((1, 3)), FLOAT64)


@given(SEEDS, st.sampled_from([0.0, 1e-12, 1e-5, 0.1]))
def test_precision(rng: np.random.Generator, eps: float) -> None:
    x, weight = rows_of_all_sizes(rng, 2, 3, 7), rng.normal(size=7)
    close(rms_norm(x, weight, eps), rounded(by_loops.rms_norm(exact(x), exact(weight), eps)), FLOAT64)
