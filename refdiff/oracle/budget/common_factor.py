"""A factor that all rows of a tensor have in common: too small for any row, and the same in each.

Equation:
    f_r = ⟨a_r − y_r, y_r⟩ / ⟨y_r, y_r⟩ is the factor, less 1, by which row r of a result a is the truth y. Of rows that
    a norm has made, f_r = (‖a_r‖² / ‖y_r‖² − 1) / 2, divided by the norm's weight first: the norm undoes a change of
    length, whatever has turned the row before it, and to first order both are the same.

    A factor 1 + c in every row gives f_r = c + what the kernel's own roundings make, of which the recipe's orders f_m
    (m = 1 … M) are samples. With the second moments

        Σ = diag(k_r s_r²) + (1/M) Σ_m f_m f_mᵀ,  s_r² = mean of f_m,r² + (u / √12n)² + u₃₂²

    the best linear estimate of c is ĉ = ⟨w, f⟩, w = Σ⁻¹1 / ⟨1, Σ⁻¹1⟩, and 1 / ⟨1, Σ⁻¹1⟩ is the variance of it that
    correct kernels have (Aitken 1935, generalised least squares). Rows that are noisy, such as those in which the maps
    cancel, count little; and so does an error that the rows share, such as that of λ, in so far as it is no factor.
    u/√12n is the rounding of n stored numbers, u₃₂ that of one operation in float32. k_r rows have the same numbers as
    row r, such as those of queries that attend to one and the same key: they are rounded alike, and count as one.

    So few orders do not show all errors that rows can share: where all tokens are alike, so are the roundings of many
    rows, and w fits the orders that it has seen better than any other. So each order is also left out in turn, and the
    spread of ĉ is at least the root mean square of what the others make of it. Orders that round the same numbers are
    left out together. Where they scale float16 by a number just above 1/5, all of them get what 1/5 would give: x / 5
    is never near the middle of two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refdiff.oracle.rounding import FORMATS, round_to

Numpy = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CommonFactor:
    """How a common factor is estimated, and how far from 1 it comes out of correct kernels.

    weights (…): of each row, 0 where it is not counted; they add up to 1. spread: standard deviation of the estimate.
    divisor: the weight of a norm that gives all rows one length, 1 of one without weight; None of rows without a norm.
    """

    weights: Numpy
    spread: float
    divisor: Numpy | float | None

    def estimate(self, actual: Numpy, expected: Numpy) -> float:
        """Return ĉ: by what factor, less 1, a result is the truth."""
        counted = self.weights != 0
        factors = row_factors(actual[counted], expected[counted], self.divisor)
        return float(np.sum(self.weights[counted] * factors))

    def at(self, queries: Numpy, count: int) -> CommonFactor:
        """Return the same of a tensor with `count` queries, of which these are counted: the last axis of `weights`."""
        weights = np.zeros((*self.weights.shape[:-1], count))
        weights[..., queries] = self.weights
        return replace(self, weights=weights)


def row_factors(actual: Numpy, expected: Numpy, divisor: Numpy | float | None) -> Numpy:
    """The factor, less 1, of each row; 0 where the row is 0 or not a number."""
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
    """Weigh the rows by what the recipe's orders are off by; None where no row is counted.

    Args:
        counted: (…), the rows of which something can be said; none is that an order misses by more than itself.
        lost_below: numbers below it may be 0 in all rows at once; that counts as one more order, and rows of less than
            a thousand times as much do not count.
        groups: of each run; runs of one group round the same numbers. None = each has its own.
    """
    size = np.max(np.where(np.isfinite(expected), np.abs(expected), 0.0), axis=-1, initial=0.0).ravel()
    lost = lost_below / np.maximum(size, max(lost_below, np.finfo(np.float64).tiny))
    found = np.stack([*(row_factors(run, expected, divisor).ravel() for run in runs), lost])
    counted = (counted & np.any(np.isfinite(expected) & (expected != 0), axis=-1)).ravel()
    counted &= np.all(np.abs(found) <= 1, axis=0) & (lost <= 1e-3)
    if not counted.any():
        return None
    found = np.where(counted, found, 0.0)
    least = FORMATS[storage].u ** 2 / (12 * expected.shape[-1]) + FORMATS["float32"].u ** 2
    alike = _rows_alike(round_to(expected, storage), counted)
    weights, variance = _estimator(found, alike, least)
    labels = np.arange(len(runs)) if groups is None else np.asarray(groups)
    others = [np.append(labels != label, True) for label in labels]  # the last stands for no order
    missed = [_estimator(found[which], alike, least)[0] @ f for which, f in zip(others, found, strict=False)]
    spread = max(math.sqrt(variance), float(np.sqrt(np.mean(np.square(missed)))))
    return CommonFactor(weights.reshape(expected.shape[:-1]), spread, divisor)


def _rows_alike(y: Numpy, counted: Numpy) -> Numpy:
    """How many of the counted rows have the numbers of this one, itself among them; 0 of a row that is not counted."""
    alike = np.zeros(counted.size)
    _, which, count = np.unique(y.reshape(counted.size, -1)[counted], axis=0, return_inverse=True, return_counts=True)
    alike[counted] = count[which.ravel()]
    return alike


def _estimator(found: Numpy, alike: Numpy, least: float) -> tuple[Numpy, float]:
    """w and the variance of ĉ, from the factors of the orders (M, rows)."""
    counted = alike > 0
    precision = np.where(counted, 1.0 / np.where(counted, alike * (np.mean(found**2, axis=0) + least), 1.0), 0.0)
    # Woodbury: the inverse of a diagonal and M outer products takes a system of M equations
    inner = len(found) * np.eye(len(found)) + (found * precision) @ found.T
    weights = precision - precision * (np.linalg.solve(inner, found @ precision) @ found)
    total = float(np.sum(weights))
    return weights / total, 1 / total
