"""Names, ranges, where a value comes from, and what is said about a wrong one."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.errors import CheckpointError
from refdiff.generation.options import NAMES, GenerationConfig, resolve
from refdiff.generation.watermarking import WatermarkingConfig
from tests.generation.fakes import FakeModel, letters

WRONG: list[tuple[str, Any, str]] = [
    ("max_new_tokens", 0, "an integer from 1 to 2,147,483,647"),
    ("max_length", -1, "an integer from 1 to 2,147,483,647"),
    ("min_new_tokens", -1, "an integer from 0 to 2,147,483,647"),
    ("do_sample", 1, "True or False"),
    ("temperature", float("nan"), "0 or a number from 1e-06 to 1e.06"),
    ("top_k", -1, "an integer from 0 to 2,147,483,647"),
    ("top_p", 1.01, "a number from 0 to 1"),
    ("min_p", -0.01, "a number from 0 to 1"),
    ("typical_p", 0.0, "a number above 0 to 1"),
    ("epsilon_cutoff", 1.0, "from 0 to below 1"),
    ("eta_cutoff", -1e-9, "from 0 to below 1"),
    ("repetition_penalty", 0, "a number from 1e-06 to 1000"),
    ("no_repeat_ngram_size", -2, "an integer from 0 to 2,147,483,647"),
    ("bad_words_ids", [], "a non-empty list of non-empty lists"),
    ("bad_words_ids", [[]], "a non-empty list of non-empty lists"),
    ("suppress_tokens", [1, "x"], "a list of token ids"),
    ("sequence_bias", {3: 1.0}, "a dict"),
    ("sequence_bias", {(3,): "x"}, "a dict"),
    ("sequence_bias", 7, "a dict"),
    ("num_beams", 0, "an integer from 1 to 1,000"),
    ("length_penalty", float("inf"), "a number from -20 to 20"),
    ("early_stopping", "always", 'True, False or "never"'),
    ("num_return_sequences", 0, "an integer from 1 to 10,000"),
    ("eos_token_id", "x", "a token id or a list"),
    ("pad_token_id", -2, "an integer from 0 to 2,147,483,647"),
    ("stop_strings", ["a", ""], "a non-empty string"),
    ("tokenizer", "gpt2", "a tokenizer"),
    ("max_time", 0, "a number above 0 to 1e.09"),
    ("prompt_lookup_num_tokens", 0, "an integer from 1 to 2,147,483,647"),
    ("assistant_model", "small", "a model"),
    ("assistant_model", len, "a model"),
    ("min_length", -1, "an integer from 0 to 2,147,483,647"),
    ("top_h", 0, "a number above 0 to 1"),
    ("encoder_repetition_penalty", 0, "a number from 1e-06 to 1000"),
    ("encoder_no_repeat_ngram_size", -1, "an integer from 0 to 2,147,483,647"),
    ("begin_suppress_tokens", 3, "a list of token ids"),
    ("forced_bos_token_id", "x", "an integer from 0 to 2,147,483,647"),
    ("forced_eos_token_id", "x", "a token id or a list"),
    ("exponential_decay_length_penalty", (-1, 1.5), "a start, an integer of 0 or more, and a factor above 0"),
    ("remove_invalid_values", 1, "True or False"),
    ("renormalize_logits", 0, "True or False"),
    ("guidance_scale", "x", "a number from -1e.06 to 1e.06"),
    ("negative_prompt_ids", 3, ".B, T. token ids"),
    ("negative_prompt_attention_mask", [], ".B, T. token ids"),
    ("watermarking_config", 3, "a WatermarkingConfig, a SynthIDTextWatermarkingConfig or a dict"),
    ("prefix_allowed_tokens_fn", 3, "a function"),
    ("logits_processor", [3], "a list of functions"),
    ("stopping_criteria", len, "a list of functions"),
    ("output_attentions", 1, "True or False"),
    ("output_hidden_states", [0], "True or False"),
    ("return_dict_in_generate", "yes", "True or False"),
    ("output_scores", 0, "True or False"),
]


HUGE = 10**400
TOO_LARGE: list[tuple[str, Any]] = [
    ("max_new_tokens", 2**31), ("max_length", HUGE), ("max_new_tokens", 10**5000), ("num_beams", 1001),
    ("num_return_sequences", 10**5), ("length_penalty", -21), ("top_p", HUGE), ("temperature", 1e308),
    ("eos_token_id", [HUGE]), ("pad_token_id", 2**63), ("suppress_tokens", [2**63]), ("bad_words_ids", [[2**63]]),
    ("sequence_bias", [[[1], HUGE]]), ("sequence_bias", [[[1], 1e999]]), ("max_time", HUGE),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), TOO_LARGE, ids=range(len(TOO_LARGE)))
def test_values_that_overflow_an_array_or_a_float_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: got .*, expected ") as caught:
        resolve(FakeModel(), {name: value})
    assert len(str(caught.value)) < 200
    model = FakeModel()
    model.generation_config = {name: value}
    for model.source, folder in ((None, ""), ("some/folder", "some.folder.")):
        with pytest.raises(CheckpointError, match=rf"^{folder}generation_config\.json: {name}: got .*, expected "):
            resolve(model, {})


@pytest.mark.parametrize(("name", "value", "accepted"), WRONG)
def test_a_wrong_value_names_itself_and_what_is_accepted(name: str, value: Any, accepted: str) -> None:
    with pytest.raises(ValueError, match=accepted) as caught:
        resolve(FakeModel(), {name: value})
    assert str(caught.value).startswith(f"{name}: got {value!a}, expected ")


def test_every_option_has_a_range_that_is_tested() -> None:
    assert {name for name, _, _ in WRONG} | {"output_logits"} == set(NAMES)


def test_a_list_that_suppresses_every_token_is_named() -> None:
    model, size = FakeModel(), FakeModel().config.vocab_size
    with pytest.raises(ValueError, match=f"^suppress_tokens: got all {size} tokens of the vocabulary, expected to lea"):
        resolve(model, {"suppress_tokens": list(range(size + 3))})
    assert resolve(model, {"suppress_tokens": list(range(1, size + 3))})
    model.generation_config = {"suppress_tokens": list(range(size))}
    with pytest.raises(CheckpointError, match=f"^generation_config.json: suppress_tokens: got all {size} tokens"):
        resolve(model, {})
    model.generation_config = {"bad_words_ids": [[size]]}
    with pytest.raises(
        CheckpointError, match=f"^generation_config.json: bad_words_ids: got token {size}, expected 0 to"
    ):
        resolve(model, {})


def test_negative_special_tokens_in_files_mean_none() -> None:
    model = FakeModel(pad_token_id=-1, eos_token_id=2)
    assert resolve(model, {}).pad_token_id == 2
    model.generation_config = {"eos_token_id": -1, "pad_token_id": -1, "tokenizer": "x", "assistant_model": 3}
    got = resolve(model, {})
    assert (got.eos_token_id, got.pad_token_id, got.tokenizer, got.assistant_model) == (None, None, None, None)


def test_arrays_are_lists_of_ids() -> None:
    given = {"eos_token_id": np.array([3, 4]), "top_p": np.float32(0.5), "num_beams": np.int64(2), "top_k": np.array(3)}
    got = resolve(FakeModel(), given | {"do_sample": True})
    assert (got.eos_token_id, got.top_p, got.num_beams, got.top_k) == ([3, 4], 0.5, 2, 3)


def test_where_a_value_comes_from() -> None:
    """The call, then generation_config.json; unknown entries are passed over. config.json is not read, as there."""
    model = FakeModel(eos_token_id=[3, 4])
    assert resolve(model, {}).eos_token_id == [3, 4]
    model.generation_config = {"temperature": 0.6, "top_k": 7, "top_p": None, "transformers_version": "5", "min_p": 0.1}
    got = resolve(model, {"do_sample": True, "top_k": 9})
    assert (got.temperature, got.top_k, got.top_p, got.min_p, got.eos_token_id) == (0.6, 9, 1.0, 0.1, None)
    model.generation_config = {"eos_token_id": 5, "pad_token_id": 6}
    assert (resolve(model, {}).eos_token_id, resolve(model, {}).pad_token_id) == ([5], 6)
    assert resolve(model, {"eos_token_id": [7, 8]}).eos_token_id == [7, 8]


def test_an_explicit_none_turns_an_option_off() -> None:
    model = FakeModel(pad_token_id=None)
    model.generation_config = {"top_k": 7, "num_beams": 3, "return_dict_in_generate": True, "early_stopping": True}
    got = resolve(model, {"top_k": None, "num_beams": None, "eos_token_id": None, "return_dict_in_generate": None})
    assert (got.top_k, got.num_beams, got.eos_token_id, got.pad_token_id) == (None, 1, None, None)
    assert got.return_dict_in_generate is False


def test_the_padding_token_is_the_first_end_token_where_there_is_none() -> None:
    assert resolve(FakeModel(pad_token_id=None, eos_token_id=[5, 6]), {}).pad_token_id == 5


def test_both_spellings_become_one() -> None:
    got = resolve(FakeModel(), {"sequence_bias": [[[3, 4], 1]], "stop_strings": "x", "tokenizer": letters()})
    assert got.sequence_bias == {(3, 4): 1.0}
    assert got.stop_strings == ["x"]


TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"do_sample": True, "temperature": 0}, "for greedy text, do_sample=False"),
    ({"num_return_sequences": 2}, "got 2, expected 1 with greedy decoding"),
    ({"num_return_sequences": 4, "num_beams": 3}, "at most num_beams, 3"),
    ({"stop_strings": "x"}, "tokenizer: got None, expected one for stop_strings"),
    ({"prompt_lookup_num_tokens": 3, "assistant_model": FakeModel()}, "got both, expected one of them"),
    ({"assistant_model": FakeModel(), "num_beams": 2}, "expected greedy decoding or sampling"),
    (
        {"prompt_lookup_num_tokens": 3, "do_sample": True, "num_return_sequences": 2},
        "num_return_sequences: got 2, expected 1 with",
    ),
]


@pytest.mark.parametrize(("given", "message"), TOGETHER)
def test_options_that_exclude_each_other(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(FakeModel(), given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.5, "top_p": 0.9}, "temperature, top_p: no effect without do_sample=True"),
        ({"length_penalty": 2.0}, "length_penalty: no effect without num_beams"),
        ({"output_scores": True}, "output_scores: no effect without return_dict_in_generate=True"),
    ],
)
def test_options_without_effect_are_warned_about(given: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        resolve(FakeModel(), given)


def test_options_of_the_file_and_neutral_values_are_not_warned_about() -> None:
    model = FakeModel()
    model.generation_config = {"temperature": 0.6, "top_k": 5, "length_penalty": 2.0, "output_scores": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve(model, {"temperature": 1.0, "top_k": 50, "typical_p": 1.0, "early_stopping": False})


def test_minus_one_means_no_special_token() -> None:
    got = resolve(FakeModel(), {"eos_token_id": -1, "pad_token_id": -1})
    assert (got.eos_token_id, got.pad_token_id) == (None, None)


class Foreign:
    """The config object of another library."""

    def to_dict(self) -> dict[str, Any]:
        return {"top_k": 5, "min_p": None, "bos_token_id": 1, "some_model_writes": 7, "use_cache": True}


@pytest.mark.parametrize("config", [{"top_k": 5}, GenerationConfig(top_k=5), Foreign()], ids=["dict", "ours", "other"])
def test_a_generation_config_comes_between_the_call_and_the_file(config: Any) -> None:
    model = FakeModel()
    model.generation_config = {"top_k": 7, "min_p": 0.3, "top_p": 0.5}
    got = resolve(model, {"do_sample": True, "top_p": 0.9}, config)
    assert (got.top_k, got.min_p, got.top_p) == (5, 0.3, 0.9)
    with pytest.raises(TypeError, match="generation_config: got 3, expected a GenerationConfig or a dict"):
        resolve(model, {}, 3)
    with pytest.raises(TypeError, match="got 'num_beam_groups', an option of transformers that refdiff does not"):
        resolve(model, {}, {"num_beam_groups": 2})


def test_a_generation_config_is_saved_and_loaded(tmp_path: Path) -> None:
    made = GenerationConfig(top_k=5, sequence_bias={(1, 2): 3.0}, watermarking_config=WatermarkingConfig(bias=3.0), x=1)
    made.num_beams = 2
    made.logits_processor = [len]
    refdiff.DiffLlamaConfig().save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    got = GenerationConfig.from_pretrained(tmp_path, min_p=0.5)
    assert (got.top_k, got.num_beams, got.min_p, got.x, got.top_p) == (5, 2, 0.5, 1, None)
    assert (got.sequence_bias, got.watermarking_config["bias"]) == ([[[1, 2], 3.0]], 3.0)
    assert json.loads(made.to_json_string())["num_beams"] == 2
    assert "logits_processor" not in got
    (tmp_path / "long.json").write_text('{"max_length": 70}', encoding="utf-8")
    named = GenerationConfig.from_pretrained(tmp_path, config_file_name="long.json", return_unused_kwargs=False)
    assert named.to_dict() == {"max_length": 70}
    with pytest.raises(ValueError, match=r"return_unused_kwargs: got True, expected None or False; the result is the"):
        GenerationConfig.from_dict({}, return_unused_kwargs=True)
    with pytest.raises(ValueError, match=r"^top_p: got 2, expected a number from 0 to 1"):
        GenerationConfig(top_p=2)
    with pytest.raises(AttributeError, match="'GenerationConfig' object has no attribute 'topk'"):
        _ = made.topk


# ---- options that are not there


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("max_tokens", "got an unknown option 'max_tokens': did you mean 'max_new_tokens'?"),
        ("zzz", f"got an unknown option 'zzz'; the known ones are {', '.join(NAMES)}"),
        ("penalty_alpha", "got 'penalty_alpha', an option of transformers that refdiff does not have; transformers "
         "moved contrastive search out of the library, so its results have no reference; no_repeat_ngram_size and "
         "repetition_penalty avoid repetitions"),
        ("num_beam_groups", "got 'num_beam_groups', an option of transformers that refdiff does not have; num_beams "
         "searches in one group"),
        ("constraints", "got 'constraints', an option of transformers that refdiff does not have; "
         "prefix_allowed_tokens_fn says which tokens may follow"),
    ],
)  # fmt: skip
def test_an_unknown_option_is_refused_with_a_hint(name: str, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        resolve(FakeModel(), {name: 2})
    assert str(caught.value) == f"generate() {message}"


@pytest.mark.parametrize(
    ("name", "neutral", "other"),
    [
        ("cache_implementation", "dynamic", "quantized"), ("cache_implementation", "static", "offloaded"),
        ("num_beam_groups", 1, 2), ("penalty_alpha", 0.0, 0.6),
        ("return_dict", True, False), ("token_healing", False, 0), ("custom_generate", None, "x"),
        ("num_beam_groups", 1, np.eye(2)), ("diversity_penalty", 0, False),
    ],
)  # fmt: skip
def test_a_value_that_changes_nothing_is_accepted(name: str, neutral: Any, other: Any) -> None:
    assert resolve(FakeModel(), {name: neutral}) == resolve(FakeModel(), {})
    with pytest.raises(TypeError, match=f"got '{name}', an option of transformers that refdiff does not have"):
        resolve(FakeModel(), {name: other})


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"dola_layers": "high", "max_new_tokens": 3}, ["dola_layers: got 'high'"]),
        ({"penalty_alpha": 0.6, "num_beam_groups": 2}, ["num_beam_groups: got 2", "penalty_alpha: got 0.6"]),
        ({"min_length": 0, "num_beam_groups": 1, "encoder_repetition_penalty": 1.0, "renormalize_logits": False}, []),
        ({"guidance_scale": None, "use_cache": False, "output_attentions": True, "transformers_version": "5"}, []),
    ],
)
def test_options_of_the_file_that_would_change_the_text_are_reported(entries: Any, named: list[str]) -> None:
    model = FakeModel()
    model.generation_config = entries
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        resolve(model, {})
    assert [str(w.message).split(", expected")[0] for w in found] == [f"generation_config.json: {n}" for n in named]
    assert all("the text is the one without it" in str(w.message) for w in found)
