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

BUFFERED = 2**13
"""The size of NumPy's buffer, its own: with the shorter one that rows have, stacks of products lose a twentieth."""

SUMS = 2**16
"""How many numbers the parts of such products have together, before they are added up."""


class Blocks:
    """Tokens (N, K) in blocks of `WIDE`, each (K, tokens) by itself, the last one as narrow as vectors allow.

    tokens: how many there are, with the zeros that make the last vector whole.
    """

    def __init__(self, flat: FloatArray, empty: Callable[..., FloatArray], each: Callable[..., Any]) -> None:
        (N, K), whole = flat.shape, len(flat) // WIDE
        rest = N - whole * WIDE
        self.whole = empty((whole, K, WIDE), flat.dtype)
        self.rest = np.zeros((1, K, -(-rest // VECTOR) * VECTOR), flat.dtype)
        self.tokens = whole * WIDE + self.rest.shape[2]

        def copy(terms: slice) -> None:
            columns = flat.T[terms]
            self.whole[:, terms] = columns[:, : whole * WIDE].reshape(len(columns), whole, WIDE).swapaxes(0, 1)
            self.rest[0, terms, :rest] = columns[:, whole * WIDE :]

        each(copy, cut(K, TERMS))

    def near(self) -> Iterator[tuple[slice, FloatArray]]:
        """Go through the tokens by as many blocks as a cache holds: which columns of a result they are, and they."""
        size = max(NEAR // (self.whole.shape[1] * WIDE), 1)
        for at in cut(len(self.whole), size):
            yield slice(at.start * WIDE, at.stop * WIDE), self.whole[at]
        if self.rest.size:
            yield slice(len(self.whole) * WIDE, self.tokens), self.rest


def rows_of(tokens: int, terms: int) -> int:
    """How many rows a piece has, for so many tokens and terms at a time."""
    return min(max(UNPACKED // (tokens * terms) // 4 * 4, 4), PIECE)


def multiply_rows(weight: FloatArray, rows: int, blocks: FloatArray, out: FloatArray, terms: int) -> None:
    """Multiply (outputs, K) by blocks (B, K, n) into (outputs, B · n), so many rows and terms at a time.

    The loop over pieces is NumPy's own, over stacked matrices, so that threads need not wait for Python.
    """
    (outputs, K), (B, _, n) = weight.shape, blocks.shape
    end = outputs - outputs % rows
    with np.errstate():  # which ends what begins next
        np.setbufsize(BUFFERED)
        for at, size in ((slice(0, end), rows), (slice(end, outputs), outputs - end)):
            if at.start < at.stop:
                into = out[at].reshape(-1, size, B, n).swapaxes(1, 2)
                _multiply(weight[at].reshape(-1, 1, size, K), blocks, into, terms)


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
    exact = np.float64 if parts > MANY_PARTS else None
    for at in cut(P, max(SUMS // (parts * B * rows * n), 1)):
        np.matmul(stacked[at], factors).sum(axis=1, dtype=exact, out=out[at])
    if whole < K:
        out += pieces[..., whole:] @ blocks[:, whole:]
