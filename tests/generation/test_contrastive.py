"""Contrastive search against a slow transcription of its paper: Su et al. 2022, equation 5, one text, no cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.generation import generate
from tests.generation.fakes import FakeModel, Recorder, everything
from tests.model.models import small_model


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def paper(model: Any, prompt: list[int], k: int, alpha: float, n: int, eos: int | None = None) -> list[int]:
    """x_t = argmax over the k most probable v of (1 − α) p(v | x_<t) − α max_j s(h_v, h_xj)."""
    x = list(prompt)
    while len(x) < len(prompt) + n:
        out = model(np.array([x]), output_hidden_states=True, logits_to_keep=1)
        z = out.logits[0, -1]
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        h = out.hidden_states[-1][0]
        best_value, best_token = -np.inf, -1
        for v in np.argsort(-p, kind="stable")[:k]:
            h_v = model(np.array([[*x, int(v)]]), output_hidden_states=True, logits_to_keep=1).hidden_states[-1][0, -1]
            value = (1 - alpha) * p[v] - alpha * max(cosine(h_v, h_j) for h_j in h)
            if value > best_value:
                best_value, best_token = value, int(v)
        x.append(best_token)
        if best_token == eos:
            break
    return x


@pytest.fixture(scope="module")
def small() -> Any:
    return small_model(seed=3, vocab_size=29, num_hidden_layers=1, eos_token_id=2)


CASES = [(2, 0.6), (4, 0.6), (5, 0.1), (4, 1.0), (29, 0.5), (80, 0.9)]


@pytest.mark.parametrize(("k", "alpha"), CASES)
def test_against_the_paper(small: Any, k: int, alpha: float) -> None:
    for model in (small, FakeModel(2, V=29, scale=1.0)):
        want = paper(model, [5, 6, 7], min(k, 29), alpha, 10, 2)
        assert generate(model, [[5, 6, 7]], penalty_alpha=alpha, top_k=k, max_new_tokens=10)[0].tolist() == want


def test_processors_results_and_streams(small: Any) -> None:
    recorder = Recorder()
    options = {"penalty_alpha": 0.5, "top_k": 4, "max_new_tokens": 8, "no_repeat_ngram_size": 1}
    out = everything(small, [[5, 6, 7], [7, 8, 9]], streamer=recorder, **options)
    assert recorder.rows == out.sequences.tolist()
    text = out.sequences[0].tolist()
    text = text[: text.index(2)] if 2 in text else text
    assert len(set(text)) == len(text)
    assert len(out.scores) == len(out.logits) == out.sequences.shape[1] - 3
    assert np.isneginf(out.scores[0][0, [5, 6, 7]]).all()


def test_a_forbidden_token_is_not_chosen_for_want_of_others(small: Any) -> None:
    allowed = [4, 9]
    forbidden = [i for i in range(29) if i not in allowed]
    got = generate(
        small, [[5, 6]], penalty_alpha=1.0, top_k=6, suppress_tokens=forbidden, max_new_tokens=6, eos_token_id=None
    )
    assert set(got[0, 2:].tolist()) <= set(allowed)
