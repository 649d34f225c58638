"""Mistakes in the difference of two softmax maps, and in the masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.layers.softmax import softmax
from refdiff.oracle.mistakes.catalogue import EDIFICE, Call, Mistake, normed


def _scaled(call: Call, by: float) -> Any:
    return call(q1=call.q1 * by, q2=call.q2 * by)


def _finite_mask_value(call: Call) -> Any:
    weights = call()
    xp = namespace(weights)
    none = xp.logical_not(xp.any(weights > 0, axis=-1, keepdims=True))
    return xp.where(none, 1.0 / max(1, weights.shape[-1]), weights)


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


def _attend(
    call: Call, ahead: int | None, *, from_left: bool = False, window: int | None = None, inverted: bool = False
) -> Any:
    """Attend to keys i − window < s ≤ i + ahead, or to all others (`inverted`).

    Query t stands at key i = t + S − T, or i = t (`from_left`). None for `ahead` or `window` is no limit.
    """
    if not call.causal:
        return call()
    xp, T, S = namespace(call.q1), call.q1.shape[2], call.k1.shape[2]
    t, s = xp.arange(T)[:, None], xp.arange(S)[None, :]
    here = t if from_left else t + (S - T)
    visible = xp.ones((T, S), dtype=xp.bool) if ahead is None else s <= here + ahead
    if window is not None:
        visible = visible & (s > here - window)
    visible = xp.logical_not(visible) if inverted else visible
    return call(mask=visible if call.mask is None else call.mask & visible, causal=False)


ATTENTION_MISTAKES: tuple[Mistake, ...] = (
    Mistake("scores_not_scaled", "Q Kᵀ, not divided by √d.", "diff_attention", "scale",
            lambda call: _scaled(call, call.q1.shape[-1] ** 0.5), "B14"),
    Mistake("scores_scaled_by_sqrt_half_d", "Q Kᵀ / √(d/2): d halved twice.", "diff_attention", "scale",
            lambda call: _scaled(call, 2**0.5), "B14", EDIFICE),
    Mistake("scores_scaled_by_sqrt_2d", "Q Kᵀ / √2d: the width of two heads together.", "diff_attention",
            "scale", lambda call: _scaled(call, 0.5**0.5), "B14", EDIFICE),
    Mistake("scores_scaled_twice", "Q Kᵀ / d: by the caller and by the kernel.", "diff_attention", "scale",
            lambda call: _scaled(call, call.q1.shape[-1] ** -0.5)),
    Mistake("second_map_not_scaled", "Only S₁ divided by √d, and S₂ not.", "diff_attention", "scale",
            lambda call: call(q2=call.q2 * call.q1.shape[-1] ** 0.5)),
    Mistake("exp2_for_exp", "2^z in place of e^z: scores not multiplied by log₂ e.", "diff_attention", "lse base",
            lambda call: _scaled(call, math.log(2)) if call.bias is None else call(
                q1=call.q1 * math.log(2), q2=call.q2 * math.log(2), bias=call.bias * math.log(2))),
    Mistake("finite_mask_value",
            "Weights 1/S for a query that sees no key, as from a mask of large negative numbers.", "softmax", "mask",
            _finite_mask_value),
    Mistake("lambda_not_used", "A₁ V: plain attention.", "diff_attention", "lambda form",
            lambda call: call(lambda_=0 * call.lambda_), "B11"),
    Mistake("lambda_added", "(A₁ + λ A₂) V.", "diff_attention", "lambda form",
            lambda call: call(lambda_=-call.lambda_)),
    Mistake("lambda_on_both_maps", "λ (A₁ − A₂) V.", "diff_attention", "lambda form",
            lambda call: call.lambda_ * call(lambda_=0 * call.lambda_ + 1)),
    Mistake("zero_initialized_second_map",
            "Q₂ = 0, from a converter that means to keep the function: A₂ is then uniform, not zero.", "diff_attention",
            "conversion", lambda call: call(q2=0 * call.q2), "B21"),
    Mistake("difference_before_softmax", "softmax(S₁ − λ S₂) V.", "diff_attention", "order",
            _difference_before_softmax, "B13"),
    Mistake("softmax_of_difference", "softmax(A₁ − λ A₂) V: a third softmax, over the difference of the two maps.",
            "diff_attention", "order", lambda call: _change_weights(call, lambda a1, a2: softmax(a1 - a2, a1 > 0))),
    Mistake("norm_before_difference", "LN(A₁ V) − λ LN(A₂ V).", "diff_attention", "order",
            _norm_before_difference),
    Mistake("negative_weights_clamped", "max(A₁ − λ A₂, 0) V.", "diff_attention", "clamp",
            lambda call: _change_weights(call, lambda a1, a2: namespace(a1).clip(a1 - a2, 0.0, None)), "B17"),
    Mistake("rows_renormalized", "(A₁ − λ A₂) V / (1 − λ): the norm after it hides this, up to ε.",
            "diff_attention", "row sums",
            lambda call: call() / namespace(call.q1).where(call.lambda_ == 1, 1.0, 1 - call.lambda_), "B17"),
    Mistake("one_added_to_denominator",
            "e^z / (1 + Σ e^z), a softmax with a sink: as if there were one more key, of score and value 0.",
            "diff_attention", "row sums", _one_added_to_denominator),
    Mistake("causal_mask_top_left",
            "Query t sees keys up to t, also with a cache, where it should see keys up to t + S − T.", "diff_attention",
            "mask align", lambda call: _attend(call, 0, from_left=True), "B18"),
    Mistake("own_key_masked", "Query t sees keys s < t + S − T: its own is missing.",
            "diff_attention", "mask off by one", lambda call: _attend(call, -1)),
    Mistake("one_future_key_visible", "Query t sees keys s ≤ t + S − T + 1: one too many.", "diff_attention",
            "mask off by one", lambda call: _attend(call, 1)),
    Mistake("no_causal_mask", "No causal mask: every query sees all keys.", "diff_attention", "mask",
            lambda call: _attend(call, None)),
    Mistake("causal_mask_inverted", 'Every query sees only later keys: True in the causal mask taken for "hidden".',
            "diff_attention", "mask", lambda call: _attend(call, 0, inverted=True)),
    Mistake("extra_qk_norm",
            "q and k divided by their root mean square before the scores, as in models with a QK norm.",
            "diff_attention", "norm kind",
            lambda call: call(**{name: normed(call.given[name], 1e-6) for name in ("q1", "k1", "q2", "k2")})),
    Mistake("no_padding_mask", "Padding tokens visible as keys.", "diff_attention", "mask",
            lambda call: call(mask=None)),
    Mistake("extra_window", "A window of 4 keys, where none is meant.", "diff_attention", "window",
            lambda call: _attend(call, 0, window=4), "B19"),
    Mistake("first_key_lost", "A window one key too short for the text: the last query does not see the first key.",
            "diff_attention", "window", lambda call: _attend(call, 0, window=call.k1.shape[2] - 1), "B19"),
)  # fmt: skip
