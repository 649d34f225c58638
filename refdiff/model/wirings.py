"""What the four wirings of attention do differently in a model; `WIRINGS` has a row for each.

Which heads are a pair, and what each pair computes, stands in the layers, side by side in `refdiff/layers/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from refdiff.arrays import Array, device, namespace
from refdiff.backends import Ops
from refdiff.layers.diff_heads_paper import first_then_second


@dataclass(frozen=True)
class Heads:
    """What attention works on: q, k (rotated) and v by head, λ or None, and `see`: mask, bias and causal."""

    q: Array
    k: Array
    v: Array
    lambda_: Array | None
    see: dict[str, Any]


@dataclass(frozen=True)
class Wiring:
    """The parts of `self_attention` that depend on the wiring; `p` are its parameters, `layer` counts from 0.

    interleaved: which dimensions RoPE turns together.
    values (ops, v (B, T, width), d) -> (B, heads, T, width of a head), as the cache keeps them.
    lambda_ (ops, p, x (B, T, D), layer) -> λ, or None where there is none.
    attend (ops, heads, p, layer, eps, parts of the layer to use in place of those of ops) -> (B, T, H d).
    maps (ops, heads) -> the softmax rows of every query head, what multiplies the values, λ.
    """

    interleaved: bool
    values: Callable[[Ops, Array, int], Array]
    lambda_: Callable[[Ops, dict[str, Any], Array, int], Array | None]
    attend: Callable[..., Array]
    maps: Callable[[Ops, Heads], tuple[Array, Array, Array]]


def split_heads(x: Array, width: int) -> Array:
    """(B, T, heads · width) to (B, heads, T, width)."""
    xp = namespace(x)
    B, T, total = x.shape
    return xp.permute_dims(xp.reshape(x, (B, T, total // width, width)), (0, 2, 1, 3))


def _v1_lambda(ops: Ops, p: dict[str, Any], x: Array, layer: int) -> Array:
    return ops.diff_lambda(p["lambda_q1"], p["lambda_k1"], p["lambda_q2"], p["lambda_k2"], ops.lambda_init(layer))


def _hf_maps(ops: Ops, a: Heads) -> tuple[Array, Array, Array]:
    weights = ops.attention_weights(a.q, a.k, **a.see)
    half = weights.shape[1] // 2
    return weights, weights[:, :half, ...] - a.lambda_ * weights[:, half:, ...], a.lambda_


def _paper_maps(ops: Ops, a: Heads) -> tuple[Array, Array, Array]:
    see = {**a.see, "mask": first_then_second(a.see["mask"]), "bias": first_then_second(a.see["bias"])}
    weights, difference, lambda_ = _hf_maps(
        ops, replace(a, q=first_then_second(a.q), k=first_then_second(a.k), see=see)
    )
    B, H, T, S = weights.shape
    xp = namespace(weights)
    pairs = xp.stack([weights[:, : H // 2, ...], weights[:, H // 2 :, ...]], axis=2)
    return xp.reshape(pairs, (B, H, T, S)), difference, lambda_


def _v2_maps(ops: Ops, a: Heads) -> tuple[Array, Array, Array]:
    weights = ops.attention_weights(a.q, a.k, **a.see)
    return weights, weights[:, 0::2, ...] - a.lambda_ * weights[:, 1::2, ...], a.lambda_


def _plain_maps(ops: Ops, a: Heads) -> tuple[Array, Array, Array]:
    weights = ops.attention_weights(a.q, a.k, **a.see)
    return weights, weights, namespace(a.q).zeros((), dtype=a.q.dtype, device=device(a.q))


WIRINGS = {
    "hf": Wiring(
        interleaved=False,
        values=lambda ops, v, d: ops.value_pairs_hf(split_heads(v, d)),
        lambda_=_v1_lambda,
        attend=lambda ops, a, p, layer, eps, **parts: ops.diff_heads_hf(
            a.q, a.k, a.v, a.lambda_, ops.lambda_init(layer), eps, **a.see, **parts
        ),
        maps=_hf_maps,
    ),
    "paper": Wiring(
        interleaved=True,
        values=lambda ops, v, d: split_heads(v, 2 * d),
        lambda_=_v1_lambda,
        # without eps: the norm after attention has unilm's own, not the model's
        attend=lambda ops, a, p, layer, eps, **parts: ops.diff_heads_paper(
            a.q, a.k, a.v, a.lambda_, p["subln"]["weight"], ops.lambda_init(layer), **a.see, **parts
        ),
        maps=_paper_maps,
    ),
    "v2": Wiring(
        interleaved=True,
        values=lambda ops, v, d: split_heads(v, d),
        lambda_=lambda ops, p, x, layer: ops.diff_lambda_v2(x, **p["lambda_proj"]),
        attend=lambda ops, a, p, layer, eps, **parts: ops.diff_heads_v2(a.q, a.k, a.v, a.lambda_, **a.see, **parts),
        maps=_v2_maps,
    ),
    "none": Wiring(
        interleaved=False,
        values=lambda ops, v, d: split_heads(v, d),
        lambda_=lambda ops, p, x, layer: None,
        attend=lambda ops, a, p, layer, eps, **parts: ops.plain_heads(a.q, a.k, a.v, **a.see, **parts),
        maps=_plain_maps,
    ),
}
"""From `config.wiring` to what it means."""
