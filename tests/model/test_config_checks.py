"""The limits of each field, and that each message has the value, the range and the fix."""

from __future__ import annotations

from typing import Any

import pytest

from refdiff.errors import CheckpointError
from refdiff.model import config_checks
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.variants import VARIANTS

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 64.0}, "hidden_size: got 64.0, a number, expected an integer"),
    ({"initializer_range": None}, "initializer_range: got null, expected a number of 0 or more"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps: got nan, expected 0 to 1e30"),
    ({"attention_bias": 1}, "attention_bias: got 1, an integer, expected true or false"),
    ({"attention_dropout": 0.1}, "attention_dropout: got 0.1, expected 0.0"),
    ({"hidden_act": "xielu"}, f"hidden_act: got 'xielu', expected one of {', '.join(config_checks.ACTIVATIONS)}$"),
    ({"eos_token_id": [1, True]}, r"eos_token_id\[1\]: got True, a boolean, expected an integer"),
    ({"eos_token_id": [0] * 1001}, "eos_token_id: got 1001 ids, expected at most 1000"),
    ({"pad_token_id": 32000}, "pad_token_id: got 32000, expected less than vocab_size 32000, or null"),
    ({"problem_type": "other"}, "problem_type: got 'other', expected null or one of regression"),
    ({"dtype": "int8"}, "dtype: got 'int8', expected one of float32, float64, float16, bfloat16"),
    ({"num_key_value_heads": 1}, "num_key_value_heads: got 1, expected an even number, at least 2"),
    (
        {"num_attention_heads": 5, "hidden_size": 20},
        r"num_attention_heads \(and so num_key_value_heads\): got 5, expected an even number",
    ),
    ({"num_attention_heads": 6, "num_key_value_heads": 4}, "got 4, expected a divisor of num_attention_heads 6"),
    ({"hidden_size": 96}, "hidden_size 96 over num_attention_heads 32: got a head_dim of 3, .*; give head_dim"),
    ({"id2label": {"0": []}}, r"id2label\[0\]: got \[\], a list, expected a string"),
    ({"id2label": {"0": "a", 0: "b"}}, "id2label: got index 0 twice"),
    ({"id2label": {0: "a"}, "label2id": {"a": -1}}, r"label2id\['a'\]: got -1, expected "),
    ({"problem_type": "single_label_classification", "num_labels": 1}, "with 1 label, expected 2 or more"),
    ({"rms_norm_eps": 1.0001e30}, "rms_norm_eps: got 1.0001e.30, expected 0 to 1e30"),
    ({"bos_token_id": 2**31}, "bos_token_id: got 2147483648, expected -2147483648 to 2147483647"),
    ({"bos_token_id": -(2**31) - 1}, "bos_token_id: got -2147483649, expected "),
    ({"eos_token_id": [2**31]}, r"eos_token_id\[0\]: got 2147483648, expected -2147483648 to 2147483647"),
    ({"eos_token_id": [-(2**31) - 1]}, r"eos_token_id\[0\]: got -2147483649, expected "),
    ({"architectures": ["A", 1]}, r"architectures: got \['A', 1\], expected a list of class names"),
    ({"num_key_value_heads": 2**16 + 1}, "num_key_value_heads: got 65537, expected 1 to 65536"),
    ({"head_dim": 0}, "head_dim: got 0, expected 1 to 65536"),
    ({"head_dim": 1, "wiring": "paper"}, "head_dim: got 1, expected an even number: RoPE rotates pairs of values"),
    ({"head_dim": 1, "rope_parameters": {"rope_type": "proportional"}}, "got 1, expected 2 or more: rope_type 'pro"),
    ({"head_dim": 2**16 + 2}, "head_dim: got 65538, expected 1 to 65536"),
    ({"hidden_size": 31}, "hidden_size 31 over num_attention_heads 32: got a head_dim of 0"),
    ({"num_labels": 100_001}, "num_labels: got 100001, expected 1 to 100000"),
    ({"id2label": {2**31: "a"}}, "the key 2147483648 of id2label: got 2147483648, expected 0 to 2147483647"),
    ({"id2label": {"000000000001": "a"}}, "the key '000000000001' of id2label: got '000000000001', a string, expected"),
    ({"id2label": {0: "a"}, "label2id": {"a": 2**31}}, r"label2id\['a'\]: got 2147483648, expected 0 to 2147483647"),
    (
        {"id2label": {0: "a"}, "label2id": {"a": "000000000001"}},
        r"label2id\['a'\]: got '000000000001', a string, expected",
    ),
    ({"variant": "flash"}, f"variant: got 'flash', expected one of {', '.join(VARIANTS)}"),
    ({"model_type": "gpt2"}, f"got 'gpt2', expected one of {', '.join(v.model_type for v in VARIANTS.values())}"),
    (
        {"variant": "plain", "model_type": "diff_transformer"},
        "got 'plain', expected 'paper' for model_type 'diff_transformer'",
    ),
    ({"mlp_bias": True}, "mlp_bias: got True, expected false: the feed-forward layers here have no bias; use a "),
    (
        {"quantization_config": {"quant_method": "gptq"}},
        r"quantization_config: got {'quant_method': 'gptq'}, expected null: .*; use the unquantized checkpoint$",
    ),
    ({"per_layer_config": {"0": {"head_dim": 2}}}, r"per_layer_config: got {'0': .*}, expected null: .*; remove it$"),
]

ACCEPTED: list[dict[str, Any]] = [
    {"rms_norm_eps": 1e30}, {"rms_norm_eps": 0.0}, {"attention_bias": True}, {"pad_token_id": -32000},
    {"bos_token_id": 2**31 - 1}, {"bos_token_id": -(2**31)}, {"eos_token_id": 31999},
    {"eos_token_id": [2**31 - 1, -(2**31)]}, {"eos_token_id": [7] * 1000}, {"architectures": ["A", "B"]},
    {"problem_type": "regression"}, {"problem_type": "single_label_classification"},
    {"problem_type": "multi_label_classification"},
    {"num_attention_heads": 2**16, "num_key_value_heads": 2**16, "head_dim": 2},
    {"num_key_value_heads": 1, "variant": "v2"}, {"num_key_value_heads": 1, "variant": "plain"}, {"head_dim": 2},
    {"head_dim": 2**16}, {"id2label": {2**31 - 1: "a"}, "label2id": {"a": 2**31 - 1}},
]  # fmt: skip


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
@pytest.mark.filterwarnings("ignore:.*outside the vocabulary")
def test_accepted_up_to_the_limit(fields: dict[str, Any]) -> None:
    config = DiffLlamaConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("fields", "variant", "model_type"),
    [
        ({}, "hf", "diffllama"),
        ({"model_type": "diffllama"}, "hf", "diffllama"),
        ({"model_type": "diff_transformer"}, "paper", "diff_transformer"),
        ({"model_type": "diff_transformer_v2"}, "v2", "diff_transformer_v2"),
        ({"model_type": "llama"}, "plain", "llama"),
        ({"variant": "paper"}, "paper", "diff_transformer"),
        ({"variant": "v2", "model_type": "diffllama"}, "v2", "diff_transformer_v2"),
        ({"variant": "plain", "model_type": "llama"}, "plain", "llama"),
    ],
)
def test_the_variant_and_the_type_of_a_model(fields: dict[str, Any], variant: str, model_type: str) -> None:
    config = DiffLlamaConfig(**fields)
    assert (config.variant, config.to_dict()["model_type"]) == (variant, model_type)


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(next(iter(fields.items()))) for fields, _ in REFUSED])
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as plain:
        DiffLlamaConfig(**fields)
    assert not isinstance(plain.value, CheckpointError)
    with pytest.raises(CheckpointError, match=message) as caught:
        DiffLlamaConfig.from_dict(fields, source="here")
    assert str(caught.value).startswith("here: ")
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({}, None), ({"torch_dtype": "bfloat16"}, "bfloat16"), ({"dtype": "torch.float16"}, "float16"),
        ({"dtype": "float64", "torch_dtype": "float32"}, "float64"),
        ({"dtype": None, "torch_dtype": "float32"}, "float32"), ({"torch_dtype": "auto"}, None),
        ({"torch_dtype": "torch.half"}, "float16"), ({"dtype": "double"}, "float64"), ({"dtype": "float"}, "float32"),
    ],
)  # fmt: skip
def test_spellings_of_the_dtype(fields: dict[str, Any], dtype: str | None) -> None:
    config = DiffLlamaConfig(**fields)
    assert config.dtype == dtype
    assert config.extra == {}


def test_heads_and_head_size_are_derived() -> None:
    config = DiffLlamaConfig(num_attention_heads=8, hidden_size=64, num_key_value_heads=None, head_dim=None)
    assert (config.num_key_value_heads, config.head_dim) == (8, 8)
    config = DiffLlamaConfig(num_attention_heads=6, hidden_size=64, num_key_value_heads=2, head_dim=128)
    assert (config.num_key_value_heads, config.head_dim) == (2, 128)
    assert DiffLlamaConfig(num_attention_heads=32, hidden_size=64).head_dim == 2
    assert DiffLlamaConfig(num_attention_heads=6, hidden_size=64).head_dim == 10, "rounded down, as transformers does"


@pytest.mark.parametrize(
    ("fields", "labels", "inverse"),
    [
        ({}, {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}),
        ({"id2label": {}}, {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}),
        ({"num_labels": 1}, {0: "LABEL_0"}, {"LABEL_0": 0}),
        ({"num_labels": None, "id2label": None}, {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}),
        ({"id2label": {"1": "b", "0": "a"}}, {1: "b", 0: "a"}, None),
        ({"id2label": {"0": "a"}, "label2id": {"a": "0"}, "num_labels": 1}, {0: "a"}, {"a": 0}),
        ({"id2label": {"0": "a"}, "label2id": {"a": 0}, "num_labels": 2}, {0: "LABEL_0", 1: "LABEL_1"}, ...),
        ({"id2label": {"0": 7}}, {0: "7"}, None),
        ({"id2label": {"00000000001": "a"}, "label2id": {"a": "00000000001"}}, {1: "a"}, {"a": 1}),
    ],
)
def test_labels(fields: dict[str, Any], labels: dict[int, str], inverse: Any) -> None:
    config = DiffLlamaConfig(**fields)
    assert config.id2label == labels
    assert config.num_labels == len(labels)
    assert config.label2id == ({name: index for index, name in labels.items()} if inverse is ... else inverse)


def test_dropout_of_nothing_is_none() -> None:
    assert DiffLlamaConfig(attention_dropout=None).attention_dropout == 0.0
    assert DiffLlamaConfig(attention_dropout=0).attention_dropout == 0.0


@pytest.mark.parametrize(
    ("fields", "remark"),
    [
        ({"pad_token_id": -1}, "pad_token_id -1 is outside the vocabulary .0 to 31999."),
        ({"bos_token_id": 32000}, "bos_token_id 32000"),
        ({"eos_token_id": [2, 40000]}, "eos_token_id 40000"),
    ],
)
def test_token_ids_outside_the_vocabulary_are_reported(fields: dict[str, Any], remark: str) -> None:
    with pytest.warns(UserWarning, match=remark):
        DiffLlamaConfig(**fields)


OF_ANY_MODEL = [
    "return_dict", "output_hidden_states", "output_attentions", "torchscript", "use_bfloat16", "tf_legacy_loss",
    "pruned_heads", "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "cross_attention_hidden_size",
    "add_cross_attention", "tie_encoder_decoder", "max_length", "min_length", "do_sample", "early_stopping",
    "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id",
    "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    "finetuning_task", "tokenizer_class", "prefix", "sep_token_id", "decoder_start_token_id", "task_specific_params",
    "_name_or_path", "transformers_version", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff",
    "assistant_confidence_threshold", "assistant_lookbehind", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "target_lookbehind", "pretraining_tp", "tie_last_hidden_states", "name_or_path", "use_return_dict",
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal", "_output_attentions",
    "_commit_hash", "mlp_bias", "quantization_config", "per_layer_config",
]  # fmt: skip
"""Fields of any model's config.json as transformers 4.46 writes it, and what it keeps for itself."""


def test_fields_that_transformers_writes_for_any_model_cause_no_warning() -> None:
    fields = dict.fromkeys(OF_ANY_MODEL)
    assert DiffLlamaConfig(**fields).extra == fields
    assert DiffLlamaConfig(original_max_position_embeddings=7).extra == {"original_max_position_embeddings": 7}


def test_unknown_fields_are_named_with_a_near_name_where_there_is_one() -> None:
    known = ["head_dim", "hidden_size", "hidden_act"]
    assert config_checks.describe_unknown(["hiden_size", "hidden", "hidden_size" + "x" * 90, "\x1b[31m"], known) == (
        "DiffLlama does not use these fields, kept for saving: hiden_size (did you mean hidden_size?), hidden, "
        f"'hidden_size{'x' * 69}', '\\x1b[31m'"
    )
    names = [f"field_{index}" for index in range(21)]  # of which twenty are named
    assert config_checks.describe_unknown(names[:20], known).endswith("field_18, field_19")
    assert config_checks.describe_unknown(names, known).endswith("field_18, field_19, and 1 more")


def test_the_older_names_of_the_variant_are_read() -> None:
    config = DiffLlamaConfig(wiring="none")
    assert config.variant == "plain"
    assert DiffLlamaConfig.from_dict({"model_type": "diff_transformer", "wiring": "paper"}).variant == "paper"
