"""Scores of attention and their softmax, not yet divided by its sums, for the blocks that kernels for NumPy take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.numpy_pieces import multiply_keys
from refdiff.backends.numpy_row_kernels import FloatArray, cut

CACHED = 2**17
"""How many scores an elementwise step handles at a time: 0.5 MB in float32, what a core's cache holds."""

SMALL = 40.0
"""Scores below this need no maximum taken away: neither e^40 nor a sum of them overflows, nor does e^−40 underflow."""

FEW_RESULTS = 2**12
"""Up to so many scores of a head are multiplied by themselves, as the layer does: small results are more exact."""

SEEN = 64
"""Of fewer keys the largest score is always taken away: of one alone the weight is then 1, and 1 − λ exact."""

Map = tuple[FloatArray, FloatArray, NDArray[Any] | None, NDArray[Any] | None]
"""A map's q (B, H, T, d), k (B, K, S, d), mask and bias."""


def part_of(x: NDArray[Any], at: tuple[slice, slice, slice, slice]) -> NDArray[Any]:
    """Cut a mask or bias to a block; an axis of length 1 stands for all."""
    return x[tuple(s if n > 1 else slice(None) for s, n in zip(at, x.shape, strict=True))]


def pieces(rows: int, width: int) -> list[slice]:
    """Cut rows of `width` numbers into slices that a core's cache holds."""
    return cut(rows, max(CACHED // max(width, 1), 1))


def largest(maps: Sequence[Map]) -> FloatArray:
    """Return the largest |q| |k| of each row of the batch (B,): no score before √d and a bias is larger."""

    def longest(x: FloatArray) -> FloatArray:
        found: FloatArray = np.sqrt(np.square(x).sum(axis=-1).max(axis=(1, 2)))
        return found

    bounds: FloatArray = np.max([longest(q) * longest(k) for q, k, *_ in maps], axis=0)
    return bounds


def scores_of(
    maps: Sequence[Map],
    at: tuple[slice, ...],
    room: FloatArray,
    bound: FloatArray,
    causal: bool,
    lse: FloatArray | None = None,
    *,
    laid: Sequence[FloatArray] | None = None,
    saved: bool = False,
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Compute the P of each map in a block, (rows, keys) in the room of one thread, and their row sums (rows, 1).

    `at` says which rows of the batch, key heads, query heads, queries and keys. See `softmax_rows`. `lse`
    (maps, 2, B, H, T, 1) receives the log-sum-exps of the block's rows, or gives them where they are `saved` there.
    `laid` are the keys of each map once more, as `lay_keys` lays them, if they are to be multiplied so.
    """
    b, k, h, t, s = at
    n, keys, rows, sums = t.stop - t.start, s.stop, [], []
    hidden = np.triu(np.ones((n, n), dtype=np.bool_), 1) if causal else None
    for i, (p, (q, key, m, z)) in enumerate(zip(room, maps, strict=False)):
        blocks = None if laid is None else laid[i][b, k]
        queries = q[b, h, t]
        into = p[: queries.shape[0] * queries.shape[1] * n * keys].reshape(*queries.shape[:3], keys)
        m, z = (None if x is None else part_of(x, (b, h, t, s)) for x in (m, z))
        of_rows = None if lse is None else lse[i][:, b, h, t]
        if saved and of_rows is not None:
            fill_scores(queries, key[b, k, s], m, z, hidden, into, blocks)
            top, total = of_rows
            flat, tops = into.reshape(-1, keys), top.reshape(-1, 1)
            for part in pieces(len(flat), keys):
                if tops[part].any():
                    flat[part] -= tops[part]
                np.exp(flat[part], out=flat[part])
        else:
            few = (
                None if z is not None else np.where(least_seen(m, queries.shape, keys, causal) < SEEN, np.inf, bound[b])
            )
            _, total = softmax_rows(queries, key[b, k, s], m, z, hidden, into, few, of_rows, blocks)
        rows.append(into.reshape(-1, keys))
        sums.append(total.reshape(-1, 1))
    return rows, sums


def least_seen(mask: NDArray[Any] | None, shape: tuple[int, ...], keys: int, causal: bool) -> NDArray[Any]:
    """How many keys each query of a row of the batch sees at least (B,), or fewer."""
    B, _, t, _ = shape
    seen = np.full(B, keys) if mask is None else np.broadcast_to(mask.sum(axis=-1).min(axis=(1, 2)), (B,))
    return seen - (t - 1 if causal else 0)


def softmax_rows(
    q: FloatArray,
    k: FloatArray,
    mask: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    hidden: NDArray[np.bool_] | None,
    out: FloatArray | None = None,
    bound: FloatArray | None = None,
    lse: FloatArray | None = None,
    blocks: FloatArray | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Compute P (B, H, t, S), into `out`, and its row sums (B, H, t, 1); a row that sees nothing has P = 0 and sum 1.

    P = exp(S − c) with c the largest score of a row, or 0 in those rows of the batch of which `bound` (B,), the largest
    |q| |k|, says that no score is so large that it matters: a softmax is the same whatever is taken away. `lse`
    (2, B, H, t, 1) receives the log-sum-exp c + log s of each row as c and s: large scores leave few digits to a sum.
    `blocks` are the keys as `lay_keys` lays them, if they are to be multiplied so.
    """
    B, H, t, d = q.shape
    S = k.shape[2]
    p = out = np.empty((B, H, t, S), np.result_type(q, k)) if out is None else out
    fill_scores(q, k, mask, bias, hidden, out, blocks)
    rows, ones = p.reshape(-1, S), np.ones(S, p.dtype)
    sums = np.empty((len(rows), 1), p.dtype)
    small = np.zeros(B, np.bool_) if bound is None else bound / math.sqrt(d) < SMALL
    as_it_is = np.repeat(small, H * t)
    tops = np.zeros((len(rows), 1), p.dtype)
    for i in pieces(len(rows), S):
        piece = rows[i]
        if not as_it_is[i].all():
            top = piece.max(axis=-1, keepdims=True, out=tops[i])
            top[as_it_is[i]] = 0
            if mask is not None:
                top[top == -np.inf] = 0
            piece -= top
        np.exp(piece, out=piece)
        np.vecdot(piece, ones, out=sums[i, 0])  # several sums side by side, more exact than those of a product
    if mask is not None:
        sums[sums == 0] = 1
    if lse is not None:
        lse[0], lse[1] = tops.reshape(B, H, t, 1), sums.reshape(B, H, t, 1)
    return p, sums.reshape(B, H, t, 1)


def root_of(d: int) -> tuple[float, bool]:
    """Return √d, and whether it is a power of two: dividing q by it, which is smaller than scores, rounds nothing."""
    root = math.sqrt(d)
    return root, math.frexp(root)[0] == 0.5


def fill_scores(
    q: FloatArray,
    k: FloatArray,
    mask: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    hidden: NDArray[np.bool_] | None,
    out: FloatArray,
    blocks: FloatArray | None = None,
) -> None:
    """Write Q Kᵀ / √d and the bias, −∞ where a query does not see, into `out` (B, H, t, S); `blocks`: keys, laid."""
    B, H, t, d = q.shape
    K, S = k.shape[1:3]
    groups, (root, exact) = (1, H // K * t) if t * S > FEW_RESULTS and blocks is None else (H // K, t), root_of(d)
    grouped, into = q.reshape(B, K, *groups, d), out.reshape(B, K, *groups, S)
    if exact:
        grouped = grouped / root
    if blocks is None:
        np.matmul(grouped, k[:, :, None].swapaxes(3, 4), out=into)
    else:
        multiply_keys(grouped, blocks[:, :, None], into)
    if not exact:
        out /= root
    if bias is not None:
        out += bias
    if mask is not None:
        np.copyto(out, -np.inf, where=~mask)
    if hidden is not None and t > 1:
        np.copyto(out[..., S - t :], -np.inf, where=hidden)
