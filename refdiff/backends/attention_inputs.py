"""Checks of an attention kernel's arguments: do queries, keys, values, masks and biases fit each other?"""

from __future__ import annotations

from refdiff.arrays import Array
from refdiff.layers.softmax import broadcasts_to


def fits(q1: Array, k1: Array, q2: Array, k2: Array, v: Array) -> bool:
    """Return whether queries, keys and values are (B, H, T, d), (B, K, S, d), (B, K, S, e), with H a multiple of K."""
    return bool(
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


def masks_fit(masks: tuple[Array | None, ...], maps: int, shape: tuple[int, int, int, int]) -> bool:
    """Return whether masks and biases broadcast to a map (B, H, T, S), or to both of two maps (B, 2 H, T, S)."""
    B, H, T, S = shape
    shapes = [shape, (B, 2 * H, T, S)][:maps]
    return all(x is None or any(broadcasts_to(x, one) for one in shapes) for x in masks)


def split_by_map(x: Array | None, heads: int) -> tuple[Array | None, Array | None]:
    """Return each map's part of a mask or bias, with four axes."""
    if x is None:
        return None, None
    x = x[(None,) * (4 - x.ndim)]
    return (x[:, :heads], x[:, heads:]) if x.shape[1] == 2 * heads else (x, x)
