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


def test_repetition_penalty_passes_over_padding() -> None:
    got = processors.RepetitionPenaltyLogitsProcessor(2.0, np.array([2, 0]))(IDS, SCORES)
    np.testing.assert_array_equal(got[0], [1.0, -4.0, 3.0, 0.0, -INF])


Z = np.random.default_rng(0).normal(0, 2, (2, 9)).astype(np.float32)
LONG = np.array([[1, 2, 3, 1, 2], [4, 4, 5, 4, 6]])


def processors_of(options: Options, prompt_length: int = 3) -> LogitsProcessors:
    request: Any = SimpleNamespace(options=options, ids=LONG[:, :prompt_length], padding=None)
    return LogitsProcessors(request)


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
