"""The acceptance rule of a tensor: equal masks of NaN and ±∞, and five statistics with limits.

A row r is the last axis at one index of the others, such as (b, h, t) of an output. e is the error, y the truth, E_r
the error of correct kernels (root mean square over the row), u the unit roundoff of the storage type.

    row       max_r  rms(e_r) / E_r                       finds an error in one row, such as a lost key
    bulk      rms_r (rms(e_r) / E_r)                      a small error everywhere
    element   max_i  |e_i| / (6 E_r + 2 u |y_i|)          one wrong number
    slope     |⟨e, y⟩ / ⟨y, y⟩| over rows with E_r ≤ rms(y_r)   a wrong scale, too small to show in any single row
    factor    |ĉ| over all rows (`common_factor`)         the same, if some rows are noisy and others are not

A tolerance for the whole tensor, set by its worst row, would accept large errors in all other rows.

If E_r is more than a quarter of the row, the norms and sums that divide it are as wrong, and errors have longer tails.
Such a row may have 5.25 E_r, others 4 E_r.

The statistic `factor` estimates a factor 1 + c that all rows of a result have in common.

Equation:
    f_r = ⟨a_r − y_r, y_r⟩ / ⟨y_r, y_r⟩ is the factor, less 1, of row r of a result a. If a norm made the rows,
    f_r = (‖a_r‖² / ‖y_r‖² − 1) / 2 is used, with a and y divided by the norm's weight. Both are equal to first order,
    but errors before the norm do not change the length of its rows.

    For a kernel with the factor 1 + c, f_r is c plus rounding errors. The recipe's orders f_m (m = 1 … M) are samples
    of these errors, with the second moments

        Σ = diag(k_r s_r²) + (1/M) Σ_m f_m f_mᵀ,  s_r² = mean of f_m,r² + (u / √12n)² + u₃₂²

    The best linear estimate of c is ĉ = ⟨w, f⟩, w = Σ⁻¹1 / ⟨1, Σ⁻¹1⟩, and its variance for correct kernels is
    1 / ⟨1, Σ⁻¹1⟩ (generalised least squares, Aitken 1935). So noisy rows, for example where the maps cancel, have small
    weights. Errors that rows share without being a factor, such as that of λ, hardly count either. u / √12n is the
    rounding error of n stored numbers, u₃₂ that of one float32 operation. k_r rows are equal to row r, for example
    because their queries attend to the same single key. They have equal rounding errors and count as one.

    M orders do not show all errors that rows can share. If all tokens are equal, so are the rounding errors of many
    rows, and w fits these orders better than any other. So each order is also left out in turn, and the spread of ĉ is
    at least the root mean square of the estimates for the orders left out. Orders that round the same numbers are left
    out together. For example, all orders that scale float16 by a number just above 1/5 get the results of exactly 1/5,
    because x / 5 is never near the midpoint of two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refdiff.oracle.rounding import FORMATS, U32, round_to
from refdiff.oracle.rounding import root_mean_square as root_mean_square
from refdiff.oracle.rounding import safe_ratio as safe_ratio
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.thresholds import THRESHOLDS, RowLimits

Numpy = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CommonFactor:
    """An estimator of the common factor of all rows of a tensor.

    weights: (…), w of each row, 0 for rows that are not counted. They add up to 1.
    spread: the standard deviation of ĉ for correct kernels.
    divisor: the weight of the norm that made the rows, 1 if it has none; None without a norm.
    """

    weights: Numpy
    spread: float
    divisor: Numpy | float | None

    def estimate(self, actual: Numpy, expected: Numpy) -> float:
        """Return ĉ, the estimated factor of a result, less 1."""
        counted = self.weights != 0
        factors = row_factors(actual[counted], expected[counted], self.divisor)
        return float(np.sum(self.weights[counted] * factors))

    def expand(self, queries: Numpy, count: int) -> CommonFactor:
        """Return the estimator for a tensor of `count` queries, with these weights at `queries` and 0 elsewhere."""
        weights = np.zeros((*self.weights.shape[:-1], count))
        weights[..., queries] = self.weights
        return replace(self, weights=weights)


def row_factors(actual: Numpy, expected: Numpy, divisor: Numpy | float | None) -> Numpy:
    """Return f_r, the factor of each row less 1; 0 for a row of zeros or non-finite numbers."""
    known = np.isfinite(actual) & np.isfinite(expected)
    y = np.where(known, expected, 0.0)
    unit = np.abs(y).max(axis=-1, keepdims=True, initial=0.0)
    unit = np.where(unit > 0, unit, 1.0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        a = np.where(known, np.where(known, actual, 0.0), 0.0) / unit
        y = y / unit
        if divisor is None:
            along = np.sum((a - y) * y, axis=-1)
        else:
            a, y = a / divisor, y / divisor
            along = (np.sum(a * a, axis=-1) - np.sum(y * y, axis=-1)) / 2
        square = np.sum(y * y, axis=-1)
        return np.where(square > 0, along / np.where(square > 0, square, 1.0), 0.0)


def common_factor(
    expected: Numpy,
    runs: Sequence[Numpy],
    counted: Numpy,
    storage: str,
    divisor: Numpy | float | None = None,
    lost_below: float = 0.0,
    groups: Sequence[int] | None = None,
) -> CommonFactor | None:
    """Return the estimator of a common factor, from the outputs of the recipe's orders; None if no row is counted.

    Args:
        counted: (…), the rows that may be counted. Rows with an error larger than themselves in some order are not.
        lost_below: numbers below it may become 0 in all rows at once, which counts as one more order. Rows whose
            largest number is less than a thousand times as large are not counted.
        groups: a label for each run; runs with the same label round the same numbers. None = all differ.
    """
    size = np.max(np.where(np.isfinite(expected), np.abs(expected), 0.0), axis=-1, initial=0.0).ravel()
    lost = lost_below / np.maximum(size, max(lost_below, np.finfo(np.float64).tiny))
    found = np.stack([*(row_factors(run, expected, divisor).ravel() for run in runs), lost])
    counted = (counted & np.any(np.isfinite(expected) & (expected != 0), axis=-1)).ravel()
    counted &= np.all(np.abs(found) <= 1, axis=0) & (lost <= THRESHOLDS.flushed_share)
    if not counted.any():
        return None
    found = np.where(counted, found, 0.0)
    least = FORMATS[storage].u ** 2 / (12 * expected.shape[-1]) + U32**2
    alike = _rows_alike(round_to(expected, storage), counted)
    weights, variance = _estimator(found, alike, least)
    labels = np.arange(len(runs)) if groups is None else np.asarray(groups)
    others = [np.append(labels != label, True) for label in labels]  # the last stands for no order
    missed = [_estimator(found[which], alike, least)[0] @ f for which, f in zip(others, found, strict=False)]
    spread = max(math.sqrt(variance), float(np.sqrt(np.mean(np.square(missed)))))
    return CommonFactor(weights.reshape(expected.shape[:-1]), spread, divisor)


def _rows_alike(y: Numpy, counted: Numpy) -> Numpy:
    """Return k_r, the number of counted rows equal to each row, itself included; 0 for rows that are not counted."""
    alike = np.zeros(counted.size)
    _, which, count = np.unique(y.reshape(counted.size, -1)[counted], axis=0, return_inverse=True, return_counts=True)
    alike[counted] = count[which.ravel()]
    return alike


def _estimator(found: Numpy, alike: Numpy, least: float) -> tuple[Numpy, float]:
    """Return w and the variance of ĉ from f_m,r, (M, rows)."""
    counted = alike > 0
    precision = np.where(counted, 1.0 / np.where(counted, alike * (np.mean(found**2, axis=0) + least), 1.0), 0.0)
    # Woodbury: inverting a diagonal plus M outer products needs only a system of M equations
    inner = len(found) * np.eye(len(found)) + (found * precision) @ found.T
    weights = precision - precision * (np.linalg.solve(inner, found @ precision) @ found)
    total = float(np.sum(weights))
    return weights / total, 1 / total


LIMITS = THRESHOLDS.limits


@dataclass(frozen=True)
class RowBudget:
    """The budget of one tensor that is judged by rows.

    expected: (…, e), the truth.
    rows: (…), E_r.
    slope: the largest slope of an order.
    axes: the names of the axes of `rows`, such as "b h t".
    doubtful: (…), rows in which correct kernels overflow; they are not judged.
    relative_to: whether a row is uncertain relative to its own size ("row") or at least the tensor's ("tensor").
    sampled: the queries, on the last axis of `rows`, that were run in all orders; None for all. The others have an
        estimate of E_r (`row_estimate`), and the bulk is that of the sampled ones.
    limits: the largest value of each statistic.
    """

    expected: Numpy
    rows: Numpy
    slope: float
    storage: str
    axes: str
    doubtful: Numpy
    relative_to: str = "row"
    factor: CommonFactor | None = None
    sampled: Numpy | None = None
    limits: RowLimits = LIMITS

    @property
    def u(self) -> float:
        """Unit roundoff of the storage type."""
        return FORMATS[self.storage].u


@dataclass(frozen=True)
class Statistic:
    """One statistic of the rule: its value, its limit, and the index where it was found."""

    name: str
    value: float
    limit: float
    at: tuple[int, ...] | None = None
    what: str = ""

    @property
    def holds(self) -> bool:
        """Whether the value is within the limit; NaN is not."""
        return self.value <= self.limit


def statistics(actual: Numpy, budget: RowBudget) -> list[Statistic]:
    """Measure a tensor against its budget: the masks, then row, bulk, element, slope, factor.

    Shapes:
        actual as `budget.expected`, float64
    """
    limits, y = budget.limits, budget.expected
    found = [_mask_statistic(actual, budget)]
    error = errors(actual, budget)
    row_error = root_mean_square(error)
    seen: Numpy = np.any(_compared(actual, budget), axis=-1)
    ratio = limits.row * safe_ratio(row_error, row_allowance(budget))
    found.append(largest("row", np.where(seen, ratio, 0.0), limits.row, "rms(e_r) / E_r"))
    queries = slice(None) if budget.sampled is None else budget.sampled
    usual = safe_ratio(row_error, budget.rows)[..., queries][seen[..., queries]]
    # the mean over few rows scatters more; with one row it has the limit of that row
    bulk = limits.bulk + (limits.row - limits.bulk) / math.sqrt(max(usual.size, 1))
    found.append(Statistic("bulk", float(root_mean_square(usual[None])[0]), bulk, None, "rms over rows"))
    ratio, allowed = np.abs(error), element_allowance(budget, budget.rows, np.abs(y))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio /= allowed
    np.copyto(ratio, 0.0, where=error == 0)
    found.append(largest("element", ratio, limits.element, "|e| / (6 E_r + 2 u |y|)"))
    del ratio, allowed  # as large as the tensor
    found.append(_slope_statistic(error, budget))
    if budget.factor is not None:
        value = abs(budget.factor.estimate(y + error, y))
        found.append(Statistic("factor", value, factor_limit(budget), None, "|a factor of all rows − 1|"))
    return found


def row_allowance(budget: RowBudget) -> Numpy:
    """Return the allowed error of each row, shaped as `budget.rows`: 4 E_r, or 5.25 E_r if E_r > 1/4 of the row."""
    size = root_mean_square(np.where(np.isfinite(budget.expected), budget.expected, 0.0))
    is_noisy = safe_ratio(budget.rows, size) > budget.limits.noise
    allowed: Numpy = np.where(is_noisy, budget.limits.noisy_row, budget.limits.row) * budget.rows
    return allowed


def _compared(actual: Numpy, budget: RowBudget) -> Numpy:
    """Return which numbers are compared: finite ones whose truth is finite, in rows in which no order overflows."""
    known: Numpy = np.isfinite(actual) & np.isfinite(budget.expected) & ~budget.doubtful[..., None]
    return known


def errors(actual: Numpy, budget: RowBudget) -> Numpy:
    """Return the error of each number; 0 for those that are not compared."""
    zeros = np.zeros_like(budget.expected)
    with np.errstate(over="ignore"):
        return np.subtract(actual, budget.expected, out=zeros, where=_compared(actual, budget))


def kind_mismatch(actual: Numpy, budget: RowBudget) -> Numpy:
    """Return where the result is NaN, +∞ or −∞ and the stored truth is not, or the other way round."""
    stored = round_to(budget.expected, budget.storage)
    same = (np.isfinite(actual) & np.isfinite(stored)) | (actual == stored) | (np.isnan(actual) & np.isnan(stored))
    edge = np.isfinite(stored) ^ (np.abs(budget.expected) < FORMATS[budget.storage].top * (1 - 2 * budget.u))
    wrong: Numpy = ~same & ~edge & ~budget.doubtful[..., None]
    return wrong


def _mask_statistic(actual: Numpy, budget: RowBudget) -> Statistic:
    where = np.argwhere(kind_mismatch(actual, budget))
    if not len(where):
        return Statistic("masks", 0.0, 0.0, None, "NaN and ∞ in other places than in the truth")
    at = tuple(int(i) for i in where[0])
    stored = float(round_to(budget.expected[at], budget.storage))
    return Statistic("masks", float(len(where)), 0.0, at, f"{actual[at]:g} where the truth is {stored:g}")


def largest(name: str, x: Numpy, limit: float, what: str) -> Statistic:
    """Return the statistic of the largest of these ratios, with its index."""
    if x.size == 0:
        return Statistic(name, 0.0, limit, None, what)
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(x)), x.shape))
    return Statistic(name, float(x[at]), limit, at, what)


def _slope_statistic(error: Numpy, budget: RowBudget) -> Statistic:
    # a row below its own error says nothing of a scale: dq of a saturated softmax may be 1e-245
    y = np.where(np.isfinite(budget.expected) & ~budget.doubtful[..., None], budget.expected, 0.0)
    np.copyto(y, 0.0, where=(budget.rows > root_mean_square(y))[..., None])
    unit = float(max(np.max(y, initial=0.0), -np.min(y, initial=0.0))) or 1.0
    y /= unit
    value = abs(slope(error, y)) / unit
    return Statistic("slope", value, slope_limit(budget), None, "|⟨e, y⟩ / ⟨y, y⟩|")


def slope_limit(budget: RowBudget) -> float:
    """Return the limit of the slope statistic: that of correct kernels, and at least a few float32 roundings."""
    limit = budget.limits.slope * (budget.slope + THRESHOLDS.storage_slope * budget.u)
    return max(limit, THRESHOLDS.compute_slope * U32)


def factor_limit(budget: RowBudget) -> float:
    """Return the limit of the factor statistic; 0 if the tensor has none."""
    if budget.factor is None:
        return 0.0
    return budget.limits.factor * budget.factor.spread + THRESHOLDS.compute_slope * U32


def element_allowance(budget: RowBudget, rows: Numpy, size: Numpy) -> Numpy:
    """Return 6 E_r + 2 u |y| for each number, (…, e), from E_r of the rows, (…), and |y| as `size`."""
    allowed: Numpy = THRESHOLDS.element_units * budget.u * size
    allowed += THRESHOLDS.element_rows * rows[..., None]
    return allowed


def row_floor(size: Numpy, recipe: Recipe) -> Numpy:
    """Return the least E_r of rows of this size: the rounding of a stored result or of one float32 operation."""
    floor: Numpy = max(THRESHOLDS.storage_floor * recipe.u, THRESHOLDS.compute_floor * U32) * size
    return floor


def slope(e: Numpy, y: Numpy) -> float:
    """Return ⟨e, y⟩ / ⟨y, y⟩; 0 if y is 0."""
    square = float(np.vdot(y, y))
    return float(np.vdot(e, y)) / square if square > 0 else 0.0


def errors_of_runs(y: Numpy, runs: Sequence[Numpy]) -> tuple[list[Numpy], float, Numpy]:
    """Return the row errors of each run of a recipe, the largest slope, and the rows in which some run overflows.

    Shapes:
        y and each run (…, e) -> each error (…), a number, (…)
    """
    finite = np.isfinite(y)
    errors, slopes = [], [0.0]
    doubtful = np.zeros(y.shape[:-1], dtype=np.bool_)
    for run in runs:
        lost = np.any(~np.isfinite(run) & finite, axis=-1)
        doubtful |= lost
        known = finite & ~lost[..., None]
        right = np.where(known, y, 0.0)
        off = np.where(known, np.where(known, run, 0.0) - right, 0.0)
        errors.append(root_mean_square(off))
        unit = max(float(np.abs(x).max(initial=0.0)) for x in (right, off)) or 1.0
        slopes.append(abs(slope(off / unit, right / unit)))
    return errors, max(slopes), doubtful


def uncertain_share(budget: RowBudget) -> float:
    """Return the share of rows in which E_r is more than `limits.noise` of the row, or correct kernels overflow.

    In a gradient most rows may be tiny, so a row counts as at least the root mean square of all rows.
    """
    y = np.where(np.isfinite(budget.expected), budget.expected, 0.0)
    size = root_mean_square(y)
    if budget.relative_to == "tensor":
        size = np.maximum(size, math.sqrt(float(np.mean(size**2))) if size.size else 0.0)
    if not size.size:
        return 0.0
    return float(np.mean((safe_ratio(budget.rows, size) > budget.limits.noise) | budget.doubtful))
