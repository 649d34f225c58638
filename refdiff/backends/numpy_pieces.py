"""Products in pieces that BLAS does not pack: of some rows of a weight, some terms and some tokens.

OpenBLAS first copies both factors of a large product into an order of its own, and of a small one on AVX-512 neither.
Of prompts that copy is a twentieth to a quarter of the time; here the tokens alone are copied, once for all threads.
Attention multiplies queries by blocks of keys, which are copied once a layer, and its weights by parts of the values.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.backends.numpy_row_kernels import FloatArray, cut

UNPACKED = 10**6
"""The largest rows · N · K of a product that OpenBLAS does without packing; just above, it takes twice as long."""

PIECE = 32
"""The rows of a piece, where it has few enough terms."""

VECTOR = 16
"""How many float32 a vector of AVX-512 holds."""

WIDE = 64
"""How many tokens lie side by side in a block."""

NEAR = 2**20
"""How many numbers of the tokens a piece of the weight meets before the next one does: about what a cache holds."""

TERMS = 512
"""The terms of a product of pieces and vectors: more are added up in parts, for BLAS adds one term to another."""

SEEN_AT_ONCE = 256
"""The keys whose values all rows of attention's weights are multiplied with first: twice as many are no faster."""

MANY_PARTS = 64
"""More parts than these are added up in float64, or each so many first: of one long sum of sums digits are lost."""

SIDE_BY_SIDE = 9
"""Of up to so many tokens BLAS adds up the terms in several sums side by side, which is more exact."""

SUMS = 2**16
"""How many numbers the parts of such products have together, before they are added up."""

OWN_BUFFER = 2**13
"""NumPy's own size of its buffer: with that of a pass (`BUFFERED` in numpy_passes.py) stacks lose a twentieth."""


def has_unpacked_products() -> bool:
    """Whether small products that BLAS does not pack are the faster ones here: on processors with AVX-512.

    OpenBLAS has code of its own for them on those only. Where nothing can be read, they are not.
    """
    with contextlib.suppress(OSError):
        return bool(re.search(r"^flags\s*:.*\bavx512f\b", Path("/proc/cpuinfo").read_text(), re.M))
    return False


class Blocks:
    """Tokens (N, K) in blocks of `WIDE`, each (K, tokens) by itself; the last token makes the last vector whole."""

    def __init__(self, flat: FloatArray, empty: Callable[..., FloatArray], each: Callable[..., Any]) -> None:
        (N, K), whole = flat.shape, len(flat) // WIDE
        rest = N - whole * WIDE
        self.whole = empty((whole, K, WIDE), flat.dtype)
        self.rest = empty((1, K, -(-rest // VECTOR) * VECTOR), flat.dtype)

        def copy(terms: slice) -> None:
            columns = flat.T[terms]
            self.whole[:, terms] = columns[:, : whole * WIDE].reshape(len(columns), whole, WIDE).swapaxes(0, 1)
            self.rest[0, terms, :rest] = columns[:, whole * WIDE :]
            self.rest[0, terms, rest:] = columns[:, -1:]  # and not 0, of which an infinite weight makes NaN

        each(copy, cut(K, TERMS))

    def near(self) -> Iterator[tuple[int, FloatArray]]:
        """Go through as many blocks at a time as a cache holds: the first one's first token, and the blocks."""
        size = max(NEAR // (self.whole.shape[1] * WIDE), 1)
        for at in cut(len(self.whole), size):
            yield at.start * WIDE, self.whole[at]
        if self.rest.size:
            yield len(self.whole) * WIDE, self.rest


def rows_of(tokens: int, terms: int) -> int:
    """How many rows a piece has, for so many tokens and terms at a time."""
    return min(max(UNPACKED // (tokens * terms) // 4 * 4, 4), PIECE)


def multiply_rows(weight: FloatArray, rows: int, blocks: FloatArray, out: FloatArray, terms: int) -> None:
    """Multiply (outputs, K) by blocks (B, K, n) into (outputs, up to B · n), so many rows and terms at a time.

    The loop over parts, blocks and small pieces is NumPy's own, over stacked matrices, so that threads need not wait
    for Python.
    """
    (outputs, K), (B, _, n) = weight.shape, blocks.shape
    end, given = outputs - outputs % rows, out
    if given.shape[1] < B * n:
        out = np.empty((outputs, B * n), given.dtype)
    with np.errstate():  # which ends what begins next
        np.setbufsize(OWN_BUFFER)
        for at, size in ((slice(0, end), rows), (slice(end, outputs), outputs - end)):
            if at.start < at.stop:
                into = out[at].reshape(-1, size, B, n).swapaxes(1, 2)
                _multiply(weight[at].reshape(-1, 1, size, K), blocks, into, terms)
    if out is not given:
        given[...] = out[:, : given.shape[1]]


def _multiply(pieces: FloatArray, blocks: FloatArray, out: FloatArray, terms: int) -> None:
    """Multiply (P, 1, rows, K) by (B, K, n) into (P, B, rows, n), so many terms at a time, all of a piece first."""
    (P, _, rows, K), (B, _, n) = pieces.shape, blocks.shape
    if terms == K:
        np.matmul(pieces, blocks, out=out)
        return
    parts = K // terms
    whole = parts * terms
    stacked = pieces[..., :whole].reshape(P, 1, rows, parts, terms).transpose(0, 3, 1, 2, 4)
    factors = blocks.swapaxes(1, 2)[..., :whole].reshape(B, n, parts, terms).transpose(2, 0, 3, 1)  # however they lie
    for at in cut(P, max(SUMS // (parts * B * rows * n), 1)):
        products = np.matmul(stacked[at], factors)
        if parts > MANY_PARTS:
            out[at] = products.sum(axis=1, dtype=np.float64)  # into `out` NumPy 2.4 would round in between
        else:
            products.sum(axis=1, out=out[at])
        if whole < K:
            out[at] += pieces[at, ..., whole:] @ blocks[:, whole:]


def multiply_few(x: FloatArray, rows: FloatArray, size: int, out: FloatArray) -> None:
    """Write x (…, n, K) times the rows (…, S, K) into `out` (…, n, S), `size` rows at a time."""
    for at, piece in _stretches(rows.shape[-2], size, rows.shape[-2]):
        columns = _rows_by(piece, rows[..., at, :]).swapaxes(-1, -2)
        np.matmul(x[..., None, :, :], columns, out=_columns_by(piece, out[..., at]))


def sum_few(weights: FloatArray, rows: FloatArray, size: int) -> FloatArray:
    """Multiply weights (…, n, S) by rows (…, S, e), `size` rows at a time: a sum of sums of few is more exact."""

    def of(at: slice, piece: int) -> FloatArray:
        products = np.matmul(_columns_by(piece, weights[..., at]), _rows_by(piece, rows[..., at, :]))
        total: FloatArray = products.sum(axis=-3)
        return total

    return functools.reduce(np.add, (of(*stretch) for stretch in _stretches(rows.shape[-2], size, MANY_PARTS)))


@functools.lru_cache
def _stretches(length: int, size: int, together: int) -> tuple[tuple[slice, int], ...]:
    """Cut a length into stretches of at most so many whole pieces, and what is left over as one piece; and their sizes.

    NumPy's own loop is over the pieces of a stretch.
    """
    whole = length // size * size
    stretches = tuple((at, size) for at in cut(whole, size * together))
    return (*stretches, (slice(whole, length), length - whole)) if whole < length else stretches


def _rows_by(size: int, x: FloatArray) -> FloatArray:
    """(…, S, d) to (…, pieces, size, d)."""
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])


def _columns_by(size: int, x: FloatArray) -> FloatArray:
    """(…, n, S) to (…, pieces, n, size)."""
    return x.reshape(*x.shape[:-1], -1, size).swapaxes(-2, -3)


def lay_keys(k: FloatArray, empty: Callable[..., FloatArray], each: Callable[..., Any]) -> FloatArray:
    """Lay keys (B, K, S, d) in blocks of `WIDE`, (B, K, blocks, d, WIDE); of the last one some stay empty."""
    B, K, S, d = k.shape
    whole, rest = divmod(S, WIDE)
    blocks = empty((B, K, -(-S // WIDE), d, WIDE), k.dtype)

    def copy(at: tuple[int, int]) -> None:
        keys, into = k[at], blocks[at]
        into[:whole] = keys[: whole * WIDE].reshape(whole, WIDE, d).swapaxes(1, 2)
        into[whole:, :, :rest] = keys[whole * WIDE :].T

    each(copy, list(np.ndindex(B, K)))
    return blocks


def lay_values(v: FloatArray, empty: Callable[..., FloatArray], each: Callable[..., Any]) -> FloatArray:
    """Lay values (B, K, S, e) so that the features of a key are side by side, where they are not."""
    if v.strides[-1] == v.itemsize:
        return v
    rows = empty(v.shape, v.dtype)

    def copy(at: tuple[int, int]) -> None:
        rows[at] = v[at]

    each(copy, list(np.ndindex(v.shape[:2])))
    return rows


def multiply_keys(q: FloatArray, blocks: FloatArray, out: FloatArray) -> None:
    """Multiply (..., n, d) by blocks (..., blocks, d, WIDE) of the first keys into `out` (..., n, keys)."""
    (*_, n, d), (whole, rest) = q.shape, divmod(out.shape[-1], WIDE)
    end = whole * WIDE
    with np.errstate():  # which ends what begins next
        np.setbufsize(OWN_BUFFER)
        for at in cut(n, max(UNPACKED // (d * WIDE), 1)):
            piece, into = q[..., at, :], out[..., at, :]
            in_blocks = into[..., :end].reshape(*into.shape[:-1], whole, WIDE).swapaxes(-3, -2)
            np.matmul(piece[..., None, :, :], blocks[..., :whole, :, :], out=in_blocks)
            if rest:
                np.matmul(piece, blocks[..., whole, :, :rest], out=into[..., end:])


def multiply_values(weights: FloatArray, v: FloatArray) -> FloatArray:
    """Multiply (..., R, S) by values (..., S, e), e a multiple of `WIDE`: `SEEN_AT_ONCE` keys by all R rows, then more.

    What all rows meet is then small enough for a core's cache, however many keys there are.
    """
    (*heads, R, S), e = weights.shape, v.shape[-1]
    product = np.empty((*heads, R, e), weights.dtype)
    terms, end = min(max(S // 2, 1), SEEN_AT_ONCE), R - R % PIECE  # two parts at least, as of tokens
    parts, axis = S // terms, len(heads)
    whole = parts * terms
    values = v.reshape(*heads, S, e // WIDE, 1, WIDE)
    factors = np.moveaxis(values[..., :whole, :, :, :].reshape(*heads, parts, terms, -1, 1, WIDE), -4, -2)
    left = np.moveaxis(values[..., whole:, :, :, :], -4, -2)
    with np.errstate():  # which ends what begins next
        np.setbufsize(OWN_BUFFER)
        for at, rows in ((slice(0, end), PIECE), (slice(end, R), R - end)):
            if at.start == at.stop:
                continue
            pieces = weights[..., at, :].reshape(*heads, -1, rows, S)
            stacked = np.moveaxis(pieces[..., :whole].reshape(*pieces.shape[:-1], parts, terms), -2, axis)
            # (..., parts, blocks, pieces, rows, WIDE), in this order and not in that in which they lie
            products = np.matmul(np.expand_dims(stacked, axis + 1), factors, order="C")
            total = products.sum(axis=axis, dtype=np.float64 if parts > MANY_PARTS else None)
            if whole < S:
                total += np.expand_dims(pieces[..., whole:], axis) @ left
            product[..., at, :].reshape(*pieces.shape[:-1], -1, WIDE)[...] = np.moveaxis(total, axis, -2)
    return product
