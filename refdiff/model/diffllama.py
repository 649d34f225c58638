"""Embeddings → hidden states: attention, the decoder layer, the loop.

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
from refdiff.model.variants import VARIANTS, Variant


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
    def variant(self) -> Variant:
        """The attention variant of the config."""
        return VARIANTS[self.config.variant]

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
    x = x + attention(p["self_attn"], ops.rms_norm(x, **p["input_layernorm"], eps=eps), layer, ctx)
    normed = ops.rms_norm(x, **p["post_attention_layernorm"], eps=eps)
    return x + ops.swiglu(normed, **p["mlp"], act=ctx.config.hidden_act, ops=ops)


def attention(p: dict[str, Any], x: Array, layer: int, ctx: Context) -> Array:
    """Attend with all heads, in the variant of the config: `refdiff.model.variants` has their heads.

    Equation:
        MultiHead(X) = Concat(head_1, …, head_h) W_O  (Ye et al. 2024, eq. 3)

    Shapes:
        x (B, T, D) -> (B, T, D)
    """
    q, k, v = project(p, x, ctx)
    q, k = rotate(q, k, ctx)
    k, v = append_to_cache(layer, k, v, ctx)
    return ctx.ops.linear(ctx.variant.heads(p, x, q, k, v, layer, ctx), **p["o_proj"])


def project(p: dict[str, Any], x: Array, ctx: Context) -> tuple[Array, Array, Array]:
    """Project to queries (B, H, T, d), keys (B, K, T, d) and the variant's values (B, heads, T, size)."""
    ops, d = ctx.ops, ctx.config.head_dim
    q, k, v = ops.linear(x, **p["q_proj"]), ops.linear(x, **p["k_proj"]), ops.linear(x, **p["v_proj"])
    v = split_heads(v, d * ctx.variant.value_size)
    return split_heads(q, d), split_heads(k, d), ctx.variant.values(ops, v)


def rotate(q: Array, k: Array, ctx: Context) -> tuple[Array, Array]:
    """Rotate queries and keys by their positions."""
    rope, interleaved = ctx.ops.rope, ctx.variant.interleaved
    return rope(q, ctx.cos, ctx.sin, interleaved=interleaved), rope(k, ctx.cos, ctx.sin, interleaved=interleaved)


def append_to_cache(layer: int, k: Array, v: Array, ctx: Context) -> tuple[Array, Array]:
    """Append keys and values to the cache, if there is one, and return those of all tokens so far."""
    return (k, v) if ctx.cache is None else ctx.cache.append(layer, k, v)
