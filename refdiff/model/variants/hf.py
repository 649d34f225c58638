"""DiffLlama as in transformers: heads i and i + H/2 are a pair; the norm after attention has no weight."""

from __future__ import annotations

from typing import Any

from refdiff.arrays import Array
from refdiff.model.variants.variant import (
    LAMBDA_VECTORS,
    NORM,
    UNIFORM,
    Context,
    HeadsBack,
    Variant,
    Weights,
    lambda_vectors,
)


def heads(p: Weights, x: Array, q: Array, k: Array, v: Array, layer: int, ctx: Context) -> Array:
    """Compute all heads: one λ for each layer, from four vectors."""
    ops = ctx.ops
    lambda_init = ops.lambda_init(layer)
    lambda_ = ops.diff_lambda(p["lambda_q1"], p["lambda_k1"], p["lambda_q2"], p["lambda_k2"], lambda_init)
    return ops.diff_heads_hf(q, k, v, lambda_, lambda_init, ctx.config.rms_norm_eps, **ctx.visibility, ops=ops)


def heads_with_back(
    p: Weights, x: Array, q: Array, k: Array, v: Array, layer: int, ctx: Context
) -> tuple[Array, HeadsBack]:
    """Compute the same, and the closure of its derivative."""
    ops = ctx.ops
    lambda_init, vectors = ops.lambda_init(layer), [p[name] for name in LAMBDA_VECTORS]
    operands = (q, k, v, ops.diff_lambda(*vectors, lambda_init), lambda_init, ctx.config.rms_norm_eps)

    def back(g: Array) -> tuple[Array, Array, Array, None, Weights]:
        dq, dk, dv, dlambda = ops.diff_heads_hf_vjp(g, *operands, **ctx.visibility, ops=ops)
        dvectors = ops.diff_lambda_vjp(dlambda, *vectors, lambda_init)
        return dq, dk, dv, None, dict(zip(LAMBDA_VECTORS, dvectors, strict=True))

    return ops.diff_heads_hf(*operands, **ctx.visibility, ops=ops), back


def values(ops: Any, v: Array) -> Array:
    """Join the value heads of each pair: (B, K, T, d) -> (B, K/2, T, 2d)."""
    return ops.value_pairs_hf(v)


def values_vjp(ops: Any, dv: Array, k: Array) -> Array:
    """Split the gradient of joined values into that of value heads."""
    return ops.value_pairs_hf_vjp(dv, k)[0]


VARIANT = Variant(
    what="transformers' DiffLlama",
    model_type="diffllama",
    preset="hf_diffllama",
    heads=heads,
    heads_with_back=heads_with_back,
    values=values,
    values_vjp=values_vjp,
    pairing="halves",
    even_key_heads=True,
    parameters=lambda_vectors,
    refused={"plain": NORM},
    refused_from={"plain": f"{NORM}; {UNIFORM}"},
)
