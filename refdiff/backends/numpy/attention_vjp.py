"""The backward pass of attention over one map or two: by heads and blocks of whole rows of the maps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.numpy.attention import cut_heads
from refdiff.backends.numpy.attention_scores import Operands, block_softmax, operands, score_bounds
from refdiff.backends.numpy.layout import FloatArray, cut, same_dtype
from refdiff.backends.numpy.runtime import Runtime
from refdiff.layers.diff_attention import sum_to


def diff_attention_vjp(
    rt: Runtime,
    g: FloatArray,
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
    lse: FloatArray | None = None,
) -> Any:
    """Go through blocks of whole rows of both maps; see `_attention_vjp`.

    Args:
        lse: the log-sum-exps that `diff_attention_with_lse` saved, A = e^(S − c) / s. They are used where the scores of
            the backward pass have the same bits; see `Tuning.repeatable_scores`.
    """
    x = operands((q1, q2), (k1, k2), v, lambda_, mask, bias, causal=causal)
    if x is None or g.shape != (*q1.shape[:3], v.shape[3]) or not same_dtype(g, q1):
        return NotImplemented
    (dq1, dq2), (dk1, dk2), dv, dots = _attention_vjp(rt, g, x, lse if rt.tuning.repeatable_scores else None)
    return dq1, dk1, dq2, dk2, dv, sum_to(-dots, np.shape(lambda_))


def plain_heads_vjp(
    rt: Runtime,
    g: FloatArray,
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    mask: NDArray[np.bool_] | None = None,
    bias: FloatArray | None = None,
    *,
    causal: bool = True,
) -> Any:
    """Go through blocks of whole rows of the one map; see `_attention_vjp`."""
    x = operands((q,), (k,), v, None, mask, bias, causal=causal)
    if x is None or not same_dtype(g, q):
        return NotImplemented
    (B, H, T, _), e = q.shape, v.shape[3]
    if g.shape != (B, T, H * e):
        return NotImplemented
    (dq,), (dk,), dv, _ = _attention_vjp(rt, g.reshape(B, T, H, e).swapaxes(1, 2), x)
    return dq, dk, dv


def _attention_vjp(
    rt: Runtime, g: FloatArray, x: Operands, lse: FloatArray | None = None
) -> tuple[list[FloatArray], list[FloatArray], FloatArray, FloatArray]:
    """Pull g (B, H, T, e) back through (A₁ + w A₂) V with w = −λ, or through A V of one map.

    A block holds a few queries with all the keys that they may see. Its softmax comes from the log-sum-exps of the
    forward pass, where they were saved; otherwise its sums are computed again with its scores, since it has whole rows.
    With P_i = e^(S_i − c), row sums s_i, G = g Vᵀ and ρ_i = rowsum(G ⊙ P_i) / s_i,
    ∂L/∂S_i = (w_i / s_i) P_i ⊙ (G − ρ_i) and ∂L/∂w = ρ₂; w_i / s_i and 1/√d multiply the rows of the products, since
    these are shorter. One thread has all queries of a key head, and adds up its gradients always in the same order.

    Returns the gradients of every q, of every k, of v, and ρ of the last map.
    """
    maps, v, lambdas, causal = x
    t, (B, H, T, e), (K, S) = rt.tuning, g.shape, v.shape[1:3]
    weights = None if lambdas is None else -lambdas
    G, d = H // K, maps[0][0].shape[3]
    size = min(max(t.vjp_scores // (G * S), 1), t.vjp_queries)

    def transposed(x: FloatArray) -> FloatArray:
        """Allocate (B, H, d, T) for the gradient of (B, H, T, d)."""
        return rt.empty_features(x.shape, x.dtype)[0].swapaxes(2, 3)

    dqs, dks, dv = [transposed(q) for q, *_ in maps], [transposed(k) for _, k, *_ in maps], transposed(v)
    all_dots, bounds = np.empty((B, H, T, 1), g.dtype), score_bounds(maps)
    parts = cut_heads(rt, B, K, G * size * S)
    buffers = rt.score_buffers(len(maps) + 2, parts[0], G * size * S, g.dtype, len(parts))

    def block(b: slice, k: slice, queries: slice, buffer: FloatArray) -> None:
        h, n = slice(k.start * G, k.stop * G), queries.stop - queries.start
        keys = S - T + queries.stop if causal else S
        values, whole = v[b, k, :keys], queries.stop == T
        groups = values.shape[:2]
        where = b, k, h, queries, slice(keys)
        ps, sums = block_softmax(t, maps, where, buffer, bounds, causal, lse, saved=lse is not None)
        back, free = (x[: ps[0].size].reshape(*groups, G * n, keys) for x in buffer[len(maps) :])
        ps = [p.reshape(back.shape) for p in ps]
        shares = [1 / x.reshape(*groups, G * n, 1) for x in sums]
        gradient, scales, both = g[b, h, queries].reshape(*groups, G * n, e), list(shares), ps[0]
        if weights is not None:
            scales[1] = shares[1] * weights[b, h, queries].reshape(*groups, G * n, 1)
            both = np.multiply(ps[1], scales[1] / scales[0], out=free)
            both += ps[0]
        _add_product(dv[b, k, :, :keys], (gradient * scales[0]).swapaxes(2, 3), both, whole)
        np.matmul(gradient, values.swapaxes(2, 3), out=back)
        for p, (q, key, *_), dq, dk, share, scale in zip(ps, maps, dqs, dks, shares, scales, strict=True):
            dots = np.vecdot(back, p)[..., None]
            dots *= share
            ds = np.subtract(back, dots, out=back if p is ps[-1] else free)
            ds *= p
            scale = scale / math.sqrt(d)
            into, by_query = dq[b, h, :, queries].reshape(*groups, G, d, n), ds.reshape(*groups, G, n, keys)
            np.matmul(key[b, k, None, :keys].swapaxes(3, 4), by_query.swapaxes(3, 4), out=into)
            into *= scale.reshape(*groups, G, 1, n)
            scaled = q[b, h, queries].reshape(*groups, G * n, d) * scale
            _add_product(dk[b, k, :, :keys], scaled.swapaxes(2, 3), ds, whole)
        all_dots[b, h, queries] = dots.reshape(groups[0], -1, n, 1)

    def heads(part: tuple[slice, slice]) -> None:
        buffer = buffers.pop()
        for queries in reversed(cut(T, size)):  # the last see all keys: they write the sums that the others add to
            block(*part, queries, buffer)
        buffers.append(buffer)

    rt.workers.map(heads, parts)
    return [x.swapaxes(2, 3) for x in dqs], [x.swapaxes(2, 3) for x in dks], dv.swapaxes(2, 3), all_dots


def _add_product(total: FloatArray, a: FloatArray, b: FloatArray, first: bool) -> None:
    """Add a b to the total, or write it there."""
    if first:
        np.matmul(a, b, out=total)
    else:
        total += a @ b
