"""−log softmax(z)[target]."""

from __future__ import annotations

import math

from refdiff.arrays import Array, device, namespace


def cross_entropy(logits: Array, targets: Array, *, ignore_index: int = -100) -> Array:
    """Average the negative log-probability of the targets.

    Equation:
        L = mean over targets ≠ ignore_index of (log Σ_v exp z_v − z_target); NaN where there is no such target

    Used as:
        `cross_entropy(logits[:, :-1], labels[:, 1:])` for a causal language model

    Shapes:
        logits (..., V), targets (...) integers -> a scalar array ()

    Raises:
        IndexError: a target is neither in 0 to V − 1 nor `ignore_index`.
    """
    if tuple(logits.shape[:-1]) != tuple(targets.shape):
        raise ValueError(
            f"cross_entropy: logits, targets: got shapes {tuple(logits.shape)} and {tuple(targets.shape)}, expected "
            "(..., V) and (...)"
        )
    xp = namespace(logits, targets)
    V = logits.shape[-1]
    z, t = xp.reshape(logits, (-1, V)), xp.reshape(targets, (-1,))
    keep = t != ignore_index
    t = xp.where(keep, t, 0)
    if t.shape[0]:
        low, high = int(xp.min(t)), int(xp.max(t))
        if low < 0 or high >= V:
            raise IndexError(
                f"cross_entropy: targets: got {low if low < 0 else high}, expected 0 to {V - 1}, or {ignore_index} to "
                "leave a token out"
            )
    z = z - xp.max(z, axis=-1, keepdims=True)
    picked = xp.take_along_axis(z, t[:, None], axis=-1)[:, 0]
    losses = xp.where(keep, xp.log(xp.sum(xp.exp(z), axis=-1)) - picked, 0.0)
    count = xp.sum(xp.astype(keep, losses.dtype))
    return xp.where(count > 0, xp.sum(losses) / xp.where(count > 0, count, 1.0), math.nan)


def cross_entropy_vjp(g: Array, logits: Array, targets: Array, *, ignore_index: int = -100) -> tuple[Array, None]:
    """Pull a gradient back through `cross_entropy`.

    Equation:
        ∂L/∂z = g (softmax(z) − onehot(target)) / n in the n rows that count, 0 in the others

    Shapes:
        g (), logits (..., V), targets (...) -> (..., V), None
    """
    if g.ndim != 0:
        raise ValueError(f"cross_entropy_vjp: g: got shape {tuple(g.shape)}, expected (), like the result")
    xp = namespace(g, logits, targets)
    z = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    probabilities = z / xp.sum(z, axis=-1, keepdims=True)
    classes = xp.arange(logits.shape[-1], dtype=targets.dtype, device=device(targets))
    one_hot = xp.astype(targets[..., None] == classes, logits.dtype)
    keep = xp.astype(targets != ignore_index, logits.dtype)
    share = keep * (g / xp.clip(xp.sum(keep), 1.0, None))
    return (probabilities - one_hot) * share[..., None], None
