"""The arguments of `diff_attention` for each output head of a dense problem: q1, k1, q2, k2, v, λ, mask and bias.

Also here: which heads form a pair, which keys a query may attend to, and `EXTRA_OPS`, the functions that published
attentions need beside the layers of this package, such as LayerNorm's centering. `truth_ops` has them and the layers,
and a namespace of rounded layers has its own versions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refdiff import layers
from refdiff.backends import Ops, ops_for
from refdiff.layers.diff_attention import attention_scores, split_maps
from refdiff.oracle.inputs import VECTORS
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.spec import Spec

Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class HeadIndices:
    """For each of the h output heads, its two query heads, two key heads and head of the joined values; each (h,)."""

    q1: Numbers
    q2: Numbers
    k1: Numbers
    k2: Numbers
    v: Numbers


def head_indices(spec: Spec) -> HeadIndices:
    """Return the heads of q, k and v that each output head uses.

    With w for the result, `q[:, w.q1]`, `k[:, w.k1]`, `q[:, w.q2]`, `k[:, w.k2]` and `join_values(spec, v)[:, w.v]` are
    the inputs of `layers.diff_attention`, all with h heads. In plain attention the second map is the first, and λ is 0.
    A test compares the attention variants of the layers with it.
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
    """Return the heads of v that each part of a joined value comes from; one part where heads are not joined."""
    j = np.arange(spec.key_groups)
    if spec.values == "halves":
        return j, j + spec.key_groups
    return (2 * j, 2 * j + 1) if spec.values == "interleaved" else (j,)


def attention_mask(spec: Spec, inputs: dict[str, Numpy]) -> Numpy:
    """Return which keys the queries of dense core inputs may attend to.

    Equation:
        query t has position t' = t + S − T, or t' = t for `causal="top_left"`; it sees key s if

            s ≤ t' (unless causal is "none") and |s − t'| < window (if there is one)

        and neither `key_mask`, `mask` nor a bias of −∞ hides it

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


def use_explicit_mask(spec: Spec, inputs: Inputs) -> tuple[Spec, Inputs]:
    """Put causality, window and padding into one mask, and positions into the inputs, so that parts can be selected."""
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    every = {"q_positions": np.arange(S - T, S)[None], "k_positions": np.arange(S)[None], **inputs}
    every["mask"] = attention_mask(spec, inputs)
    every.pop("key_mask", None)
    return spec.replace(causal="none", window=None, padded_queries="computed"), every


def padded_queries(spec: Spec, inputs: dict[str, Numpy]) -> Numpy | None:
    """Return which queries are padding and not judged, (B, T); None for `padded_queries="computed"` or without padding.

    The queries are the last T of the S keys, of which `key_mask` says which are padding.
    """
    if spec.padded_queries == "computed" or "key_mask" not in inputs or "cu_seqlens_q" in inputs:
        return None
    T = (inputs["x"] if "x" in inputs else inputs["q"]).shape[-2]
    real = inputs["key_mask"][:, -T:] if T else inputs["key_mask"][:, :0]
    return np.pad(~real, ((0, 0), (T - real.shape[1], 0)))


def zero_padded(padded: Numpy | None, x: Numpy) -> Numpy:
    """Return x, (B, …, T, e), with zeros in the rows of padded queries, (B, T)."""
    if padded is None:
        return x
    B, T = padded.shape
    return np.where(padded.reshape(B, *(1,) * (x.ndim - 3), T, 1), 0.0, x)


def finite_bias(inputs: dict[str, Numpy]) -> Numpy | None:
    """Return the bias with 0 in place of −∞, which `attention_mask` covers: −∞ − (−∞) would be NaN."""
    bias = inputs.get("bias")
    return None if bias is None else np.where(np.isneginf(bias), 0.0, bias)


def center(x: Numpy) -> Numpy:
    """Subtract the mean of each row. LayerNorm is this and then RMSNorm. It is linear and symmetric: its own VJP."""
    y: Numpy = x - np.mean(x, axis=-1, keepdims=True)
    return y


def unrounded(x: Numpy, site: str) -> Numpy:
    """Return x; rounded layers round it as `Arithmetic.round_at` and `Arithmetic.round_if_eager` do."""
    return x


def scale_heads(heads: Numpy, factor: Any) -> Numpy:
    """Return the heads after the norm times their factor."""
    y: Numpy = factor * heads
    return y


def softcap(z: Numpy, cap: float) -> Numpy:
    """Return cap · tanh(z / cap)."""
    y: Numpy = cap * np.tanh(z / cap)
    return y


def round_scaled(q: Numpy, k: Numpy, scale: float) -> tuple[Numpy, Numpy]:
    """Return q and k; rounded layers round q · scale, or q and k each times √scale, and divide the scale out again."""
    return q, k


def raw_scores(q: Numpy, k: Numpy) -> Numpy:
    """Return Q Kᵀ / √d, (B, h, T, S), the scores that a softcap is applied to."""
    z: Numpy = q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    return z


def raw_scores_vjp(g: Numpy, q: Numpy, k: Numpy) -> tuple[Numpy, Numpy]:
    """Return the gradients of `raw_scores` for q and k."""
    g = g / math.sqrt(q.shape[-1])
    return g @ k, np.swapaxes(g, -1, -2) @ q


def qk_norm(x: Numpy, weight: Numpy | None, eps: float, kind: str) -> Numpy:
    """Normalize each head of q or k, (B, H, T, d), by RMSNorm ("rms") or LayerNorm ("layer")."""
    y: Numpy = layers.rms_norm(center(x) if kind == "layer" else x, weight, eps)
    return y


def qk_norm_vjp(g: Numpy, x: Numpy, weight: Numpy | None, eps: float, kind: str) -> tuple[Numpy, Numpy | None]:
    """Return the gradients of `qk_norm` for x, and for the weight if there is one."""
    dx, dweight = layers.rms_norm_vjp(g, center(x) if kind == "layer" else x, weight, eps)
    return center(dx) if kind == "layer" else dx, dweight


def sum_over_tokens(terms: Numpy, name: str, per_head: bool) -> Numpy:
    """Sum the terms of `name`, the gradient of a norm's weight or bias: (B, h, T, e) to (e,), or (h, e) per head."""
    total: Numpy = np.sum(terms, axis=(0, 2) if per_head else (0, 1, 2))
    return total


def sum_sinks(spec: Spec, terms: Numpy, g: Numpy, s: AttentionOperands) -> Numpy:
    """Sum terms of both maps over tokens and the output heads that share a query head: (2, B, h, T) to (H,)."""
    w, total = head_indices(spec), np.zeros(spec.query_heads)
    for heads, x in zip((w.q1, w.q2), terms, strict=True):
        np.add.at(total, heads, np.sum(x, axis=(0, 2)))
    return total


EXTRA_OPS: dict[str, Callable[..., Any]] = {
    "head_indices": head_indices,
    "center": center,
    "scale_heads": scale_heads,
    "round_if_eager": unrounded,
    "round_at": unrounded,
    "softcap": softcap,
    "round_scaled": round_scaled,
    "raw_scores": raw_scores,
    "raw_scores_vjp": raw_scores_vjp,
    "qk_norm": qk_norm,
    "qk_norm_vjp": qk_norm_vjp,
    "sum_over_tokens": sum_over_tokens,
    "sum_sinks": sum_sinks,
}


def truth_ops(ops: Ops | None = None) -> Ops:
    """Return the layers, or an overlay of them, and `EXTRA_OPS` unless it has its own versions."""
    return Ops(**{**EXTRA_OPS, **vars(ops or ops_for())})


Angles = dict[str, tuple[Numpy, Numpy]]
"""cos and sin for "q" and for "k"."""


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
    """Return the arguments of `diff_attention` for dense core inputs; S must be at least 1, or 0 with sinks."""
    q, k = prepare_qk(spec, inputs, ops)
    visible = attention_mask(spec, inputs)
    v = zero_unseen(join_values(spec, inputs["v"], ops), visible)
    w: HeadIndices = ops.head_indices(spec)
    q = q * query_factor(spec)
    q1, q2, k1, k2, v = q[:, w.q1], q[:, w.q2], k[:, w.k1], k[:, w.k2], v[:, w.v]
    if (cap := spec.softcap) is not None and k.shape[2]:  # a sink has no cap
        product = ops.raw_scores
        (q1, k1), (q2, k2) = (
            transform_scores(a, b, lambda z: ops.softcap(z, cap), product) for a, b in ((q1, k1), (q2, k2))
        )
    bias, (mask, causal) = finite_bias(inputs), layer_mask(spec, inputs)
    bias = None if bias is None else bias[(None,) * (4 - bias.ndim)]
    if spec.masked_rows == "uniform":
        # a query that sees no key gets a score of zero for every key
        some = np.any(visible, axis=-1, keepdims=True)
        q1, q2, visible = np.where(some, q1, 0.0), np.where(some, q2, 0.0), visible | ~some
        bias = None if bias is None else np.where(some, bias, 0.0)
        mask, causal = visible, False
    s = AttentionOperands(q1, k1, q2, k2, v, compute_lambda(spec, inputs, ops), bias, visible, mask, causal)
    return append_sinks(s, inputs["sinks"][w.q1], inputs["sinks"][w.q2]) if spec.sinks else s


def append_sinks(s: AttentionOperands, first: Numpy, second: Numpy) -> AttentionOperands:
    """Append a key that stands for the sinks; `first` and `second`, (h,), are the sinks of the two maps."""
    one = ((0, 0), (0, 0), (0, 0), (0, 1))
    k1, k2, v = (np.pad(np.swapaxes(x, -1, -2), one).swapaxes(-1, -2) for x in (s.k1, s.k2, s.v))
    visible = np.pad(s.visible, one, constant_values=True)
    h, S = s.q1.shape[1], s.k1.shape[2]
    bias = np.zeros((1, 1, 1, S)) if s.bias is None else np.broadcast_to(s.bias, (*s.bias.shape[:3], S))
    shape = (bias.shape[0], h, *bias.shape[2:])
    map_biases = [
        np.concatenate([np.broadcast_to(bias, shape), np.broadcast_to(x[:, None, None], (*shape[:3], 1))], axis=-1)
        for x in (first, second)
    ]
    return replace(
        s, k1=k1, k2=k2, v=v, bias=np.concatenate(map_biases, axis=1), visible=visible, mask=visible, causal=False
    )


def prepare_qk(spec: Spec, inputs: Inputs, ops: Ops) -> tuple[Numpy, Numpy]:
    """Return q and k after their norm and RoPE; non-finite keys that no query sees become 0 first."""
    cos_sin = angles(spec, inputs, ops)
    q, k = (preparation_stages(spec, inputs, name, cos_sin, ops)[-1] for name in "qk")
    scale = 1 / math.sqrt(spec.head_dim) if spec.scale is None else spec.scale
    scaled: tuple[Numpy, Numpy] = ops.round_scaled(q, k, scale)
    return scaled


def preparation_stages(spec: Spec, inputs: Inputs, name: str, cos_sin: Angles, ops: Ops) -> list[Numpy]:
    """Return q or k as it comes in, and after each of `preparation_steps`."""
    found = [inputs["q"] if name == "q" else zero_unseen(inputs["k"], attention_mask(spec, inputs))]
    for step in preparation_steps(spec):
        x = found[-1]
        if step == "norm":
            y = ops.qk_norm(x, inputs.get(f"{name}_norm_weight"), spec.qk_norm_eps, spec.qk_norm)
        else:
            y = rotate(spec, x, *cos_sin[name], ops)
        found.append(y)
    return found


def preparation_steps(spec: Spec) -> tuple[str, ...]:
    """Return what is applied to q and k before their product, in order: "norm", "rope"."""
    steps = ("norm",) * (spec.qk_norm != "none"), ("rope",) * (spec.rope != "none")
    return steps[0] + steps[1] if spec.qk_norm_at == "before_rope" else steps[1] + steps[0]


def rotate(spec: Spec, x: Numpy, cos: Numpy, sin: Numpy, ops: Ops) -> Numpy:
    """Rotate those dimensions of q or k that the spec rotates."""
    start = spec.head_dim - spec.rotary_dim if spec.rotary_at == "last" else 0
    rotated: Numpy = ops.rope(x[..., start:], cos, sin, interleaved=spec.rope == "interleaved")
    return np.concatenate([x[..., :start], rotated], axis=-1) if start else rotated


def angles(spec: Spec, inputs: Inputs, ops: Ops) -> Angles:
    """Return cos and sin for q and for k; without positions the queries are the last T of S."""
    if spec.rope == "none":
        return {}
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    speeds, factor = frequencies(spec, ops)
    starts = {"q": S - T, "k": 0}
    at = {name: inputs.get(f"{name}_positions", np.arange(start, S)[None]) for name, start in starts.items()}
    return {name: ops.rope_cos_sin(positions, speeds, factor, np.float64) for name, positions in at.items()}


def frequencies(spec: Spec, ops: Ops) -> tuple[list[float], float]:
    """Return the frequency of each pair of dimensions, in radians per position, and the factor of cos and sin."""
    parameters = {"rope_type": "default", "rope_theta": spec.rope_theta, **(spec.rope_parameters or {})}
    found: tuple[list[float], float] = ops.rope_frequencies(parameters, spec.rotary_dim, 1)
    return found


def join_values(spec: Spec, v: Numpy, ops: Ops) -> Numpy:
    """Concatenate the heads of v as the spec does: (B, V, S, w) to (B, groups, S, e)."""
    if spec.values == "halves":
        pairs: Numpy = ops.value_pairs_hf(v)
        return pairs
    parts = value_heads(spec)
    return v if len(parts) == 1 else np.concatenate([v[:, part] for part in parts], axis=-1)


def lambda_init(spec: Spec, ops: Ops) -> float:
    """Return λ_init of the spec's layer."""
    if spec.lambda_init is not None:
        return spec.lambda_init
    if spec.lambda_base == "depth":
        return float(ops.lambda_init(spec.layer))
    if spec.layer > 0:
        return float(ops.lambda_init(spec.layer - 1))
    return 0.8 - (0.8 - float(ops.lambda_init(0))) * math.exp(0.3)  # the formula at −1, which the layer refuses


def compute_lambda(spec: Spec, inputs: Inputs, ops: Ops) -> Numpy:
    """Return λ in the shape that `diff_attention` takes, () or (1 or B, h, 1 or T, 1); 0 for plain attention."""
    if spec.lambda_form == "exp":
        init, vectors = lambda_init(spec, ops), [inputs[name] for name in VECTORS]
        if not spec.lambda_per_head:
            return np.asarray(ops.diff_lambda(*vectors, init))
        per_head = [ops.diff_lambda(*(x[i] for x in vectors), init) for i in range(spec.heads)]
        return np.asarray(per_head)[None, :, None, None]
    if spec.lambda_form == "sigmoid":
        logits = inputs["lambda_logits"]
        by_token: Numpy = ops.diff_lambda_v2(logits, np.eye(logits.shape[2]))
        return by_token
    if spec.is_plain:
        return np.zeros(())
    given = inputs["lambda_full"]
    return given if given.ndim == 0 else given[None, :, None, None] if given.ndim == 1 else given[..., None]


def layer_mask(spec: Spec, inputs: Inputs) -> tuple[Numpy | None, bool]:
    """Return `mask` and `causal` for a layer; a causal mask that the layer can make itself is left to it."""
    if spec.causal != "bottom_right" or inputs["q"].shape[2] > inputs["k"].shape[2]:  # else the layers make it
        return attention_mask(spec, inputs), False
    hides = np.isneginf(inputs["bias"]).any() if "bias" in inputs else False
    if spec.window is None and "key_mask" not in inputs and "mask" not in inputs and not hides:
        return None, True
    return attention_mask(spec.replace(causal="none"), inputs), True


def zero_unseen(x: Numpy, visible: Numpy) -> Numpy:
    """Return keys or values with 0 for non-finite numbers that no query sees, since 0 · NaN would be NaN."""
    bad = ~np.isfinite(x)
    if not bad.any():
        return x
    seen = np.any(visible, axis=(1, 2))[:, None, :, None]
    return np.where(bad & ~seen, 0.0, x)


def query_factor(spec: Spec) -> float:
    """Return the factor of q that changes the layer's scale of 1/√d to that of the spec."""
    return 1.0 if spec.scale is None else spec.scale * math.sqrt(spec.head_dim)


def transform_scores(
    q: Numpy, k: Numpy, transform: Callable[[Numpy], Numpy], product: Callable[[Numpy, Numpy], Numpy] = raw_scores
) -> tuple[Numpy, Numpy]:
    """Return queries and keys whose scores Q Kᵀ / √d are `transform` of those of q and k."""
    scores = transform(product(q, k))
    unit = math.sqrt(scores.shape[-1]) * np.eye(scores.shape[-1])
    return scores, np.broadcast_to(unit, (*scores.shape[:2], *unit.shape))


def scores(s: AttentionOperands, number: int) -> Numpy:
    """Return the scores of map 1 or 2, (B, h, T, S), −∞ for masked keys; with sinks, S includes the sink."""
    q, k = (s.q1, s.k1) if number == 1 else (s.q2, s.k2)
    bias = split_maps(s.bias, q.shape[1])[number - 1]
    z, visible = attention_scores(q, k, s.mask, bias, causal=s.causal)
    hidden: Numpy = z if visible is None else np.where(visible, z, -math.inf)
    return hidden


def log_sum_exp(z: Numpy) -> Numpy:
    """Return log Σ exp z over the last axis, (…, S) to (…); −∞ for a row of −∞ alone."""
    top = np.max(z, axis=-1, keepdims=True, initial=-math.inf)
    safe = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        lse: Numpy = safe + np.log(np.sum(np.exp(z - safe), axis=-1, keepdims=True))
    return lse[..., 0]
