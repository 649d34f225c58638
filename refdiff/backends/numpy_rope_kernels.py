"""Fast twins for NumPy of RoPE and its way back: some tokens, or heads, at a time, see numpy_row_kernels.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.backends.numpy_row_kernels import (
    AT_ONCE,
    COLUMNS,
    ELEMENTS,
    FloatArray,
    NumpyRowKernels,
    alike,
    cut,
    feature_major,
)


class NumpyRopeKernels(NumpyRowKernels):
    """The kernels of rotation."""

    def rope(self, x: FloatArray, cos: FloatArray, sin: FloatArray, *, interleaved: bool = False) -> Any:
        """Rotate into the result, in a block of tokens of one row of the batch at a time."""
        n = cos.shape[-1]
        if x.ndim != 4 or cos.ndim != 4 or cos.shape != sin.shape or 2 * n > x.shape[-1]:
            return NotImplemented
        if cos.shape[1:3] != (1, x.shape[2]) or cos.shape[0] not in (1, x.shape[0]):
            return NotImplemented
        if not alike(x, cos, sin):
            return NotImplemented
        B, H, T, d = x.shape
        columns = feature_major(x)
        if columns is not None:
            return self._turn_columns(columns, cos, sin, interleaved, *self._like(x, x.dtype))
        y = np.empty(x.shape, x.dtype)
        first, second = (slice(0, 2 * n, 2), slice(1, 2 * n, 2)) if interleaved else (slice(0, n), slice(n, 2 * n))

        def block(at: tuple[int, slice]) -> None:
            b, t = at
            out, c, s = y[b, :, t], cos[b % len(cos), :, t], sin[b % len(sin), :, t]
            one, two = x[b, :, t, first], x[b, :, t, second]
            np.multiply(one, c, out=out[..., first])
            out[..., first] -= two * s
            np.multiply(two, c, out=out[..., second])
            out[..., second] += one * s
            out[..., 2 * n :] = x[b, :, t, 2 * n :]

        size = max(ELEMENTS // max(H * d, 1), 1)
        items = [(b, slice(t, min(t + size, T))) for b in range(B) for t in range(0, T, size)]
        self._each(block, items, x.size)
        return y

    def rope_append(
        self,
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
        """Rotate few queries and keys together, and write keys and values where the cache has room for them."""
        n = cos.shape[-1]
        few = q.size + k.size <= AT_ONCE and q.ndim == k.ndim == v.ndim == cos.ndim == 4
        if not few or k.size == 0 or not alike(q, k, v, cos, sin):
            return NotImplemented
        B, H, T, d = q.shape
        fits = k.shape[::2] == v.shape[::2] == (B, T) and d == k.shape[3] == 2 * n
        if not fits or cos.shape != sin.shape or cos.shape[1:3] != (1, T) or cos.shape[0] not in (1, B):
            return NotImplemented
        keys, values, start = cache.room(layer, k, v)
        x = np.concatenate([q, k], axis=1)
        index: list[tuple[Any, ...]] = [(..., i) if interleaved else (..., i, slice(None)) for i in (None, 0, 1)]
        whole, one, two = index
        pairs = x.reshape(*x.shape[:3], *((n, 2) if interleaved else (2, n)))
        turned, across = pairs * cos[whole], pairs * sin[whole]
        turned[one] -= across[two]
        turned[two] += across[one]
        y = turned.reshape(x.shape)
        keys[:, :, start : start + T], values[:, :, start : start + T] = y[:, H:], v
        return y[:, :H], *cache.filled(layer, start + T)

    def _turn_columns(
        self, x: FloatArray, cos: FloatArray, sin: FloatArray, interleaved: bool, y: FloatArray, into: FloatArray
    ) -> FloatArray:
        """Rotate x (heads, d, tokens), a head and some tokens at a time or all of few, into the like view of `y`."""
        B, T = y.shape[0], y.shape[2]
        turns = (np.broadcast_to(a, (B, *a.shape[1:])).transpose(1, 3, 0, 2).reshape(-1, B * T) for a in (cos, sin))
        (c, s), n = map(np.ascontiguousarray, turns), cos.shape[-1]
        first, second = (slice(0, 2 * n, 2), slice(1, 2 * n, 2)) if interleaved else (slice(0, n), slice(n, 2 * n))

        def block(at: tuple[slice, slice]) -> None:
            h, t = at
            one, two, out = x[h, first, t], x[h, second, t], into[h, :, t]
            np.multiply(one, c[:, t], out=out[:, first])
            out[:, first] -= two * s[:, t]
            np.multiply(two, c[:, t], out=out[:, second])
            out[:, second] += one * s[:, t]
            out[:, 2 * n :] = x[h, 2 * n :, t]

        if x.size <= ELEMENTS:
            block((slice(None), slice(None)))
            return y
        features, tokens, share = x.shape[1], B * T, -(-len(x) // self._workers.threads)
        heads = cut(len(x), max(min(ELEMENTS // (features * min(tokens, COLUMNS)), share), 1))
        parts = self._tokens(tokens, len(heads), features * heads[0].stop)
        self._each(block, [(h, t) for h in heads for t in parts], x.size)
        return y

    def rope_vjp(
        self, g: FloatArray, x: FloatArray, cos: FloatArray, sin: FloatArray, *, interleaved: bool = False
    ) -> Any:
        """Rotate back."""
        if g.shape != x.shape:
            return NotImplemented
        turned = self.rope(g, cos, -sin, interleaved=interleaved)
        return turned if turned is NotImplemented else (turned, None, None)
