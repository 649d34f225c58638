"""Attention over one map or two: by heads and blocks of queries, each over the keys that it may see."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.numpy.attention_decode import decode_attention
from refdiff.backends.numpy.attention_scores import (
    Operands,
    block_softmax,
    cached_rows,
    operands,
    score_bounds,
    softmax_rows,
)
from refdiff.backends.numpy.gemm_blocks import dense_values, key_blocks, multiply_values
from refdiff.backends.numpy.layout import FloatArray, cut, same_dtype
from refdiff.backends.numpy.norm import rms_norm
from refdiff.backends.numpy.runtime import Runtime


def diff_attention(
    rt: Runtime,
    q1: FloatArray,
    k1: FloatArray,
    q2: FloatArray,
    k2: FloatArray,
    v: FloatArray,
    lambda_: Any,
    mask: NDArray[np.bool_] | None = None,
    bias: FloatArray | None = None,
    *,
    causal: bool = True,
) -> Any:
    """Attend over two maps; see `_attend`."""
    x = operands((q1, q2), (k1, k2), v, lambda_, mask, bias, causal=causal)
    return NotImplemented if x is None else _attend(rt, x)


def diff_attention_with_lse(
    rt: Runtime, q1: Any, k1: Any, q2: Any, k2: Any, v: Any, *given: Any, **options: Any
) -> Any:
    """Attend over two maps, and return also the log-sum-exps of their rows (2, 2, B, H, T, 1).

    Returns NotImplemented where there are too few scores to go by blocks.
    """
    x = operands((q1, q2), (k1, k2), v, *given, **options)
    if x is None or not _takes_blocks(rt, x):
        return NotImplemented
    lse = np.empty((2, 2, *q1.shape[:3], 1), q1.dtype)
    return _attend_by_blocks(rt, x, lse), lse


def plain_heads(
    rt: Runtime,
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    mask: NDArray[np.bool_] | None = None,
    bias: FloatArray | None = None,
    *,
    causal: bool = True,
) -> Any:
    """Attend over one map; see `_attend`."""
    x = operands((q,), (k,), v, None, mask, bias, causal=causal)
    return NotImplemented if x is None else _attend(rt, x).swapaxes(1, 2).reshape(q.shape[0], q.shape[2], -1)


def diff_heads_hf(
    rt: Runtime,
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    lambda_: Any,
    lambda_init: float,
    eps: float,
    mask: NDArray[np.bool_] | None = None,
    bias: FloatArray | None = None,
    *,
    causal: bool = True,
) -> Any:
    """Multiply few queries, without mask and bias, by the keys of both maps at once."""
    if mask is not None or bias is not None or not eps >= 0 or not isinstance(lambda_, np.ndarray | np.generic):
        return NotImplemented
    if not q.ndim == k.ndim == v.ndim == 4 or q.shape[2] >= rt.tuning.few_queries:
        return NotImplemented
    if lambda_.size != 1 or lambda_.ndim > 4 or not same_dtype(q, k, v, np.asarray(lambda_)):
        return NotImplemented
    (B, both, T, d), (K, S, e) = q.shape, v.shape[1:]
    H = both // 2
    fit = both == 2 * H and K and H % K == 0 and k.shape == (B, 2 * K, S, d) and len(v) == B and T <= S
    if not fit or 0 in (q.size, v.size):
        return NotImplemented
    lambdas = np.empty((B, H, T, 1), v.dtype)
    lambdas[...] = lambda_
    maps = q.reshape(B, 2, H, T, d), k.reshape(B, 2, K, S, d)
    heads = rms_norm(rt, decode_attention(rt, [maps], [(None, None)] * 2, v, lambdas, causal), None, eps)
    heads *= 1 - lambda_init
    return heads.swapaxes(1, 2).reshape(B, T, H * e)


def _attend(rt: Runtime, x: Operands) -> FloatArray:
    """Compute (B, H, T, e); λ times the second map is subtracted from the first.

    Few queries meet some keys at a time. Many are taken in blocks, each over the keys that it may see: only the scores
    of a block are held, and memory grows with T, not with T². What is small is computed at once.
    """
    if _takes_blocks(rt, x):
        return _attend_by_blocks(rt, x)
    if rt.tuning.few_queries <= x.maps[0][0].shape[2]:
        return _attend_at_once(rt, x)
    one_by_one = [(q[:, None], k[:, None]) for q, k, *_ in x.maps]
    return decode_attention(rt, one_by_one, [(mask, bias) for *_, mask, bias in x.maps], x.v, x.lambdas, x.causal)


def _takes_blocks(rt: Runtime, x: Operands) -> bool:
    """Return whether there are queries enough, and more scores than a core's cache holds."""
    (B, H, T, _), S = x.maps[0][0].shape, x.v.shape[2]
    return bool(rt.tuning.few_queries <= T and rt.tuning.cached_scores < B * H * T * S)


def _attend_at_once(rt: Runtime, x: Operands) -> FloatArray:
    """Multiply all heads in one call."""
    maps, v, lambdas, causal = x
    (B, H, T, _), (K, S, e) = maps[0][0].shape, v.shape[1:]
    hidden = np.triu(np.ones((T, T), dtype=np.bool_), 1) if causal else None
    (p, sums), *second = (softmax_rows(rt.tuning, q, k, mask, bias, hidden) for q, k, mask, bias in maps)
    for p2, sums2 in second:
        p2 *= lambdas * (sums / sums2)
        p -= p2
    product = (p.reshape(B, K, H // K * T, S) @ v).reshape(B, H, T, e)
    product /= sums
    return product


def _attend_by_blocks(rt: Runtime, x: Operands, lse: FloatArray | None = None) -> FloatArray:
    """Compute (B, H, T, e), in memory (H, e, B, T) as the next product takes it, and multiply by V once.

    With P = exp(S − c) and row sums s, (P₁/s₁ − λ P₂/s₂) V = ((P₁ − λ (s₁/s₂) P₂) V) / s₁. A thread holds the scores of
    one block of queries at a time, and the next block reuses their memory. `lse` (maps, 2, B, H, T, 1) receives the
    log-sum-exp of each row; see `softmax_rows`.
    """
    maps, v, lambdas, causal = x
    t, (B, H, T, _), (K, S, e) = rt.tuning, maps[0][0].shape, v.shape[1:]
    G = H // K
    size = min(max(t.block_scores // (G * S), t.few_queries), t.block_queries)
    out, _ = rt.empty_features((B, H, T, e), v.dtype)
    by_heads, parts = out.swapaxes(2, 3), cut_heads(rt, B, K, G * size * S)
    # the last queries see the most keys: they go first, so that the threads end together
    items = [(*part, queries) for queries in reversed(cut(T, size)) for part in parts]
    buffers = rt.score_buffers(len(maps), parts[0], G * size * S, v.dtype, len(items))
    bounds = score_bounds(maps)
    blocks = None
    if t.block_queries <= T and e % t.block_width == 0 and rt.unpacks(v.dtype):
        blocks = [key_blocks(rt, k) for _, k, *_ in maps]
        v = dense_values(rt, v)

    def block(at: tuple[slice, slice, slice]) -> None:
        b, k, queries = at
        h, n = slice(k.start * G, k.stop * G), queries.stop - queries.start
        keys = S - T + queries.stop if causal else S
        values = v[b, k, :keys]
        heads = (*values.shape[:2], G, n)
        buffer = buffers.pop()
        where = b, k, h, queries, slice(keys)
        rows, sums = block_softmax(t, maps, where, buffer, bounds, causal, lse, blocks=blocks)
        if lambdas is not None:
            share = lambdas[b, h, queries].reshape(-1, 1) * (sums[0] / sums[1])
            for i in cached_rows(t, len(share), keys):
                rows[1][i] *= share[i]
                rows[0][i] -= rows[1][i]
        into = by_heads[b, h, :, queries].reshape(*heads[:3], e, n)
        weights = rows[0].reshape(*heads, keys)
        if blocks is not None:
            product = multiply_values(t, weights.reshape(*heads[:2], G * n, keys), values)
            into[...] = product.reshape(*heads, e).swapaxes(3, 4)
        elif e < t.narrow_values:
            into[...] = (weights @ values[:, :, None]).swapaxes(3, 4)
        else:
            np.matmul(values.swapaxes(2, 3)[:, :, None], weights.swapaxes(3, 4), out=into)
        into /= sums[0].reshape(*heads[:3], 1, n)
        buffers.append(buffer)

    rt.workers.map(block, items)
    return out


def cut_heads(rt: Runtime, batch: int, heads: int, scores: int) -> list[tuple[slice, slice]]:
    """Cut (B, K) into the parts that a block takes: several sequences or heads where each has few scores."""
    size = max(min(rt.tuning.grouped_scores // scores, -(-batch * heads // rt.workers.threads)), 1)
    return [(b, k) for b in cut(batch, max(size // heads, 1)) for k in cut(heads, size)]
