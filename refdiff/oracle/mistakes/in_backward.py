"""Mistakes in derivatives, whose forward is right: no output shows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.layers.activation import activation
from refdiff.layers.diff_attention import attention_scores, attention_weights, per_map
from refdiff.oracle.mistakes.catalogue import Mistake, mistake

BACKWARD_MISTAKES: list[Mistake] = []
LAYER = "diff_attention_vjp"


@mistake(BACKWARD_MISTAKES, LAYER, "backward", "B23", "https://github.com/triton-lang/triton/issues/7216")
def gradient_without_the_causal_mask(right: Any, *args: Any, **options: Any) -> Any:
    """The gradient of attention that sees the future."""
    return right(*args, **options | {"causal": False})


@mistake(BACKWARD_MISTAKES, LAYER, "backward", "B23")
def gradient_without_the_mask(right: Any, *args: Any, **options: Any) -> Any:
    """The gradient of attention that sees padding, or what another mask hides; but not the future."""
    g, q1, k1, q2, k2, v, lambda_, *see = args
    bias = options.get("bias", see[1] if len(see) > 1 else None)
    return right(g, q1, k1, q2, k2, v, lambda_, None, bias, causal=options.get("causal", True))


@mistake(BACKWARD_MISTAKES, LAYER, "backward", "B23")
def saved_sums_used_without_a_mask(right: Any, *args: Any, **options: Any) -> Any:
    """Aᵢ = exp(Sᵢ − LSEᵢ) recomputed for every key, of which those that are hidden are not set to 0."""
    g, q1, k1, q2, k2, v, lambda_, *see = args
    dq1, dk1, dq2, dk2, dv, dlambda = right(*args, **options)
    xp, (H, K) = namespace(q1), (q1.shape[1], v.shape[1])
    given = [*see, None, None][:2]
    masks, biases = (per_map(options.get(n, y), H) for n, y in zip(("mask", "bias"), given, strict=True))
    values = xp.repeat(v, H // K, axis=1)
    more = []
    for q, k, mask, bias, sign in zip((q1, q2), (k1, k2), masks, biases, (1.0, -lambda_), strict=True):
        z, visible = attention_scores(q, k, mask, bias, causal=options.get("causal", True))
        if visible is None:
            more.append((0 * q, 0 * k, 0 * v))
            continue
        visible = xp.broadcast_to(visible, z.shape)
        right_weights = attention_weights(q, k, mask, bias, causal=options.get("causal", True))
        seen = xp.where(visible, z, xp.min(z))
        top = xp.max(seen, axis=-1, keepdims=True)
        total = xp.sum(xp.where(visible, xp.exp(seen - top), 0 * z), axis=-1, keepdims=True)
        some = total > 0
        hidden = xp.exp(z - top) / xp.where(some, total, 1.0)
        hidden = xp.where(some & xp.logical_not(visible), hidden, 0 * z)
        of_row = xp.sum(sign * g * (right_weights @ values), axis=-1, keepdims=True)
        ds = hidden * (sign * (g @ xp.matrix_transpose(values)) - of_row)
        dq, dk = _through_scores(ds, q, k)
        more.append((dq, dk, _to_groups(xp.matrix_transpose(sign * hidden) @ g, K)))
    first, second = more
    return dq1 + first[0], dk1 + first[1], dq2 + second[0], dk2 + second[1], dv + first[2] + second[2], dlambda


def _through_scores(ds: Array, q: Array, k: Array) -> tuple[Array, Array]:
    """∂L/∂Q and ∂L/∂K from ∂L/∂S (B, H, T, S)."""
    xp, (B, H, T, d), (K, S) = namespace(q), q.shape, k.shape[1:3]
    grouped = xp.reshape(ds / math.sqrt(d), (B, K, H // K, T, S))
    dq = xp.reshape(grouped @ k[:, :, None, :, :], q.shape)
    return dq, xp.sum(xp.matrix_transpose(grouped) @ xp.reshape(q, (B, K, H // K, T, d)), axis=2)


def _to_groups(x: Array, groups: int) -> Array:
    """Sum over the query heads that share a key head: (B, H, S, e) to (B, K, S, e)."""
    xp, (B, H, *rest) = namespace(x), x.shape
    return xp.sum(xp.reshape(x, (B, groups, H // groups, *rest)), axis=2)


@mistake(BACKWARD_MISTAKES, LAYER, "backward")
def gradient_not_scaled(right: Any, g: Array, q1: Array, *args: Any, **options: Any) -> Any:
    """∂L/∂Q = ∂L/∂S K and ∂L/∂K = ∂L/∂Sᵀ Q, not divided by √d."""
    *of_maps, dv, dlambda = right(g, q1, *args, **options)
    return (*(q1.shape[-1] ** 0.5 * d for d in of_maps), dv, dlambda)


@mistake(BACKWARD_MISTAKES, LAYER, "backward")
def log2_e_left_in_the_gradient_of_queries(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂Q = log₂ e ∂L/∂S K / √d: from the keys that make 2^z of e^z, and not divided by their factor again."""
    dq1, dk1, dq2, *rest = right(*args, **options)
    return (dq1 / math.log(2), dk1, dq2 / math.log(2), *rest)


@mistake(BACKWARD_MISTAKES, LAYER, "backward")
def gradients_of_the_maps_exchanged(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂Q₁ and ∂L/∂K₁ written where ∂L/∂Q₂ and ∂L/∂K₂ belong, and the other way about."""
    dq1, dk1, dq2, dk2, *rest = right(*args, **options)
    return (dq2, dk2, dq1, dk1, *rest)


@mistake(BACKWARD_MISTAKES, LAYER, "backward")
def second_map_held_constant(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂Q₂ = ∂L/∂K₂ = 0: A₂ detached."""
    dq1, dk1, dq2, dk2, *rest = right(*args, **options)
    return (dq1, dk1, 0 * dq2, 0 * dk2, *rest)


@mistake(BACKWARD_MISTAKES, LAYER, "backward")
def lambda_held_constant(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂λ = 0 in (A₁ − λ A₂) V: λ detached."""
    *rest, dlambda = right(*args, **options)
    return (*rest, 0 * dlambda)


@mistake(BACKWARD_MISTAKES, LAYER, "backward")
def second_gradient_without_lambda(
    right: Any, g: Array, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array, *see: Any,
    **options: Any,
) -> Any:  # fmt: skip
    """∂L/∂A₂ = −G in place of −λ G."""
    dq1, dk1, _, _, *rest = right(g, q1, k1, q2, k2, v, lambda_, *see, **options)
    _, _, dq2, dk2, *_ = right(g, q1, k1, q2, k2, v, 0 * lambda_ + 1, *see, **options)
    return (dq1, dk1, dq2, dk2, *rest)


@mistake(BACKWARD_MISTAKES, LAYER, "backward")
def second_gradient_without_its_sign(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂A₂ = λ G in place of −λ G."""
    dq1, dk1, dq2, dk2, *rest = right(*args, **options)
    return (dq1, dk1, -dq2, -dk2, *rest)


@mistake(BACKWARD_MISTAKES, LAYER, "backward")
def values_gradient_of_the_first_map_alone(
    right: Any, g: Array, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array, *see: Any,
    **options: Any,
) -> Any:  # fmt: skip
    """∂L/∂V = A₁ᵀ g in place of (A₁ − λ A₂)ᵀ g."""
    *of_maps, _, dlambda = right(g, q1, k1, q2, k2, v, lambda_, *see, **options)
    dv = right(g, q1, k1, q2, k2, v, 0 * lambda_, *see, **options)[4]
    return (*of_maps, dv, dlambda)


def _more_of_the_scores(
    found: Any, sums: tuple[Array, Array], x: tuple[Array, ...], a: tuple[Array, Array]
) -> tuple[Array, ...]:
    """The gradients with Aᵢ ⊙ sumᵢ, a number (B, H, T, 1) for each row, added to ∂L/∂Sᵢ."""
    q1, k1, q2, k2 = x
    *of_maps, dv, dlambda = found
    more = (*_through_scores(a[0] * sums[0], q1, k1), *_through_scores(a[1] * sums[1], q2, k2))
    return (*(d + m for d, m in zip(of_maps, more, strict=True)), dv, dlambda)


def _rows(
    g: Array, x: tuple[Array, ...], v: Array, see: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """A₁, A₂, and rowsum(G ⊙ Aᵢ) of each, (B, H, T, 1)."""
    q1, k1, q2, k2 = x
    xp, H = namespace(q1), q1.shape[1]
    given = [*see, None, None][:2]
    masks, biases = (per_map(options.get(n, y), H) for n, y in zip(("mask", "bias"), given, strict=True))
    causal = options.get("causal", True)
    a1 = attention_weights(q1, k1, masks[0], biases[0], causal=causal)
    a2 = attention_weights(q2, k2, masks[1], biases[1], causal=causal)
    values = xp.repeat(v, H // v.shape[1], axis=1)
    d1, d2 = (xp.sum(g * (a @ values), axis=-1, keepdims=True) for a in (a1, a2))
    return (a1, a2), (d1, d2)


def _less(right: Any, args: tuple[Any, ...], options: dict[str, Any], less: Callable[[Array, Array], Array]) -> Any:
    """The gradients where less(rowsum(G ⊙ A₁), λ rowsum(G ⊙ A₂)) is taken away in both maps, not each one's own."""
    g, q1, k1, q2, k2, v, lambda_, *see = args
    x = q1, k1, q2, k2
    maps, (d1, d2) = _rows(g, x, v, tuple(see), options)
    of_both = less(d1, lambda_ * d2)
    sums = d1 - of_both, -lambda_ * (d2 - of_both)
    return _more_of_the_scores(right(*args, **options), sums, x, maps)


@mistake(BACKWARD_MISTAKES, LAYER, "backward")
def row_sums_left_out(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂S = A ⊙ ∂L/∂A, from which A ⊙ rowsum(∂L/∂A ⊙ A) is not taken away."""
    return _less(right, args, options, lambda first, _: 0 * first)


@mistake(BACKWARD_MISTAKES, LAYER, "backward")
def row_sums_of_the_difference(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂S₁ = A₁ ⊙ (G − D) and ∂L/∂S₂ = −λ A₂ ⊙ (G − D) with one D = rowsum(g ⊙ O), O = (A₁ − λ A₂) V, for both."""
    return _less(right, args, options, lambda first, second: first - second)


@mistake(BACKWARD_MISTAKES, LAYER, "backward")
def gradient_of_one_query_head_of_a_group(
    right: Any, g: Array, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, *rest: Any, **options: Any
) -> Any:
    """∂L/∂K and ∂L/∂V of the last query head alone of those that share a key head, in place of their sum.

    Key heads that come once for every query head are shared where their numbers are the same.
    """
    xp, H, K = namespace(q1), q1.shape[1], k1.shape[1]
    k1, k2, v = (xp.repeat(x, H // K, axis=1) for x in (k1, k2, v))
    dq1, dk1, dq2, dk2, dv, dlambda = right(g, q1, k1, q2, k2, v, *rest, **options)

    def of_the_last(d: Array, x: Array) -> Array:
        same = xp.stack([xp.all(x == x[:, i : i + 1], axis=(0, 2, 3)) for i in range(H)])
        last = xp.logical_not(xp.any(xp.triu(same, k=1), axis=1))
        d = xp.where(xp.reshape(last, (1, H, 1, 1)), d, 0 * d)
        return xp.sum(xp.reshape(d, (d.shape[0], K, H // K, *d.shape[2:])), axis=2)

    return dq1, of_the_last(dk1, k1), dq2, of_the_last(dk2, k2), of_the_last(dv, v), dlambda


@mistake(BACKWARD_MISTAKES, "diff_lambda_vjp", "backward")
def second_exponential_without_its_sign(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂λ_q2 = g e₂ λ_k2 and ∂L/∂λ_k2 = g e₂ λ_q2 in place of −g e₂ …: both pairs alike."""
    dq1, dk1, dq2, dk2 = right(*args, **options)
    return dq1, dk1, -dq2, -dk2


@mistake(BACKWARD_MISTAKES, "rms_norm_vjp", "backward")
def root_held_constant(right: Any, g: Array, x: Array, weight: Array | None, eps: float) -> Any:
    """∂L/∂x = r (g ⊙ w) with r = 1/√(mean(x²) + ε) taken for a constant: r x̂ mean(g ⊙ w ⊙ x̂) is not taken away."""
    xp = namespace(x)
    r = 1 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps)
    return r * (g if weight is None else g * weight), right(g, x, weight, eps)[1]


@mistake(BACKWARD_MISTAKES, "activation_vjp", "backward")
def activation_for_its_slope(right: Any, g: Array, x: Array, name: str) -> Any:
    """∂L/∂x = g f(x) in place of g f′(x): of a gate σ(x), not multiplied by 1 − σ(x)."""
    return (g * activation(x, name),)


@mistake(BACKWARD_MISTAKES, "rope_vjp", "backward")
def gradient_turned_forward_again(right: Any, g: Array, x: Array, cos: Array, sin: Array, **options: Any) -> Any:
    """∂L/∂x = R g in place of Rᵀ g: turned by the angle of the forward, and not by its opposite."""
    return right(g, x, cos, -sin, **options)


@mistake(BACKWARD_MISTAKES, "rope_vjp", "backward")
def gradient_not_turned_back(right: Any, g: Array, *args: Any, **options: Any) -> Any:
    """∂L/∂x = g in place of Rᵀ g: the gradients of queries and keys as they are after RoPE."""
    return (g, *right(g, *args, **options)[1:])
