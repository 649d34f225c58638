"""Scores to weights; a row that may attend to nothing is all zeros."""

from __future__ import annotations

import math

from refdiff.arrays import Array, namespace


def softmax(scores: Array, mask: Array | None = None) -> Array:
    """Convert each row of scores to weights that sum to one over the keys that the row may attend to.

    Equation:
        a_s = m_s exp(z_s) / Σ_u m_u exp(z_u), and a = 0 where Σ m = 0.
        The largest visible score is subtracted first, which changes nothing but the range of the numbers.
        The mask alone decides whether a row may attend to any key. Scores of masked keys never matter, not even NaN.

    Used as:
        `softmax(scores, mask)`

    Shapes:
        scores (..., S), mask boolean, broadcastable to scores, or None -> (..., S)

    Raises:
        ValueError: `mask` is not boolean or does not broadcast to `scores`.
    """
    xp = namespace(scores, mask)
    if mask is not None:
        check_mask("softmax", mask, tuple(scores.shape))
    if scores.shape[-1] == 0:
        return scores  # of no keys there are no weights
    if mask is None:
        weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
        return weights / xp.sum(weights, axis=-1, keepdims=True)
    scores = xp.where(mask, scores, -math.inf)
    top = xp.max(scores, axis=-1, keepdims=True)
    some = xp.any(xp.broadcast_to(mask, scores.shape), axis=-1, keepdims=True)
    weights = xp.where(mask, xp.exp(scores - xp.where(some, top, 0.0)), 0.0)
    return weights / xp.where(some, xp.sum(weights, axis=-1, keepdims=True), 1.0)


def check_mask(name: str, mask: Array, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `mask` is boolean and broadcasts to `shape`."""
    xp = namespace(mask)
    if mask.dtype != xp.bool:
        raise ValueError(f'{name}: mask: got dtype {mask.dtype}, expected boolean (True means "may see")')
    check_broadcast(name, "mask", mask, shape)


def broadcasts_to(x: Array, shape: tuple[int, ...]) -> bool:
    """Return whether `x` broadcasts to `shape` without enlarging it."""
    axes = (1,) * (len(shape) - x.ndim) + tuple(x.shape)
    return len(axes) == len(shape) and all(m in (1, n) for m, n in zip(axes, shape, strict=True))


def check_broadcast(name: str, what: str, x: Array, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `x` broadcasts to `shape`, and not `shape` to `x`."""
    if not hasattr(x, "ndim"):
        raise ValueError(f"{name}: {what}: got {x!r}, expected an array; one number is an array of shape ()")
    if not broadcasts_to(x, shape):
        raise ValueError(f"{name}: {what}: got shape {tuple(x.shape)}, expected one that broadcasts to {shape}")


def softmax_vjp(
    g: Array, scores: Array | None, mask: Array | None = None, *, saved: Array | None = None
) -> tuple[Array, None]:
    """Pull a gradient back through `softmax`.

    Equation:
        ∂L/∂z = a ⊙ (g − Σ_s g_s a_s), from ∂a_s/∂z_u = a_s (δ_su − a_u); zero where the mask hides

    Shapes:
        g and scores (..., S), mask boolean, broadcastable to scores, or None -> (..., S), None. saved (..., S) is
        `softmax(scores, mask)`, if the forward pass kept it: scores and mask are then not read.

    Raises:
        ValueError: `g` is not of the shape of `scores`, or neither `scores` nor `saved` is given.
    """
    weights = softmax(scores, mask) if saved is None and scores is not None else saved
    if weights is None:
        raise ValueError("softmax_vjp: scores, saved: got None twice, expected the scores or softmax(scores, mask)")
    if g.shape != weights.shape:
        raise ValueError(f"softmax_vjp: g: got shape {tuple(g.shape)}, expected {tuple(weights.shape)}, like scores")
    return weights * (g - namespace(g, weights).sum(g * weights, axis=-1, keepdims=True)), None
