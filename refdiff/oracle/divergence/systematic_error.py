"""Systematic errors, such as a common factor: too small to be seen in one row, but significant over all rows.

    factor      ⟨e, y⟩ / ⟨y, y⟩
    constant    Σ e / Σ |y|,  |y| being the root mean square of a row
    derivative  ⟨e, D⟩ / ⟨D, D⟩,  D = ∂y/∂a minus its projection on y
    columns     √ mean_j (c_j / s_j)²,  c_j = mean_t e_tj, e minus its projection on y

e is the error of a point and y its expected value. a is a quantity that y depends on and that is not in the trace: ε of
a norm, or a factor on scores. c is a bias with one number per column, and s_j² the mean square of column j plus that of
all columns. Sums are over all rows, weighted by the inverse of the mean square error that a run with rounding shows. A
correct run may have such an error up to the sum of

    steady      what has the same sign in all rows: one roundoff of a, of y or of the column mean for a constant such
                as 1/√d and for a cast that truncates; and the error of elementary functions
    drawn       what runs with rounding show, which includes errors of earlier points: the larger of runs that round
                every number independently and runs that round equal numbers alike
    own         the rounding of y itself: one error for equal numbers, and one that all rows of a position share, since
                the softmax of equal scores gives all heads the same 1/t

An ε that is wrong by δ changes a row of mean square m by the factor 1 − δ / 2m. In bfloat16, δ = 0.01 is a factor of
1.3 roundoffs at m = 1 and 0.13 at m = 10, where truncation instead of rounding is one of 0.7. So a wrong ε is found if
m is below 1 or some rows are far smaller than others, and otherwise not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refdiff.oracle.thresholds import THRESHOLDS

Floats = NDArray[np.float64]

ONE_ROUNDING = 0.42
"""The standard deviation of one relative rounding error in roundoffs, √(1 / (8 ln 2)).

The error of x in [2^e, 2^(e + 1)) is uniform in ± u 2^e, and log x is uniform in that interval."""


FACTOR, CONSTANT, COLUMNS, EPSILON = "factor", "constant", "columns", "ε"
SCORE_FACTORS = {"scores1": "the first scores", "scores2": "the second scores", "scores": "the scores"}
"""Points on which a factor is tested if they are not in the trace. λ is not one of them: in 16 bits each of its terms
is rounded, and correct runs have errors of a few hundredths."""


class SystematicError(NamedTuple):
    """A systematic error along one direction, and the limit that rounding explains.

    kind: one of the four constants above, or a point of `SCORE_FACTORS`.
    """

    kind: str
    value: float
    limit: float

    @property
    def ratio(self) -> float:
        """|value| / limit; above 1 is an error."""
        return abs(self.value) / self.limit

    def __str__(self) -> str:
        size, limit = f"{abs(self.value):.2g}", f"where rounding explains {self.limit:.2g}"
        if self.kind == CONSTANT:
            return f"a constant: on average {size} of its size too {'large' if self.value > 0 else 'small'}, {limit}"
        if self.kind == COLUMNS:
            return f"a bias: a constant for each column, about {size} of its size, {limit}"
        if self.kind == EPSILON:
            return f"an ε that is about {size} {'larger' if self.value > 0 else 'smaller'}, {limit}"
        on = f" on {SCORE_FACTORS[self.kind]}" if self.kind in SCORE_FACTORS else ""
        return f"the factor {1 + self.value:.5g}{on}, where rounding explains 1 ± {self.limit:.2g}"


def rounding_keys(x: Floats, unit: float) -> NDArray[np.uint64]:
    """Return an integer key per number: the number rounded to an eighth of a roundoff. Equal keys are rounded alike."""
    kept = min(52, round(-math.log2(unit)) + 3)
    bits = np.ascontiguousarray(x, dtype=np.float64).reshape(-1).view(np.uint64)
    keys: NDArray[np.uint64] = (bits + np.uint64((1 << (52 - kept)) >> 1)) >> np.uint64(52 - kept)
    return keys


class Projections(NamedTuple):
    """The projections of an error: its coefficient along each direction, and its bias in each column."""

    along: Floats
    columns: Floats | None


class Direction(NamedTuple):
    """A direction in which an error is tested.

    vector: returns the array whose product with an error, summed, is the coefficient; it may compute it at each call,
    to save memory. own: the coefficient that rounding of y gives. worst: the same if all its errors have one sign.
    """

    kind: str
    vector: Callable[[], Floats]
    own: float
    worst: float


def _return_array(x: Floats) -> Callable[[], Floats]:
    return lambda: x


class BiasTests:
    """Test one point for systematic errors: the directions, and the projections of runs with rounding on them.

    Args:
        right: the expected value y. unseen: entries that are masked or at padding.
        noise: the mean square error of each row in a run with rounding; infinite in rows that cannot be judged.
        names: the letters of the axes (`layouts.axes_of`). derivatives: ∂y/∂a by the name of a.
        epsilon: ε of the norm, if the point is one. growth: the relative error of sums (`expected_values.growth`).
        unit, tiny, common: as in `expect`.
    """

    def __init__(
        self, right: Floats, unseen: Any, noise: Floats, names: str, derivatives: dict[str, Floats], *,
        epsilon: float, growth: float, unit: float, tiny: float, common: float,
    ) -> None:  # fmt: skip
        self._unit, self._names, self._epsilon, self._common = unit, names, epsilon, common
        self._counted = np.isfinite(right) if unseen is None else np.isfinite(right) & ~unseen
        y = np.where(self._counted, right, 0.0)
        square = (y**2).sum(axis=-1) / np.maximum(self._counted.sum(axis=-1), 1)
        usable = (square > (THRESHOLDS.trace.min_roundings * tiny) ** 2) & np.isfinite(noise)
        level = noise + (ONE_ROUNDING * unit) ** 2 * square
        self._weight: Floats = np.where(usable, 1 / np.where(usable, level, 1.0), 0.0)[..., None]
        rounding = self._counted * (np.hypot(ONE_ROUNDING * unit, growth) * np.abs(y) + tiny)
        rows = names[:1] == "B" and "T" in names[:-1] and not set(names) & set("Sn1")
        self._group = self._group_rows(y) if rows else None
        self._directions = [
            *self._factor_and_constant(right, y, rounding), *self._derivatives(y, derivatives, rounding)
        ]  # fmt: skip
        self._prepare_columns(y, rounding)
        self._runs: dict[bool, list[Projections]] = {}

    def _factor_and_constant(self, right: Floats, y: Floats, rounding: Floats) -> Iterator[Direction]:
        """Yield the directions of a factor and a constant; none for a point of few numbers."""
        weight, counted = self._weight, self._counted
        squares = float((weight * y * y).sum())
        if counted.sum() < THRESHOLDS.trace.min_numbers or not squares > 0:
            return
        sizes = float((weight[..., 0] * np.sqrt(counted.sum(axis=-1) * (y * y).sum(axis=-1))).sum())
        for kind, vector, terms, size in (
            (FACTOR, lambda: weight / squares * np.where(counted, right, 0.0), rounding * np.abs(y), squares),
            (CONSTANT, lambda: weight / sizes, rounding, sizes),
        ):
            own = float(np.sqrt((self._sum_by_position(y, weight * terms) ** 2).sum()))
            yield Direction(kind, vector, own / size, 1.0)

    def _derivatives(self, y: Floats, derivatives: dict[str, Floats], rounding: Floats) -> Iterator[Direction]:
        """Yield the directions D of the derivatives, unless rounding could pass for a large share of a."""
        weight = self._weight
        squares = float((weight * y * y).sum())
        for kind, derivative in derivatives.items():
            d = np.where(self._counted & np.isfinite(derivative), derivative, 0.0)
            if not squares > 0 or not (size := float((weight * d * d).sum())) > 0:
                continue
            d = d - float((weight * d * y).sum()) / squares * y
            remainder = float((weight * d * d).sum())
            worst = float((weight * np.abs(y * d)).sum())
            is_hidden = self._unit * worst > THRESHOLDS.trace.hidden_share * remainder
            if remainder < THRESHOLDS.trace.min_remainder * size or (kind != EPSILON and is_hidden):
                continue
            own = self._own_rounding(y, weight * rounding * np.sign(y) * d)
            yield Direction(kind, _return_array(weight * d / remainder), own / remainder, worst / remainder)

    def _own_rounding(self, y: Floats, terms: Floats) -> float:
        """Return the size of Σ terms under rounding: one error per position, and one per distinct number of y."""
        used = terms != 0
        _, same = np.unique(rounding_keys(y[used], self._unit), return_inverse=True)
        single = np.bincount(same.reshape(-1), np.abs(terms[used]))
        return float(np.sqrt((self._sum_by_position(y, terms) ** 2).sum() + (single**2).sum()))

    def _sum_by_position(self, y: Floats, terms: Floats) -> Floats:
        """Add up |Σ terms of a row| over the rows of a position, or over rows that are alike."""
        rows = np.abs(terms.sum(axis=-1))
        if self._group is not None and self._group.size == rows.size:  # else a position has several heads
            return np.asarray(np.bincount(self._group, rows.reshape(-1)), dtype=np.float64)
        position = next((self._names.index(n) for n in "TS" if n in self._names), 0)
        shared = rows if position == rows.ndim else np.moveaxis(rows, position, 0).reshape(y.shape[position], -1)
        by_position: Floats = shared.reshape(len(shared), -1).sum(axis=1)
        return by_position

    def _group_rows(self, y: Floats) -> NDArray[np.intp]:
        """Number groups of rows that are equal up to size and rounding; rows are compared by a random projection."""
        table = self._table(y)
        size = np.sqrt((table**2).mean(axis=1))
        key = table @ np.random.default_rng(0).standard_normal(table.shape[1]) / math.sqrt(max(1, table.shape[1]))
        key = np.where(size > 0, key / np.where(size > 0, size, 1.0), np.inf)
        order = np.argsort(key)
        with np.errstate(invalid="ignore"):
            new = np.diff(key[order], prepend=-np.inf) > THRESHOLDS.trace.alike_distance * self._unit
        group = np.empty(len(order), dtype=np.intp)
        group[order] = np.cumsum(new)
        return group

    def _prepare_columns(self, y: Floats, rounding: Floats) -> None:
        """Prepare the test for a bias in the columns, from one row of each group; there is none for few groups."""
        self._distinct_rows: NDArray[np.intp] | None = None
        if self._group is None:
            return
        table, weight = self._table(y), self._table(np.broadcast_to(self._weight, y.shape))
        weighted = np.flatnonzero(weight.any(axis=1))
        first = weighted[np.unique(self._group[weighted], return_index=True)[1]]
        if len(first) < THRESHOLDS.trace.min_rows:
            return
        self._distinct_rows = first
        table, weight = table[first], weight[first]
        total = np.maximum(weight.sum(axis=0), np.finfo(np.float64).tiny)
        large = (weight * table**2).sum(axis=0) / total
        scale = np.sqrt(large + large.mean())
        self._shares: Floats = weight / total / scale
        self._rows = table
        own = ((self._shares * self._table(rounding)[first]) ** 2).sum(axis=0)
        self._own_columns = float(np.sqrt(own.mean()))
        self._mean = float(np.sqrt((((self._shares * table).sum(axis=0)) ** 2).mean()))

    def _table(self, x: Floats) -> Floats:
        """Return `x` as a table: a row for each position of each sequence, a column for everything else."""
        x = np.moveaxis(x, self._names.index("T"), 1) if x.ndim > 2 else x
        return x.reshape(x.shape[0] * x.shape[1], -1)

    def project(self, error: Floats) -> Projections:
        """Return the coefficients of an error."""
        e = np.where(self._counted & np.isfinite(error), error, 0.0)
        columns = None
        if self._distinct_rows is not None:
            table = self._table(e)[self._distinct_rows]
            whole = float((self._shares * table * self._rows).sum() / (self._shares * self._rows**2).sum())
            columns = (self._shares * (table - whole * self._rows)).sum(axis=0)
        return Projections(np.array([(e * direction.vector()).sum() for direction in self._directions]), columns)

    def add(self, error: Floats, *, shared: bool) -> None:
        """Record the error of a run with rounding; `shared`: the run rounded equal numbers alike."""
        self._runs.setdefault(shared, []).append(self.project(error))

    def judge(self, error: Floats) -> tuple[SystematicError | None, float]:
        """Return the systematic error that is largest relative to its limit, if any is tested, and a factor's limit."""
        found, given = [], self.project(error)
        elementary = THRESHOLDS.trace.elementary_error * min(self._unit, 2.0**-24)
        constants = {FACTOR: self._common, CONSTANT: self._common, EPSILON: self._epsilon}
        for i, (kind, _, own, worst) in enumerate(self._directions):
            drawn = max(float(np.sqrt(np.mean([p.along[i] ** 2 for p in runs]))) for runs in self._runs.values())
            steady = constants.get(kind, THRESHOLDS.trace.constant_error * self._common) * self._unit
            rounding = float(np.hypot(THRESHOLDS.trace.drawn_spreads * drawn, THRESHOLDS.trace.position_spreads * own))
            found.append(SystematicError(kind, float(given.along[i]), steady + elementary * worst + rounding))
        factor = min((item.limit for item in found if item.kind == FACTOR), default=np.inf)
        uniform = any(item.ratio > 1 for item in found if item.kind in (FACTOR, CONSTANT))
        if given.columns is not None and not uniform:  # a common constant is a bias of every column too
            columns = [np.stack([p.columns for p in runs if p.columns is not None]) for runs in self._runs.values()]
            drawn = max(_column_margin(runs) * float(np.sqrt((runs**2).mean())) for runs in columns)
            steady = (self._common * self._unit + elementary) * self._mean
            rounding = float(np.hypot(drawn, THRESHOLDS.trace.position_spreads * self._own_columns))
            limit = steady + rounding + np.finfo(float).tiny
            found.append(SystematicError(COLUMNS, float(np.sqrt((given.columns**2).mean())), limit))
        return max(found, key=lambda item: item.ratio, default=None), factor


def _column_margin(draws: Floats) -> float:
    """Return how many root mean squares of the draws a correct run may reach: `drawn_spreads` or less.

    If all draws are parallel they are one random number, with the margin of one; the more independent numbers they
    have, the less their norm varies. Draws of r independent numbers have cosines of mean square 1/r.
    """
    size = np.sqrt((draws**2).sum(axis=1, keepdims=True))
    one = draws / np.maximum(size, np.finfo(np.float64).tiny)
    cosines = (one @ one.T)[np.triu_indices(len(one), 1)]
    parallel = float(np.sqrt(np.mean(cosines**2))) if len(cosines) else 1.0
    return 1 + (THRESHOLDS.trace.drawn_spreads - 1) * parallel
