"""Beam search against exhaustive search, and what holds for it: order, padding, batches, streams."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from refdiff.backends import Backend
from refdiff.generation import generate
from refdiff.generation.sampling import log_softmax
from tests.generation.fakes import Bigrams, FakeModel, Recorder, everything, letters


def all_texts(model: FakeModel, prompt: list[int], n: int, eos: int, penalty: float) -> list[tuple[float, list[int]]]:
    """Every text of up to n tokens that ends with eos or has n tokens, with its score, best first."""
    V = model.config.vocab_size
    found = []
    for length in range(1, n + 1):
        for body in itertools.product([t for t in range(V) if t != eos], repeat=length - 1):
            for last in [eos] if length < n else range(V):
                text = [*body, last]
                logits = model(np.array([prompt + text[:-1]]), logits_to_keep=length).logits[0]
                score = log_softmax(logits)[np.arange(length), text].sum() / length**penalty
                found.append((float(score), prompt + text))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
def test_with_enough_beams_the_best_of_all_texts_is_found(seed: int, penalty: float) -> None:
    model = FakeModel(seed, V=4, scale=1.0)
    want = all_texts(model, [3, 1], 4, 2, penalty)
    beams = {"num_beams": 64, "num_return_sequences": 8, "length_penalty": penalty, "early_stopping": "never"}
    out = everything(model, [[3, 1]], max_new_tokens=4, **beams)
    np.testing.assert_allclose(out.sequences_scores, [score for score, _ in want[:8]], rtol=1e-10)
    for row, (_, text) in zip(out.sequences.tolist(), want, strict=False):
        assert row[: len(text)] == text
        assert set(row[len(text) :]) <= {2}


def test_a_vocabulary_smaller_than_the_candidates() -> None:
    out = generate(
        FakeModel(0, V=2, eos_token_id=None), [[0, 1]], num_beams=4, num_return_sequences=4, max_new_tokens=3
    )
    assert len({tuple(row) for row in out.tolist()}) == 4


def test_beam_sampling_follows_the_model() -> None:
    """One step of two beams draws four tokens without replacement; the best of them is returned."""
    p = np.array([0.04, 0.06, 0.1, 0.15, 0.25, 0.4])
    want = np.zeros(6)
    for drawn in itertools.permutations(range(6), 4):
        left = 1.0 - np.cumsum([0.0, *p[list(drawn[:-1])]])
        want[max(drawn)] += np.prod(p[list(drawn)] / left)
    n = 3000
    model = Bigrams(np.tile(p, (6, 1)), eos_token_id=None, pad_token_id=None)
    got = generate(model, [[0]] * n, num_beams=2, do_sample=True, max_new_tokens=1, seed=1)
    counts = Counter(got[:, 1].tolist())
    for token, expected in enumerate(want * n):
        assert abs(counts[token] - expected) <= 5 * np.sqrt(expected) + 1e-9
    assert counts[4] > 50


def test_stop_strings_without_a_token_to_fill_up_with() -> None:
    model = FakeModel(0, V=11, scale=2.0, eos_token_id=None, pad_token_id=None)
    options: dict[str, Any] = {"num_beams": 2, "stop_strings": "gj", "tokenizer": letters()}
    with pytest.raises(ValueError, match="pad_token_id: got none, expected one for several beam results"):
        generate(model, [[5, 6], [7, 8]], **options)
    with pytest.raises(ValueError, match="pad_token_id: got none, expected one for several beam results"):
        generate(model, [[5, 6]], num_return_sequences=2, **options)
    text = letters().decode(generate(model, [[5, 6]], **options)[0].tolist())
    assert text.endswith("gj")
    assert len(text) < 22


# ---- streams


STREAMED: list[dict[str, Any]] = [
    {}, {"early_stopping": True}, {"early_stopping": "never", "length_penalty": 2.0}, {"length_penalty": -1.0},
    {"num_return_sequences": 3}, {"do_sample": True, "seed": 1}, {"stop_strings": ["e", "fa"], "tokenizer": letters()},
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("options", STREAMED, ids=lambda o: ",".join(o))
def test_a_beam_stream_is_the_result(options: dict[str, Any], rows: int, seed: int) -> None:
    model = FakeModel(seed, V=11, scale=2.0, eos_token_id=[2, 3])
    recorder = Recorder()
    prompts = np.random.default_rng(seed).integers(4, 11, (rows, 3))
    got = generate(model, prompts, num_beams=3, max_new_tokens=12, streamer=recorder, **options)
    assert recorder.rows == got.tolist()
    assert recorder.ended == 1
    np.testing.assert_array_equal(generate(model, prompts, num_beams=3, max_new_tokens=12, **options), got)


def test_progress_is_reported_for_the_prompt_and_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Following(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.told: list[tuple[str, int, int]] = []

        def progress(self, *said: Any) -> None:
            self.told.append(said)

    monkeypatch.setattr(Backend, "chunk_size", 4)
    streamer = Following()
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 4, "eos_token_id": None}
    got = generate(FakeModel(), [[3, 4, 5, 6, 7, 8]], streamer=streamer, **options)
    assert streamer.told == [("prompt", 0, 6), ("prompt", 4, 6), *[("text", n, 4) for n in range(1, 5)]]
    np.testing.assert_array_equal(got, generate(FakeModel(), [[3, 4, 5, 6, 7, 8]], streamer=Recorder(), **options))
