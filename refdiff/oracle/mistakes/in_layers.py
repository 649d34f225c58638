"""Mistakes that no field of a spec can state: wrong layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from refdiff.arrays import Array, namespace
from refdiff.layers import linear
from refdiff.layers.diff_heads_paper import interleave_heads
from refdiff.layers.softmax import softmax
from refdiff.oracle.inputs.sequences import Numpy
from refdiff.oracle.mistakes.catalogue import Call, Mistake, in_attention, normed
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import HeadIndices

# --- heads ---


def _change_heads(change: Callable[[HeadIndices, Numpy, int], dict[str, Numpy]]) -> Callable[[Call], Any]:
    """Change some of the heads that output heads i use, given the right ones, i, and the number of key groups."""

    def wrong(call: Call) -> HeadIndices:
        right: HeadIndices = call()
        return replace(right, **change(right, np.arange(call.spec.heads), call.spec.key_groups))

    return wrong


def _paired(pairing: str) -> Callable[[Spec], bool]:
    """Select specs of two maps with keys of their own, of this pairing, without noise heads of several signals."""
    fields = {"pairing": pairing, "keys": "own", "gqa": "pair_then_group", "group_order": "blocks", "ratio": 1}
    return lambda spec: not spec.is_plain and all(getattr(spec, name) == x for name, x in fields.items())


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


def _read_heads(call: Call, *, tokens_first: bool) -> Any:
    """Return heads (B, H, T, e) in memory, read as (B, T, H, e), or the other way round."""
    heads, xp = call(), namespace(call.q1)
    B, H, T, e = heads.shape
    if tokens_first:
        return xp.permute_dims(xp.reshape(heads, (B, T, H, e)), (0, 2, 1, 3))
    return xp.reshape(xp.permute_dims(heads, (0, 2, 1, 3)), heads.shape)


def _attention_over_heads(call: Call) -> Any:
    (B, H, T, _), xp = call.q1.shape, namespace(call.q1)
    if call.k1.shape[2] != T:
        return call()

    def by_token(x: Array) -> Array:
        return xp.permute_dims(xp.repeat(x, H // x.shape[1], axis=1), (0, 2, 1, 3))

    lambda_ = by_token(xp.broadcast_to(call.lambda_, (B, H, T, 1)))
    given = {name: by_token(call.given[name]) for name in ("q1", "k1", "q2", "k2", "v")}
    return xp.permute_dims(call(**given, lambda_=lambda_, mask=None, bias=None, causal=False), (0, 2, 1, 3))


def _mean_lambda(call: Call) -> Any:
    x, xp = call(), namespace(call.x)
    return xp.zeros_like(x) + (xp.mean(x) if x.shape[0] else 0.0)


def _lambda_read_as_tokens_first(call: Call) -> Any:
    x, xp = call(), namespace(call.x)
    B, h, T, _ = x.shape
    return xp.permute_dims(xp.reshape(x, (B, T, h, 1)), (0, 2, 1, 3))


def _lambda_by_query_head(call: Call) -> Any:
    x = call()
    return namespace(x).take(x, namespace(x).asarray([2 * i % x.shape[1] for i in range(x.shape[1])]), axis=1)


HEAD_MISTAKES: tuple[Mistake, ...] = (
    *(Mistake(name, what, "head_indices", "pair", _change_heads(change), "F1", _paired(pairing))
      for name, what, pairing, change in (
          ("interleaved_queries_only",
           "Query heads paired 2i, 2i + 1, where i, i + H/2 is meant; key heads j, j + K/2.", "halves",
           lambda w, i, _: {"q1": 2 * i, "q2": 2 * i + 1}),
          ("interleaved_keys_only",
           "Key heads paired 2j, 2j + 1, where j, j + K/2 is meant; query heads i, i + H/2.", "halves",
           lambda w, *_: {"k1": 2 * w.v, "k2": 2 * w.v + 1}),
          ("half_split_keys_only",
           "Key heads paired j, j + K/2, where 2j, 2j + 1 is meant; query heads 2i, 2i + 1.", "interleaved",
           lambda w, _, groups: {"k1": w.v, "k2": w.v + groups}),
          ("half_split_queries_only",
           "Query heads paired i, i + H/2, where 2i, 2i + 1 is meant; key heads 2j, 2j + 1.", "interleaved",
           lambda w, i, _: {"q1": i, "q2": i + len(i)}))),
    in_attention("v2_half_split_pairs", "Heads i, i + h paired in place of 2i, 2i + 1, which share a key: the two maps "
                 "have different keys and values. The authors warn of it.", "pair", _v2_half_split_pairs, "B1",
                 condition=_is_v2),
    Mistake("values_tiled", "Head i on value head i mod k, in place of i // n, and on its own key heads.",
            "head_indices", "gqa", _change_heads(lambda w, i, groups: {"v": i % groups})),
    Mistake("value_halves_swapped", "Value heads joined in the other order: [v_{j + K/2} ; v_j].",
            "value_pairs_hf", "value layout",
            lambda call: call(v=namespace(call.v).roll(call.v, call.v.shape[1] // 2, axis=1))),
    Mistake("keys_swapped", "Q₁ on K₂ and Q₂ on K₁.", "diff_attention", "maps",
            lambda call: call(k1=call.k2, k2=call.k1)),
    Mistake("first_key_for_both_maps", "K₁ for both maps, as in v2.", "diff_attention", "maps",
            lambda call: call(k2=call.k1)),
    Mistake("maps_swapped", "The two maps exchanged: A₂ − λ A₁.", "diff_attention", "maps",
            lambda call: call(q1=call.q2, k1=call.k2, q2=call.q1, k2=call.k1)),
    Mistake("lambda_in_softmax", "λ inside the second softmax: softmax(S₁) − softmax(λ S₂).", "diff_attention", "maps",
            lambda call: call(q2=call.lambda_ * call.q2, lambda_=0 * call.lambda_ + 1)),
    in_attention("output_read_as_tokens_first",
                 "The output (B, H, T, e) read as (B, T, H e) without exchanging the axes.", "output layout",
                 lambda call: _read_heads(call, tokens_first=True)),
    in_attention("output_read_as_heads_first",
                 "The output (B, T, H e) read as (B, H, T, e) without exchanging the axes.", "output layout",
                 lambda call: _read_heads(call, tokens_first=False)),
    Mistake("attention_over_heads",
            "Each token's heads attend to each other, without a mask: (B, T, H, d) passed as (B, H, T, d).",
            "diff_attention", "output layout", _attention_over_heads),
    Mistake("v2_one_lambda_per_layer", "One λ for all tokens and heads, their mean, in place of one each.",
            "diff_lambda_v2", "v1 or v2", _mean_lambda, "B3"),
    Mistake("v2_lambda_read_as_tokens_first", "λ, (B, h, T) in memory, read as (B, T, h).", "diff_lambda_v2",
            "v1 or v2", _lambda_read_as_tokens_first),
    Mistake("v2_lambda_by_query_head", "λ indexed by query head modulo h: pair i gets λ of pair 2i mod h.",
            "diff_lambda_v2", "v1 or v2", _lambda_by_query_head),
)  # fmt: skip

# --- RoPE, λ and the norm ---


def _first_of_each_pair_rotated(call: Call) -> Any:
    rotated, n = call() + 0, call.cos.shape[-1]
    where = slice(1, 2 * n, 2) if call.interleaved else slice(n, 2 * n)
    rotated[..., where] = call.x[..., where]
    return rotated


def _lambda(call: Call, combine: Callable[[Array, Array], Array]) -> Any:
    """Return combine(λ_q1 · λ_k1, λ_q2 · λ_k2) + λ_init."""
    xp = namespace(call.lambda_q1)
    products = xp.sum(call.lambda_q1 * call.lambda_k1), xp.sum(call.lambda_q2 * call.lambda_k2)
    return combine(*products) + call.lambda_init


def _exp_in_bfloat16(x: Array) -> Array:
    """Return e^x rounded to bfloat16 by Veltkamp's splitting, which keeps the first 8 bits."""
    y = namespace(x).exp(x)
    by = y * (2.0**-7 / namespace(x).finfo(x.dtype).eps + 1)
    return by - (by - y)


def _epsilon_outside_sqrt(call: Call) -> Any:
    x, xp = call.x, namespace(call.x)
    y = x / (xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True)) + call.eps)
    return y if call.weight is None else y * call.weight


LAYER_MISTAKES: tuple[Mistake, ...] = (
    Mistake("rope_angle_negated", "RoPE rotates by the opposite angle: earlier tokens act as later ones.", "rope",
            "rope kind", lambda call: call(sin=-call.sin)),
    Mistake("first_of_each_pair_rotated", "RoPE changes only the first dimension of each pair it should rotate.",
            "rope", "rope kind", _first_of_each_pair_rotated),
    Mistake("positions_without_cache_offset",
            "RoPE's positions start at 0 in every call: tokens in the cache are not counted.", "rope_cos_sin",
            "rope offset", lambda call: call(positions=call.positions - call.positions[:, :1]), "B18"),
    Mistake("no_exponentials", "λ = λ_q1 · λ_k1 − λ_q2 · λ_k2 + λ_init, without exponentials.", "diff_lambda",
            "lambda form", lambda call: _lambda(call, lambda a, b: a - b), "B4"),
    Mistake("no_lambda_init", "λ_init not added to λ.", "diff_lambda", "lambda form",
            lambda call: call() - call.lambda_init),
    Mistake("lambda_init_only", "λ = λ_init, nothing learned.", "diff_lambda", "lambda form",
            lambda call: _lambda(call, lambda a, _: 0 * a), "B4"),
    Mistake("exponentials_added", "The exponentials of λ added, not subtracted.", "diff_lambda", "lambda form",
            lambda call: _lambda(call, lambda a, b: namespace(a).exp(a) + namespace(b).exp(b))),
    Mistake("exponential_of_difference", "λ = exp(λ_q1 · λ_k1 − λ_q2 · λ_k2) + λ_init.", "diff_lambda",
            "lambda form", lambda call: _lambda(call, lambda a, b: namespace(a).exp(a - b))),
    Mistake("mean_instead_of_dot_product", "The mean of λ_q λ_k in place of the sum.", "diff_lambda", "lambda form",
            lambda call: call(lambda_q1=call.lambda_q1 / call.lambda_q1.shape[0],
                              lambda_q2=call.lambda_q2 / call.lambda_q1.shape[0])),
    Mistake("lambda_vectors_crossed", "λ_q1 · λ_k2 and λ_q2 · λ_k1 in place of λ_q1 · λ_k1 and λ_q2 · λ_k2.",
            "diff_lambda", "lambda form", lambda call: call(lambda_k1=call.lambda_k2, lambda_k2=call.lambda_k1)),
    Mistake("exponentials_rounded_to_bfloat16", "Each exponential rounded to bfloat16 before the subtraction, which is "
            "correct for a bfloat16 model of Hugging Face.", "diff_lambda", "lambda rounding",
            lambda call: _lambda(call, lambda a, b: _exp_in_bfloat16(a) - _exp_in_bfloat16(b)), "F7"),
    Mistake("sigmoid_of_lambda", "σ(λ) in place of λ, as in v2.", "diff_lambda", "v1 or v2",
            lambda call: 1 / (1 + namespace(call.lambda_q1).exp(-call()))),
    Mistake("v2_no_sigmoid", "λ = x W_λ without the sigmoid.", "diff_lambda_v2", "v1 or v2",
            lambda call: namespace(call.x).permute_dims(linear(call.x, call.weight), (0, 2, 1))[..., None], "B3"),
    Mistake("norm_by_sum_of_squares", "x / √(Σ x² + ε): a factor of √D too small.", "rms_norm", "norm kind",
            lambda call: call(eps=call.eps / call.x.shape[-1]) / call.x.shape[-1] ** 0.5),
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


def _change_weights(call: Call, change: Callable[[Array, Array], Array]) -> Any:
    """Return P V with P = change(A₁, λ A₂) in place of their difference."""
    return _apply(change(*_maps(call, call.lambda_)), call.v)


def _norm_before_difference(call: Call) -> Any:
    o1, o2 = (normed(_apply(a, call.v), 1e-5) for a in _maps(call, 0 * call.lambda_ + 1))
    return o1 - call.lambda_ * o2


def _one_added_to_denominator(call: Call) -> Any:
    xp, S = namespace(call.q1), call.k1.shape[2]

    def prepend(sink: Any, x: Array, axis: int) -> Array:
        one = xp.full((*x.shape[:axis], 1, *x.shape[axis:][1:]), sink, dtype=x.dtype)
        return xp.concat([one, x], axis=axis)

    more = {name: prepend(0.0, call.given[name], 2) for name in ("k1", "k2", "v")}
    for name, sink in (("mask", True), ("bias", 0.0)):
        if (x := call.given.get(name)) is not None:
            more[name] = prepend(sink, xp.broadcast_to(x, (*x.shape[:-1], S)), x.ndim - 1)
    return call(**more)


def _attend(call: Call, ahead: int, *, inverted: bool = False) -> Any:
    """Attend to keys s ≤ t + S − T + ahead, or to all others (`inverted`)."""
    if not call.causal:
        return call()
    xp, T, S = namespace(call.q1), call.q1.shape[2], call.k1.shape[2]
    visible = xp.arange(S)[None, :] <= xp.arange(T)[:, None] + (S - T + ahead)
    visible = xp.logical_not(visible) if inverted else visible
    return call(mask=visible if call.mask is None else call.mask & visible, causal=False)


ATTENTION_MISTAKES: tuple[Mistake, ...] = (
    in_attention("second_map_not_scaled", "Only S₁ divided by √d, and S₂ not.", "scale",
                 lambda call: call(q2=call.q2 * call.q1.shape[-1] ** 0.5)),
    in_attention("lambda_not_used", "A₁ V: plain attention. λ is computed and not used.", "lambda form",
                 lambda call: call(lambda_=0 * call.lambda_), "B11"),
    in_attention("lambda_added", "(A₁ + λ A₂) V.", "lambda form", lambda call: call(lambda_=-call.lambda_)),
    in_attention("lambda_on_both_maps", "λ (A₁ − A₂) V.", "lambda form",
                 lambda call: call.lambda_ * call(lambda_=0 * call.lambda_ + 1)),
    in_attention("zero_initialized_second_map",
                 "Q₂ = 0, from a converter that means to keep the function: A₂ is then uniform, not zero.",
                 "conversion", lambda call: call(q2=0 * call.q2), "B21"),
    in_attention("difference_before_softmax", "softmax(S₁ − λ S₂) V.", "order", _difference_before_softmax, "B13"),
    in_attention("softmax_of_difference", "softmax(A₁ − λ A₂) V: a third softmax, over the difference of the two maps.",
                 "order", lambda call: _change_weights(call, lambda a1, a2: softmax(a1 - a2, a1 > 0))),
    in_attention("norm_before_difference", "LN(A₁ V) − λ LN(A₂ V).", "order", _norm_before_difference),
    in_attention("negative_weights_clamped", "max(A₁ − λ A₂, 0) V.", "clamp",
                 lambda call: _change_weights(call, lambda a1, a2: namespace(a1).clip(a1 - a2, 0.0, None)), "B17"),
    in_attention("rows_renormalized", "(A₁ − λ A₂) V / (1 − λ): the norm after it hides this, up to ε.", "row sums",
                 lambda call: call() / namespace(call.q1).where(call.lambda_ == 1, 1.0, 1 - call.lambda_), "B17"),
    in_attention("one_added_to_denominator",
                 "e^z / (1 + Σ e^z), a softmax with a sink: as if there were one more key, of score and value 0.",
                 "row sums", _one_added_to_denominator),
    in_attention("own_key_masked", "Query t sees keys s < t + S − T: its own is missing.", "mask off by one",
                 lambda call: _attend(call, -1)),
    in_attention("one_future_key_visible", "Query t sees keys s ≤ t + S − T + 1: one too many.", "mask off by one",
                 lambda call: _attend(call, 1)),
    in_attention("causal_mask_inverted",
                 'Every query sees only later keys: True in the causal mask taken for "hidden".', "mask",
                 lambda call: _attend(call, 0, inverted=True)),
)  # fmt: skip
