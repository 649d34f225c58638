"""RoPE and its backward pass: some tokens, or heads, at a time, in the layout that the argument has."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.backends.numpy.layout import FloatArray, cut, feature_view, same_dtype
from refdiff.backends.numpy.runtime import Runtime


def rope(rt: Runtime, x: FloatArray, cos: FloatArray, sin: FloatArray, *, interleaved: bool = False) -> Any:
    """Rotate into the result, a block of tokens of one sequence at a time."""
    n = cos.shape[-1]
    if x.ndim != 4 or cos.ndim != 4 or cos.shape != sin.shape or 2 * n > x.shape[-1]:
        return NotImplemented
    if cos.shape[1:3] != (1, x.shape[2]) or cos.shape[0] not in (1, x.shape[0]):
        return NotImplemented
    if not same_dtype(x, cos, sin):
        return NotImplemented
    B, H, T, d = x.shape
    columns = feature_view(x)
    if columns is not None:
        return _rotate_columns(rt, columns, cos, sin, interleaved, *rt.empty_features(x.shape, x.dtype))
    y = np.empty(x.shape, x.dtype)
    first, second = _halves(n, interleaved)

    def block(at: tuple[int, slice]) -> None:
        b, tokens = at
        out, c, s = y[b, :, tokens], cos[b % len(cos), :, tokens], sin[b % len(sin), :, tokens]
        one, two = x[b, :, tokens, first], x[b, :, tokens, second]
        np.multiply(one, c, out=out[..., first])
        out[..., first] -= two * s
        np.multiply(two, c, out=out[..., second])
        out[..., second] += one * s
        out[..., 2 * n :] = x[b, :, tokens, 2 * n :]

    size = max(rt.tuning.block_elements // max(H * d, 1), 1)
    rt.map(block, [(b, tokens) for b in range(B) for tokens in cut(T, size)], x.size)
    return y


def rope_vjp(
    rt: Runtime, g: FloatArray, x: FloatArray, cos: FloatArray, sin: FloatArray, *, interleaved: bool = False
) -> Any:
    """Rotate back."""
    if g.shape != x.shape:
        return NotImplemented
    rotated = rope(rt, g, cos, -sin, interleaved=interleaved)
    return rotated if rotated is NotImplemented else (rotated, None, None)


def rope_append(
    rt: Runtime,
    cache: Any,
    layer: int,
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    cos: FloatArray,
    sin: FloatArray,
    *,
    interleaved: bool = False,
) -> Any:
    """Rotate few queries and keys together, and append keys and values to a layer of the cache.

    Shapes:
        q (B, H, T, d), k (B, K, T, d), v (B, Kv, T, e) -> q rotated, and all keys and values of the layer;
        NotImplemented, and the cache is as before, for other shapes and types, and for many tokens
    """
    n = cos.shape[-1]
    few = q.size + k.size <= rt.tuning.small_elements and q.ndim == k.ndim == v.ndim == cos.ndim == 4
    if not few or k.size == 0 or not same_dtype(q, k, v, cos, sin):
        return NotImplemented
    B, H, T, d = q.shape
    fits = k.shape[::2] == v.shape[::2] == (B, T) and d == k.shape[3] == 2 * n
    if not fits or cos.shape != sin.shape or cos.shape[1:3] != (1, T) or cos.shape[0] not in (1, B):
        return NotImplemented
    keys, values, start = cache.allocate(layer, k, v)
    x = np.concatenate([q, k], axis=1)
    index: tuple[tuple[Any, ...], ...]
    if interleaved:
        pairs = x.reshape(*x.shape[:3], n, 2)
        index = (..., None), (..., 0), (..., 1)
    else:
        pairs = x.reshape(*x.shape[:3], 2, n)
        index = (..., None, slice(None)), (..., 0, slice(None)), (..., 1, slice(None))
    whole, one, two = index
    rotated, across = pairs * cos[whole], pairs * sin[whole]
    rotated[one] -= across[two]
    rotated[two] += across[one]
    y = rotated.reshape(x.shape)
    keys[:, :, start : start + T], values[:, :, start : start + T] = y[:, H:], v
    return y[:, :H], *cache.commit(layer, start + T)


def _rotate_columns(
    rt: Runtime, x: FloatArray, cos: FloatArray, sin: FloatArray, interleaved: bool, y: FloatArray, into: FloatArray
) -> FloatArray:
    """Rotate x (heads, d, tokens), some heads and tokens at a time or few all at once, into the feature view of `y`."""
    t, B, T, n = rt.tuning, y.shape[0], y.shape[2], cos.shape[-1]
    angles = (np.broadcast_to(a, (B, *a.shape[1:])).transpose(1, 3, 0, 2).reshape(-1, B * T) for a in (cos, sin))
    c, s = map(np.ascontiguousarray, angles)
    first, second = _halves(n, interleaved)

    def block(at: tuple[slice, slice]) -> None:
        heads, tokens = at
        one, two, out = x[heads, first, tokens], x[heads, second, tokens], into[heads, :, tokens]
        np.multiply(one, c[:, tokens], out=out[:, first])
        out[:, first] -= two * s[:, tokens]
        np.multiply(two, c[:, tokens], out=out[:, second])
        out[:, second] += one * s[:, tokens]
        out[:, 2 * n :] = x[heads, 2 * n :, tokens]

    if x.size <= t.block_elements:
        block((slice(None), slice(None)))
        return y
    features, share = x.shape[1], -(-len(x) // rt.workers.threads)
    heads = cut(len(x), max(min(t.block_elements // (features * min(B * T, t.block_tokens)), share), 1))
    parts = rt.cut_tokens(B * T, len(heads), features * heads[0].stop)
    rt.map(block, [(h, tokens) for h in heads for tokens in parts], x.size)
    return y


def _halves(n: int, interleaved: bool) -> tuple[slice, slice]:
    """Return where the first and the second number of each of n pairs are."""
    return (slice(0, 2 * n, 2), slice(1, 2 * n, 2)) if interleaved else (slice(0, n), slice(n, 2 * n))
