"""What goes into `diff_attention`: q1, k1, q2, k2, v, λ and who sees whom, for each output head of a dense problem.

Which heads belong together, which key each query may see, and what published attentions compute beside the layers of
this package: LayerNorm's centring, a norm of q and k, a gate. `own(ops, name)` is the function of that name that a
namespace has beside its layers, as that of rounded layers has; or the one here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refdiff import layers
from refdiff.backends import Ops
from refdiff.layers.diff_attention import attention_scores, split_maps
from refdiff.oracle.inputs import VECTORS
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.spec import Spec

Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class HeadIndices:
    """For each of the h output heads: its two query heads, its two key heads, its head among the (joined) values."""

    q1: Numbers
    q2: Numbers
    k1: Numbers
    k2: Numbers
    v: Numbers


def head_indices(spec: Spec) -> HeadIndices:
    """Return the heads that `spec` puts together.

    `q[:, w.q1]`, `k[:, w.k1]`, `q[:, w.q2]`, `k[:, w.k2]`, `join_values(spec, v)[:, w.v]` are the five inputs of
    `layers.diff_attention`, all with h heads; of plain attention the second map, with λ = 0, is the first. For the
    wirings that the layers have, it says what they do; a test holds them together.

    Shapes:
        five times (h,)
    """
    h, r, pairs = spec.heads, spec.ratio, spec.key_groups
    i = np.arange(h)
    noise = i // r
    if spec.is_plain:
        q1 = q2 = i
    elif spec.pairing == "halves":
        q1, q2 = i, h + noise
    else:
        q1, q2 = noise * (r + 1) + i % r, noise * (r + 1) + r
    group = i // (h // pairs) if spec.group_order == "blocks" else i % pairs
    if spec.keys == "shared":
        return HeadIndices(q1, q2, group, group, group)
    if spec.gqa == "repeat_then_pair":
        n = spec.query_heads // spec.key_heads
        return HeadIndices(q1, q2, q1 // n, q2 // n, group)
    if spec.pairing == "halves":
        return HeadIndices(q1, q2, group, group + pairs, group)
    return HeadIndices(q1, q2, 2 * group, 2 * group + 1, group)


def value_heads(spec: Spec) -> tuple[Numbers, ...]:
    """For each part of a joined value, the heads of v that it is taken from; one part where nothing is joined."""
    j = np.arange(spec.key_groups)
    if spec.values == "halves":
        return j, j + spec.key_groups
    return (2 * j, 2 * j + 1) if spec.values == "interleaved" else (j,)


Numpy = np.ndarray[Any, Any]


def attention_mask(spec: Spec, inputs: dict[str, Numpy]) -> Numpy:
    """Return what the queries of dense core inputs may see.

    Equation:
        with t' = t + S − T, or t' = t for `causal="top_left"`: s ≤ t', and t' − window < s; without causal
        |s − t'| < window. Then `key_mask`, `mask`, and a bias of −∞.

    Shapes:
        (B or 1, h or 1, T, S) boolean
    """
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    t = np.arange(T)[:, None] + (0 if spec.causal == "top_left" else S - T)
    s = np.arange(S)[None, :]
    visible = np.ones((1, 1, T, S), dtype=np.bool_)
    if spec.causal != "none":
        visible &= s <= t
    if spec.window is not None:
        visible &= np.abs(s - t) < spec.window
    if "key_mask" in inputs:
        visible = visible & layers.padding_mask(inputs["key_mask"])
    if "mask" in inputs:
        mask = inputs["mask"]
        visible = visible & mask[(None,) * (4 - mask.ndim)]
    if "bias" in inputs and (hidden := np.isneginf(inputs["bias"])).any():
        visible = visible & ~hidden[(None,) * (4 - hidden.ndim)]
    return visible


def padded_queries(spec: Spec, inputs: dict[str, Numpy]) -> Numpy | None:
    """Return which queries are padding that may be anything: (B, T), or None where there are none.

    The queries are the last T of the S keys, of which `key_mask` says what is padding.
    """
    if spec.padded_queries == "computed" or "key_mask" not in inputs or "cu_seqlens_q" in inputs:
        return None
    T = (inputs["x"] if "x" in inputs else inputs["q"]).shape[-2]
    real = inputs["key_mask"][:, -T:] if T else inputs["key_mask"][:, :0]
    return np.pad(~real, ((0, 0), (T - real.shape[1], 0)))


def zero_padded(padded: Numpy | None, x: Numpy) -> Numpy:
    """Return (B, …, T, e) with 0 in the rows of padded queries, (B, T)."""
    if padded is None:
        return x
    B, T = padded.shape
    return np.where(padded.reshape(B, *(1,) * (x.ndim - 3), T, 1), 0.0, x)


def finite_bias(inputs: dict[str, Numpy]) -> Numpy | None:
    """The bias with 0 where it is −∞: what that hides `attention_mask` says, and −∞ less −∞ would be no number."""
    bias = inputs.get("bias")
    return None if bias is None else np.where(np.isneginf(bias), 0.0, bias)


def is_plain_causal(spec: Spec, inputs: dict[str, Numpy]) -> bool:
    """Whether `causal=True` of the layers is the spec's triangle; they take no fewer keys than queries."""
    return spec.causal == "bottom_right" and bool(inputs["q"].shape[2] <= inputs["k"].shape[2])


def center(x: Numpy) -> Numpy:
    """Take away the mean of each row: LayerNorm is that and then RMSNorm. It is its own derivative's transpose."""
    y: Numpy = x - np.mean(x, axis=-1, keepdims=True)
    return y


def round_if_eager(x: Numpy, site: str) -> Numpy:
    """Keep a result as the recipe does at `site`, where every operation's result is stored; exactly here."""
    return x


def round_at(x: Numpy, site: str) -> Numpy:
    """Round a result to the type that the recipe computes it in at `site`; exactly here."""
    return x


def raw_scores(q: Numpy, k: Numpy) -> Numpy:
    """Q Kᵀ / √d, for what is done to scores before the softmax: (B, h, T, S)."""
    z: Numpy = q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    return z


def qk_norm(x: Numpy, weight: Numpy | None, eps: float, kind: str) -> Numpy:
    """Norm q or k by head: (B, H, T, d), "rms" or "layer"."""
    y: Numpy = layers.rms_norm(center(x) if kind == "layer" else x, weight, eps)
    return y


def qk_norm_vjp(g: Numpy, x: Numpy, weight: Numpy | None, eps: float, kind: str) -> tuple[Numpy, Numpy | None]:
    """Pull a gradient back through `qk_norm`: of x, and of the weight where there is one."""
    dx, dweight = layers.rms_norm_vjp(g, center(x) if kind == "layer" else x, weight, eps)
    return center(dx) if kind == "layer" else dx, dweight


def sum_over_tokens(terms: Numpy, name: str, per_head: bool) -> Numpy:
    """Add up the terms of the gradient `name`, a norm's weight or bias: (B, h, T, e) to (e,), or (h, e) per head."""
    total: Numpy = np.sum(terms, axis=(0, 2) if per_head else (0, 1, 2))
    return total


EXTRA_OPS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (center, round_if_eager, round_at, raw_scores, qk_norm, qk_norm_vjp, sum_over_tokens)
}


def extra_op(ops: Ops, name: str) -> Callable[..., Any]:
    """Return the function of that name in `ops`, or the one of this module."""
    function: Callable[..., Any] = getattr(ops, name, EXTRA_OPS[name])
    return function


Angles = dict[str, tuple[Numpy, Numpy]]
"""cos and sin, of "q" and of "k"."""


@dataclass(frozen=True)
class AttentionOperands:
    """The arguments of `diff_attention` for one dense problem; every output head has keys and values of its own.

    q1, q2: (B, h, T, d). They include the factor of a `scale` other than 1/√d.
    k1, k2: (B, h, S, d). v: (B, h, S, e). lambda_full: () or (B, h, T, 1).
    bias: None or broadcastable to (B, h, T, S); added to the scores of both maps.
    visible: (B or 1, h or 1, T, S), True where a query may attend to a key. mask and causal say the same in the form
    that the layer takes.

    With a softcap, q1 and q2 are the capped scores, (B, h, T, S), and k1 and k2 are √S times the identity. With sinks,
    a last key of zeros with a value of zeros is appended. Its bias is the sink, and bias has 2h heads, h for each map.
    """

    q1: Numpy
    k1: Numpy
    q2: Numpy
    k2: Numpy
    v: Numpy
    lambda_full: Numpy
    bias: Numpy | None
    visible: Numpy
    mask: Numpy | None
    causal: bool


def attention_operands(spec: Spec, inputs: Inputs, ops: Ops) -> AttentionOperands:
    """Return the arguments of `diff_attention` for dense core inputs, S being 1 or more, or 0 with sinks."""
    q, k = prepare_qk(spec, inputs, ops)
    visible = attention_mask(spec, inputs)
    v = zero_unseen(join_values(spec, inputs["v"], ops), visible)
    w = head_indices(spec)
    q = q * query_factor(spec)
    q1, q2, k1, k2, v = q[:, w.q1], q[:, w.q2], k[:, w.k1], k[:, w.k2], v[:, w.v]
    if (cap := spec.softcap) is not None and k.shape[2]:  # a sink has no cap
        product = extra_op(ops, "raw_scores")
        (q1, k1), (q2, k2) = (
            transform_scores(a, b, lambda z: cap * np.tanh(z / cap), product) for a, b in ((q1, k1), (q2, k2))
        )
    bias, (mask, causal) = finite_bias(inputs), layer_mask(spec, inputs)
    bias = None if bias is None else bias[(None,) * (4 - bias.ndim)]
    if spec.masked_rows == "uniform":
        # zero scores to every key, in place of none to any
        some = np.any(visible, axis=-1, keepdims=True)
        q1, q2, visible = np.where(some, q1, 0.0), np.where(some, q2, 0.0), visible | ~some
        bias = None if bias is None else np.where(some, bias, 0.0)
        mask, causal = visible, False
    s = AttentionOperands(q1, k1, q2, k2, v, compute_lambda(spec, inputs, ops), bias, visible, mask, causal)
    return append_sinks(s, inputs["sinks"][w.q1], inputs["sinks"][w.q2]) if spec.sinks else s


def append_sinks(s: AttentionOperands, first: Numpy, second: Numpy) -> AttentionOperands:
    """Add the key that each head's sink is: first and second are (h,)."""
    one = ((0, 0), (0, 0), (0, 0), (0, 1))
    k1, k2, v = (np.pad(np.swapaxes(x, -1, -2), one).swapaxes(-1, -2) for x in (s.k1, s.k2, s.v))
    visible = np.pad(s.visible, one, constant_values=True)
    h, S = s.q1.shape[1], s.k1.shape[2]
    bias = np.zeros((1, 1, 1, S)) if s.bias is None else np.broadcast_to(s.bias, (*s.bias.shape[:3], S))
    shape = (bias.shape[0], h, *bias.shape[2:])
    of_maps = [
        np.concatenate([np.broadcast_to(bias, shape), np.broadcast_to(x[:, None, None], (*shape[:3], 1))], axis=-1)
        for x in (first, second)
    ]
    return replace(
        s, k1=k1, k2=k2, v=v, bias=np.concatenate(of_maps, axis=1), visible=visible, mask=visible, causal=False
    )


def prepare_qk(spec: Spec, inputs: Inputs, ops: Ops) -> tuple[Numpy, Numpy]:
    """Return q and k after norm and RoPE; what nobody sees is a number first, lest it turn into one that is none."""
    turns = angles(spec, inputs, ops)
    return preparation_stages(spec, inputs, "q", turns, ops)[-1], preparation_stages(spec, inputs, "k", turns, ops)[-1]


def preparation_stages(spec: Spec, inputs: Inputs, name: str, turns: Angles, ops: Ops) -> list[Numpy]:
    """q or k as it comes in, and after each of `preparation_steps`; `turns` are the `angles`."""
    found = [inputs["q"] if name == "q" else zero_unseen(inputs["k"], attention_mask(spec, inputs))]
    for step in preparation_steps(spec):
        x = found[-1]
        if step == "norm":
            y = extra_op(ops, "qk_norm")(x, inputs.get(f"{name}_norm_weight"), spec.qk_norm_eps, spec.qk_norm)
        else:
            y = rotate(spec, x, *turns[name], ops)
        found.append(y)
    return found


def preparation_steps(spec: Spec) -> tuple[str, ...]:
    """What is done to q and k before their products, in order: "norm", "rope"."""
    steps = ("norm",) * (spec.qk_norm != "none"), ("rope",) * (spec.rope != "none")
    return steps[0] + steps[1] if spec.qk_norm_at == "before_rope" else steps[1] + steps[0]


def rotate(spec: Spec, x: Numpy, cos: Numpy, sin: Numpy, ops: Ops) -> Numpy:
    """Turn the dimensions of q or k that the spec turns; its transpose turns them by −sin."""
    still = spec.head_dim - spec.rotary_dim if spec.rotary_at == "last" else 0
    turned: Numpy = ops.rope(x[..., still:], cos, sin, interleaved=spec.rope == "interleaved")
    return np.concatenate([x[..., :still], turned], axis=-1) if still else turned


def angles(spec: Spec, inputs: Inputs, ops: Ops) -> Angles:
    """cos and sin for q and for k, of the same frequencies; without positions the queries are the last T of S."""
    if spec.rope == "none":
        return {}
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    turn = frequencies(spec, ops)
    starts = {"q": S - T, "k": 0}
    at = {name: inputs.get(f"{name}_positions", np.arange(start, S)[None]) for name, start in starts.items()}
    return {name: ops.rope_cos_sin(positions, *turn, np.float64) for name, positions in at.items()}


def frequencies(spec: Spec, ops: Ops) -> tuple[list[float], float]:
    """How fast each pair of dimensions turns, in radians per position, and what cos and sin are multiplied by."""
    given = spec.rope_parameters or {}
    if "frequencies" in given:
        return list(given["frequencies"]), float(given.get("attention_factor", 1.0))
    parameters = {"rope_type": "default", "rope_theta": spec.rope_theta, **given}
    found: tuple[list[float], float] = ops.rope_frequencies(parameters, spec.rotary_dim, 1)
    return found


def join_values(spec: Spec, v: Numpy, ops: Ops) -> Numpy:
    """Lay the heads of v side by side as the spec has it: (B, V, S, w) to (B, groups, S, e)."""
    if spec.values == "halves":
        pairs: Numpy = ops.value_pairs_hf(v)
        return pairs
    parts = value_heads(spec)
    return v if len(parts) == 1 else np.concatenate([v[:, part] for part in parts], axis=-1)


def lambda_init(spec: Spec, ops: Ops) -> float:
    """The λ_init of the spec's layer."""
    if spec.lambda_init is not None:
        return spec.lambda_init
    if spec.lambda_base == "depth":
        return float(ops.lambda_init(spec.layer))
    if spec.layer > 0:
        return float(ops.lambda_init(spec.layer - 1))
    return 0.8 - (0.8 - float(ops.lambda_init(0))) * math.exp(0.3)  # the same curve at −1, where the layer refuses


def compute_lambda(spec: Spec, inputs: Inputs, ops: Ops) -> Numpy:
    """λ as `diff_attention` takes it: () or (1 or B, h, 1 or T, 1); 0 of plain attention."""
    if spec.lambda_form == "exp":
        start, vectors = lambda_init(spec, ops), [inputs[name] for name in VECTORS]
        if not spec.lambda_per_head:
            return np.asarray(ops.diff_lambda(*vectors, start))
        of_heads = [ops.diff_lambda(*(x[i] for x in vectors), start) for i in range(spec.heads)]
        return np.asarray(of_heads)[None, :, None, None]
    if spec.lambda_form == "sigmoid":
        logits = inputs["lambda_logits"]
        by_token: Numpy = ops.diff_lambda_v2(logits, np.eye(logits.shape[2]))
        return by_token
    if spec.is_plain:
        return np.zeros(())
    given = inputs["lambda_full"]
    return given if given.ndim == 0 else given[None, :, None, None] if given.ndim == 1 else given[..., None]


def layer_mask(spec: Spec, inputs: Inputs) -> tuple[Numpy | None, bool]:
    """`mask` and `causal` for a layer: the triangle is the layer's own where it has that one."""
    if not is_plain_causal(spec, inputs):
        return attention_mask(spec, inputs), False
    hides = np.isneginf(inputs["bias"]).any() if "bias" in inputs else False
    if spec.window is None and "key_mask" not in inputs and "mask" not in inputs and not hides:
        return None, True
    return attention_mask(spec.replace(causal="none"), inputs), True


def zero_unseen(x: Numpy, visible: Numpy) -> Numpy:
    """Put 0 where a key or value that no query sees is not a number: 0 · NaN would be one."""
    bad = ~np.isfinite(x)
    if not bad.any():
        return x
    seen = np.any(visible, axis=(1, 2))[:, None, :, None]
    return np.where(bad & ~seen, 0.0, x)


def query_factor(spec: Spec) -> float:
    """What q is multiplied by, so that the layer's 1/√d makes the scale of the spec."""
    return 1.0 if spec.scale is None else spec.scale * math.sqrt(spec.head_dim)


def transform_scores(
    q: Numpy, k: Numpy, limit: Callable[[Numpy], Numpy], product: Callable[[Numpy, Numpy], Numpy] = raw_scores
) -> tuple[Numpy, Numpy]:
    """What `limit` makes of the scores of q and k, as queries and keys whose scores they are."""
    scores = limit(product(q, k))
    unit = math.sqrt(scores.shape[-1]) * np.eye(scores.shape[-1])
    return scores, np.broadcast_to(unit, (*scores.shape[:2], *unit.shape))


def scores(s: AttentionOperands, number: int) -> Numpy:
    """The scores of map 1 or 2, −∞ where a query does not see: (B, h, T, S), with sinks one more."""
    q, k = (s.q1, s.k1) if number == 1 else (s.q2, s.k2)
    bias = split_maps(s.bias, q.shape[1])[number - 1]
    z, visible = attention_scores(q, k, s.mask, bias, causal=s.causal)
    hidden: Numpy = z if visible is None else np.where(visible, z, -math.inf)
    return hidden


def log_sum_exp(z: Numpy) -> Numpy:
    """log Σ exp z over the last axis, −∞ for a row of nothing but that: (…, S) to (…)."""
    top = np.max(z, axis=-1, keepdims=True, initial=-math.inf)
    safe = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        lse: Numpy = safe + np.log(np.sum(np.exp(z - safe), axis=-1, keepdims=True))
    return lse[..., 0]
