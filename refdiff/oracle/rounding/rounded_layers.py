"""Every layer between inputs and output as a kernel computes it, laid over the equations: `rounded_ops`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from refdiff import layers
from refdiff.backends import Ops, ops_for, overlay
from refdiff.oracle.mistakes import Mistake, wrap
from refdiff.oracle.rounding import FORMATS
from refdiff.oracle.rounding.evaluation_order import USUAL, Arithmetic, Order, error_of_sums
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.rounding.rounded_attention import rounded_attention, rounded_attention_vjp, scores

Numpy = np.ndarray[Any, Any]


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
