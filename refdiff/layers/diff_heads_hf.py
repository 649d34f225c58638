"""v1 as in DiffLlama: heads i and i + H/2 are a pair.

H = 4 queries, K = 2 keys          pair 0             pair 1
Q   q₀ q₁ q₂ q₃                    q₀ − λ q₂          q₁ − λ q₃
K   k₀ k₁                          k₀ − λ k₁          k₀ − λ k₁
V   v₀ v₁  -> one of width 2d      [v₀ v₁]            [v₀ v₁]
"""

from __future__ import annotations

from typing import Any

from refdiff import layers
from refdiff.arrays import Array, namespace
from refdiff.layers.plain_heads import check_even_heads, concat_heads, split_gradient


def value_pairs_hf(v: Array) -> Array:
    """Join the value heads j and j + K/2 into one of twice the width.

    Equation:
        V_j = [v_j ; v_{j + K/2}]  (`modeling_diffllama.py` in transformers)

    Used as:
        before the cache, so that a cached value is joined once

    Shapes:
        v (B, K, T, d) -> (B, K/2, T, 2d)

    Raises:
        ValueError: K is odd.
    """
    return namespace(v).concat(_split("value_pairs_hf", "v", v), axis=-1)


def diff_heads_hf(
    q: Array,
    k: Array,
    v: Array,
    lambda_: Array,
    lambda_init: float,
    eps: float,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    causal: bool = True,
    ops: Any = layers,
) -> Array:
    """Attend with all head pairs as DiffLlama pairs them, norm each head, scale, and concatenate the heads.

    Equation:
        head_i = DiffAttn(q_i, k_j, q_{i + H/2}, k_{j + K/2}, V_j, λ), j = i // (H / K)
        out = concat_i (1 − λ_init) RMSNorm(head_i)  (Ye et al. 2024, eq. 3, before W_O; pairing of transformers)

    Used as:
        between RoPE and `o_proj`

    Shapes:
        q (B, H, T, d), k (B, K, S, d), v (B, K/2, S, 2d) from `value_pairs_hf`, lambda_ () -> (B, T, H d);
        mask boolean and bias broadcastable to (B, H, T, S) or None

    Raises:
        ValueError: shapes that do not fit, or an odd number of heads.
    """
    (q1, q2), (k1, k2) = _split("diff_heads_hf", "q", q), _split("diff_heads_hf", "k", k)
    heads = ops.diff_attention(q1, k1, q2, k2, v, lambda_, mask, bias, causal=causal, ops=ops)
    return concat_heads((1 - lambda_init) * ops.rms_norm(heads, None, eps))


def _split(name: str, what: str, x: Array) -> tuple[Array, Array]:
    """Split (B, heads, T, d) into heads i and heads i + heads/2, or raise ValueError."""
    check_even_heads(name, what, x)
    half = x.shape[1] // 2
    return x[:, :half, ...], x[:, half:, ...]


def value_pairs_hf_vjp(g: Array, v: Array) -> tuple[Array]:
    """Pull a gradient back through `value_pairs_hf`.

    Equation:
        the halves of each pair go back to heads j and j + K/2

    Shapes:
        g (B, K/2, T, 2d), v (B, K, T, d) -> (B, K, T, d)
    """
    xp = namespace(g, v)
    check_even_heads("value_pairs_hf_vjp", "v", v)
    B, K, T, d = v.shape
    if tuple(g.shape) != (B, K // 2, T, 2 * d):
        raise ValueError(
            f"value_pairs_hf_vjp: g: got shape {tuple(g.shape)}, expected {(B, K // 2, T, 2 * d)}, like the result"
        )
    return (xp.concat([g[..., :d], g[..., d:]], axis=1),)


def diff_heads_hf_vjp(
    g: Array,
    q: Array,
    k: Array,
    v: Array,
    lambda_: Array,
    lambda_init: float,
    eps: float,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    causal: bool = True,
    saved: Array | None = None,
    ops: Any = layers,
) -> tuple[Array, Array, Array, Array]:
    """Pull a gradient back through `diff_heads_hf`.

    Equation:
        ∂L/∂head_i is the gradient of RMSNorm(head_i) for (1 − λ_init) g_i, as in `rms_norm_vjp`; then as in
        `diff_attention_vjp`, with the gradients of q and k in the order of their heads

    Shapes:
        g (B, T, H d), the rest as in `diff_heads_hf`; saved (B, H/2, T, 2d) is the result of `diff_attention`, if the
        forward pass kept it -> the shapes of q, k, v, lambda_
    """
    xp = namespace(q)
    (q1, q2), (k1, k2) = _split("diff_heads_hf_vjp", "q", q), _split("diff_heads_hf_vjp", "k", k)
    operands = (q1, k1, q2, k2, v, lambda_, mask, bias)
    heads = ops.diff_attention(*operands, causal=causal, ops=ops) if saved is None else saved
    g = (1 - lambda_init) * split_gradient("diff_heads_hf_vjp", g, heads.shape)
    g, _ = ops.rms_norm_vjp(g, heads, None, eps)
    dq1, dk1, dq2, dk2, dv, dlambda = ops.diff_attention_vjp(g, *operands, causal=causal, ops=ops)
    return xp.concat([dq1, dq2], axis=1), xp.concat([dk1, dk2], axis=1), dv, dlambda
