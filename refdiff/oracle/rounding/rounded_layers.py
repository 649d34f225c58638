"""Every layer between inputs and output as a kernel computes it, laid over the equations: `rounded_ops`.

Kernels that go by tiles compute the weights again from the scores and the stored log-sum-exp: exp(z − lse), where an
lse of 400 in float32 is off by 2⁻¹⁶, and so is every weight of its row. Eager ways store the gradient of the weights:
it is rounded to the recipe's `qk`, as the scores are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from refdiff import layers
from refdiff.backends import Ops, ops_for, overlay
from refdiff.layers import causal_mask
from refdiff.layers.diff_attention import split_maps, sum_to
from refdiff.oracle.mistakes import Mistake, wrap
from refdiff.oracle.rounding import FORMATS
from refdiff.oracle.rounding.evaluation_order import USUAL, Arithmetic, Order, error_of_sums
from refdiff.oracle.rounding.recipe import Recipe

Numpy = np.ndarray[Any, Any]
ZERO = np.float32(0)


def rounded_attention(
    how: Arithmetic,
    q1: Numpy,
    k1: Numpy,
    q2: Numpy,
    k2: Numpy,
    v: Numpy,
    lambda_: Numpy,
    mask: Numpy | None = None,
    bias: Numpy | None = None,
    *,
    causal: bool = True,
    ops: Any = None,
) -> Numpy:
    """Compute what `layers.diff_attention` does, with its shapes; numbers of narrow types, held in float64."""
    n = q1.shape[1] // k1.shape[1]
    k1, k2, v = (np.repeat(how.array(x), n, axis=1) for x in (k1, k2, v))
    maps = list(scores_of_maps(how, (q1, k1, q2, k2), mask, bias, causal))
    lambda_ = how.array(lambda_)
    if how.order.subtract == "weights":
        w1, w2 = (weights(how, z) for z in maps)
        heads = how.product(how.round_at(difference(how, w1, w2, lambda_, "p"), "p"), v)
    else:
        o1, o2 = (how.round_at(attend(how, z, v), "o") for z in maps)
        heads = difference(how, o1, o2, lambda_, "o")
    return how.round_at(heads, "o").astype(np.float64)


def scores_of_maps(
    how: Arithmetic, heads: tuple[Numpy, ...], mask: Numpy | None, bias: Numpy | None, causal: bool
) -> Iterator[Numpy]:
    """The scores of map 1, then of map 2, −∞ where nothing is seen; as many heads of k as of q."""
    q1, k1, q2, k2 = heads
    H, T, S = q1.shape[1], q1.shape[2], k1.shape[2]
    masks, biases = split_maps(mask, H), split_maps(bias, H)
    for q, k, see, more in ((q1, k1, masks[0], biases[0]), (q2, k2, masks[1], biases[1])):
        if causal and T > 1:
            triangle = causal_mask(T, S, xp=np, device=None)
            see = triangle if see is None else see & triangle
        yield scores(how, how.array(q), k, see, more)


def scores(how: Arithmetic, q: Numpy, k: Numpy, see: Numpy | None, bias: Numpy | None) -> Numpy:
    """Q Kᵀ / √d + bias in float32, rounded where scores are stored."""
    scale = np.float32(1 / math.sqrt(q.shape[-1]))
    across = np.swapaxes(k, -1, -2)
    with np.errstate(over="ignore", invalid="ignore"):
        first = how.order.scale_first
        if not first and how.recipe.qk != "float32" and how.query_factor != 1:
            q, scale = q / np.float32(how.query_factor), scale * np.float32(how.query_factor)
        z = how.product(q * scale, across) if first else how.round_at(how.product(q, across), "qk") * scale
        z = how.round_at(z, "qk")
        if bias is not None:
            z = how.round_at(z + how.array(bias), "qk")
    if how.recipe.qk == "float16":
        seen = np.isfinite(np.zeros(z.shape) if bias is None else np.broadcast_to(bias, z.shape))
        seen = seen if see is None else seen & see
        # where all that a row sees has left the range, kernels that add a mask give it what it must not see
        lost = np.any(seen, axis=-1, keepdims=True) & np.all(np.isneginf(z) | ~seen, axis=-1, keepdims=True)
        z = np.where(lost, np.float32(math.nan), z)
    return z if see is None else np.where(see, z, np.float32(-math.inf))


def top(z: Numpy) -> Numpy:
    """The largest score of each row; 0 where it sees nothing."""
    largest = np.max(z, axis=-1, keepdims=True)
    return np.where(np.isneginf(largest), ZERO, largest)


def weights(how: Arithmetic, z: Numpy) -> Numpy:
    """The softmax of each row in float32; zeros where it sees nothing."""
    raw = how.exp(z, top(z))
    total = how.single_step(np.sum(raw, axis=-1, keepdims=True))
    return raw / np.where(total == 0, np.float32(1), total)


def attend(how: Arithmetic, z: Numpy, v: Numpy) -> Numpy:
    """The softmax of each row, times V: weights at once, or tile by tile with the sum divided out in the end."""
    tile = how.order.tile
    if tile is None:
        return how.product(how.round_at(weights(how, z), "p"), v)
    starts = list(range(0, z.shape[-1], tile))
    if how.order.reverse:
        starts.reverse()
    largest = np.full((*z.shape[:-1], 1), -math.inf, dtype=how.dtype)
    total = np.zeros_like(largest)
    out = np.zeros((*z.shape[:-1], v.shape[-1]), dtype=how.dtype)
    for start in starts:
        part = z[..., start : start + tile]
        new = np.maximum(largest, np.max(part, axis=-1, keepdims=True))
        safe = np.where(np.isneginf(new), ZERO, new)
        raw = how.exp(part, safe)
        fade = how.exp(largest, safe)
        total = total * fade + np.sum(raw, axis=-1, keepdims=True)
        with np.errstate(invalid="ignore", over="ignore"):
            out = out * fade + how.product(how.round_at(raw, "p"), v[..., start : start + tile, :])
        largest = new
    return out / np.where(total == 0, np.float32(1), total)


def difference(how: Arithmetic, first: Numpy, second: Numpy, lambda_: Numpy, site: str) -> Numpy:
    """first − λ second; op by op, the maps and the product are stored too."""
    with np.errstate(over="ignore", invalid="ignore"):
        return how.round_if_eager(first, site) - how.round_if_eager(lambda_ * how.round_if_eager(second, site), site)


def rounded_attention_vjp(
    how: Arithmetic,
    g: Numpy,
    q1: Numpy,
    k1: Numpy,
    q2: Numpy,
    k2: Numpy,
    v: Numpy,
    lambda_: Numpy,
    mask: Numpy | None = None,
    bias: Numpy | None = None,
    *,
    causal: bool = True,
    ops: Any = None,
) -> tuple[Numpy, ...]:
    """Compute what `layers.diff_attention_vjp` does, with its shapes; numbers of narrow types, held in float64."""
    (B, H, _, _), K = q1.shape, k1.shape[1]
    keys = [np.repeat(how.array(k), H // K, axis=1) for k in (k1, k2)]
    values = np.repeat(how.array(v), H // K, axis=1)
    maps = list(scores_of_maps(how, (q1, keys[0], q2, keys[1]), mask, bias, causal))
    sides = ((how.array(q1), keys[0]), (how.array(q2), keys[1]))
    w1, w2 = (_weights_again(how, z, *side) for z, side in zip(maps, sides, strict=True))
    g, lambda_ = how.round_at(how.array(g), "o"), how.array(lambda_)
    with np.errstate(over="ignore", invalid="ignore"):
        g2 = how.round_at(-lambda_ * g, "o")
        dp = how.round_at(how.product(g, np.swapaxes(values, -1, -2)), "qk")
        if how.order.subtract == "weights":
            dv = how.product(_turned(how.round_at(difference(how, w1, w2, lambda_, "p"), "p")), g)
            w1, w2 = how.round_if_eager(w1, "p"), how.round_if_eager(w2, "p")
            inner1, inner2 = (how.inner(w, dp, "qk") for w in (w1, w2))
            ds1 = w1 * (dp - inner1)
            ds2 = w2 * (how.round_if_eager(-lambda_ * dp, "qk") + lambda_ * inner2)
            dlambda = -inner2
        else:
            dv1, dv2 = (how.product(_turned(how.round_at(w, "p")), x) for w, x in ((w1, g), (w2, g2)))
            dv = how.round_if_eager(dv1, "storage") + how.round_if_eager(dv2, "storage")
            o1, o2 = (how.round_at(attend(how, z, values), "o") for z in maps)
            dp2 = how.round_at(how.product(g2, np.swapaxes(values, -1, -2)), "qk")
            ds1 = w1 * (dp - how.inner(g, o1, "o"))
            ds2 = w2 * (dp2 - how.inner(g2, o2, "o"))
            dlambda = -how.inner(g, o2, "o")
        dq1, dk1 = _through_scores(how, ds1, how.array(q1), keys[0])
        dq2, dk2 = _through_scores(how, ds2, how.array(q2), keys[1])
        shared = [
            x.reshape(B, K, H // K, *x.shape[2:]).sum(axis=2, dtype=how.dtype)
            for x in (dk1, dk2, how.round_if_eager(dv, "storage"))
        ]
    results = (dq1, shared[0], dq2, shared[1], shared[2], sum_to(dlambda, tuple(lambda_.shape)))
    return tuple(np.asarray(x, dtype=np.float64) for x in results)


def _weights_again(how: Arithmetic, z: Numpy, q: Numpy, k: Numpy) -> Numpy:
    """The weights from scores and the log-sum-exp of the forward pass.

    That may have rounded the scores otherwise: summed in another order, scaled in one step with a sum or in two.
    """
    order = how.order
    if order.subtract == "weights" or not (order.tile or order.noise):
        return weights(how, z)
    largest = top(z)
    total = np.sum(how.exp(z, largest), axis=-1, keepdims=True)
    lse = how.single_step(largest + np.log(np.where(total == 0, how.dtype(1), total)))
    if order.noise:
        highest = np.take_along_axis(k, np.argmax(z, axis=-1)[..., None], axis=2)
        sums = np.cumsum(q * highest, axis=-1) / math.sqrt(q.shape[-1])  # which grow as the terms where q is along k
        of_sum = USUAL * FORMATS[how.recipe.accumulate].u * np.sqrt(np.sum(sums**2, axis=-1))
        of_scale = USUAL * FORMATS["float32"].u * np.abs(largest)
        lse = how.perturb_forward(lse, np.hypot(of_sum[..., None], of_scale))
    return how.exp(z, how.array(lse))


def _turned(x: Numpy) -> Numpy:
    return np.swapaxes(x, -1, -2)


def _through_scores(how: Arithmetic, ds: Numpy, q: Numpy, k: Numpy) -> tuple[Numpy, Numpy]:
    """From the gradient of scores to those of queries and keys."""
    scale = np.float32(1 / math.sqrt(q.shape[-1]))
    ds = how.round_at(ds, "p")
    if how.order.stored:
        ds = how.round_at(ds * scale, "p")
        scale = np.float32(1)
    return how.round_if_eager(how.product(ds, k) * scale, "storage"), how.round_if_eager(
        how.product(_turned(ds), q) * scale, "storage"
    )


def rounded_ops(recipe: Recipe, order: Order, query_factor: float = 1.0) -> Ops:
    """Return what a kernel of this recipe computes in this order, in the place of the layers; arrays stay float64.

    Used as:
        `truth(spec, inputs, ops=rounded_ops(recipe, order))`
    """
    how = Arithmetic(recipe, order, query_factor)
    rounded = {name: functools.partial(function, how) for name, function in _ROUNDED.items()}
    return Ops(**{**vars(ops_for()), **rounded})


def rounded_mistakes(recipe: Recipe, order: Order, mistakes: Iterable[Mistake]) -> Ops:
    """Return the rounded layers with mistakes over them; λ is rounded by a mistake that does not call the right layer.

    λ = λ_init, or a λ without exponentials, is computed and stored in the types of the recipe as the right one is: left
    in float64 it would fit no kernel, and another mistake, which does call the right layer, would have its name.
    """
    how = Arithmetic(recipe, order)
    rounded = rounded_ops(recipe, order)
    called: list[bool] = []

    def noted(*args: Any) -> Numpy:
        called.append(True)
        found: Numpy = rounded.diff_lambda(*args)
        return found

    ops = Ops(**{**vars(rounded), "diff_lambda": noted})
    for mistake in mistakes:
        ops = overlay(ops, wrap(mistake))
    wrong = ops.diff_lambda

    def stored(*args: Any) -> Numpy:
        called.clear()
        found: Numpy = wrong(*args)
        return found if called else _stored_lambda(how, found, *args)

    return Ops(**{**vars(ops), "diff_lambda": stored})


def _stored_lambda(how: Arithmetic, found: Numpy, q1: Numpy, k1: Numpy, q2: Numpy, k2: Numpy, start: float) -> Numpy:
    """λ of another formula, off by as much as its own roundings and those of the dot products usually add up to."""
    value = float(found)
    sizes = [value, value - start]
    sums = [math.sqrt(_squares(q, k)) for q, k in ((q1, k1), (q2, k2))] if value != start else []
    units = [how.u("lam") / math.sqrt(3) * x for x in sizes] + [error_of_sums(q1.size) * x for x in sums]
    usual = math.sqrt(sum(x**2 for x in units))
    exact = np.asarray(value + how.order.shift * usual)
    return _double(how.round_at(np.asarray(how.perturb(exact, np.asarray(usual)), dtype=how.dtype), "lam"))


def _double(x: Any) -> Numpy:
    return np.asarray(x, dtype=np.float64)


def _linear(how: Arithmetic, x: Numpy, weight: Numpy, bias: Numpy | None = None) -> Numpy:
    y = how.product(x, weight.T)
    if bias is not None:
        y = how.round_if_eager(y, "storage") + how.array(bias)
    return _double(how.round_at(y, "storage"))


def _frequencies(how: Arithmetic, *args: Any, **options: Any) -> Any:
    """Stored in float32, as everybody has them; which are not everybody's same numbers.

    θ^(−2i/d) in float32, or exp(−2i/d log θ), is off by its own roundings and by that of the exponent, times |log f|.
    At position p the angle is then off by p as many units, far more than sin, cos and the rotation are themselves.
    """
    exact, scale = layers.rope_frequencies(*args, **options)
    frequencies = np.asarray(exact, dtype=np.float64)
    if not how.order.noise:
        return frequencies.astype(np.float32).astype(np.float64).tolist(), scale
    units = np.sqrt(2.0 + np.log(frequencies) ** 2)
    noisy = how.perturb(frequencies, USUAL * FORMATS["float32"].u * units * frequencies)
    return np.where(frequencies == 1, 1.0, noisy).tolist(), scale


def _cos_sin(how: Arithmetic, positions: Numpy, frequencies: Any, scale: float, dtype: Any) -> Any:
    """Angles in float32: at position p they are off by up to p 2⁻²⁴ of a radian, in kernels as in frameworks."""
    turns = how.array(positions)[:, None, :, None] * np.asarray(frequencies, dtype=how.dtype)
    turns = np.where(turns == turns.astype(np.float32), turns, how.single_step(turns))
    return tuple(
        _double(how.round_if_eager(how.single_step(f(turns) * np.float32(scale)), "rope")) for f in (np.cos, np.sin)
    )


def _rope(how: Arithmetic, x: Numpy, cos: Numpy, sin: Numpy, *, interleaved: bool = False, site: str = "rope") -> Numpy:
    n = cos.shape[-1]
    x, cos, sin = how.array(x), how.array(cos), how.array(sin)
    turning = x[..., : 2 * n]
    a, b = (turning[..., 0::2], turning[..., 1::2]) if interleaved else (turning[..., :n], turning[..., n:])

    def part(first: Numpy, second: Numpy) -> Numpy:
        return how.round_at(how.round_if_eager(first, site) + how.round_if_eager(second, site), site)

    turned = part(a * cos, -(b * sin)), part(b * cos, a * sin)
    y = np.array(x)
    if interleaved:
        y[..., 0 : 2 * n : 2], y[..., 1 : 2 * n : 2] = turned
    else:
        y[..., :n], y[..., n : 2 * n] = turned
    return _double(y)


def _rope_vjp(how: Arithmetic, g: Numpy, x: Numpy, cos: Numpy, sin: Numpy, **options: Any) -> Any:
    g = how.round_at(how.array(g), "storage")
    return _rope(how, g, cos, -sin, site="storage", **options), None, None


def _lambda(how: Arithmetic, q1: Numpy, k1: Numpy, q2: Numpy, k2: Numpy, start: float) -> Numpy:
    """λ with each exponential stored, or rounded once; and off by as much as such roundings usually add up to."""
    logs = [
        np.sum(how.round_if_eager(how.array(q) * how.array(k), "lam"), dtype=how.dtype) for q, k in ((q1, k1), (q2, k2))
    ]
    with np.errstate(over="ignore"):
        e1, e2 = (how.round_if_eager(np.asarray(np.exp(x), dtype=how.dtype), "lam") for x in logs)
        exact = how.round_if_eager(e1 - e2, "lam") + np.float32(start)
        if how.order.shift:
            sizes = [float(e1), float(e2), float(e1 - e2), float(exact)]
            sums = [e * math.sqrt(_squares(q, k)) for e, q, k in ((sizes[0], q1, k1), (sizes[1], q2, k2))]
            # partial sums are rounded too, and two large ones that cancel leave their roundings
            units = [how.u("lam") / math.sqrt(3) * x for x in (*sizes, *sums)]
            units += [error_of_sums(q1.size) * x for x in sums]
            usual = math.sqrt(sum(x**2 for x in units))
            exact = exact + np.float32(how.order.shift * usual)
    return _double(how.round_at(np.asarray(exact, dtype=how.dtype), "lam"))


def _squares(q: Numpy, k: Numpy) -> float:
    return float(np.sum((q * k) ** 2))


def _lambda_of_tokens(how: Arithmetic, *args: Any, **options: Any) -> Numpy:
    return _double(how.round_at(how.array(layers.diff_lambda_v2(*args, **options)), "lam"))


def _norm(how: Arithmetic, x: Numpy, weight: Numpy | None, eps: float) -> Numpy:
    with np.errstate(over="ignore", invalid="ignore"):
        x = how.array(x)
        square = how.round_at(x * x, "norm")
        mean = how.round_at(np.mean(square, axis=-1, keepdims=True, dtype=how.dtype), "norm")
        root = how.round_at(np.sqrt(mean + np.float32(eps)), "norm")
        y = how.round_at(x / root if how.order.subtract == "weights" else x * (np.float32(1) / root), "norm")
        y = how.round_if_eager(y, "o")
        return _double(y if weight is None else how.round_if_eager(y * how.array(weight), "o"))


def _norm_vjp(how: Arithmetic, g: Numpy, x: Numpy, weight: Numpy | None, eps: float) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
        x, g = how.array(x), how.round_if_eager(how.array(g), "o")
        square = np.mean(how.round_at(x * x, "norm"), axis=-1, keepdims=True, dtype=how.dtype)
        r = np.float32(1) / how.round_at(np.sqrt(square + np.float32(eps)), "norm")
        unit = how.round_at(x * r, "norm")
        h = g if weight is None else how.round_if_eager(g * how.array(weight), "o")
        along = np.mean(how.round_at(h * unit, "norm"), axis=-1, keepdims=True, dtype=how.dtype)
        dx = how.round_at(r * (h - unit * along), "o")
        of_weight = how.round_if_eager(unit, "o") * g
        dweight = None if weight is None else np.sum(of_weight.reshape(-1, x.shape[-1]), axis=0, dtype=how.dtype)
    return _double(dx), None if dweight is None else _double(dweight)


def _center(how: Arithmetic, x: Numpy) -> Numpy:
    with np.errstate(over="ignore", invalid="ignore"):
        x = how.array(x)
        mean = how.round_at(np.mean(x, axis=-1, keepdims=True, dtype=how.dtype), "norm")
        return _double(how.round_at(x - mean, "norm"))


def _rounded(how: Arithmetic, x: Numpy, site: str) -> Numpy:
    return _double(how.round_at(how.array(x), site))


def _raw_scores(how: Arithmetic, q: Numpy, k: Numpy) -> Numpy:
    return _double(scores(how, how.array(q), how.array(k), None, None))


def _stored(how: Arithmetic, x: Numpy, site: str) -> Numpy:
    return _double(how.round_if_eager(how.array(x), site))


def _qk_norm(how: Arithmetic, x: Numpy, weight: Numpy | None, eps: float, kind: str) -> Numpy:
    y = _norm(how, _center(how, x) if kind == "layer" else x, weight, eps)
    return _double(how.round_at(how.array(y), "rope"))


def _qk_norm_vjp(how: Arithmetic, g: Numpy, x: Numpy, weight: Numpy | None, eps: float, kind: str) -> Any:
    g = how.round_at(how.array(g), "storage")
    dx, dweight = _norm_vjp(how, g, _center(how, x) if kind == "layer" else x, weight, eps)
    return _center(how, dx) if kind == "layer" else dx, dweight


def _activation_vjp(how: Arithmetic, g: Numpy, x: Numpy, name: str) -> tuple[Numpy]:
    """The derivative from the σ(x) that the forward pass has, as torch and JAX compute it: 1 − σ(x) has all its error.

    1 + exp(−x) and the quotient are rounded in float32; op by op, σ(x) is stored.
    """
    if name != "sigmoid":
        (found,) = layers.activation_vjp(g, x, name)
        return (found,)
    sigma = np.asarray(layers.activation(how.array(x), name))
    if how.order.noise:
        unit = FORMATS[how.recipe.storage if how.order.stored else "float32"].u
        sigma = how.perturb_gate(sigma, USUAL * math.hypot(unit, FORMATS["float32"].u) * sigma)
    else:
        sigma = how.round_if_eager(sigma, "storage")
    return (_double(how.array(g) * sigma * (1 - sigma)),)


def _sum_over_tokens(how: Arithmetic, terms: Numpy, name: str, per_head: bool) -> Numpy:
    terms = how.round_if_eager(how.array(terms), "o")
    return _double(np.sum(terms, axis=(0, 2) if per_head else (0, 1, 2), dtype=how.dtype))


_ROUNDED: dict[str, Callable[..., Any]] = {
    "diff_attention": rounded_attention,
    "diff_attention_vjp": rounded_attention_vjp,
    "linear": _linear,
    "rope_frequencies": _frequencies,
    "rope_cos_sin": _cos_sin,
    "rope": _rope,
    "rope_vjp": _rope_vjp,
    "diff_lambda": _lambda,
    "diff_lambda_v2": _lambda_of_tokens,
    "activation_vjp": _activation_vjp,
    "rms_norm": _norm,
    "rms_norm_vjp": _norm_vjp,
    # those of `refdiff.oracle.truth.attention_operands`
    "center": _center,
    "stored": _stored,
    "rounded": _rounded,
    "raw_scores": _raw_scores,
    "qk_norm": _qk_norm,
    "qk_norm_vjp": _qk_norm_vjp,
    "sum_over_tokens": _sum_over_tokens,
}
