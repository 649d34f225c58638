"""RMSNorm, the residual sum, and the norm's backward pass: each token, or each head of a token, by itself.

Rows are taken a block at a time, each block by one thread, so that the next step still finds them in the cache.
Feature-major arrays (`feature_view`), as products return them, stay feature-major.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.backends.numpy.layout import FloatArray, cut, feature_view, same_dtype
from refdiff.backends.numpy.runtime import Runtime


def residual_add(rt: Runtime, x: FloatArray, y: FloatArray) -> FloatArray:
    """Add; feature-major sums go to scratch memory, since allocating takes longer than adding."""
    if x.size <= rt.tuning.small_elements:
        return x + y
    columns, others = feature_view(x), feature_view(y)
    if columns is None or others is None or x.shape != y.shape or not same_dtype(x, y):
        return x + y
    total, into = rt.empty_features(x.shape, x.dtype)

    def block(at: slice) -> None:
        np.add(columns[:, at], others[:, at], out=into[:, at])

    groups, features, tokens = columns.shape
    rt.map(block, cut(features, max(rt.tuning.block_elements // (groups * tokens), 1)), x.size)
    return total


def rms_norm(rt: Runtime, x: FloatArray, weight: FloatArray | None, eps: float) -> Any:
    """Scale each row once, without storing its squares. A few feature-major tokens come back as rows."""
    if not eps >= 0 or x.ndim < 1 or (weight is not None and weight.shape != x.shape[-1:]):
        return NotImplemented
    if not same_dtype(x, weight):
        return NotImplemented
    t = rt.tuning
    if x.size <= t.small_elements and (x.flags.c_contiguous or x.size <= t.rowwise_tokens * x.shape[-1]):
        return _normed(np.ascontiguousarray(x), weight, eps)
    columns = feature_view(x)
    if columns is not None and columns.shape[-1] > t.rowwise_tokens:
        return _norm_columns(rt, columns, weight, eps, *rt.empty_features(x.shape, x.dtype))
    y = rt.empty(x.shape, x.dtype)
    into = y.reshape(-1, x.shape[-1])
    rows = x.reshape(into.shape)

    def block(at: slice) -> None:
        _normed(np.ascontiguousarray(rows[at]), weight, eps, into[at])

    rt.map_rows(block, *into.shape, t.block_elements)
    return y


def _norm_columns(
    rt: Runtime, x: FloatArray, weight: FloatArray | None, eps: float, y: FloatArray, into: FloatArray
) -> FloatArray:
    """Normalise x (groups, features, tokens), some features at a time, into the feature view of `y`."""
    t, (groups, features, tokens) = rt.tuning, x.shape
    if x.size <= t.block_elements:
        mean = np.ones(features, x.dtype) @ np.square(x) / features
        np.divide(x, np.sqrt(mean + eps, dtype=x.dtype)[:, None], out=into)
        if weight is not None:
            into *= weight[:, None]
        return y
    rows = min(max(t.block_elements // min(tokens, t.block_tokens), 1), features)
    ones = np.ones(rows, x.dtype)

    def block(at: tuple[int, slice]) -> None:
        columns, out = x[at[0], :, at[1]], into[at[0], :, at[1]]
        squares = np.zeros(columns.shape[1], x.dtype)
        parts = cut(features, rows)
        for part in parts:
            squares += np.dot(ones[: part.stop - part.start], np.square(columns[part]))
        root = np.sqrt(squares / features + eps, dtype=x.dtype)
        for part in parts:
            np.divide(columns[part], root, out=out[part])
            if weight is not None:
                out[part] *= weight[part, None]

    rt.map(block, [(g, s) for g in range(groups) for s in rt.cut_tokens(tokens, groups, features)], x.size)
    return y


def rms_norm_vjp(rt: Runtime, g: FloatArray, x: FloatArray, weight: FloatArray | None, eps: float) -> Any:
    """Subtract the part along x from the gradient; the weight's is summed block by block, in their order."""
    if not eps >= 0 or x.ndim < 1 or x.size == 0 or g.shape != x.shape:
        return NotImplemented
    if (weight is not None and weight.shape != x.shape[-1:]) or not same_dtype(g, x, weight):
        return NotImplemented
    columns, g_columns = feature_view(x), feature_view(g)
    if columns is not None and g_columns is not None:
        return _norm_columns_vjp(rt, g_columns, columns, weight, eps, *rt.empty_features(x.shape, x.dtype))
    dx = np.empty(x.shape, x.dtype)
    into = dx.reshape(-1, x.shape[-1])
    rows, gradients = x.reshape(into.shape), g.reshape(into.shape)
    sums: dict[int, FloatArray] = {}

    def block(at: slice) -> None:
        block, h = np.ascontiguousarray(rows[at]), np.ascontiguousarray(gradients[at])
        root = _root(block, eps)
        if weight is not None:
            normed = block / root
            normed *= h
            sums[at.start] = normed.sum(axis=0)
            h = h * weight
        along = np.vecdot(h, block)[:, None]
        along /= root
        along /= root
        along /= x.shape[-1]
        np.multiply(block, along, out=into[at])
        np.subtract(h, into[at], out=into[at])
        into[at] /= root

    rt.map_rows(block, *into.shape, rt.tuning.norm_vjp_elements)
    return dx, _ordered_sum(sums)


def _norm_columns_vjp(
    rt: Runtime, g: FloatArray, x: FloatArray, weight: FloatArray | None, eps: float, dx: FloatArray, into: FloatArray
) -> tuple[FloatArray, FloatArray | None]:
    """The same for g and x (groups, features, tokens), with sums over features and tokens as products."""
    groups, features, tokens = x.shape
    ones = np.ones(features, x.dtype)
    w = ones if weight is None else weight
    sums: dict[tuple[int, int], FloatArray] = {}

    def block(at: tuple[int, slice]) -> None:
        columns, h, out = x[at[0], :, at[1]], g[at[0], :, at[1]], into[at[0], :, at[1]]
        products = np.square(columns)
        r = 1 / np.sqrt(np.dot(ones, products) / features + eps, dtype=x.dtype)
        np.multiply(h, columns, out=products)
        along = np.dot(w, products) * r**3 / features
        if weight is not None:
            sums[at[0], at[1].start] = np.dot(products, r)
            np.multiply(h, weight[:, None], out=out)
            h = out
        np.multiply(h, r, out=out)
        np.multiply(columns, along, out=products)
        out -= products

    parts = -(-features * tokens // rt.tuning.feature_norm_vjp_elements)
    size = -(-tokens // (parts + parts % 2) // 16) * 16
    rt.map(block, [(i, s) for i in range(groups) for s in cut(tokens, size)], x.size)
    return dx, _ordered_sum(sums)


def _ordered_sum(sums: dict[Any, FloatArray]) -> FloatArray | None:
    """Add up the blocks' sums in the order of their keys, whichever thread was first; None where there are none."""
    return np.sum([sums[start] for start in sorted(sums)], axis=0) if sums else None


def _normed(rows: FloatArray, weight: FloatArray | None, eps: float, out: FloatArray | None = None) -> FloatArray:
    """Divide rows by their roots, and scale them, into `out` if it is given."""
    y: FloatArray = np.divide(rows, _root(rows, eps), out=out)
    if weight is not None:
        y *= weight
    return y


def _root(rows: FloatArray, eps: float) -> FloatArray:
    """√(mean x² + ε) of each row."""
    root: FloatArray = np.vecdot(rows, rows)[..., None]
    root /= rows.shape[-1]
    root += eps
    np.sqrt(root, out=root)
    return root
