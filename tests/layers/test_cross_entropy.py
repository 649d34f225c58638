"""−log softmax(z)[target]."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import cross_entropy, cross_entropy_vjp
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS
from tests.tolerances import EXACT, FLOAT64, close

RNG = np.random.default_rng(19)
V = 7
LOGITS = RNG.normal(size=(2, 5, V)) * 3


def test_by_hand() -> None:
    logits = np.log([[1.0, 3.0], [4.0, 1.0], [1.0, 1.0]])
    close(cross_entropy(logits, np.array([1, 1, 0])), np.float64(math.log(4 / 3 * 5 * 2) / 3), FLOAT64)
    close(cross_entropy(logits, np.array([-100, 1, 0])), np.float64(math.log(5 * 2) / 2), FLOAT64)
    assert np.shape(cross_entropy(logits, np.array([1, 1, 0]))) == ()


def test_no_target_that_counts() -> None:
    assert math.isnan(cross_entropy(LOGITS[0], np.full(5, -100)))
    assert math.isnan(cross_entropy(np.zeros((0, V)), np.zeros(0, np.int64)))


@given(SEEDS, st.floats(-1000, 1000))
def test_a_shift_of_all_logits_of_a_row_changes_nothing(rng: np.random.Generator, shift: float) -> None:
    logits, targets = np.round(rng.normal(size=(5, V)) * 1024) / 1024, rng.integers(0, V, 5)
    shifts = round(shift * 1024) / 1024 * np.arange(5)[:, None]
    close(cross_entropy(logits + shifts, targets), cross_entropy(logits, targets), EXACT)


@given(SEEDS, st.floats(-10_000, 10_000))
def test_a_shift_of_all_logits_of_a_row_does_not_change_the_gradient(rng: np.random.Generator, shift: float) -> None:
    logits, targets = np.round(rng.normal(size=(5, V)) * 1024) / 1024, rng.integers(0, V, 5)
    shifts = round(shift * 1024) / 1024 * np.arange(5)[:, None]
    (moved, _), (gradient, _) = (cross_entropy_vjp(np.array(1.3), z, targets) for z in (logits + shifts, logits))
    close(moved, gradient, EXACT)


@given(SEEDS, st.integers(-100, -1) | st.integers(0, V - 1))
def test_ignored_targets_are_as_good_as_none(rng: np.random.Generator, ignored: int) -> None:
    logits, targets = rng.normal(size=(5, V)), rng.integers(0, V, 5)
    targets[1] = ignored
    keep = targets != ignored
    if not keep.any():
        return
    loss = cross_entropy(logits, targets, ignore_index=ignored)
    close(loss, cross_entropy(logits[keep], targets[keep], ignore_index=-200), FLOAT64)
    hidden = np.where(keep[:, None], logits, 1e4 * rng.normal(size=V))
    close(cross_entropy(hidden, targets, ignore_index=ignored), loss, EXACT)


def test_extreme_logits() -> None:
    logits = np.array([[1e4, -1e4, 0.0], [-math.inf, 0.0, 0.0]])
    assert cross_entropy(logits, np.array([1, 1])) == (2e4 + math.log(2)) / 2
    assert cross_entropy(logits, np.array([0, 0])) == math.inf


@given(SEEDS)
def test_precision(rng: np.random.Generator) -> None:
    logits, targets = rng.normal(size=(5, V)) * 3, rng.integers(0, V, 5)
    targets[3] = -100
    expected = by_loops.cross_entropy(exact(logits), targets, -100)
    close(cross_entropy(logits, targets), rounded(expected), FLOAT64)
