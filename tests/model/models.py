"""Small models for tests: every size another prime where it may be, weights large enough to matter."""

from typing import Any

import numpy as np

import refdiff
from refdiff.model.pretrained import PreTrainedModel
from tests.model.variants import TESTED

CLASSES = (
    refdiff.DiffLlamaModel,
    refdiff.DiffLlamaForCausalLM,
    refdiff.DiffLlamaForSequenceClassification,
    refdiff.DiffLlamaForTokenClassification,
    refdiff.DiffLlamaForQuestionAnswering,
)

VARIANT_NAMES = TESTED
"""Every attention variant; a new one is tried wherever all are."""


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
