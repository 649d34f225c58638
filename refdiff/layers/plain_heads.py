"""Plain multi-head attention: the baseline of differential attention, and its limit at λ = 0.

H = 4 queries, K = 2 keys and values: query heads 0 and 1 read key head 0, query heads 2 and 3 read key head 1.
"""

from __future__ import annotations

from typing import Any

from refdiff import layers
from refdiff.arrays import Array, namespace


def plain_heads(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    causal: bool = True,
    ops: Any = layers,
) -> Array:
    """Attend with every head on its own, and concatenate the heads.

    Equation:
        out = concat_i softmax(Q_i K_jᵀ / √d) V_j, j = i // (H / K)  (Vaswani et al. 2017, section 3.2.2, before W_O;
        Ainslie et al. 2023 for H > K; with Q = [Q₁ Q₂], K = [K₁ K₂] of width 2d it is Ye et al. 2024, eq. 8)

    Used as:
        between RoPE and `o_proj`, in a Llama: `plain_heads(q, k, v)`

    Shapes:
        q (B, H, T, d), k (B, K, S, d), v (B, K, S, e) -> (B, T, H e); mask boolean and bias broadcastable to
        (B, H, T, S) or None

    Raises:
        ValueError: shapes that do not fit, a mask that is not boolean.
    """
    check_values("plain_heads", k, v)
    weights = ops.attention_weights(q, k, mask, bias, causal=causal, ops=ops)
    xp = namespace(weights, v)
    B, H, T, S = weights.shape
    K, e = v.shape[1], v.shape[3]
    heads = xp.reshape(weights, (B, K, H // K, T, S)) @ v[:, :, None, :, :]
    return concat_heads(xp.reshape(heads, (B, H, T, e)))


def plain_heads_vjp(
    g: Array,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    causal: bool = True,
    ops: Any = layers,
) -> tuple[Array, Array, Array]:
    """Pull a gradient back through `plain_heads`.

    Equation:
        O = A V gives ∂L/∂V = Aᵀ g and ∂L/∂A = g Vᵀ; then as in `attention_weights_vjp`

    Shapes:
        g (B, T, H e), the rest as in `plain_heads` -> the shapes of q, k, v
    """
    xp = namespace(g, q, k, v, mask, bias)
    check_values("plain_heads_vjp", k, v)
    weights = ops.attention_weights(q, k, mask, bias, causal=causal, ops=ops)
    B, H, T, S = weights.shape
    K, e = v.shape[1], v.shape[3]
    grouped = xp.reshape(split_gradient("plain_heads_vjp", g, (B, H, T, e)), (B, K, H // K, T, e))
    dv = xp.sum(xp.matrix_transpose(xp.reshape(weights, (B, K, H // K, T, S))) @ grouped, axis=2)
    dweights = xp.reshape(grouped @ xp.matrix_transpose(v)[:, :, None, :, :], (B, H, T, S))
    return *ops.attention_weights_vjp(dweights, q, k, mask, bias, causal=causal, saved=weights, ops=ops), dv


def concat_heads(heads: Array) -> Array:
    """(B, H, T, e) to (B, T, H e): the Concat of the papers."""
    xp = namespace(heads)
    B, H, T, e = heads.shape
    return xp.reshape(xp.permute_dims(heads, (0, 2, 1, 3)), (B, T, H * e))


def split_heads(x: Array, e: int) -> Array:
    """(B, T, H e) to (B, H, T, e): the inverse of `concat_heads`."""
    xp = namespace(x)
    B, T, width = x.shape
    return xp.permute_dims(xp.reshape(x, (B, T, width // e, e)), (0, 2, 1, 3))


def check_values(name: str, k: Array, v: Array) -> None:
    """Raise ValueError unless `v` is (B, K, S, e) for keys `k` (B, K, S, d)."""
    if v.ndim != 4 or tuple(v.shape[:3]) != tuple(k.shape[:3]):
        raise ValueError(
            f"{name}: v: got shape {tuple(v.shape)}, expected (B, K, S, e) with the B, K, S of k {tuple(k.shape)}"
        )


def check_even_heads(name: str, what: str, x: Array) -> None:
    """Raise ValueError unless `x` is (B, heads, T, d) with an even number of heads."""
    if x.ndim != 4 or x.shape[1] % 2:
        raise ValueError(
            f"{name}: {what}: got shape {tuple(x.shape)}, expected (B, heads, T, d) with an even number of heads"
        )


def split_gradient(name: str, g: Array, heads: tuple[int, ...]) -> Array:
    """Pull a gradient back through `concat_heads` of heads of this shape, or raise ValueError where `g` has another."""
    B, H, T, e = heads
    if tuple(g.shape) != (B, T, H * e):
        raise ValueError(f"{name}: g: got shape {tuple(g.shape)}, expected {(B, T, H * e)}, like the result")
    return split_heads(g, e)
