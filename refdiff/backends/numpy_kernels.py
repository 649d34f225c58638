"""Fast twins for NumPy: the name and signature of a layer, the same result, less time and memory.

A kernel returns `NotImplemented` for what it does not serve, errors included; the layer then answers, or raises.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

SCORES = 2**21
"""How many scores of one map are held at a time: 8 MB in float32."""

ROWS = 128
"""The most queries in a block: more would compute too much of the triangle that causality hides."""


def linear(x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> Any:
    """Put the weight first, W Xᵀ: OpenBLAS is up to twice as fast so, and one token is a matrix-vector product.

    The result is a transposed view; elementwise steps keep that layout, so that the next product gets it for free.
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1] or x.size == 0:
        return NotImplemented
    if bias is not None and bias.shape != weight.shape[:1]:
        return NotImplemented
    flat = x.reshape(-1, x.shape[-1])
    y = (weight @ flat[0])[None] if len(flat) == 1 else (weight @ flat.T).T
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[0])


def rms_norm(x: FloatArray, weight: FloatArray | None, eps: float) -> Any:
    """Sum squares without holding them, and scale once."""
    if not eps >= 0 or (weight is not None and weight.shape != x.shape[-1:]):
        return NotImplemented
    scale = np.vecdot(x, x)[..., None]
    scale /= x.shape[-1]
    scale += eps
    np.sqrt(scale, out=scale)
    y = x / scale
    if weight is not None:
        y *= weight
    return y


def activation(x: FloatArray, name: str) -> Any:
    """Compute silu, x / (1 + e^−x), in one temporary array."""
    if name not in ("silu", "swish"):
        return NotImplemented
    y = np.negative(x)
    with np.errstate(over="ignore"):  # e^−x = ∞ gives the right limit, 0
        np.exp(y, out=y)
    y += 1
    return np.divide(x, y, out=y)


def diff_attention(
    q1: FloatArray,
    k1: FloatArray,
    q2: FloatArray,
    k2: FloatArray,
    v: FloatArray,
    lambda_: Any,
    mask: NDArray[np.bool_] | None = None,
    bias: FloatArray | None = None,
    *,
    causal: bool = True,
) -> Any:
    """Go through the queries in blocks, each over the keys that it may see, and multiply by V once.

    With P = exp(S − max S) and row sums s, (P₁/s₁ − λ P₂/s₂) V = ((P₁ − λ (s₁/s₂) P₂) V) / s₁. Only the scores of a
    block are held, so that memory grows with T and not with T².
    """
    if not _fits(q1, k1, q2, k2, v):
        return NotImplemented
    B, H, T, _ = q1.shape
    K, S, e = v.shape[1:]
    if causal and S < T:
        return NotImplemented
    lambdas = np.asarray(lambda_, dtype=q1.dtype)
    if not _covers(lambdas, (B, H, T, 1)) or (mask is not None and mask.dtype != np.bool_):
        return NotImplemented
    if any(x is not None and not _covers(x, (B, _mask_heads(x, H), T, S)) for x in (mask, bias)):
        return NotImplemented
    lambdas = np.broadcast_to(lambdas, (B, H, T, 1))
    masks, biases = _by_map(mask, H), _by_map(bias, H)
    out = np.empty((B, H, T, e), q1.dtype)
    rows = min(max(SCORES // (B * H * S), 1), ROWS)
    for start in range(0, T, rows):
        block = slice(start, min(start + rows, T))
        keys = S - T + block.stop if causal else S
        triangle = np.triu(np.ones((block.stop - start,) * 2, dtype=np.bool_), 1) if causal else None
        p1, s1 = _map(q1[:, :, block], k1[:, :, :keys], masks[0], biases[0], block, triangle)
        p2, s2 = _map(q2[:, :, block], k2[:, :, :keys], masks[1], biases[1], block, triangle)
        p2 *= lambdas[:, :, block] * (s1 / s2)
        p1 -= p2
        t = block.stop - block.start
        product = p1.reshape(B, K, H // K * t, keys) @ v[:, :, :keys]
        np.divide(product.reshape(B, H, t, e), s1, out=out[:, :, block])
    return out


def _fits(q1: FloatArray, k1: FloatArray, q2: FloatArray, k2: FloatArray, v: FloatArray) -> bool:
    return (
        q1.ndim == k1.ndim == v.ndim == 4
        and q1.shape == q2.shape
        and k1.shape == k2.shape
        and v.shape[:3] == k1.shape[:3]
        and q1.shape[0] == k1.shape[0]
        and q1.shape[3] == k1.shape[3]
        and k1.shape[1] > 0
        and q1.shape[1] % k1.shape[1] == 0
        and q1.size > 0
        and k1.size > 0
    )


def _mask_heads(x: NDArray[Any], heads: int) -> int:
    """How many heads a mask or bias may have: those of one map, or those of both."""
    return 2 * heads if x.ndim > 2 and x.shape[-3] == 2 * heads else heads


def _covers(x: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Whether `x` broadcasts to `shape` without enlarging it."""
    axes = (1,) * (len(shape) - x.ndim) + x.shape
    return len(axes) == len(shape) and all(m in (1, n) for m, n in zip(axes, shape, strict=True))


def _by_map(x: NDArray[Any] | None, heads: int) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Give each map its part of a mask or bias, with all four axes."""
    if x is None:
        return None, None
    x = x[(None,) * (4 - x.ndim)]
    return (x[:, :heads], x[:, heads:]) if x.shape[1] == 2 * heads else (x, x)


def _map(
    q: FloatArray,
    k: FloatArray,
    mask: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    block: slice,
    triangle: NDArray[np.bool_] | None,
) -> tuple[FloatArray, FloatArray]:
    """Compute P (B, H, t, S) and its row sums (B, H, t, 1); a row that sees nothing has P = 0 and sum 1."""
    B, H, t, d = q.shape
    K, S = k.shape[1:3]
    grouped, root = q.reshape(B, K, H // K * t, d), math.sqrt(d)
    exact = math.frexp(root)[0] == 0.5  # a power of two: dividing q, which is smaller, rounds nothing
    p: FloatArray = ((grouped / root if exact else grouped) @ k.swapaxes(2, 3)).reshape(B, H, t, S)
    if not exact:
        p /= root
    if bias is not None:
        p += _part(bias, block, S)
    if mask is not None:
        np.copyto(p, -np.inf, where=~_part(mask, block, S))
    if triangle is not None:
        np.copyto(p[..., S - t :], -np.inf, where=triangle)
    top = p.max(axis=-1, keepdims=True)
    if mask is not None:
        top[top == -np.inf] = 0
    p -= top
    np.exp(p, out=p)
    sums = p.sum(axis=-1, keepdims=True)
    if mask is not None:
        sums[sums == 0] = 1
    return p, sums


def _part(x: NDArray[Any], block: slice, keys: int) -> NDArray[Any]:
    """Cut a mask or bias to the queries of a block and the keys that they reach."""
    x = x[:, :, block] if x.shape[2] > 1 else x
    return x[..., :keys] if x.shape[3] > 1 else x
