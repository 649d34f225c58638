"""Guesses never change the text: greedy the same tokens, sampling the same distribution."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.generation import generate
from refdiff.generation.sampling import Uniforms, draw
from refdiff.generation.speculative import AcceptanceRate, PromptLookup, speculative_step
from refdiff.layers.rope_frequencies import ROPE_TYPES
from tests.generation.fakes import Bigrams, FakeModel, Recorder, everything, letters
from tests.model.models import small_config, small_model

TARGET = FakeModel(1, V=19, scale=2.5)
ASSISTANTS = {
    "itself": FakeModel(1, V=19, scale=2.5),
    "similar": FakeModel(1, V=19, scale=2.5),
    "stranger": FakeModel(8, V=19),
}
ASSISTANTS["similar"].W += np.random.default_rng(0).normal(0, 0.6, (19, 7))
PROMPT = [[5, 6, 7, 5, 6, 8, 9, 5, 6]]
GUESSERS: dict[str, dict[str, Any]] = {
    "lookup 4": {"prompt_lookup_num_tokens": 4},
    "lookup 30": {"prompt_lookup_num_tokens": 30},
} | {name: {"assistant_model": model} for name, model in ASSISTANTS.items()}

GREEDY: dict[str, dict[str, Any]] = {
    "eos": {},
    "many eos": {"eos_token_id": [2, 3, 11, 12]},
    "two tokens": {"max_new_tokens": 2},
    "max_length": {"max_new_tokens": None, "max_length": 17},
    "minimum": {"min_new_tokens": 15, "eos_token_id": [2, 3, 4, 5]},
    "stop strings": {"stop_strings": ["k", "ab", "pp", "q"], "tokenizer": letters(), "eos_token_id": None},
    "repetition": {"repetition_penalty": 1.7, "eos_token_id": None},
    "ngram": {"no_repeat_ngram_size": 2, "eos_token_id": None},
    "bias": {"sequence_bias": {(5,): 2.0, (5, 6): 4.0}, "bad_words_ids": [[7], [6, 8]], "suppress_tokens": [3]},
}


@pytest.mark.parametrize("guesser", GUESSERS.values(), ids=GUESSERS)
@pytest.mark.parametrize("options", GREEDY.values(), ids=GREEDY)
def test_greedy_text_is_the_same_with_draft_tokens(guesser: dict[str, Any], options: dict[str, Any]) -> None:
    shared: dict[str, Any] = {"max_new_tokens": 40} | options
    recorder = Recorder()
    want = everything(TARGET, PROMPT, **shared)
    got = everything(TARGET, PROMPT, streamer=recorder, **shared, **guesser)
    np.testing.assert_array_equal(got.sequences, want.sequences)
    assert recorder.rows == got.sequences.tolist()
    for name in ("scores", "logits"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-9)
    assert len(got.cache) == got.sequences.shape[1] - 1


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_a_real_model_gives_the_same_text_with_draft_tokens(dtype: str) -> None:
    """Several tokens at a time go through other kernels than one does; no two of this text's tokens are near a tie."""
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype=dtype)
    options: dict[str, Any] = {"max_new_tokens": 90, "do_sample": False, "eos_token_id": None}
    plain = model.generate([[5, 300, 40, 7]], **options)
    for guesser in ({"prompt_lookup_num_tokens": 10}, {"assistant_model": model}):
        recorder = Recorder()
        guessed = model.generate([[5, 300, 40, 7]], streamer=recorder, **guesser, **options)
        np.testing.assert_array_equal(guessed, plain)
        assert len(recorder.puts) < 80, "the prompt, and fewer passes than tokens"


ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 3.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 24},
    "longrope": {"short_factor": [1.0, 1.2, 1.5], "long_factor": [2.0, 4.0, 6.0], "factor": 2.0,
                 "original_max_position_embeddings": 24},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24},
    "proportional": {"partial_rotary_factor": 0.5},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the text is longer than", "ignore:.*original_max_position_embeddings")
@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("length", [9, 17, 22, 23, 24, 25, 40])
@pytest.mark.parametrize("kind", ROPE_TYPES)
def test_draft_tokens_change_no_text_where_rope_depends_on_its_length(kind: str, length: int, padding: int) -> None:
    """Prompts before, at and after the 24 tokens at which the frequencies of longrope and dynamic change."""
    model, assistant = (
        small_model(seed=length + more, max_position_embeddings=24, rope_parameters={"rope_type": kind, **ROPES[kind]})
        for more in (0, 1)
    )
    rng = np.random.default_rng(length)
    ids = np.tile(rng.integers(3, 53, (1, 4)), 10)[:, :length]
    ids = np.concatenate([np.zeros((1, padding), np.int64), ids], axis=1)
    options: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": None, "attention_mask": ids != 0}
    itself, lookup = {"assistant_model": model}, {"prompt_lookup_num_tokens": 5}
    plain = everything(model, ids, **options)
    for guesser in (itself, {"assistant_model": assistant}, lookup):
        guessed = everything(model, ids, **options, **guesser)
        np.testing.assert_array_equal(guessed.sequences, plain.sequences)
        np.testing.assert_allclose(guessed.logits, plain.logits, rtol=0, atol=1e-9)
    drawn = generate(model, ids, do_sample=True, seed=length, **options)
    np.testing.assert_array_equal(generate(model, ids, do_sample=True, seed=length, **options, **lookup), drawn)


def test_draft_tokens_save_forward_passes() -> None:
    """An assistant that is always right: 5 guesses, then 7, then 9, …, each checked with one call."""
    model = FakeModel(1, V=19, scale=2.5)
    generate(model, PROMPT, max_new_tokens=40, eos_token_id=None, assistant_model=ASSISTANTS["itself"])
    assert [tokens for _, tokens in model.calls] == [9 + 5, 8, 10, 12, 4]
    generate(
        repeating := Bigrams(np.roll(np.eye(5) + 0.01, 1, axis=1)),
        [[0, 1, 2, 3, 4, 0, 1]],
        max_new_tokens=30,
        eos_token_id=None,
        prompt_lookup_num_tokens=9,
    )
    assert len(repeating.calls) < 8


def lookup(row: list[int], most: int = 30) -> list[int]:
    return [int(token) for token in PromptLookup(most).guess(np.array([row]), 99)[0]]


def test_prompt_lookup_takes_the_latest_of_the_longest_matches() -> None:
    assert lookup([1, 2, 3, 9, 2, 3, 4, 1, 2, 3], 6) == [9, 2, 3, 4, 1, 2]  # after "1 2 3", not the later "2 3"
    assert lookup([1, 2, 3, 7, 1, 2, 3, 8, 5, 6, 1, 2, 3], 2) == [8, 5]  # after the later of two "1 2 3"
    assert lookup([5, *range(20, 60), 6, 5, *range(20, 60)], 2) == [6, 5]
    assert lookup([2, 3, 4, 1, 9, 2, 3])[:2] == [4, 1]
    assert lookup([1, 2, 3, 9]) == lookup([1]) == []


@pytest.mark.parametrize(("share", "worth"), [(1.0, 30), (0.5, 3), (0.1, 0), (0.0, 0)])
def test_best_draft_length_maximizes_tokens_per_time(share: float, worth: int) -> None:
    """Tokens of a pass that n guesses make longer: 1 + a + … + aⁿ, for 1.2 + n / 20 one-token passes, so 2 for 16."""
    odds = AcceptanceRate(share)
    assert odds.best_draft_length(30) == worth
    assert odds.best_draft_length(0) == 0
    rates = [sum(share**i for i in range(n + 1)) / (1.2 + n / 20 if n else 1) for n in range(31)]
    assert rates[worth] == max(rates)


# ---- sampling


@pytest.mark.parametrize("name", ["lookup 4", "lookup 30"])
@pytest.mark.parametrize("seed", range(4))
def test_prompt_lookup_gives_the_same_sampled_text(name: str, seed: int) -> None:
    options: dict[str, Any] = {"do_sample": True, "seed": seed, "max_new_tokens": 30, "temperature": 0.7, "top_k": 6}
    want = generate(TARGET, PROMPT, **options)
    np.testing.assert_array_equal(generate(TARGET, PROMPT, **options, **GUESSERS[name]), want)


@pytest.mark.parametrize("seed", range(3))
def test_speculative_step_keeps_the_distribution(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(5, 0.5)), rng.dirichlet(np.full(5, 0.5))
    stream = Uniforms(np.random.SeedSequence(seed))
    n = 20_000
    accepted = 0
    counts: Counter[int] = Counter()
    for _ in range(n):
        guess = draw(q, stream.next())
        token = speculative_step(p, q, guess, stream)
        accepted += token == guess
        counts[token] += 1
    for token in range(5):
        assert abs(counts[token] - n * p[token]) <= 5 * np.sqrt(n * p[token]) + 1e-9
    # accepted as often as two distributions can agree: Σ min(p, q)
    assert abs(accepted - n * np.minimum(p, q).sum()) < 5 * np.sqrt(n)


def test_speculative_step_when_rounding_leaves_nothing() -> None:
    p = np.array([0.5, 0.5])
    stream = Uniforms(np.random.SeedSequence(0))
    q = np.nextafter(p, 1.0)
    assert {speculative_step(p, q, 0, stream) for _ in range(20)} <= {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"temperature": 0.6, "top_p": 0.95}], ids=str)
def test_an_assistant_keeps_the_distribution(options: dict[str, Any]) -> None:
    """All continuations of three tokens, against the table that the options make of the model's."""
    rng = np.random.default_rng(0)
    table, draft = rng.dirichlet(np.full(3, 1.0), 3), rng.dirichlet(np.full(3, 1.0), 3)
    target, assistant = Bigrams(table, eos_token_id=None), Bigrams(draft, eos_token_id=None)
    shared: dict[str, Any] = {"do_sample": True, "max_new_tokens": 3, "pad_token_id": None} | options
    one = everything(target, [[t] for t in range(3)], seed=0, **shared)
    p = np.exp(one.scores[0]) / np.exp(one.scores[0]).sum(axis=1, keepdims=True)
    n = 2500
    counts = Counter(
        tuple(generate(target, [[0]], seed=seed, assistant_model=assistant, **shared)[0, 1:].tolist())
        for seed in range(n)
    )
    chi2 = 0.0
    for a, b, c in itertools.product(range(3), repeat=3):
        want = n * p[0, a] * p[a, b] * p[b, c]
        assert abs(counts[a, b, c] - want) <= 5 * np.sqrt(want) + 1e-9
        chi2 += (counts[a, b, c] - want) ** 2 / want if want else 0.0
    assert chi2 < 60  # 26 degrees of freedom at most: 54 is the one-in-a-thousand value


def test_an_assistant_and_a_seed_give_the_same_text_again() -> None:
    options: dict[str, Any] = {"do_sample": True, "max_new_tokens": 20, "assistant_model": ASSISTANTS["similar"]}
    one, again = (generate(TARGET, PROMPT, seed=1, **options) for _ in range(2))
    np.testing.assert_array_equal(one, again)


# ---- errors


@pytest.mark.parametrize(
    "guesser", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": ASSISTANTS["itself"]}], ids=str
)
def test_one_prompt_at_a_time(guesser: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"input_ids: got 2 prompts, expected 1 with .*; call generate for each"):
        generate(TARGET, [[5, 6], [7, 8]], **guesser)


def test_an_assistant_without_a_next_token_head_is_refused() -> None:
    assistant = refdiff.DiffLlamaForSequenceClassification.from_config(small_config())
    message = r"assistant_model: got DiffLlamaForSeq.*, expected a model with a next-token head, such as a DiffLlamaFor"
    with pytest.raises(ValueError, match=message):
        generate(TARGET, PROMPT, assistant_model=assistant)


def test_an_assistant_with_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="assistant_model: got a vocabulary of 23 tokens, expected the model's 19"):
        generate(TARGET, PROMPT, assistant_model=FakeModel())
