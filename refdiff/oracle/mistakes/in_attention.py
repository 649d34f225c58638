"""Mistakes in the difference of two softmax maps, and in what each query may see."""

from __future__ import annotations

import math
from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.layers.softmax import softmax
from refdiff.oracle.mistakes.catalogue import EDIFICE, MOTIF, UNILM, Mistake, mistake

ATTENTION_MISTAKES: list[Mistake] = []
LATTICE = "https://github.com/ohdearquant/lattice/pull/5"
AYKUT = "https://github.com/aykutcayir34/DifferentialTransformer/issues/1"
AXOLOTL = "https://github.com/axolotl-ai-cloud/axolotl/pull/2197"
SLIDING = "https://github.com/vllm-project/vllm/issues/3385"


def _scaled(right: Any, by: float, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    q1, k1, q2, *rest = args
    return right(q1 * by, k1, q2 * by, *rest, **options)


@mistake(ATTENTION_MISTAKES, "diff_attention", "scale", "B14", AYKUT)
def scores_not_scaled(right: Any, *args: Any, **options: Any) -> Any:
    """Q Kᵀ, not divided by √d."""
    return _scaled(right, args[0].shape[-1] ** 0.5, args, options)


@mistake(ATTENTION_MISTAKES, "diff_attention", "scale", "B14", EDIFICE)
def scores_scaled_by_the_root_of_half_of_d(right: Any, *args: Any, **options: Any) -> Any:
    """Q Kᵀ / √(d/2): d halved twice."""
    return _scaled(right, 2**0.5, args, options)


@mistake(ATTENTION_MISTAKES, "diff_attention", "scale", "B14", EDIFICE)
def scores_scaled_by_the_root_of_2d(right: Any, *args: Any, **options: Any) -> Any:
    """Q Kᵀ / √2d: the width of two heads together."""
    return _scaled(right, 0.5**0.5, args, options)


@mistake(ATTENTION_MISTAKES, "diff_attention", "scale")
def scores_scaled_twice(right: Any, *args: Any, **options: Any) -> Any:
    """Q Kᵀ / d: by the caller and by the kernel."""
    return _scaled(right, args[0].shape[-1] ** -0.5, args, options)


@mistake(ATTENTION_MISTAKES, "diff_attention", "scale")
def second_map_not_scaled(right: Any, q1: Array, k1: Array, q2: Array, *rest: Any, **options: Any) -> Any:
    """Only S₁ divided by √d."""
    return right(q1, k1, q2 * q1.shape[-1] ** 0.5, *rest, **options)


@mistake(ATTENTION_MISTAKES, "softmax", "lse base")
def powers_of_two(right: Any, scores: Array, mask: Array | None = None) -> Any:
    """2^z for e^z: scores not multiplied by log₂ e."""
    return right(scores * math.log(2), mask)


@mistake(ATTENTION_MISTAKES, "softmax", "mask")
def a_row_that_sees_nothing_is_uniform(right: Any, scores: Array, mask: Array | None = None) -> Any:
    """1/S in a row that sees nothing, as a large negative number for a mask gives."""
    weights = right(scores, mask)
    xp = namespace(weights)
    none = xp.logical_not(xp.any(weights > 0, axis=-1, keepdims=True))
    return xp.where(none, 1.0 / max(1, weights.shape[-1]), weights)


@mistake(ATTENTION_MISTAKES, "diff_attention", "lam form", "B11", MOTIF)
def lambda_not_used(
    right: Any, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array, *rest: Any, **options: Any
) -> Any:
    """A₁ V: plain attention."""
    return right(q1, k1, q2, k2, v, 0 * lambda_, *rest, **options)


@mistake(ATTENTION_MISTAKES, "diff_attention", "lam form")
def lambda_added(
    right: Any, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array, *rest: Any, **options: Any
) -> Any:
    """(A₁ + λ A₂) V."""
    return right(q1, k1, q2, k2, v, -lambda_, *rest, **options)


@mistake(ATTENTION_MISTAKES, "diff_attention", "lam form")
def lambda_on_both(
    right: Any, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array, *rest: Any, **options: Any
) -> Any:
    """λ (A₁ − A₂) V."""
    return lambda_ * right(q1, k1, q2, k2, v, 0 * lambda_ + 1, *rest, **options)


def _maps(
    right: Any, x: tuple[Array, ...], lambda_: Array, see: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Array, Array]:
    """A₁ and λ A₂, read off the right layer with an identity for its values."""
    q1, k1, q2, k2, _ = x
    xp = namespace(q1)
    S = k1.shape[2]
    unit = xp.broadcast_to(xp.eye(S, dtype=q1.dtype), (*k1.shape[:2], S, S))
    zero = 0 * lambda_
    a1 = right(q1, k1, q2, k2, unit, zero, *see, **options)
    return a1, a1 - right(q1, k1, q2, k2, unit, lambda_, *see, **options)


def _apply(p: Array, v: Array) -> Array:
    return p @ namespace(v).repeat(v, p.shape[1] // v.shape[1], axis=1)


@mistake(ATTENTION_MISTAKES, "diff_attention", "convert", "B21", AXOLOTL)
def second_map_of_zero_weights(right: Any, q1: Array, k1: Array, q2: Array, *rest: Any, **options: Any) -> Any:
    """Q₂ = 0, as a converter leaves it that means to keep the function: A₂ is then uniform, and not zero."""
    return right(q1, k1, 0 * q2, *rest, **options)


@mistake(ATTENTION_MISTAKES, "diff_attention", "order", "B13", f"{UNILM}/issues/1637")
def subtracted_before_the_softmax(
    right: Any, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array, *see: Any, **options: Any
) -> Any:
    """softmax(S₁ − λ S₂) V."""
    xp = namespace(q1)
    a1, a2 = _maps(right, (q1, k1, q2, k2, v), 0 * lambda_ + 1, see, options)
    seen = (a1 > 0) & (a2 > 0)
    logs = xp.log(xp.where(seen, a1, 1.0)) - lambda_ * xp.log(xp.where(seen, a2, 1.0))
    return _apply(softmax(logs, seen), v)


@mistake(ATTENTION_MISTAKES, "diff_attention", "order")
def softmax_of_the_difference(
    right: Any, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array, *see: Any, **options: Any
) -> Any:
    """softmax(A₁ − λ A₂) V: a third softmax, over the difference of the two maps."""
    a1, a2 = _maps(right, (q1, k1, q2, k2, v), lambda_, see, options)
    return _apply(softmax(a1 - a2, a1 > 0), v)


@mistake(ATTENTION_MISTAKES, "diff_attention", "order")
def each_map_normed_before_the_difference(
    right: Any, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array, *see: Any, **options: Any
) -> Any:
    """LN(A₁ V) − λ LN(A₂ V)."""
    xp = namespace(q1)
    outs = [_apply(a, v) for a in _maps(right, (q1, k1, q2, k2, v), 0 * lambda_ + 1, see, options)]
    o1, o2 = (o / xp.sqrt(xp.mean(o * o, axis=-1, keepdims=True) + 1e-5) for o in outs)
    return o1 - lambda_ * o2


@mistake(ATTENTION_MISTAKES, "diff_attention", "clamp", "B17", LATTICE)
def negative_weights_cut_off(
    right: Any, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array, *see: Any, **options: Any
) -> Any:
    """max(A₁ − λ A₂, 0) V."""
    a1, a2 = _maps(right, (q1, k1, q2, k2, v), lambda_, see, options)
    return _apply(namespace(q1).clip(a1 - a2, 0.0, None), v)


@mistake(ATTENTION_MISTAKES, "diff_attention", "renorm", "B17", LATTICE)
def rows_made_to_sum_to_one(
    right: Any, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array, *rest: Any, **options: Any
) -> Any:
    """(A₁ − λ A₂) V / (1 − λ): the norm after it hides this, up to ε."""
    out = right(q1, k1, q2, k2, v, lambda_, *rest, **options)
    xp = namespace(q1)
    return out / xp.where(lambda_ == 1, 1.0, 1 - lambda_)


@mistake(ATTENTION_MISTAKES, "diff_attention", "renorm")
def one_more_in_the_denominator(
    right: Any, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array, mask: Any = None,
    bias: Any = None, **options: Any,
) -> Any:  # fmt: skip
    """e^z / (1 + Σ e^z), a softmax with a sink: as if there were one more key, of score and value 0."""
    xp, S = namespace(q1), k1.shape[2]

    def after(sink: Any, x: Array, axis: int) -> Array:
        one = xp.full((*x.shape[:axis], 1, *x.shape[axis:][1:]), sink, dtype=x.dtype)
        return xp.concat([one, x], axis=axis)

    k1, k2, v = (after(0.0, x, 2) for x in (k1, k2, v))
    see = [
        None if x is None else after(sink, xp.broadcast_to(x, (*x.shape[:-1], S)), x.ndim - 1)
        for x, sink in ((mask, True), (bias, 0.0))
    ]
    return right(q1, k1, q2, k2, v, lambda_, *see, **options)


def _seeing(
    right: Any, first: int | None, args: tuple[Any, ...], options: dict[str, Any], from_left: bool = False,
    window: int | None = None, inverted: bool = False,
) -> Any:  # fmt: skip
    """The layer with key s seen by query t where s ≤ t + offset + first, and s is in the window."""
    x = [*args, *(None,) * (8 - len(args))]
    mask, bias = options.get("mask", x[6]), options.get("bias", x[7])
    if not options.get("causal", True):
        return right(*args, **options)
    q, k = x[0], x[1]
    xp, T, S = namespace(q), q.shape[2], k.shape[2]
    t, s = xp.arange(T)[:, None], xp.arange(S)[None, :]
    here = t if from_left else t + (S - T)
    visible = xp.ones((T, S), dtype=xp.bool) if first is None else s <= here + first
    if window is not None:
        visible = visible & (s > here - window)
    visible = xp.logical_not(visible) if inverted else visible
    return right(*x[:6], visible if mask is None else mask & visible, bias, causal=False)


@mistake(ATTENTION_MISTAKES, "diff_attention", "mask align", "B18", f"{UNILM}/issues/1661")
def triangle_at_the_top_left(right: Any, *args: Any, **options: Any) -> Any:
    """Query t sees keys up to t, whatever is in the cache."""
    return _seeing(right, 0, args, options, from_left=True)


@mistake(ATTENTION_MISTAKES, "diff_attention", "mask off by one")
def tokens_that_do_not_see_themselves(right: Any, *args: Any, **options: Any) -> Any:
    """s < t + S − T."""
    return _seeing(right, -1, args, options)


@mistake(ATTENTION_MISTAKES, "diff_attention", "mask off by one")
def one_future_token_seen(right: Any, *args: Any, **options: Any) -> Any:
    """s ≤ t + S − T + 1."""
    return _seeing(right, 1, args, options)


@mistake(ATTENTION_MISTAKES, "diff_attention", "mask")
def no_causal_mask(right: Any, *args: Any, **options: Any) -> Any:
    """Every token sees all."""
    return _seeing(right, None, args, options)


@mistake(ATTENTION_MISTAKES, "diff_attention", "mask")
def mask_inverted(right: Any, *args: Any, **options: Any) -> Any:
    """Every token sees those after it, and not itself or what came before: True taken for "hidden"."""
    return _seeing(right, 0, args, options, inverted=True)


@mistake(ATTENTION_MISTAKES, "diff_attention", "norm kind")
def queries_and_keys_normed(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, *rest: Any, **options: Any) -> Any:
    """Q and K divided by their root mean square before the scores, as models with a QK norm do."""
    xp = namespace(q1)
    normed = (x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + 1e-6) for x in (q1, k1, q2, k2))
    return right(*normed, *rest, **options)


@mistake(ATTENTION_MISTAKES, "diff_attention", "mask")
def no_padding_mask(right: Any, *args: Any, **options: Any) -> Any:
    """Padding seen as if it were text."""
    x = [*args, *(None,) * (8 - len(args))]
    return right(*x[:6], None, options.get("bias", x[7]), causal=options.get("causal", True))


@mistake(ATTENTION_MISTAKES, "diff_attention", "window", "B19", SLIDING)
def a_sliding_window(right: Any, *args: Any, **options: Any) -> Any:
    """Only the last 4 keys seen, where nothing asked for a window."""
    return _seeing(right, 0, args, options, window=4)


@mistake(ATTENTION_MISTAKES, "diff_attention", "window", "B19", SLIDING)
def the_first_key_lost(right: Any, *args: Any, **options: Any) -> Any:
    """A window one shorter than the text: the last query does not see the first key."""
    return _seeing(right, 0, args, options, window=args[1].shape[2] - 1)
