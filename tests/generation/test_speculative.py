"""Guesses never change the text: greedy the same tokens, sampling the same distribution."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.generation import generate
from refdiff.generation.options import Options
from refdiff.generation.sampling import Uniforms, draw
from refdiff.generation.speculative import AcceptanceRate, Assistant, PromptLookup, speculative_step
from tests.generation.fakes import Bigrams, FakeModel, Recorder, everything, letters

TARGET = FakeModel(1, V=19, scale=2.5)
ASSISTANTS = {
    "itself": FakeModel(1, V=19, scale=2.5),
    "similar": FakeModel(1, V=19, scale=2.5),
    "stranger": FakeModel(8, V=19),
}
ASSISTANTS["similar"].W += np.random.default_rng(0).normal(0, 0.6, (19, 7))
PROMPT = [[5, 6, 7, 5, 6, 8, 9, 5, 6]]
GUESSERS: dict[str, dict[str, Any]] = {
    "lookup 1": {"prompt_lookup_num_tokens": 1},
    "lookup 4": {"prompt_lookup_num_tokens": 4},
    "lookup 30": {"prompt_lookup_num_tokens": 30},
} | {name: {"assistant_model": model} for name, model in ASSISTANTS.items()}

GREEDY: dict[str, dict[str, Any]] = {
    "plain": {"eos_token_id": None},
    "eos": {},
    "many eos": {"eos_token_id": [2, 3, 11, 12]},
    "one token": {"max_new_tokens": 1},
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
def test_greedy_is_the_same_as_without_guesses(guesser: dict[str, Any], options: dict[str, Any]) -> None:
    shared: dict[str, Any] = {"max_new_tokens": 40} | options
    recorder = Recorder()
    want = everything(TARGET, PROMPT, **shared)
    got = everything(TARGET, PROMPT, streamer=recorder, **shared, **guesser)
    np.testing.assert_array_equal(got.sequences, want.sequences)
    assert recorder.rows == got.sequences.tolist()
    for name in ("scores", "logits"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-9)
    assert len(got.cache) == got.sequences.shape[1] - 1


def test_padding_on_the_left() -> None:
    ids, mask = [[0, 0, *PROMPT[0]]], [[0, 0, *[1] * 9]]
    want = generate(TARGET, ids, mask, max_new_tokens=20, repetition_penalty=1.2)
    for guesser in GUESSERS.values():
        np.testing.assert_array_equal(
            generate(TARGET, ids, mask, max_new_tokens=20, repetition_penalty=1.2, **guesser), want
        )


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_a_real_model_says_the_same_with_guesses(dtype: str) -> None:
    """Several tokens at a time go through other kernels than one does; no two of this text's tokens are near a tie."""
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype=dtype)
    options: dict[str, Any] = {"max_new_tokens": 90, "do_sample": False, "eos_token_id": None}
    plain = model.generate([[5, 300, 40, 7]], **options)
    for guesser in ({"prompt_lookup_num_tokens": 10}, {"assistant_model": model}):
        recorder = Recorder()
        guessed = model.generate([[5, 300, 40, 7]], streamer=recorder, **guesser, **options)
        np.testing.assert_array_equal(guessed, plain)
        assert len(recorder.puts) < 80, "the prompt, and fewer passes than tokens"


def test_guesses_save_calls() -> None:
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


def test_guesses_become_fewer_when_they_are_wrong() -> None:
    """A guess always wrong: 5 guesses, 4, 3, 2, then 1 each time."""
    target = Bigrams(np.roll(np.eye(5) + 0.01, 1, axis=1), eos_token_id=None)
    wrong = Bigrams(np.roll(np.eye(5) + 0.01, 2, axis=1), eos_token_id=None)
    generate(target, [[0]], max_new_tokens=7, assistant_model=wrong)
    assert [tokens for _, tokens in target.calls] == [6, 5, 4, 3, 2, 2, 1]


def test_the_assistant_reads_every_token_once() -> None:
    assistant = FakeModel(1, V=19, scale=2.5)
    generate(TARGET, PROMPT, max_new_tokens=30, eos_token_id=None, assistant_model=assistant)
    assert assistant.calls[0] == (1, 9)
    assert all(tokens <= 2 for _, tokens in assistant.calls[1:])


def lookup(row: list[int], most: int = 30) -> list[int]:
    return [int(token) for token in PromptLookup(most).guess(np.array([row]), 99)[0]]


def test_prompt_lookup_takes_the_latest_of_the_longest_matches() -> None:
    assert lookup([1, 2, 3, 9, 2, 3, 4, 1, 2, 3], 6) == [9, 2, 3, 4, 1, 2]  # after "1 2 3", not the later "2 3"
    assert lookup([1, 2, 3, 7, 1, 2, 3, 8, 5, 6, 1, 2, 3], 2) == [8, 5]  # after the later of two "1 2 3"
    assert lookup([5, *range(20, 60), 6, 5, *range(20, 60)], 2) == [6, 5]
    assert lookup([2, 3, 4, 1, 9, 2, 3])[:2] == [4, 1]
    assert lookup([1, 2, 3, 9]) == lookup([1]) == []


def test_prompt_lookup_goes_on_as_most_of_the_longest_matches_did() -> None:
    assert lookup([1, 2, 7, 1, 2, 7, 1, 2, 8, 1, 2], 3) == [7, 1, 2]  # "1 2 7" twice, and then "1 2 8"
    period = [*range(10, 26)]  # said three times; then something else, and from its middle once more
    assert lookup([*period * 3, 99, *period[8:12]], 10) == [*period[12:], *period[:6]]
    assert lookup([1, 2, 5, 1, 2, 5, 3, 1, 2, 6, 7, 1, 2, 6, 8, 1, 2], 2) == [6, 8]  # as often: the later


def test_a_text_that_repeats_itself_up_to_its_end_goes_on_so() -> None:
    assert lookup([1, 7, 8, 9, 7, 8, 9, 7, 8], 7) == [9, 7, 8, 9, 7, 8, 9]
    assert lookup([7, 7, 7, 7], 5) == [7, 7, 7, 7, 7]


def test_a_long_match_is_worth_all_guesses_at_once() -> None:
    long, two, one = [1, 2, 3, 9, 8, 1, 2, 3], [4, 2, 3, 9, 8, 1, 2, 3], [4, 5, 3, 9, 8, 1, 2, 3]
    assert len(lookup(long, 12)) == 12 > len(lookup(two, 12)) > len(lookup(one, 12)) > 0
    model = Bigrams(np.roll(np.eye(5) + 0.01, 1, axis=1), eos_token_id=None)
    generate(model, [[0, 1, 2, 3, 4, 0, 1, 2]], max_new_tokens=22, prompt_lookup_num_tokens=10)
    assert [tokens for _, tokens in model.calls] == [8 + 10, 11]


def test_matches_that_mislead_are_left_alone_and_those_of_another_length_are_not() -> None:
    guesser = PromptLookup(10)
    short, long = np.array([[1, 2, 3, 1]]), np.array([[1, 2, 3, 9, 1, 2, 3]])
    for _ in range(4):
        guesser.learn(len(guesser.guess(short, 99)[0]), 0)
    assert guesser.guess(short, 99)[0].size == 0
    assert guesser.guess(long, 99)[0].size == 10
    for _ in range(40):  # other rounds, after which a match of one token is worth another try
        guesser.learn(*[guesser.guess(long, 99)[0].size] * 2)
    assert guesser.guess(short, 99)[0].size > 0


def test_a_text_that_repeats_itself_after_one_that_did_not() -> None:
    """Forty tokens of two, each followed by another each time; then a cycle of five, over and over."""
    rng = np.random.default_rng(0)
    text = [int(t) for pair in zip(rng.integers(0, 3, 20), range(3, 23), strict=True) for t in pair]
    text += [23, 24, 25, 26, 27] * 12

    class Reciter(FakeModel):
        def __call__(self, input_ids: Any, *args: Any, logits_to_keep: int = 0, **options: Any) -> SimpleNamespace:
            out = super().__call__(input_ids, *args, logits_to_keep=logits_to_keep, **options)
            T = len(out.cache)
            out.logits = np.eye(28)[[text[min(t + 1, 99)] for t in range(T - logits_to_keep, T)]][None]
            return out

    model = Reciter(V=28)
    made = generate(model, [text[:1]], max_new_tokens=99, eos_token_id=None, prompt_lookup_num_tokens=10)
    np.testing.assert_array_equal(made, [text])
    assert sum(tokens > 1 for _, tokens in model.calls[:40]) < 14  # guesses that were wrong
    assert len(model.calls) < 40 + 6 + 8


def test_a_round_without_guesses_is_not_one_in_which_all_were_right() -> None:
    guesser, two = PromptLookup(30), np.array([[1, 2, 3, 1, 2]])
    before = guesser.guess(two, 99)[0].size
    for _ in range(30):
        guesser.learn(0, 0)
    assert guesser.guess(two, 99)[0].size == before
    assert guesser.guess(two, 0)[0].size == 0

    target = Bigrams(np.roll(np.eye(5) + 0.01, 1, axis=1), eos_token_id=None)
    assistant = Bigrams(np.roll(np.eye(5) + 0.01, 1, axis=1), eos_token_id=None)
    request = SimpleNamespace(
        options=Options(assistant_model=assistant), ids=np.array([[0]]), mask=None, padding=None, model=target,
        max_length=99,
    )  # fmt: skip
    helper = Assistant(request, None)  # type: ignore[arg-type]
    for _ in range(3):
        helper.learn(0, 0)
    assert helper.guess(np.array([[0]]), 90)[0].tolist() == [1, 2, 3, 4, 0]
    assert helper.guess(np.array([[0]]), 2)[0].tolist() == [1, 2]


@pytest.mark.parametrize(("share", "worth"), [(1.0, 30), (0.5, 3), (0.1, 0), (0.0, 0)])
def test_as_many_guesses_as_pay_for_their_pass(share: float, worth: int) -> None:
    """Tokens of a pass that n guesses make longer: 1 + a + … + aⁿ, for 1.2 + n / 20 one-token passes, so 2 for 16."""
    odds = AcceptanceRate(share)
    assert odds.best_draft_length(30) == worth
    assert odds.best_draft_length(0) == 0
    rates = [sum(share**i for i in range(n + 1)) / (1.2 + n / 20 if n else 1) for n in range(31)]
    assert rates[worth] == max(rates)


def test_odds_follow_what_was_seen_last() -> None:
    odds = AcceptanceRate(0.5)
    for _ in range(50):
        odds.decay()
        odds.learn(4, 4)
    good = odds.best_draft_length(30)
    for _ in range(5):
        odds.decay()
        odds.learn(4, 1)  # one right, one wrong, and two that say nothing
    assert good > odds.best_draft_length(30) > 0


# ---- sampling


@pytest.mark.parametrize("name", ["lookup 1", "lookup 4", "lookup 30"])
@pytest.mark.parametrize("seed", range(8))
def test_prompt_lookup_gives_the_very_text_of_sampling(name: str, seed: int) -> None:
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
    np.testing.assert_array_equal(
        generate(TARGET, PROMPT, seed=1, **options), generate(TARGET, PROMPT, seed=1, **options)
    )


# ---- errors


@pytest.mark.parametrize(
    "guesser", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": ASSISTANTS["itself"]}], ids=str
)
def test_one_prompt_at_a_time(guesser: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"take one prompt, but there are 2 rows.*call generate for each prompt"):
        generate(TARGET, [[5, 6], [7, 8]], **guesser)


def test_another_vocabulary() -> None:
    with pytest.raises(ValueError, match="assistant_model has 23 tokens and the model 19: they need one vocabulary"):
        generate(TARGET, PROMPT, assistant_model=FakeModel())
