"""The layers against the functions of torch and transformers that they stand for."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.diffllama import modeling_diffllama as peer

from refdiff import layers
from tests.tolerances import EXACT, FLOAT64, close

B, H, K, T, S, d, D, V = 2, 6, 2, 5, 7, 4, 11, 13
ROUNDED = 3e-7  # transformers computes rotary frequencies in float32


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def torched(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(a.copy()) for a in arrays]


@pytest.mark.parametrize("seed", range(5))
def test_linear_embedding_norm_and_loss(seed: int) -> None:
    x, w, b, e = (rng(seed).normal(size=shape) for shape in ((B, T, D), (V, D), (V,), (V, D)))
    ids, targets = rng(seed).integers(0, V, (B, T)), rng(seed + 100).integers(0, V, (B, T))
    targets[0, 1] = -100
    tx, tw, tb, te, t_ids, t_targets = torched(x, w, b, e, ids, targets)
    close(layers.linear(x, w, b), functional.linear(tx, tw, tb).numpy(), FLOAT64)
    close(layers.embedding(ids, e), functional.embedding(t_ids, te).numpy(), EXACT)
    for size in (1.0, 1e-3):
        normed = functional.rms_norm(size * tx, (D,), tw[0], eps=1e-5)
        close(layers.rms_norm(size * x, w[0], 1e-5), normed.numpy(), FLOAT64)
    logits = functional.linear(tx, tw, tb)
    loss = functional.cross_entropy(logits.reshape(-1, V), t_targets.reshape(-1))
    close(layers.cross_entropy(layers.linear(x, w, b), targets), loss.numpy(), FLOAT64)


@pytest.mark.parametrize("name", sorted(set(ACT2FN) - {"prelu", "xielu"}))
def test_activation(name: str) -> None:
    x = rng(1).permutation(np.linspace(-9, 9, 700)).reshape(100, 7)
    function = ACT2FN[name]
    # gelu_fast has √(2/π) to ten digits there
    close(layers.activation(x, name), function(torch.from_numpy(x)).numpy(), 1e-10 if name == "gelu_fast" else 1e-12)


def test_activations_are_those_of_transformers() -> None:
    with pytest.raises(ValueError, match="is not one of") as error:
        layers.activation(np.zeros(1), "")
    assert set(str(error.value).partition("not one of ")[2].split(", ")) == set(ACT2FN) - {"prelu", "xielu"}


@pytest.mark.parametrize("seed", range(5))
def test_one_attention_map(seed: int) -> None:
    q, k = rng(seed).normal(size=(B, H, T, d)), rng(seed + 1).normal(size=(B, K, S, d))
    mask = rng(seed + 2).random((B, 1, T, S)) < 0.6
    mask[1, 0, 2] = False
    unit = torch.eye(S, dtype=torch.float64).expand(B, K, S, S)
    tq, tk = torched(q, k)
    for allowed in (None, mask):
        attended = functional.scaled_dot_product_attention(
            tq, tk, unit, attn_mask=None if allowed is None else torch.from_numpy(allowed), enable_gqa=True
        )
        close(layers.attention_weights(q, k, allowed, causal=False), attended.numpy(), 1e-12)
    square = rng(seed).normal(size=(B, H, S, d))
    attended = functional.scaled_dot_product_attention(*torched(square), tk, unit, is_causal=True, enable_gqa=True)
    close(layers.attention_weights(square, k), attended.numpy(), 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_rotation(seed: int) -> None:
    q, k = rng(seed).normal(size=(B, H, T, d)), rng(seed + 1).normal(size=(B, K, T, d))
    cos, sin = layers.rope_cos_sin(rng(seed).integers(0, 100, (B, T)), [1.0, 0.01], 1.3, np.float64)
    both = [torch.from_numpy(np.concatenate([a, a], axis=-1)[:, 0]) for a in (cos, sin)]
    rotated = peer.apply_rotary_pos_emb(*torched(q, k), *both)
    close(layers.rope(q, cos, sin), rotated[0].numpy(), FLOAT64)
    close(layers.rope(k, cos, sin), rotated[1].numpy(), FLOAT64)


@pytest.mark.parametrize("layer", [0, 1, 7, 31])
def test_lambda_init(layer: int) -> None:
    assert layers.lambda_init(layer) == peer.lambda_init_fn(layer)


ROPE: list[tuple[str, dict[str, Any]]] = [
    ("default", {}),
    ("default", {"partial_rotary_factor": 0.5}),
    ("linear", {"factor": 3.0}),
    ("linear", {"factor": 3.0, "partial_rotary_factor": 0.5}),
    ("dynamic", {"factor": 3.0}),
    ("dynamic", {"factor": 3.0, "partial_rotary_factor": 0.75}),
    ("yarn", {"factor": 4.0}),
    ("yarn", {"factor": None}),
    ("yarn", {"factor": 0.5}),
    ("yarn", {"factor": 4.0, "truncate": False}),
    ("yarn", {"factor": 4.0, "beta_fast": 10, "beta_slow": 0.3}),
    ("yarn", {"factor": 4.0, "beta_fast": 2, "beta_slow": 2, "truncate": False}),
    ("yarn", {"factor": 4.0, "beta_fast": 0, "beta_slow": None}),
    ("yarn", {"factor": 4.0, "attention_factor": 1.5}),
    ("yarn", {"factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3}),
    ("yarn", {"factor": 4.0, "mscale": 0.7}),
    ("yarn", {"factor": 4.0, "partial_rotary_factor": 0.5}),
    ("longrope", {}),
    ("longrope", {"factor": 8.0}),
    ("longrope", {"factor": 0.5}),
    ("longrope", {"attention_factor": 1.5}),
    ("llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    ("llama3", {"factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 30.0, "partial_rotary_factor": 0.5}),
    ("proportional", {}),
    ("proportional", {"factor": 2.0}),
    ("proportional", {"partial_rotary_factor": 0.3}),
    ("proportional", {"partial_rotary_factor": 0.5, "factor": 2.0}),
]


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
        close(np.array(found)[:, None], expected.double().numpy()[:, None], ROUNDED * 10)
        assert abs(ours - scale) < 1e-12
