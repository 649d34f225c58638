"""`diff_attention_vjp` as a kernel computes it: rounded where a recipe stores, in one of the legal orders.

Kernels that go by tiles compute the weights again from the scores and the stored log-sum-exp: exp(z − lse), where an
lse of 400 in float32 is off by 2⁻¹⁶, and so is every weight of its row. Eager ways store the gradient of the weights:
it is rounded to the recipe's `qk`, as the scores are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refdiff.layers.diff_attention import sum_to
from refdiff.oracle.rounding.evaluation_order import Arithmetic
from refdiff.oracle.rounding.rounded_attention import attend, difference, scores_of_maps, top, weights

Numpy = np.ndarray[Any, Any]


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
) -> tuple[Numpy, ...]:
    """Compute what `layers.diff_attention_vjp` does, with its shapes; numbers of narrow types, held in float64."""
    (B, H, _, _), K = q1.shape, k1.shape[1]
    keys = [np.repeat(how.array(k), H // K, axis=1) for k in (k1, k2)]
    values = np.repeat(how.array(v), H // K, axis=1)
    maps = list(scores_of_maps(how, (q1, keys[0], q2, keys[1]), mask, bias, causal))
    w1, w2 = (_weights_again(how, z) for z in maps)
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


def _weights_again(how: Arithmetic, z: Numpy) -> Numpy:
    order = how.order
    if order.subtract == "weights" or not (order.tile or order.noise):
        return weights(how, z)
    largest = top(z)
    total = np.sum(how.exp(z, largest), axis=-1, keepdims=True)
    lse = how.single_step(largest + np.log(np.where(total == 0, how.dtype(1), total)))
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
