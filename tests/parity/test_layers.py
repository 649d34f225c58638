"""Activations and the frequencies of RoPE against transformers; the other layers are compared in whole models."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.diffllama import modeling_diffllama as peer

from refdiff import layers
from tests.tolerances import close

ROUNDED = 3e-6  # transformers computes rotary frequencies in float32


@pytest.mark.parametrize("name", sorted(set(ACT2FN) - {"prelu", "xielu"}))
def test_activation(name: str) -> None:
    x = np.random.default_rng(1).permutation(np.linspace(-9, 9, 700)).reshape(100, 7)
    function = ACT2FN[name]
    # gelu_fast has √(2/π) to ten digits there
    close(layers.activation(x, name), function(torch.from_numpy(x)).numpy(), 1e-10 if name == "gelu_fast" else 1e-12)


ROPE: list[tuple[str, dict[str, Any]]] = [
    ("default", {"partial_rotary_factor": 0.5}),
    ("linear", {"factor": 3.0, "partial_rotary_factor": 0.5}),
    ("dynamic", {"factor": 3.0, "partial_rotary_factor": 0.75}),
    ("yarn", {"factor": 0.5}),
    ("yarn", {"factor": 4.0, "beta_fast": 2, "beta_slow": 2, "truncate": False}),
    ("yarn", {"factor": 4.0, "beta_fast": 0, "beta_slow": None}),
    ("yarn", {"factor": 4.0, "partial_rotary_factor": 0.5}),
    ("longrope", {"factor": 0.5}),
    ("llama3", {"factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 30.0, "partial_rotary_factor": 0.5}),
    ("proportional", {"partial_rotary_factor": 0.3}),
]
"""What the checkpoints do not have."""


@pytest.mark.parametrize(("kind", "fields"), ROPE, ids=lambda x: x if isinstance(x, str) else " ".join(x))
def test_rope_frequencies(kind: str, fields: dict[str, Any]) -> None:
    head_dim, longest, original = 32, 1024, 256
    parameters = {"rope_type": kind, "rope_theta": 5000.0, **fields}
    if kind in ("yarn", "longrope", "llama3"):
        parameters["original_max_position_embeddings"] = original
    if kind == "longrope":
        parameters |= {"short_factor": [1 + i / 16 for i in range(16)], "long_factor": [2.0 + i for i in range(16)]}
    config = SimpleNamespace(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=longest,
        rope_parameters=parameters,
        standardize_rope_params=lambda: None,
    )
    for length in (1, original, original + 1, longest, longest + 1, 5000):
        if kind == "default":
            expected, scale = peer.DiffLlamaRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            expected, scale = ROPE_INIT_FUNCTIONS[kind](config, None, seq_len=length)
        found, ours = layers.rope_frequencies(parameters, head_dim, longest, length)
        close(np.array(found)[:, None], expected.double().numpy()[:, None], ROUNDED)
        assert abs(ours - scale) < 1e-12
