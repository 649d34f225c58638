"""λ_init by depth, λ of v1 from four learned vectors, λ of v2 from every token."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import diff_lambda, diff_lambda_v2, lambda_init
from tests.layers import by_loops
from tests.layers.by_loops import DIGITS, exact, rounded
from tests.layers.inputs import SEEDS, says
from tests.tolerances import EXACT, FLOAT64, close

d = 7


def test_by_hand() -> None:
    three, two, other = np.array([math.log(3), 0.0]), np.array([5.0, math.log(2) / 7]), np.array([1.0, 7.0])
    # e^(log 3 · 1) − e^(5 · 0 + log 2) + 0.2 = 3 − 2 + 0.2
    close(diff_lambda(three, other, two, np.array([0.0, 7.0]), 0.2), np.float64(1.2), FLOAT64)
    assert np.shape(diff_lambda(three, other, two, other, 0.2)) == ()


@pytest.mark.no_arrays
@given(st.integers(0, 200))
def test_lambda_init_by_layer(layer: int) -> None:
    here, after = lambda_init(layer), lambda_init(layer + 1)
    assert 0.2 - 1e-15 < here <= after <= 0.8
    # what is left to 0.8 shrinks by the same factor in every layer
    assert abs((0.8 - after) - math.exp(-0.3) * (0.8 - here)) < 1e-15
    # the paper counts layers from 1
    number = layer + 1
    exact_value = DIGITS.mpf(8) / 10 - DIGITS.mpf(6) / 10 * DIGITS.exp(-DIGITS.mpf(3) / 10 * (number - 1))
    assert abs(here - float(exact_value)) < 1e-15


@given(SEEDS)
def test_bounds(rng: np.random.Generator) -> None:
    q1, k1, q2, k2 = rng.normal(size=(4, d))
    above = float(np.exp(q1 @ k1))
    # each exponential is positive: λ lies between the two one-sided values
    assert 0.2 - float(np.exp(q2 @ k2)) < diff_lambda(q1, k1, q2, k2, 0.2) < 0.2 + above


@pytest.mark.no_arrays
def test_a_layer_below_the_first() -> None:
    with says(ValueError, "lambda_init: layer: got -1, expected 0 or more"):
        lambda_init(-1)


@given(SEEDS, st.floats(0, 1))
def test_precision(rng: np.random.Generator, start: float) -> None:
    vectors = rng.normal(size=(4, d)) * 0.5
    expected = by_loops.diff_lambda(*map(exact, vectors), start)
    assert abs(diff_lambda(*vectors, start) - rounded(expected)) < 1e-14 * math.exp(
        max(0.0, vectors[0] @ vectors[1], vectors[2] @ vectors[3])
    )


def test_v2_by_hand() -> None:
    x = np.array([[[math.log(3), 0.0], [0.0, -math.log(7)], [0.0, 0.0]]])
    # σ(log 3) = 3/4, σ(−log 7) = 1/8; heads on the first axis after the batch, tokens on the next
    expected = np.array([[[[3 / 4], [1 / 2], [1 / 2]], [[1 / 2], [1 / 8], [1 / 2]]]])
    close(diff_lambda_v2(x, np.eye(2)), expected, FLOAT64)


@given(SEEDS, st.floats(-2, 3))
def test_v2_lies_between_0_and_1(rng: np.random.Generator, size: float) -> None:
    x, weight = rng.normal(size=(2, 5, d)), rng.normal(size=(3, d)) * 10.0**size
    lambda_ = diff_lambda_v2(x, weight)
    assert lambda_.shape == (2, 3, 5, 1)
    assert np.all((lambda_ >= 0) & (lambda_ <= 1))
    # −x weighs the maps the other way round
    assert np.all(np.abs(diff_lambda_v2(-x, weight) - (1 - lambda_)) < 1e-15)
    close(diff_lambda_v2(x, np.zeros((3, d))), np.full((2, 3, 5, 1), 0.5), EXACT)


@given(SEEDS)
def test_v2_precision(rng: np.random.Generator) -> None:
    x, weight = rng.normal(size=(1, 3, d)), rng.normal(size=(2, d))
    expected = rounded(by_loops.diff_lambda_v2(exact(x), exact(weight)))[..., None]
    close(diff_lambda_v2(x, weight), expected, 10 * FLOAT64)
