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
from refdiff.backends import Function, Ops, overlay
from refdiff.layers.activation import ACTIVATIONS, silu
from refdiff.layers.plain_heads import split_heads


def _unavailable(*args: Any, **kwargs: Any) -> Any:
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
    linears: Function = _unavailable
    rope_append: Function = _unavailable
    add: Function = operator.add
    gated: Function = _unavailable
    diff_attention_with_lse: Function = _unavailable
    diff_attention_vjp: Function = _unavailable


def diffllama(p: dict[str, Any], x: Array, ctx: Any, last: int | None = None, *, steps: Steps) -> Any:
    """Run all decoder layers and the final norm.

    Args:
        ctx: a `Context` of `refdiff.model.diffllama`, of which `ops` is not read.
        last: how many tokens at the end the result has; None is all.

    Shapes:
        x (B, T, D) -> (B, T or last, D); NotImplemented for an attention variant that is not in `ATTENTION`
    """
    if ctx.config.wiring not in ATTENTION:
        return NotImplemented
    for layer, weights in enumerate(p["layers"]):
        x = decoder_layer(weights, x, layer, ctx, last if layer + 1 == len(p["layers"]) else None, steps)
    return steps.ops.rms_norm(x, **p["norm"], eps=ctx.config.rms_norm_eps)


def decoder_layer(p: dict[str, Any], x: Array, layer: int, ctx: Any, last: int | None, steps: Steps) -> Array:
    """Run one layer: (B, T, D) -> (B, T or last, D)."""
    ops, eps = steps.ops, ctx.config.rms_norm_eps
    attended = attention(p["self_attn"], ops.rms_norm(x, **p["input_layernorm"], eps=eps), layer, ctx, last, steps)
    x = steps.add(x if last is None else x[:, -last:, :], attended)
    normed = ops.rms_norm(x, **p["post_attention_layernorm"], eps=eps)
    y: Array = steps.add(x, ops.swiglu(normed, **p["mlp"], act=ctx.config.hidden_act, ops=ops))
    return y


def attention(p: dict[str, Any], x: Array, layer: int, ctx: Any, last: int | None, steps: Steps) -> Array:
    """Run attention in the variant of the config: (B, T, D) -> (B, T or last, D)."""
    ops, d, variant = steps.ops, ctx.config.head_dim, ATTENTION[ctx.config.wiring]
    queries, query_ctx = x, ctx
    if last is not None and last < x.shape[1]:
        queries = x[:, -last:, :]
        per_query = {name: getattr(ctx, name) for name in ("cos", "sin", "mask", "bias")}
        query_ctx = replace(ctx, **{name: None if a is None else a[..., -last:, :] for name, a in per_query.items()})
    products: Any = steps.linears(x, p["q_proj"], p["k_proj"], p["v_proj"]) if queries is x else NotImplemented
    if products is NotImplemented:  # also where fewer queries than keys are projected
        products = ops.linear(queries, **p["q_proj"]), ops.linear(x, **p["k_proj"]), ops.linear(x, **p["v_proj"])
    q, k, v = split_heads(products[0], d), split_heads(products[1], d), split_heads(products[2], variant.value_size * d)
    if variant.value_pairs:
        v = ops.value_pairs_hf(v)
    rotated: Any = NotImplemented
    options = {"interleaved": variant.interleaved}
    if ctx.cache is not None and queries is x:
        rotated = steps.rope_append(ctx.cache, layer, q, k, v, ctx.cos, ctx.sin, **options)
    if rotated is NotImplemented:
        q = ops.rope(q, query_ctx.cos, query_ctx.sin, **options)
        k = ops.rope(k, ctx.cos, ctx.sin, **options)
        rotated = q, *((k, v) if ctx.cache is None else ctx.cache.append(layer, k, v))
    heads = variant.attend(ops, p, queries, *rotated, layer, query_ctx)
    y: Array = ops.linear(heads, **p["o_proj"])
    return y


def _lambda(ops: Any, p: dict[str, Any], lambda_init: float) -> Array:
    return ops.diff_lambda(p["lambda_q1"], p["lambda_k1"], p["lambda_q2"], p["lambda_k2"], lambda_init)


# the attention variants after RoPE, each (B, T, D), rotated q, all k and v -> (B, T, H d)


def _attend_hf(ops: Any, p: dict[str, Any], x: Array, q: Array, k: Array, v: Array, layer: int, ctx: Any) -> Array:
    init, eps = ops.lambda_init(layer), ctx.config.rms_norm_eps
    return ops.diff_heads_hf(q, k, v, _lambda(ops, p, init), init, eps, **ctx.visibility, ops=ops)


def _attend_paper(ops: Any, p: dict[str, Any], x: Array, q: Array, k: Array, v: Array, layer: int, ctx: Any) -> Array:
    init = ops.lambda_init(layer)
    return ops.diff_heads_paper(q, k, v, _lambda(ops, p, init), p["subln"]["weight"], init, **ctx.visibility, ops=ops)


def _attend_v2(ops: Any, p: dict[str, Any], x: Array, q: Array, k: Array, v: Array, layer: int, ctx: Any) -> Array:
    return ops.diff_heads_v2(q, k, v, ops.diff_lambda_v2(x, **p["lambda_proj"], ops=ops), **ctx.visibility, ops=ops)


def _attend_llama(ops: Any, p: dict[str, Any], x: Array, q: Array, k: Array, v: Array, layer: int, ctx: Any) -> Array:
    return ops.plain_heads(q, k, v, **ctx.visibility, ops=ops)


@dataclass(frozen=True)
class Attention:
    """How the decoder here computes an attention variant.

    attend: from queries, keys and values to the heads.
    interleaved: whether RoPE rotates neighbors instead of halves.
    value_size: the size of a value head, in units of `head_dim`.
    value_pairs: whether two value heads are joined before the cache, as in transformers.
    """

    attend: Function
    interleaved: bool
    value_size: int = 1
    value_pairs: bool = False


ATTENTION = {
    "hf": Attention(_attend_hf, interleaved=False, value_pairs=True),
    "paper": Attention(_attend_paper, interleaved=True, value_size=2),
    "v2": Attention(_attend_v2, interleaved=True),
    "none": Attention(_attend_llama, interleaved=False),
}


def saving_ops(steps: Steps) -> Ops:
    """Return the layer functions for one forward and backward pass, whose derivatives start from what layers computed.

    `swiglu` saves its two products, `diff_attention` its result and log-sum-exps. The backward pass visits the layers
    in reverse, so that each derivative takes what was saved last.
    """
    own = steps.ops
    products: list[Any] = []
    attention: list[tuple[Array, Array | None]] = []

    def swiglu(x: Array, gate_proj: Any, up_proj: Any, down_proj: Any, *, act: str, ops: Any) -> Array:
        gate, up = own.linear(x, **gate_proj), own.linear(x, **up_proj)
        products.append((gate, up))
        hidden = steps.gated(gate, up) if ACTIVATIONS.get(act) is silu else NotImplemented
        return own.linear(own.activation(gate, act) * up if hidden is NotImplemented else hidden, **down_proj)

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
        "diff_heads_hf_vjp": lambda *args, **kw: own.diff_heads_hf_vjp(*args, saved=attention[-1][0], **kw),
        "diff_heads_paper_vjp": lambda *args, **kw: own.diff_heads_paper_vjp(*args, saved=attention[-1][0], **kw),
    }

    def wrap(name: str, function: Function) -> Function:
        return functions.get(name, function)

    return overlay(own, wrap)
