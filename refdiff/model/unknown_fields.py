"""The fields of a config.json that a DiffLlama does not use: the usual ones, the refused ones and the unknown ones."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from refdiff.messages import show_name, show_value

# Fields that transformers (4 and 5) writes into the config.json of any model and that change nothing in a DiffLlama.
_GENERIC_FIELDS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_commit_hash",
        "_experts_implementation",
        "_experts_implementation_internal",
        "_name_or_path",
        "_output_attentions",
        "add_cross_attention",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "attn_implementation",
        "bad_words_ids",
        "begin_suppress_tokens",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty",
        "epsilon_cutoff",
        "eta_cutoff",
        "experts_implementation",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "is_decoder",
        "is_encoder_decoder",
        "length_penalty",
        "max_length",
        "min_length",
        "name_or_path",
        "no_repeat_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "original_max_position_embeddings",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "prefix",
        "pretraining_tp",
        "pruned_heads",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "target_lookbehind",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tie_last_hidden_states",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torchscript",
        "transformers_version",
        "typical_p",
        "use_bfloat16",
        "use_return_dict",
    }
)
# Fields that are harmless only while they are unset.
_HARMLESS_WHEN_UNSET = frozenset({"mlp_bias", "quantization_config", "per_layer_config", "num_labels"})


def written_by_transformers(name: str, value: Any) -> bool:
    """Tell whether a field needs no word: transformers writes it into any model's file, and it changes nothing here."""
    return name in _GENERIC_FIELDS or (name in _HARMLESS_WHEN_UNSET and not value)


def refuse_other_models(given: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a config that describes something else than one plain stack of layers."""
    if given.get("mlp_bias"):
        raise ValueError(
            f"mlp_bias is {show_value(given['mlp_bias'])}: the feed-forward layers of this checkpoint have a bias, "
            "which no model here adds; only a checkpoint whose mlp_bias is false can be read"
        )
    if given.get("quantization_config"):
        raise ValueError(
            "quantization_config is set, but quantized weights cannot be read: use the unquantized checkpoint"
        )
    if given.get("per_layer_config"):
        raise ValueError("per_layer_config is set, but all layers must have the same sizes: remove it")


def describe_unknown(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Name the unknown fields in one sentence, each with the known field it may be a misspelling of."""
    named = []
    for name in unknown[:20]:
        near = difflib.get_close_matches(name[:80], known, cutoff=0.85)
        named.append(f"{show_name(name)} (did you mean {near[0]}?)" if near else show_name(name))
    if len(unknown) > 20:
        named.append(f"and {len(unknown) - 20} more")
    return f"DiffLlama does not use these fields, kept for saving: {', '.join(named)}"
