"""Calls for the kernels of CUDA: see test_kernels.py. Every way through a kernel has one, in sizes that differ."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.backends.vjp_cases import Case, normal
from tests.backends.vjp_cases import seen as masks

SIZES = (  # B, H, K, T, S
    (2, 3, 3, 5, 5),
    (1, 6, 2, 1, 11),
    (2, 4, 2, 7, 13),
    (1, 6, 2, 13, 67),
    (1, 4, 1, 1, 1031),
    (1, 3, 1, 50, 57),  # rows enough for the tallest tile
)


def head_sizes(slow: bool) -> tuple[tuple[int, int], ...]:
    return ((8, 16), (32, 64), (64, 128), (80, 80), (128, 256), (256, 512)) if slow else ((5, 6),)


def linear_cases(slow: bool) -> Iterator[Case]:
    for rows in ((1, 1), (1, 2), (2, 7), (3,), ()):
        for bias in (None, normal(2, 13)):
            yield (normal(0, *rows, 11), normal(1, 13, 11), bias), {}
    yield (normal(0, 2, 5, 11, scale=1e-4)[:, ::2], normal(1, 11, 13).T), {}
    yield (normal(0, 2, 1096), normal(1, 19, 1096, scale=0.02), normal(2, 19)), {}


def embedding_cases(slow: bool) -> Iterator[Case]:
    yield (np.array([[3, 0, 12], [7, 7, 1]]), normal(1, 13, 11)), {}


def rms_norm_cases(slow: bool) -> Iterator[Case]:
    for scale in (1.0, 1e-3, 1e2):
        for weight in (None, normal(1, 11)):
            yield (normal(0, 2, 3, 11, scale=scale), weight, 1e-5), {}
    yield (normal(0, 2, 11, 3).swapaxes(1, 2), normal(1, 11), 0.0), {}
    yield (normal(0, 2, 5, 3, 11).swapaxes(1, 2), normal(1, 11), 1e-6), {}
    yield (normal(0, 3, 4133), normal(1, 4133), 1e-5), {}


def rms_norm_vjp_cases(slow: bool) -> Iterator[Case]:
    for weight in (None, normal(2, 11)):
        yield (normal(0, 2, 3, 11), normal(1, 2, 3, 11, scale=1e-3), weight, 1e-5), {}
    for rows, size in ((1, 11), (7, 37), (131, 67)):
        yield (normal(0, rows, size), normal(1, rows, size), normal(2, size), 1e-5), {}
    yield (normal(0, 2, 5, 3, 11).swapaxes(1, 2), normal(1, 2, 5, 3, 11).swapaxes(1, 2), None, 1e-6), {}
    yield (normal(0, 3, 4133), normal(1, 3, 4133), normal(2, 4133), 0.0), {}


def rope_cases(slow: bool) -> Iterator[Case]:
    """Of the largest heads a thread rotates more than one pair."""
    for (batch, n, size), interleaved in itertools.product(((1, 4, 8), (2, 3, 10), (2, 131, 265)), (False, True)):
        angles = np.random.default_rng(1).uniform(-7, 7, size=(batch, 1, 5, n))
        x = normal(0, 2, 5, 3, size).swapaxes(1, 2)
        yield (x, np.cos(angles), np.sin(angles)), {"interleaved": interleaved}
        yield (np.ascontiguousarray(x), np.cos(angles), np.sin(angles)), {"interleaved": interleaved}


def swiglu_cases(slow: bool) -> Iterator[Case]:
    for rows, inner in (((1, 1), 13), ((2, 7), 13), ((2, 9), 13), ((1, 3), 1031)):
        weights = [{"weight": normal(i, *shape, scale=0.3)} for i, shape in ((1, (inner, 11)), (2, (inner, 11)))]
        yield (normal(0, *rows, 11), *weights, {"weight": normal(3, 11, inner, scale=0.3)}), {}
    yield (normal(0, 1, 3, 11, scale=100.0), *weights, {"weight": normal(3, 11, inner)}), {"act": "swish"}


def diff_lambda_cases(slow: bool) -> Iterator[Case]:
    for size in (5, 32, 131):
        for init in (0.2, 0.8):
            yield (*(normal(i, size, scale=0.2) for i in range(4)), init), {}


def heads(seed: int, d: int, e: int) -> tuple[Any, ...]:
    """Queries and keys of two maps, as views of one array, and values."""
    B, H, K, T, S = SIZES[seed]
    q = normal(seed, B, T, 2 * H, d).swapaxes(1, 2)  # as the projections lie
    k = normal(seed + 100, B, 2 * K, S + 3, d)[:, :, :S]  # as a cache with room lies
    v = normal(seed + 200, B, K, S, e)
    return q[:, :H], k[:, :K], q[:, H:], k[:, K:], v


def seen(seed: int, maps: int) -> Iterator[dict[str, Any]]:
    """Masks and biases of every shape."""
    B, H, _, T, S = SIZES[seed]
    return masks(seed, B, H, T, S, maps)


def diff_attention_cases(slow: bool) -> Iterator[Case]:
    for d, e in head_sizes(slow):
        for seed, (B, H, _, T, _) in enumerate(SIZES):
            q1, k1, q2, k2, v = heads(seed, d, e)
            for kwargs in seen(seed, 2):
                yield (q1, k1, q2, k2, v, np.asarray(-1.3)), kwargs
            yield (q1, k1, q2, k2, v, np.float64(0.7)), {}
            yield (q1, k1, q2, k2, v, normal(seed, B, H, T, 1)), {}
            yield (30 * q1, k1, 30 * q2, k1, v, np.float64(1.0)), {}
            yield (q1[:, ::-1], k1, q2.copy(), k2, v, np.float64(1.0)), {}


def diff_heads_hf_cases(slow: bool) -> Iterator[Case]:
    for d, e in head_sizes(slow):
        for seed in range(len(SIZES)):
            q1, k1, q2, k2, v = heads(seed, d, e)
            q, k = (np.concatenate(pair, axis=1) for pair in ((q1, q2), (k1, k2)))
            for kwargs in seen(seed, 1):
                yield (q, k, v, np.asarray(0.6), 0.3, 1e-5), kwargs


def diff_attention_vjp_cases(slow: bool) -> Iterator[Case]:
    for d, e in head_sizes(slow):
        for seed, (B, H, _, T, _) in enumerate(SIZES):
            q1, k1, q2, k2, v = heads(seed, d, e)
            g = normal(seed + 300, B, T, H, e).swapaxes(1, 2)
            for kwargs in seen(seed, 2):
                yield (g, q1, k1, q2, k2, v, np.asarray(-1.3)), kwargs
            yield (g, q1, k1, q2, k2, v, normal(seed, B, H, T, 1)), {}
            yield (np.ascontiguousarray(g), q1, k1, q2, k1, v, normal(seed, B, H, 1, 1)), {}


def plain_heads_cases(slow: bool) -> Iterator[Case]:
    for d, e in head_sizes(slow):
        for seed in range(len(SIZES)):
            q, k, _, _, v = heads(seed, d, e)
            for kwargs in seen(seed, 1):
                yield (q, k, v), kwargs


def plain_heads_vjp_cases(slow: bool) -> Iterator[Case]:
    for d, e in head_sizes(slow):
        for seed, (B, H, _, T, _) in enumerate(SIZES):
            q, k, _, _, v = heads(seed, d, e)
            for kwargs in seen(seed, 1):
                yield (normal(seed + 300, B, T, H * e), q, k, v), kwargs


CASES: dict[str, Callable[[bool], Iterator[Case]]] = {
    name.removesuffix("_cases"): function for name, function in list(globals().items()) if name.endswith("_cases")
}
