"""The accepted values of each field of a config.json, and the fields that a DiffLlama does not use.

Every message has the value, the accepted range and the fix.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from refdiff.layers.activation import NAMES as ACTIVATIONS
from refdiff.messages import did_you_mean, show_name, show_typed, show_value
from refdiff.model.variants import VARIANTS, current_name

Config = Any
"""A `DiffLlamaConfig` that is being filled, whose file imports this one."""

DTYPES = ("float32", "float64", "float16", "bfloat16")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
MAX_LABELS = 100_000
LLAMA_DEFAULTS = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "rms_norm_eps": 1e-6,
}  # fmt: skip
"""Defaults of a Llama's file that differ from those of a DiffLlama's."""

# Fields that transformers (4 and 5) writes into the config.json of any model and that change nothing in a DiffLlama.
_GENERIC_FIELDS = {
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash",
    "_experts_implementation", "_experts_implementation_internal", "_name_or_path", "_output_attentions",
    "add_cross_attention", "assistant_confidence_threshold", "assistant_lookbehind", "attn_implementation",
    "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward", "cross_attention_hidden_size",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff", "experts_implementation",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "is_decoder",
    "is_encoder_decoder", "length_penalty", "max_length", "min_length", "name_or_path", "no_repeat_ngram_size",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "num_beam_groups", "num_beams", "num_return_sequences",
    "original_max_position_embeddings", "output_attentions", "output_hidden_states", "output_scores", "prefix",
    "pretraining_tp", "pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "target_lookbehind", "task_specific_params",
    "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_last_hidden_states", "tokenizer_class", "top_k",
    "top_p", "torchscript", "transformers_version", "typical_p", "use_bfloat16", "use_return_dict",
}  # fmt: skip
# Fields that are harmless only while they are unset.
_HARMLESS_WHEN_UNSET = {"mlp_bias", "quantization_config", "per_layer_config", "num_labels"}
_DTYPE_ALIASES = {"float": "float32", "double": "float64", "half": "float16"}


def integer(name: str, value: Any, low: int, high: int) -> int:
    """Return `value` as an int within `low` and `high`, or raise `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name}: got {show_typed(value)}, expected an integer")
    number = int(value)
    if not low <= number <= high:
        raise ValueError(f"{name}: got {show_value(number)}, expected {low} to {high}")
    return number


def size(high: int) -> Callable[[str, Any], int]:
    """Return the check for an integer between 1 and `high`."""
    return lambda name, value: integer(name, value, 1, high)


def non_negative(name: str, value: Any) -> float:
    """Return `value` as a finite float of 0 or more, or raise `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name}: got {show_typed(value)}, expected a number of 0 or more")
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    if not 0 <= number <= 1e30:  # false for NaN too; more would not fit float32
        raise ValueError(f"{name}: got {show_value(number)}, expected 0 to 1e30")
    return float(number)


def boolean(name: str, value: Any) -> bool:
    """Return `value` if it is a bool, or raise `ValueError`."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: got {show_typed(value)}, expected true or false")
    return value


def no_dropout(name: str, value: Any) -> float:
    """Return 0.0 if `value` is 0 or null, or raise `ValueError`: no paper defines dropout for a difference of maps."""
    if value is None:
        return 0.0
    if non_negative(name, value) > 0:
        raise ValueError(
            f"{name}: got {show_value(value)}, expected 0.0: DiffLlama defines no dropout on its attention maps"
        )
    return 0.0


def activation(name: str, value: Any) -> str:
    """Return `value` if it names an activation, or raise `ValueError`."""
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ValueError(f"{name}: got {show_value(value)}, expected one of {', '.join(ACTIVATIONS)}")
    return value


def token_id(name: str, value: Any) -> int | None:
    """Return `value` if it is an integer or None; ids outside the vocabulary are reported by `token_id_remarks`."""
    return None if value is None else integer(name, value, -(2**31), 2**31 - 1)


def token_id_or_list(name: str, value: Any) -> int | list[int] | None:
    """Return `value` if it is an integer, a list of integers or None, or raise `ValueError`."""
    if isinstance(value, list | tuple):
        if len(value) > 1000:
            raise ValueError(f"{name}: got {len(value)} ids, expected at most 1000")
        return [integer(f"{name}[{index}]", item, -(2**31), 2**31 - 1) for index, item in enumerate(value)]
    return token_id(name, value)


def problem_type(name: str, value: Any) -> str | None:
    """Return `value` if it is None or one of the three losses of sequence classification, or raise `ValueError`."""
    if value is not None and (not isinstance(value, str) or value not in PROBLEM_TYPES):
        raise ValueError(f"{name}: got {show_value(value)}, expected null or one of {', '.join(PROBLEM_TYPES)}")
    return value


def names(name: str, value: Any) -> list[str] | None:
    """Return `value` if it is None or a list of strings, or raise `ValueError`."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(
            f"{name}: got {show_value(value)}, expected a list of class names such as ['DiffLlamaForCausalLM']"
        )
    return list(value)


def dtype_name(dtype: Any, torch_dtype: Any) -> str | None:
    """Return the stored dtype as one of the four names, or None; `dtype` wins over the older `torch_dtype`.

    Raises:
        ValueError: any other dtype.
    """
    field, value = ("torch_dtype", torch_dtype) if dtype is None else ("dtype", dtype)
    if value is None or value == "auto":
        return None
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    name = _DTYPE_ALIASES.get(name, name) if isinstance(name, str) else name
    if name not in DTYPES:
        raise ValueError(f"{field}: got {show_value(value)}, expected one of {', '.join(DTYPES)}")
    return str(name)


def take_variant(fields: dict[str, Any]) -> str:
    """Remove the attention variant from a config's fields and return it; else that of `model_type`, else "hf".

    `wiring` is the field's older name.

    Raises:
        ValueError: the variant is unknown, or contradicts `model_type`.
    """
    older, model_type = fields.pop("wiring", None), fields.get("model_type")
    given = current_name(fields.pop("variant", older))
    variant_by_type = {variant.model_type: name for name, variant in VARIANTS.items()}
    if model_type is not None and (not isinstance(model_type, str) or model_type not in variant_by_type):
        raise ValueError(f"model_type: got {show_value(model_type)}, expected one of {', '.join(variant_by_type)}")
    if given is None:
        return variant_by_type[model_type or "diffllama"]
    if not isinstance(given, str) or given not in VARIANTS:
        raise ValueError(f"variant: got {show_value(given)}, expected one of {', '.join(VARIANTS)}")
    if model_type not in (None, "diffllama", VARIANTS[given].model_type):
        raise ValueError(
            f"variant: got {given!r}, expected {variant_by_type[model_type]!r} for model_type {model_type!r}"
        )
    return given


def fill_heads(config: Config, left: dict[str, Any]) -> None:
    """Set `num_key_value_heads` and `head_dim` of `config`, deriving those that are absent or null.

    Raises:
        ValueError: the heads cannot be paired, or the head size cannot be rotated.
    """
    heads = config.num_attention_heads
    key_value_heads = left.pop("num_key_value_heads", None)
    derived = key_value_heads is None
    config.num_key_value_heads = heads if derived else integer("num_key_value_heads", key_value_heads, 1, 2**16)
    name = "num_attention_heads (and so num_key_value_heads)" if derived else "num_key_value_heads"
    if config.num_key_value_heads % 2 and VARIANTS[config.variant].even_key_heads:
        raise ValueError(
            f"{name}: got {config.num_key_value_heads}, expected an even number, at least 2: "
            "differential attention splits the values into two halves along these heads"
        )
    if heads % config.num_key_value_heads:
        raise ValueError(
            f"num_key_value_heads: got {config.num_key_value_heads}, expected a divisor of num_attention_heads {heads}"
        )
    head_dim = left.pop("head_dim", None)
    if head_dim is None:
        head_dim = config.hidden_size // heads
        if not _can_rotate(head_dim, config.variant):
            raise ValueError(
                f"hidden_size {config.hidden_size} over num_attention_heads {heads}: got a head_dim of {head_dim}, "
                "expected an even number, at least 2; give head_dim"
            )
    config.head_dim = integer("head_dim", head_dim, 1, 2**16)
    if not _can_rotate(config.head_dim, config.variant):
        raise ValueError(f"head_dim: got {config.head_dim}, expected an even number: RoPE rotates pairs of values")


def _can_rotate(head_dim: int, variant: str) -> bool:
    """Return whether RoPE can rotate heads of that size: those of 1 only as transformers does, see `layers.rope`."""
    return head_dim > 0 and (head_dim % 2 == 0 or (head_dim == 1 and not VARIANTS[variant].interleaved))


def fill_labels(config: Config, left: dict[str, Any]) -> None:
    """Set `id2label` and `label2id` of `config`; a `num_labels` of another length replaces the names.

    Raises:
        ValueError: a map that is not {index: name}, or one label with single-label classification.
    """
    count, id2label, label2id = (left.pop(name, None) for name in ("num_labels", "id2label", "label2id"))
    if count is not None:
        count = integer("num_labels", count, 1, MAX_LABELS)
    labels = None if id2label in (None, {}) else _parse_id2label(id2label)
    if labels is None or (count is not None and count != len(labels)):
        labels = default_labels(count or 2)
        label2id = {label: index for index, label in labels.items()}
    config.id2label = labels
    config.label2id = None if label2id is None else _parse_label2id(label2id)
    if config.problem_type == "single_label_classification" and len(labels) == 1:
        raise ValueError(
            "problem_type: got 'single_label_classification' with 1 label, expected 2 or more; "
            "use num_labels 2, or problem_type 'regression'"
        )


def default_labels(count: int) -> dict[int, str]:
    """Return the names of labels that have none."""
    return {index: f"LABEL_{index}" for index in range(count)}


def token_id_remarks(config: Config) -> list[str]:
    """Return a remark for each special token id outside the vocabulary.

    Raises:
        ValueError: a padding id that has no row in the embedding table; -1 counts from its end, as in torch.
    """
    size = config.vocab_size
    if config.pad_token_id is not None and not -size <= config.pad_token_id < size:
        raise ValueError(f"pad_token_id: got {config.pad_token_id}, expected less than vocab_size {size}, or null")
    remarks = []
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        ids = getattr(config, name)
        listed = ids if isinstance(ids, list) else [ids]
        outside = [value for value in listed if value is not None and not 0 <= value < size]
        if outside:
            remarks.append(f"{name} {outside[0]} is outside the vocabulary (0 to {size - 1})")
    return remarks


def _parse_id2label(value: Any) -> dict[int, str]:
    if not isinstance(value, Mapping):
        raise ValueError(
            f"id2label: got {show_value(value)}, expected an object such as {{'0': 'NEGATIVE', '1': 'POSITIVE'}}"
        )
    labels: dict[int, str] = {}
    for key, label in value.items():
        index = int(key) if isinstance(key, str) and len(key) < 12 and key.isascii() and key.isdigit() else key
        index = integer(f"the key {show_value(key)} of id2label", index, 0, 2**31 - 1)
        if isinstance(label, dict | list) or label is None:
            raise ValueError(f"id2label[{key}]: got {show_typed(label)}, expected a string")
        if index in labels:
            raise ValueError(f"id2label: got index {index} twice, expected it once; keep one of them")
        labels[index] = str(label)
    return labels


def _parse_label2id(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise ValueError(
            f"label2id: got {show_value(value)}, expected an object such as {{'NEGATIVE': 0, 'POSITIVE': 1}}"
        )
    indices: dict[str, int] = {}
    for label, index in value.items():
        if isinstance(index, str) and len(index) < 12 and index.isascii() and index.isdigit():
            index = int(index)
        indices[str(label)] = integer(f"label2id[{show_value(label)}]", index, 0, 2**31 - 1)
    return indices


def written_by_transformers(name: str, value: Any) -> bool:
    """Return whether a field needs no warning: transformers writes it into any model's file, and it changes nothing."""
    return name in _GENERIC_FIELDS or (name in _HARMLESS_WHEN_UNSET and not value)


def refuse_other_models(given: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a config that describes more than one plain stack of layers."""
    for name, expected in (
        ("mlp_bias", "false: the feed-forward layers here have no bias; use a checkpoint without one"),
        ("quantization_config", "null: quantized weights cannot be read; use the unquantized checkpoint"),
        ("per_layer_config", "null: all layers have the same sizes here; remove it"),
    ):
        if given.get(name):
            raise ValueError(f"{name}: got {show_value(given[name])}, expected {expected}")


def describe_unknown(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Name the unknown fields in one sentence, each with the known field it may be a misspelling of."""
    named = []
    for name in unknown[:20]:
        hint = did_you_mean(name[:80], known, "", show=str, cutoff=0.85)
        named.append(f"{show_name(name)} ({hint})" if hint else show_name(name))
    if len(unknown) > 20:
        named.append(f"and {len(unknown) - 20} more")
    return f"DiffLlama does not use these fields, kept for saving: {', '.join(named)}"
