"""`diff_attention` as a kernel computes it: rounded where a recipe stores, in one of the legal orders."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from refdiff.layers import causal_mask
from refdiff.layers.diff_attention import per_map
from refdiff.oracle.rounding.evaluation_order import Arithmetic

Numpy = np.ndarray[Any, Any]
ZERO = np.float32(0)


def rounded_attention(
    how: Arithmetic,
    q1: Numpy,
    k1: Numpy,
    q2: Numpy,
    k2: Numpy,
    v: Numpy,
    lambda_: Numpy,
    mask: Numpy | None = None,
    bias: Numpy | None = None,
    *,
    causal: bool = True,
) -> Numpy:
    """Compute what `layers.diff_attention` does, with its shapes; numbers of narrow types, held in float64."""
    n = q1.shape[1] // k1.shape[1]
    k1, k2, v = (np.repeat(how.array(x), n, axis=1) for x in (k1, k2, v))
    maps = list(scores_of_maps(how, (q1, k1, q2, k2), mask, bias, causal))
    lambda_ = how.array(lambda_)
    if how.order.subtract == "weights":
        w1, w2 = (weights(how, z) for z in maps)
        heads = how.product(how.round_at(difference(how, w1, w2, lambda_, "p"), "p"), v)
    else:
        o1, o2 = (how.round_at(attend(how, z, v), "o") for z in maps)
        heads = difference(how, o1, o2, lambda_, "o")
    return how.round_at(heads, "o").astype(np.float64)


def scores_of_maps(
    how: Arithmetic, heads: tuple[Numpy, ...], mask: Numpy | None, bias: Numpy | None, causal: bool
) -> Iterator[Numpy]:
    """The scores of map 1, then of map 2, −∞ where nothing is seen; as many heads of k as of q."""
    q1, k1, q2, k2 = heads
    H, T, S = q1.shape[1], q1.shape[2], k1.shape[2]
    masks, biases = per_map(mask, H), per_map(bias, H)
    for q, k, see, more in ((q1, k1, masks[0], biases[0]), (q2, k2, masks[1], biases[1])):
        if causal and T > 1:
            triangle = causal_mask(T, S, xp=np, device=None)
            see = triangle if see is None else see & triangle
        yield scores(how, how.array(q), k, see, more)


def scores(how: Arithmetic, q: Numpy, k: Numpy, see: Numpy | None, bias: Numpy | None) -> Numpy:
    """Q Kᵀ / √d + bias in float32, rounded where scores are stored."""
    scale = np.float32(1 / math.sqrt(q.shape[-1]))
    across = np.swapaxes(k, -1, -2)
    with np.errstate(over="ignore", invalid="ignore"):
        first = how.order.scale_first
        z = how.product(q * scale, across) if first else how.round_at(how.product(q, across), "qk") * scale
        z = how.round_at(z, "qk")
        if bias is not None:
            z = how.round_at(z + how.array(bias), "qk")
    return z if see is None else np.where(see, z, np.float32(-math.inf))


def top(z: Numpy) -> Numpy:
    """The largest score of each row; 0 where it sees nothing."""
    largest = np.max(z, axis=-1, keepdims=True)
    return np.where(np.isneginf(largest), ZERO, largest)


def weights(how: Arithmetic, z: Numpy) -> Numpy:
    """The softmax of each row in float32; zeros where it sees nothing."""
    raw = how.exp(z, top(z))
    total = how.single_step(np.sum(raw, axis=-1, keepdims=True))
    return raw / np.where(total == 0, np.float32(1), total)


def attend(how: Arithmetic, z: Numpy, v: Numpy) -> Numpy:
    """The softmax of each row, times V: weights at once, or tile by tile with the sum divided out in the end."""
    tile = how.order.tile
    if tile is None:
        return how.product(how.round_at(weights(how, z), "p"), v)
    starts = list(range(0, z.shape[-1], tile))
    if how.order.reverse:
        starts.reverse()
    largest = np.full((*z.shape[:-1], 1), -math.inf, dtype=how.dtype)
    total = np.zeros_like(largest)
    out = np.zeros((*z.shape[:-1], v.shape[-1]), dtype=how.dtype)
    for start in starts:
        part = z[..., start : start + tile]
        new = np.maximum(largest, np.max(part, axis=-1, keepdims=True))
        safe = np.where(np.isneginf(new), ZERO, new)
        raw = how.exp(part, safe)
        fade = how.exp(largest, safe)
        total = total * fade + np.sum(raw, axis=-1, keepdims=True)
        with np.errstate(invalid="ignore", over="ignore"):
            out = out * fade + how.product(how.round_at(raw, "p"), v[..., start : start + tile, :])
        largest = new
    return out / np.where(total == 0, np.float32(1), total)


def difference(how: Arithmetic, first: Numpy, second: Numpy, lambda_: Numpy, site: str) -> Numpy:
    """first − λ second; op by op, the maps and the product are stored too."""
    with np.errstate(over="ignore", invalid="ignore"):
        return how.round_if_eager(first, site) - how.round_if_eager(lambda_ * how.round_if_eager(second, site), site)
