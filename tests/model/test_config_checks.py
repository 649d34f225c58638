"""The limits of each field, and that each message has the value, the range and the fix."""

from __future__ import annotations

from typing import Any

import pytest

from refdiff.errors import CheckpointError
from refdiff.layers.activation import ACTIVATIONS
from refdiff.model import config_checks
from refdiff.model.config import DiffLlamaConfig

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 0}, "hidden_size: got 0, expected 1 to 16777216"),
    ({"hidden_size": 64.0}, "hidden_size: got 64.0, a number, expected an integer"),
    ({"num_hidden_layers": 10_001}, "num_hidden_layers: got 10001, expected 1 to 10000"),
    ({"initializer_range": None}, "initializer_range: got None, null, expected a number of 0 or more"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps: got nan, expected 0 to 1e30"),
    ({"attention_bias": 1}, "attention_bias: got 1, an integer, expected true or false"),
    ({"attention_dropout": 0.1}, "attention_dropout: got 0.1, expected 0.0"),
    ({"hidden_act": "prelu"}, "hidden_act: got 'prelu', expected one of gelu, gelu_10"),
    ({"eos_token_id": [1, True]}, r"eos_token_id\[1\]: got True, a boolean, expected an integer"),
    ({"eos_token_id": [0] * 1001}, "eos_token_id: got 1001 ids, expected at most 1000"),
    ({"pad_token_id": 32000}, "pad_token_id: got 32000, expected less than vocab_size 32000, or null"),
    ({"problem_type": "other"}, "problem_type: got 'other', expected null or one of regression"),
    ({"architectures": "A"}, "architectures: got 'A', expected a list of class names"),
    ({"dtype": "int8"}, "dtype: got 'int8', expected one of float32, float64, float16, bfloat16"),
    ({"torch_dtype": 3}, "torch_dtype: got 3, expected one of"),
    ({"num_key_value_heads": 1}, "num_key_value_heads: got 1, expected an even number, at least 2"),
    (
        {"num_attention_heads": 5, "hidden_size": 20},
        r"num_attention_heads \(and so num_key_value_heads\): got 5, expected an even number",
    ),
    ({"num_attention_heads": 6, "num_key_value_heads": 4}, "got 4, expected a divisor of num_attention_heads 6"),
    ({"head_dim": 5}, "head_dim: got 5, expected an even number"),
    ({"hidden_size": 96}, "hidden_size 96 over num_attention_heads 32: got a head_dim of 3, .*; give head_dim"),
    ({"num_labels": "2"}, "num_labels: got '2', a string, expected an integer"),
    ({"id2label": [1]}, r"id2label: got \[1\], expected an object such as"),
    ({"id2label": {"x": "a"}}, "the key 'x' of id2label: got 'x', a string, expected an integer"),
    ({"id2label": {"0": []}}, r"id2label\[0\]: got \[\], a list, expected a string"),
    ({"id2label": {"0": "a", 0: "b"}}, "id2label: got index 0 twice"),
    ({"id2label": {0: "a"}, "label2id": 5}, "label2id: got 5, expected an object"),
    ({"id2label": {0: "a"}, "label2id": {"a": -1}}, r"label2id\['a'\]: got -1, expected "),
    ({"problem_type": "single_label_classification", "num_labels": 1}, "with 1 label, expected 2 or more"),
    ({"rms_norm_eps": 1.0001e30}, "rms_norm_eps: got 1.0001e.30, expected 0 to 1e30"),
    ({"bos_token_id": 2**31}, "bos_token_id: got 2147483648, expected -2147483648 to 2147483647"),
    ({"bos_token_id": -(2**31) - 1}, "bos_token_id: got -2147483649, expected "),
    ({"eos_token_id": [2**31]}, r"eos_token_id\[0\]: got 2147483648, expected -2147483648 to 2147483647"),
    ({"eos_token_id": [-(2**31) - 1]}, r"eos_token_id\[0\]: got -2147483649, expected "),
    ({"architectures": ["A", 1]}, r"architectures: got \['A', 1\], expected a list of class names"),
    ({"num_key_value_heads": 2**16 + 1}, "num_key_value_heads: got 65537, expected 1 to 65536"),
    ({"num_key_value_heads": 1, "wiring": "paper"}, "num_key_value_heads: got 1, expected an even number, at least 2"),
    ({"head_dim": 1}, "head_dim: got 1, expected 2 to 65536"),
    ({"head_dim": 2**16 + 2}, "head_dim: got 65538, expected 2 to 65536"),
    ({"hidden_size": 63}, "hidden_size 63 over num_attention_heads 32: got a head_dim of 1"),
    ({"num_labels": 100_001}, "num_labels: got 100001, expected 1 to 100000"),
    ({"id2label": {2**31: "a"}}, "the key 2147483648 of id2label: got 2147483648, expected 0 to 2147483647"),
    ({"id2label": {"000000000001": "a"}}, "the key '000000000001' of id2label: got '000000000001', a string, expected"),
    ({"id2label": {0: "a"}, "label2id": {"a": 2**31}}, r"label2id\['a'\]: got 2147483648, expected 0 to 2147483647"),
    (
        {"id2label": {0: "a"}, "label2id": {"a": "000000000001"}},
        r"label2id\['a'\]: got '000000000001', a string, expected",
    ),
    ({"wiring": "flash"}, "wiring: got 'flash', expected one of hf, paper, v2, none"),
    ({"wiring": ["hf"]}, r"wiring: got \['hf'\], expected one of"),
    ({"model_type": "gpt2"}, "got 'gpt2', expected one of diffllama, diff_transformer, diff_transformer_v2, llama"),
    ({"model_type": ["llama"]}, r"model_type: got \['llama'\], expected one of"),
    ({"wiring": "v2", "model_type": "llama"}, "wiring: got 'v2', expected 'none' for model_type 'llama'"),
    (
        {"wiring": "none", "model_type": "diff_transformer"},
        "got 'none', expected 'paper' for model_type 'diff_transformer'",
    ),
]

ACCEPTED: list[dict[str, Any]] = [
    {"rms_norm_eps": 1e30}, {"rms_norm_eps": 0.0}, {"attention_bias": True}, {"pad_token_id": -32000},
    {"bos_token_id": 2**31 - 1}, {"bos_token_id": -(2**31)}, {"eos_token_id": 31999},
    {"eos_token_id": [2**31 - 1, -(2**31)]}, {"eos_token_id": [7] * 1000}, {"architectures": ["A", "B"]},
    {"problem_type": "regression"}, {"problem_type": "single_label_classification"},
    {"problem_type": "multi_label_classification"},
    {"num_attention_heads": 2**16, "num_key_value_heads": 2**16, "head_dim": 2},
    {"num_key_value_heads": 1, "wiring": "v2"}, {"num_key_value_heads": 1, "wiring": "none"}, {"head_dim": 2},
    {"head_dim": 2**16}, {"id2label": {2**31 - 1: "a"}, "label2id": {"a": 2**31 - 1}},
]  # fmt: skip


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
@pytest.mark.filterwarnings("ignore:.*outside the vocabulary")
def test_accepted_up_to_the_limit(fields: dict[str, Any]) -> None:
    config = DiffLlamaConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("fields", "wiring", "model_type"),
    [
        ({}, "hf", "diffllama"),
        ({"model_type": "diffllama"}, "hf", "diffllama"),
        ({"model_type": "diff_transformer"}, "paper", "diff_transformer"),
        ({"model_type": "diff_transformer_v2"}, "v2", "diff_transformer_v2"),
        ({"model_type": "llama"}, "none", "llama"),
        ({"wiring": "paper"}, "paper", "diff_transformer"),
        ({"wiring": "v2", "model_type": "diffllama"}, "v2", "diff_transformer_v2"),
        ({"wiring": "none", "model_type": "llama"}, "none", "llama"),
    ],
)
def test_the_wiring_and_the_type_of_a_model(fields: dict[str, Any], wiring: str, model_type: str) -> None:
    config = DiffLlamaConfig(**fields)
    assert (config.wiring, config.to_dict()["model_type"]) == (wiring, model_type)


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(next(iter(fields.items()))) for fields, _ in REFUSED])
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffLlamaConfig(**fields)
    with pytest.raises(CheckpointError, match=message) as caught:
        DiffLlamaConfig.from_dict(fields, source="here")
    assert str(caught.value).startswith("here: ")
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_of_the_layers(name: str) -> None:
    assert DiffLlamaConfig(hidden_act=name).hidden_act == name


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


def test_token_ids_within_it_are_not() -> None:
    config = DiffLlamaConfig(pad_token_id=0, bos_token_id=None, eos_token_id=[2, 31999])
    assert config.eos_token_id == [2, 31999]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mlp_bias": True}, "^mlp_bias: got True, expected false: the feed-forward layers here have no bias; use a "),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            r"^quantization_config: got {'quant_method': 'gptq'}, expected null: .*; use the unquantized checkpoint$",
        ),
        (
            {"per_layer_config": {"0": {"head_dim": 2}}},
            r"^per_layer_config: got {'0': .*}, expected null: .*; remove it$",
        ),
    ],
)
def test_other_models_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffLlamaConfig(**fields)


# config.json as transformers 4.46 writes it of any model with use_diff=False, without the fields that DiffLlama reads
OF_ANY_MODEL: dict[str, Any] = {
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


def test_what_transformers_writes_of_any_model_is_kept_without_a_word() -> None:
    unset = dict.fromkeys(("mlp_bias", "quantization_config", "per_layer_config"))
    fields = {**OF_ANY_MODEL, **dict.fromkeys(MORE, 1), **unset}
    del fields["original_max_position_embeddings"]  # a length of RoPE's
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
