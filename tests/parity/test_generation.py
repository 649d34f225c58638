"""Greedy and beam search to the token, scores and warpers up to rounding error, against transformers' `generate`."""

from __future__ import annotations

import inspect
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.generation import logits_process, stopping_criteria

import refdiff
from refdiff.generation import generate, sampling
from refdiff.generation.options import NAMES, SPEED
from refdiff.generation.stopping import StopStringCriteria
from tests.generation.fakes import FakeModel
from tests.golden import make_generation
from tests.parity.conftest import of
from tests.parity.float64_transformers import float64_peer

pytestmark = pytest.mark.filterwarnings("ignore:the text is longer than", "ignore:Using the model-agnostic default")

V = 53
ENDS = [2, 3, 4, 5, 6, 7]


class Pair:
    """One random checkpoint in float64, as transformers' model and as ours."""

    def __init__(self, folder: Path, seed: int, **config: Any) -> None:
        torch.manual_seed(seed)
        fields = {
            "vocab_size": V, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4,
            "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": ENDS, **config,
        }  # fmt: skip
        transformers.DiffLlamaForCausalLM(transformers.DiffLlamaConfig(**fields)).double().save_pretrained(folder)
        loaded = transformers.DiffLlamaForCausalLM.from_pretrained(folder)
        self.theirs = float64_peer(folder, "DiffLlamaForCausalLM", attention="sdpa").model
        self.theirs.generation_config = loaded.generation_config
        self.ours = refdiff.DiffLlamaForCausalLM.from_pretrained(folder)

    def both(self, ids: np.ndarray, mask: np.ndarray | None = None, **options: Any) -> tuple[Any, Any]:
        """What transformers and what we generate, as result objects."""
        wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
        theirs = self.theirs.generate(
            torch.tensor(ids), attention_mask=None if mask is None else torch.tensor(mask), **options, **wanted
        )
        return theirs, self.ours.generate(ids, attention_mask=mask, **options, **wanted)

    def same(self, ids: np.ndarray, mask: np.ndarray | None = None, **options: Any) -> np.ndarray:
        """The tokens, which are the same, as are scores, logits and beams."""
        theirs, ours = self.both(ids, mask, **options)
        np.testing.assert_array_equal(ours.sequences, theirs.sequences.numpy())
        assert ours.sequences.dtype == np.int64
        for name in ("scores", "logits"):
            for step, (a, b) in enumerate(zip(getattr(ours, name), getattr(theirs, name), strict=True)):
                new = ours.sequences[:, ids.shape[1] : ids.shape[1] + step]
                live = slice(None) if "num_beams" in options else ~np.isin(new, ENDS).any(axis=1)
                np.testing.assert_allclose(a[live], b.numpy()[live], rtol=1e-5, atol=1e-5, err_msg=f"{name} {step}")
        if "num_beams" in options:
            np.testing.assert_array_equal(ours.beam_indices, theirs.beam_indices.numpy())
            np.testing.assert_allclose(ours.sequences_scores, theirs.sequences_scores.numpy(), rtol=1e-5)
        return ours.sequences


@pytest.fixture(scope="module", params=[0, 1])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"), request.param)


def prompts(seed: int, padded: bool) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(seed).integers(8, V, (3, 6))
    mask = np.ones((3, 6), dtype=np.int64)
    if padded:
        mask[0, :3] = mask[1, :2] = 0
        ids[mask == 0] = 0
    return ids, mask


PROCESSORS: dict[str, dict[str, Any]] = {
    "none": {},
    "repetition": {"repetition_penalty": 1.3},
    "repetition below one": {"repetition_penalty": 0.8},
    "ngram 1": {"no_repeat_ngram_size": 1},
    "ngram 2": {"no_repeat_ngram_size": 2},
    "ngram 3": {"no_repeat_ngram_size": 3},
    "bad words": {"bad_words_ids": [[9], [10, 11], [12, 13, 14], [2], [20], [30], [40]]},
    "suppress": {"suppress_tokens": list(range(8, 30))},
    "bias": {"sequence_bias": [[[20], 4.0], [[20, 20], -9.0], [[20, 21], 3.0], [[5], -2.0]]},
    "minimum": {"min_new_tokens": 7},
    "all": {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[9], [10, 11]],
        "suppress_tokens": [12, 13],
        "sequence_bias": [[[20], 4.0], [[20, 21], 3.0]],
        "min_new_tokens": 5,
    },
}


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("options", PROCESSORS.values(), ids=PROCESSORS)
def test_greedy(pair: Pair, options: dict[str, Any], padded: bool) -> None:
    ids, mask = prompts(1, padded)
    sequences = pair.same(ids, mask, max_new_tokens=14, **options)
    assert sequences.shape[1] > ids.shape[1] + 1


BEAMS: dict[str, dict[str, Any]] = {
    "2": {"num_beams": 2},
    "4": {"num_beams": 4},
    "3 of 4": {"num_beams": 4, "num_return_sequences": 3},
    "2 of 2, early": {"num_beams": 2, "num_return_sequences": 2, "early_stopping": True},
    "4, early": {"num_beams": 4, "early_stopping": True},
    "4, never": {"num_beams": 4, "early_stopping": "never"},
    "4, never, short": {"num_beams": 4, "early_stopping": "never", "length_penalty": -1.0},
    "4, long": {"num_beams": 4, "length_penalty": 2.5},
    "4, short": {"num_beams": 4, "length_penalty": -1.5, "num_return_sequences": 4},
    "2, no length": {"num_beams": 2, "length_penalty": 0.0},
    "4, early, long": {"num_beams": 4, "early_stopping": True, "length_penalty": 1.7},
    "4, all processors": {"num_beams": 4, "num_return_sequences": 2, **PROCESSORS["all"]},
}


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("options", BEAMS.values(), ids=BEAMS)
def test_beams(pair: Pair, options: dict[str, Any], padded: bool) -> None:
    ids, mask = prompts(2, padded)
    pair.same(ids, mask, max_new_tokens=12, **options)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("pad", [None, 0, 2, 11])
def test_padding_token(pair: Pair, pad: int | None, beams: int) -> None:
    """After the end of a row; and in a prompt without a mask it is recognized, unless it is an end token too."""
    options = {} if beams == 1 else {"num_beams": beams}
    ids, mask = prompts(5, True)
    if pad is not None:
        ids[mask == 0] = pad
    for given in (mask, None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs, ours = pair.both(ids, given, max_new_tokens=12, pad_token_id=pad, **options)
        np.testing.assert_array_equal(ours.sequences, theirs.sequences.numpy())


def test_padding_on_the_right_is_computed_with_a_warning(pair: Pair) -> None:
    ids, mask = prompts(6, True)
    ids, mask = ids[:, ::-1].copy(), mask[:, ::-1].copy()
    with pytest.warns(UserWarning, match="padded on the right"):
        theirs, ours = pair.both(ids, mask, max_new_tokens=6)
    np.testing.assert_array_equal(ours.sequences, theirs.sequences.numpy())


def test_the_default_length_ends_at_the_last_position(pair: Pair) -> None:
    ids = np.random.default_rng(0).integers(8, V, (1, 50))
    assert pair.same(ids, eos_token_id=None).shape[1] == 64
    too_long = np.random.default_rng(0).integers(8, V, (1, 64))
    for model, given in ((pair.theirs, torch.tensor(too_long)), (pair.ours, too_long)):
        with pytest.raises(ValueError, match="max_new_tokens"):
            model.generate(given)


def test_without_input_it_starts_from_bos(pair: Pair) -> None:
    want = pair.theirs.generate(max_new_tokens=5).numpy()
    np.testing.assert_array_equal(pair.ours.generate(None, max_new_tokens=5), want)
    np.testing.assert_array_equal(pair.ours.generate(np.empty((1, 0), dtype=np.int64), max_new_tokens=5), want)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 11},
        {"num_beams": 3, "length_penalty": 2.0, "max_new_tokens": 6},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "max_length": 15},
        {"eos_token_id": [9, 10, 11, 12, 13], "pad_token_id": 8, "max_new_tokens": 12},
    ],
    ids=str,
)
@pytest.mark.parametrize("given", [{}, {"max_length": 10}, {"max_new_tokens": 3}, {"num_beams": 2}], ids=str)
def test_generation_config_json(tmp_path: Path, settings: dict[str, Any], given: dict[str, Any]) -> None:
    made = Pair(tmp_path, 3, eos_token_id=2)
    transformers.GenerationConfig(**settings).save_pretrained(tmp_path)
    made.theirs.generation_config = transformers.DiffLlamaForCausalLM.from_pretrained(tmp_path).generation_config
    made.ours = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path)
    ids, mask = prompts(8, True)
    want = made.theirs.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **given).numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no effect without")
        np.testing.assert_array_equal(made.ours.generate(ids, attention_mask=mask, **given), want)


def test_every_option_of_transformers_is_known_by_its_name() -> None:
    taken = inspect.signature(transformers.GenerationMixin.generate).parameters
    own = {*inspect.signature(generate).parameters, *NAMES, *SPEED, "self", "kwargs", "transformers_version"}
    for name in sorted({*vars(transformers.GenerationConfig()), *taken} - own):
        if not name.startswith("_"):
            with pytest.raises(TypeError, match=f"got '{name}', an option of transformers that refdiff does not have"):
                refdiff.DiffLlamaForCausalLM.generate(FakeModel(), [[1]], **{name: object()})


@of("DiffLlamaForCausalLM")
def test_every_kind_of_checkpoint(checkpoint: Any) -> None:
    """Greedy and 2 beams over all the checkpoints that the forward pass is compared on."""
    ids = checkpoint.ids(2, 6, "generation")
    mask = np.ones_like(ids)
    mask[0, :2] = 0
    for options in ({}, {"num_beams": 2}):
        peer = checkpoint.fresh_sdpa().model
        peer.generation_config = transformers.DiffLlamaForCausalLM.from_pretrained(checkpoint.folder).generation_config
        want = peer.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), max_new_tokens=8, **options)
        got = checkpoint.fast.generate(ids, attention_mask=mask, max_new_tokens=8, **options)
        np.testing.assert_array_equal(got, want.numpy())


def test_the_golden_values_are_reproducible() -> None:
    stored = json.loads((make_generation.FOLDER / "generation.json").read_text(encoding="utf-8"))["calls"]
    assert make_generation.answers() == stored


# ---- warpers, one by one


def filtered(scores: np.ndarray) -> np.ndarray:
    return np.asarray(sampling.softmax(scores))


WARPERS = [
    (sampling.temperature, logits_process.TemperatureLogitsWarper, (0.3, 1.7)),
    (sampling.top_k, logits_process.TopKLogitsWarper, (1, 5, 100)),
    (sampling.top_p, logits_process.TopPLogitsWarper, (0.0, 0.01, 0.5, 0.9, 0.999)),
    (sampling.min_p, logits_process.MinPLogitsWarper, (0.0, 0.05, 0.5, 1.0)),
    (sampling.typical_p, logits_process.TypicalLogitsWarper, (0.05, 0.5, 0.9, 0.99)),
    (sampling.epsilon_cutoff, logits_process.EpsilonLogitsWarper, (1e-4, 0.02, 0.9)),
    (sampling.eta_cutoff, logits_process.EtaLogitsWarper, (1e-4, 0.02, 0.9)),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("ours", "theirs", "values"), WARPERS)
def test_warpers(ours: Any, theirs: Any, values: tuple[float, ...], seed: int) -> None:
    """The same tokens left with the same probabilities, also where some were forbidden before."""
    scores = np.random.default_rng(seed).normal(0, 3, (5, 41)).astype(np.float32).astype(np.float64)
    scores[0, 3:] = -np.inf
    scores[1, ::2] = -np.inf
    for value, keep in itertools.product(values, (1, 3, 60)):
        if ours is sampling.temperature:
            got, peer = ours(scores, value), theirs(value)
        else:
            got, peer = ours(scores, value, keep=keep), theirs(value, min_tokens_to_keep=keep)
        want = peer(torch.empty(5, 0), torch.tensor(scores)).numpy()
        np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want), err_msg=f"{value} {keep}")
        np.testing.assert_allclose(filtered(got), filtered(want), rtol=1e-12, err_msg=f"{value} {keep}")


MADE: dict[str, list[dict[str, Any]]] = {
    "MinLengthLogitsProcessor": [{"min_length": n, "eos_token_id": [3, 7]} for n in (0, 6, 7)],
    "MinNewTokensLengthLogitsProcessor": [
        {"prompt_length_to_skip": 2, "min_new_tokens": n, "eos_token_id": 5} for n in (0, 4, 5)
    ],
    "TemperatureLogitsWarper": [{"temperature": 0.3}],
    "RepetitionPenaltyLogitsProcessor": [{"penalty": 1.3}, {"penalty": 0.8, "prompt_ignore_length": 2}],
    "EncoderRepetitionPenaltyLogitsProcessor": [{"penalty": 1.7, "encoder_input_ids": "prompts"}],
    "TopHLogitsWarper": [{"top_h": h} for h in (1e-3, 0.4, 0.9, 0.999)],
    "NoRepeatNGramLogitsProcessor": [{"ngram_size": n} for n in (1, 2, 3, 9)],
    "EncoderNoRepeatNGramLogitsProcessor": [
        {"encoder_ngram_size": n, "encoder_input_ids": "prompts"} for n in (1, 2, 3)
    ],
    "SequenceBiasLogitsProcessor": [{"sequence_bias": [[[20], 4.0], [[1, 2], -9.0], [[2, 1], 3.0]]}],
    "NoBadWordsLogitsProcessor": [{"bad_words_ids": [[9], [1, 2], [2, 1], [4]], "eos_token_id": [4, 5]}],
    "ForcedBOSTokenLogitsProcessor": [{"bos_token_id": 4}],
    "ForcedEOSTokenLogitsProcessor": [{"max_length": n, "eos_token_id": [4, 8]} for n in (2, 7, 9)],
    "InfNanRemoveLogitsProcessor": [{}],
    "ExponentialDecayLengthPenalty": [
        {"exponential_decay_length_penalty": (n, 1.2), "eos_token_id": [4, 8], "input_ids_seq_length": 2}
        for n in (0, 3, 4)
    ],
    "LogitNormalization": [{}],
    "SuppressTokensLogitsProcessor": [{"suppress_tokens": [1, 4, 9, 700]}],
    "SuppressTokensAtBeginLogitsProcessor": [{"begin_suppress_tokens": [1, 4], "begin_index": n} for n in (1, 6)],
    "PrefixConstrainedLogitsProcessor": [
        {"prefix_allowed_tokens_fn": lambda row, ids: [int(ids[-1]), 3 + row], "num_beams": n} for n in (1, 2)
    ],
    "WatermarkLogitsProcessor": [
        {"vocab_size": 41, "device": "cpu", "bias": 1.5, **more}
        for more in ({}, {"greenlist_ratio": 0.6, "hashing_key": 77}, {"seeding_scheme": "selfhash"},
                     {"seeding_scheme": "selfhash", "context_width": 3}, {"context_width": 9})
    ],
    "SynthIDTextWatermarkLogitsProcessor": [
        {"ngram_len": n, "keys": [654, 400, 836, 123], "sampling_table_size": 256, "sampling_table_seed": 5,
         "context_history_size": 3, "device": "cpu", **more}
        for n, more in ((2, {}), (3, {"skip_first_ngram_calls": True}), (4, {"debug_mode": True}))
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_processors(name: str) -> None:
    """The class of that name, with the same arguments: the same scores after texts of several lengths."""
    rng = np.random.default_rng(len(name))
    for made in MADE[name]:
        texts = rng.integers(0, 9, (4, 8))
        given = {key: texts[:2, :5] if value == "prompts" else value for key, value in made.items()}
        torches = {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in given.items()}
        ours, theirs = getattr(refdiff, name)(**given), getattr(logits_process, name)(**torches)
        for length in (1, 2, 6, 7, 8):
            scores = rng.normal(0, 3, (4, 41))
            if "Watermark" not in name:
                scores[0, 4:] = -np.inf
            if name == "InfNanRemoveLogitsProcessor":
                scores[1, :3] = np.nan, np.inf, -np.inf
            ids, before = texts[:, :length], scores.copy()
            want = theirs(torch.tensor(ids), torch.tensor(scores)).numpy()
            np.testing.assert_allclose(ours(ids, scores), want, rtol=1e-10, atol=1e-12, err_msg=f"{made} {length}")
            np.testing.assert_array_equal(scores, before)


def test_every_processor_criterion_and_streamer_is_there_or_refused_by_name() -> None:
    """Those refused are for models of speech and sound, or for diffusion."""
    ends = ("LogitsProcessor", "Warper", "Penalty", "Normalization", "Criteria", "CriteriaList", "Streamer")
    names = [name for name in dir(transformers) if name.endswith(ends)]
    refused = [name for name in names if not hasattr(refdiff, name)]
    for name in refused:
        with pytest.raises(AttributeError, match=f"refdiff.{name}: got a name of transformers, .*; "):
            getattr(refdiff, name)
    assert len(names) > 4 * len(refused)
    assert hasattr(refdiff, "UnbatchedClassifierFreeGuidanceLogitsProcessor")


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("scale", [0.5, 1.7])
def test_guidance(pair: Pair, scale: float, negative: bool) -> None:
    ids, _ = prompts(4, False)
    options: dict[str, Any] = {"guidance_scale": scale, "max_new_tokens": 9, "pad_token_id": 0}
    against = np.random.default_rng(3).integers(8, V, (3, 4)) if negative else None
    theirs = None if against is None else torch.tensor(against)
    want = pair.theirs.generate(torch.tensor(ids), negative_prompt_ids=theirs, **options)
    got = pair.ours.generate(ids, negative_prompt_ids=against, **options)
    np.testing.assert_array_equal(got, want.numpy())


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"num_beams": 2}, {"max_length": 14}, {"max_length": 14, "num_beams": 2}], ids=str
)
def test_embeddings_in_place_of_ids(pair: Pair, with_ids: bool, more: dict[str, Any]) -> None:
    ids, mask = prompts(7, True)
    embeds = pair.theirs.get_input_embeddings()(torch.tensor(ids)).detach() * 1.25
    options: dict[str, Any] = {"pad_token_id": 0} | ({} if "max_length" in more else {"max_new_tokens": 8}) | more
    theirs = {"input_ids": torch.tensor(ids)} if with_ids else {}
    want = pair.theirs.generate(inputs_embeds=embeds, attention_mask=torch.tensor(mask), **theirs, **options)
    given = {"input_ids": ids} if with_ids else {}
    got = pair.ours.generate(inputs_embeds=embeds.numpy(), attention_mask=mask, **given, **options)
    np.testing.assert_array_equal(got, want.numpy())


@pytest.mark.parametrize("way", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_attentions_and_hidden_states_of_each_step(pair: Pair, way: dict[str, Any]) -> None:
    """The shapes of transformers' and, where the tokens are the same, the numbers."""
    ids, mask = prompts(3, False)
    options: dict[str, Any] = {"max_new_tokens": 5, "eos_token_id": None, "output_attentions": True} | way
    pair.theirs.set_attn_implementation("eager")
    try:
        theirs, ours = pair.both(ids, mask, output_hidden_states=True, **options)
    finally:
        pair.theirs.set_attn_implementation("sdpa")
    for name in ("attentions", "hidden_states"):
        assert len(getattr(ours, name)) == len(getattr(theirs, name)) == 5
        for step, (a, b) in enumerate(zip(getattr(ours, name), getattr(theirs, name), strict=True)):
            assert [x.shape for x in a] == [tuple(x.shape) for x in b]
            if "do_sample" not in way or step == 0:
                for x, y in zip(a, b, strict=True):
                    np.testing.assert_allclose(x, y.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "way"), [("cache", {}), ("past_key_values", {"num_beams": 2})])
def test_a_cache_handed_in(pair: Pair, name: str, way: dict[str, Any]) -> None:
    """The text of the whole prompt, of which a first call read the beginning."""
    ids, _ = prompts(5, False)
    options: dict[str, Any] = {"eos_token_id": None, "pad_token_id": 0}
    first = pair.ours.generate(ids, max_new_tokens=4, return_dict_in_generate=True, **options)
    more = np.concatenate([first.sequences, ids[:, :3]], axis=1)
    want = pair.theirs.generate(torch.tensor(more), max_new_tokens=6, **options, **way).numpy()
    got = pair.ours.generate(more, max_new_tokens=6, **{name: first.cache}, **options, **way)
    np.testing.assert_array_equal(got, want)


SAMPLING = [
    {"top_h": 0.6, "temperature": 1.3},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.9},
    {"top_k": 0, "min_p": 0.1, "repetition_penalty": 1.4},
    {"top_k": None, "typical_p": 0.7, "temperature": 2.0},
    {"epsilon_cutoff": 0.05, "eta_cutoff": 0.1, "top_p": 0.99, "no_repeat_ngram_size": 1},
    {},
]


@pytest.mark.parametrize("beams", [1, 2], ids=["sampling", "beam sampling"])
@pytest.mark.parametrize("options", SAMPLING, ids=str)
def test_the_scores_that_sampling_draws_from(pair: Pair, options: dict[str, Any], beams: int) -> None:
    """All processors and warpers of a call in transformers' order: the first step's distribution, defaults included."""
    ids, mask = prompts(9, True)
    theirs, ours = pair.both(ids, mask, max_new_tokens=1, do_sample=True, num_beams=beams, **options)
    rows = slice(None) if beams == 1 else slice(0, None, beams)  # theirs has the prompt in every beam, as ours
    np.testing.assert_array_equal(np.isneginf(ours.scores[0][rows]), np.isneginf(theirs.scores[0].numpy()[rows]))
    np.testing.assert_allclose(filtered(ours.scores[0]), filtered(theirs.scores[0].numpy()), rtol=1e-4, atol=1e-7)


# ---- stop strings


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A small byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    corpus = [
        "the stop stopped at a stopping station",
        "日本語の文章を止める 🙂🙃",
        "stop! stop? topper lasto pped",
    ] * 3
    backend.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("strings", [["stop"], ["op", "at a"], ["の文"], ["🙂"], ["p"], [" stopp", "!"]], ids=str)
def test_stop_strings(tokenizer: Any, strings: list[str]) -> None:
    """After every token of texts split at random, the same answer as transformers' criterion."""
    rng = np.random.default_rng(3)
    peer = stopping_criteria.StopStringCriteria(tokenizer, strings)
    ours = StopStringCriteria(tokenizer, strings)
    vocabulary = [t for t, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    relevant = [i for i, t in enumerate(vocabulary) if set(tokenizer.decode([i])) & set("stop a!の文🙂\ufffd")]
    hits = 0
    for _ in range(60):
        ids = rng.choice(relevant, (4, 12))
        text = tokenizer("xx stop at a stop! 日本の文 🙂 stopped", add_special_tokens=False)["input_ids"]
        ids[0] = text[(start := int(rng.integers(0, len(text) - 12))) : start + 12]
        for end in range(1, 13):
            want = peer(torch.tensor(ids[:, :end]), None).numpy()
            np.testing.assert_array_equal(ours(ids[:, :end], None), want, err_msg=str(ids[:, :end]))
            hits += int(want.sum())
    assert hits > 10
