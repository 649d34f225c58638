"""Fast twins for NumPy of what treats each token, or each head of a token, by itself: norm and sum, and their way back.

Rows are taken a block at a time, so that what a step writes is still in the cache when the next step reads it, and each
block by one thread. What lies feature-major (`feature_major`), as products leave it, is taken and left like that: the
next product and the sum with the residual path need no other order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.numpy_passes import NumpyPasses

FloatArray = NDArray[np.floating[Any]]

ELEMENTS = 2**17
"""How many elements an elementwise step handles at a time: temporaries stay in the cache, calls cost little."""

SUMMED = 2**15
"""How many of them where rows are summed: a sum of sums of few is more exact."""

LARGE_BLOCK = 2**18
"""How many of them where a block takes many steps on columns: threads that often ask for Python wait for each other."""

ROW_BY_ROW = 8
"""Up to so many tokens that lie side by side are normed one after the other: NumPy's steps along features are long."""

COLUMNS = 512
"""How many tokens an elementwise step handles at a time where they lie side by side."""

AT_ONCE = 2**15
"""Arrays of up to so many elements are added in one go, and of a few tokens normed and rotated: to cut them would take
longer."""

FLOATS = {np.dtype(np.float32), np.dtype(np.float64)}
"""What kernels compute with."""

WORTH_A_THREAD = 2**19
"""The fewest multiplications, or elements of exp, for which handing a part to another thread pays."""


class NumpyRowKernels(NumpyPasses):
    """The kernels of layers that treat each token by itself."""

    def embedding(self, ids: NDArray[np.integer[Any]], weight: FloatArray) -> Any:
        """Lay the rows down feature-major, as what is added to those of many tokens comes."""
        if weight.ndim != 2 or ids.size < 2 or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= len(weight):
            return NotImplemented
        y = self._workspace.empty((weight.shape[1], ids.size), weight.dtype)
        y[...] = weight[ids.reshape(-1)].T
        return y.T.reshape(*ids.shape, weight.shape[1])

    def residual_add(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Add, what lies feature-major in memory that the pass keeps: new memory takes ten times as long as the sum."""
        if x.size <= AT_ONCE:
            return x + y
        columns, others = feature_major(x), feature_major(y)
        if columns is None or others is None or x.shape != y.shape or not alike(x, y):
            return x + y
        total, into = self._like(x, x.dtype)

        def block(at: slice) -> None:
            np.add(columns[:, at], others[:, at], out=into[:, at])

        groups, features, tokens = columns.shape
        self._each(block, cut(features, max(ELEMENTS // (groups * tokens), 1)), x.size)
        return total

    def rms_norm(self, x: FloatArray, weight: FloatArray | None, eps: float) -> Any:
        """Sum squares without holding them, and scale once; a few tokens that lie feature-major come out as rows."""
        if not eps >= 0 or x.ndim < 1 or (weight is not None and weight.shape != x.shape[-1:]) or not alike(x, weight):
            return NotImplemented
        if x.size <= AT_ONCE and (x.flags.c_contiguous or x.size <= ROW_BY_ROW * x.shape[-1]):
            return _normed(np.ascontiguousarray(x), weight, eps)
        columns = feature_major(x)
        if columns is not None and columns.shape[-1] > ROW_BY_ROW:
            return self._norm_columns(columns, weight, eps, *self._like(x, x.dtype))
        y = self._workspace.empty(x.shape, x.dtype)
        into = y.reshape(-1, x.shape[-1])
        rows = x.reshape(into.shape)

        def block(at: slice) -> None:
            _normed(np.ascontiguousarray(rows[at]), weight, eps, into[at])

        self._blocks(block, *into.shape)
        return y

    def _norm_columns(
        self, x: FloatArray, weight: FloatArray | None, eps: float, y: FloatArray, into: FloatArray
    ) -> FloatArray:
        """Normalise x (groups, features, tokens), some features at a time, into the like view of `y`."""
        groups, features, tokens = x.shape
        if x.size <= ELEMENTS:
            mean = np.ones(features, x.dtype) @ np.square(x) / features
            np.divide(x, np.sqrt(mean + eps, dtype=x.dtype)[:, None], out=into)
            if weight is not None:
                into *= weight[:, None]
            return y
        rows = min(max(ELEMENTS // min(tokens, COLUMNS), 1), features)
        ones = np.ones(rows, x.dtype)

        def block(at: tuple[int, slice]) -> None:
            piece, out = x[at[0], :, at[1]], into[at[0], :, at[1]]
            squares = np.zeros(piece.shape[1], x.dtype)
            parts = [slice(i, min(i + rows, features)) for i in range(0, features, rows)]
            for part in parts:
                squares += np.dot(ones[: part.stop - part.start], np.square(piece[part]))
            root = np.sqrt(squares / features + eps, dtype=x.dtype)
            for part in parts:
                np.divide(piece[part], root, out=out[part])
                if weight is not None:
                    out[part] *= weight[part, None]

        self._each(block, [(g, t) for g in range(groups) for t in self._tokens(tokens, groups, features)], x.size)
        return y

    def rms_norm_vjp(self, g: FloatArray, x: FloatArray, weight: FloatArray | None, eps: float) -> Any:
        """Take the part along x from the gradient; the weight's is summed block by block, in their order."""
        if not eps >= 0 or x.size == 0 or g.shape != x.shape or (weight is not None and weight.shape != x.shape[-1:]):
            return NotImplemented
        if not alike(g, x, weight):
            return NotImplemented
        columns, of_columns = feature_major(x), feature_major(g)
        if columns is not None and of_columns is not None:
            return self._norm_columns_vjp(of_columns, columns, weight, eps, *self._like(x, x.dtype))
        dx = np.empty(x.shape, x.dtype)
        into = dx.reshape(-1, x.shape[-1])
        rows, gradients = x.reshape(into.shape), g.reshape(into.shape)
        sums: dict[int, FloatArray] = {}

        def block(at: slice) -> None:
            piece, h = np.ascontiguousarray(rows[at]), np.ascontiguousarray(gradients[at])
            root = _root(piece, eps)
            if weight is not None:
                normed = piece / root
                normed *= h
                sums[at.start] = normed.sum(axis=0)
                h = h * weight
            along = np.vecdot(h, piece)[:, None]
            along /= root
            along /= root
            along /= x.shape[-1]
            np.multiply(piece, along, out=into[at])
            np.subtract(h, into[at], out=into[at])
            into[at] /= root

        self._blocks(block, *into.shape, SUMMED)
        if weight is None:
            return dx, None
        return dx, np.sum([sums[start] for start in sorted(sums)], axis=0)

    def _norm_columns_vjp(
        self,
        g: FloatArray,
        x: FloatArray,
        weight: FloatArray | None,
        eps: float,
        dx: FloatArray,
        into: FloatArray,
    ) -> tuple[FloatArray, FloatArray | None]:
        """Do the same for g and x (groups, features, tokens), with sums over features and tokens as products."""
        groups, features, tokens = x.shape
        ones = np.ones(features, x.dtype)
        w = ones if weight is None else weight
        sums: dict[tuple[int, int], FloatArray] = {}

        def block(at: tuple[int, slice]) -> None:
            piece, h, out = x[at[0], :, at[1]], g[at[0], :, at[1]], into[at[0], :, at[1]]
            products = np.square(piece)
            r = 1 / np.sqrt(np.dot(ones, products) / features + eps, dtype=x.dtype)
            np.multiply(h, piece, out=products)
            along = np.dot(w, products) * r**3 / features
            if weight is not None:
                sums[at[0], at[1].start] = np.dot(products, r)
                np.multiply(h, weight[:, None], out=out)
                h = out
            np.multiply(h, r, out=out)
            np.multiply(piece, along, out=products)
            out -= products

        parts = -(-features * tokens // LARGE_BLOCK)
        size = -(-tokens // (parts + parts % 2) // 16) * 16
        self._each(block, [(i, t) for i in range(groups) for t in cut(tokens, size)], x.size)
        return dx, None if weight is None else np.sum([sums[start] for start in sorted(sums)], axis=0)

    def _tokens(self, tokens: int, groups: int, features: int) -> list[slice]:
        """Cut tokens that lie side by side so that every thread has as many of them, or has some groups."""
        parts = -(-tokens // max(COLUMNS, ELEMENTS // features))
        if groups < self._workers.threads or parts > 1:
            parts = -(-parts // self._workers.threads) * self._workers.threads
        return cut(tokens, -(-tokens // (16 * parts)) * 16)

    def _like(self, x: FloatArray, dtype: Any) -> tuple[FloatArray, FloatArray]:
        """Allocate what lies feature-major like `x`, and view it as `feature_major` does."""
        if x.ndim == 4:
            B, H, T, D = x.shape
            y = self._workspace.empty((H, D, B, T), dtype)
            return y.transpose(2, 0, 3, 1), y.reshape(H, D, B * T)
        y = self._workspace.empty((x.shape[-1], *x.shape[:-1]), dtype)
        return np.moveaxis(y, 0, -1), y.reshape(1, len(y), -1)

    def _blocks(self, block: Callable[[slice], None], rows: int, width: int, elements: int = ELEMENTS) -> None:
        """Call `block` for slices of rows that hold about so many elements each."""
        size = max(elements // max(width, 1), 1)
        self._each(block, cut(rows, size), rows * width)

    def _each(self, block: Callable[[Any], None], items: list[Any], elements: int) -> None:
        if elements < WORTH_A_THREAD // 4:
            for item in items:
                block(item)
        else:
            self._workers.each(block, items)


def alike(*arrays: NDArray[Any] | None) -> bool:
    """Whether all arrays are of one dtype, float32 or float64: what else there is, NumPy's own rules decide."""
    dtypes = [x.dtype for x in arrays if x is not None]
    return bool(dtypes) and dtypes[0] in FLOATS and dtypes.count(dtypes[0]) == len(dtypes)


def cut(length: int, size: int) -> list[slice]:
    """Cut a length into slices of `size`, the last of what is left."""
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


def lies_by_features(x: FloatArray) -> bool:
    """Whether (…, D) lies feature-major, and not also as it is written."""
    rows = x.reshape(-1, x.shape[-1]) if x.ndim > 1 and x.size else x
    return rows.flags.f_contiguous and not rows.flags.c_contiguous


def feature_major(x: FloatArray) -> FloatArray | None:
    """View (…, D), or (B, H, T, D) by heads, as (1 or H, D, tokens) where it lies like that, else return None."""
    tokens = x.shape[0] * x.shape[2] if x.ndim == 4 else x.size // max(x.shape[-1], 1)
    if x.ndim < 2 or tokens < 2:
        return None
    turned = x.transpose(1, 3, 0, 2) if x.ndim == 4 else np.moveaxis(x, -1, 0)[None]
    if not turned.flags.c_contiguous:
        return None
    return turned.reshape(*turned.shape[:2], -1)


def gated(outs: list[FloatArray], gate: FloatArray, up: FloatArray) -> None:
    """Write silu(gate) ⊙ up."""
    silu(outs, gate)
    outs[0] *= up


def silu(outs: list[FloatArray], x: FloatArray) -> None:
    """Write x / (1 + e^−x)."""
    (out,) = outs
    np.negative(x, out=out)
    with np.errstate(over="ignore"):  # e^−x = ∞ gives the right limit, 0
        np.exp(out, out=out)
    out += 1
    np.divide(x, out, out=out)


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
