"""What kernels of attention can take: queries, keys, values, λ, mask and bias that fit each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.numpy_attention_scores import Map
from refdiff.backends.numpy_row_kernels import FloatArray, alike


def pair_of(
    q1: FloatArray,
    k1: FloatArray,
    q2: FloatArray,
    k2: FloatArray,
    v: FloatArray,
    lambda_: Any,
    mask: NDArray[np.bool_] | None = None,
    bias: FloatArray | None = None,
    *,
    causal: bool,
) -> tuple[list[Map], FloatArray, FloatArray] | None:
    """Give both maps, v, and λ as (B, H, T, 1), or None for what the kernels do not serve."""
    if not fits(q1, k1, q2, k2, v) or not isinstance(lambda_, np.ndarray | np.generic):
        return None
    B, H, T, _ = q1.shape
    S = v.shape[2]
    lambdas = np.asarray(lambda_)
    if not alike(q1, k1, q2, k2, v, lambdas, bias):
        return None
    if (causal and S < T) or not covers(lambdas, (B, H, T, 1)) or (mask is not None and mask.dtype != np.bool_):
        return None
    if any(x is not None and not covers(x, (B, mask_heads(x, H), T, S)) for x in (mask, bias)) or hides(bias):
        return None
    masks, biases = by_map(mask, H), by_map(bias, H)
    maps = [(q1, k1, masks[0], biases[0]), (q2, k2, masks[1], biases[1])]
    return maps, v, np.broadcast_to(lambdas, (B, H, T, 1))


def fits(q1: FloatArray, k1: FloatArray, q2: FloatArray, k2: FloatArray, v: FloatArray) -> bool:
    """Whether queries, keys and values are (B, H, T, d), (B, K, S, d), (B, K, S, e), with H a multiple of K."""
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
        and v.size > 0
    )


def hides(bias: FloatArray | None) -> bool:
    """Whether a bias has a −∞: a row of nothing else is NaN to the layer, and 0 here, where masks are such scores."""
    return bias is not None and bool(np.isneginf(bias).any())


def mask_heads(x: NDArray[Any], heads: int) -> int:
    """How many heads a mask or bias may have: those of one map, or those of both."""
    return 2 * heads if x.ndim > 2 and x.shape[-3] == 2 * heads else heads


def covers(x: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Whether `x` broadcasts to `shape` without enlarging it."""
    axes = (1,) * (len(shape) - x.ndim) + x.shape
    return len(axes) == len(shape) and all(m in (1, n) for m, n in zip(axes, shape, strict=True))


def by_map(x: NDArray[Any] | None, heads: int) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Give each map its part of a mask or bias, with all four axes."""
    if x is None:
        return None, None
    x = x[(None,) * (4 - x.ndim)]
    return (x[:, :heads], x[:, heads:]) if x.shape[1] == 2 * heads else (x, x)
