"""Calls for the kernels of the backward pass and the loss, and what the tests of both sets of kernels share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Case = tuple[tuple[Any, ...], dict[str, Any]]


def leaves(result: Any) -> list[Any]:
    """List the arrays of a result: itself, or those in its tuple and dicts; a None stays."""
    if isinstance(result, tuple):
        return [leaf for one in result for leaf in leaves(one)]
    return list(result.values()) if isinstance(result, dict) else [result]


def same_signature(kernel: Callable[..., Any], layer: Callable[..., Any], *injected: str) -> bool:
    """Whether a kernel takes what its layer takes, but for keywords with what it computes itself."""
    ours, theirs = (inspect.signature(f).parameters.values() for f in (kernel, layer))
    return [(p.name, p.kind, p.default) for p in ours] == [
        (p.name, p.kind, p.default) for p in theirs if p.kind is not p.KEYWORD_ONLY or p.name not in injected
    ]


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=shape)


def streams(B: int, H: int, K: int, T: int, S: int, d: int, e: int, scale: float = 1.0) -> tuple[Any, ...]:
    """Queries, keys, values and a λ for attention over two maps."""
    g = np.random.default_rng(T + S)
    q1, q2 = scale * g.normal(size=(2, B, H, T, d))
    k1, k2 = g.normal(size=(2, B, K, S, d))
    return q1, k1, q2, k2, g.normal(size=(B, K, S, e)), np.float64(0.7)


def linear_vjp_cases() -> Iterator[Case]:
    for rows in ((1, 1), (2, 7), (1, 131), ()):
        for bias in (None, normal(2, 13)):
            yield (normal(3, *rows, 13), normal(0, *rows, 11), normal(1, 13, 11), bias), {}
    yield (normal(3, 13, 5).T, normal(0, 11, 5).T, normal(1, 11, 13).T), {}  # feature-major
    yield (normal(3, 0, 13), normal(0, 0, 11), normal(1, 13, 11)), {}
    yield (normal(3, 130, 257), normal(0, 130, 128), normal(1, 257, 128, scale=0.02), normal(2, 257)), {}


def rms_norm_vjp_cases() -> Iterator[Case]:
    for scale in (1.0, 1e-4, 1e3):
        for weight in (None, normal(1, 11)):
            yield (normal(2, 2, 3, 11), normal(0, 2, 3, 11, scale=scale), weight, 1e-5), {}
    yield (normal(2, 2, 11, 3).swapaxes(1, 2), normal(0, 2, 11, 3).swapaxes(1, 2), normal(1, 11), 0.0), {}
    yield (normal(2, 131, 1031).T, normal(0, 131, 1031).T, normal(1, 131), 1e-5), {}
    yield (normal(2, 0, 11), normal(0, 0, 11), normal(1, 11), 1e-5), {}


def swiglu_vjp_cases() -> Iterator[Case]:
    for rows, inner in (((1, 1), 13), ((2, 7), 13), ((1, 5), 2**17)):
        weights = [{"weight": normal(i, *shape, scale=0.3)} for i, shape in ((1, (inner, 11)), (2, (inner, 11)))]
        down = {"weight": normal(3, 11, inner, scale=0.3), "bias": normal(5, 11)}
        weights[1]["bias"] = normal(6, inner)
        for act in ("silu", "gelu"):
            yield (normal(4, *rows, 11), normal(0, *rows, 11), *weights, down), {"act": act}
        bare = [{"weight": p["weight"]} for p in weights]
        both = [{**p, "bias": normal(7 + i, inner)} for i, p in enumerate(bare)]
        for projections in (bare, both):
            yield (normal(4, *rows, 11), normal(0, *rows, 11), *projections, down), {}


SIZES = (
    (2, 3, 3, 5, 5, 7, 14),
    (1, 6, 2, 1, 11, 5, 3),
    (2, 4, 2, 7, 13, 16, 6),
    (1, 1, 1, 131, 257, 5, 4),
    (1, 2, 1, 300, 300, 3, 2),
)


def diff_attention_vjp_cases() -> Iterator[Case]:
    for seed, (B, H, K, T, S, d, e) in enumerate(SIZES):
        g = np.random.default_rng(seed)
        q1, q2 = g.normal(size=(2, B, H, T, d))
        k1, k2 = g.normal(size=(2, B, K, S, d))
        v, up = g.normal(size=(B, K, S, e)), g.normal(size=(B, H, T, e))
        padding = np.ones((B, 1, 1, S), bool)
        padding[0, ..., : S // 2] = False
        some = g.random((B, 2 * H, T, S)) < 0.6
        bias = g.normal(size=(1, 2 * H, T, S))
        streams = (up, q1, k1, q2, k2, v)
        for lam in (np.float64(0.7), np.asarray(-1.3), g.normal(size=(B, H, T, 1)), g.normal(size=(H, 1, 1))):
            yield (*streams, lam), {}
        yield (*streams, np.float64(0.7)), {"causal": False}
        yield (*streams, np.float64(0.7), padding), {}
        yield (*streams, np.float64(0.7), some, bias), {"causal": False}
        yield (*streams, np.float64(0.7), some[0, 0], bias[0, :H]), {}
        yield (up, 5 * q1, 5 * k1, 5 * q2, 5 * k2, v, np.float64(1.0)), {}


def plain_cases(*, vjp: bool) -> Iterator[Case]:
    for seed, (B, H, K, T, S, d, e) in enumerate(SIZES):
        g = np.random.default_rng(seed)
        q, k, v = g.normal(size=(B, H, T, d)), g.normal(size=(B, K, S, d)), g.normal(size=(B, K, S, e))
        streams = (g.normal(size=(B, T, H * e)), q, k, v) if vjp else (q, k, v)
        padding = np.ones((B, 1, 1, S), bool)
        padding[0, ..., : S // 2] = False
        yield streams, {}
        yield streams, {"causal": False}
        yield (*streams, padding), {}
        yield (*streams, g.random((B, H, T, S)) < 0.6, g.normal(size=(H, T, S))), {"causal": False}


def embedding_vjp_cases() -> Iterator[Case]:
    for rows in ((2, 7), (131,), ()):
        yield (normal(1, *rows, 5), np.random.default_rng(0).integers(0, 11, size=rows), normal(2, 11, 5)), {}
    yield (normal(1, 0, 5), np.zeros(0, np.int64), normal(2, 11, 5)), {}


def cross_entropy_cases(*, vjp: bool) -> Iterator[Case]:
    for rows, classes in (((2, 7), 11), ((1,), 3), ((3, 700), 257), ((4,), 1)):
        g = np.random.default_rng(classes)
        targets = np.where(g.random(rows) < 0.3, -100, g.integers(0, classes, size=rows))
        targets.reshape(-1)[0] = 0
        head = (np.float64(0.7),) if vjp else ()
        for scale in (1.0, 30.0):
            yield (*head, scale * g.normal(size=(*rows, classes)), targets), {}
        turned = g.normal(size=(classes, *rows)).transpose(*range(1, len(rows) + 1), 0)
        yield (*head, turned, np.where(targets == -100, classes, targets)), {"ignore_index": classes}


VJP_CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "linear_vjp": linear_vjp_cases, "rms_norm_vjp": rms_norm_vjp_cases, "swiglu_vjp": swiglu_vjp_cases,
    "diff_attention_vjp": diff_attention_vjp_cases, "plain_heads": lambda: plain_cases(vjp=False),
    "plain_heads_vjp": lambda: plain_cases(vjp=True), "embedding_vjp": embedding_vjp_cases,
    "cross_entropy": lambda: cross_entropy_cases(vjp=False),
    "cross_entropy_vjp": lambda: cross_entropy_cases(vjp=True),
}  # fmt: skip
