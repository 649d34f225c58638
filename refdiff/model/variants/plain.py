"""Plain attention, as in a Llama: each head by itself, no λ."""

from __future__ import annotations

from refdiff.arrays import Array
from refdiff.model.variants.variant import Context, HeadsBack, Variant, Weights


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


VARIANT = Variant(
    what="a Llama",
    model_type="llama",
    preset="attention",
    heads=heads,
    heads_with_back=heads_with_back,
)
