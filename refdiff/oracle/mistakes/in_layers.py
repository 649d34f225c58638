"""Mistakes that no field of a spec can state: wrong layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.layers import linear
from refdiff.layers.diff_heads_paper import interleave_heads
from refdiff.layers.softmax import softmax
from refdiff.oracle.mistakes.catalogue import Call, Mistake, in_attention, read_as_tokens_first
from refdiff.oracle.spec import Spec

# --- heads ---


def _is_v2(spec: Spec) -> bool:
    return spec.keys == "shared" and spec.ratio == 1 and not (spec.is_plain or spec.sinks)


def _v2_half_split_pairs(call: Call) -> Any:
    h, xp = call.q1.shape[1], namespace(call.q1)
    q, k, v = interleave_heads(call.q1, call.q2), xp.repeat(call.k1, 2, axis=1), xp.repeat(call.v, 2, axis=1)
    mask, bias = (
        x if x is None or x.ndim < 3 or x.shape[-3] == 1 else xp.repeat(x, 2, axis=-3) for x in (call.mask, call.bias)
    )
    plain = call(q1=q, k1=k, q2=q, k2=k, v=v, lambda_=xp.zeros((), dtype=q.dtype), mask=mask, bias=bias)
    return plain[:, :h, ...] - call.lambda_ * plain[:, h:, ...]


def _mean_lambda(call: Call) -> Any:
    x, xp = call(), namespace(call.x)
    return xp.zeros_like(x) + (xp.mean(x) if x.shape[0] else 0.0)


HEAD_MISTAKES: tuple[Mistake, ...] = (
    in_attention("v2_half_split_pairs", "Heads i, i + h paired in place of 2i, 2i + 1, which share a key: the two maps "
                 "have different keys and values. The authors warn of it.", "pair", _v2_half_split_pairs, "B1",
                 condition=_is_v2),
    Mistake("value_halves_swapped", "Value heads joined in the other order: [v_{j + K/2} ; v_j].",
            "value_pairs_hf", "value layout",
            lambda call: call(v=namespace(call.v).roll(call.v, call.v.shape[1] // 2, axis=1))),
    Mistake("keys_swapped", "Q₁ on K₂ and Q₂ on K₁.", "diff_attention", "maps",
            lambda call: call(k1=call.k2, k2=call.k1)),
    Mistake("first_key_for_both_maps", "K₁ for both maps, as in v2.", "diff_attention", "maps",
            lambda call: call(k2=call.k1)),
    Mistake("maps_swapped", "The two maps exchanged: A₂ − λ A₁.", "diff_attention", "maps",
            lambda call: call(q1=call.q2, k1=call.k2, q2=call.q1, k2=call.k1)),
    in_attention("output_read_as_tokens_first",
                 "The output (B, H, T, e) read as (B, T, H e) without exchanging the axes.", "output layout",
                 lambda call: read_as_tokens_first(call())),
    Mistake("v2_one_lambda_per_layer", "One λ for all tokens and heads, their mean, in place of one each.",
            "diff_lambda_v2", "v1 or v2", _mean_lambda, "B3"),
    Mistake("v2_lambda_read_as_tokens_first", "λ, (B, h, T) in memory, read as (B, T, h).", "diff_lambda_v2",
            "v1 or v2", lambda call: read_as_tokens_first(call())),
)  # fmt: skip

# --- RoPE, λ and the norm ---


def _lambda(call: Call, combine: Callable[[Array, Array], Array]) -> Any:
    """Return combine(λ_q1 · λ_k1, λ_q2 · λ_k2) + λ_init."""
    xp = namespace(call.lambda_q1)
    products = xp.sum(call.lambda_q1 * call.lambda_k1), xp.sum(call.lambda_q2 * call.lambda_k2)
    return combine(*products) + call.lambda_init


def _epsilon_outside_sqrt(call: Call) -> Any:
    x, xp = call.x, namespace(call.x)
    y = x / (xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True)) + call.eps)
    return y if call.weight is None else y * call.weight


LAYER_MISTAKES: tuple[Mistake, ...] = (
    Mistake("rope_angle_negated", "RoPE rotates by the opposite angle: earlier tokens act as later ones.", "rope",
            "rope kind", lambda call: call(sin=-call.sin)),
    Mistake("positions_without_cache_offset",
            "RoPE's positions start at 0 in every call: tokens in the cache are not counted.", "rope_cos_sin",
            "rope offset", lambda call: call(positions=call.positions - call.positions[:, :1]), "B18"),
    Mistake("no_exponentials", "λ = λ_q1 · λ_k1 − λ_q2 · λ_k2 + λ_init, without exponentials.", "diff_lambda",
            "lambda form", lambda call: _lambda(call, lambda a, b: a - b), "B4"),
    Mistake("no_lambda_init", "λ_init not added to λ.", "diff_lambda", "lambda form",
            lambda call: call() - call.lambda_init),
    Mistake("lambda_init_only", "λ = λ_init, nothing learned.", "diff_lambda", "lambda form",
            lambda call: _lambda(call, lambda a, _: 0 * a), "B4"),
    Mistake("v2_no_sigmoid", "λ = x W_λ without the sigmoid.", "diff_lambda_v2", "v1 or v2",
            lambda call: namespace(call.x).permute_dims(linear(call.x, call.weight), (0, 2, 1))[..., None], "B3"),
    Mistake("epsilon_outside_sqrt", "x / (√mean x² + ε).", "rms_norm", "eps", _epsilon_outside_sqrt),
    Mistake("one_plus_norm_weight", "The norm's weight is 1 + w, as in Gemma, where w is meant.", "rms_norm",
            "norm weight", lambda call: call(weight=None if call.weight is None else 1 + call.weight)),
)  # fmt: skip

# --- the difference of two maps, and masks ---


def _maps(call: Call, lambda_: Array) -> tuple[Array, Array]:
    """Return A₁ and λ A₂: the outputs of the correct layer for the identity as values."""
    xp, (*heads, S, _) = namespace(call.q1), call.k1.shape
    unit = xp.broadcast_to(xp.eye(S, dtype=call.q1.dtype), (*heads, S, S))
    a1 = call(v=unit, lambda_=0 * lambda_)
    return a1, a1 - call(v=unit, lambda_=lambda_)


def _apply(p: Array, v: Array) -> Array:
    return p @ namespace(v).repeat(v, p.shape[1] // v.shape[1], axis=1)


def _difference_before_softmax(call: Call) -> Any:
    xp = namespace(call.q1)
    a1, a2 = _maps(call, 0 * call.lambda_ + 1)
    seen = (a1 > 0) & (a2 > 0)
    logs = xp.log(xp.where(seen, a1, 1.0)) - call.lambda_ * xp.log(xp.where(seen, a2, 1.0))
    return _apply(softmax(logs, seen), call.v)


def _clamp_weights(call: Call) -> Any:
    a1, a2 = _maps(call, call.lambda_)
    return _apply(namespace(a1).clip(a1 - a2, 0.0, None), call.v)


def _attend(call: Call, ahead: int) -> Any:
    """Attend to keys s ≤ t + S − T + ahead."""
    if not call.causal:
        return call()
    xp, T, S = namespace(call.q1), call.q1.shape[2], call.k1.shape[2]
    visible = xp.arange(S)[None, :] <= xp.arange(T)[:, None] + (S - T + ahead)
    return call(mask=visible if call.mask is None else call.mask & visible, causal=False)


ATTENTION_MISTAKES: tuple[Mistake, ...] = (
    in_attention("second_map_not_scaled", "Only S₁ divided by √d, and S₂ not.", "scale",
                 lambda call: call(q2=call.q2 * call.q1.shape[-1] ** 0.5)),
    in_attention("lambda_not_used", "A₁ V: plain attention. λ is computed and not used.", "lambda form",
                 lambda call: call(lambda_=0 * call.lambda_), "B11"),
    in_attention("lambda_added", "(A₁ + λ A₂) V.", "lambda form", lambda call: call(lambda_=-call.lambda_)),
    in_attention("lambda_on_both_maps", "λ (A₁ − A₂) V.", "lambda form",
                 lambda call: call.lambda_ * call(lambda_=0 * call.lambda_ + 1)),
    in_attention("difference_before_softmax", "softmax(S₁ − λ S₂) V.", "order", _difference_before_softmax, "B13"),
    in_attention("negative_weights_clamped", "max(A₁ − λ A₂, 0) V.", "clamp",
                 _clamp_weights, "B17"),
    in_attention("rows_renormalized", "(A₁ − λ A₂) V / (1 − λ): the norm after it hides this, up to ε.", "row sums",
                 lambda call: call() / namespace(call.q1).where(call.lambda_ == 1, 1.0, 1 - call.lambda_), "B17"),
    in_attention("own_key_masked", "Query t sees keys s < t + S − T: its own is missing.", "mask off by one",
                 lambda call: _attend(call, -1)),
    in_attention("one_future_key_visible", "Query t sees keys s ≤ t + S − T + 1: one too many.", "mask off by one",
                 lambda call: _attend(call, 1)),
)  # fmt: skip
