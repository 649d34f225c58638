"""The lines of diffllama.py from bottom to top: hidden states and the gradients of everything that made them.

Each function here has the name of one in diffllama.py and does the same, so that the numbers are the same bit for bit,
but gives two things: the result, and `back`, a function that takes the gradient of the result and gives those of the
input and of the parameters, these nested like the parameters. What the way back needs of the way forward, `back`
holds; nothing is computed twice but what is cheaper to compute than to keep (softmax rows, of which there are T²). A
`back` is called once: what it held is let go while it runs, so that memory falls from the last layer to the first.

    way forward                                     way back
    Y  = X + MultiHead(LN(X))                       dY = g + dLN(dSwiGLU(g))
    X' = Y + SwiGLU(LN(Y))                          dX = dY + dLN(dMultiHead(dY))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refdiff.arrays import Array
from refdiff.backends import Ops
from refdiff.layers.linear import named_grads
from refdiff.layers.plain_heads import concat_heads
from refdiff.model.diffllama import Context
from refdiff.model.wirings import WIRINGS, Heads, split_heads
from refdiff.model.wirings_vjp import WIRINGS_VJP, Kept

Back = Callable[[Array], tuple[Array, dict[str, Any]]]
"""From the gradient of a result to those of the input and, by name, of the parameters."""


def diffllama(p: dict[str, Any], hidden: Array, context: Context) -> tuple[Array, Back]:
    """Run all decoder layers and the last norm, as `diffllama.diffllama`, and give the way back.

    Shapes:
        hidden (B, T, D) -> (B, T, D), and back: (B, T, D) -> (B, T, D), {"layers": [...], "norm": {"weight"}}
    """
    ops, eps = context.ops, context.config.rms_norm_eps
    backs: list[Back] = []
    for layer, weights in enumerate(p["layers"]):
        hidden, layer_back = decoder_layer(weights, hidden, layer, context)
        backs.append(layer_back)
    last = hidden

    def back(g: Array) -> tuple[Array, dict[str, Any]]:
        g, norm = _norm_back(ops, g, last, p["norm"], eps)
        layers = []
        while backs:
            g, grads = backs.pop()(g)
            layers.append(grads)
        return g, {"layers": layers[::-1], "norm": norm}

    return ops.rms_norm(last, **p["norm"], eps=eps), back


def decoder_layer(p: dict[str, Any], x: Array, layer: int, context: Context) -> tuple[Array, Back]:
    """Run one layer, as `diffllama.decoder_layer`, and give the way back.

    Equation:
        a residual path passes a gradient on as it is, and adds what comes back beside it

    Shapes:
        x (B, T, D) -> (B, T, D), and back: (B, T, D) -> (B, T, D), grads like `p`
    """
    ops, eps, act = context.ops, context.config.rms_norm_eps, context.config.hidden_act
    attended, attention_back = self_attention(
        p["self_attn"], ops.rms_norm(x, **p["input_layernorm"], eps=eps), layer, context
    )
    y = x + attended
    normed = ops.rms_norm(y, **p["post_attention_layernorm"], eps=eps)
    products = Kept(ops.linear)

    def back(g: Array) -> tuple[Array, dict[str, Any]]:
        dnormed, *projections = ops.swiglu_vjp(g, normed, **p["mlp"], act=act, linear=products.again)
        dy, second = _norm_back(ops, dnormed, y, p["post_attention_layernorm"], eps)
        g = g + dy
        dnormed, attention = attention_back(g)
        dx, first = _norm_back(ops, dnormed, x, p["input_layernorm"], eps)
        return g + dx, {
            "self_attn": attention,
            "mlp": dict(zip(("gate_proj", "up_proj", "down_proj"), projections, strict=True)),
            "input_layernorm": first,
            "post_attention_layernorm": second,
        }

    return y + ops.swiglu(normed, **p["mlp"], act=act, linear=products), back


def self_attention(p: dict[str, Any], x: Array, layer: int, context: Context) -> tuple[Array, Back]:
    """Run multi-head attention, as `diffllama.self_attention`, and give the way back.

    Equation:
        ∂L/∂X is the sum of what comes back through Q, K, V, and in v2 through λ

    Shapes:
        x (B, T, D) -> (B, T, D), and back: (B, T, D) -> (B, T, D), grads like `p`
    """
    ops, d, name = context.ops, context.config.head_dim, context.config.wiring
    wiring, wiring_vjp = WIRINGS[name], WIRINGS_VJP[name]
    q = split_heads(ops.linear(x, **p["q_proj"]), d)
    k = split_heads(ops.linear(x, **p["k_proj"]), d)
    v = wiring.values(ops, ops.linear(x, **p["v_proj"]), d)
    q, k = (ops.rope(y, context.cos, context.sin, interleaved=wiring.interleaved) for y in (q, k))
    see = {"mask": context.mask, "bias": context.bias, "causal": context.causal}
    heads = Heads(q, k, v, wiring.lambda_(ops, p, x, layer), see)
    attended, attend_back = wiring_vjp.attend(ops, heads, p, layer, context.config.rms_norm_eps)

    def back(g: Array) -> tuple[Array, dict[str, Any]]:
        g, dout = linear_back(ops, g, attended, p["o_proj"])
        dq, dk, dv, dlambda, grads = attend_back(g)
        # of x, rope_vjp looks at the shape only
        dq, dk = (
            ops.rope_vjp(dy, y, context.cos, context.sin, interleaved=wiring.interleaved)[0]
            for dy, y in ((dq, heads.q), (dk, heads.k))
        )
        dx_lambda, lambda_grads = wiring_vjp.lambda_(ops, dlambda, p, x, layer)
        dx_q, query = linear_back(ops, concat_heads(dq), x, p["q_proj"])
        dx_k, key = linear_back(ops, concat_heads(dk), x, p["k_proj"])
        dx_v, value = linear_back(ops, wiring_vjp.values(ops, dv, heads.k), x, p["v_proj"])
        dx = dx_q + dx_k + dx_v
        return dx if dx_lambda is None else dx + dx_lambda, {
            "q_proj": query,
            "k_proj": key,
            "v_proj": value,
            "o_proj": dout,
            **grads,
            **lambda_grads,
        }

    return ops.linear(attended, **p["o_proj"]), back


def linear_back(ops: Ops, g: Array, x: Array, p: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Pull a gradient back through a projection; its bias has one if the projection has a bias."""
    dx, weight, bias = ops.linear_vjp(g, x, **p)
    return dx, named_grads(weight, bias)


def _norm_back(ops: Ops, g: Array, x: Array, p: dict[str, Array], eps: float) -> tuple[Array, dict[str, Array]]:
    dx, weight = ops.rms_norm_vjp(g, x, **p, eps=eps)
    return dx, {"weight": weight}
