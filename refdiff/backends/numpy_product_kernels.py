"""Fast twins for NumPy of products with weights: cut over the outputs, in the way that suits the number of tokens.

A product of many tokens, W Xᵀ, is returned as its transposed view, so that activations are kept feature-major and the
next product reads them as they lie; one of up to `SIDE_BY_SIDE` lies by tokens, where pieces are not packed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.numpy_attention_kernels import NumpyAttentionKernels
from refdiff.backends.numpy_pieces import (
    PIECE,
    SIDE_BY_SIDE,
    TERMS,
    UNPACKED,
    VECTOR,
    WIDE,
    Blocks,
    has_unpacked_products,
    multiply_few,
    multiply_rows,
    rows_of,
)
from refdiff.backends.numpy_row_kernels import WORTH_A_THREAD, FloatArray, alike, cut
from refdiff.backends.numpy_stored import EVEN, NUMBERS, ODD, ROWS, expand, factors, has_words, is_stored, spread

FEW = 24
"""Up to so many tokens are few."""

VECTORS = 4
"""Up to so many tokens, a piece that is not worth packing is multiplied by each of them as a vector."""

IN_CACHE = 2**15
"""How many numbers of a weight such a piece has: a core's cache holds it from the first token to the last."""

TOGETHER = 8
"""Packed pieces take tokens by so many: 7 cost more than 8, and are given a zero for company."""

WORTH_BLOCKS = 2048
"""From how many outputs on, of all weights together, many tokens are worth laying in blocks."""

LONG = 8192
"""The terms of a product with up to `SIDE_BY_SIDE` tokens: there BLAS adds one vector to another."""

PACKED = 256
"""The rows of a piece that is packed: few enough to stay in the cache while they are multiplied."""

READ_AT_ONCE = 2**21
"""How many numbers of a weight a thread takes at a time for one token: few enough that threads end together."""

LET_GO = 512
"""The fewest outputs of such a part: of 500 or fewer NumPy computes with the interpreter in hand, and threads wait."""

BESIDE = 4096
"""Up to so many terms, what each row is multiplied with stays beside it in a core's first cache."""

STACKED = 4
"""Longer rows are multiplied by so many at a time."""

Part = Callable[[slice], None]
"""What computes some rows of a product W Xᵀ."""


class Plan(NamedTuple):
    """A product with a weight: `y` (N, outputs), what computes some outputs, and those that a thread takes at a time.

    There are none of a product that is done: it was too small for threads, or its weight lies otherwise.
    """

    y: FloatArray
    part: Part
    cuts: Sequence[slice]


class NumpyProductKernels(NumpyAttentionKernels):
    """The kernels of products, and the threads that they share.

    unpacked: up to how many tokens, where these are few, a product's pieces are of the kind that BLAS does not pack; if
    more than one, many tokens are multiplied in such pieces too, and keys and values by many queries. Which kind is
    faster is the processor's. Unpacked ones with AVX-512: beside packed ones 8 and 16 tokens go 1.6 times as fast on a
    Sapphire Rapids, 1.3 times on a Zen 4, where 32, 128 and 512 go 1.5, 1.15 and 1.03 times as fast. Packed ones
    elsewhere, where so few as `VECTORS` are multiplied one by one. `refdiff bench --rows product:8` measures.
    """

    unpacked = FEW if has_unpacked_products() else 1

    def linear(self, x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> Any:
        """Put the weight first, W Xᵀ, cut over its rows: a matrix-vector product, unpacked pieces, or whole halves.

        A weight of 16 bits is expanded as it is used, see numpy_stored.py; a result then has the dtype of `x`.
        """
        results = self.linears(x, {"weight": weight, "bias": bias})
        return results if results is NotImplemented else results[0]

    def linears(self, x: FloatArray, *projections: Mapping[str, Any]) -> Any:
        """Multiply by several weights; the threads meet for all of them at once.

        Each is `linear`'s product, but that many tokens are laid in blocks for all weights together, where these have
        outputs enough: another order of the same sums.
        """
        plans = self._plans(x, projections)
        if plans is None:
            return NotImplemented
        self._workers.each(run, [(plan, at) for plan in plans for at in plan.cuts])
        for plan, p in zip(plans, projections, strict=True):
            if p.get("bias") is not None:
                y = plan.y
                y += p["bias"]
        return [plan.y.reshape(*x.shape[:-1], plan.y.shape[-1]) for plan in plans]

    def _plans(self, x: FloatArray, projections: Sequence[Mapping[str, Any]]) -> list[Plan] | None:
        """Plan the products of (…, K), as (N, K), with each weight, biases left aside; None where these do not fit."""
        if not all(_fits(x, **p) for p in projections):
            return None
        flat, plans, blocks = x.reshape(-1, x.shape[-1]), [], None
        (N, K), threads = flat.shape, self._workers
        outputs = sum(len(p["weight"]) for p in projections) if N > FEW else 0
        for p in projections:
            weight = p["weight"]
            large, stored = weight.size * N >= WORTH_A_THREAD, is_stored(weight)
            if N == 1 and large and not stored and threads.alone and weight.flags.c_contiguous:
                y, part = self._by_rows(flat, weight)
                cuts = _cut(len(weight), max(READ_AT_ONCE // K, LET_GO))
            elif N > 1 and (weight.size * N <= UNPACKED or _lies_otherwise(weight)):
                y, part, cuts = _as_the_layer(flat, weight), _nothing, []
            else:
                if outputs >= WORTH_BLOCKS and K >= TERMS and self._in_pieces(weight.dtype):
                    blocks = blocks or Blocks(flat, self._workspace.empty, threads.each)
                    y, part = self._by_blocks_of_tokens(blocks, weight, N)
                else:
                    y, part = self._planned(flat, weight, large)
                # of an expansion in its steps, so that threads end together
                cuts = cut(len(weight), self._expanded(K, N)) if stored else threads.cuts(len(weight), align=PIECE)
                if not large:
                    part(slice(0, len(weight)))
                    cuts = []
            plans.append(Plan(y, part, cuts))
        return plans

    def _planned(self, flat: FloatArray, weight: FloatArray, large: bool) -> tuple[FloatArray, Part]:
        """Allocate flat Wᵀ, (N, K) to (N, outputs), and return it with what computes some of the outputs."""
        (N, K), outputs, stored = flat.shape, len(weight), is_stored(weight)
        few = self._unpacked if self.unpacked >= N else self._by_vectors if N <= VECTORS else None
        if few is not None and N > 1 and large and not stored and weight.flags.c_contiguous:
            return few(flat, weight)
        if self.unpacked < N < FEW and large and (missing := -N % TOGETHER):
            flat = np.concatenate([flat, np.zeros((missing, K), flat.dtype)])
        y = self._workspace.empty((outputs, len(flat)), flat.dtype if stored else np.result_type(flat, weight))
        columns = flat.T if N > 1 else flat[0]
        out = y if N > 1 else y[:, 0]
        rows = PACKED if 1 < N <= FEW else outputs

        def part(at: slice) -> None:
            for i in range(at.start, at.stop, rows):
                j = min(i + rows, at.stop)
                np.matmul(weight[i:j], columns, out=out[i:j])

        return y[:, :N].T, self._expanding(weight, columns, out) if stored else part

    def _unpacked(self, flat: FloatArray, weight: FloatArray) -> tuple[FloatArray, Part]:
        """Multiply by few tokens in pieces that BLAS does not pack; see `_planned`.

        Up to `SIDE_BY_SIDE` tokens, and terms up to `LONG`, go by rows; others lie side by side, a whole number of
        vectors wide where they are more, and have their terms in parts.
        """
        (N, K), outputs, dtype = flat.shape, len(weight), np.result_type(flat, weight)
        if N <= SIDE_BY_SIDE and K <= LONG:
            x, y, rows = np.ascontiguousarray(flat), self._workspace.empty((N, outputs), dtype), rows_of(N, K)
            return y, lambda at: multiply_few(x, weight[at], rows, y[:, at])
        if N <= SIDE_BY_SIDE:
            columns, terms = np.ascontiguousarray(flat).T, LONG
        else:
            columns, terms = np.zeros((K, -(-N // VECTOR) * VECTOR), flat.dtype), min(K, TERMS)
            columns[:, :N] = flat.T
        rows = rows_of(columns.shape[1], terms)
        y = self._workspace.empty((outputs, columns.shape[1]), dtype)

        def part(at: slice) -> None:
            multiply_rows(weight[at], rows, columns[None], y[at], terms)

        return y[:, :N].T, part

    def _by_rows(self, flat: FloatArray, weight: FloatArray) -> tuple[FloatArray, Part]:
        """Multiply by one token, row by row: each thread reads memory in one stream, where BLAS's read several.

        In steps that is as fast as BLAS's own threads, or by the hour up to a seventh faster. Rows that are so long
        that the token does not stay in the first cache beside them are taken by four.
        """
        (_, K), y, x = flat.shape, np.empty((1, len(weight)), flat.dtype), np.ascontiguousarray(flat[0])

        def part(at: slice) -> None:
            rows, out = weight[at], y[0, at]
            if K <= BESIDE:
                np.vecdot(rows, x, out=out)
                return
            end = len(rows) // STACKED * STACKED
            np.matmul(rows[:end].reshape(-1, STACKED, K), x, out=out[:end].reshape(-1, STACKED))
            np.vecdot(rows[end:], x, out=out[end:])

        return y, part

    def _by_blocks_of_tokens(self, blocks: Blocks, weight: FloatArray, tokens: int) -> tuple[FloatArray, Part]:
        """Multiply by many tokens, block by block, and return what `_planned` does; see numpy_pieces.py."""
        y = self._workspace.empty((len(weight), tokens), weight.dtype)
        terms = min(weight.shape[1] // 2, TERMS)  # two parts at least: all in one would be less exact than the layer
        rows = rows_of(WIDE, terms)

        def part(at: slice) -> None:
            for first, near in blocks.near():
                into = y[at, first : first + len(near) * near.shape[2]]
                multiply_rows(weight[at], rows, near, into, terms)

        return y.T, part

    def _by_vectors(self, flat: FloatArray, weight: FloatArray) -> tuple[FloatArray, Part]:
        """Multiply by few tokens, each piece by all of them while the cache has it; see `_planned`.

        The loop over pieces and tokens is NumPy's own, over stacked matrices, so that threads need not wait for Python.
        """
        (N, K), outputs = flat.shape, len(weight)
        rows = max(IN_CACHE // K, 4)
        y = self._workspace.empty((N, outputs), np.result_type(flat, weight))
        flat = np.ascontiguousarray(flat)

        def part(at: slice) -> None:
            start, stop = at.start, at.stop
            end = stop - (stop - start) % rows
            stacked = weight[start:end].reshape(-1, 1, rows, K)
            products = np.matmul(stacked, flat[:, :, None])  # (pieces, N, rows, 1)
            y[:, start:end].reshape(N, -1, rows)[...] = products[..., 0].swapaxes(0, 1)
            for i in range(N if end < stop else 0):
                np.matmul(weight[end:stop], flat[i], out=y[i, end:stop])

        return y, part

    def _expanding(self, weight: NDArray[Any], columns: FloatArray, out: FloatArray) -> Part:
        """Return what writes some rows of a product with a stored weight into `out`."""
        few, K = columns.ndim == 1 or columns.shape[1] <= FEW, weight.shape[1]
        if few and has_words(weight, out.dtype):
            return self._by_halves(weight, columns, out)
        step: Callable[[NDArray[Any], FloatArray], None] = expand
        missing = None
        if weight.dtype.kind == "f" and out.dtype == np.float32 and self._finite(weight):
            step = spread
            columns, missing = factors(columns)

        def part(at: slice) -> None:
            rows, result = weight[at], out[at]
            tile = self._tile(len(rows), K, out.dtype)
            step(rows, tile)
            np.dot(tile, columns, out=result)
            if missing is not None:
                with np.errstate(over="ignore", invalid="ignore"):  # as in a product
                    result *= missing

        return part

    @staticmethod
    def _expanded(terms: int, tokens: int) -> int:
        """How many rows are expanded at a time, for so many tokens."""
        return max(NUMBERS // terms // 4 * 4, 4 if tokens <= FEW else ROWS)

    def _tile(self, rows: int, columns: int, dtype: Any) -> FloatArray:
        """What a thread expands into, in memory that is kept from one pass to the next."""
        block = self._tiles.empty((max(rows * columns, NUMBERS),), dtype)
        return block[: rows * columns].reshape(rows, columns)

    def _by_halves(self, weight: NDArray[Any], columns: FloatArray, out: FloatArray) -> Part:
        """The same for words of two bfloat16: the numbers at even places, then those at odd ones."""
        even, odd = (np.ascontiguousarray(columns[place]) for place in (EVEN, ODD))

        def part(at: slice) -> None:
            rows, result = weight[at], out[at]
            tile = self._tile(len(rows), len(even), out.dtype)
            expand(rows, tile, EVEN)
            np.dot(tile, even, out=result)
            expand(rows, tile, ODD)
            result += np.dot(tile, odd)

        return part


_cut = functools.cache(cut)


def run(item: tuple[Plan, slice]) -> None:
    """Compute some outputs of a plan."""
    plan, at = item
    plan.part(at)


def _nothing(_: slice) -> None:
    """What is left to do of a product that is done."""


def _lies_otherwise(weight: NDArray[Any]) -> bool:
    return not is_stored(weight) and not weight.flags.c_contiguous


def _as_the_layer(flat: FloatArray, weight: NDArray[Any]) -> FloatArray:
    """Multiply as the layer does, in one product, where pieces would be too small for BLAS to sum up well."""
    if is_stored(weight):
        expanded = np.empty(weight.shape, flat.dtype)
        expand(weight, expanded)
        weight = expanded
    product: FloatArray = np.ascontiguousarray(flat) @ weight.T
    return product


def _fits(x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> bool:
    """Whether `linear` can multiply these."""
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1] or 0 in (x.size, weight.size):
        return False
    if not alike(x, bias, None if is_stored(weight) else weight):
        return False
    return bias is None or bias.shape == weight.shape[:1]
