"""Mistakes in derivatives, whose forward is right: no output shows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.layers.activation import activation
from refdiff.layers.diff_attention import attention_scores, attention_weights, per_map
from refdiff.oracle.mistakes.catalogue import Mistake, mistake

OF_ANY_ATTENTION: list[Mistake] = []
OF_TWO_MAPS: list[Mistake] = []
"""Those of the difference of two maps, and of λ: plain attention has neither."""
LAYER = "diff_attention_vjp"


@mistake(OF_ANY_ATTENTION, LAYER, "backward", "B23", "https://github.com/triton-lang/triton/issues/7216")
def gradient_without_the_causal_mask(right: Any, *args: Any, **options: Any) -> Any:
    """The gradient of attention that sees the future."""
    return right(*args, **options | {"causal": False})


@mistake(OF_ANY_ATTENTION, LAYER, "backward", "B23")
def gradient_without_the_mask(right: Any, *args: Any, **options: Any) -> Any:
    """The gradient of attention that sees padding, or what another mask hides; but not the future."""
    g, q1, k1, q2, k2, v, lambda_, *see = args
    bias = options.get("bias", see[1] if len(see) > 1 else None)
    return right(g, q1, k1, q2, k2, v, lambda_, None, bias, causal=options.get("causal", True))


@mistake(OF_ANY_ATTENTION, LAYER, "backward", "B23")
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


@mistake(OF_ANY_ATTENTION, LAYER, "backward")
def gradient_not_scaled(right: Any, g: Array, q1: Array, *args: Any, **options: Any) -> Any:
    """∂L/∂Q = ∂L/∂S K and ∂L/∂K = ∂L/∂Sᵀ Q, not divided by √d."""
    *of_maps, dv, dlambda = right(g, q1, *args, **options)
    return (*(q1.shape[-1] ** 0.5 * d for d in of_maps), dv, dlambda)


@mistake(OF_ANY_ATTENTION, LAYER, "backward")
def log2_e_left_in_the_gradient_of_queries(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂Q = log₂ e ∂L/∂S K / √d: from the keys that make 2^z of e^z, and not divided by their factor again."""
    dq1, dk1, dq2, *rest = right(*args, **options)
    return (dq1 / math.log(2), dk1, dq2 / math.log(2), *rest)


@mistake(OF_TWO_MAPS, LAYER, "backward")
def gradients_of_the_maps_exchanged(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂Q₁ and ∂L/∂K₁ written where ∂L/∂Q₂ and ∂L/∂K₂ belong, and the other way about."""
    dq1, dk1, dq2, dk2, *rest = right(*args, **options)
    return (dq2, dk2, dq1, dk1, *rest)


@mistake(OF_TWO_MAPS, LAYER, "backward")
def second_map_held_constant(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂Q₂ = ∂L/∂K₂ = 0: A₂ detached."""
    dq1, dk1, dq2, dk2, *rest = right(*args, **options)
    return (dq1, dk1, 0 * dq2, 0 * dk2, *rest)


@mistake(OF_TWO_MAPS, LAYER, "backward")
def lambda_held_constant(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂λ = 0 in (A₁ − λ A₂) V: λ detached."""
    *rest, dlambda = right(*args, **options)
    return (*rest, 0 * dlambda)


@mistake(OF_TWO_MAPS, LAYER, "backward")
def lambda_gradient_without_its_sign(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂λ = Σ g ⊙ (A₂ V) in place of −Σ g ⊙ (A₂ V)."""
    *rest, dlambda = right(*args, **options)
    return (*rest, -dlambda)


@mistake(OF_TWO_MAPS, LAYER, "backward")
def values_gradient_of_the_first_map_alone(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂V = A₁ᵀ g in place of (A₁ − λ A₂)ᵀ g."""
    return _values_gradient((0.0, 0.0), right, *args, **options)


def _with_row_sums(
    found: Any, args: tuple[Any, ...], options: dict[str, Any],
    more: Callable[[Array, Array], tuple[Array | float, Array | float]],
) -> Any:  # fmt: skip
    """The gradients with Aᵢ ⊙ xᵢ added to ∂L/∂Sᵢ, x = more(rowsum(G ⊙ A₁), rowsum(G ⊙ A₂)), a number for each row."""
    g, q1, k1, q2, k2, v, _, *see = args
    dq1, dk1, dq2, dk2, *rest = found
    xp, H = namespace(q1), q1.shape[1]
    given = [*see, None, None][:2]
    masks, biases = (per_map(options.get(n, y), H) for n, y in zip(("mask", "bias"), given, strict=True))
    causal = options.get("causal", True)
    a1 = attention_weights(q1, k1, masks[0], biases[0], causal=causal)
    a2 = attention_weights(q2, k2, masks[1], biases[1], causal=causal)
    values = xp.repeat(v, H // v.shape[1], axis=1)
    x1, x2 = more(*(xp.sum(g * (a @ values), axis=-1, keepdims=True) for a in (a1, a2)))
    (mq1, mk1), (mq2, mk2) = _through_scores(a1 * x1, q1, k1), _through_scores(a2 * x2, q2, k2)
    return (dq1 + mq1, dk1 + mk1, dq2 + mq2, dk2 + mk2, *rest)


@mistake(OF_ANY_ATTENTION, LAYER, "backward")
def row_sums_left_out(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂S = A ⊙ ∂L/∂A, from which A ⊙ rowsum(∂L/∂A ⊙ A) is not taken away."""
    return _with_row_sums(right(*args, **options), args, options, lambda d1, d2: (d1, -args[6] * d2))


@mistake(OF_TWO_MAPS, LAYER, "backward")
def row_sums_of_the_difference(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂S₁ = A₁ ⊙ (G − D) and ∂L/∂S₂ = −λ A₂ ⊙ (G − D) with one D = rowsum(g ⊙ O), O = (A₁ − λ A₂) V, for both."""
    x = args[6]
    found = right(*args, **options)
    return _with_row_sums(found, args, options, lambda d1, d2: (x * d2, -x * (d2 - (d1 - x * d2))))


@mistake(OF_ANY_ATTENTION, LAYER, "backward")
def gradient_of_one_query_head_of_a_group(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂K and ∂L/∂V of the last query head alone of those that share a key head, in place of their sum."""
    return _of_some_query_heads(lambda number, of: number == of - 1, right, *args, **options)


def of_query_head(number: int, of: int, *, alone: bool) -> Mistake:
    """The mistake of taking one query head alone into the sums over those that share a key head, or all but this one.

    Args:
        number: from 0 to `of` - 1, which are as many as share a key head.
    """
    which = f"query head {number} (of 0 to {of - 1}) of those that share a key head"
    if alone:
        name, what = "gradient_of_one_query_head_of_a_group", f"of {which} alone, in place of their sum"
    else:
        name, what = "gradient_without_one_query_head_of_a_group", f"summed without {which}"

    def taken(numbers: Array, _: Array) -> Array:
        return numbers == number if alone else numbers != number

    call = partial(_of_some_query_heads, taken)
    return Mistake(name, f"∂L/∂K and ∂L/∂V {what}.", LAYER, "backward", "", "", call)


def _of_some_query_heads(
    taken: Callable[[Array, Array], Array], right: Any, g: Array, q1: Array, k1: Array, q2: Array, k2: Array, v: Array,
    *rest: Any, **options: Any,
) -> Any:  # fmt: skip
    """∂L/∂K and ∂L/∂V of those query heads that are `taken`, by their number in a group and how many share its key.

    Key heads that come once for every query head are shared where their numbers are the same.
    """
    xp, H, K = namespace(q1), q1.shape[1], k1.shape[1]
    k1, k2, v = (xp.repeat(x, H // K, axis=1) for x in (k1, k2, v))
    dq1, dk1, dq2, dk2, dv, dlambda = right(g, q1, k1, q2, k2, v, *rest, **options)

    def summed(d: Array, x: Array) -> Array:
        same = xp.stack([xp.all(x == x[:, i : i + 1], axis=(0, 2, 3)) for i in range(H)])
        before, of = (xp.sum(xp.astype(some, xp.int64), axis=1) for some in (xp.tril(same, k=-1), same))
        d = xp.where(xp.reshape(taken(before, of), (1, H, 1, 1)), d, 0 * d)
        return xp.sum(xp.reshape(d, (d.shape[0], K, H // K, *d.shape[2:])), axis=2)

    return dq1, summed(dk1, k1), dq2, summed(dk2, k2), summed(dv, v), dlambda


@mistake(OF_TWO_MAPS, "diff_lambda_vjp", "backward")
def second_exponential_without_its_sign(right: Any, *args: Any, **options: Any) -> Any:
    """∂L/∂λ_q2 = g e₂ λ_k2 and ∂L/∂λ_k2 = g e₂ λ_q2 in place of −g e₂ …: both pairs alike."""
    dq1, dk1, dq2, dk2 = right(*args, **options)
    return dq1, dk1, -dq2, -dk2


@mistake(OF_ANY_ATTENTION, "rms_norm_vjp", "backward")
def root_held_constant(right: Any, g: Array, x: Array, weight: Array | None, eps: float) -> Any:
    """∂L/∂x = r (g ⊙ w) with r = 1/√(mean(x²) + ε) taken for a constant: r x̂ mean(g ⊙ w ⊙ x̂) is not taken away."""
    xp = namespace(x)
    r = 1 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps)
    return r * (g if weight is None else g * weight), right(g, x, weight, eps)[1]


@mistake(OF_ANY_ATTENTION, "activation_vjp", "backward")
def activation_for_its_slope(right: Any, g: Array, x: Array, name: str) -> Any:
    """∂L/∂x = g f(x) in place of g f′(x): of a gate σ(x), not multiplied by 1 − σ(x)."""
    return (g * activation(x, name),)


@mistake(OF_ANY_ATTENTION, "rope_vjp", "backward")
def gradient_turned_forward_again(right: Any, g: Array, x: Array, cos: Array, sin: Array, **options: Any) -> Any:
    """∂L/∂x = R g in place of Rᵀ g: turned by the angle of the forward, and not by its opposite."""
    return right(g, x, cos, -sin, **options)


@mistake(OF_ANY_ATTENTION, "rope_vjp", "backward")
def gradient_not_turned_back(right: Any, g: Array, *args: Any, **options: Any) -> Any:
    """∂L/∂x = g in place of Rᵀ g: the gradients of queries and keys as they are after RoPE."""
    return (g, *right(g, *args, **options)[1:])


Factor = tuple[float, float]
"""a, b of a factor a + b λ."""
RIGHT: Factor = (0.0, -1.0)


def _second_map(of_product: Factor, of_sum: Factor, right: Any, *args: Any, **options: Any) -> Any:
    """The gradients, with other factors of ∂L/∂S₂ = A₂ ⊙ (−λ G − (−λ) D₂): of G = g Vᵀ, and of D₂ = rowsum(G ⊙ A₂)."""
    product, row_sum = (a + b * args[6] for a, b in (of_product, of_sum))
    dq1, dk1, _, _, *rest = right(*args, **options)
    _, _, dq2, dk2, *_ = right(*args[:6], -product, *args[7:], **options)
    found = dq1, dk1, dq2, dk2, *rest
    if of_product == of_sum:
        return found
    return _with_row_sums(found, args, options, lambda _, d2: (0.0, (product - row_sum) * d2))


def _values_gradient(factor: Factor, right: Any, *args: Any, **options: Any) -> Any:
    """The gradients, with another factor of A₂ than −λ in ∂L/∂V."""
    *of_maps, _, dlambda = right(*args, **options)
    dv = right(*args[:6], -(factor[0] + factor[1] * args[6]), *args[7:], **options)[4]
    return (*of_maps, dv, dlambda)


def _lost_factors() -> Iterator[Mistake]:
    """Mistakes in which −1, λ or 1 stands for −λ: in both terms of ∂L/∂S₂, in one of them, or in ∂L/∂V."""
    of_scores = "∂L/∂S₂ = A₂ ⊙ ({} {} D₂) in place of A₂ ⊙ (−λ G + λ D₂), G being g Vᵀ and D₂ rowsum(G ⊙ A₂)."
    for lost, x, g, d, a in (
        ("lambda", (-1.0, 0.0), "−G", "+", "−"),
        ("its_sign", (0.0, 1.0), "λ G", "− λ", "+ λ"),
        ("lambda_and_its_sign", (1.0, 0.0), "G", "−", "+"),
    ):
        for name, what, call in (
            ("second_gradient", f"∂L/∂A₂ = {g} in place of −λ G.", partial(_second_map, x, x)),
            ("second_product", of_scores.format(g, "+ λ"), partial(_second_map, x, RIGHT)),
            ("second_row_sum", of_scores.format("−λ G", d), partial(_second_map, RIGHT, x)),
            ("values_gradient", f"∂L/∂V = (A₁ {a} A₂)ᵀ g in place of (A₁ − λ A₂)ᵀ g.", partial(_values_gradient, x)),
        ):
            yield Mistake(f"{name}_without_{lost}", what, LAYER, "backward", "", "", call)


OF_TWO_MAPS.extend(_lost_factors())
BACKWARD_MISTAKES = [*OF_ANY_ATTENTION, *OF_TWO_MAPS]
