"""`layers.diff_attention` and its derivative with the rounding of a kernel.

In the backward pass, tiled kernels recompute the weights from the scores and the stored log-sum-exp as exp(z − lse). In
float32 an lse of 400 has an error of 2⁻¹⁶, and so does every weight of its row. Eager kernels store the gradient of the
weights; it is rounded to the recipe's `qk`, like the scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from refdiff.layers import causal_mask
from refdiff.layers.diff_attention import split_maps, sum_to
from refdiff.oracle.rounding import U32
from refdiff.oracle.rounding.evaluation_order import RMS_ROUNDING, Arithmetic

Numpy = np.ndarray[Any, Any]
ZERO = np.float32(0)


def rounded_attention(
    arith: Arithmetic,
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
    """Compute `layers.diff_attention` with rounding; the results of narrow types are held in float64."""
    k1, k2, v = (arith.array(x) for x in (k1, k2, v))
    maps = list(scores_of_maps(arith, (q1, k1, q2, k2), mask, bias, causal))
    lambda_ = arith.array(lambda_)
    if arith.order.subtract == "weights":
        w1, w2 = (weights(arith, z) for z in maps)
        heads = arith.product(arith.round_at(difference(arith, w1, w2, lambda_, "p"), "p"), v)
    else:
        o1, o2 = (arith.round_at(attend(arith, z, v), "o") for z in maps)
        heads = difference(arith, o1, o2, lambda_, "o")
    return arith.round_at(heads, "o").astype(np.float64)


def scores_of_maps(
    arith: Arithmetic, heads: tuple[Numpy, ...], mask: Numpy | None, bias: Numpy | None, causal: bool
) -> Iterator[Numpy]:
    """Yield the scores of map 1 and of map 2, −∞ for masked keys."""
    q1, k1, q2, k2 = heads
    H, T, S = q1.shape[1], q1.shape[2], k1.shape[2]
    masks, biases = split_maps(mask, H), split_maps(bias, H)
    for q, k, visible, added in ((q1, k1, masks[0], biases[0]), (q2, k2, masks[1], biases[1])):
        if causal and T > 1:
            triangle = causal_mask(T, S, xp=np, device=None)
            visible = triangle if visible is None else visible & triangle
        yield scores(arith, arith.array(q), k, visible, added)


def scores(arith: Arithmetic, q: Numpy, k: Numpy, mask: Numpy | None, bias: Numpy | None) -> Numpy:
    """Return Q Kᵀ / √d + bias, rounded to the recipe's `qk`, with −∞ for masked keys."""
    scale = np.float32(1 / math.sqrt(q.shape[-1]))
    k_transposed = np.swapaxes(k, -1, -2)
    with np.errstate(over="ignore", invalid="ignore"):
        first = arith.order.scale_first
        if not first and arith.query_factor != 1:
            q, scale = q / np.float32(arith.query_factor), scale * np.float32(arith.query_factor)
        z = (
            arith.product(q * scale, k_transposed)
            if first
            else arith.round_at(arith.product(q, k_transposed), "qk") * scale
        )
        z = arith.round_at(z, "qk")
        if bias is not None:
            z = arith.round_at(z + arith.array(bias), "qk")
    if arith.recipe.qk == "float16":
        seen = np.isfinite(np.zeros(z.shape) if bias is None else np.broadcast_to(bias, z.shape))
        seen = seen if mask is None else seen & mask
        # if all visible scores of a row overflow to −∞, kernels that add a mask attend to masked keys instead
        lost = np.any(seen, axis=-1, keepdims=True) & np.all(np.isneginf(z) | ~seen, axis=-1, keepdims=True)
        z = np.where(lost, np.float32(math.nan), z)
    return z if mask is None else np.where(mask, z, np.float32(-math.inf))


def row_max(z: Numpy) -> Numpy:
    """Return the largest score of each row; 0 for a row of −∞."""
    largest = np.max(z, axis=-1, keepdims=True)
    return np.where(np.isneginf(largest), ZERO, largest)


def weights(arith: Arithmetic, z: Numpy) -> Numpy:
    """Return the softmax of each row, not rounded to the recipe's `p`; zeros for a row of −∞."""
    raw = arith.exp(z, row_max(z))
    total = arith.round_float32(np.sum(raw, axis=-1, keepdims=True))
    return raw / np.where(total == 0, np.float32(1), total)


def attend(arith: Arithmetic, z: Numpy, v: Numpy) -> Numpy:
    """Return softmax(z) V: of whole rows, or by an online softmax over tiles of keys."""
    tile = arith.order.tile
    if tile is None:
        return arith.product(arith.round_at(weights(arith, z), "p"), v)
    starts = list(range(0, z.shape[-1], tile))
    if arith.order.reverse:
        starts.reverse()
    largest = np.full((*z.shape[:-1], 1), -math.inf, dtype=arith.dtype)
    total = np.zeros_like(largest)
    out = np.zeros((*z.shape[:-1], v.shape[-1]), dtype=arith.dtype)
    for start in starts:
        part = z[..., start : start + tile]
        new = np.maximum(largest, np.max(part, axis=-1, keepdims=True))
        safe = np.where(np.isneginf(new), ZERO, new)
        raw = arith.exp(part, safe)
        rescale = arith.exp(largest, safe)
        total = total * rescale + np.sum(raw, axis=-1, keepdims=True)
        with np.errstate(invalid="ignore", over="ignore"):
            out = out * rescale + arith.product(arith.round_at(raw, "p"), v[..., start : start + tile, :])
        largest = new
    return out / np.where(total == 0, np.float32(1), total)


def difference(arith: Arithmetic, first: Numpy, second: Numpy, lambda_: Numpy, site: str) -> Numpy:
    """Return first − λ second; in eager orders both operands and the product are rounded too."""
    with np.errstate(over="ignore", invalid="ignore"):
        return arith.round_if_eager(first, site) - arith.round_if_eager(
            lambda_ * arith.round_if_eager(second, site), site
        )


def rounded_attention_vjp(
    arith: Arithmetic,
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
    """Compute `layers.diff_attention_vjp` with rounding; the results of narrow types are held in float64."""
    (B, H, _, _), K = q1.shape, k1.shape[1]
    *keys, values = (np.repeat(arith.array(x), H // K, axis=1) for x in (k1, k2, v))
    maps = list(scores_of_maps(arith, (q1, keys[0], q2, keys[1]), mask, bias, causal))
    sides = ((arith.array(q1), keys[0]), (arith.array(q2), keys[1]))
    capped = arith.capped_errors or (None, None)
    w1, w2 = (_recompute_weights(arith, z, *side, error) for z, side, error in zip(maps, sides, capped, strict=True))
    g, lambda_ = arith.round_at(arith.array(g), "o"), arith.array(lambda_)
    with np.errstate(over="ignore", invalid="ignore"):
        g2 = arith.round_at(-lambda_ * g, "o")
        dp = arith.round_at(arith.product(g, np.swapaxes(values, -1, -2)), "qk")
        if arith.order.subtract == "weights":
            dv = arith.product(_transpose(arith.round_at(difference(arith, w1, w2, lambda_, "p"), "p")), g)
            w1, w2 = arith.round_if_eager(w1, "p"), arith.round_if_eager(w2, "p")
            inner1, inner2 = (arith.inner(w, dp, "qk") for w in (w1, w2))
            ds1 = w1 * (dp - inner1)
            ds2 = w2 * (arith.round_if_eager(-lambda_ * dp, "qk") + lambda_ * inner2)
            dlambda, lambda_terms = -inner2, w2 * dp
        else:
            dv1, dv2 = (arith.product(_transpose(arith.round_at(w, "p")), x) for w, x in ((w1, g), (w2, g2)))
            dv = arith.round_if_eager(dv1, "storage") + arith.round_if_eager(dv2, "storage")
            o1, o2 = (arith.round_at(attend(arith, z, values), "o") for z in maps)
            dp2 = arith.round_at(arith.product(g2, np.swapaxes(values, -1, -2)), "qk")
            ds1 = w1 * (dp - arith.inner(g, o1, "o"))
            ds2 = w2 * (dp2 - arith.inner(g2, o2, "o"))
            dlambda, lambda_terms = -arith.inner(g, o2, "o"), g * o2
        dq1, dk1 = _scores_vjp(arith, ds1, arith.array(q1), keys[0])
        dq2, dk2 = _scores_vjp(arith, ds2, arith.array(q2), keys[1])
        shared = [
            x.reshape(B, K, H // K, *x.shape[2:]).sum(axis=2, dtype=arith.dtype)
            for x in (dk1, dk2, arith.round_if_eager(dv, "storage"))
        ]
        shape = tuple(lambda_.shape)
        squares = sum_to(np.sum(lambda_terms * lambda_terms, axis=-1, keepdims=True), shape)
        dlambda = arith.perturb_sum(sum_to(dlambda, shape), squares, g.size // max(math.prod(shape), 1))
    results = (dq1, shared[0], dq2, shared[1], shared[2], dlambda)
    return tuple(np.asarray(x, dtype=np.float64) for x in results)


def _recompute_weights(arith: Arithmetic, z: Numpy, q: Numpy, k: Numpy, capped_error: Numpy | None) -> Numpy:
    """Recompute the weights from the scores and the log-sum-exp of the forward pass, if kernels of this order do.

    With noise the log-sum-exp also has the error of a forward pass that rounded its scores differently: summed in
    another order, or scaled in another step.

    Args:
        capped_error: the errors of scores with a softcap, of which q and k do not tell the sums; None without one.
    """
    order = arith.order
    if order.subtract == "weights" or not (order.tile or order.noise):
        return weights(arith, z)
    largest = row_max(z)
    with np.errstate(invalid="ignore", under="ignore"):
        raw = np.exp(z - largest) if order.noise else arith.exp(z, largest)
    total = np.sum(raw, axis=-1, keepdims=True)
    lse = largest + np.log(np.where(total == 0, arith.dtype(1), total))
    if order.noise:
        product_error = _largest_score_error(arith, z, q, k, capped_error)
        # `exp` rounds both its arguments, with an error of either sign: three times as much cannot cancel
        rounding = RMS_ROUNDING * U32 * np.maximum(np.abs(largest), np.abs(lse))
        lse = arith.perturb(lse, np.hypot(product_error, 3 * rounding))
    return arith.exp(z, arith.array(lse))


def _largest_score_error(arith: Arithmetic, z: Numpy, q: Numpy, k: Numpy, capped_error: Numpy | None) -> Numpy:
    """Return the error of the largest score of each row, (B, h, T, 1), from its partial sums."""
    if capped_error is not None:
        keys = z[..., : capped_error.shape[-1]]  # without a sink
        found: Numpy = np.take_along_axis(capped_error, np.argmax(keys, axis=-1)[..., None], axis=-1)
        return found
    highest = np.take_along_axis(k, np.argmax(z, axis=-1)[..., None], axis=2)
    sums = np.cumsum(q * highest, axis=-1) / math.sqrt(q.shape[-1])
    error: Numpy = RMS_ROUNDING * arith.recipe.type_at("accumulate").u * np.sqrt(np.sum(sums**2, axis=-1))
    return error[..., None]


def _transpose(x: Numpy) -> Numpy:
    return np.swapaxes(x, -1, -2)


def _scores_vjp(arith: Arithmetic, ds: Numpy, q: Numpy, k: Numpy) -> tuple[Numpy, Numpy]:
    """Return the gradients of q and k from that of the scores."""
    scale = np.float32(1 / math.sqrt(q.shape[-1]))
    ds = arith.round_at(ds, "p")
    if arith.order.stored:
        ds = arith.round_at(ds * scale, "p")
        scale = np.float32(1)
    return arith.round_if_eager(arith.product(ds, k) * scale, "storage"), arith.round_if_eager(
        arith.product(_transpose(ds), q) * scale, "storage"
    )
