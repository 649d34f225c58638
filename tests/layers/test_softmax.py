"""Scores to weights; a row that sees nothing is all zeros."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import softmax, softmax_vjp
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS, says
from tests.layers.places import Place
from tests.tolerances import EXACT, FLOAT64, close

T, S = 5, 7


def test_by_hand() -> None:
    scores = np.log([[1.0, 2.0, 5.0]])
    close(softmax(scores), np.array([[0.125, 0.25, 0.625]]), FLOAT64)
    close(softmax(scores, np.array([[True, False, True]])), np.array([[1 / 6, 0.0, 5 / 6]]), FLOAT64)
    close(softmax(scores, np.array([[False, True, False]])), np.array([[0.0, 1.0, 0.0]]), EXACT)
    close(softmax(scores, np.array([[False, False, False]])), np.zeros((1, 3)), EXACT)


@given(SEEDS)
def test_visible_weights_are_positive_and_sum_to_one(rng: np.random.Generator) -> None:
    scores, mask = rng.normal(size=(2, 3, T, S)), rng.random((3, T, S)) < 0.3
    weights = softmax(scores, mask)
    assert np.array_equal(weights > 0, np.broadcast_to(mask, weights.shape))
    close(weights.sum(axis=-1), np.broadcast_to(mask.any(axis=-1).astype(float), (2, 3, T)), FLOAT64)


@given(SEEDS, st.floats(-1000, 1000))
def test_a_shift_of_all_scores_of_a_row_changes_nothing(rng: np.random.Generator, shift: float) -> None:
    # multiples of 2⁻¹⁰, so that adding the shift loses no bit
    scores, shift = np.round(rng.normal(size=(T, S)) * 1024) / 1024, round(shift * 1024) / 1024
    shifts = shift * np.arange(T)[:, None]
    close(softmax(scores + shifts), softmax(scores), EXACT)
    mask = rng.random((T, S)) < 0.5
    close(softmax(scores + shifts, mask), softmax(scores, mask), EXACT)


@given(SEEDS, st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e300]))
def test_scores_of_masked_keys_are_never_used(rng: np.random.Generator, hidden: float) -> None:
    scores, mask = rng.normal(size=(T, S)), rng.random((T, S)) < 0.5
    close(softmax(np.where(mask, scores, hidden), mask), softmax(scores, mask), EXACT)


def test_whether_a_row_sees_anything_is_decided_on_the_mask() -> None:
    lowest = np.full((2, 3), np.finfo(np.float64).min)
    mask = np.array([[True, True, True], [False, False, False]])
    close(softmax(lowest, mask), np.array([[1 / 3] * 3, [0.0] * 3]), FLOAT64)


def test_extreme_scores() -> None:
    scores = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4 - 1e-3 * 1024], [-math.inf, 3.0, 3.0]])
    small = 1 / (2 + math.exp(-1.024))
    expected = np.array([[1.0, 0.0, 0.0], [small, small, 1 - 2 * small], [0.0, 0.5, 0.5]])
    close(softmax(scores), expected, 1e-12)
    close(softmax(scores, np.ones((1, 3), bool)), expected, 1e-12)


def test_no_keys_have_no_weights() -> None:
    for mask in (None, np.ones((5, 0), bool)):
        close(softmax(np.zeros((5, 0)), mask), np.zeros((5, 0)), EXACT, empty=True)
        close(softmax_vjp(np.zeros((5, 0)), np.zeros((5, 0)), mask)[0], np.zeros((5, 0)), EXACT, empty=True)
    with says(ValueError, "softmax: mask: got shape (4, 0), expected one that broadcasts to (5, 0)"):
        softmax(np.zeros((5, 0)), np.ones((4, 0), bool))


def test_a_derivative_needs_the_scores_or_the_weights() -> None:
    with says(ValueError, "softmax_vjp: scores, saved: got None twice, expected the scores or softmax(scores, mask)"):
        softmax_vjp(np.ones((T, S)), None)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_a_mask_that_is_not_boolean(dtype: type, xp: Place) -> None:
    mask = np.ones((T, S), dtype)
    with says(ValueError, f'softmax: mask: got dtype {xp.put(mask).dtype}, expected boolean (True means "may see")'):
        softmax(np.zeros((T, S)), mask)


@given(SEEDS)
def test_precision(rng: np.random.Generator) -> None:
    scores, mask = rng.normal(size=(T, S)) * 5, rng.random((T, S)) < 0.6
    expected = [by_loops.softmax(row, seen) for row, seen in zip(exact(scores), mask, strict=True)]
    close(softmax(scores, mask), rounded(expected), FLOAT64)
    expected = [by_loops.softmax(row, [True] * S) for row in exact(scores)]
    close(softmax(scores), rounded(expected), FLOAT64)
