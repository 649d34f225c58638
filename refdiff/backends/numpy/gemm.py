"""Products with weights, cut over the outputs in the way that suits the number of tokens, and their backward pass.

A product of many tokens, W Xᵀ, is returned as its transposed view: activations stay feature-major, and the next product
reads them as they lie. One of up to `Tuning.exact_tokens` tokens lies token by token, where tiles are not packed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.numpy.gemm_blocks import (
    AVX512_FLOATS,
    TokenBlocks,
    multiply_few,
    multiply_rows,
    rows_per_tile,
)
from refdiff.backends.numpy.half_weights import (
    EVEN_PLACES,
    ODD_PLACES,
    expand,
    expand_scaled,
    has_words,
    is_half,
    scaled_up,
)
from refdiff.backends.numpy.layout import FloatArray, cut, same_dtype
from refdiff.backends.numpy.runtime import Runtime

Part = Callable[[slice], None]
"""Computes some rows of a product W Xᵀ."""


class Plan(NamedTuple):
    """A product with a weight: `y` (N, outputs), what computes some outputs, and those that a thread takes at a time.

    A product without `cuts` is already computed: it was too small for threads, or the weight is not in C order.
    """

    y: FloatArray
    part: Part
    cuts: Sequence[slice]


def linear(rt: Runtime, x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> Any:
    """Compute x Wᵀ + b as W xᵀ, cut over the rows of W.

    A weight of 16 bits is expanded as it is used, see half_weights.py; the result then has the dtype of `x`.
    """
    results = linears(rt, x, {"weight": weight, "bias": bias})
    return results if results is NotImplemented else results[0]


def linears(rt: Runtime, x: FloatArray, *projections: Mapping[str, Any]) -> Any:
    """Multiply by several weights, with one barrier for all of them.

    Each result is that of `linear`, except that many tokens are copied into blocks for all weights together, where
    these have enough outputs: another order of the same sums.
    """
    plans = plan_products(rt, x, projections)
    if plans is None:
        return NotImplemented
    run_plans(rt, plans)
    for plan, p in zip(plans, projections, strict=True):
        if p.get("bias") is not None:
            np.add(plan.y, p["bias"], out=plan.y)
    return [plan.y.reshape(*x.shape[:-1], plan.y.shape[-1]) for plan in plans]


def linear_vjp(rt: Runtime, g: FloatArray, x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> Any:
    """Compute two products, each cut over the rows of its result; ∂L/∂x is feature-major, as what `linear` returns."""
    if not _fits(x, weight, bias) or not same_dtype(g, x, weight) or g.shape != (*x.shape[:-1], weight.shape[0]):
        return NotImplemented
    outputs, K = weight.shape
    rows, flat = g.reshape(-1, outputs), x.reshape(-1, K)
    dx = rt.empty((K, len(flat)), g.dtype)
    dw = rt.empty((outputs, K), g.dtype)
    _multiply(rt, weight.T, rows.T, dx)
    _multiply(rt, rows.T, flat, dw)
    return dx.T.reshape(x.shape), dw, None if bias is None else rows.sum(axis=0)


def plan_products(rt: Runtime, x: FloatArray, projections: Sequence[Mapping[str, Any]]) -> list[Plan] | None:
    """Plan the products of (…, K), as (N, K), with each weight, without biases; None where these do not fit."""
    if not all(_fits(x, **p) for p in projections):
        return None
    t, workers = rt.tuning, rt.workers
    flat, plans, blocks = x.reshape(-1, x.shape[-1]), [], None
    N, K = flat.shape
    outputs = sum(len(p["weight"]) for p in projections) if t.few_tokens < N else 0
    for p in projections:
        weight = p["weight"]
        large, half = weight.size * N >= t.parallel_ops, is_half(weight)
        if N == 1 and large and not half and workers.owns_cores and weight.flags.c_contiguous:
            y, part = _one_token(rt, flat, weight)
            cuts = _cached_cut(len(weight), max(t.read_weights // K, t.released_outputs))
        elif N > 1 and (weight.size * N <= t.unpacked_ops or not (half or weight.flags.c_contiguous)):
            y, part, cuts = multiply_whole(flat, weight), lambda at: None, []
        else:
            if outputs >= t.blocked_outputs and t.tile_terms <= K and rt.unpacks(weight.dtype):
                blocks = blocks or TokenBlocks(rt, flat)
                y, part = _token_blocks(rt, blocks, weight, N)
            else:
                y, part = _tokens(rt, flat, weight, large)
            # a half weight goes to the threads one expansion at a time, so that they end together
            step = max(t.expanded_weights // K // 4 * 4, 4 if t.few_tokens >= N else t.expanded_rows)
            cuts = cut(len(weight), step) if half else workers.cuts(len(weight), align=t.tile_rows)
            if not large:
                part(slice(0, len(weight)))
                cuts = []
        plans.append(Plan(y, part, cuts))
    return plans


def run_plans(rt: Runtime, plans: Sequence[Plan]) -> None:
    """Compute all products, the threads taking parts of whichever is next."""
    rt.workers.map(lambda item: item[0].part(item[1]), [(plan, at) for plan in plans for at in plan.cuts])


def multiply_whole(flat: FloatArray, weight: NDArray[Any]) -> FloatArray:
    """Multiply in one product, as the layer does, where tiles would be too small for BLAS to sum exactly."""
    if is_half(weight):
        expanded = np.empty(weight.shape, flat.dtype)
        expand(weight, expanded)
        weight = expanded
    product: FloatArray = np.ascontiguousarray(flat) @ weight.T
    return product


def _one_token(rt: Runtime, flat: FloatArray, weight: FloatArray) -> tuple[FloatArray, Part]:
    """Multiply by one token, row by row: each thread reads one stream of memory, where BLAS's threads read several.

    Python threads are at least as fast as BLAS's. Rows that are too long for the token to stay in the
    first cache beside them are taken by four.
    """
    t, (_, K) = rt.tuning, flat.shape
    y, x = np.empty((1, len(weight)), flat.dtype), np.ascontiguousarray(flat[0])

    def part(at: slice) -> None:
        rows, out = weight[at], y[0, at]
        if t.cached_vector >= K:
            np.vecdot(rows, x, out=out)
            return
        if t.dot_terms < K:
            np.sum([np.vecdot(rows[:, terms], x[terms]) for terms in cut(K, t.long_terms)], axis=0, out=out)
            return
        end = len(rows) // t.stacked_rows * t.stacked_rows
        np.matmul(rows[:end].reshape(-1, t.stacked_rows, K), x, out=out[:end].reshape(-1, t.stacked_rows))
        np.vecdot(rows[end:], x, out=out[end:])

    return y, part


def _tokens(rt: Runtime, flat: FloatArray, weight: FloatArray, large: bool) -> tuple[FloatArray, Part]:
    """Allocate flat Wᵀ, (N, K) to (N, outputs), and return it with what computes some of the outputs."""
    t, (N, K), outputs, half = rt.tuning, flat.shape, len(weight), is_half(weight)
    if N > 1 and large and not half and weight.flags.c_contiguous:
        if t.unpacked_tokens >= N:
            return _unpacked_tokens(rt, flat, weight)
        if t.vector_tokens >= N:
            return _token_vectors(rt, flat, weight)
    if t.unpacked_tokens < N < t.few_tokens and large and (missing := -N % t.token_multiple):
        flat = np.concatenate([flat, np.zeros((missing, K), flat.dtype)])
    y = rt.empty((outputs, len(flat)), flat.dtype if half else np.result_type(flat, weight))
    columns = flat.T if N > 1 else flat[0]
    out = y if N > 1 else y[:, 0]
    rows = t.packed_rows if 1 < N <= t.few_tokens else outputs

    def part(at: slice) -> None:
        for i in range(at.start, at.stop, rows):
            j = min(i + rows, at.stop)
            np.matmul(weight[i:j], columns, out=out[i:j])

    return y[:, :N].T, _half_part(rt, weight, columns, out) if half else part


def _unpacked_tokens(rt: Runtime, flat: FloatArray, weight: FloatArray) -> tuple[FloatArray, Part]:
    """Multiply by few tokens in tiles that BLAS does not pack; see `_tokens`.

    Up to `exact_tokens` tokens with up to `long_terms` terms go row by row. Others lie side by side; more than
    `exact_tokens` are a whole number of vectors wide, and their terms are added up in parts.
    """
    t, (N, K), outputs, dtype = rt.tuning, flat.shape, len(weight), np.result_type(flat, weight)
    if t.exact_tokens >= N and t.long_terms >= K:
        x, y, rows = np.ascontiguousarray(flat), rt.empty((N, outputs), dtype), rows_per_tile(t, N, K)
        return y, lambda at: multiply_few(x, weight[at], rows, y[:, at])
    if t.exact_tokens >= N:
        columns, terms = np.ascontiguousarray(flat).T, t.long_terms
    else:
        columns, terms = np.zeros((K, -(-N // AVX512_FLOATS) * AVX512_FLOATS), flat.dtype), min(K, t.tile_terms)
        columns[:, :N] = flat.T
    rows = rows_per_tile(t, columns.shape[1], terms)
    y = rt.empty((outputs, columns.shape[1]), dtype)

    def part(at: slice) -> None:
        multiply_rows(t, weight[at], rows, columns[None], y[at], terms)

    return y[:, :N].T, part


def _token_vectors(rt: Runtime, flat: FloatArray, weight: FloatArray) -> tuple[FloatArray, Part]:
    """Multiply by few tokens, each tile of the weight by all of them while the cache holds it; see `_tokens`.

    NumPy loops over tiles and tokens, as stacked matrices, so that threads do not wait for the interpreter.
    """
    (N, K), outputs = flat.shape, len(weight)
    rows = max(rt.tuning.vector_weights // K, 4)
    y = rt.empty((N, outputs), np.result_type(flat, weight))
    flat = np.ascontiguousarray(flat)

    def part(at: slice) -> None:
        start, stop = at.start, at.stop
        end = stop - (stop - start) % rows
        stacked = weight[start:end].reshape(-1, 1, rows, K)
        products = np.matmul(stacked, flat[:, :, None])  # (tiles, N, rows, 1)
        y[:, start:end].reshape(N, -1, rows)[...] = products[..., 0].swapaxes(0, 1)
        for i in range(N if end < stop else 0):
            np.matmul(weight[end:stop], flat[i], out=y[i, end:stop])

    return y, part


def _token_blocks(rt: Runtime, blocks: TokenBlocks, weight: FloatArray, tokens: int) -> tuple[FloatArray, Part]:
    """Multiply by many tokens, block by block; see `_tokens` and gemm_blocks.py."""
    t = rt.tuning
    y = rt.empty((len(weight), tokens), weight.dtype)
    terms = min(weight.shape[1] // 2, t.tile_terms)  # two parts at least: one sum would be less exact than the layer
    rows = rows_per_tile(t, t.block_width, terms)

    def part(at: slice) -> None:
        for first, near in blocks.cached_parts():
            into = y[at, first : first + len(near) * near.shape[2]]
            multiply_rows(t, weight[at], rows, near, into, terms)

    return y.T, part


def _half_part(rt: Runtime, weight: NDArray[Any], columns: FloatArray, out: FloatArray) -> Part:
    """Return what writes some rows of a product with a weight of 16 bits into `out`."""
    few, K = columns.ndim == 1 or columns.shape[1] <= rt.tuning.few_tokens, weight.shape[1]
    if few and has_words(weight, out.dtype):
        return _word_part(rt, weight, columns, out)
    step: Callable[[NDArray[Any], FloatArray], None] = expand
    missing = None
    if weight.dtype.kind == "f" and out.dtype == np.float32 and rt.is_finite(weight):
        step = expand_scaled
        columns, missing = scaled_up(columns)

    def part(at: slice) -> None:
        rows, result = weight[at], out[at]
        tile = _tile(rt, len(rows), K, out.dtype)
        step(rows, tile)
        np.dot(tile, columns, out=result)
        if missing is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # as in a product
                result *= missing

    return part


def _word_part(rt: Runtime, weight: NDArray[Any], columns: FloatArray, out: FloatArray) -> Part:
    """The same for words of two bfloat16: the numbers at even places, then those at odd ones."""
    even, odd = (np.ascontiguousarray(columns[place]) for place in (EVEN_PLACES, ODD_PLACES))

    def part(at: slice) -> None:
        rows, result = weight[at], out[at]
        tile = _tile(rt, len(rows), len(even), out.dtype)
        expand(rows, tile, EVEN_PLACES)
        np.dot(tile, even, out=result)
        expand(rows, tile, ODD_PLACES)
        result += np.dot(tile, odd)

    return part


def _tile(rt: Runtime, rows: int, columns: int, dtype: Any) -> FloatArray:
    """Return what a thread expands into, from memory that is kept from one pass to the next."""
    block = rt.tiles.empty((max(rows * columns, rt.tuning.expanded_weights),), dtype)
    return block[: rows * columns].reshape(rows, columns)


def _multiply(rt: Runtime, a: FloatArray, b: FloatArray, out: FloatArray) -> None:
    """Compute a b, cut over the rows of a or the columns of b, the longer: each thread packs what is not cut.

    A small result of many terms, such as a weight's gradient, is cut over the terms, into sums that are then added.
    """
    t = rt.tuning
    size, ops = max(out.shape), out.size * len(b)
    if len(b) >= t.deep_ratio * size and ops >= t.parallel_ops:
        _multiply_deep(rt, a, b, out)
        return
    by_columns = out.shape[1] > len(out)

    def part(start: int, stop: int) -> None:
        if by_columns:
            np.matmul(a, b[:, start:stop], out=out[:, start:stop])
        else:
            np.matmul(a[start:stop], b, out=out[start:stop])

    if ops < t.parallel_ops:
        part(0, size)
    else:
        rt.workers.split(size, part, align=16)


def _multiply_deep(rt: Runtime, a: FloatArray, b: FloatArray, out: FloatArray) -> None:
    parts = cut(len(b), rt.tuning.deep_terms)
    sums = [out, *(np.empty_like(out) for _ in parts[1:])]
    rt.workers.map(lambda n: np.matmul(a[:, parts[n]], b[parts[n]], out=sums[n]), range(len(parts)))
    for more in sums[1:]:  # in the same order and parts, however many threads there are
        out += more


_cached_cut = functools.cache(cut)


def _fits(x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> bool:
    """Return whether the kernels can multiply these."""
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1] or 0 in (x.size, weight.size):
        return False
    if not same_dtype(x, bias, None if is_half(weight) else weight):
        return False
    return bias is None or bias.shape == weight.shape[:1]
