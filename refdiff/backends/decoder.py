"""The decoder of `model/diffllama.py` as one function for backends, with fused steps.

It computes the same as the readable one: `tests/backends/test_decoder.py` compares the two in every attention variant.
It differs in two ways:

- Q, K and V are projected at once (`linears`), rotated and written to the cache at once (`rope_append`).
- Where only the last tokens are wanted, the last layer computes nothing but keys and values for the others.

`saving_ops` is for training: its backward pass starts from what the forward pass saved.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

from refdiff.arrays import Array
from refdiff.backends.backend import Function, Ops, overlay
from refdiff.layers import COMPOSED
from refdiff.layers.activation import ACTIVATIONS, silu
from refdiff.layers.plain_heads import split_heads


def _use_layers(*args: Any, **kwargs: Any) -> Any:
    return NotImplemented


@dataclass(frozen=True)
class Steps:
    """The fused steps of a backend; where one returns `NotImplemented`, the layers in `ops` run.

    linears (x, *projections) -> the product with each.
    rope_append (cache, layer, q, k, v, cos, sin, *, interleaved) -> rotated queries, all keys, all values.
    add (x, y) -> x + y.
    gated (gate, up) -> silu(gate) ⊙ up.
    diff_attention_with_lse (like `diff_attention`) -> the result and the log-sum-exps.
    diff_attention_vjp (like the layer, lse=) -> the same gradients, from these log-sum-exps.
    """

    ops: Any
    linears: Function = _use_layers
    rope_append: Function = _use_layers
    add: Function = operator.add
    gated: Function = _use_layers
    diff_attention_with_lse: Function = _use_layers
    diff_attention_vjp: Function = _use_layers


def fast_diffllama(p: dict[str, Any], x: Array, ctx: Any, last: int | None = None, *, steps: Steps) -> Array:
    """Run all decoder layers and the final norm.

    Args:
        ctx: a `Context` of `refdiff.model.diffllama`, of which `ops` is not read.
        last: how many tokens at the end the result has; None is all.

    Shapes:
        x (B, T, D) -> (B, T or last, D)
    """
    ctx = replace(ctx, ops=steps.ops)
    for layer, weights in enumerate(p["layers"]):
        x = fast_decoder_layer(weights, x, layer, ctx, last if layer + 1 == len(p["layers"]) else None, steps)
    hidden: Array = steps.ops.rms_norm(x, **p["norm"], eps=ctx.config.rms_norm_eps)
    return hidden


def fast_decoder_layer(p: dict[str, Any], x: Array, layer: int, ctx: Any, last: int | None, steps: Steps) -> Array:
    """Run one layer: (B, T, D) -> (B, T or last, D)."""
    ops, eps = steps.ops, ctx.config.rms_norm_eps
    attended = fast_attention(p["self_attn"], ops.rms_norm(x, **p["input_layernorm"], eps=eps), layer, ctx, last, steps)
    x = steps.add(x if last is None else x[:, -last:, :], attended)
    normed = ops.rms_norm(x, **p["post_attention_layernorm"], eps=eps)
    y: Array = steps.add(x, ops.swiglu(normed, **p["mlp"], act=ctx.config.hidden_act, ops=ops))
    return y


def fast_attention(p: dict[str, Any], x: Array, layer: int, ctx: Any, last: int | None, steps: Steps) -> Array:
    """Run attention in the variant of the config: (B, T, D) -> (B, T or last, D)."""
    ops, d, variant = steps.ops, ctx.config.head_dim, ctx.variant
    queries, query_ctx = x, ctx
    if last is not None and last < x.shape[1]:
        queries = x[:, -last:, :]
        per_query = {name: getattr(ctx, name) for name in ("cos", "sin", "mask", "bias")}
        query_ctx = replace(ctx, **{name: None if a is None else a[..., -last:, :] for name, a in per_query.items()})
    products: Any = steps.linears(x, p["q_proj"], p["k_proj"], p["v_proj"]) if queries is x else NotImplemented
    if products is NotImplemented:  # also where fewer queries than keys are projected
        products = ops.linear(queries, **p["q_proj"]), ops.linear(x, **p["k_proj"]), ops.linear(x, **p["v_proj"])
    q, k = split_heads(products[0], d), split_heads(products[1], d)
    v = variant.values(ops, split_heads(products[2], variant.value_size * d))
    rotated: Any = NotImplemented
    options = {"interleaved": variant.interleaved}
    if ctx.cache is not None and queries is x:
        rotated = steps.rope_append(ctx.cache, layer, q, k, v, ctx.cos, ctx.sin, **options)
    if rotated is NotImplemented:
        q = ops.rope(q, query_ctx.cos, query_ctx.sin, **options)
        k = ops.rope(k, ctx.cos, ctx.sin, **options)
        rotated = q, *((k, v) if ctx.cache is None else ctx.cache.append(layer, k, v))
    heads = variant.heads(p, queries, *rotated, layer, query_ctx)
    y: Array = ops.linear(heads, **p["o_proj"])
    return y


def saving_ops(steps: Steps) -> Ops:
    """Return the layer functions for one forward and backward pass, whose derivatives start from what layers computed.

    `swiglu` saves its two products, `diff_attention` its result and log-sum-exps. The backward pass visits the layers
    in reverse, so that each derivative takes what was saved last.
    """
    own = steps.ops
    products: list[Any] = []
    attention: list[tuple[Array, Array | None]] = []

    def swiglu(
        x: Array, gate_proj: Any, up_proj: Any, down_proj: Any, act_fn: Any = None, *, act: str, ops: Any
    ) -> Array:
        gate, up = own.linear(x, **gate_proj), own.linear(x, **up_proj)
        products.append((gate, up))
        hidden = steps.gated(gate, up) if ACTIVATIONS.get(act) is silu else NotImplemented
        if hidden is NotImplemented:
            hidden = own.activation(gate, act, **(act_fn or {})) * up
        return own.linear(hidden, **down_proj)

    def diff_attention(*args: Any, ops: Any, **kwargs: Any) -> Array:
        with_lse = steps.diff_attention_with_lse(*args, **kwargs)
        result, lse = (own.diff_attention(*args, **kwargs), None) if with_lse is NotImplemented else with_lse
        attention.append((result, lse))
        return result

    def diff_attention_vjp(g: Array, *args: Any, ops: Any, **kwargs: Any) -> Any:
        _, lse = attention.pop()
        if lse is None:
            return own.diff_attention_vjp(g, *args, **kwargs)
        return steps.diff_attention_vjp(g, *args, lse=lse, **kwargs)

    functions: dict[str, Function] = {
        "swiglu": swiglu,
        "swiglu_vjp": lambda *args, ops, **kwargs: own.swiglu_vjp(*args, saved=products.pop(), **kwargs),
        "diff_attention": diff_attention,
        "diff_attention_vjp": diff_attention_vjp,
    }

    def with_saved_attention(name: str) -> Function:
        return lambda *args, **kwargs: getattr(own, name)(*args, saved=attention[-1][0], **kwargs)

    for name, parts in COMPOSED.items():
        if {"diff_attention", "diff_attention_vjp"} <= {*parts}:  # its derivative needs the result of attention
            functions[name] = with_saved_attention(name)

    def wrap(name: str, function: Function) -> Function:
        return functions.get(name, function)

    return overlay(own, wrap)
