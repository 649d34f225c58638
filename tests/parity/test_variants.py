"""A Llama of transformers as it is, and every variant on torch's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import array_api_compat.torch
import numpy as np
import pytest
import torch
import transformers

import refdiff
from refdiff.convert import convert
from tests.compare import compare
from tests.model.models import VARIANT_NAMES, ids, small_model
from tests.parity.float64_transformers import float64_peer

LLAMAS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 1, "attention_bias": True},
    {"num_key_value_heads": 3, "head_dim": 4, "tie_word_embeddings": True},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}, "rms_norm_eps": 1e-3},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
                         "original_max_position_embeddings": 16}, "hidden_act": "gelu_pytorch_tanh"},
]  # fmt: skip


@pytest.fixture(params=range(len(LLAMAS)))
def llama(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A random Llama, saved by transformers."""
    sizes = {
        "vocab_size": 53, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(request.param)
    config = transformers.LlamaConfig(**sizes | LLAMAS[request.param])
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kernels", ["fast", "reference"])
def test_a_llama_of_transformers(llama: Path, kernels: str) -> None:
    ours = refdiff.DiffLlamaForCausalLM.from_pretrained(llama, dtype="float64", kernels=kernels)
    theirs = float64_peer(llama, "LlamaForCausalLM")
    assert ours.config.variant == "plain"
    tokens = ids(0, 2, 9)
    out = ours(tokens, output_attentions=True, output_hidden_states=True)
    expected = theirs(tokens, output_attentions=True, output_hidden_states=True)
    compare(out.logits, expected.logits, "logits")
    for name in ("hidden_states", "attentions"):
        for layer, (x, y) in enumerate(zip(out[name], getattr(expected, name), strict=True)):
            compare(x, y, f"{name} {layer}")
    later = ours(tokens[:, 5:], cache=ours(tokens[:, :5]).cache).logits
    compare(later, expected.logits[:, 5:], "logits from the cache")


def test_its_conversion_to_v2(llama: Path) -> None:
    ours = refdiff.DiffLlamaForCausalLM.from_pretrained(llama, dtype="float64")
    v2 = refdiff.DiffLlamaForCausalLM(*convert(ours.config, ours.params, "v2"), dtype="float64")
    compare(v2(ids(1, 2, 9)).logits, float64_peer(llama, "LlamaForCausalLM")(ids(1, 2, 9)).logits, "logits")


def test_transformers_loads_a_plain_model_of_refdiff_as_a_llama(tmp_path: Path) -> None:
    model = small_model(variant="plain", hidden_size=24)  # transformers wants a multiple of the number of heads
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    compare(model(ids(2, 1, 7)).logits, float64_peer(tmp_path, "LlamaForCausalLM")(ids(2, 1, 7)).logits, "logits")


@pytest.mark.parametrize("variant", sorted(set(VARIANT_NAMES) - {"hf", "plain"}))
def test_transformers_refuses_what_it_would_compute_otherwise(variant: str, tmp_path: Path) -> None:
    small_model(variant=variant).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not recognize this architecture"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_every_variant_on_torch(variant: str) -> None:
    here, there = small_model(variant=variant), small_model(variant=variant, backend=array_api_compat.torch)
    tokens, mask = ids(3, 2, 7), np.array([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    a, b = (m(tokens, attention_mask=mask, output_attentions=True) for m in (here, there))
    assert isinstance(b.logits, torch.Tensor)
    compare(b.logits.numpy(), a.logits, "logits")
