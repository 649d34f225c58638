"""Attention of few queries, such as a new token's: by heads, some keys and values at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.numpy.attention_scores import fewest_keys, part_of, score_scale
from refdiff.backends.numpy.gemm_blocks import multiply_few, sum_few
from refdiff.backends.numpy.layout import FloatArray, cut
from refdiff.backends.numpy.runtime import Runtime

MaskAndBias = tuple[NDArray[Any] | None, NDArray[Any] | None]


def decode_attention(
    rt: Runtime,
    maps: Sequence[tuple[FloatArray, FloatArray]],
    hidden_by: Sequence[MaskAndBias],
    v: FloatArray,
    lambdas: Any,
    causal: bool,
) -> FloatArray:
    """Multiply few queries by a tile of keys at a time, and the difference of the maps by a tile of values.

    The maximum of a row is subtracted only where scores are large or the keys few; see attention_scores.py. Each
    sequence goes by its own scores, not by its neighbors'.

    Args:
        maps: queries (B, maps, H, T, d) and keys (B, maps, K, S, d), of both maps at once or one after the other.
        hidden_by: the mask and bias of each map.
    """
    t, workers = rt.tuning, rt.workers
    (B, _, H, T, d), (K, S, e), M = maps[0][0].shape, v.shape[1:], len(hidden_by)
    G = H // K
    n = G * T
    # what needs the interpreter is done before the threads begin: there they wait for each other
    hidden = np.triu(np.ones((T, T), dtype=np.bool_), 1) if causal and T > 1 else None
    masked = any(mask is not None for mask, _ in hidden_by)
    hides = masked or hidden is not None or any(bias is not None for _, bias in hidden_by)
    many_keys = np.full(B, S - (T - 1 if causal else 0) >= t.safe_keys)
    for mask, _ in hidden_by if masked else ():
        many_keys &= fewest_keys(mask, (B, H, T, d), S, causal) >= t.safe_keys
    limits, ones = np.where(many_keys, t.safe_score, 0), np.ones(S, v.dtype)
    key_tile, value_tile = _tiles(rt, n, S, d, e)
    threads = workers.threads if workers.owns_cores and t.decode_parallel_scores <= B * H * T * S else 1
    size = max(min(t.decode_scores // (M * n * S), -(-B * K // threads)), 1)
    parts = [(b, k) for b in cut(B, max(size // K, 1)) for k in cut(K, min(size, K))]
    root, exact = score_scale(d)
    groups = (1, n) if n <= t.exact_tokens else (G, T)  # more go by heads, as in the layer
    scaled = [
        (np.ascontiguousarray(q / root if exact else q).reshape(B, -1, K, *groups, d), k[..., None, :, :])
        for q, k in maps
    ]
    out = np.empty((B, H, T, e), v.dtype)
    buffers = rt.score_buffers(1, parts[0], M * n * S, v.dtype, len(parts))

    def part(at: tuple[slice, slice]) -> None:
        b, k = at
        h = slice(k.start * G, k.stop * G)
        rows, heads = b.stop - b.start, k.stop - k.start
        buffer = buffers.pop()
        scores = buffer[0, : rows * M * heads * n * S].reshape(rows, M, heads, n, S)
        for at_map, (q, key) in zip(cut(M, M // len(scaled)), scaled, strict=True):
            into = scores[:, at_map].reshape(rows, -1, heads, *groups, S)
            multiply_few(q[b, :, k], key[b, :, k], key_tile, into)
        if not exact:
            scores /= root
        for grid, (mask, bias) in zip(scores.swapaxes(0, 1), hidden_by, strict=True) if hides else ():
            by_head = grid.reshape(rows, heads * G, T, S)
            if bias is not None:
                by_head += part_of(bias, (b, h, slice(None), slice(None)))
            if mask is not None:
                np.copyto(by_head, -np.inf, where=~part_of(mask, (b, h, slice(None), slice(None))))
            if hidden is not None:
                np.copyto(by_head[..., S - T :], -np.inf, where=hidden)
        top = np.maximum.reduce(scores, axis=-1, keepdims=True)
        if masked:
            top[top == -np.inf] = 0
        small = np.maximum.reduce(np.abs(top.reshape(rows, -1)), axis=1) < limits[b]
        if np.count_nonzero(small) < rows:
            top[small] = 0
            scores -= top
        np.exp(scores, out=scores)
        sums = np.vecdot(scores, ones)[..., None]
        if masked:
            sums[sums == 0] = 1
        weights = scores[:, 0]
        if M > 1:
            scores[:, 1] *= lambdas[b, h].reshape(rows, heads, n, 1) * (sums[:, 0] / sums[:, 1])
            weights -= scores[:, 1]
        product = sum_few(t, weights, v[b, k], value_tile)
        product /= sums[:, 0]
        out[b, h] = product.reshape(rows, heads * G, T, e)
        buffers.append(buffer)

    workers.map(part, parts)
    return out


def _tiles(rt: Runtime, n: int, S: int, d: int, e: int) -> tuple[int, int]:
    """Return how many keys, and how many values, n queries of a head group meet at a time."""
    t = rt.tuning
    keys = min(max(t.unpacked_ops // d // n // 8 * 8, t.min_key_tile), t.key_tile)
    if not rt.workers.owns_cores and S * d * n >= t.decode_blas_ops:
        keys = S
    values = max(min(t.key_tile, t.unpacked_ops // n // e, S // t.value_parts), t.min_value_tile)
    return keys, 1 << (values.bit_length() - 1)  # a power of two
