"""DIFF V1 as published: heads 2i and 2i + 1 are a pair; the norm after attention has a weight and unilm's ε."""

from __future__ import annotations

import numpy as np

from refdiff.arrays import Array, to_numpy
from refdiff.layers.diff_heads_paper import SUBLN_EPS
from refdiff.model.variants import rearrange
from refdiff.model.variants.variant import (
    LAMBDA_VECTORS,
    NORM,
    UNIFORM,
    Config,
    Context,
    Conversion,
    HeadsBack,
    Parameter,
    Variant,
    Weights,
    lambda_vectors,
)


def heads(p: Weights, x: Array, q: Array, k: Array, v: Array, layer: int, ctx: Context) -> Array:
    """Compute all heads: one λ for each layer, from four vectors."""
    ops = ctx.ops
    lambda_init = ops.lambda_init(layer)
    lambda_ = ops.diff_lambda(p["lambda_q1"], p["lambda_k1"], p["lambda_q2"], p["lambda_k2"], lambda_init)
    return ops.diff_heads_paper(q, k, v, lambda_, p["subln"]["weight"], lambda_init, **ctx.visibility, ops=ops)


def heads_with_back(
    p: Weights, x: Array, q: Array, k: Array, v: Array, layer: int, ctx: Context
) -> tuple[Array, HeadsBack]:
    """Compute the same, and the closure of its derivative."""
    ops = ctx.ops
    lambda_init, vectors = ops.lambda_init(layer), [p[name] for name in LAMBDA_VECTORS]
    operands = (q, k, v, ops.diff_lambda(*vectors, lambda_init), p["subln"]["weight"], lambda_init)

    def back(g: Array) -> tuple[Array, Array, Array, None, Weights]:
        dq, dk, dv, dlambda, weight = ops.diff_heads_paper_vjp(g, *operands, **ctx.visibility, ops=ops)
        dvectors = dict(zip(LAMBDA_VECTORS, ops.diff_lambda_vjp(dlambda, *vectors, lambda_init), strict=True))
        return dq, dk, dv, None, {**dvectors, "subln": {"weight": weight}}

    return ops.diff_heads_paper(*operands, **ctx.visibility, ops=ops), back


def parameters(config: Config) -> dict[str, Parameter]:
    """Return the vectors of λ and the weight of the norm, which starts as 1."""
    return {**lambda_vectors(config), "subln.weight": Parameter((2 * config.head_dim,), mean=1.0, deviation=0.0)}


def to_hf(p: Weights, old: Config, new: Config) -> Weights:
    """Reorder heads and rows; the weight of unilm's norm goes into W_O."""
    paired = rearrange.move_heads(p, old, inverse=True)
    paired["v_proj"] = rearrange.scale(paired["v_proj"], rearrange.size_for_epsilon(old.rms_norm_eps, SUBLN_EPS))
    folded = to_numpy(p["o_proj"]["weight"]) * np.tile(to_numpy(p["subln"]["weight"]), old.num_attention_heads // 2)
    paired["o_proj"] = {**p["o_proj"], "weight": folded}
    del paired["subln"]
    return paired


def from_hf(p: Weights, old: Config, new: Config) -> Weights:
    """Reorder heads and rows; unilm's norm gets a weight of 1."""
    paired = rearrange.move_heads(p, old, inverse=False)
    paired["v_proj"] = rearrange.scale(paired["v_proj"], rearrange.size_for_epsilon(SUBLN_EPS, old.rms_norm_eps))
    dtype = to_numpy(p["o_proj"]["weight"]).dtype
    return {**paired, "subln": {"weight": np.ones(2 * old.head_dim, dtype=dtype)}}


VARIANT = Variant(
    what="unilm's multihead_flashdiff_1.py, whose output matrix is called out_proj",
    model_type="diff_transformer",
    preset="ms_v1",
    heads=heads,
    heads_with_back=heads_with_back,
    value_size=2,
    interleaved=True,
    pairing="interleaved",
    even_key_heads=True,
    last_projection="out_proj",
    parameters=parameters,
    conversions={"hf": Conversion(to_hf)},
    conversions_from={"hf": Conversion(from_hf)},
    refused={"plain": NORM},
    refused_from={"plain": f"{NORM}; {UNIFORM}"},
)
