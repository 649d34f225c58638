"""Fast twins for NumPy of attention: by heads and blocks of queries, each over the keys that it may see."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff import layers
from refdiff.backends.numpy_row_kernels import FloatArray, NumpyRowKernels

SCORES = 2**20
"""How many attention scores of one map a block holds: 4 MB in float32, enough rows for a product at full speed."""

QUERIES = 128
"""The most queries in a block: more would compute too much of the triangle that causality hides."""

LEAST = 16
"""The fewest queries in a block, and from how many on there are blocks."""

CACHED = 2**17
"""How many scores an elementwise step handles at a time: 0.5 MB in float32, what a core's cache holds."""

FEW_SCORES = 2**15
"""Up to so many scores of one map, few queries are not worth a second thread."""

UNPACKED = 10**6
"""The largest rows · N · K of a product that OpenBLAS does without packing; just above, it takes twice as long."""

ONE_THREAD = 9000
"""The largest matrix by which OpenBLAS multiplies a vector without threads of its own."""

KEYS = 512
"""The fewest keys that a product takes at a time."""

SMALL = 40.0
"""Scores below this need no maximum taken away: neither e^40 nor a sum of them overflows, nor does e^−40 underflow."""

ALL = slice(None)

Map = tuple[FloatArray, FloatArray, NDArray[Any] | None, NDArray[Any] | None]
"""A map's q (B, H, T, d), k (B, K, S, d), mask and bias."""


class NumpyAttentionKernels(NumpyRowKernels):
    """The kernels of attention, over one map or two."""

    def diff_attention(
        self,
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
        if not fits(q1, k1, q2, k2, v):
            return NotImplemented
        B, H, T, _ = q1.shape
        S = v.shape[2]
        lambdas = np.asarray(lambda_, dtype=q1.dtype)
        if (causal and S < T) or not covers(lambdas, (B, H, T, 1)) or (mask is not None and mask.dtype != np.bool_):
            return NotImplemented
        if any(x is not None and not covers(x, (B, mask_heads(x, H), T, S)) for x in (mask, bias)):
            return NotImplemented
        masks, biases = by_map(mask, H), by_map(bias, H)
        maps = [(q1, k1, masks[0], biases[0]), (q2, k2, masks[1], biases[1])]
        return self._attend(maps, v, np.broadcast_to(lambdas, (B, H, T, 1)), causal)

    def plain_heads(
        self,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        mask: NDArray[np.bool_] | None = None,
        bias: FloatArray | None = None,
        *,
        causal: bool = True,
        attention_weights: Callable[..., Any] = layers.attention_weights,
    ) -> Any:
        """Attend over one map; see `_attend`."""
        if not fits(q, k, q, k, v) or (causal and k.shape[2] < q.shape[2]):
            return NotImplemented
        (B, H, T, _), (_, S, e) = q.shape, v.shape[1:]
        if any(x is not None and not covers(x, (B, H, T, S)) for x in (mask, bias)):
            return NotImplemented
        if mask is not None and mask.dtype != np.bool_:
            return NotImplemented
        m, z = (None if x is None else x[(None,) * (4 - x.ndim)] for x in (mask, bias))
        return self._attend([(q, k, m, z)], v, None, causal).swapaxes(1, 2).reshape(B, T, H * e)

    def _attend(self, maps: Sequence[Map], v: FloatArray, lambdas: Any, causal: bool) -> FloatArray:
        """Compute (B, H, T, e) from each map's q, k, mask and bias; a second map is taken from the first λ times.

        Few queries are taken keys first. Many are taken in blocks, each over the keys that it may see: only the scores
        of a block are held, and memory grows with T, not with T². What is small is done at once.
        """
        (B, H, T, _), S = maps[0][0].shape, v.shape[2]
        if T < LEAST:
            return self._by_keys(maps, v, lambdas, causal)
        if B * H * T * S > CACHED:
            return self._by_blocks(maps, v, lambdas, causal).transpose(2, 0, 3, 1)
        return self._at_once(maps, v, lambdas, causal)

    def _at_once(self, maps: Sequence[Map], v: FloatArray, lambdas: Any, causal: bool) -> FloatArray:
        """Multiply all heads in one call."""
        (B, H, T, _), (K, S, e) = maps[0][0].shape, v.shape[1:]
        hidden = np.triu(np.ones((T, T), dtype=np.bool_), 1) if causal else None
        (p, sums), *second = (softmax_rows(q, k, m, z, hidden) for q, k, m, z in maps)
        for p2, sums2 in second:
            p2 *= lambdas * (sums / sums2)
            p -= p2
        product = (p.reshape(B, K, H // K * T, S) @ v).reshape(B, H, T, e)
        product /= sums
        return product

    def _by_keys(self, maps: Sequence[Map], v: FloatArray, lambdas: Any, causal: bool) -> FloatArray:
        """Put keys first, Sᵀ = K Qᵀ, the scores of both maps side by side, so that V is read once for both.

        The exponentials are of the scores themselves where none is so large that it matters: a softmax is the same
        whatever is taken away from its scores.
        """
        (B, H, T, d), (K, S, e), M = maps[0][0].shape, v.shape[1:], len(maps)
        G = H // K
        n = G * T
        hidden = np.tri(T, k=-1, dtype=np.bool_)[:, None] if causal and T > 1 else None
        out, ones = np.empty((B, H, T, e), v.dtype), np.ones(S, v.dtype)
        of_keys, of_values = (
            cut(S, max(most // 8 * 8, KEYS)) for most in (UNPACKED // d // n, min(UNPACKED // e, ONE_THREAD) // (M * n))
        )

        def part(at: tuple[slice, slice]) -> None:
            b, k = at
            h, groups = slice(k.start * G, k.stop * G), (b.stop - b.start, k.stop - k.start)

            def by_key(x: NDArray[Any]) -> NDArray[Any]:
                x = np.broadcast_to(part_of(x, (b, h, ALL, ALL)), (groups[0], groups[1] * G, T, S))
                return x.reshape(*groups, G, T, S).transpose(0, 1, 4, 2, 3)

            scores = np.empty((*groups, S, M * n), v.dtype)
            grids = [scores[..., i * n : i * n + n] for i in range(M)]
            for grid, (q, key, _, z) in zip(grids, maps, strict=True):
                turned = q[b, h].reshape(*groups, G, T, d).transpose(0, 1, 4, 2, 3) / math.sqrt(d)
                columns = np.ascontiguousarray(turned).reshape(*groups, d, n)
                for i in of_keys:
                    np.matmul(key[b, k, i], columns, out=grid[:, :, i])
                if z is not None:
                    grid.reshape(*groups, S, G, T)[...] += by_key(z)
            small = scores.min() > -SMALL and scores.max() < SMALL
            for grid, (_, _, m, _) in zip(grids, maps, strict=True):
                if m is not None:
                    np.copyto(grid.reshape(*groups, S, G, T), -np.inf, where=~by_key(m))
                if hidden is not None:
                    np.copyto(grid[..., S - T :, :].reshape(*groups, T, G, T), -np.inf, where=hidden)
            if not small:
                top = scores.max(axis=2, keepdims=True)
                top[top == -np.inf] = 0
                scores -= top
            np.exp(scores, out=scores)
            sums, product = np.zeros((*groups, M * n), v.dtype), np.zeros((*groups, M * n, e), v.dtype)
            for i in of_values:
                weights = scores[:, :, i]
                sums += ones[: weights.shape[2]] @ weights
                product += weights.swapaxes(2, 3) @ v[b, k, i]
            sums[sums == 0] = 1
            product /= sums[..., None]
            heads = product.reshape(*groups, M, G, T, e)
            result = heads[:, :, 0]
            if lambdas is not None:
                result = result - lambdas[b, h].reshape(*groups, G, T, 1) * heads[:, :, 1]
            out[b, h] = result.reshape(groups[0], groups[1] * G, T, e)

        size = (
            B * K
            if B * H * T * S < FEW_SCORES
            else max(min(CACHED // (M * n * S), -(-B * K // self._workers.threads)), 1)
        )
        rows, heads = max(size // K, 1), min(size, K)
        self._workers.each(
            part,
            [
                (slice(b, min(b + rows, B)), slice(k, min(k + heads, K)))
                for b in range(0, B, rows)
                for k in range(0, K, heads)
            ],
            beside_blas=KEYS * M * n * e <= UNPACKED,
        )
        return out

    def _by_blocks(self, maps: Sequence[Map], v: FloatArray, lambdas: Any, causal: bool) -> FloatArray:
        """Multiply by V once, and return (H, e, B, T), the order that the next product takes.

        With P = exp(S − c) and row sums s, (P₁/s₁ − λ P₂/s₂) V = ((P₁ − λ (s₁/s₂) P₂) V) / s₁. A thread holds the
        scores of one block of queries at a time, in memory that the next block has again.
        """
        (B, H, T, d), (K, S, e) = maps[0][0].shape, v.shape[1:]
        G = H // K
        size = min(max(SCORES // (G * S), LEAST), QUERIES)
        out = self._workspace.empty((H, e, B, T), v.dtype)
        rooms = deque(np.empty((len(maps), S * G * size), v.dtype) for _ in range(self._workers.threads))
        lengths = [np.sqrt(np.vecdot(k, k).max(axis=-1)) for _, k, *_ in maps]

        def block(at: tuple[int, int, slice]) -> None:
            b, k, t = at
            h, n, keys = slice(k * G, k * G + G), t.stop - t.start, S - T + t.stop if causal else S
            hidden = np.triu(np.ones((n, n), dtype=np.bool_), 1) if causal else None
            room, rows, sums = rooms.pop(), [], []
            for p, (q, key, m, z), length in zip(room, maps, lengths, strict=True):
                m, z = (None if x is None else part_of(x, (slice(b, b + 1), h, t, slice(keys))) for x in (m, z))
                at_hand = q[b, h, t].reshape(-1, d)
                bound = None if z is not None else np.sqrt(np.vecdot(at_hand, at_hand).max()) * length[b, k]
                into = p[: keys * G * n].reshape(1, G, n, keys)
                _, total = softmax_rows(
                    at_hand.reshape(1, G, n, d), key[b : b + 1, k : k + 1, :keys], m, z, hidden, into, bound
                )
                rows.append(into.reshape(G * n, keys))
                sums.append(total.reshape(G * n, 1))
            if lambdas is not None:
                share = lambdas[b, h, t].reshape(G * n, 1) * (sums[0] / sums[1])
                for i in pieces(G * n, keys):
                    rows[1][i] *= share[i]
                    rows[0][i] -= rows[1][i]
            product = rows[0] @ v[b, k, :keys]
            product /= sums[0]
            out[h, :, b, t] = product.reshape(G, n, e).swapaxes(1, 2)
            rooms.append(room)

        self._workers.each(
            block,
            [
                (b, k, slice(t, min(t + size, T)))
                for t in reversed(range(0, T, size))  # the longest first, so that threads end together
                for b in range(B)
                for k in range(K)
            ],
        )
        return out


def fits(q1: FloatArray, k1: FloatArray, q2: FloatArray, k2: FloatArray, v: FloatArray) -> bool:
    """Whether queries, keys and values are (B, H, T, d), (B, K, S, d), (B, K, S, e), with H a multiple of K."""
    return (
        q1.ndim == k1.ndim == v.ndim == 4
        and q1.shape == q2.shape
        and k1.shape == k2.shape
        and v.shape[:3] == k1.shape[:3]
        and q1.shape[0] == k1.shape[0]
        and q1.shape[3] == k1.shape[3]
        and k1.shape[1] > 0
        and q1.shape[1] % k1.shape[1] == 0
        and q1.size > 0
        and k1.size > 0
    )


def mask_heads(x: NDArray[Any], heads: int) -> int:
    """How many heads a mask or bias may have: those of one map, or those of both."""
    return 2 * heads if x.ndim > 2 and x.shape[-3] == 2 * heads else heads


def covers(x: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Whether `x` broadcasts to `shape` without enlarging it."""
    axes = (1,) * (len(shape) - x.ndim) + x.shape
    return len(axes) == len(shape) and all(m in (1, n) for m, n in zip(axes, shape, strict=True))


def by_map(x: NDArray[Any] | None, heads: int) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Give each map its part of a mask or bias, with all four axes."""
    if x is None:
        return None, None
    x = x[(None,) * (4 - x.ndim)]
    return (x[:, :heads], x[:, heads:]) if x.shape[1] == 2 * heads else (x, x)


def part_of(x: NDArray[Any], at: tuple[slice, slice, slice, slice]) -> NDArray[Any]:
    """Cut a mask or bias to a block; an axis of length 1 stands for all."""
    return x[tuple(s if n > 1 else slice(None) for s, n in zip(at, x.shape, strict=True))]


def cut(length: int, size: int) -> list[slice]:
    """Cut a length into slices of `size`, the last of what is left."""
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


def pieces(rows: int, width: int) -> list[slice]:
    """Cut rows of `width` numbers into slices that a core's cache holds."""
    size = max(CACHED // max(width, 1), 1)
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]


def softmax_rows(
    q: FloatArray,
    k: FloatArray,
    mask: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    hidden: NDArray[np.bool_] | None,
    out: FloatArray | None = None,
    bound: Any = None,
) -> tuple[FloatArray, FloatArray]:
    """Compute P (B, H, t, S), into `out`, and its row sums (B, H, t, 1); a row that sees nothing has P = 0 and sum 1.

    P = exp(S − c) with c the largest score of a row, or 0 where `bound`, the largest |q| |k|, says that no score is so
    large that it matters: a softmax is the same whatever is taken away.
    """
    B, H, t, d = q.shape
    K, S = k.shape[1:3]
    grouped, root = q.reshape(B, K, H // K * t, d), math.sqrt(d)
    exact = math.frexp(root)[0] == 0.5  # a power of two: dividing q, which is smaller, rounds nothing
    if out is None:
        out = np.empty((B, H, t, S), np.result_type(q, k))
    p = out.reshape(B, K, H // K * t, S)
    np.matmul(grouped / root if exact else grouped, k.swapaxes(2, 3), out=p)
    p = out
    if not exact:
        p /= root
    if bias is not None:
        p += bias
    if mask is not None:
        np.copyto(p, -np.inf, where=~mask)
    if hidden is not None and t > 1:
        np.copyto(p[..., S - t :], -np.inf, where=hidden)
    rows, ones = p.reshape(-1, S), np.ones(S, p.dtype)
    sums = np.empty((len(rows), 1), p.dtype)
    small = bound is not None and bound / root < SMALL
    for i in pieces(len(rows), S):
        piece = rows[i]
        if not small:
            top = piece.max(axis=-1, keepdims=True)
            if mask is not None:
                top[top == -np.inf] = 0
            piece -= top
        np.exp(piece, out=piece)
        np.matmul(piece, ones, out=sums[i, 0])
    if mask is not None:
        sums[sums == 0] = 1
    return p, sums.reshape(B, H, t, 1)
