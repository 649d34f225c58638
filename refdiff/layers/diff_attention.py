"""(softmax(Q₁K₁ᵀ/√d) − λ softmax(Q₂K₂ᵀ/√d)) V: the equation, written once."""

from __future__ import annotations

import math
from typing import Any

from refdiff import layers
from refdiff.arrays import Array, device, namespace
from refdiff.layers.softmax import check_broadcast, check_mask


def attention_weights(
    q: Array, k: Array, mask: Array | None = None, bias: Array | None = None, *, causal: bool = True, ops: Any = layers
) -> Array:
    """Compute one softmax attention map.

    Equation:
        A = softmax(Q Kᵀ / √d + bias)  (Vaswani et al. 2017, eq. 1; A₁ and A₂ of Ye et al. 2024, eq. 1)

    Used as:
        `attention_weights(q, k)`; with H = n K heads, query head h reads key head h // n (grouped queries)

    Shapes:
        q (B, H, T, d), k (B, K, S, d), mask boolean and bias broadcastable to (B, H, T, S) or None -> (B, H, T, S);
        `causal` hides later keys, the last query being aligned with the last key; a row that sees no key is all zeros

    Raises:
        ValueError: shapes that do not fit, a mask that is not boolean.
    """
    weights: Array = ops.softmax(*attention_scores(q, k, mask, bias, causal=causal, ops=ops))
    return weights


def attention_scores(
    q: Array, k: Array, mask: Array | None, bias: Array | None, *, causal: bool, ops: Any = layers
) -> tuple[Array, Array | None]:
    """Compute Q Kᵀ / √d + bias (B, H, T, S), and the mask of `attention_weights`: boolean, or None for all."""
    B, H, T, d = _check_heads("attention_weights", q, k)
    K, S = k.shape[1], k.shape[2]
    xp = namespace(q, k, mask, bias)
    grouped = xp.reshape(q, (B, K, H // K, T, d))
    keys = xp.matrix_transpose(k)[:, :, None, :, :]
    scores = xp.reshape(grouped @ keys, (B, H, T, S)) / math.sqrt(d)
    if bias is not None:
        check_broadcast("attention_weights", "bias", bias, (B, H, T, S))
        scores = scores + bias
    if mask is not None:
        check_mask("attention_weights", mask, (B, H, T, S))
    if causal and T > 1:
        visible = ops.causal_mask(T, S, xp=xp, device=device(q))
        mask = visible if mask is None else mask & visible
    return scores, mask


def diff_attention(
    q1: Array,
    k1: Array,
    q2: Array,
    k2: Array,
    v: Array,
    lambda_: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    causal: bool = True,
    ops: Any = layers,
) -> Array:
    """Attend with the difference of two softmax maps.

    Equation:
        DiffAttn(X) = (softmax(Q₁ K₁ᵀ / √d) − λ softmax(Q₂ K₂ᵀ / √d)) V  (Ye et al. 2024, eq. 1)

    Used as:
        the attention variants (`diff_heads_hf`, ...) say which heads are Q₁, Q₂, K₁, K₂ and V

    Shapes:
        q1, q2 (B, H, T, d), k1, k2 (B, K, S, d), v (B, K, S, e), lambda_ broadcastable to (B, H, T, 1),
        mask and bias as in `attention_weights`, with the H of the first map then the H of the second on the head
        axis if it is longer than 1 -> (B, H, T, e)

    Raises:
        ValueError: shapes that do not fit, a mask that is not boolean.
    """
    B, H, T = _check_operands("diff_attention", q1, k1, q2, k2, v, lambda_)
    xp = namespace(q1, k1, q2, k2, v, lambda_, mask, bias)
    mask1, mask2 = split_maps(mask, H)
    bias1, bias2 = split_maps(bias, H)
    a1 = ops.attention_weights(q1, k1, mask1, bias1, causal=causal, ops=ops)
    a2 = ops.attention_weights(q2, k2, mask2, bias2, causal=causal, ops=ops)
    K, S, e = v.shape[1:]
    grouped = xp.reshape(a1 - lambda_ * a2, (B, K, H // K, T, S))
    return xp.reshape(grouped @ v[:, :, None, :, :], (B, H, T, e))


def _check_operands(
    name: str, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array
) -> tuple[int, int, int]:
    """Return (B, H, T) of `q1`, or raise ValueError where the others do not fit it."""
    B, H, T, _ = _check_heads(name, q1, k1)
    if q2.shape != q1.shape or k2.shape != k1.shape or tuple(v.shape[:-1]) != tuple(k1.shape[:-1]):
        raise ValueError(
            f"{name}: q1, q2, k1, k2, v: got shapes {tuple(q1.shape)}, {tuple(q2.shape)}, {tuple(k1.shape)}, "
            f"{tuple(k2.shape)}, {tuple(v.shape)}, expected q2 like q1, k2 like k1, and "
            "the B, K, S of v like those of k1"
        )
    check_broadcast(name, "lambda_", lambda_, (B, H, T, 1))
    return B, H, T


def _check_heads(name: str, q: Array, k: Array) -> tuple[int, int, int, int]:
    """Return (B, H, T, d) of `q`, or raise ValueError where `k` does not fit it."""
    fits = q.ndim == k.ndim == 4 and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
    if not fits or k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"{name}: q, k: got shapes {tuple(q.shape)} and {tuple(k.shape)}, expected (B, H, T, d) and (B, K, S, d) "
            "with H a multiple of K"
        )
    B, H, T, d = q.shape
    return B, H, T, d


def split_maps(x: Array | None, heads: int) -> tuple[Array | None, Array | None]:
    """Split a mask or bias that has the heads of both maps into one part per map."""
    if x is None or x.ndim < 3 or x.shape[-3] != 2 * heads:
        return x, x
    return x[..., :heads, :, :], x[..., heads:, :, :]


def diff_attention_vjp(
    g: Array,
    q1: Array,
    k1: Array,
    q2: Array,
    k2: Array,
    v: Array,
    lambda_: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    causal: bool = True,
    ops: Any = layers,
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Pull a gradient back through `diff_attention`.

    Equation:
        O = P V with P = A₁ − λ A₂ gives ∂L/∂V = Pᵀ g and G = ∂L/∂P = g Vᵀ. Then ∂L/∂A₁ = G, ∂L/∂A₂ = −λ G and
        ∂L/∂λ = −Σ G ⊙ A₂. Through each softmax, ∂L/∂S_i = A_i ⊙ (∂L/∂A_i − rowsum(∂L/∂A_i ⊙ A_i)), and with
        S_i = Q_i K_iᵀ / √d, ∂L/∂Q_i = ∂L/∂S_i K_i / √d and ∂L/∂K_i = ∂L/∂S_iᵀ Q_i / √d. What several query heads
        share (K, V, λ) collects the sum of their gradients.

    Shapes:
        g (B, H, T, e), the rest as in `diff_attention` -> the shapes of q1, k1, q2, k2, v, lambda_
    """
    B, H, T = _check_operands("diff_attention_vjp", q1, k1, q2, k2, v, lambda_)
    K, S, e = v.shape[1:]
    xp = namespace(g, q1, k1, q2, k2, v, lambda_, mask, bias)
    mask1, mask2 = split_maps(mask, H)
    bias1, bias2 = split_maps(bias, H)
    a1 = ops.attention_weights(q1, k1, mask1, bias1, causal=causal, ops=ops)
    a2 = ops.attention_weights(q2, k2, mask2, bias2, causal=causal, ops=ops)
    if tuple(g.shape) != (B, H, T, e):
        raise ValueError(f"diff_attention_vjp: g: got shape {tuple(g.shape)}, expected {(B, H, T, e)}, like the result")

    def grouped(x: Array) -> Array:
        return xp.reshape(x, (B, K, H // K, *x.shape[2:]))

    gv = grouped(g)
    dv = xp.sum(xp.matrix_transpose(grouped(a1 - lambda_ * a2)) @ gv, axis=2)
    dp = xp.reshape(gv @ xp.matrix_transpose(v)[:, :, None, :, :], (B, H, T, S))

    dq1, dk1 = ops.attention_weights_vjp(dp, q1, k1, mask1, bias1, causal=causal, saved=a1, ops=ops)
    dq2, dk2 = ops.attention_weights_vjp(-lambda_ * dp, q2, k2, mask2, bias2, causal=causal, saved=a2, ops=ops)
    return dq1, dk1, dq2, dk2, dv, sum_to(-xp.sum(dp * a2, axis=-1, keepdims=True), tuple(lambda_.shape))


def attention_weights_vjp(
    g: Array,
    q: Array,
    k: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    causal: bool = True,
    saved: Array | None = None,
    ops: Any = layers,
) -> tuple[Array, Array]:
    """Pull a gradient back through `attention_weights`.

    Equation:
        with ∂L/∂S = A ⊙ (g − rowsum(g ⊙ A)): ∂L/∂Q = ∂L/∂S K / √d, ∂L/∂K = ∂L/∂Sᵀ Q / √d

    Shapes:
        g (B, H, T, S), q (B, H, T, d), k (B, K, S, d) -> the shapes of q and k. saved (B, H, T, S) is
        `attention_weights(q, k, mask, bias)`, if the forward pass kept it.
    """
    B, H, T, d = _check_heads("attention_weights_vjp", q, k)
    K, S = k.shape[1:3]
    xp = namespace(g, q, k, mask, bias)
    a = ops.attention_weights(q, k, mask, bias, causal=causal, ops=ops) if saved is None else saved
    if tuple(g.shape) != (B, H, T, S):
        raise ValueError(
            f"attention_weights_vjp: g: got shape {tuple(g.shape)}, expected {(B, H, T, S)}, like the result"
        )
    dscores, _ = ops.softmax_vjp(g, None, saved=a)
    ds = xp.reshape(dscores / math.sqrt(d), (B, K, H // K, T, S))
    dq = xp.reshape(ds @ k[:, :, None, :, :], q.shape)
    return dq, xp.sum(xp.matrix_transpose(ds) @ xp.reshape(q, (B, K, H // K, T, d)), axis=2)


def sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum `x` over the axes along which an array of `shape` was broadcast to it."""
    xp = namespace(x)
    x = xp.sum(x, axis=tuple(range(x.ndim - len(shape))))
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and x.shape[i] > 1)
    return xp.sum(x, axis=axes, keepdims=True) if axes else x
