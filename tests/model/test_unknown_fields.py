"""The fields that a DiffLlama does not use."""

from __future__ import annotations

from typing import Any

import pytest

from refdiff.model import unknown_fields
from refdiff.model.config import DiffLlamaConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"mlp_bias": True},
            "mlp_bias is True: .* of this checkpoint have a bias, .*; only a checkpoint whose mlp_bias is false can",
        ),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "quantization_config is set, but .* unquantized checkpoint",
        ),
        ({"per_layer_config": {"0": {"head_dim": 2}}}, "per_layer_config is set, but all layers"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffLlamaConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": None}, {"mlp_bias": False}, {"mlp_bias": None}, {"quantization_config": None},
        {"per_layer_config": {}}, {"temperature": 0.5, "do_sample": True, "max_length": 30},
        {"is_decoder": True, "torchscript": False, "pruned_heads": {}, "sep_token_id": None},
        {"_commit_hash": "abc", "_attn_implementation_autoset": True, "pretraining_tp": 4},
    ],
    ids=str,
)  # fmt: skip
def test_usual_fields_are_kept_without_a_word(fields: dict[str, Any]) -> None:
    kept = {name: value for name, value in fields.items() if name != "model_type"}
    assert DiffLlamaConfig(**fields).extra == kept


# config.json as transformers 4.46 writes it of any model with use_diff=False, without the fields that DiffLlama reads
WHOLE: dict[str, Any] = {
    "return_dict": True, "output_hidden_states": False, "output_attentions": False, "torchscript": False,
    "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {}, "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False, "is_decoder": False, "cross_attention_hidden_size": None,
    "add_cross_attention": False, "tie_encoder_decoder": False, "max_length": 20, "min_length": 0, "do_sample": False,
    "early_stopping": False, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0,
    "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None, "num_return_sequences": 1,
    "output_scores": False, "return_dict_in_generate": False, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "remove_invalid_values": False, "exponential_decay_length_penalty": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "finetuning_task": None, "tokenizer_class": None,
    "prefix": None, "sep_token_id": None, "decoder_start_token_id": None, "task_specific_params": None,
    "_name_or_path": "", "transformers_version": "4.46.0",
}  # fmt: skip
# what it adds where something was set, and what it keeps for itself
MORE = [
    "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff", "assistant_confidence_threshold",
    "assistant_lookbehind", "num_assistant_tokens", "num_assistant_tokens_schedule", "target_lookbehind",
    "original_max_position_embeddings", "pretraining_tp", "tie_last_hidden_states", "name_or_path", "use_return_dict",
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal", "_output_attentions",
    "_commit_hash",
]  # fmt: skip


@pytest.mark.parametrize("name", [*WHOLE, *MORE])
def test_what_transformers_writes_of_any_model_is_no_news(name: str) -> None:
    assert unknown_fields.written_by_transformers(name, WHOLE.get(name, 1))


def test_a_field_that_is_harmless_while_unset_is_news_when_set() -> None:
    for name in ("mlp_bias", "quantization_config", "per_layer_config", "num_labels"):
        assert unknown_fields.written_by_transformers(name, None)
        assert not unknown_fields.written_by_transformers(name, 1)
    assert not unknown_fields.written_by_transformers("anything", None)


def test_a_near_name_is_suggested_and_a_far_one_is_not() -> None:
    known = ["head_dim", "hidden_size", "hidden_act"]
    text = unknown_fields.describe_unknown(["hiden_size", "hidden", "hidden_size" + "x" * 90], known)
    assert text == (
        "DiffLlama does not use these fields, kept for saving: hiden_size (did you mean hidden_size?), hidden, "
        f"'hidden_size{'x' * 69}'"
    )


def test_twenty_unknown_fields_are_named() -> None:
    names = [f"field_{index}" for index in range(21)]
    assert unknown_fields.describe_unknown(names[:20], ["head_dim"]).endswith("field_18, field_19")
    assert unknown_fields.describe_unknown(names, ["head_dim"]).endswith("field_18, field_19, and 1 more")


def test_unknown_names_are_escaped() -> None:
    assert r"'\x1b[31m'" in unknown_fields.describe_unknown(["\x1b[31m"], ["head_dim"])
