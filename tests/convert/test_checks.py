"""Weights that are not those of their config, and configs that are not of one function."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from refdiff.convert import convert, convert_later, prove
from refdiff.model import weights
from tests.model.models import small_model


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "gelu"),
        ("rms_norm_eps", 1e-6),
        ("rope_parameters", {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}),
        ("max_position_embeddings", 65),
        ("tie_word_embeddings", True),
        ("vocab_size", 54),
        ("num_hidden_layers", 2),
        ("pad_token_id", None),
        ("num_labels", 3),
    ],
)
def test_the_proof_looks_at_what_else_a_config_decides(field: str, value: Any) -> None:
    model = small_model(variant="hf")
    config, params = convert(model.config, model.params, "paper")
    kept = getattr(config, field)
    setattr(config, field, value)
    for pair in ((model.config, config), (config, model.config)):
        with pytest.raises(ValueError, match=f"^{field} is ") as said:
            prove((pair[0], params), (pair[1], params))
        assert repr(kept) in str(said.value)
        assert repr(value) in str(said.value)


@pytest.mark.parametrize("which", ["first", "second"])
def test_models_of_unlike_depth_cannot_be_proved(which: str) -> None:
    model = small_model()
    whole = (model.config, model.params)
    cut = (model.config, {"model": {**model.params["model"], "layers": model.params["model"]["layers"][:2]}})
    with pytest.raises(
        ValueError, match=f"{which} model: got weights of 2 layers, expected the num_hidden_layers of its config, 3"
    ):
        prove(*((cut, whole) if which == "first" else (whole, cut)))


def without(params: Any, name: str) -> Any:
    return weights.nest({key: array for key, array in weights.flatten(params).items() if not key.startswith(name)})


@pytest.mark.parametrize("function", [convert, convert_later])
def test_weights_that_are_not_those_of_the_config(function: Any) -> None:
    hf, paper = small_model(variant="hf"), small_model(variant="paper")
    with pytest.raises(
        ValueError,
        match=r"variant is 'paper' .* subln\.weight of shape \(12,\) is missing\. They fit the variant 'hf':",
    ):
        function(paper.config, hf.params, "hf")
    with pytest.raises(ValueError, match=r"subln\.weight of shape \(12,\) is too many\. They fit the variant 'paper'"):
        function(hf.config, paper.params, "paper")
    wrong = copy.deepcopy(hf.config)
    wrong.num_attention_heads = 16
    with pytest.raises(
        ValueError,
        match=r"num_attention_heads 16, .* q_proj\.weight has shape \(48, 26\), but should have \(96, 26\); o_proj",
    ):
        function(wrong, hf.params, "paper")
    with pytest.raises(ValueError, match=r"in layers\.1\.self_attn, k_proj\.weight of shape \(24, 26\) is missing$"):
        function(hf.config, without(hf.params, "model.layers.1.self_attn.k_proj"), "paper")
    with pytest.raises(ValueError, match="params: got 'lm_head', expected layers at the top level, in model"):
        function(hf.config, {"lm_head": {}}, "paper")
