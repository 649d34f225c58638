"""By hand, and what holds for any scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refdiff.generation import processors

INF = np.inf
SCORES = np.array([[1.0, -2.0, 3.0, 0.0, -INF], [0.5, 0.5, -0.5, 4.0, 1.0]])
IDS = np.array([[1, 2, 1], [3, 0, 3]])


def test_sequence_bias_by_hand() -> None:
    got = processors.sequence_bias(SCORES, IDS, {(0,): 2.0, (1, 2): -1.0, (0, 3, 2): 5.0, (9, 9, 9, 9, 1): 7.0})
    np.testing.assert_array_equal(got, [[3.0, -2.0, 2.0, 0.0, -INF], [2.5, 0.5, 4.5, 4.0, 1.0]])


def test_biases_of_several_sequences_add_up() -> None:
    got = processors.sequence_bias(SCORES, IDS, {(3,): 1.0, (1, 3): 1.0, (2, 1, 3): 1.0})
    np.testing.assert_array_equal(got[:, 3], [3.0, 5.0])


def test_bad_words_by_hand() -> None:
    got = processors.bad_words(SCORES, IDS, [[4], [1, 2], [0, 3, 0]])
    np.testing.assert_array_equal(got, [[1.0, -2.0, -INF, 0.0, -INF], [-INF, 0.5, -0.5, 4.0, -INF]])


def test_repetition_penalty_by_hand() -> None:
    got = processors.repetition_penalty(SCORES, IDS, 2.0)
    np.testing.assert_array_equal(got, [[1.0, -4.0, 1.5, 0.0, -INF], [0.25, 0.5, -0.5, 2.0, 1.0]])
    np.testing.assert_array_equal(processors.repetition_penalty(np.array([[-0.5]]), np.array([[0]]), 2.0), [[-1.0]])


def test_repetition_penalty_passes_over_padding() -> None:
    got = processors.repetition_penalty(SCORES, IDS, 2.0, skip=np.array([2, 0]))
    np.testing.assert_array_equal(got[0], [1.0, -4.0, 3.0, 0.0, -INF])


@pytest.mark.parametrize(
    ("size", "banned"),
    [(1, [[1, 2], [0, 3]]), (2, [[2], [0]]), (3, [[], []]), (4, [[], []])],
)
def test_no_repeat_ngram_by_hand(size: int, banned: list[list[int]]) -> None:
    got = processors.no_repeat_ngram(SCORES, IDS, size)
    for row in range(2):
        want = SCORES[row].copy()
        want[banned[row]] = -INF
        np.testing.assert_array_equal(got[row], want)


def test_no_ngram_is_ever_repeated() -> None:
    """The longest sequence without a repeated bigram over 3 letters has 10 of them; then everything is forbidden."""
    ids, rng = np.array([[0]]), np.random.default_rng(0)
    while True:
        z = processors.no_repeat_ngram(rng.normal(size=(1, 3)), ids, 2)
        if np.isneginf(z).all():
            break
        ids = np.append(ids, z.argmax(axis=1)[None], axis=1)
    pairs = list(zip(ids[0, :-1].tolist(), ids[0, 1:].tolist(), strict=True))
    assert len(pairs) == len(set(pairs)) <= 9


def test_suppress_tokens_ignores_ids_past_the_vocabulary() -> None:
    got = processors.suppress_tokens(SCORES, [0, 5, 700])
    np.testing.assert_array_equal(got, [[-INF, -2.0, 3.0, 0.0, -INF], [-INF, 0.5, -0.5, 4.0, 1.0]])


def test_min_new_tokens() -> None:
    np.testing.assert_array_equal(processors.min_new_tokens(SCORES, 3, 3, [2]), SCORES)
    assert np.isneginf(processors.min_new_tokens(SCORES, 2, 3, [2, 3])[:, 2:4]).all()


@given(arrays(np.float64, (2, 6), elements=st.floats(-50, 50)), arrays(np.int64, (2, 5), elements=st.integers(0, 5)))
def test_nothing_is_written_to_and_neutral_values_change_nothing(scores: np.ndarray, ids: np.ndarray) -> None:
    scores.flags.writeable = ids.flags.writeable = False
    for result in (
        processors.sequence_bias(scores, ids, {(1,): 0.0, (1, 2): 0.0}),
        processors.repetition_penalty(scores, ids, 1.0),
        processors.no_repeat_ngram(scores, ids, 6),
        processors.suppress_tokens(scores, []),
        processors.min_new_tokens(scores, 0, 0, [1]),
    ):
        np.testing.assert_array_equal(result, scores)
    assert np.isneginf(processors.bad_words(scores, ids, [[3]])[:, 3]).all()
