"""The learning rate of each step, and gradient clipping."""

from __future__ import annotations

import math

import numpy as np

from refdiff.arrays import Array, namespace

SCHEDULES = ("cosine", "constant")


def learning_rate(
    step: int, *, peak: float, steps: int, warmup: int, schedule: str = "cosine", final: float = 0.1
) -> float:
    """Return the learning rate of a step: a linear warm-up, then a cosine decay or a constant.

    Equation:
        η = peak · (step + 1) / warmup in the first steps; then peak · (f + (1 − f) (1 + cos π x) / 2), x from 0 to 1
        over the others, or peak

    Args:
        step: from 0.
        final: f, the share of the peak at the end of the cosine.

    Raises:
        ValueError: an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: got {schedule!r}, expected one of {', '.join(SCHEDULES)}")
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    x = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * x)) / 2)


def global_norm(grads: dict[str, Array]) -> float:
    """Return √ Σ g² over all gradients; on a device this synchronizes once."""
    squares = [namespace(g).sum(g * g) for g in grads.values()]
    if squares and not isinstance(squares[0], np.generic | np.ndarray):
        xp = namespace(*squares)
        return math.sqrt(float(xp.sum(xp.astype(xp.stack(squares), xp.float64))))
    return math.sqrt(sum(map(float, squares)))


def clip(grads: dict[str, Array], limit: float) -> tuple[dict[str, Array], float]:
    """Scale all gradients by one factor if their global norm exceeds `limit`; return them and the norm before.

    Equation:
        g ← g · min(1, limit / (|g| + 10⁻⁶)), as in torch
    """
    norm = global_norm(grads)
    factor = limit / (norm + 1e-6)
    return (grads if factor >= 1 else {name: g * factor for name, g in grads.items()}), norm
