"""Processors by hand, the order of processors and warpers, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.generation import logits_process as processors
from refdiff.generation import sampling
from refdiff.generation.options import Options
from refdiff.generation.processors import LogitsProcessors

INF = np.inf
SCORES = np.array([[1.0, -2.0, 3.0, 0.0, -INF], [0.5, 0.5, -0.5, 4.0, 1.0]])
IDS = np.array([[1, 2, 1], [3, 0, 3]])


def test_sequence_bias_by_hand() -> None:
    got = processors.SequenceBiasLogitsProcessor({(0,): 2.0, (1, 2): -1.0, (0, 3, 2): 5.0, (9, 9, 9, 9, 1): 7.0})(
        IDS, SCORES
    )
    np.testing.assert_array_equal(got, [[3.0, -2.0, 2.0, 0.0, -INF], [2.5, 0.5, 4.5, 4.0, 1.0]])


def test_bad_words_by_hand() -> None:
    got = processors.NoBadWordsLogitsProcessor([[4], [1, 2], [0, 3, 0]])(IDS, SCORES)
    np.testing.assert_array_equal(got, [[1.0, -2.0, -INF, 0.0, -INF], [-INF, 0.5, -0.5, 4.0, -INF]])


def test_repetition_penalty_by_hand() -> None:
    got = processors.RepetitionPenaltyLogitsProcessor(2.0)(IDS, SCORES)
    np.testing.assert_array_equal(got, [[1.0, -4.0, 1.5, 0.0, -INF], [0.25, 0.5, -0.5, 2.0, 1.0]])
    got = processors.RepetitionPenaltyLogitsProcessor(2.0)(np.array([[0]]), np.array([[-0.5]]))
    np.testing.assert_array_equal(got, [[-1.0]])


def test_repetition_penalty_passes_over_padding() -> None:
    got = processors.RepetitionPenaltyLogitsProcessor(2.0, np.array([2, 0]))(IDS, SCORES)
    np.testing.assert_array_equal(got[0], [1.0, -4.0, 3.0, 0.0, -INF])


@pytest.mark.parametrize(("size", "banned"), [(1, [[1, 2], [0, 3]]), (2, [[2], [0]]), (3, [[], []]), (4, [[], []])])
def test_no_repeat_ngram_by_hand(size: int, banned: list[list[int]]) -> None:
    got = processors.NoRepeatNGramLogitsProcessor(size)(IDS, SCORES)
    for row in range(2):
        want = SCORES[row].copy()
        want[banned[row]] = -INF
        np.testing.assert_array_equal(got[row], want)


def test_suppress_tokens_ignores_ids_past_the_vocabulary() -> None:
    got = processors.SuppressTokensLogitsProcessor([0, 5, 700])(IDS, SCORES)
    np.testing.assert_array_equal(got, [[-INF, -2.0, 3.0, 0.0, -INF], [-INF, 0.5, -0.5, 4.0, 1.0]])


def test_min_new_tokens() -> None:
    minimum = processors.MinNewTokensLengthLogitsProcessor(1, 2, [2, 3])
    np.testing.assert_array_equal(minimum(IDS, SCORES), SCORES)
    assert np.isneginf(minimum(IDS[:, :2], SCORES)[:, 2:4]).all()


Z = np.random.default_rng(0).normal(0, 2, (2, 9)).astype(np.float32)
LONG = np.array([[1, 2, 3, 1, 2], [4, 4, 5, 4, 6]])


def processors_of(options: Options, prompt_length: int = 3) -> LogitsProcessors:
    request: Any = SimpleNamespace(options=options, ids=LONG[:, :prompt_length], padding=None)
    return LogitsProcessors(request)


def test_processors_in_order() -> None:
    """Penalty after bias, bans after penalty: each step of transformers' order applied by hand."""
    options = Options(
        sequence_bias={(3,): 2.0, (2, 5): -1.0},
        repetition_penalty=1.5,
        no_repeat_ngram_size=2,
        bad_words_ids=[[2, 7]],
        min_new_tokens=3,
        eos_token_id=[8],
        suppress_tokens=[6],
    )
    z = processors.SequenceBiasLogitsProcessor({(3,): 2.0, (2, 5): -1.0})(LONG, Z.astype(np.float64))
    z = processors.RepetitionPenaltyLogitsProcessor(1.5)(LONG, z)
    z = processors.NoRepeatNGramLogitsProcessor(2)(LONG, z)
    z = processors.NoBadWordsLogitsProcessor([[2, 7]])(LONG, z)
    z[:, [6, 8]] = -np.inf
    got = processors_of(options)(Z, LONG)
    np.testing.assert_array_equal(got, z)
    assert got.dtype == np.float64
    assert np.isfinite(processors_of(options, 2)(Z, LONG)[:, 8]).all()  # three tokens are there by then


def test_the_end_token_is_not_a_bad_word() -> None:
    options = Options(bad_words_ids=[[2], [3], [2, 2]], eos_token_id=[2])
    got = processors_of(options)(Z, LONG)
    assert np.argwhere(np.isneginf(got)).tolist() == [[0, 2], [0, 3], [1, 3]]  # the first sequence ends with token 2


def test_warpers_in_order_and_only_when_sampling() -> None:
    settings: dict[str, Any] = {
        "temperature": 0.7, "top_k": 7, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9, "epsilon_cutoff": 0.03,
        "eta_cutoff": 0.04,
    }  # fmt: skip
    z = sampling.temperature(Z.astype(np.float64), 0.7)
    z = sampling.top_k(z, 7)
    z = sampling.top_p(z, 0.95)
    z = sampling.min_p(z, 0.02)
    z = sampling.typical_p(z, 0.9)
    z = sampling.epsilon_cutoff(z, 0.03)
    z = sampling.eta_cutoff(z, 0.04)
    np.testing.assert_array_equal(processors_of(Options(do_sample=True, **settings))(Z, LONG), z)
    assert processors_of(Options(**settings))(Z, LONG) is Z
    off = Options(do_sample=True, temperature=None, top_k=0, top_p=None, typical_p=None, epsilon_cutoff=None)
    assert processors_of(off)(Z, LONG) is Z


@pytest.mark.parametrize(("eos", "left"), [(None, 2), ([1], 2), ([1, 2, 3], 4)])
def test_beams_keep_more_than_one_token(eos: list[int] | None, left: int) -> None:
    options = Options(do_sample=True, top_k=1, num_beams=2, eos_token_id=eos)
    assert (np.isfinite(processors_of(options)(Z, LONG)).sum(axis=1) == left).all()


def with_row(value: float, everywhere: bool = False) -> np.ndarray:
    z = Z.copy()
    z[1, :] = value if everywhere else z[1, :]
    z[1, 4] = value
    return z


@pytest.mark.parametrize("options", [Options(), Options(do_sample=True), Options(suppress_tokens=[0])], ids=str)
def test_scores_without_a_valid_token_are_refused(options: Options) -> None:
    pipeline = processors_of(options)
    with pytest.raises(ValueError, match="sequence 1, step 2: got NaN"):
        pipeline(with_row(np.nan), LONG)
    with pytest.raises(ValueError, match="sequence 1, step 2: got -inf for every token"):
        pipeline(with_row(-np.inf, True), LONG)
    finished = np.array([True, False])
    pipeline(with_row(np.nan, True), LONG, finished)
    pipeline(with_row(-np.inf, True), LONG, finished)


def test_an_infinite_score_is_the_most_likely_but_cannot_be_sampled() -> None:
    assert processors_of(Options())(with_row(np.inf), LONG)[1].argmax() == 4
    with pytest.raises(ValueError, match="sequence 1, step 2: got inf, expected finite"):
        processors_of(Options(do_sample=True))(with_row(np.inf), LONG)
