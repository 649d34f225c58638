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
        ValueError: the shapes do not fit.
        IndexError: a target is neither in 0 to V − 1 nor `ignore_index`.
    """
    xp = namespace(logits)
    keep, t = _classes("cross_entropy", logits, targets, ignore_index)
    keep, t, z = xp.reshape(keep, (-1,)), xp.reshape(t, (-1,)), xp.reshape(logits, (-1, logits.shape[-1]))
    z = z - xp.max(z, axis=-1, keepdims=True)
    picked = xp.take_along_axis(z, t[:, None], axis=-1)[:, 0]
    losses = xp.where(keep, xp.log(xp.sum(xp.exp(z), axis=-1)) - picked, 0.0)
    count = xp.sum(xp.astype(keep, losses.dtype))
    return xp.where(count > 0, xp.sum(losses) / xp.where(count > 0, count, 1.0), math.nan)


def _classes(name: str, logits: Array, targets: Array, ignore_index: int) -> tuple[Array, Array]:
    """Return which targets count, and their classes, 0 where a target does not count; both (...).

    Raises:
        ValueError: the shapes do not fit.
        IndexError: a target is neither a class nor `ignore_index`.
    """
    if tuple(logits.shape[:-1]) != tuple(targets.shape):
        raise ValueError(
            f"{name}: logits, targets: got shapes {tuple(logits.shape)} and {tuple(targets.shape)}, expected (..., V) "
            "and (...)"
        )
    xp, V = namespace(logits, targets), logits.shape[-1]
    keep = targets != ignore_index
    classes = xp.where(keep, targets, 0)
    if 0 not in targets.shape:
        numbers = xp.astype(classes, xp.int64)  # torch has no least number of uint64
        low, high = int(xp.min(numbers)), int(xp.max(numbers))
        if low < 0 or high >= V:
            raise IndexError(
                f"{name}: targets: got {low if low < 0 else high}, expected 0 to {V - 1}, or {ignore_index} to leave a "
                "token out"
            )
    return keep, classes


def cross_entropy_vjp(g: Array, logits: Array, targets: Array, *, ignore_index: int = -100) -> tuple[Array, None]:
    """Pull a gradient back through `cross_entropy`.

    Equation:
        ∂L/∂z = g (softmax(z) − onehot(target)) / n in the n rows that count, 0 in the others

    Shapes:
        g (), logits (..., V), targets (...) -> (..., V), None

    Raises:
        ValueError: the shapes do not fit.
        IndexError: a target is neither in 0 to V − 1 nor `ignore_index`.
    """
    xp = namespace(g, logits)
    counts, _ = _classes("cross_entropy_vjp", logits, targets, ignore_index)
    if g.ndim != 0:
        raise ValueError(f"cross_entropy_vjp: g: got shape {tuple(g.shape)}, expected (), like the result")
    z = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    probabilities = z / xp.sum(z, axis=-1, keepdims=True)
    classes = xp.arange(logits.shape[-1], dtype=targets.dtype, device=device(targets))
    one_hot = xp.astype(targets[..., None] == classes, logits.dtype)
    keep = xp.astype(counts, logits.dtype)
    share = keep * (g / xp.clip(xp.sum(keep), 1.0, None))
    return (probabilities - one_hot) * share[..., None], None
