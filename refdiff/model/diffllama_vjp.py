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
    attended, attention_back = attention(p["self_attn"], normed, layer, ctx)
    y = x + attended
    normed, second_norm_back = norm(p["post_attention_layernorm"], y, ctx)
    out = y + ops.swiglu(normed, **p["mlp"], act=act, ops=ops)

    def back(g: Array) -> tuple[Array, Grads]:
        dnormed, *grads = ops.swiglu_vjp(g, normed, **p["mlp"], act=act, ops=ops)
        dy, second = second_norm_back(dnormed)
        g = g + dy
        dnormed, self_attn = attention_back(g)
        dx, first = first_norm_back(dnormed)
        return g + dx, {
            "self_attn": self_attn,
            "mlp": dict(zip(("gate_proj", "up_proj", "down_proj", "act_fn"), grads, strict=False)),
            "input_layernorm": first,
            "post_attention_layernorm": second,
        }

    return out, back


def attention(p: dict[str, Any], x: Array, layer: int, ctx: Context) -> tuple[Array, Back]:
    """Attend with all heads. ∂L/∂X is the sum of the gradients through Q, K and V, and through λ where X decides it.

    Shapes:
        x (B, T, D) -> (B, T, D), and back: (B, T, D) -> (B, T, D), grads like `p`

    Raises:
        ValueError: the variant has no derivative.
    """
    ops, variant = ctx.ops, ctx.variant
    if variant.heads_with_back is None:
        raise ValueError(
            f"the attention variant {ctx.config.variant!r} has no derivative; give its file in refdiff/model/variants "
            "a function heads_with_back"
        )
    q, k, v = project(p, x, ctx)
    q, k = rotate(q, k, ctx)
    heads, heads_back = variant.heads_with_back(p, x, q, k, v, layer, ctx)

    def back(g: Array) -> tuple[Array, Grads]:
        g, o_proj = linear_back(ops, g, heads, p["o_proj"])
        dq, dk, dv, dx_beside, own = heads_back(g)
        dv = variant.values_vjp(ops, dv, k)
        # rope_vjp reads the shape of its second argument only
        dq = ops.rope_vjp(dq, q, ctx.cos, ctx.sin, interleaved=variant.interleaved)[0]
        dk = ops.rope_vjp(dk, k, ctx.cos, ctx.sin, interleaved=variant.interleaved)[0]
        dx_q, q_proj = linear_back(ops, concat_heads(dq), x, p["q_proj"])
        dx_k, k_proj = linear_back(ops, concat_heads(dk), x, p["k_proj"])
        dx_v, v_proj = linear_back(ops, concat_heads(dv), x, p["v_proj"])
        dx = dx_q + dx_k + dx_v
        dx = dx if dx_beside is None else dx + dx_beside
        return dx, {"q_proj": q_proj, "k_proj": k_proj, "v_proj": v_proj, "o_proj": o_proj, **own}

    return ops.linear(heads, **p["o_proj"]), back


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
