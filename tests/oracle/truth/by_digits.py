"""Attention with fifty digits: the published formulas for every field of a spec, one output head after another.

Arrays hold `mpmath` numbers. Which heads belong together is the oracle's own answer, which other tests know by hand.
"""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np

from refdiff.oracle import Spec
from refdiff.oracle.truth.attention_operands import head_indices, value_heads

Digits = mpmath.mp.clone()
Digits.dps = 50
Array = np.ndarray[Any, Any]
exp, log, tanh, sqrt, cos, sin = (
    np.frompyfunc(getattr(Digits, name), 1, 1) for name in ("exp", "log", "tanh", "sqrt", "cos", "sin")
)
exact = np.frompyfunc(lambda x: Digits.mpf(float(x)), 1, 1)
CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("hf_diffllama", {"norm_over": "half_head"}),
    ("ms_v1", {"norm_over": "all_heads"}),
    ("ms_v1", {"norm": "none", "norm_weight": False, "out_scale": "none"}),
    ("hf_diffllama", {"out_scale": "1 - lambda"}),
    ("hf_diffllama", {"out_scale": "lambda_init", "lambda_base": "constant", "lambda_init": 0.6}),
    ("hf_diffllama", {"softcap": 1.5, "scale": 0.7}),
    ("hf_diffllama", {"head_dim": 8, "rope_parameters": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}}),
    ("hf_diffllama", {"head_dim": 8, "partial_rotary_factor": 0.5, "rotary_at": "last", "rope_parameters": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "attention_factor": 1.0}}),
    ("ms_v1", {"partial_rotary_factor": 0.7, "rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    ("ms_v1", {"partial_rotary_factor": 0.7, "rotary_at": "last", "rope_theta": 300.0}),
    ("hf_diffllama", {"causal": "top_left", "group_order": "tiled"}),
    ("hf_diffllama", {"values": "interleaved", "lambda_form": "given"}),
    ("gda", {"pairing": "halves", "lambda_form": "sigmoid", "norm": "none", "norm_weight": False}),
    ("diff_v2", {"norm": "rms", "out_scale": "1 - lambda"}),
    ("hf_diffllama", {"qk_norm": "rms", "qk_norm_weight": True}),
    ("ms_v1", {"qk_norm": "layer", "qk_norm_weight": True, "qk_norm_at": "after_rope", "qk_norm_eps": 0.1}),
    ("hf_diffllama", {"norm": "layer", "norm_weight": True, "norm_bias": True}),
    ("ms_v1", {"norm": "layer", "norm_bias": True, "norm_per_head": True, "norm_over": "all_heads"}),
    ("hf_diffllama", {"norm": "layer", "norm_over": "half_head", "norm_eps": 0.2}),
    ("hf_diffllama", {"norm_weight": True, "norm_bias": True}),
    ("hf_diffllama", {"lambda_per_head": True, "out_scale": "1 - lambda"}),
    ("ms_v1", {"gate": "sigmoid", "out_scale": "1 - lambda"}),
    ("ms_v1", {"gate": "linear", "lambda_base": "depth - 1", "layer": 0}),
    ("diff_v2", {"gate": "silu"}),
    ("hf_diffllama", {"v_head_dim": 5}),
    ("hf_diffllama", {"sinks": True, "window": 4}),
    ("diff_v2", {"sinks": True, "softcap": 1.5}),
    ("gda", {"sinks": True}),
    ("attention", {"key_heads": 1, "v_head_dim": 4, "rope": "halves", "window": 3, "softcap": 1.5}),
    ("attention", {"window": 2, "causal": "none"}),
    ("attention", {"causal": "top_left", "group_order": "tiled", "key_heads": 12}),
    ("attention", {"sinks": True, "softcap": 2.0, "v_head_dim": 4, "window": 4}),
    ("attention", {"norm": "rms", "norm_weight": True, "masked_rows": "uniform"}),
]  # fmt: skip
"""Presets, and fields that they do not have: together every value of a spec's fields."""


def normed(x: Array, kind: str, eps: float) -> Array:
    """(x − mean) / √(variance + ε) of LayerNorm (Ba et al. 2016), or x / √(mean x² + ε) of RMSNorm."""
    x = x - x.mean(axis=-1, keepdims=True) if kind == "layer" else x
    return np.asarray(x / sqrt((x * x).mean(axis=-1, keepdims=True) + Digits.mpf(eps)))


def frequencies(spec: Spec) -> tuple[list[Any], Any]:
    """How fast each pair turns, and the factor of cos and sin (Su et al. 2021; YaRN: Peng et al. 2023, section 3.2)."""
    p, r, base = spec.rope_parameters or {}, spec.rotary_dim, spec.rope_theta
    powers = [Digits.power(Digits.mpf(base), Digits.mpf(-2 * i) / r) for i in range(r // 2)]
    if p.get("rope_type") == "linear":
        return [f / p["factor"] for f in powers], 1
    if p.get("rope_type") != "yarn":
        return powers, 1
    factor, original = p["factor"], p["original_max_position_embeddings"]
    low, high = (r * math.log(original / (n * 2 * math.pi)) / (2 * math.log(base)) for n in (32, 1))
    first, last = max(math.floor(low), 0), min(math.ceil(high), r - 1)
    kept = [1 - min(max(Digits.mpf(i - first) / (last - first), 0), 1) for i in range(r // 2)]
    by = p.get("attention_factor", Digits.mpf("0.1") * Digits.log(factor) + 1)
    return [f * k + f * (1 - k) / factor for f, k in zip(powers, kept, strict=True)], by


def turned(spec: Spec, x: Array, first: int) -> Array:
    """RoPE of rows (S, d), the first of which has position `first`."""
    if spec.rope == "none":
        return x
    out, r, position = x.copy(), spec.rotary_dim, np.arange(first, first + len(x))
    start, (speeds, by) = spec.head_dim - r if spec.rotary_at == "last" else 0, frequencies(spec)
    for i, speed in enumerate(speeds):
        a, b = (start + n for n in ((2 * i, 2 * i + 1) if spec.rope == "interleaved" else (i, i + r // 2)))
        c, s = by * cos(position * speed), by * sin(position * speed)
        out[:, a], out[:, b] = x[:, a] * c - x[:, b] * s, x[:, b] * c + x[:, a] * s
    return out


def prepared(spec: Spec, x: Array, weight: Any, first: int) -> Array:
    """A head of q or k after its norm and RoPE."""
    after = spec.qk_norm_at == "after_rope"
    x = turned(spec, x, first) if after else x
    x = x if spec.qk_norm == "none" else normed(x, spec.qk_norm, spec.qk_norm_eps) * weight
    return x if after else turned(spec, x, first)


def one_map(spec: Spec, q: Array, k: Array, v: Array, sink: Any) -> tuple[Array, Array]:
    """Σ_s p_s v_s with p_s = e^{z_s} / Σ e^z over visible keys, and log Σ e^z; a sink is a z whose p has no v."""
    z = q @ k.T * (1 / Digits.sqrt(spec.head_dim) if spec.scale is None else Digits.mpf(spec.scale))
    z = z if spec.softcap is None else spec.softcap * tanh(z / Digits.mpf(spec.softcap))
    T, S = z.shape
    apart = np.arange(T)[:, None] + (0 if spec.causal == "top_left" else S - T) - np.arange(S)
    see = ((apart >= 0) | (spec.causal == "none")) & (np.abs(apart) < (spec.window or S + T))
    weights = exp(z) * see
    total = weights.sum(axis=-1) + (0 if sink is None else Digits.exp(sink))
    return np.asarray(weights / total[:, None] @ v), np.asarray(log(total))


def attention(spec: Spec, given: dict[str, Array], b: int = 0) -> dict[str, Array]:
    """The output, heads before the norm, log-sum-exps and λ of sequence b, in which each query sees some key."""
    x = {name: exact(y[b] if name in "qkv" or name.endswith("logits") else y) for name, y in given.items()}
    q, k, v = (x[name] for name in "qkv")
    h, w, T, S = spec.heads, head_indices(spec), q.shape[1], k.shape[1]
    q, k = (
        np.stack([prepared(spec, head, x.get(f"{name}_norm_weight", 1), first) for head in y])
        for name, y, first in (("q", q, S - T), ("k", k, 0))
    )
    v = np.concatenate([v[part] for part in value_heads(spec)], axis=-1)
    sinks = x["sinks"] if spec.sinks else [None] * spec.query_heads
    one, two = (
        [one_map(spec, q[a], k[b], v[j], sinks[a]) for a, b, j in zip(wq, wk, w.v, strict=True)]
        for wq, wk in ((w.q1, w.k1), (w.q2, w.k2))
    )
    depth = spec.layer - (spec.lambda_base == "depth - 1")
    init = Digits.mpf("0.8") - Digits.mpf("0.6") * Digits.exp(-Digits.mpf("0.3") * depth)
    init = init if spec.lambda_init is None else Digits.mpf(spec.lambda_init)
    if spec.lambda_form == "exp":
        first, second = (exp((x[f"lambda_q{n}"] * x[f"lambda_k{n}"]).sum(axis=-1)) for n in "12")
        lambda_ = first - second + init
    else:
        lambda_ = {"given": x.get("lambda_full"), "none": Digits.mpf(0)}.get(spec.lambda_form)
    if spec.lambda_form == "sigmoid":
        lambda_ = (1 / (1 + exp(-x["lambda_logits"]))).T
    lambda_ = np.broadcast_to(np.reshape(lambda_, (-1, 1)) if np.ndim(lambda_) < 2 else lambda_, (h, T))[..., None]
    diff = np.stack([a for a, _ in one]) - lambda_ * np.stack([a for a, _ in two])
    factors = {"none": 1, "1 - lambda": 1 - lambda_, "lambda_init": init, "1 - lambda_init": 1 - init}
    out = diff
    if spec.norm != "none":
        parts = {"head": h, "half_head": 2 * h, "all_heads": 1}[spec.norm_over]
        rows = normed(np.moveaxis(diff, 0, 1).reshape(T, parts, -1), spec.norm, spec.norm_eps).reshape(T, h, -1)
        out = np.moveaxis(rows * x.get("norm_weight", 1) + x.get("norm_bias", 0), 1, 0)
    out = out * factors[spec.out_scale]
    if spec.gate != "none":
        g = x["gate_logits"]
        sigma = 1 / (1 + exp(-g))
        out = out * {"sigmoid": sigma, "silu": g * sigma, "linear": g}[spec.gate]
    sums = dict(zip(spec.lse_names, (np.stack([s for _, s in of]) for of in (one, two)), strict=False))
    return {"out": out, "diff": diff, "lambda_full": lambda_[..., 0], **sums}
