"""`diff_attention` and its derivative as a kernel computes them: rounded where a recipe stores, in a valid order.

Kernels that go by tiles compute the weights again from the scores and the stored log-sum-exp: exp(z − lse), where an
lse of 400 in float32 is off by 2⁻¹⁶, and so is every weight of its row. Eager ways store the gradient of the weights:
it is rounded to the recipe's `qk`, as the scores are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from refdiff.layers import causal_mask
from refdiff.layers.diff_attention import split_maps, sum_to
from refdiff.oracle.rounding import FORMATS
from refdiff.oracle.rounding.evaluation_order import USUAL, Arithmetic

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
    ops: Any = None,
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
    masks, biases = split_maps(mask, H), split_maps(bias, H)
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
        if not first and how.recipe.qk != "float32" and how.query_factor != 1:
            q, scale = q / np.float32(how.query_factor), scale * np.float32(how.query_factor)
        z = how.product(q * scale, across) if first else how.round_at(how.product(q, across), "qk") * scale
        z = how.round_at(z, "qk")
        if bias is not None:
            z = how.round_at(z + how.array(bias), "qk")
    if how.recipe.qk == "float16":
        seen = np.isfinite(np.zeros(z.shape) if bias is None else np.broadcast_to(bias, z.shape))
        seen = seen if see is None else seen & see
        # where all that a row sees has left the range, kernels that add a mask give it what it must not see
        lost = np.any(seen, axis=-1, keepdims=True) & np.all(np.isneginf(z) | ~seen, axis=-1, keepdims=True)
        z = np.where(lost, np.float32(math.nan), z)
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


def rounded_attention_vjp(
    how: Arithmetic,
    g: Numpy,
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
    ops: Any = None,
) -> tuple[Numpy, ...]:
    """Compute what `layers.diff_attention_vjp` does, with its shapes; numbers of narrow types, held in float64."""
    (B, H, _, _), K = q1.shape, k1.shape[1]
    keys = [np.repeat(how.array(k), H // K, axis=1) for k in (k1, k2)]
    values = np.repeat(how.array(v), H // K, axis=1)
    maps = list(scores_of_maps(how, (q1, keys[0], q2, keys[1]), mask, bias, causal))
    sides = ((how.array(q1), keys[0]), (how.array(q2), keys[1]))
    w1, w2 = (_weights_again(how, z, *side) for z, side in zip(maps, sides, strict=True))
    g, lambda_ = how.round_at(how.array(g), "o"), how.array(lambda_)
    with np.errstate(over="ignore", invalid="ignore"):
        g2 = how.round_at(-lambda_ * g, "o")
        dp = how.round_at(how.product(g, np.swapaxes(values, -1, -2)), "qk")
        if how.order.subtract == "weights":
            dv = how.product(_turned(how.round_at(difference(how, w1, w2, lambda_, "p"), "p")), g)
            w1, w2 = how.round_if_eager(w1, "p"), how.round_if_eager(w2, "p")
            inner1, inner2 = (how.inner(w, dp, "qk") for w in (w1, w2))
            ds1 = w1 * (dp - inner1)
            ds2 = w2 * (how.round_if_eager(-lambda_ * dp, "qk") + lambda_ * inner2)
            dlambda = -inner2
        else:
            dv1, dv2 = (how.product(_turned(how.round_at(w, "p")), x) for w, x in ((w1, g), (w2, g2)))
            dv = how.round_if_eager(dv1, "storage") + how.round_if_eager(dv2, "storage")
            o1, o2 = (how.round_at(attend(how, z, values), "o") for z in maps)
            dp2 = how.round_at(how.product(g2, np.swapaxes(values, -1, -2)), "qk")
            ds1 = w1 * (dp - how.inner(g, o1, "o"))
            ds2 = w2 * (dp2 - how.inner(g2, o2, "o"))
            dlambda = -how.inner(g, o2, "o")
        dq1, dk1 = _through_scores(how, ds1, how.array(q1), keys[0])
        dq2, dk2 = _through_scores(how, ds2, how.array(q2), keys[1])
        shared = [
            x.reshape(B, K, H // K, *x.shape[2:]).sum(axis=2, dtype=how.dtype)
            for x in (dk1, dk2, how.round_if_eager(dv, "storage"))
        ]
    results = (dq1, shared[0], dq2, shared[1], shared[2], sum_to(dlambda, tuple(lambda_.shape)))
    return tuple(np.asarray(x, dtype=np.float64) for x in results)


def _weights_again(how: Arithmetic, z: Numpy, q: Numpy, k: Numpy) -> Numpy:
    """The weights from scores and the log-sum-exp of the forward pass.

    That may have rounded the scores otherwise: summed in another order, scaled in one step with a sum or in two.
    """
    order = how.order
    if order.subtract == "weights" or not (order.tile or order.noise):
        return weights(how, z)
    largest = top(z)
    total = np.sum(how.exp(z, largest), axis=-1, keepdims=True)
    lse = how.single_step(largest + np.log(np.where(total == 0, how.dtype(1), total)))
    if order.noise:
        highest = np.take_along_axis(k, np.argmax(z, axis=-1)[..., None], axis=2)
        sums = np.cumsum(q * highest, axis=-1) / math.sqrt(q.shape[-1])  # which grow as the terms where q is along k
        of_sum = USUAL * FORMATS[how.recipe.accumulate].u * np.sqrt(np.sum(sums**2, axis=-1))
        of_scale = USUAL * FORMATS["float32"].u * np.abs(largest)
        lse = how.perturb_forward(lse, np.hypot(of_sum[..., None], of_scale))
    return how.exp(z, how.array(lse))


def _turned(x: Numpy) -> Numpy:
    return np.swapaxes(x, -1, -2)


def _through_scores(how: Arithmetic, ds: Numpy, q: Numpy, k: Numpy) -> tuple[Numpy, Numpy]:
    """From the gradient of scores to those of queries and keys."""
    scale = np.float32(1 / math.sqrt(q.shape[-1]))
    ds = how.round_at(ds, "p")
    if how.order.stored:
        ds = how.round_at(ds * scale, "p")
        scale = np.float32(1)
    return how.round_if_eager(how.product(ds, k) * scale, "storage"), how.round_if_eager(
        how.product(_turned(ds), q) * scale, "storage"
    )
