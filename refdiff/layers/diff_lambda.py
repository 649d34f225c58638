"""λ_init by depth, λ of v1 from four learned vectors, λ of v2 from every token."""

from __future__ import annotations

import math
from typing import Any

from refdiff import layers
from refdiff.arrays import Array, namespace


def lambda_init(layer: int) -> float:
    """Return the value that λ starts from in a layer, and that the output is scaled by.

    Equation:
        λ_init = 0.8 − 0.6 exp(−0.3 l)  (Ye et al. 2024, section 2.1, where layers count from 1: l − 1 there is l here)

    Used as:
        `lambda_init(0)` is 0.2 in the first layer; it approaches 0.8 with depth

    Shapes:
        layer, from 0 -> a float

    Raises:
        ValueError: `layer` is negative.
    """
    if layer < 0:
        raise ValueError(f"lambda_init: layer: got {layer}, expected 0 or more")
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


def diff_lambda(lambda_q1: Array, lambda_k1: Array, lambda_q2: Array, lambda_k2: Array, lambda_init: float) -> Array:
    """Compute the weight λ of the second attention map from four learned vectors.

    Equation:
        λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + λ_init  (Ye et al. 2024, eq. 2)

    Used as:
        `diff_lambda(p["lambda_q1"], p["lambda_k1"], p["lambda_q2"], p["lambda_k2"], lambda_init(layer))`

    Shapes:
        four times (d,), a float -> a scalar array ()

    Raises:
        ValueError: vectors of different shapes.
    """
    _check_vectors("diff_lambda", lambda_q1, lambda_k1, lambda_q2, lambda_k2)
    xp = namespace(lambda_q1, lambda_k1, lambda_q2, lambda_k2)
    return xp.exp(xp.sum(lambda_q1 * lambda_k1)) - xp.exp(xp.sum(lambda_q2 * lambda_k2)) + lambda_init


def _check_vectors(name: str, *vectors: Array) -> None:
    """Raise ValueError unless all are (d,)."""
    shapes = [tuple(v.shape) for v in vectors]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise ValueError(f"{name}: the four vectors: got shapes {shapes}, expected (d,) of each")


def diff_lambda_vjp(
    g: Array, lambda_q1: Array, lambda_k1: Array, lambda_q2: Array, lambda_k2: Array, lambda_init: float
) -> tuple[Array, Array, Array, Array]:
    """Pull a gradient back through `diff_lambda`.

    Equation:
        with e_i = exp(λ_qi · λ_ki): ∂L/∂λ_q1 = g e_1 λ_k1, ∂L/∂λ_k1 = g e_1 λ_q1, and −g e_2 … for the second pair

    Shapes:
        g (), four times (d,), a float -> four times (d,)
    """
    _check_vectors("diff_lambda_vjp", lambda_q1, lambda_k1, lambda_q2, lambda_k2)
    if g.ndim != 0:
        raise ValueError(f"diff_lambda_vjp: g: got shape {tuple(g.shape)}, expected (), like the result")
    xp = namespace(g, lambda_q1, lambda_k1, lambda_q2, lambda_k2)
    e1 = g * xp.exp(xp.sum(lambda_q1 * lambda_k1))
    e2 = -g * xp.exp(xp.sum(lambda_q2 * lambda_k2))
    return e1 * lambda_k1, e1 * lambda_q1, e2 * lambda_k2, e2 * lambda_q2


def diff_lambda_v2(x: Array, weight: Array, *, ops: Any = layers) -> Array:
    """Compute the weight λ of the second attention map for each token and head.

    Equation:
        λ = σ(x W_λᵀ)  (Ye et al. 2026, "Differential Transformer V2": a number in (0, 1), where v1's λ may be any)

    Used as:
        `diff_lambda_v2(x, **p["lambda_proj"])`, `x` being what `q_proj` gets; W_λ = 0 gives λ = 1/2

    Shapes:
        x (B, T, D), weight (h, D) -> (B, h, T, 1)

    Raises:
        ValueError: shapes that do not fit.
    """
    _check_tokens("diff_lambda_v2", x)
    lambda_ = ops.activation(ops.linear(x, weight), "sigmoid")
    return namespace(lambda_).permute_dims(lambda_, (0, 2, 1))[..., None]


def _check_tokens(name: str, x: Array) -> None:
    """Raise ValueError unless `x` is (B, T, D)."""
    if x.ndim != 3:
        raise ValueError(f"{name}: x: got shape {tuple(x.shape)}, expected (B, T, D)")


def diff_lambda_v2_vjp(g: Array, x: Array, weight: Array, *, ops: Any = layers) -> tuple[Array, Array]:
    """Pull a gradient back through `diff_lambda_v2`.

    Equation:
        ∂L/∂z = g λ (1 − λ) for z = x W_λᵀ; then as in `linear_vjp`

    Shapes:
        g (B, h, T, 1), x (B, T, D), weight (h, D) -> (B, T, D), (h, D)
    """
    xp = namespace(g, x, weight)
    _check_tokens("diff_lambda_v2_vjp", x)
    logits = ops.linear(x, weight)
    B, T, h = logits.shape
    if tuple(g.shape) != (B, h, T, 1):
        raise ValueError(f"diff_lambda_v2_vjp: g: got shape {tuple(g.shape)}, expected {(B, h, T, 1)}, like the result")
    (dlogits,) = ops.activation_vjp(xp.permute_dims(g[..., 0], (0, 2, 1)), logits, "sigmoid")
    dx, dweight, _ = ops.linear_vjp(dlogits, x, weight)
    return dx, dweight
