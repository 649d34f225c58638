"""v2: two query heads share one key and value head, λ is per token and head; as unilm's `multihead_flashdiffv2.py`.

h = 4 outputs, K = 2 keys               output 0     output 1     output 2     output 3
Q   q₀ q₁ q₂ q₃ q₄ q₅ q₆ q₇             q₀ − λ q₁    q₂ − λ q₃    q₄ − λ q₅    q₆ − λ q₇
K   k₀ k₁                               k₀           k₀           k₁           k₁
V   v₀ v₁, of width d                   v₀           v₀           v₁           v₁

Pairing q₀ with q₄ instead would subtract over different keys and values: the authors show it as the wrong way.
"""

from __future__ import annotations

from typing import Any

from refdiff import layers
from refdiff.arrays import Array
from refdiff.layers.diff_heads_paper import group_by_map, interleave_heads
from refdiff.layers.plain_heads import check_values, concat_heads, split_gradient


def diff_heads_v2(
    q: Array,
    k: Array,
    v: Array,
    lambda_: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    causal: bool = True,
    ops: Any = layers,
) -> Array:
    """Attend with all query pairs as v2 pairs them, without norm and scale, and concatenate the heads.

    Equation:
        out = concat_i (softmax(Q_{2i} K_jᵀ / √d) − λ_i softmax(Q_{2i+1} K_jᵀ / √d)) V_j, j = i // (h / K)
        (Ye et al. 2026, "Differential Transformer V2", `DiffAttnV2`, before W_O)

    Used as:
        between interleaved RoPE and `o_proj`: `diff_heads_v2(q, k, v, diff_lambda_v2(x, **p["lambda_proj"]))`

    Shapes:
        q (B, 2h, T, d), k and v (B, K, S, d), lambda_ (B, h, T, 1) from `diff_lambda_v2` -> (B, T, h d);
        mask boolean and bias broadcastable to (B, 2h, T, S) or None

    Raises:
        ValueError: shapes that do not fit, or pairs that would not share a key head.
    """
    q1, q2 = _split_queries("diff_heads_v2", q, k, v)
    mask, bias = group_by_map(mask), group_by_map(bias)
    heads = ops.diff_attention(q1, k, q2, k, v, lambda_, mask, bias, causal=causal, ops=ops)
    return concat_heads(heads)


def _split_queries(name: str, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """Split (B, 2h, T, d) into queries 0, 2, … and 1, 3, …, or raise ValueError where keys or values do not fit."""
    if q.ndim != 4 or k.ndim != 4 or k.shape[1] == 0 or q.shape[1] % (2 * k.shape[1]):
        raise ValueError(
            f"{name}: q, k: got shapes {tuple(q.shape)} and {tuple(k.shape)}, expected (B, 2h, T, d) and "
            "(B, K, S, d) with h a multiple of K: the two queries of a pair read the same key"
        )
    check_values(name, k, v)
    return q[:, 0::2, ...], q[:, 1::2, ...]


def diff_heads_v2_vjp(
    g: Array,
    q: Array,
    k: Array,
    v: Array,
    lambda_: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    causal: bool = True,
    ops: Any = layers,
) -> tuple[Array, Array, Array, Array]:
    """Pull a gradient back through `diff_heads_v2`.

    Equation:
        ∂L/∂K = ∂L/∂K₁ + ∂L/∂K₂, as both maps read one K; the rest as in `diff_attention_vjp`

    Shapes:
        g (B, T, h d), the rest as in `diff_heads_v2` -> the shapes of q, k, v, lambda_
    """
    q1, q2 = _split_queries("diff_heads_v2_vjp", q, k, v)
    B, H, T, _ = q1.shape
    g = split_gradient("diff_heads_v2_vjp", g, (B, H, T, v.shape[3]))
    operands = (q1, k, q2, k, v, lambda_, group_by_map(mask), group_by_map(bias))
    dq1, dk1, dq2, dk2, dv, dlambda = ops.diff_attention_vjp(g, *operands, causal=causal, ops=ops)
    return interleave_heads(dq1, dq2), dk1 + dk2, dv, dlambda
