"""ids to hidden states: one decoder layer, and the loop over it.

Parameters are the nested weight dict of the checkpoint, `p` below being the part that belongs to the function; `ops`
is the namespace of layer functions (`refdiff.backends`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.backends import Ops
from refdiff.model.cache import KVCache
from refdiff.model.config import DiffLlamaConfig


@dataclass
class Context:
    """What is the same for every layer of one call.

    cos, sin (B or 1, 1, T, n): the rotations of the positions. mask, boolean, and bias broadcast to (B, H, T, S) or
    are None. causal: whether later keys are hidden beside what the mask hides.
    """

    config: DiffLlamaConfig
    ops: Ops
    cos: Array
    sin: Array
    mask: Array | None = None
    bias: Array | None = None
    causal: bool = True
    cache: KVCache | None = None


@dataclass
class Maps:
    """What one layer looked at: weights (B, H, T, S), difference (B, H/2, T, S) = A₁ − λ A₂, and λ ()."""

    weights: Array
    difference: Array
    lambda_: Array


def diffllama(
    p: dict[str, Any], hidden: Array, context: Context, *, maps: list[Maps] | None = None,
    hidden_states: list[Array] | None = None,
) -> Array:  # fmt: skip
    """Run all decoder layers and the last norm.

    Equation:
        X^0 = embeddings; X^{l+1} = decoder_layer(X^l); result LN(X^L)  (Ye et al. 2024, section 2.2)

    Shapes:
        hidden (B, T, D) embeddings -> (B, T, D). `hidden_states` receives the input of every layer and the result,
        `maps` what each layer looked at.
    """
    for layer, weights in enumerate(p["layers"]):
        if hidden_states is not None:
            hidden_states.append(hidden)
        hidden = decoder_layer(weights, hidden, layer, context, maps)
    hidden = context.ops.rms_norm(hidden, **p["norm"], eps=context.config.rms_norm_eps)
    if hidden_states is not None:
        hidden_states.append(hidden)
    return hidden


def decoder_layer(p: dict[str, Any], x: Array, layer: int, context: Context, maps: list[Maps] | None = None) -> Array:
    """Run one layer: attention and feed-forward network, each after a norm and beside a residual path.

    Equation:
        Y = MultiHead(LN(X)) + X;  X' = SwiGLU(LN(Y)) + Y  (Ye et al. 2024, eq. 4 and 5)

    Shapes:
        x (B, T, D) -> (B, T, D)
    """
    ops, config = context.ops, context.config
    normed = ops.rms_norm(x, **p["input_layernorm"], eps=config.rms_norm_eps)
    x = x + self_attention(p["self_attn"], normed, layer, context, maps)
    normed = ops.rms_norm(x, **p["post_attention_layernorm"], eps=config.rms_norm_eps)
    return x + ops.swiglu(normed, **p["mlp"], act=config.hidden_act)


def self_attention(p: dict[str, Any], x: Array, layer: int, context: Context, maps: list[Maps] | None = None) -> Array:
    """Run multi-head differential attention from normed hidden states to the output projection.

    Equation:
        MultiHead(X) = Concat(head_1, …, head_h) W_O  (Ye et al. 2024, eq. 3)

    Shapes:
        x (B, T, D) -> (B, T, D)
    """
    ops, config = context.ops, context.config
    q = _heads(ops.linear(x, **p["q_proj"]), config.head_dim)
    k = _heads(ops.linear(x, **p["k_proj"]), config.head_dim)
    v = ops.value_pairs_hf(_heads(ops.linear(x, **p["v_proj"]), config.head_dim))
    q, k = ops.rope(q, context.cos, context.sin), ops.rope(k, context.cos, context.sin)
    if context.cache is not None:
        k, v = context.cache.append(layer, k, v)
    start = ops.lambda_init(layer)
    lambda_ = ops.diff_lambda(p["lambda_q1"], p["lambda_k1"], p["lambda_q2"], p["lambda_k2"], start)
    if maps is not None:
        weights = ops.attention_weights(q, k, context.mask, context.bias, causal=context.causal)
        half = weights.shape[1] // 2
        maps.append(Maps(weights, weights[:, :half, ...] - lambda_ * weights[:, half:, ...], lambda_))
    out = ops.diff_heads_hf(
        q, k, v, lambda_, start, config.rms_norm_eps, context.mask, context.bias, causal=context.causal
    )
    return ops.linear(out, **p["o_proj"])


def _heads(x: Array, head_dim: int) -> Array:
    """(B, T, heads · d) to (B, heads, T, d)."""
    xp = namespace(x)
    B, T, width = x.shape
    return xp.permute_dims(xp.reshape(x, (B, T, width // head_dim, head_dim)), (0, 2, 1, 3))
