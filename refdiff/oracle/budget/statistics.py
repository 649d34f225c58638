"""The acceptance rule of a tensor: equal masks of NaN and ±∞, and three statistics with limits.

A row r is the last axis at one index of the others, such as (b, h, t) of an output. e is the error, y the truth, E_r
the error of correct kernels (root mean square over the row).

    row       max_r  rms(e_r) / E_r                       finds an error in one row, such as a lost key
    bulk      rms_r (rms(e_r) / E_r)                      a small error everywhere
    slope     |Σ_r ⟨e_r, y_r⟩ / E_r²| / Σ_r ⟨y_r, y_r⟩ / E_r²    a wrong scale, too small to show in any single row

A tolerance for the whole tensor, set by its worst row, would accept large errors in all other rows.

If E_r is more than a quarter of the row, the norms and sums that divide it are as wrong, and errors have longer tails.
Such a row may have 5.25 E_r, others 4 E_r.

The slope is the factor of all rows, less 1, by weighted least squares: noisy rows, for example where the maps cancel,
have small weights. Rows with E_r > rms(y_r) have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.oracle.rounding import FORMATS, U32, round_to
from refdiff.oracle.rounding import root_mean_square as root_mean_square
from refdiff.oracle.rounding import safe_ratio as safe_ratio
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.thresholds import THRESHOLDS, RowLimits

Numpy = np.ndarray[Any, Any]


LIMITS = THRESHOLDS.limits


@dataclass(frozen=True)
class RowBudget:
    """The budget of one tensor that is judged by rows.

    expected: (…, e), the truth.
    rows: (…), E_r.
    slope: the largest slope of an order (`largest_slope`).
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
    """Measure a tensor against its budget: the masks, then row, bulk, slope.

    Shapes:
        actual as `budget.expected`, float64
    """
    limits = budget.limits
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
    found.append(_slope_statistic(error, budget))
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
    y = np.where(budget.doubtful[..., None], 0.0, budget.expected)
    value = abs(weighted_slope(error, y, budget.rows))
    return Statistic("slope", value, slope_limit(budget), None, "|Σ ⟨e, y⟩ / E²| / Σ ⟨y, y⟩ / E²")


def weighted_slope(e: Numpy, y: Numpy, rows: Numpy) -> float:
    """Return the slope of errors e, (…, e), by the weights 1 / E_r², with `rows` E_r: (…)."""
    y = np.where(np.isfinite(y), y, 0.0)
    clear = (rows > 0) & (rows <= root_mean_square(y))
    unit = np.where(clear, rows, 1.0)[..., None]
    return slope(e / unit, np.where(clear[..., None], y, 0.0) / unit)


def largest_slope(y: Numpy, runs: Sequence[Numpy], rows: Numpy, doubtful: Numpy) -> float:
    """Return the largest slope of the runs of a recipe, without doubtful rows, which no verdict counts."""
    y = np.where(doubtful[..., None], 0.0, y)
    errors = (np.where(np.isfinite(run) & np.isfinite(y), run - y, 0.0) for run in runs)
    with np.errstate(invalid="ignore"):
        return max(abs(weighted_slope(e, y, rows)) for e in errors)


def slope_limit(budget: RowBudget) -> float:
    """Return the limit of the slope statistic: that of correct kernels, and at least a few float32 roundings."""
    limit = budget.limits.slope * (budget.slope + THRESHOLDS.storage_slope * budget.u)
    return max(limit, THRESHOLDS.compute_slope * U32)


def row_floor(size: Numpy, recipe: Recipe) -> Numpy:
    """Return the least E_r of rows of this size: the rounding of a stored result or of one float32 operation."""
    floor: Numpy = max(THRESHOLDS.storage_floor * recipe.u, THRESHOLDS.compute_floor * U32) * size
    return floor


def slope(e: Numpy, y: Numpy) -> float:
    """Return ⟨e, y⟩ / ⟨y, y⟩; 0 if y is 0."""
    square = float(np.vdot(y, y))
    return float(np.vdot(e, y)) / square if square > 0 else 0.0


def errors_of_runs(y: Numpy, runs: Sequence[Numpy]) -> tuple[list[Numpy], Numpy]:
    """Return the row errors of each run of a recipe, and the rows in which some run overflows.

    Shapes:
        y and each run (…, e) -> each error (…), (…)
    """
    finite, errors = np.isfinite(y), []
    doubtful = np.zeros(y.shape[:-1], dtype=np.bool_)
    for run in runs:
        lost = np.any(~np.isfinite(run) & finite, axis=-1)
        doubtful |= lost
        known = finite & ~lost[..., None]
        errors.append(root_mean_square(np.where(known, run, 0.0) - np.where(known, y, 0.0)))
    return errors, doubtful


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
