"""Compute the expected value of each point and the error of correct runs: repeat the run in float64, with rounding too.

The runs with rounding add the random errors of the ensemble's orders (`refdiff.oracle.rounding.evaluation_order`) at
each point, and the statistics of `check` judge a point (`refdiff.oracle.budget.statistics`). Each point is computed
from the arrays of the run under test, so that an error is charged to the point that made it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array
from refdiff.oracle.budget.statistics import RowBudget, Statistic, root_mean_square, slope, statistics
from refdiff.oracle.rounding import FORMATS, U32
from refdiff.oracle.rounding.evaluation_order import RMS_ROUNDING, Arithmetic, Order, sum_error
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.thresholds import THRESHOLDS

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def unit_roundoff(precision: str) -> float:
    """Return the unit roundoff of a type; of float64 more, since the expected values are float64 themselves."""
    return max(FORMATS[precision].u, THRESHOLDS.trace.least_unit)


@dataclass
class Expected:
    """The expected value of a point, and how far correct runs are from it.

    rows: E_r, the error of each row, without its floor. slope: the largest common factor of a run's errors. hidden: the
    entries that are not compared.
    """

    value: Floats
    precision: str
    rows: Any = 0.0
    slope: float = 0.0
    hidden: Mask | None = None

    def add(self, error: Floats, size: float) -> None:
        """Record the error of a run with `size` times the rounding of correct ones."""
        error = np.where(np.isfinite(error), self._seen(error), 0.0)
        self.rows = np.maximum(self.rows, root_mean_square(np.atleast_2d(error)) / size)
        self.slope = max(self.slope, abs(slope(error, np.where(np.isfinite(self.value), self.value, 0.0))) / size)

    def budget(self) -> RowBudget:
        """Return the budget of the point; a single number is a row, and so are those along one axis."""
        limits, unit = THRESHOLDS.trace, unit_roundoff(self.precision)
        value = np.atleast_2d(self._seen(self.value))
        finite = np.where(np.isfinite(value), value, 0.0)
        few = 1 + limits.few_numbers / _effective_count(finite)
        floor = np.sqrt(few) * limits.floor * unit * root_mean_square(finite)
        rows = np.maximum(np.hypot(self.rows, floor), np.finfo(np.float64).tiny)
        common = limits.tf32_error if self.precision == "tf32" else 1.0
        shared = self.slope + common * unit / limits.rows.slope
        doubtful = np.zeros(rows.shape, dtype=np.bool_)
        return RowBudget(value, rows, shared, self.precision, "", doubtful, limits=limits.rows)

    def compare(self, actual: Floats) -> Comparison:
        """Compare an array with the expected value."""
        budget = self.budget()
        right = np.atleast_2d(self.value)
        mine = np.atleast_2d(actual if self.hidden is None else np.where(self.hidden, 0.0, actual))
        if not right.size:
            return Comparison(0.0)
        found = statistics(mine, budget)
        worst = max(found, key=_ratio)
        row = next((s.at for s in found if s.name == "row" and s.at), ())
        at = (worst.at or row)[: right.ndim - 1]
        if not found[0].holds:  # the masks
            place = worst.at or ()
            return Comparison(math.inf, worst, at, float(mine[place]), float(right[place]))
        error, size = (np.where(np.isfinite(x), x, 0.0)[at] for x in (mine - budget.expected, budget.expected))
        return Comparison(_ratio(worst), worst, at, *(float(root_mean_square(x[None])[0]) for x in (error, size)))

    def _seen(self, x: Floats) -> Floats:
        return x if self.hidden is None else np.where(self.hidden, 0.0, x)


@dataclass(frozen=True)
class Comparison:
    """The comparison of a point: the statistic that is largest relative to its limit, and this ratio.

    row: the index of the worst row. error, size: root mean squares of its error and of its expected value; if NaN or
    infinities are in other places, one such number and its expected value.
    """

    ratio: float
    worst: Statistic | None = None
    row: tuple[int, ...] = ()
    error: float = 0.0
    size: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every statistic is within its limit."""
        return self.ratio <= 1


def _ratio(s: Statistic) -> float:
    if s.limit == 0:
        return math.inf if s.value else 0.0
    return s.value / s.limit


def _effective_count(y: Floats) -> Floats:
    """Return the effective number of elements of each row: all if they are of one size, 1 if one is far larger."""
    squares = (y / np.maximum(np.abs(y).max(axis=-1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)) ** 2
    total = np.maximum((squares**2).sum(axis=-1), np.finfo(np.float64).tiny)
    count: Floats = np.maximum(squares.sum(axis=-1) ** 2 / total, 1.0)
    return count


def expect(
    run: Callable[..., None], given: Mapping[str, Floats], precision: str, padding: Callable[[str, Floats], Mask | None]
) -> dict[str, Expected]:  # fmt: skip
    """Repeat a run: once exactly, then with larger errors than rounding makes, which are divided by their size.

    Args:
        run: calls a `Visit` at each point (`refdiff.oracle.trace.points`).
        given: the arrays of the run under test, in the axes of the points.
        precision: the type that the run computes in.
        padding: returns the entries of a point at padding, or None.
    """
    limits, unit = THRESHOLDS.trace, unit_roundoff(precision)
    tiny, sums = FORMATS[precision].tiny, min(unit, U32) / U32
    points: dict[str, Expected] = {}

    def continue_with(path: str, value: Array) -> Any:
        if path not in given:
            return value
        hidden = points[path].hidden
        return given[path] if hidden is None else np.where(hidden, 0.0, given[path])

    def exactly(path: str, value: Array, *, hidden: Mask | None = None, **_: Any) -> Array:
        points[path] = Expected(np.array(value, dtype=np.float64), precision, hidden=hidden)
        return continue_with(path, value)

    run(exactly, maps=True)

    def rounded(arith: Arithmetic) -> Callable[..., Array]:
        size = limits.rows.row

        def noisy(value: Array, error: float) -> Floats:
            x = np.asarray(value, dtype=np.float64)
            y = np.abs(np.where(np.isfinite(x), x, 0.0))
            return arith.perturb(x, size * (error * y + RMS_ROUNDING * np.minimum(tiny, y)))

        def visit(
            path: str, value: Array, *, terms: int = 0, doubt: Callable[[float], Any] | None = None, **_: Any
        ) -> Array:
            # one rounding, and those of the partial sums of `terms` products of one sign
            result = noisy(value, RMS_ROUNDING * (unit + sums * U32 * math.sqrt(terms / 3)))
            if doubt is not None:
                result = arith.perturb(result, size * RMS_ROUNDING * np.asarray(doubt(unit)))
            with np.errstate(invalid="ignore"):
                points[path].add(result - points[path].value, size)
            if path in given:
                result = noisy(continue_with(path, value), RMS_ROUNDING * unit)
            # the sum that is computed from it next has the errors of sums of either sign
            n = result.shape[-1] if result.ndim else 1
            return noisy(result, sums * sum_error(n))

        return visit

    for seed in range(1, limits.runs + 1):
        run(rounded(Arithmetic(Recipe("float32"), Order("", noise=seed, alike=seed % 2 == 0))), maps=True)
    _add_map_errors(points)
    for path, point in points.items():
        hidden = padding(path, point.value)
        point.hidden = hidden if point.hidden is None else point.hidden if hidden is None else point.hidden | hidden
    return points


def _add_map_errors(points: dict[str, Expected]) -> None:
    """Add the errors of both maps to those of their difference.

    A fused kernel does not compute the difference from the `attn1` and `attn2` of the trace, which were computed
    separately: its own scores and sums are rounded in another order.
    """
    for path, diff in points.items():
        head, found, repetition = path.rpartition("diff")
        names = [f"{head}{name}{repetition}" for name in ("attn1", "attn2", "lambda_full")]
        if found and points.keys() >= set(names):
            first, second, lambda_ = (points[name] for name in names)
            factor = lambda_.value if lambda_.value.ndim == 0 else lambda_.value[..., 0]
            diff.rows = np.sqrt(diff.rows**2 + first.rows**2 + (factor * second.rows) ** 2)
