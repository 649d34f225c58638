"""The hard bound: an a-priori bound on the error of a row that no order of a recipe's roundings can exceed.

Each step propagates the errors of its inputs and adds its own. A sum of n products adds γ_n = (1 + u)ⁿ − 1 of the
accumulator's type. That is at most Higham's n u / (1 − n u) (2002, section 3.1), and finite for 16 bits too. A stored
result adds u of its type, three times where eager operations store their results.

The bound is far above the errors of real kernels. A result beyond it is wrong whatever the ensemble says, and an E_r
beyond it would be a bug of this package.
"""

from __future__ import annotations

import math

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.statistics import root_mean_square
from refdiff.oracle.inputs import VECTORS
from refdiff.oracle.inputs.sequences import Inputs, Numpy, sequences
from refdiff.oracle.rounding import FORMATS, U32
from refdiff.oracle.rounding.evaluation_order import lambda_init_error
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import (
    AttentionOperands,
    attention_operands,
    center,
    compute_lambda,
    lambda_init,
    prepare_qk,
    query_factor,
    scores,
)
from refdiff.oracle.truth.forward import broadcast_to_heads, operand_tiles, out_factor, split_norm_rows

CUT_OPERANDS = 4
"""Truncating both factors of a product costs up to 2 u each."""


def gamma(n: int, name: str = "float32") -> float:
    """Return γ_n = (1 + u)ⁿ − 1 of a type."""
    return math.expm1(min(n * math.log1p(FORMATS[name].u), 700.0))


def bounds(spec: Spec, core: Inputs, recipe: Recipe) -> Numpy:
    """Bound the root mean square error of each row of the output of core inputs.

    Shapes:
        (B, h, T)
    """
    B, _, T, _ = core["q"].shape
    found = np.full((B, spec.heads, T), math.inf)
    for part in sequences(core):
        if not part.is_empty:
            found[part.index] = _dense_bounds(spec, part.inputs, recipe)
        elif not spec.norm_bias:  # a row without keys is 0, or the bias of the norm
            found[part.index] = 0.0
    return found


def _dense_bounds(spec: Spec, inputs: Inputs, recipe: Recipe) -> Numpy:
    ops = ops_for()
    s = attention_operands(spec, inputs, ops)
    lambda_ = np.abs(s.lambda_full)
    (o1, d1), (o2, d2) = (_tiled_map_error(spec, inputs, s, recipe, number) for number in (1, 2))
    u_o = recipe.type_at("o").u
    off = lambda_error(spec, inputs, recipe)
    heads = o1 - s.lambda_full * o2
    error = (
        d1 + lambda_ * d2 + off * (np.abs(o2) + d2) + 3 * u_o * (np.abs(o1) + lambda_ * np.abs(o2) + d1 + lambda_ * d2)
    )
    error = error + 4 * recipe.type_at("o").tiny
    heads, error = _normalize(spec, inputs, recipe, heads, error)
    factor = np.abs(out_factor(spec, inputs, ops))
    size, error = np.abs(factor * heads), factor * error
    if "lambda_init" in spec.out_scale:
        error = error + lambda_init_error(lambda_init(spec, ops)) * np.abs(heads)
    if spec.out_scale == "1 - lambda":
        error = error + off * (np.abs(heads) + error)
    if spec.gate != "none":
        gate = np.abs(ops.activation(inputs["gate_logits"], spec.gate))
        size, error = gate * size, gate * error + 3 * recipe.u * gate * (size + error) + 4 * U32 * gate * size
    error = error + 2 * recipe.u * (size + error) + recipe.type_at("storage").tiny
    return root_mean_square(np.where(np.isfinite(error), error, np.finfo(np.float64).max / 2**600))


def _tiled_map_error(
    spec: Spec, inputs: Inputs, s: AttentionOperands, recipe: Recipe, number: int
) -> tuple[Numpy, ...]:
    """Return `_map_error` of all queries, computed in tiles."""
    parts = [_map_error(spec, inputs, tile, recipe, number) for tile in operand_tiles(s)]
    return tuple(np.concatenate(x, axis=2) for x in zip(*parts, strict=True))


def score_error(spec: Spec, inputs: Inputs, s: AttentionOperands, recipe: Recipe, number: int) -> tuple[Numpy, Numpy]:
    """Return the scores of a map, −∞ for masked keys, and a bound on the error of each."""
    q, k = (s.q1, s.k1) if number == 1 else (s.q2, s.k2)
    d = q.shape[-1]
    z = scores(s, number)
    size = np.abs(q) @ np.swapaxes(np.abs(k), -1, -2) / math.sqrt(d)
    norms = np.sqrt(np.sum(q**2, -1))[..., :, None] * np.sqrt(np.sum(k**2, -1))[..., None, :] / math.sqrt(d)
    sums = recipe.type_at("accumulate")
    error = (gamma(d + 4, recipe.accumulate) + CUT_OPERANDS * recipe.operand_u + 3 * recipe.scaled_u) * size
    if recipe.scaled_q != "float32":
        lengths = np.sum(np.abs(q), axis=-1)[..., :, None] + np.sum(np.abs(k), axis=-1)[..., None, :]
        error = error + recipe.type_at("scaled_q").tiny * lengths
    if spec.rope != "none":
        error = error + 2 * math.sqrt(2) * (3 * recipe.type_at("rope").u + _angle_error(inputs)) * norms
    if spec.qk_norm != "none":
        error = error + 2 * _norm_error(spec, inputs, recipe) * norms
    if spec.softcap is not None:
        capped = np.abs(np.where(s.visible, z, 0.0))
        of_tanh = 16 * U32 * (capped + spec.softcap) + recipe.tanh_error * capped
        error = error + of_tanh + _raw_score_error(spec, inputs, recipe)
    seen = np.abs(np.where(s.visible, z, 0.0))
    form = recipe.type_at("qk")
    error = error + 4 * form.u * (seen + error) + 2 * form.tiny + d * sums.tiny
    # a score that overflows before it is scaled has no bound
    unscaled = size * math.sqrt(d) * max(1.0, 1.0 / query_factor(spec))
    return z, np.where(unscaled > min(form.top, sums.top), math.inf, error)


def _norm_error(spec: Spec, inputs: Inputs, recipe: Recipe) -> float:
    """Bound the error of a normalized query or key, as a share of its length.

    LayerNorm subtracts the mean, which may leave little more than rounding errors.
    """
    d = spec.head_dim
    unit = gamma(d + 8) + 6 * recipe.type_at("norm").u + 3 * recipe.type_at("rope").u
    if spec.qk_norm == "rms":
        return unit
    rows = [np.where(np.isfinite(x), x, 0.0) for x in (inputs["q"], inputs["k"])]
    left = [np.sqrt(np.mean(center(x) ** 2, axis=-1) + spec.qk_norm_eps) for x in rows]
    lost = max(float(np.max(root_mean_square(x) / y, initial=1.0)) for x, y in zip(rows, left, strict=True))
    return unit + (gamma(d + 4) + 2 * recipe.type_at("norm").u) * lost


def _raw_score_error(spec: Spec, inputs: Inputs, recipe: Recipe) -> float:
    """Bound the error of any capped score: the slope of the cap is at most 1, and its range is 2c."""
    q, k = prepare_qk(spec, inputs, ops_for())
    longest = [float(np.sqrt(np.max(np.sum(x**2, axis=-1), initial=0.0))) for x in (q * query_factor(spec), k)]
    d = spec.head_dim
    part = gamma(d + 4, recipe.accumulate) + 4 * recipe.type_at("qk").u
    part += CUT_OPERANDS * recipe.operand_u + 3 * recipe.scaled_u
    off = (
        part * longest[0] * longest[1] / math.sqrt(d)
        + 2 * recipe.type_at("qk").tiny
        + d * recipe.type_at("accumulate").tiny
    )
    return min(off, 2 * float(spec.softcap or 0.0))


def _angle_error(inputs: Inputs) -> float:
    """Bound the error of a float32 RoPE angle at the largest position, including that of its frequency."""
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    given = [inputs[name] for name in ("q_positions", "k_positions") if name in inputs]
    largest = max([T, S, *(int(np.max(np.abs(p), initial=0)) for p in given)])
    return float(8 * U32 * (largest + 1))


def _map_error(spec: Spec, inputs: Inputs, s: AttentionOperands, recipe: Recipe, number: int) -> tuple[Numpy, Numpy]:
    """Return the output of one map, and a bound on the error of each number."""
    z, dz = score_error(spec, inputs, s, recipe, number)
    S = z.shape[-1]
    top = np.max(z, axis=-1, keepdims=True)
    top = np.where(np.isneginf(top), 0.0, top)
    raw = np.where(s.visible, np.exp(z - top), 0.0)
    total = np.sum(raw, axis=-1, keepdims=True)
    p = raw / np.where(total == 0, 1.0, total)
    off = np.where(s.visible, dz, 0.0)
    far = np.where(s.visible, np.abs(z - top) + np.abs(z) + np.abs(top), 0.0)
    exp_error = 4 * U32 * far + 4 * U32 + (2.0**-21 if recipe.exp == "ex2approx" else 0.0)
    with np.errstate(over="ignore"):
        ratio = np.expm1(off + np.max(off, axis=-1, keepdims=True) + exp_error + np.max(exp_error, -1, keepdims=True))
    form = recipe.type_at("p")
    ratio = ratio + 3 * form.u + gamma(3 * S + 8, recipe.accumulate) + CUT_OPERANDS * recipe.operand_u
    with np.errstate(invalid="ignore"):
        dp = np.where(raw > 0, np.minimum(ratio * p, 1.0), np.minimum(np.where(s.visible, ratio, 0.0), 1.0) * 2.0**-149)
    dp = dp + np.where(s.visible, 3 * form.tiny, 0.0)
    size = np.abs(s.v)
    most = np.max(np.where(np.any(s.visible, -2, keepdims=True).swapaxes(-1, -2), size, 0.0), axis=-2, keepdims=True)
    out = p @ s.v
    error = dp @ size + (S * recipe.type_at("accumulate").tiny)
    error = np.minimum(error, 2 * most * np.any(s.visible, axis=-1, keepdims=True) * 1.01)
    return out, error + recipe.type_at("o").u * (np.abs(out) + error)


def lambda_error(spec: Spec, inputs: Inputs, recipe: Recipe) -> Numpy:
    """Bound the error of λ, rounded at every step, the products of its vectors included."""
    ops = ops_for()
    exact = compute_lambda(spec, inputs, ops)
    u = recipe.type_at("lam").u
    off = (2 * u + 8 * U32) * np.abs(exact)
    if spec.lambda_form != "exp":
        return off
    q1, k1, q2, k2 = (inputs[name] for name in VECTORS)
    for q, k in ((q1, k1), (q2, k2)):
        power, size = np.exp(np.sum(q * k, axis=-1)), np.sum(np.abs(q * k), axis=-1)
        off = off + (power * (2 * u + (u + gamma(q.shape[-1] + 4)) * size + 8 * U32)).reshape(exact.shape)
    start = lambda_init(spec, ops)
    return off + 2 * u * abs(start) + lambda_init_error(start)


def _normalize(spec: Spec, inputs: Inputs, recipe: Recipe, x: Numpy, error: Numpy) -> tuple[Numpy, Numpy]:
    """Apply the norm to x, and return the result with a bound on the error of each number."""
    if spec.norm == "none":
        return x, error
    (rows, back), off = split_norm_rows(spec, x), split_norm_rows(spec, error)[0]
    n, u_n, u_o = rows.shape[-1], recipe.type_at("norm").u, recipe.type_at("o").u
    if spec.norm == "layer":
        size = np.abs(rows) + off
        off = off + np.mean(off, axis=-1, keepdims=True)
        off = off + (gamma(n + 4) + 2 * u_n) * (size + np.mean(size, axis=-1, keepdims=True))
        rows = center(rows)
    root = np.sqrt(np.mean(rows**2, axis=-1, keepdims=True) + spec.norm_eps)
    shift = root_mean_square(off)[..., None]
    least = np.maximum(root - shift, math.sqrt(spec.norm_eps))
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.where(root > 0, rows / np.where(root > 0, root, 1.0), 0.0)
        dy = np.where(least > 0, (off + np.abs(y) * shift) / np.where(least > 0, least, 1.0), np.inf)
    # where the sum of squares overflows, a row becomes 0
    lost = 2 * np.sum(rows**2, axis=-1, keepdims=True) > min(recipe.type_at("norm").top, FORMATS["float32"].top)
    dy = np.where(lost, np.inf, dy)
    # the length of a normalized row is at most √n
    dy = np.minimum(dy, np.abs(y) + math.sqrt(n)) + (6 * u_n + gamma(n + 8) + 3 * u_o) * (
        np.abs(y) + np.minimum(dy, math.sqrt(n))
    )
    y, dy = back(y), back(dy)
    if (weight := inputs.get("norm_weight")) is not None:
        weight = broadcast_to_heads(weight)
        y, dy = y * weight, (dy + 2 * u_o * (np.abs(y) + dy)) * np.abs(weight)
    if (bias := inputs.get("norm_bias")) is not None:
        y = y + broadcast_to_heads(bias)
        dy = dy + 2 * u_o * (np.abs(y) + dy)
    return y, dy
