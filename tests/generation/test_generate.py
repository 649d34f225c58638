"""`generate` on the real model: the equalities that hold at every step."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refdiff
from refdiff.generation import generate
from refdiff.generation.beam import beam_search
from refdiff.generation.options import GenerationConfig
from tests.backends.cupy.test_model import IDS, MASK, SIZES
from tests.generation.fakes import FakeModel
from tests.layers.places import Place
from tests.model.models import small_model

MODULE = importlib.import_module("refdiff.generation.generate")
V = 31
TOKENS: dict[str, Any] = {"vocab_size": V, "eos_token_id": [2, 3], "bos_token_id": 1}
MODEL = small_model(num_hidden_layers=2, **TOKENS)
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "seed": 3},
    "beams": {"num_beams": 3},
    "beams that stop early": {"num_beams": 3, "early_stopping": True},
    "beam sampling": {"num_beams": 2, "do_sample": True, "seed": 3, "length_penalty": 2.0},
}


def slow(model: Any, prompt: list[int], n: int) -> list[int]:
    """Greedy decoding without a cache."""
    ids = list(prompt)
    while len(ids) < len(prompt) + n:
        ids.append(int(np.asarray(model([ids], use_cache=False).logits)[0, -1].argmax()))
        if ids[-1] in (2, 3):
            break
    return ids


prompts = st.lists(st.integers(4, V - 1), min_size=1, max_size=6)


@given(prompts, st.integers(1, 12))
def test_cached_is_uncached(prompt: list[int], n: int) -> None:
    assert generate(MODEL, [prompt], max_new_tokens=n)[0].tolist() == slow(MODEL, prompt, n)


def test_a_generation_config_may_stand_second() -> None:
    config = GenerationConfig(max_new_tokens=3)
    np.testing.assert_array_equal(generate(MODEL, [[5, 6]], config), generate(MODEL, [[5, 6]], max_new_tokens=3))
    with pytest.raises(ValueError, match="generation_config, the second argument: got both"):
        generate(MODEL, [[5, 6]], config, generation_config=config)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@settings(max_examples=settings().max_examples // 3)
@given(st.lists(prompts, min_size=1, max_size=3))
def test_batch_is_single_and_padded_is_unpadded(options: dict[str, Any], texts: list[list[int]]) -> None:
    width = max(map(len, texts)) + 1
    ids = np.array([[0] * (width - len(text)) + text for text in texts])
    mask = (ids != 0).astype(int)
    got = generate(MODEL, ids, mask, max_new_tokens=6, **options)
    np.testing.assert_array_equal(generate(MODEL, ids, max_new_tokens=6, **options), got)  # known by the padding token
    for index, (row, text) in enumerate(zip(got, texts, strict=True)):
        if texts.index(text) != index:  # a copy of an earlier prompt, which samples another text
            continue
        alone = generate(MODEL, [text], max_new_tokens=6, **options)[0, len(text) :].tolist()
        together = row[width:].tolist()
        shorter = min(len(alone), len(together))
        assert together[:shorter] == alone[:shorter]
        assert set(together[shorter:]) | set(alone[shorter:]) <= {0, 2}


def one_beam(request: Any) -> Any:
    return beam_search(replace(request, options=replace(request.options, early_stopping=True)))


@given(prompts, st.sampled_from([{}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 4}]))
def test_one_beam_is_greedy(prompt: list[int], options: dict[str, Any]) -> None:
    """Of the beam search itself, which `generate` leaves alone for one beam, up to the first finished text."""
    greedy = generate(MODEL, [prompt], max_new_tokens=8, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "_run", one_beam)
        np.testing.assert_array_equal(generate(MODEL, [prompt], max_new_tokens=8, **options), greedy)


@pytest.mark.parametrize("options", [*WAYS.values(), {"prompt_lookup_num_tokens": 3}], ids=[*WAYS, "lookup"])
def test_embeddings_a_cache_and_other_names_give_the_same_text(options: dict[str, Any]) -> None:
    ids = np.array([[5, 6, 7, 5, 6]])
    shared: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": None, **options}
    want = generate(MODEL, ids, **shared)
    embeds = MODEL.base_params["embed_tokens"]["weight"][ids]
    np.testing.assert_array_equal(generate(MODEL, ids, inputs_embeds=embeds, **shared), want)
    if "do_sample" not in options:  # the random numbers of a prompt follow from its ids
        np.testing.assert_array_equal(generate(MODEL, inputs_embeds=embeds, **shared), want[:, 5:])
    for name in ("cache", "past_key_values"):
        cache = MODEL(ids[:, :3], use_cache=True).cache
        np.testing.assert_array_equal(generate(MODEL, inputs=ids, **{name: cache}, **shared), want)
    recorded = generate(MODEL, ids, return_dict_in_generate=True, output_attentions=True, **shared)
    np.testing.assert_array_equal(recorded.sequences, want)
    assert len(recorded.attentions) == 6
    assert generate(MODEL, ids, return_dict_in_generate=True, use_cache=False, **shared).cache is None


class Counting(refdiff.LogitsProcessor):
    """A processor with a state: it forbids one more token in each step."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        self.lengths.append(input_ids.shape[1])
        scores[:, : len(self.lengths)] = -np.inf
        return scores


@pytest.mark.parametrize("guesser", [{"prompt_lookup_num_tokens": 4}, {"assistant_model": MODEL}])
def test_a_processor_and_a_criterion_of_the_user_see_each_token_once(guesser: dict[str, Any]) -> None:
    def ends(ids: np.ndarray, scores: Any) -> np.ndarray:
        seen.append(len(scores))
        return ids[:, -1] == 30

    options: dict[str, Any] = {"max_new_tokens": 12, "return_dict_in_generate": True, "output_scores": True}
    texts = []
    for more in ({}, guesser):
        seen: list[int] = []
        process = Counting()
        out = generate(
            MODEL, [[5, 6, 7, 5, 6]], logits_processor=[process], stopping_criteria=[ends], **options, **more
        )
        texts.append(out.sequences.tolist())
        assert process.lengths == list(range(5, out.sequences.shape[1]))
        assert seen == list(range(1, out.sequences.shape[1] - 4))
    assert texts[0] == texts[1]


def test_a_length_criterion_replaces_the_length_of_the_options() -> None:
    criteria = refdiff.StoppingCriteriaList([refdiff.MaxLengthCriteria(7)])
    got = generate(MODEL, [[5, 6]], max_new_tokens=50, eos_token_id=None, stopping_criteria=criteria)
    assert got.shape == (1, criteria.max_length)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"inputs": [[5]]}, ValueError, "input_ids, inputs: got both, expected one"),
        (
            {"inputs_embeds": np.ones((1, 3, 26))},
            ValueError,
            r"inputs_embeds: got shape .*, expected \(1, 2, D\), as in",
        ),
        ({"cache": {}}, TypeError, "cache: got dict, expected a KVCache"),
        (
            {"cache": MODEL([[5, 6]], use_cache=True).cache},
            ValueError,
            "cache: got 2 tokens of 1 sequences, expected few",
        ),
        (
            {"logits_processor": [lambda ids, z: z[:, :3]]},
            ValueError,
            r"logits_processor: got scores of shape \(1, 3\)",
        ),
        (
            {"prefix_allowed_tokens_fn": lambda row, ids: []},
            ValueError,
            "prefix_allowed_tokens_fn: got no token for pr",
        ),
        ({"watermarking_config": {"biass": 3}}, ValueError, "watermarking_config: .*unexpected keyword"),
        ({"logits_processor": [refdiff.LogitsProcessor()]}, TypeError, "LogitsProcessor: got no __call__, expected"),
        ({"stopping_criteria": [refdiff.StoppingCriteria()]}, TypeError, "StoppingCriteria: got no __call__, expected"),
    ],
)
def test_what_is_given_beside_ids_is_checked(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        generate(MODEL, [[5, 6]], **given)


def test_an_empty_prompt_is_bos() -> None:
    want = generate(MODEL, [[1]], max_new_tokens=4)
    np.testing.assert_array_equal(generate(MODEL, None, max_new_tokens=4), want)
    np.testing.assert_array_equal(generate(MODEL, np.empty((1, 0), int), np.empty((1, 0)), max_new_tokens=4), want)
    model = FakeModel()
    model.generation_config = {"bos_token_id": 9}
    assert generate(model, [[]], max_new_tokens=1)[0, 0] == 9


def test_a_padding_token_outside_the_vocabulary_does_not_matter_for_one_sequence() -> None:
    assert generate(MODEL, [[5]], pad_token_id=V + 5, max_new_tokens=2).shape == (1, 3)


@pytest.mark.parametrize("options", [*WAYS.values(), {"prompt_lookup_num_tokens": 3}], ids=[*WAYS, "lookup"])
@settings(max_examples=settings().max_examples // 3)
@given(prompt=st.lists(st.integers(4, V - 1), min_size=4, max_size=9))
def test_a_chunked_prompt_gives_the_same_text(options: dict[str, Any], prompt: list[int]) -> None:
    expected = generate(MODEL, [prompt], max_new_tokens=6, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refdiff.backends.Backend.chunk_size", 3)
        np.testing.assert_array_equal(generate(MODEL, [prompt], max_new_tokens=6, **options), expected)


@pytest.mark.parametrize("way", [{}, {"num_return_sequences": 2}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 3}])
def test_a_seed_for_each_prompt(way: dict[str, int]) -> None:
    prompts, seeds = [[5, 6, 7], [8, 9, 10], [5, 6, 7], [5, 6, 7]], [3, 3, 3, 4]
    if "prompt_lookup_num_tokens" in way:
        prompts, seeds = prompts[:1], seeds[:1]
    options = {"do_sample": True, "temperature": 5.0, "max_new_tokens": 6, "eos_token_id": None, **way}
    alone = np.concatenate([MODEL.generate([p], seed=s, **options) for p, s in zip(prompts, seeds, strict=True)])
    np.testing.assert_array_equal(MODEL.generate(prompts, seed=seeds, **options), alone)
    assert (alone[0] != alone[-1]).any() or len(prompts) == 1


@pytest.mark.parametrize("pad", [0, None])
@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 3}],
)
def test_lengths_are_those_of_each_text_alone(options: dict[str, Any], pad: int | None) -> None:
    asked = {"eos_token_id": [2, 7, 11], "max_new_tokens": 9, "return_dict_in_generate": True, **options}
    model = FakeModel(3)
    model.config.pad_token_id = pad
    texts, n = [[5, 6, 7], [8, 9, 10], [3, 3, 4], [12, 5, 6]], options.get("num_return_sequences", 1)
    out = generate(model, texts, seed=1, **asked)
    alone = [generate(model, [prompt], seed=1, **asked) for prompt in texts]
    assert out.lengths is not None
    assert out.lengths.tolist() == [length for one in alone for length in one.lengths]
    assert len(set(out.lengths.tolist())) > 1
    for row, (length, one) in enumerate(zip(out.lengths, [one for one in alone for _ in range(n)], strict=True)):
        np.testing.assert_array_equal(out.sequences[row, :length], one.sequences[row % n, :length])


@pytest.mark.parametrize("beams", [1, 2])
def test_a_result_is_read_by_attribute_name_and_position(beams: int) -> None:
    out = generate(FakeModel(3), [[5, 6]], max_new_tokens=3, num_beams=beams, return_dict_in_generate=True)
    assert out.sequences is out["sequences"] is out[0] is dict(out)["sequences"]
    assert "sequences" in out
    assert "scores" not in out
    assert list(out.keys()) == list(out)


@pytest.mark.parametrize("streamer", [print, 5, [], True, refdiff.TextStreamer])
def test_a_streamer_that_is_none_is_refused_first(streamer: Any) -> None:
    with pytest.raises(TypeError, match=r"^streamer: got .*, expected an object with put and end; pass TextStreamer"):
        generate(FakeModel(3), [[5, 6]], streamer=streamer)


# ---- on a device: array-api-strict's second, which converts nothing unasked, or CuPy's


@pytest.mark.parametrize("variant", ["hf", "v2"])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"attention_mask": MASK}, {"do_sample": True, "seed": 4, "top_k": 5, "top_p": 0.9},
        {"do_sample": True, "seed": 1, "num_return_sequences": 2}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3},
        {"repetition_penalty": 1.3},
    ],
    ids=lambda options: "-".join(options) or "greedy",
)  # fmt: skip
def test_text_is_the_same_on_a_device(away: Place, options: dict[str, Any], variant: str) -> None:
    config = refdiff.DiffLlamaConfig(**SIZES, variant=variant)
    there = refdiff.DiffLlamaForCausalLM.from_config(config, seed=3, **away.choice)
    here = refdiff.DiffLlamaForCausalLM.from_config(config, seed=3, kernels="reference")
    ids = IDS[:1] if "prompt_lookup_num_tokens" in options else IDS
    ours, theirs = (model.generate(ids, max_new_tokens=6, eos_token_id=None, **options) for model in (there, here))
    np.testing.assert_array_equal(ours, theirs)
