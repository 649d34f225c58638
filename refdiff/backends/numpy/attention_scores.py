"""Attention's maps and their scores: which arguments the kernels serve, and the softmax of a block before its division.

The softmax is P = exp(S − c) and its row sums s. It is the same whatever c is subtracted from a row, so c is 0 where no
score is large enough to matter, and the row's maximum elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.attention_inputs import fits, masks_fit, split_by_map
from refdiff.backends.numpy.gemm_blocks import multiply_keys
from refdiff.backends.numpy.layout import FloatArray, cut, same_dtype
from refdiff.backends.numpy.tuning import Tuning
from refdiff.layers.softmax import broadcasts_to

Map = tuple[FloatArray, FloatArray, NDArray[Any] | None, NDArray[Any] | None]
"""A map's q (B, H, T, d), k (B, K, S, d), mask and bias."""


class Operands(NamedTuple):
    """One map or two, v (B, K, S, e), and λ (B, H, T, 1), by which the second map is multiplied; None with one."""

    maps: list[Map]
    v: FloatArray
    lambdas: Any
    causal: bool


def operands(
    q: Sequence[FloatArray],
    k: Sequence[FloatArray],
    v: FloatArray,
    lambda_: Any = None,
    mask: NDArray[Any] | None = None,
    bias: FloatArray | None = None,
    *,
    causal: bool = True,
) -> Operands | None:
    """Return the operands of a layer with one map's q and k or two maps', or None for what the kernels do not serve.

    A row of which a bias of −∞ hides every key is NaN in the layer, and would be 0 here, where a mask writes −∞.
    """
    if not fits(q[0], k[0], q[-1], k[-1], v) or not same_dtype(*q, *k, v, bias):
        return None
    (B, H, T, _), S, lambdas = q[0].shape, v.shape[2], None
    if len(q) == 2:
        if not isinstance(lambda_, np.ndarray | np.generic):
            return None
        lambdas = np.asarray(lambda_)
        if not same_dtype(v, lambdas) or not broadcasts_to(lambdas, (B, H, T, 1)):
            return None
        lambdas = np.broadcast_to(lambdas, (B, H, T, 1))
    if not masks_fit((mask, bias), len(q), (B, H, T, S)) or (mask is not None and mask.dtype != np.bool_):
        return None
    if (causal and S < T) or (bias is not None and np.isneginf(bias).any()):
        return None
    return Operands(list(zip(q, k, split_by_map(mask, H), split_by_map(bias, H), strict=False)), v, lambdas, causal)


def part_of(x: NDArray[Any], at: tuple[slice, slice, slice, slice]) -> NDArray[Any]:
    """Cut a mask or bias to a block; an axis of length 1 stands for all."""
    return x[tuple(s if n > 1 else slice(None) for s, n in zip(at, x.shape, strict=True))]


def cached_rows(t: Tuning, rows: int, width: int) -> list[slice]:
    """Cut rows of `width` scores into slices that a core's cache holds."""
    return cut(rows, max(t.cached_scores // max(width, 1), 1))


def score_bounds(maps: Sequence[Map]) -> FloatArray:
    """Return the largest |q| |k| of each sequence (B,): no score is larger, before the division by √d and a bias."""

    def longest(x: FloatArray) -> FloatArray:
        norms: FloatArray = np.sqrt(np.square(x).sum(axis=-1).max(axis=(1, 2)))
        return norms

    bounds: FloatArray = np.max([longest(q) * longest(k) for q, k, *_ in maps], axis=0)
    return bounds


def block_softmax(
    t: Tuning,
    maps: Sequence[Map],
    at: tuple[slice, ...],
    buffer: FloatArray,
    bounds: FloatArray,
    causal: bool,
    lse: FloatArray | None = None,
    *,
    blocks: Sequence[FloatArray] | None = None,
    saved: bool = False,
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Compute the P of each map in a block, (rows, keys) in one thread's buffer, and their row sums (rows, 1).

    Args:
        at: slices of the batch, key heads, query heads, queries and keys.
        bounds: see `score_bounds`.
        lse: (maps, 2, B, H, T, 1); receives the log-sum-exps of the block's rows, or has them where `saved`.
        blocks: the `key_blocks` of each map, if the keys are to be multiplied in them.
    """
    b, k, h, queries, s = at
    n, keys, rows, sums = queries.stop - queries.start, s.stop, [], []
    hidden = np.triu(np.ones((n, n), dtype=np.bool_), 1) if causal else None
    for i, (p, (q, key, mask, bias)) in enumerate(zip(buffer, maps, strict=False)):
        in_blocks = None if blocks is None else blocks[i][b, k]
        block = q[b, h, queries]
        into = p[: block.shape[0] * block.shape[1] * n * keys].reshape(*block.shape[:3], keys)
        mask, bias = (None if x is None else part_of(x, (b, h, queries, s)) for x in (mask, bias))
        row_lse = None if lse is None else lse[i][:, b, h, queries]
        if saved and row_lse is not None:
            write_scores(t, block, key[b, k, s], mask, bias, hidden, into, in_blocks)
            top, total = row_lse
            flat, tops = into.reshape(-1, keys), top.reshape(-1, 1)
            for part in cached_rows(t, len(flat), keys):
                if tops[part].any():
                    flat[part] -= tops[part]
                np.exp(flat[part], out=flat[part])
        else:
            few_keys = fewest_keys(mask, block.shape, keys, causal) < t.safe_keys
            limits = None if bias is not None else np.where(few_keys, np.inf, bounds[b])
            _, total = softmax_rows(t, block, key[b, k, s], mask, bias, hidden, into, limits, row_lse, in_blocks)
        rows.append(into.reshape(-1, keys))
        sums.append(total.reshape(-1, 1))
    return rows, sums


def fewest_keys(mask: NDArray[Any] | None, shape: tuple[int, ...], keys: int, causal: bool) -> NDArray[Any]:
    """Return a lower bound (B,) on how many keys each query of a sequence sees."""
    B, _, n, _ = shape
    seen = np.full(B, keys) if mask is None else np.broadcast_to(mask.sum(axis=-1).min(axis=(1, 2)), (B,))
    return seen - (n - 1 if causal else 0)


def softmax_rows(
    t: Tuning,
    q: FloatArray,
    k: FloatArray,
    mask: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    hidden: NDArray[np.bool_] | None,
    out: FloatArray | None = None,
    bounds: FloatArray | None = None,
    lse: FloatArray | None = None,
    blocks: FloatArray | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Compute P (B, H, T, S), into `out`, and its row sums (B, H, T, 1); a row that sees nothing has P = 0 and sum 1.

    Args:
        bounds: (B,), the largest |q| |k| of each sequence; small ones save subtracting the maximum.
        lse: (2, B, H, T, 1); receives the log-sum-exp c + log s of each row as c and s, since large scores leave few
            digits to a sum.
        blocks: the keys as `key_blocks`, if they are to be multiplied in them.
    """
    (B, H, n, d), S = q.shape, k.shape[2]
    p = out = np.empty((B, H, n, S), np.result_type(q, k)) if out is None else out
    write_scores(t, q, k, mask, bias, hidden, out, blocks)
    rows, ones = p.reshape(-1, S), np.ones(S, p.dtype)
    sums = np.empty((len(rows), 1), p.dtype)
    small = np.zeros(B, np.bool_) if bounds is None else bounds / math.sqrt(d) < t.safe_score
    unshifted = np.repeat(small, H * n)
    tops = np.zeros((len(rows), 1), p.dtype)
    for at in cached_rows(t, len(rows), S):
        block = rows[at]
        if not unshifted[at].all():
            top = block.max(axis=-1, keepdims=True, out=tops[at])
            top[unshifted[at]] = 0
            if mask is not None:
                top[top == -np.inf] = 0
            block -= top
        np.exp(block, out=block)
        np.vecdot(block, ones, out=sums[at, 0])  # several sums side by side, more exact than those of a product
    if mask is not None:
        sums[sums == 0] = 1
    if lse is not None:
        lse[0], lse[1] = tops.reshape(B, H, n, 1), sums.reshape(B, H, n, 1)
    return p, sums.reshape(B, H, n, 1)


def score_scale(d: int) -> tuple[float, bool]:
    """Return √d, and whether it is a power of two: dividing q by it, which is smaller than scores, rounds nothing."""
    root = math.sqrt(d)
    return root, math.frexp(root)[0] == 0.5


def write_scores(
    t: Tuning,
    q: FloatArray,
    k: FloatArray,
    mask: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    hidden: NDArray[np.bool_] | None,
    out: FloatArray,
    blocks: FloatArray | None = None,
) -> None:
    """Write Q Kᵀ / √d and the bias, −∞ where a query does not see, into `out` (B, H, T, S)."""
    B, H, n, d = q.shape
    K, S = k.shape[1:3]
    root, exact = score_scale(d)
    groups = (1, H // K * n) if n * S > t.exact_scores and blocks is None else (H // K, n)
    grouped, into = q.reshape(B, K, *groups, d), out.reshape(B, K, *groups, S)
    if exact:
        grouped = grouped / root
    if blocks is None:
        np.matmul(grouped, k[:, :, None].swapaxes(3, 4), out=into)
    else:
        multiply_keys(t, grouped, blocks[:, :, None], into)
    if not exact:
        out /= root
    if bias is not None:
        out += bias
    if mask is not None:
        np.copyto(out, -np.inf, where=~mask)
    if hidden is not None and n > 1:
        np.copyto(out[..., S - n :], -np.inf, where=hidden)
