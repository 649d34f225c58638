"""Mistakes in derivatives of a correct forward pass. They show only in gradients.

In the calls of `backward` every query head has keys and values of its own (`attention_operands`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import numpy as np

from refdiff.arrays import Array
from refdiff.layers.activation import activation
from refdiff.layers.diff_attention import attention_scores, attention_weights, split_maps
from refdiff.layers.linear import linear_vjp
from refdiff.oracle.mistakes.catalogue import Call, Mistake

Q1, K1, Q2, K2, V, LAMBDA = range(6)
"""The places of gradients in the result of `diff_attention_vjp`; `diff_lambda_vjp` has those of λ_q1 to λ_k2."""
SATURATED = 1e-9
"""The least derivative of a softcap that is divided out again."""


def _mistake(
    name: str, what: str, wrong: Callable[[Call], Any], row: str = "", *, layer: str = "diff_attention_vjp"
) -> Mistake:
    return Mistake(name, what, layer, "backward", wrong, row)


def _lse_used_without_mask(call: Call) -> Any:
    more: list[Array] = []
    seen_by_map, every = masked_scores(call), masked_scores(call, without=True)
    for (q, k, *_), seen, z, sign in zip(_split_by_map(call), seen_by_map, every, (1.0, -call.lambda_), strict=True):
        (lse,) = log_sums([seen])
        hidden = np.isneginf(seen) & np.any(seen > -np.inf, axis=-1, keepdims=True)
        weights = sign * np.exp(np.where(hidden, z - lse, -np.inf))
        row_sum = np.sum(call.g * (np.exp(seen - lse) @ call.v), axis=-1, keepdims=True)
        ds = weights * (call.g @ np.matrix_transpose(call.v) - row_sum)
        more += [*_scores_vjp(ds, q, k), np.matrix_transpose(weights) @ call.g]
    q1, k1, v1, q2, k2, v2 = more
    return tuple(map(np.add, call(), (q1, k1, q2, k2, v1 + v2, 0.0)))


def _split_by_map(call: Call) -> Iterator[tuple[Array, Array, Any, Any]]:
    """Yield the queries, keys, mask and bias of each map."""
    masks, biases = (split_maps(x, call.q1.shape[1]) for x in (call.mask, call.bias))
    return zip((call.q1, call.q2), (call.k1, call.k2), masks, biases, strict=True)


def masked_scores(call: Call, *, without: bool = False) -> list[Array]:
    """Return the scores of both maps, (B, H, T, S), −∞ for hidden keys; as they are `without` a mask."""
    given = ((q, k, None if without else mask, bias) for q, k, mask, bias in _split_by_map(call))
    both = (attention_scores(*of_map, causal=call.causal and not without) for of_map in given)
    return [z if visible is None else np.where(visible, z, -np.inf) for z, visible in both]


def log_sums(scores: list[Array]) -> list[Array]:
    """Return the log-sum-exps of both maps, (B, H, T, 1), 0 for a query that sees no key."""
    lse = (np.logaddexp.reduce(z, axis=-1, keepdims=True) for z in scores)
    return [np.where(np.isfinite(x), x, 0.0) for x in lse]


def _scores_vjp(ds: Array, q: Array, k: Array) -> tuple[Array, Array]:
    """Return ∂L/∂Q and ∂L/∂K for ∂L/∂S (B, H, T, S)."""
    ds = ds / math.sqrt(q.shape[-1])
    return ds @ k, np.matrix_transpose(ds) @ q


def _changed(call: Call, change: Callable[[Array], Array], *places: int) -> Any:
    """Return the gradients of the correct layer, some of them changed."""
    return tuple(change(d) if n in places else d for n, d in enumerate(call()))


def _add_row_sums(found: Any, call: Call, more: Callable[[Array, Array], tuple[Array | float, Array | float]]) -> Any:
    """Add Aᵢ ⊙ xᵢ to ∂L/∂Sᵢ in the gradients, with one number per row, x = more(rowsum(G ⊙ A₁), rowsum(G ⊙ A₂))."""
    dq1, dk1, dq2, dk2, *rest = found
    a1, a2 = (attention_weights(*of_map, causal=call.causal) for of_map in _split_by_map(call))
    x1, x2 = more(*(np.sum(call.g * (a @ call.v), axis=-1, keepdims=True) for a in (a1, a2)))
    (mq1, mk1), (mq2, mk2) = _scores_vjp(a1 * x1, call.q1, call.k1), _scores_vjp(a2 * x2, call.q2, call.k2)
    return (dq1 + mq1, dk1 + mk1, dq2 + mq2, dk2 + mk2, *rest)


def _scale_rows(call: Call, factors: Callable[[Array, Array], tuple[Any, ...]]) -> Any:
    """Return the gradients with rows of Aᵢ multiplied by xᵢ where Aᵢ is recomputed, x = factors(LSE₁, LSE₂)."""
    g1, g2 = (call.g * x for x in factors(*log_sums(masked_scores(call))))
    dq1, dk1, _, _, dv, _ = call(g=g1, lambda_=0 * call.lambda_)
    _, _, dq2, dk2, both, _ = call(g=g2)
    return dq1, dk1, dq2, dk2, dv + both - call(g=g2, lambda_=0 * call.lambda_)[V], call()[LAMBDA]


def _keep_last_of_group(call: Call) -> Any:
    """Zero ∂L/∂K and ∂L/∂V of all query heads but the last of those that share keys, whose keys are equal."""
    dq1, dk1, dq2, dk2, dv, dlambda = call()

    def kept(d: Array, x: Array) -> Array:
        heads = np.moveaxis(x, 1, 0)
        followed = [any(np.array_equal(one, other) for other in heads[i + 1 :]) for i, one in enumerate(heads)]
        return np.where(np.reshape(followed, (1, -1, 1, 1)), 0.0, d)

    return dq1, kept(dk1, call.k1), dq2, kept(dk2, call.k2), kept(dv, call.v), dlambda


def softcap_mistake(cap: float) -> Mistake:
    """Return the mistake of leaving out the derivative of a softcap: the layer's q1 and q2 are the capped scores."""

    def undone(d: Array, capped: Array) -> Array:
        return d / np.maximum(1 - (capped / cap) ** 2, SATURATED)

    def wrong(call: Call) -> Any:
        dq1, dk1, dq2, dk2, *rest = call()
        return (undone(dq1, call.q1), dk1, undone(dq2, call.q2), dk2, *rest)

    what = "∂L/∂z = g in place of (1 − tanh²(z / c)) g: the derivative of the softcap c tanh(z / c) left out."
    return _mistake("gradient_without_softcap", what, wrong)


def _sigmoid_detached(call: Call) -> Any:
    return linear_vjp(np.swapaxes(call.g[..., 0], 1, 2), call.x, call.weight)[:2]


def _rms_detached(call: Call) -> Any:
    r = 1 / np.sqrt(np.mean(call.x * call.x, axis=-1, keepdims=True) + call.eps)
    return r * (call.g if call.weight is None else call.g * call.weight), call()[1]


GENERAL_BACKWARD_MISTAKES: tuple[Mistake, ...] = (
    _mistake("gradient_without_causal_mask", "The gradient of attention without the causal mask.",
             lambda call: call(causal=False), "B23"),
    _mistake("gradient_without_mask",
             "The gradient of attention without the padding mask or another given one; the causal mask is kept.",
             lambda call: call(mask=None)),
    _mistake("lse_used_without_mask",
             "Aᵢ = exp(Sᵢ − LSEᵢ) recomputed for every key, and not set to 0 for hidden keys.",
             _lse_used_without_mask),
    _mistake("lse_in_base_2", "Aᵢ = exp(Sᵢ − LSEᵢ) recomputed with log-sum-exps that are saved in base 2: LSEᵢ log₂ e.",
             lambda call: _scale_rows(call, lambda *lse: tuple(np.exp(x - x / math.log(2)) for x in lse))),
    _mistake("lse_not_in_base_2",
             "Aᵢ = 2^(Sᵢ log₂ e − LSEᵢ) recomputed with natural log-sum-exps, not multiplied by log₂ e.",
             lambda call: _scale_rows(call, lambda *lse: tuple(np.exp(x - x * math.log(2)) for x in lse))),
    _mistake("no_row_sums", "∂L/∂S = A ⊙ ∂L/∂A, from which A ⊙ rowsum(∂L/∂A ⊙ A) is not subtracted.",
             lambda call: _add_row_sums(call(), call, lambda d1, d2: (d1, -call.lambda_ * d2))),
    _mistake("gradient_of_one_query_head",
             "∂L/∂K and ∂L/∂V of the last query head that shares a key head alone, in place of the sum over all.",
             _keep_last_of_group),
    _mistake("rms_detached", "∂L/∂x = r (g ⊙ w) with r = 1/√(mean(x²) + ε) taken as a constant: r x̂ mean(g ⊙ w "
             "⊙ x̂) is not subtracted.", _rms_detached, layer="rms_norm_vjp"),
    _mistake("activation_for_derivative",
             "∂L/∂x = g f(x) in place of g f′(x): of a gate σ(x), not multiplied by 1 − σ(x).",
             lambda call: (call.g * activation(call.x, call.name, call.weight), *call()[1:]), layer="activation_vjp"),
    _mistake("gradient_rotated_forward",
             "∂L/∂x = R g in place of Rᵀ g: rotated by the angle of the forward pass, not by its opposite.",
             lambda call: call(sin=-call.sin), layer="rope_vjp"),
    _mistake("gradient_not_rotated_back", "∂L/∂x = g in place of Rᵀ g: the gradients of queries and keys after RoPE.",
             lambda call: (call.g, *call()[1:]), layer="rope_vjp"),
)  # fmt: skip
TWO_MAP_BACKWARD_MISTAKES: tuple[Mistake, ...] = (
    _mistake("map_gradients_swapped", "∂L/∂Q₁ and ∂L/∂K₁ exchanged with ∂L/∂Q₂ and ∂L/∂K₂.",
             lambda call: itemgetter(Q2, K2, Q1, K1, V, LAMBDA)(call())),
    _mistake("second_map_detached", "∂L/∂Q₂ = ∂L/∂K₂ = 0: A₂ detached.",
             lambda call: _changed(call, lambda d: 0 * d, Q2, K2)),
    _mistake("value_gradient_of_first_map_only", "∂L/∂V = A₁ᵀ g in place of (A₁ − λ A₂)ᵀ g.",
             lambda call: _changed(call, lambda _: call(lambda_=0 * call.lambda_)[V], V)),
    _mistake("row_sums_of_difference", "∂L/∂S₁ = A₁ ⊙ (G − D) and ∂L/∂S₂ = −λ A₂ ⊙ (G − D) with one D = rowsum(g "
             "⊙ O), O = (A₁ − λ A₂) V, for both.",
             lambda call: _add_row_sums(call(), call, lambda d1, d2: (
                 call.lambda_ * d2, -call.lambda_ * (d2 - d1 + call.lambda_ * d2)))),
    _mistake("lse_of_first_map", "A₂ = exp(S₂ − LSE₁) recomputed with the log-sum-exp of the first map, not LSE₂.",
             lambda call: _scale_rows(call, lambda lse1, lse2: (1.0, np.exp(lse2 - lse1)))),
    _mistake("lambda_gradient_without_exponentials",
             "∂L/∂λ_q1 = g λ_k1 in place of g e₁ λ_k1, and so of all four.", lambda call: (
                 call.g * call.lambda_k1, call.g * call.lambda_q1, -call.g * call.lambda_k2, -call.g * call.lambda_q2),
             layer="diff_lambda_vjp"),
    _mistake("no_sigmoid_derivative", "∂L/∂x = ∂L/∂λ in place of λ (1 − λ) ∂L/∂λ, λ being σ(x).",
             _sigmoid_detached, layer="diff_lambda_v2_vjp"),
)  # fmt: skip
"""Mistakes in the difference of two maps and in λ. Plain attention has neither."""
BACKWARD_MISTAKES: tuple[Mistake, ...] = (*GENERAL_BACKWARD_MISTAKES, *TWO_MAP_BACKWARD_MISTAKES)
