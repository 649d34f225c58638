"""The layers between inputs and output with the rounding of a kernel: `rounded_ops`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff import layers
from refdiff.backends import Ops, ops_for
from refdiff.oracle.rounding import FORMATS, U32
from refdiff.oracle.rounding.evaluation_order import RMS_ROUNDING, Arithmetic, Order, lambda_error, sum_error
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.rounding.rounded_attention import rounded_attention, rounded_attention_vjp, scores
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import AttentionOperands, log_sum_exp, sum_sinks, truth_ops
from refdiff.oracle.truth.attention_operands import scores as exact_scores

Numpy = np.ndarray[Any, Any]


def rounded_ops(recipe: Recipe, order: Order, query_factor: float = 1.0) -> Ops:
    """Return the layers with the rounding of a kernel of this recipe in this order; arrays stay float64.

    Used as:
        `truth(spec, inputs, ops=rounded_ops(recipe, order))`
    """
    arith = Arithmetic(recipe, order, query_factor)
    rounded = {name: functools.partial(function, arith) for name, function in _ROUNDED.items()}
    rounded["diff_lambda"] = functools.partial(rounded_lambda, arith, layers.diff_lambda)
    return Ops(**{**vars(truth_ops()), **rounded})


def rounded_lambda(arith: Arithmetic, exact: Callable[..., Numpy], *args: Any) -> Numpy:
    """Compute λ by a formula with the arguments of `diff_lambda`, with `order.shift` times its typical error."""
    q1, k1, q2, k2, start = args
    value = np.asarray(exact(*args))
    usual = lambda_error(value, arith.u("lam"), (q1 * k1, q2 * k2) if value != start else (), start)
    value = arith.perturb(value + arith.order.shift * usual, usual)
    return _float64(arith.round_at(arith.array(value), "lam"))


def _float64(x: Any) -> Numpy:
    return np.asarray(x, dtype=np.float64)


def _linear(arith: Arithmetic, x: Numpy, weight: Numpy, bias: Numpy | None = None) -> Numpy:
    y = arith.product(x, weight.T)
    if bias is not None:
        y = arith.round_if_eager(y, "storage") + arith.array(bias)
    return _float64(arith.round_at(y, "storage"))


def _frequencies(arith: Arithmetic, *args: Any, **options: Any) -> Any:
    """Compute RoPE's frequencies in float32.

    Kernels compute f = θ^(−2i/d) or exp(−2i/d log θ) in float32, with slightly different results. The error is that of
    these roundings, and that of the exponent times |log f|. At position p the error of an angle is p times as large,
    far more than those of sin, cos and the rotation.
    """
    exact, scale = layers.rope_frequencies(*args, **options)
    frequencies = np.asarray(exact, dtype=np.float64)
    if not arith.order.noise:
        return frequencies.astype(np.float32).astype(np.float64).tolist(), scale
    units = np.sqrt(2.0 + np.log(frequencies) ** 2)
    noisy = arith.perturb(frequencies, RMS_ROUNDING * U32 * units * frequencies)
    return np.where(frequencies == 1, 1.0, noisy).tolist(), scale


def _cos_sin(arith: Arithmetic, positions: Numpy, frequencies: Any, scale: float, dtype: Any) -> Any:
    """Compute cos and sin of float32 angles, whose error at position p is up to p 2⁻²⁴ radians in all frameworks."""
    angles = arith.array(positions)[:, None, :, None] * np.asarray(frequencies, dtype=arith.dtype)
    angles = np.where(angles == angles.astype(np.float32), angles, arith.round_float32(angles))
    return tuple(
        _float64(arith.round_if_eager(arith.round_float32(f(angles) * np.float32(scale)), "rope"))
        for f in (np.cos, np.sin)
    )


def _rope(
    arith: Arithmetic, x: Numpy, cos: Numpy, sin: Numpy, *, interleaved: bool = False, site: str = "rope"
) -> Numpy:
    rotary, rest = np.split(arith.array(x), [2 * cos.shape[-1]], axis=-1)
    cos, sin = arith.array(cos), arith.array(sin)
    products = ((cos, np.zeros_like(sin)), (np.zeros_like(cos), sin))
    first, second = (layers.rope(rotary, *factors, interleaved=interleaved) for factors in products)
    rotated = arith.round_at(arith.round_if_eager(first, site) + arith.round_if_eager(second, site), site)
    return _float64(np.concatenate([rotated, rest], axis=-1))


def _rope_vjp(arith: Arithmetic, g: Numpy, x: Numpy, cos: Numpy, sin: Numpy, **options: Any) -> Any:
    g = arith.round_at(arith.array(g), "storage")
    return _rope(arith, g, cos, -sin, site="storage", **options), None, None


def _sum_of_squares(q: Numpy, k: Numpy) -> float:
    return float(np.sum((q * k) ** 2))


def _lambda_v2(arith: Arithmetic, *args: Any, **options: Any) -> Numpy:
    return _float64(arith.round_at(arith.array(layers.diff_lambda_v2(*args, **options)), "lam"))


def _norm(arith: Arithmetic, x: Numpy, weight: Numpy | None, eps: float) -> Numpy:
    with np.errstate(over="ignore", invalid="ignore"):
        x = arith.array(x)
        square = arith.round_at(x * x, "norm")
        mean = arith.round_at(np.mean(square, axis=-1, keepdims=True, dtype=arith.dtype), "norm")
        root = arith.round_at(np.sqrt(mean + np.float32(eps)), "norm")
        y = arith.round_at(x / root if arith.order.subtract == "weights" else x * (np.float32(1) / root), "norm")
        y = arith.round_if_eager(y, "o")
        return _float64(y if weight is None else arith.round_if_eager(y * arith.array(weight), "o"))


def _norm_vjp(arith: Arithmetic, g: Numpy, x: Numpy, weight: Numpy | None, eps: float) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
        x, g = arith.array(x), arith.round_if_eager(arith.array(g), "o")
        square = np.mean(arith.round_at(x * x, "norm"), axis=-1, keepdims=True, dtype=arith.dtype)
        r = np.float32(1) / arith.round_at(np.sqrt(square + np.float32(eps)), "norm")
        unit = arith.round_at(x * r, "norm")
        h = g if weight is None else arith.round_if_eager(g * arith.array(weight), "o")
        along = np.mean(arith.round_at(h * unit, "norm"), axis=-1, keepdims=True, dtype=arith.dtype)
        dx = arith.round_at(r * (h - unit * along), "o")
        weight_terms = arith.round_if_eager(unit, "o") * g
        dweight = None if weight is None else arith.total(weight_terms.reshape(-1, x.shape[-1]), 0)
    return _float64(dx), None if dweight is None else _float64(dweight)


def _center(arith: Arithmetic, x: Numpy) -> Numpy:
    with np.errstate(over="ignore", invalid="ignore"):
        x = arith.array(x)
        mean = arith.round_at(np.mean(x, axis=-1, keepdims=True, dtype=arith.dtype), "norm")
        return _float64(arith.round_at(x - mean, "norm"))


def _round_at(arith: Arithmetic, x: Numpy, site: str) -> Numpy:
    return _float64(arith.round_at(arith.array(x), site))


def _softcap(arith: Arithmetic, z: Numpy, cap: float) -> Numpy:
    """Compute cap · tanh(z / cap), as 2σ(2x) − 1 in many kernels: with float32's unit roundoff near 0 as well."""
    if arith.raw_score_error is not None:
        slope = 1 - np.tanh(z / cap) ** 2
        error = np.where(slope > 0, arith.raw_score_error, 0.0) * slope
        arith.capped_errors = (*arith.capped_errors[-1:], error)
    return arith.perturb(arith.tanh(z / cap) * cap, np.asarray(U32 * cap))


def _round_scaled(arith: Arithmetic, q: Numpy, k: Numpy, scale: float) -> tuple[Numpy, Numpy]:
    """Round q · scale, and divide it by the scale again, so that later operations need not know of it.

    Orders with `base2` round q · scale · log₂ e. Orders with `scale_first` round q and k each times √scale.
    """
    if arith.recipe.scaled_q == "float32":
        return q, k

    def rounded(x: Numpy, factor: float) -> Numpy:
        with np.errstate(over="ignore"):
            stored = arith.round_at(arith.array(x) * arith.array(np.asarray(factor)), "scaled_q")
        return _float64(stored) / factor

    if arith.order.scale_first:
        return rounded(q, math.sqrt(scale)), rounded(k, math.sqrt(scale))
    return rounded(q, scale * math.log2(math.e) if arith.order.base2 else scale), k


def _raw_scores(arith: Arithmetic, q: Numpy, k: Numpy) -> Numpy:
    z = _float64(scores(arith, arith.array(q), arith.array(k), None, None))
    if arith.order.noise:
        # n partial sums are a random walk to the score, or grow steadily to it
        n = q.shape[-1]
        walk = np.sqrt(np.matmul(q * q, np.swapaxes(k * k, -1, -2)) / n)
        steady = np.abs(z) * math.sqrt(n / 3)
        unit = RMS_ROUNDING * arith.recipe.type_at("accumulate").u
        arith.raw_score_error = unit * np.hypot(walk * math.sqrt(n / 2), steady)
    return z


def _raw_scores_vjp(arith: Arithmetic, g: Numpy, q: Numpy, k: Numpy) -> tuple[Numpy, Numpy]:
    g = arith.array(g) * np.float32(1 / math.sqrt(q.shape[-1]))
    return _float64(arith.product(g, k)), _float64(arith.product(np.swapaxes(g, -1, -2), q))


def _round_if_eager(arith: Arithmetic, x: Numpy, site: str) -> Numpy:
    return _float64(arith.round_if_eager(arith.array(x), site))


def _qk_norm(arith: Arithmetic, x: Numpy, weight: Numpy | None, eps: float, kind: str) -> Numpy:
    y = _norm(arith, _center(arith, x) if kind == "layer" else x, weight, eps)
    return _float64(arith.round_at(arith.array(y), "rope"))


def _qk_norm_vjp(arith: Arithmetic, g: Numpy, x: Numpy, weight: Numpy | None, eps: float, kind: str) -> Any:
    g = arith.round_at(arith.array(g), "storage")
    dx, dweight = _norm_vjp(arith, g, _center(arith, x) if kind == "layer" else x, weight, eps)
    return _center(arith, dx) if kind == "layer" else dx, dweight


def _activation_vjp(arith: Arithmetic, g: Numpy, x: Numpy, name: str) -> tuple[Numpy]:
    """Compute the derivative from σ(x) of the forward pass, as torch and JAX do: 1 − σ(x) inherits its whole error.

    1 + exp(−x) and the quotient are rounded in float32; eager orders also round σ(x) to the storage type.
    """
    if name != "sigmoid":
        (found,) = layers.activation_vjp(g, x, name)
        return (found,)
    sigma = np.asarray(layers.activation(arith.array(x), name))
    if arith.order.noise:
        unit = FORMATS[arith.recipe.storage if arith.order.stored else "float32"].u
        sigma = arith.perturb(sigma, RMS_ROUNDING * math.hypot(unit, U32) * sigma)
    else:
        sigma = arith.round_if_eager(sigma, "storage")
    return (_float64(arith.array(g) * sigma * (1 - sigma)),)


def _sum_over_tokens(arith: Arithmetic, terms: Numpy, name: str, per_head: bool) -> Numpy:
    terms = arith.round_if_eager(arith.array(terms), "o")
    return _float64(arith.total(terms, (0, 2) if per_head else (0, 1, 2), arith.recipe.accumulate))


def _linear_vjp(arith: Arithmetic, g: Numpy, x: Numpy, weight: Numpy, bias: Numpy | None = None) -> Any:
    dx, dweight, _ = layers.linear_vjp(g, x, weight)
    return dx, dweight, None if bias is None else _float64(arith.total(g.reshape(-1, g.shape[-1]), 0))


def _lambda_vjp(arith: Arithmetic, g: Numpy, q1: Numpy, k1: Numpy, q2: Numpy, k2: Numpy, start: float) -> Any:
    """Compute the derivatives g exp(⟨q, k⟩) k; an error of the float32 sum ⟨q, k⟩ is a relative error of them."""
    exact = layers.diff_lambda_vjp(g, q1, k1, q2, k2, start)
    factors = [arith.perturb(np.ones(()), np.asarray(sum_error(q.size) * math.sqrt(_sum_of_squares(q, k))))
               for q, k in ((q1, k1), (q1, k1), (q2, k2), (q2, k2))]  # fmt: skip
    return tuple(_float64(x * factor) for x, factor in zip(exact, factors, strict=True))


def _lambda_v2_vjp(arith: Arithmetic, g: Numpy, x: Numpy, weight: Numpy) -> Any:
    ops = Ops(**{**vars(ops_for()), "activation_vjp": functools.partial(_activation_vjp, arith)})
    return layers.diff_lambda_v2_vjp(g, x, weight, ops=ops)


def _sum_sinks(arith: Arithmetic, spec: Spec, terms: Numpy, g: Numpy, s: AttentionOperands) -> Numpy:
    """Sum the terms of the gradients of sinks.

    Equation:
        a row adds −p δ, with the sink's weight p, δ = Σ_j p_j a_j, which may cancel, and a_j = ⟨∂L/∂o, v_j⟩. If the
        sink is the largest score, automatic differentiation through z − max z also adds −Σ_j p_j (a_j − δ). That is 0
        exactly, but its terms are rounded
    """
    total = sum_sinks(spec, terms, g, s)
    if not arith.order.noise:
        return total
    squares = []
    for number, factor in ((1, 1.0), (2, -s.lambda_full)):
        z = exact_scores(s, number)
        p = np.exp(z - log_sum_exp(z)[..., None])
        parts = p * ((factor * g) @ s.v.swapaxes(2, 3))
        factors_are_rounded = 2**2
        of_row = factors_are_rounded * np.sum(parts**2, axis=-1) + np.sum(parts, axis=-1) ** 2
        squares.append(of_row * np.where(z[..., -1] >= np.max(z, axis=-1), 1.0, p[..., -1] ** 2))
    return _float64(arith.perturb_sum(total, sum_sinks(spec, np.stack(squares), g, s), g.shape[0] * g.shape[2]))


_ROUNDED: dict[str, Callable[..., Any]] = {
    "diff_attention": rounded_attention,
    "diff_attention_vjp": rounded_attention_vjp,
    "linear": _linear,
    "linear_vjp": _linear_vjp,
    "rope_frequencies": _frequencies,
    "rope_cos_sin": _cos_sin,
    "rope": _rope,
    "rope_vjp": _rope_vjp,
    "diff_lambda_vjp": _lambda_vjp,
    "diff_lambda_v2": _lambda_v2,
    "diff_lambda_v2_vjp": _lambda_v2_vjp,
    "activation_vjp": _activation_vjp,
    "rms_norm": _norm,
    "rms_norm_vjp": _norm_vjp,
    # `EXTRA_OPS` of `refdiff.oracle.truth.attention_operands`
    "center": _center,
    "round_if_eager": _round_if_eager,
    "round_at": _round_at,
    "softcap": _softcap,
    "round_scaled": _round_scaled,
    "raw_scores": _raw_scores,
    "raw_scores_vjp": _raw_scores_vjp,
    "qk_norm": _qk_norm,
    "qk_norm_vjp": _qk_norm_vjp,
    "sum_over_tokens": _sum_over_tokens,
    "sum_sinks": _sum_sinks,
}
