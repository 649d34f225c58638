"""Embeddings → hidden states: the attention variants, the decoder layer, the loop.

`p` is the part of the checkpoint's nested weight dict that belongs to a function. `ctx`, a `Context`, is shared by
all layers; `ctx.ops` is the namespace of layer functions (`refdiff.backends`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from refdiff.arrays import Array
from refdiff.backends import Ops
from refdiff.layers.plain_heads import split_heads
from refdiff.model.cache import KVCache
from refdiff.model.config import DiffLlamaConfig


@dataclass
class Context:
    """What the layers of one call share.

    cos, sin (B or 1, 1, T, n): RoPE's factors at the positions. mask (boolean "may attend") and bias broadcast to
    (B, H, T, S) or are None. causal: also hide later keys.
    """

    config: DiffLlamaConfig
    ops: Ops
    cos: Array
    sin: Array
    mask: Array | None = None
    bias: Array | None = None
    causal: bool = True
    cache: KVCache | None = None

    @property
    def visibility(self) -> dict[str, Any]:
        """The keyword arguments of attention layers that decide which keys a query attends to."""
        return {"mask": self.mask, "bias": self.bias, "causal": self.causal}

    def select_batch(self, items: slice) -> Context:
        """Return the context of some items of the batch, for a call without a cache."""
        cos, sin, mask, bias = (
            a if a is None or a.shape[0] == 1 else a[items] for a in (self.cos, self.sin, self.mask, self.bias)
        )
        return replace(self, cos=cos, sin=sin, mask=mask, bias=bias)


def diffllama(p: dict[str, Any], x: Array, ctx: Context) -> Array:
    """Run all decoder layers and the final norm.

    Equation:
        X^0 = embeddings; X^{l+1} = decoder_layer(X^l)  (Ye et al. 2024, section 2); result LN(X^L), as in Llama

    Shapes:
        x (B, T, D) -> (B, T, D)
    """
    for layer, weights in enumerate(p["layers"]):
        x = decoder_layer(weights, x, layer, ctx)
    return ctx.ops.rms_norm(x, **p["norm"], eps=ctx.config.rms_norm_eps)


def decoder_layer(p: dict[str, Any], x: Array, layer: int, ctx: Context) -> Array:
    """Run one layer: attention, then the feed-forward network, each with a norm before it and a residual path.

    Equation:
        Y = MultiHead(LN(X)) + X;  X' = SwiGLU(LN(Y)) + Y  (Ye et al. 2024, eq. 4 and 5)

    Shapes:
        x (B, T, D) -> (B, T, D)
    """
    ops, eps = ctx.ops, ctx.config.rms_norm_eps
    attention = ATTENTION[ctx.config.wiring]
    x = x + attention(p["self_attn"], ops.rms_norm(x, **p["input_layernorm"], eps=eps), layer, ctx)
    normed = ops.rms_norm(x, **p["post_attention_layernorm"], eps=eps)
    return x + ops.swiglu(normed, **p["mlp"], act=ctx.config.hidden_act, ops=ops)


# MultiHead(X) = Concat(head_1, …, head_h) W_O (Ye et al. 2024, eq. 3) by variant, each (B, T, D) -> (B, T, D)


def attention_hf(p: dict[str, Any], x: Array, layer: int, ctx: Context) -> Array:
    """DiffLlama: heads i and i + H/2 are a pair; RoPE rotates halves; the norm after attention has no weight."""
    ops, d = ctx.ops, ctx.config.head_dim
    q, k, v = project(p, x, ctx, value_size=d)
    v = ops.value_pairs_hf(v)
    q, k = rotate(q, k, ctx, interleaved=False)
    k, v = append_to_cache(layer, k, v, ctx)
    lambda_init = ops.lambda_init(layer)
    lambda_ = ops.diff_lambda(p["lambda_q1"], p["lambda_k1"], p["lambda_q2"], p["lambda_k2"], lambda_init)
    eps = ctx.config.rms_norm_eps
    heads = ops.diff_heads_hf(q, k, v, lambda_, lambda_init, eps, **ctx.visibility, ops=ops)
    return ops.linear(heads, **p["o_proj"])


def attention_paper(p: dict[str, Any], x: Array, layer: int, ctx: Context) -> Array:
    """As published: heads 2i and 2i + 1 are a pair; RoPE rotates neighbors; the norm has a weight and unilm's ε."""
    ops, d = ctx.ops, ctx.config.head_dim
    q, k, v = project(p, x, ctx, value_size=2 * d)
    q, k = rotate(q, k, ctx, interleaved=True)
    k, v = append_to_cache(layer, k, v, ctx)
    lambda_init = ops.lambda_init(layer)
    lambda_ = ops.diff_lambda(p["lambda_q1"], p["lambda_k1"], p["lambda_q2"], p["lambda_k2"], lambda_init)
    heads = ops.diff_heads_paper(q, k, v, lambda_, p["subln"]["weight"], lambda_init, **ctx.visibility, ops=ops)
    return ops.linear(heads, **p["o_proj"])


def attention_v2(p: dict[str, Any], x: Array, layer: int, ctx: Context) -> Array:
    """DIFF V2: two queries share one key and value head; λ by token and head; no norm."""
    ops, d = ctx.ops, ctx.config.head_dim
    q, k, v = project(p, x, ctx, value_size=d)
    q, k = rotate(q, k, ctx, interleaved=True)
    k, v = append_to_cache(layer, k, v, ctx)
    heads = ops.diff_heads_v2(q, k, v, ops.diff_lambda_v2(x, **p["lambda_proj"], ops=ops), **ctx.visibility, ops=ops)
    return ops.linear(heads, **p["o_proj"])


def attention_llama(p: dict[str, Any], x: Array, layer: int, ctx: Context) -> Array:
    """A plain Llama: each head by itself, no λ."""
    ops, d = ctx.ops, ctx.config.head_dim
    q, k, v = project(p, x, ctx, value_size=d)
    q, k = rotate(q, k, ctx, interleaved=False)
    k, v = append_to_cache(layer, k, v, ctx)
    return ops.linear(ops.plain_heads(q, k, v, **ctx.visibility, ops=ops), **p["o_proj"])


ATTENTION = {"hf": attention_hf, "paper": attention_paper, "v2": attention_v2, "none": attention_llama}
"""From `config.wiring` to the attention variant; `refdiff.layers` compares them in a table."""


def project(p: dict[str, Any], x: Array, ctx: Context, *, value_size: int) -> tuple[Array, Array, Array]:
    """Project to queries (B, H, T, d), keys (B, K, T, d) and values (B, heads, T, value_size)."""
    linear, d = ctx.ops.linear, ctx.config.head_dim
    q, k, v = linear(x, **p["q_proj"]), linear(x, **p["k_proj"]), linear(x, **p["v_proj"])
    return split_heads(q, d), split_heads(k, d), split_heads(v, value_size)


def rotate(q: Array, k: Array, ctx: Context, *, interleaved: bool) -> tuple[Array, Array]:
    """Rotate queries and keys by their positions."""
    q = ctx.ops.rope(q, ctx.cos, ctx.sin, interleaved=interleaved)
    return q, ctx.ops.rope(k, ctx.cos, ctx.sin, interleaved=interleaved)


def append_to_cache(layer: int, k: Array, v: Array, ctx: Context) -> tuple[Array, Array]:
    """Append keys and values to the cache, if there is one, and return those of all tokens so far."""
    return (k, v) if ctx.cache is None else ctx.cache.append(layer, k, v)
