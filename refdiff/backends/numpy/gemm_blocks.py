"""Products in tiles that BLAS does not pack: some rows of a weight, some terms and some tokens.

OpenBLAS copies ("packs") both factors of a large product into an order of its own, which takes time. On AVX-512 it
multiplies small products without packing. Here only the tokens are copied, once for all threads. Attention multiplies
queries by blocks of keys, which are copied once per layer, and its weights by parts of the values.

The loops over tiles are NumPy's own, over stacked matrices, so that threads do not wait for the interpreter.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from refdiff.backends.numpy.layout import FloatArray, cut
from refdiff.backends.numpy.runtime import Runtime
from refdiff.backends.numpy.tuning import Tuning

AVX512_FLOATS = 16
"""float32 numbers in a vector of AVX-512."""


class TokenBlocks:
    """Tokens (N, K) in blocks of `Tuning.block_width`, each (K, tokens); the last token fills the last vector."""

    def __init__(self, rt: Runtime, flat: FloatArray) -> None:
        t, (N, K) = rt.tuning, flat.shape
        self._width, self._cached = t.block_width, t.cached_blocks
        whole, rest = divmod(N, self._width)
        covered = whole * self._width
        self._whole = rt.empty((whole, K, self._width), flat.dtype)
        self._rest = rt.empty((1, K, -(-rest // AVX512_FLOATS) * AVX512_FLOATS), flat.dtype)

        def copy(terms: slice) -> None:
            columns = flat.T[terms]
            self._whole[:, terms] = columns[:, :covered].reshape(len(columns), whole, self._width).swapaxes(0, 1)
            self._rest[0, terms, :rest] = columns[:, covered:]
            self._rest[0, terms, rest:] = columns[:, -1:]  # and not 0, of which an infinite weight makes NaN

        rt.workers.map(copy, cut(K, t.tile_terms))

    def cached_parts(self) -> Iterator[tuple[int, FloatArray]]:
        """Yield the first token's number, and as many blocks (blocks, K, tokens) as a cache holds."""
        size = max(self._cached // (self._whole.shape[1] * self._width), 1)
        for at in cut(len(self._whole), size):
            yield at.start * self._width, self._whole[at]
        if self._rest.size:
            yield len(self._whole) * self._width, self._rest


def rows_per_tile(t: Tuning, tokens: int, terms: int) -> int:
    """Return how many rows a tile has, for so many tokens and terms at a time."""
    return min(max(t.unpacked_ops // (tokens * terms) // 4 * 4, 4), t.tile_rows)


def multiply_rows(t: Tuning, weight: FloatArray, rows: int, blocks: FloatArray, out: FloatArray, terms: int) -> None:
    """Multiply (outputs, K) by blocks (B, K, n) into (outputs, up to B · n), so many rows and terms at a time."""
    (outputs, K), (B, _, n) = weight.shape, blocks.shape
    end, given = outputs - outputs % rows, out
    if given.shape[1] < B * n:
        out = np.empty((outputs, B * n), given.dtype)
    with np.errstate():  # which restores the buffer
        np.setbufsize(t.matmul_buffer)
        for at, size in ((slice(0, end), rows), (slice(end, outputs), outputs - end)):
            if at.start < at.stop:
                into = out[at].reshape(-1, size, B, n).swapaxes(1, 2)
                _multiply_tiles(t, weight[at].reshape(-1, 1, size, K), blocks, into, terms)
    if out is not given:
        given[...] = out[:, : given.shape[1]]


def _multiply_tiles(t: Tuning, tiles: FloatArray, blocks: FloatArray, out: FloatArray, terms: int) -> None:
    """Multiply (P, 1, rows, K) by (B, K, n) into (P, B, rows, n), all terms of a tile before the next tile."""
    (P, _, rows, K), (B, _, n) = tiles.shape, blocks.shape
    if terms == K:
        np.matmul(tiles, blocks, out=out)
        return
    parts = K // terms
    whole = parts * terms
    stacked = tiles[..., :whole].reshape(P, 1, rows, parts, terms).transpose(0, 3, 1, 2, 4)
    factors = blocks.swapaxes(1, 2)[..., :whole].reshape(B, n, parts, terms).transpose(2, 0, 3, 1)  # in any layout
    for at in cut(P, max(t.summed_products // (parts * B * rows * n), 1)):
        products = np.matmul(stacked[at], factors)
        if parts > t.float32_parts:
            out[at] = products.sum(axis=1, dtype=np.float64)  # into `out` NumPy 2.4 would round in between
        else:
            products.sum(axis=1, out=out[at])
        if whole < K:
            out[at] += tiles[at, ..., whole:] @ blocks[:, whole:]


def multiply_few(x: FloatArray, rows: FloatArray, size: int, out: FloatArray) -> None:
    """Write x (…, n, K) times the rows (…, S, K) into `out` (…, n, S), `size` rows at a time."""
    for at, tile in _stretches(rows.shape[-2], size, rows.shape[-2]):
        columns = _split_rows(tile, rows[..., at, :]).swapaxes(-1, -2)
        np.matmul(x[..., None, :, :], columns, out=_split_columns(tile, out[..., at]))


def sum_few(t: Tuning, weights: FloatArray, rows: FloatArray, size: int) -> FloatArray:
    """Multiply weights (…, n, S) by rows (…, S, e), `size` rows at a time: a sum of short sums is more exact."""

    def product(at: slice, tile: int) -> FloatArray:
        products = np.matmul(_split_columns(tile, weights[..., at]), _split_rows(tile, rows[..., at, :]))
        total: FloatArray = products.sum(axis=-3)
        return total

    return functools.reduce(np.add, (product(*part) for part in _stretches(rows.shape[-2], size, t.float32_parts)))


@functools.lru_cache
def _stretches(length: int, size: int, tiles: int) -> tuple[tuple[slice, int], ...]:
    """Cut range(length) into stretches of at most so many whole tiles, and the rest as one; each with its tile size.

    NumPy loops over the tiles of a stretch.
    """
    whole = length // size * size
    stretches = tuple((at, size) for at in cut(whole, size * tiles))
    return (*stretches, (slice(whole, length), length - whole)) if whole < length else stretches


def _split_rows(size: int, x: FloatArray) -> FloatArray:
    """(…, S, d) to (…, tiles, size, d)."""
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])


def _split_columns(size: int, x: FloatArray) -> FloatArray:
    """(…, n, S) to (…, tiles, n, size)."""
    return x.reshape(*x.shape[:-1], -1, size).swapaxes(-2, -3)


def key_blocks(rt: Runtime, k: FloatArray) -> FloatArray:
    """Copy keys (B, K, S, d) into blocks (B, K, blocks, d, block_width); the end of the last one stays undefined."""
    (B, K, S, d), width = k.shape, rt.tuning.block_width
    whole, rest = divmod(S, width)
    blocks = rt.empty((B, K, -(-S // width), d, width), k.dtype)

    def copy(at: tuple[int, int]) -> None:
        keys, into = k[at], blocks[at]
        into[:whole] = keys[: whole * width].reshape(whole, width, d).swapaxes(1, 2)
        into[whole:, :, :rest] = keys[whole * width :].T

    rt.workers.map(copy, list(np.ndindex(B, K)))
    return blocks


def dense_values(rt: Runtime, v: FloatArray) -> FloatArray:
    """Return values (B, K, S, e) with the features of a key side by side; a copy where they are not."""
    if v.strides[-1] == v.itemsize:
        return v
    rows = rt.empty(v.shape, v.dtype)

    def copy(at: tuple[int, int]) -> None:
        rows[at] = v[at]

    rt.workers.map(copy, list(np.ndindex(v.shape[:2])))
    return rows


def multiply_keys(t: Tuning, q: FloatArray, blocks: FloatArray, out: FloatArray) -> None:
    """Multiply (…, n, d) by `key_blocks` (…, blocks, d, width) of the first keys into `out` (…, n, keys)."""
    (*_, n, d), width = q.shape, blocks.shape[-1]
    whole, rest = divmod(out.shape[-1], width)
    end = whole * width
    with np.errstate():  # which restores the buffer
        np.setbufsize(t.matmul_buffer)
        for at in cut(n, max(t.unpacked_ops // (d * width), 1)):
            tile, into = q[..., at, :], out[..., at, :]
            in_blocks = into[..., :end].reshape(*into.shape[:-1], whole, width).swapaxes(-3, -2)
            np.matmul(tile[..., None, :, :], blocks[..., :whole, :, :], out=in_blocks)
            if rest:
                np.matmul(tile, blocks[..., whole, :, :rest], out=into[..., end:])


def multiply_values(t: Tuning, weights: FloatArray, v: FloatArray) -> FloatArray:
    """Multiply (…, R, S) by values (…, S, e), e a multiple of `block_width`.

    All R rows meet `value_terms` keys at a time: their values stay in a core's cache, however many keys there are.
    """
    (*heads, R, S), e, width = weights.shape, v.shape[-1], t.block_width
    product = np.empty((*heads, R, e), weights.dtype)
    terms, end = min(max(S // 2, 1), t.value_terms), R - R % t.tile_rows  # two parts at least, as for tokens
    parts, axis = S // terms, len(heads)
    whole = parts * terms
    values = v.reshape(*heads, S, e // width, 1, width)
    factors = np.moveaxis(values[..., :whole, :, :, :].reshape(*heads, parts, terms, -1, 1, width), -4, -2)
    left = np.moveaxis(values[..., whole:, :, :, :], -4, -2)
    with np.errstate():  # which restores the buffer
        np.setbufsize(t.matmul_buffer)
        for at, rows in ((slice(0, end), t.tile_rows), (slice(end, R), R - end)):
            if at.start == at.stop:
                continue
            tiles = weights[..., at, :].reshape(*heads, -1, rows, S)
            stacked = np.moveaxis(tiles[..., :whole].reshape(*tiles.shape[:-1], parts, terms), -2, axis)
            # (…, parts, blocks, tiles, rows, width), in this order and not in that in which they lie
            products = np.matmul(np.expand_dims(stacked, axis + 1), factors, order="C")
            total = products.sum(axis=axis, dtype=np.float64 if parts > t.float32_parts else None)
            if whole < S:
                total += np.expand_dims(tiles[..., whole:], axis) @ left
            product[..., at, :].reshape(*tiles.shape[:-1], -1, width)[...] = np.moveaxis(total, axis, -2)
    return product
