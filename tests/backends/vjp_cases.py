"""Calls for the kernels of the backward pass and the loss, and what the tests of both backends share."""

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
    """Whether a kernel takes what its layer takes, but for keywords with what either computes itself."""
    ours, theirs = (
        [
            (p.name, p.kind, p.default)
            for p in inspect.signature(f).parameters.values()
            if p.kind is not p.KEYWORD_ONLY or p.name not in injected
        ]
        for f in (kernel, layer)
    )
    return ours == theirs


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=shape)


def streams(B: int, H: int, K: int, T: int, S: int, d: int, e: int, scale: float = 1.0) -> tuple[Any, ...]:
    """Queries, keys, values and a λ for attention over two maps."""
    g = np.random.default_rng(T + S)
    q1, q2 = scale * g.normal(size=(2, B, H, T, d))
    k1, k2 = g.normal(size=(2, B, K, S, d))
    return q1, k1, q2, k2, g.normal(size=(B, K, S, e)), np.float64(0.7)


def seen(seed: int, B: int, H: int, T: int, S: int, maps: int) -> Iterator[dict[str, Any]]:
    """Masks and biases of every shape."""
    g = np.random.default_rng(seed)
    padding = np.ones((B, 1, 1, S), bool)
    padding[0, ..., : S // 2] = False
    some = g.random((B, maps * H, T, S)) < 0.6
    some[0, 0, 0] = False  # a row that sees nothing
    bias = g.normal(size=(1, maps * H, T, S))
    yield {}
    yield {"causal": False}
    yield {"mask": padding}
    yield {"mask": some, "bias": bias, "causal": False}
    yield {"mask": some[:, :1]}
    yield {"mask": some[0, 0], "bias": bias[0, :H]}


def linear_vjp_cases() -> Iterator[Case]:
    for rows in ((1, 1), (2, 7), (1, 131), ()):
        for bias in (None, normal(2, 13)):
            yield (normal(3, *rows, 13), normal(0, *rows, 11), normal(1, 13, 11), bias), {}
    yield (normal(3, 13, 5).T, normal(0, 11, 5).T, normal(1, 11, 13).T), {}  # feature-major
    yield (normal(3, 0, 13), normal(0, 0, 11), normal(1, 13, 11)), {}
    yield (normal(3, 130, 257), normal(0, 130, 128), normal(1, 257, 128, scale=0.02), normal(2, 257)), {}
    yield (normal(3, 3500, 24), normal(0, 3500, 40), normal(1, 24, 40)), {}


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
        *maps, v, one = streams(B, H, K, T, S, d, e)
        g = normal(seed, B, H, T, e)
        for lam in (np.asarray(-1.3), normal(seed + 1, B, H, T, 1), normal(seed + 2, H, 1, 1)):
            yield (g, *maps, v, lam), {}
        for see in seen(seed, B, H, T, S, 2):
            yield (g, *maps, v, one), see
        yield (g, *(5 * x for x in maps), v, np.float64(1.0)), {}


def plain_cases(*, vjp: bool) -> Iterator[Case]:
    for seed, (B, H, K, T, S, d, e) in enumerate(SIZES):
        q, k, _, _, v, _ = streams(B, H, K, T, S, d, e)
        for see in seen(seed, B, H, T, S, 1):
            yield ((normal(seed, B, T, H * e), q, k, v) if vjp else (q, k, v)), see


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
