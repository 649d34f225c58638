"""The functions of diffllama.py, each with a closure that computes its gradients.

A function with the name of one in diffllama.py computes the same, bit for bit. It returns the result and `back`, a
closure that takes the gradient of the result and returns those of the input and of the parameters, nested like these.
`back` holds what the backward pass needs of the forward pass. That of `diffllama` can be called once: it releases the
layers one by one, so that memory falls from the last to the first.

    forward                         backward
    Y  = X + MultiHead(LN(X))       dY = g + dLN(dSwiGLU(g))
    X' = Y + SwiGLU(LN(Y))          dX = dY + dLN(dMultiHead(dY))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refdiff.arrays import Array
from refdiff.backends import Ops
from refdiff.layers.linear import named_grads
from refdiff.layers.plain_heads import concat_heads
from refdiff.model.diffllama import Context, project, rotate
from refdiff.model.variants import LAMBDA_VECTORS

Grads = dict[str, Any]
Back = Callable[[Array], tuple[Array, Grads]]
"""Compute from the gradient of a result those of the input and, by name, of the parameters."""


def diffllama(p: dict[str, Any], x: Array, ctx: Context) -> tuple[Array, Back]:
    """Run all decoder layers and the final norm.

    Shapes:
        x (B, T, D) -> (B, T, D), and back: (B, T, D) -> (B, T, D), {"layers": [...], "norm": {"weight"}}
    """
    backs: list[Back] = []
    for layer, weights in enumerate(p["layers"]):
        x, layer_back = decoder_layer(weights, x, layer, ctx)
        backs.append(layer_back)
    y, norm_back = norm(p["norm"], x, ctx)

    def back(g: Array) -> tuple[Array, Grads]:
        if not backs:
            raise RuntimeError("diffllama_vjp: back: got a second call, expected one; run the forward pass again")
        g, norm_grads = norm_back(g)
        layers = []
        while backs:
            g, grads = backs.pop()(g)
            layers.append(grads)
        return g, {"layers": layers[::-1], "norm": norm_grads}

    return y, back


def decoder_layer(p: dict[str, Any], x: Array, layer: int, ctx: Context) -> tuple[Array, Back]:
    """Run one layer. A residual path passes its gradient on unchanged, plus that of the branch beside it.

    Shapes:
        x (B, T, D) -> (B, T, D), and back: (B, T, D) -> (B, T, D), grads like `p`
    """
    ops, act = ctx.ops, ctx.config.hidden_act
    normed, first_norm_back = norm(p["input_layernorm"], x, ctx)
    attended, attention_back = ATTENTION[ctx.config.wiring](p["self_attn"], normed, layer, ctx)
    y = x + attended
    normed, second_norm_back = norm(p["post_attention_layernorm"], y, ctx)
    out = y + ops.swiglu(normed, **p["mlp"], act=act, ops=ops)

    def back(g: Array) -> tuple[Array, Grads]:
        dnormed, *projections = ops.swiglu_vjp(g, normed, **p["mlp"], act=act, ops=ops)
        dy, second = second_norm_back(dnormed)
        g = g + dy
        dnormed, attention = attention_back(g)
        dx, first = first_norm_back(dnormed)
        return g + dx, {
            "self_attn": attention,
            "mlp": dict(zip(("gate_proj", "up_proj", "down_proj"), projections, strict=True)),
            "input_layernorm": first,
            "post_attention_layernorm": second,
        }

    return out, back


# the attention variants, each (B, T, D) -> (B, T, D), and back: (B, T, D) -> (B, T, D), grads like `p`


def attention_hf(p: dict[str, Any], x: Array, layer: int, ctx: Context) -> tuple[Array, Back]:
    """DiffLlama: λ depends on its vectors alone."""
    ops = ctx.ops
    q, k, v, projections_back = project_and_rotate(p, x, ctx, interleaved=False, value_size=ctx.config.head_dim)
    v = ops.value_pairs_hf(v)
    lambda_init, vectors = ops.lambda_init(layer), [p[name] for name in LAMBDA_VECTORS]
    operands = (q, k, v, ops.diff_lambda(*vectors, lambda_init), lambda_init, ctx.config.rms_norm_eps)
    heads = ops.diff_heads_hf(*operands, **ctx.visibility, ops=ops)

    def back(g: Array) -> tuple[Array, Grads]:
        g, o_proj = linear_back(ops, g, heads, p["o_proj"])
        dq, dk, dv, dlambda = ops.diff_heads_hf_vjp(g, *operands, **ctx.visibility, ops=ops)
        (dv,) = ops.value_pairs_hf_vjp(dv, k)  # the value heads have the shape of the key heads
        dx, grads = projections_back(dq, dk, dv)
        dvectors = ops.diff_lambda_vjp(dlambda, *vectors, lambda_init)
        return dx, {**grads, "o_proj": o_proj, **dict(zip(LAMBDA_VECTORS, dvectors, strict=True))}

    return ops.linear(heads, **p["o_proj"]), back


def attention_paper(p: dict[str, Any], x: Array, layer: int, ctx: Context) -> tuple[Array, Back]:
    """As published: the norm after attention has a weight."""
    ops = ctx.ops
    q, k, v, projections_back = project_and_rotate(p, x, ctx, interleaved=True, value_size=2 * ctx.config.head_dim)
    lambda_init, vectors = ops.lambda_init(layer), [p[name] for name in LAMBDA_VECTORS]
    operands = (q, k, v, ops.diff_lambda(*vectors, lambda_init), p["subln"]["weight"], lambda_init)
    heads = ops.diff_heads_paper(*operands, **ctx.visibility, ops=ops)

    def back(g: Array) -> tuple[Array, Grads]:
        g, o_proj = linear_back(ops, g, heads, p["o_proj"])
        dq, dk, dv, dlambda, weight = ops.diff_heads_paper_vjp(g, *operands, **ctx.visibility, ops=ops)
        dx, grads = projections_back(dq, dk, dv)
        dvectors = dict(zip(LAMBDA_VECTORS, ops.diff_lambda_vjp(dlambda, *vectors, lambda_init), strict=True))
        return dx, {**grads, "o_proj": o_proj, **dvectors, "subln": {"weight": weight}}

    return ops.linear(heads, **p["o_proj"]), back


def attention_v2(p: dict[str, Any], x: Array, layer: int, ctx: Context) -> tuple[Array, Back]:
    """DIFF V2: λ is computed from X, which therefore has a gradient through λ too."""
    ops = ctx.ops
    q, k, v, projections_back = project_and_rotate(p, x, ctx, interleaved=True, value_size=ctx.config.head_dim)
    operands = (q, k, v, ops.diff_lambda_v2(x, **p["lambda_proj"], ops=ops))
    heads = ops.diff_heads_v2(*operands, **ctx.visibility, ops=ops)

    def back(g: Array) -> tuple[Array, Grads]:
        g, o_proj = linear_back(ops, g, heads, p["o_proj"])
        dq, dk, dv, dlambda = ops.diff_heads_v2_vjp(g, *operands, **ctx.visibility, ops=ops)
        dx, grads = projections_back(dq, dk, dv)
        dx_lambda, weight = ops.diff_lambda_v2_vjp(dlambda, x, **p["lambda_proj"], ops=ops)
        return dx + dx_lambda, {**grads, "o_proj": o_proj, "lambda_proj": {"weight": weight}}

    return ops.linear(heads, **p["o_proj"]), back


def attention_llama(p: dict[str, Any], x: Array, layer: int, ctx: Context) -> tuple[Array, Back]:
    """A plain Llama."""
    ops = ctx.ops
    q, k, v, projections_back = project_and_rotate(p, x, ctx, interleaved=False, value_size=ctx.config.head_dim)
    heads = ops.plain_heads(q, k, v, **ctx.visibility, ops=ops)

    def back(g: Array) -> tuple[Array, Grads]:
        g, o_proj = linear_back(ops, g, heads, p["o_proj"])
        dq, dk, dv = ops.plain_heads_vjp(g, q, k, v, **ctx.visibility, ops=ops)
        dx, grads = projections_back(dq, dk, dv)
        return dx, {**grads, "o_proj": o_proj}

    return ops.linear(heads, **p["o_proj"]), back


ATTENTION = {"hf": attention_hf, "paper": attention_paper, "v2": attention_v2, "none": attention_llama}


def project_and_rotate(
    p: dict[str, Any], x: Array, ctx: Context, *, interleaved: bool, value_size: int
) -> tuple[Array, Array, Array, Callable[[Array, Array, Array], tuple[Array, Grads]]]:
    """Project to rotated queries (B, H, T, d) and keys (B, K, T, d), and to values (B, heads, T, value_size).

    ∂L/∂X is the sum of the gradients through Q, K and V.
    """
    ops = ctx.ops
    q, k, v = project(p, x, ctx, value_size=value_size)
    q, k = rotate(q, k, ctx, interleaved=interleaved)

    def back(dq: Array, dk: Array, dv: Array) -> tuple[Array, Grads]:
        # rope_vjp reads the shape of its second argument only
        dq = ops.rope_vjp(dq, q, ctx.cos, ctx.sin, interleaved=interleaved)[0]
        dk = ops.rope_vjp(dk, k, ctx.cos, ctx.sin, interleaved=interleaved)[0]
        dx_q, q_proj = linear_back(ops, concat_heads(dq), x, p["q_proj"])
        dx_k, k_proj = linear_back(ops, concat_heads(dk), x, p["k_proj"])
        dx_v, v_proj = linear_back(ops, concat_heads(dv), x, p["v_proj"])
        return dx_q + dx_k + dx_v, {"q_proj": q_proj, "k_proj": k_proj, "v_proj": v_proj}

    return q, k, v, back


def norm(p: dict[str, Array], x: Array, ctx: Context) -> tuple[Array, Back]:
    """Normalize each token."""
    ops, eps = ctx.ops, ctx.config.rms_norm_eps

    def back(g: Array) -> tuple[Array, Grads]:
        dx, weight = ops.rms_norm_vjp(g, x, **p, eps=eps)
        return dx, {"weight": weight}

    return ops.rms_norm(x, **p, eps=eps), back


def linear_back(ops: Ops, g: Array, x: Array, p: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Return the gradients of the input and of the weight of a projection, and of its bias, if it has one."""
    dx, weight, bias = ops.linear_vjp(g, x, **p)
    return dx, named_grads(weight, bias)
