"""Bring an array of another implementation into the axes of its point: tokens before heads, or both maps in one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_HEADS = re.compile(r"(.*?)(scores|lse|probs|attn)(\[\d+\])?$")
_BY_HEADS = re.compile(r"(scores|lse|probs|attn)[12]?|diff|groupnorm|[qk]_rope|values|lambda_full|cos|sin")
"""Points of the axes (B, heads, tokens, …)."""


def has_heads(path: str) -> bool:
    """Whether a point has the axes (B, heads, tokens, …)."""
    return _BY_HEADS.fullmatch(path.partition("[")[0].rpartition(".")[2]) is not None


def arrange(array: NDArray[Any], path: str, reference: Mapping[str, NDArray[Any]]) -> tuple[Floats | None, str]:
    """Bring an array into the axes of its point: return it in float64, and what is unusual about its axes.

    If several orders fit its shape, the one nearest to the reference is taken. If none fits: None and the reason.
    """
    shape, wide = reference[path].shape, array.astype(np.float64)
    if path.rpartition(".")[2] in ("cos", "sin"):
        wide = _angles(wide, shape)
    found = _orders(wide, shape, has_heads(path))
    if not found:
        return None, f"has shape {array.shape}, expected {shape}{' or tokens before heads' if has_heads(path) else ''}"
    return min(found, key=lambda item: _distance(item[0], reference[path]))


def _orders(x: Floats, shape: tuple[int, ...], heads: bool) -> list[tuple[Floats, str]]:
    """Return the array in a shape, as it is and with tokens before heads, as far as its own shape allows.

    Adjacent axes may be merged or split, and axes of 1 may be absent.
    """
    if x.shape == shape:
        return [(x, "")]
    found = [(x.reshape(shape), "")] if _is_merge(shape, x.shape) else []
    if heads and len(shape) > 2:
        swapped = (shape[0], shape[2], shape[1], *shape[3:])
        if _is_merge(swapped, x.shape):
            found.append((x.reshape(swapped).swapaxes(1, 2), "has tokens before heads"))
    return found


def _is_merge(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether merging adjacent axes of one shape, and leaving out axes of 1, gives the other."""
    one, two = ({1, *np.cumprod(shape, dtype=np.int64).tolist()} for shape in (first, second))
    return math.prod(first) == math.prod(second) and (one >= two or two >= one)


def _angles(x: Floats, shape: tuple[int, ...]) -> Floats:
    """Return cos or sin of each angle once: of rotated pairs and of sequences with the same positions."""
    n = shape[-1]
    if x.shape[-1:] == (2 * n,):
        for half, other in ((x[..., :n], x[..., n:]), (x[..., 0::2], x[..., 1::2])):
            if np.array_equal(half, other, equal_nan=True):
                x = half
                break
    if x.ndim == 2 and shape[0] > 1 and x.shape == (shape[2], n):
        return np.broadcast_to(x, shape)
    same = shape[0] == 1 and x.ndim > 2 and np.array_equal(x, np.broadcast_to(x[:1], x.shape), equal_nan=True)
    return x[:1] if same else x


def _distance(x: Floats, y: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(np.where(np.isfinite(x), x, 0) - np.where(np.isfinite(y), y, 0))
    return float(difference.sum())


def separate_maps(
    points: Mapping[str, NDArray[Any]], reference: Mapping[str, NDArray[Any]], interleaved: bool
) -> dict[str, NDArray[Any]]:
    """Split arrays that have the heads of both maps (`scores`, `probs`, `attn`, `lse`) into one for each map."""
    found = dict(points)
    for path, array in points.items():
        match = _HEADS.match(path)
        if match is None or path in reference:
            continue
        first, second = (f"{match[1]}{match[2]}{number}{match[3] or ''}" for number in "12")
        if first in reference:
            del found[path]
            B, H, *rest = reference[first].shape
            orders = _orders(array.astype(np.float64), (B, 2 * H, *rest), heads=True)
            split = [(x[:, 0::2], x[:, 1::2]) if interleaved else (x[:, :H], x[:, H:]) for x, _ in orders]
            if split:
                found[first], found[second] = min(split, key=lambda maps: _distance(maps[0], reference[first]))
    return found
