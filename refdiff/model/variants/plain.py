"""Plain attention, as in a Llama: each head by itself, no λ."""

from __future__ import annotations

import numpy as np

from refdiff.arrays import Array, to_numpy
from refdiff.model.variants import rearrange
from refdiff.model.variants.variant import NORM, UNIFORM, Config, Context, Conversion, HeadsBack, Variant, Weights


def heads(p: Weights, x: Array, q: Array, k: Array, v: Array, layer: int, ctx: Context) -> Array:
    """Compute all heads."""
    return ctx.ops.plain_heads(q, k, v, **ctx.visibility, ops=ctx.ops)


def heads_with_back(
    p: Weights, x: Array, q: Array, k: Array, v: Array, layer: int, ctx: Context
) -> tuple[Array, HeadsBack]:
    """Compute the same, and the closure of its derivative."""
    ops = ctx.ops

    def back(g: Array) -> tuple[Array, Array, Array, None, Weights]:
        return *ops.plain_heads_vjp(g, q, k, v, **ctx.visibility, ops=ops), None, {}

    return ops.plain_heads(q, k, v, **ctx.visibility, ops=ops), back


def to_v2(p: Weights, old: Config, new: Config) -> Weights:
    """Give both queries of a pair the Llama's query, and let λ be 1/2: softmax − softmax / 2, times 2 W_O."""
    H, K, rotated = old.num_attention_heads, old.num_key_value_heads, rearrange.interleaved(old)
    weight = to_numpy(p["o_proj"]["weight"])
    return {
        **p,
        "q_proj": rearrange.rows(p["q_proj"], np.repeat(np.arange(H), 2), rotated),
        "k_proj": rearrange.rows(p["k_proj"], np.arange(K), rotated),
        "o_proj": {**p["o_proj"], "weight": 2 * weight},
        "lambda_proj": {"weight": np.zeros((H, old.hidden_size), dtype=weight.dtype)},
    }


VARIANT = Variant(
    what="a Llama",
    model_type="llama",
    preset="attention",
    heads=heads,
    heads_with_back=heads_with_back,
    conversions={"v2": Conversion(to_v2)},
    refused={"hf": f"{NORM}; {UNIFORM}", "paper": f"{NORM}; {UNIFORM}"},
)
