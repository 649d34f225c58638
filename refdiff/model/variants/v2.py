"""DIFF V2: two queries share one key and value head; λ by token and head; no norm after attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.arrays import Array, to_numpy
from refdiff.model.variants import rearrange
from refdiff.model.variants.variant import (
    NORM,
    Config,
    Context,
    Conversion,
    HeadsBack,
    Parameter,
    Variant,
    Weights,
)


def heads(p: Weights, x: Array, q: Array, k: Array, v: Array, layer: int, ctx: Context) -> Array:
    """Compute all heads: λ = σ(x W_λ), for each token and head."""
    ops = ctx.ops
    return ops.diff_heads_v2(q, k, v, ops.diff_lambda_v2(x, **p["lambda_proj"], ops=ops), **ctx.visibility, ops=ops)


def heads_with_back(
    p: Weights, x: Array, q: Array, k: Array, v: Array, layer: int, ctx: Context
) -> tuple[Array, HeadsBack]:
    """Compute the same, and the closure of its derivative; x has a gradient through λ too."""
    ops = ctx.ops
    operands = (q, k, v, ops.diff_lambda_v2(x, **p["lambda_proj"], ops=ops))

    def back(g: Array) -> tuple[Array, Array, Array, Array, Weights]:
        dq, dk, dv, dlambda = ops.diff_heads_v2_vjp(g, *operands, **ctx.visibility, ops=ops)
        dx, weight = ops.diff_lambda_v2_vjp(dlambda, x, **p["lambda_proj"], ops=ops)
        return dq, dk, dv, dx, {"lambda_proj": {"weight": weight}}

    return ops.diff_heads_v2(*operands, **ctx.visibility, ops=ops), back


def parameters(config: Config) -> dict[str, Parameter]:
    """Return the projection to λ."""
    return {"lambda_proj.weight": Parameter((config.num_attention_heads, config.hidden_size))}


def to_plain(p: Weights, old: Config, new: Config) -> Weights:
    """Write the pairs of a constant λ as plain heads.

    Raises:
        ValueError: λ depends on the token.
    """
    if np.any(to_numpy(p["lambda_proj"]["weight"])):
        raise ValueError(
            "cannot convert variant 'v2' to 'plain' exactly where λ depends on the token: lambda_proj.weight "
            "is not 0, and a Llama's output projection is the same for every token"
        )
    h, K, halves = old.num_attention_heads, old.num_key_value_heads, np.argsort(rearrange.interleaved(old))
    tied = new.num_attention_heads == h
    columns = to_numpy(p["o_proj"]["weight"]).reshape(-1, h, 1, old.head_dim)
    share = [0.5] if tied else [1.0, -0.5]  # of the heads that a pair becomes
    weight = (columns * np.asarray(share, dtype=columns.dtype)[:, None]).reshape(old.hidden_size, -1)
    return {
        **{name: value for name, value in p.items() if name != "lambda_proj"},
        "q_proj": rearrange.rows(p["q_proj"], np.arange(0, 2 * h, 2 if tied else 1), halves),
        "k_proj": rearrange.rows(p["k_proj"], np.arange(K), halves),
        "o_proj": {**p["o_proj"], "weight": weight},
    }


def plain_heads_needed(config: Config, layers: list[Weights]) -> dict[str, Any]:
    """Return twice as many heads, unless the two queries of every pair are equal."""
    tied = all(_tied(p, config) for p in layers)
    return {} if tied else {"num_attention_heads": 2 * config.num_attention_heads}


def _tied(p: Weights, config: Config) -> bool:
    pairs = (
        to_numpy(array).reshape(config.num_attention_heads, 2, config.head_dim, -1) for array in p["q_proj"].values()
    )
    return all(np.array_equal(pair[:, 0], pair[:, 1]) for pair in pairs)


def from_plain(p: Weights, old: Config, new: Config) -> Weights:
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
    what="DIFF V2, unilm's multihead_flashdiffv2.py",
    model_type="diff_transformer_v2",
    preset="diff_v2",
    heads=heads,
    heads_with_back=heads_with_back,
    interleaved=True,
    pairing="interleaved",
    query_heads=2,
    lambda_by_token=True,
    parameters=parameters,
    conversions={"plain": Conversion(to_plain, plain_heads_needed, condition="where its λ is constant")},
    conversions_from={"plain": Conversion(from_plain)},
    refused={"hf": NORM, "paper": NORM},
    refused_from={"hf": NORM, "paper": NORM},
)
