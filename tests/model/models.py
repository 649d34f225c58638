"""Small models for tests: every size another prime where it may be, weights large enough to matter."""

from typing import Any

import numpy as np

import refdiff
from refdiff.model.diffllama import ATTENTION
from refdiff.model.pretrained import PreTrainedModel

CLASSES = (
    refdiff.DiffLlamaModel,
    refdiff.DiffLlamaForCausalLM,
    refdiff.DiffLlamaForSequenceClassification,
    refdiff.DiffLlamaForTokenClassification,
    refdiff.DiffLlamaForQuestionAnswering,
)

WIRINGS = tuple(ATTENTION)
"""Every attention variant; a new one is tried wherever all are."""

LAYERS = {
    "hf": ("value_pairs_hf", "lambda_init", "diff_lambda", "diff_heads_hf"),
    "paper": ("lambda_init", "diff_lambda", "diff_heads_paper"),
    "v2": ("diff_lambda_v2", "diff_heads_v2"),
    "none": ("plain_heads",),
}
"""What an attention variant calls beside projections and RoPE, once in each layer of the model."""


def small_config(**fields: Any) -> refdiff.DiffLlamaConfig:
    sizes = {
        "vocab_size": 53, "hidden_size": 26, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 6, "max_position_embeddings": 64, "initializer_range": 0.3,
        "lambda_std_dev": 0.5, "pad_token_id": 0,
    }  # fmt: skip
    return refdiff.DiffLlamaConfig(**(sizes | fields))


def small_model(kind: type[PreTrainedModel] = refdiff.DiffLlamaForCausalLM, seed: int = 0, **options: Any) -> Any:
    """A model in float64 in which the parameters that start at one value (norms, biases) are random too."""
    placed = {name: options.pop(name) for name in ("backend", "device", "kernels") if name in options}
    model = kind.from_config(small_config(**options), seed, dtype="float64")
    g = np.random.default_rng(seed + 100)
    flat = refdiff.model.weights.flatten(model.params)
    for name, start in flat.items():
        if (start == start.flat[0]).all():
            flat[name] = g.normal(1.0, 0.3, size=start.shape)
    return kind(model.config, refdiff.model.weights.nest(flat), dtype="float64", **placed)


def ids(seed: int, batch: int, tokens: int, vocab: int = 53) -> np.ndarray:
    """Token ids that are never the padding token, 0."""
    return np.random.default_rng(seed).integers(1, vocab, size=(batch, tokens))
