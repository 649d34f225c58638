"""Positions to cos and sin; queries and keys rotated in halves or interleaved pairs.

d = 6, pairs that rotate together:    halves        0 3   1 4   2 5      (transformers)
                                      interleaved   0 1   2 3   4 5      (unilm, the RoPE paper)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from refdiff.arrays import Array, device, namespace


def rope_cos_sin(positions: Array, frequencies: Sequence[float], scale: float, dtype: Any) -> tuple[Array, Array]:
    """Tabulate the cosine and sine of every position's angles.

    Equation:
        cos(p θ_i) · scale, sin(p θ_i) · scale  (Su et al. 2021, eq. 34)

    Used as:
        `rope_cos_sin(position_ids, *rope_frequencies(...), dtype)`, once per call of the model

    Shapes:
        positions (B, T) or (1, T) integers, n frequencies -> two of (B or 1, 1, T, n)

    Precision:
        angles in float64, rounded once to `dtype`: in float32 an angle of 100 000 radians would have an error of 0.004.

    Raises:
        ValueError: `positions` are not (B, T).
    """
    if positions.ndim != 2:
        raise ValueError(f"rope_cos_sin: positions: got shape {tuple(positions.shape)}, expected (B, T)")
    xp = namespace(positions)
    theta = xp.asarray(list(frequencies), dtype=xp.float64, device=device(positions))
    angles = xp.astype(positions, xp.float64)[:, None, :, None] * theta
    return xp.astype(xp.cos(angles) * scale, dtype), xp.astype(xp.sin(angles) * scale, dtype)


def rope(x: Array, cos: Array, sin: Array, *, interleaved: bool = False) -> Array:
    """Rotate each pair of dimensions by its position's angle.

    Equation:
        (a, b) -> (a cos − b sin, b cos + a sin)  (Su et al. 2021, eq. 34), (a, b) = (x_i, x_{i + n}) in halves or
        (x_{2i}, x_{2i + 1}) interleaved

    Used as:
        `rope(q, cos, sin)`, `rope(k, cos, sin)`, before the cache

    A head of one dimension: transformers pairs it with itself, as (x cos − x sin) twice. Its dot products are those of
    √2 x (cos − sin).

    Shapes:
        x (B, H, T, d), cos and sin (B or 1, 1, T, n) with 2n ≤ d -> (B, H, T, d); dimensions past 2n are kept.
        In halves d and n may also be 1

    Raises:
        ValueError: shapes that do not fit.
    """
    _check("rope", x, cos, sin, interleaved)
    xp, n = namespace(x, cos, sin), cos.shape[-1]
    if x.shape[-1] == 1 == n:
        return math.sqrt(2) * (cos - sin) * x
    rotary, rest = x[..., : 2 * n], x[..., 2 * n :]
    if interleaved:
        pairs = xp.reshape(rotary, (*x.shape[:3], n, 2))
        a, b = pairs[..., 0], pairs[..., 1]
        rotated = xp.reshape(xp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1), rotary.shape)
    else:
        a, b = rotary[..., :n], rotary[..., n:]
        rotated = xp.concat([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return rotated if 2 * n == x.shape[-1] else xp.concat([rotated, rest], axis=-1)


def _check(name: str, x: Array, cos: Array, sin: Array, interleaved: bool) -> None:
    """Raise ValueError where the shapes do not fit."""
    fits = x.ndim == cos.ndim == 4 and tuple(cos.shape[1:3]) == (1, x.shape[2]) and cos.shape[0] in (1, x.shape[0])
    paired = 2 * cos.shape[-1] <= x.shape[-1] or (x.shape[-1] == cos.shape[-1] == 1 and not interleaved)
    if not fits or cos.shape != sin.shape or not paired:
        raise ValueError(
            f"{name}: x, cos, sin: got shapes {tuple(x.shape)}, {tuple(cos.shape)}, {tuple(sin.shape)}, expected "
            "(B, H, T, d) and twice (B or 1, 1, T, n) with 2n ≤ d"
        )


def rope_vjp(g: Array, x: Array, cos: Array, sin: Array, *, interleaved: bool = False) -> tuple[Array, None, None]:
    """Pull a gradient back through `rope`.

    Equation:
        a rotation's transpose is the rotation by the opposite angle: ∂L/∂x = rope(g, cos, −sin); that of one number's
        product is the product

    Shapes:
        g and x (B, H, T, d), cos and sin (B or 1, 1, T, n) -> (B, H, T, d), None, None
    """
    namespace(g, x, cos, sin)
    _check("rope_vjp", x, cos, sin, interleaved)
    if g.shape != x.shape:
        raise ValueError(f"rope_vjp: g: got shape {tuple(g.shape)}, expected {tuple(x.shape)}, like x")
    return rope(g, cos, sin if x.shape[-1] == 1 else -sin, interleaved=interleaved), None, None
