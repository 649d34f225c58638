"""Products in pieces that BLAS does not pack: of some rows of a weight, some terms and some tokens.

OpenBLAS first copies both factors of a large product into an order of its own, and of a small one on AVX-512 neither.
Of prompts that copy is a twentieth to a quarter of the time; here the tokens alone are copied, once for all threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

MANY_PARTS = 64
"""More parts than these are added up in float64, for they are added one to another."""

SUMS = 2**16
"""How many numbers the parts of such products have together, before they are added up."""

OWN_BUFFER = 2**13
"""NumPy's own size of its buffer: with that of a pass (`BUFFERED` in numpy_passes.py) stacks lose a twentieth."""


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
