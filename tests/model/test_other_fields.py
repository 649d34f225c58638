"""The fields that a DiffLlama does not use."""

from __future__ import annotations

from typing import Any

import pytest

from refdiff.model import other_fields
from refdiff.model.config import DiffLlamaConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "gpt2"},
            "model_type is 'gpt2', but only diffllama, diff_transformer, diff_transformer_v2, llama checkpoints can be",
        ),
        ({"mlp_bias": True}, "mlp_bias is True, but .*: set it to false"),
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
        {"model_type": None},
        {"mlp_bias": False},
        {"mlp_bias": None},
        {"quantization_config": None},
        {"per_layer_config": {}},
        {"temperature": 0.5, "do_sample": True, "max_length": 30},
        {"is_decoder": True, "torchscript": False, "pruned_heads": {}, "sep_token_id": None},
        {"_commit_hash": "abc", "_attn_implementation_autoset": True, "pretraining_tp": 4},
    ],
    ids=str,
)
def test_usual_fields_are_kept_without_a_word(fields: dict[str, Any]) -> None:
    kept = {name: value for name, value in fields.items() if name != "model_type"}
    assert DiffLlamaConfig(**fields).extra == kept


def test_many_unknown_fields_make_a_short_message() -> None:
    text = other_fields.describe_unknown([f"field_{index}" for index in range(1000)], ["head_dim"])
    assert "field_19" in text
    assert "field_20" not in text
    assert text.endswith("and 980 more")


def test_unknown_names_are_escaped() -> None:
    assert r"'\x1b[31m'" in other_fields.describe_unknown(["\x1b[31m"], ["head_dim"])
