"""v1 as published: heads 2i and 2i + 1 are a pair, as in unilm's `multihead_flashdiff_1.py` and `_2.py`.

H = 8 queries, K = 4 keys          pair 0       pair 1       pair 2       pair 3
Q   q₀ q₁ q₂ q₃ q₄ q₅ q₆ q₇        q₀ − λ q₁    q₂ − λ q₃    q₄ − λ q₅    q₆ − λ q₇
K   k₀ k₁ k₂ k₃                    k₀ − λ k₁    k₀ − λ k₁    k₂ − λ k₃    k₂ − λ k₃
V   v₀ v₁, of width 2d             v₀           v₀           v₁           v₁

The third file of unilm, `multihead_diffattn.py`, is this equation only with as many keys as queries. With fewer it
repeats each key head before it pairs them, and pair 0 above becomes q₀ − λ q₁ over k₀ alone: both maps read the same
key. This file follows the flash files, and so does transformers.
"""

from __future__ import annotations

from typing import Any

from refdiff import layers
from refdiff.arrays import Array, namespace
from refdiff.layers.plain_heads import check_even_heads, concat_heads, split_gradient

SUBLN_EPS = 1e-5
"""The ε of the norm after attention in unilm, whatever the other norms of the model have."""


def diff_heads_paper(
    q: Array,
    k: Array,
    v: Array,
    lambda_: Array,
    weight: Array,
    lambda_init: float,
    eps: float = SUBLN_EPS,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    causal: bool = True,
    ops: Any = layers,
) -> Array:
    """Attend with all head pairs as the paper pairs them, norm each head with a weight, scale, and concatenate them.

    Equation:
        head_i = DiffAttn(q_{2i}, k_{2j}, q_{2i+1}, k_{2j+1}, V_j, λ), j = i // (H / K)
        out = concat_i (1 − λ_init) RMSNorm(head_i) ⊙ w  (Ye et al. 2024, eq. 3, before W_O; pairing and w of unilm)

    Used as:
        between interleaved RoPE and `o_proj`: `diff_heads_paper(q, k, v, lambda_, p["subln"]["weight"], lambda_init)`

    Shapes:
        q (B, H, T, d), k (B, K, S, d), v (B, K/2, S, 2d), lambda_ (), weight (2d,), one for all heads -> (B, T, H d);
        mask boolean and bias broadcastable to (B, H, T, S) or None

    Raises:
        ValueError: shapes that do not fit, or an odd number of heads.
    """
    (q1, q2), (k1, k2) = _split("diff_heads_paper", "q", q), _split("diff_heads_paper", "k", k)
    mask, bias = group_by_map(mask), group_by_map(bias)
    heads = ops.diff_attention(q1, k1, q2, k2, v, lambda_, mask, bias, causal=causal, ops=ops)
    return concat_heads((1 - lambda_init) * ops.rms_norm(heads, weight, eps))


def _split(name: str, what: str, x: Array) -> tuple[Array, Array]:
    """Split (B, heads, T, d) into heads 0, 2, … and heads 1, 3, …, or raise ValueError."""
    check_even_heads(name, what, x)
    return x[:, 0::2, ...], x[:, 1::2, ...]


def group_by_map(x: Array | None) -> Array | None:
    """Reorder the heads of a mask or bias for `diff_attention`: those of the first map, 0, 2, …, then 1, 3, …"""
    if x is None or x.ndim < 3 or x.shape[-3] == 1:
        return x
    return namespace(x).concat([x[..., 0::2, :, :], x[..., 1::2, :, :]], axis=-3)


def diff_heads_paper_vjp(
    g: Array,
    q: Array,
    k: Array,
    v: Array,
    lambda_: Array,
    weight: Array,
    lambda_init: float,
    eps: float = SUBLN_EPS,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    causal: bool = True,
    saved: Array | None = None,
    ops: Any = layers,
) -> tuple[Array, Array, Array, Array, Array | None]:
    """Pull a gradient back through `diff_heads_paper`.

    Equation:
        ∂L/∂head_i is the gradient of RMSNorm(head_i) ⊙ w for (1 − λ_init) g_i, as in `rms_norm_vjp`; then as in
        `diff_attention_vjp`, with the gradients of q and k in the order of their heads

    Shapes:
        g (B, T, H d), the rest as in `diff_heads_paper`; saved (B, H/2, T, 2d) is the result of `diff_attention`, if
        the forward pass kept it -> the shapes of q, k, v, lambda_, weight
    """
    (q1, q2), (k1, k2) = _split("diff_heads_paper_vjp", "q", q), _split("diff_heads_paper_vjp", "k", k)
    operands = (q1, k1, q2, k2, v, lambda_, group_by_map(mask), group_by_map(bias))
    heads = ops.diff_attention(*operands, causal=causal, ops=ops) if saved is None else saved
    g = (1 - lambda_init) * split_gradient("diff_heads_paper_vjp", g, heads.shape)
    g, dweight = ops.rms_norm_vjp(g, heads, weight, eps)
    dq1, dk1, dq2, dk2, dv, dlambda = ops.diff_attention_vjp(g, *operands, causal=causal, ops=ops)
    return interleave_heads(dq1, dq2), interleave_heads(dk1, dk2), dv, dlambda, dweight


def interleave_heads(first: Array, second: Array) -> Array:
    """Interleave the heads of two maps: first 0, second 0, first 1, …; (B, H, …) twice to (B, 2H, …)."""
    xp = namespace(first, second)
    B, H, *rest = first.shape
    return xp.reshape(xp.stack([first, second], axis=2), (B, 2 * H, *rest))
