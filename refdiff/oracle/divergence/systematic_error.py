"""An error that points one way everywhere, as a factor or a constant: small in each row, and sure over all of them.

    factor      |⟨e, y⟩ / ⟨y, y⟩|
    constant    |Σ e| / Σ |y|, |y| the root mean square of a row
    bent        ⟨e, D⟩ / ⟨D, D⟩,  D = ∂y/∂a less its share of y itself
    columns     √ mean_j (c_j / s_j)²,  c_j = mean_t e_tj, of e less its share of y

over all rows, weighted by what a run with rounding shows of them. e is the error, y the right value. a is a number that
y depends on and that is no point of the trace: ε of a norm, or a factor on scores where these are not there. c is a
bias, one number for each column, and s_j² the mean square of the column and of all. Rounding brings them to:

    steady      one unit of roundoff of each constant, such as 1/√d, and each cast that cuts off where it should round:
                a share of a itself, of y, or of the mean of the column; and what functions of a processor may be off
                by, all one way
    drawn       what runs with rounding show, which have errors of the points before, shared among rows or not: the
                larger of those where every number is rounded for itself, and of those where equal numbers are alike
    own         what rounding of y itself comes to, the same for equal numbers, and one that all rows of a position
                share, since a softmax of equal scores gives all heads the same 1/t

An ε that is wrong by δ is a factor of 1 − δ / 2m on a row of mean square m, beside a part that differs from row to row.
In bfloat16 a δ of 0.01 is 1.3 roundoffs at m = 1 and 0.13 at m = 10, where cutting off instead of rounding takes 0.7 of
each number: it is told where m is below 1, or where some rows are far smaller than others, and else not.
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
"""The standard deviation of one rounding, in units of roundoff: an error even within ± u 2^e, of numbers whose places
in [2^e, 2^(e + 1)) are as even in their logarithm, √(1 / (8 ln 2))."""

IN_COMMON = {"tf32": 3.0}
"""How many roundoffs may point one way, where it is not 1: tf32 cuts both factors of a product."""

FACTOR, CONSTANT, COLUMNS, EPSILON = "factor", "constant", "columns", "ε"
KNOBS = {"scores1": "the first scores", "scores2": "the second scores", "scores": "the scores"}
"""Points that a factor is tried on where they are not there. λ is none: in 16 bits it is a sum of terms each rounded, a
few hundredths off in right runs."""


class OneWay(NamedTuple):
    """What was found, how large and in which direction, and what rounding explains.

    kind: one of the four above, or a point of `KNOBS`.
    """

    kind: str
    value: float
    limit: float

    @property
    def ratio(self) -> float:
        """The share of what is allowed."""
        return abs(self.value) / self.limit

    def __str__(self) -> str:
        size, limit = f"{abs(self.value):.2g}", f"where rounding explains {self.limit:.2g}"
        if self.kind == CONSTANT:
            return f"a constant: on average {size} of its size too {'large' if self.value > 0 else 'small'}, {limit}"
        if self.kind == COLUMNS:
            return f"a bias: a constant for each column, about {size} of its size, {limit}"
        if self.kind == EPSILON:
            return f"an ε that is about {size} {'larger' if self.value > 0 else 'smaller'}, {limit}"
        on = f" on {KNOBS[self.kind]}" if self.kind in KNOBS else ""
        return f"the factor {1 + self.value:.5g}{on}, where rounding explains 1 ± {self.limit:.2g}"


def nearly(x: Floats, unit: float) -> NDArray[np.uint64]:
    """Give numbers that differ by less than an eighth of a roundoff one key: they are rounded alike."""
    kept = min(52, round(-math.log2(unit)) + 3)
    bits = np.ascontiguousarray(x, dtype=np.float64).reshape(-1).view(np.uint64)
    keys: NDArray[np.uint64] = (bits + np.uint64((1 << (52 - kept)) >> 1)) >> np.uint64(52 - kept)
    return keys


class Sums(NamedTuple):
    """The coefficient along each direction, and that of each column."""

    along: Floats
    columns: Floats | None


class Bend(NamedTuple):
    """One direction: how an error is projected on it, what rounding of y itself comes to along it, and at most.

    `direction` returns the array: one that is kept, or one that is made for each projection.
    """

    kind: str
    direction: Callable[[], Floats]
    own: float
    all_alike: float


def _constant(x: Floats) -> Callable[[], Floats]:
    """A function that returns `x`."""
    return lambda: x


class Patterns:
    """The directions of one point, and what runs with rounding are along them.

    Args:
        right: the point. unseen: entries that nobody uses, or that stand at padding. noise: the mean square of what a
            run with rounding is off by in each row; infinite in rows that nothing can be said of.
        names: the letters of the axes (`layouts.axes_of`). bends: ∂y/∂a by the name of a.
        unit and tiny: as `expect` has them. growth: of sums, as `growth`.
    """

    def __init__(
        self, right: Floats, unseen: Any, noise: Floats, names: str, bends: dict[str, Floats], *,
        unit: float, tiny: float, growth: float,
    ) -> None:  # fmt: skip
        self._unit, self._names = unit, names
        self._counted = np.isfinite(right) if unseen is None else np.isfinite(right) & ~unseen
        y = np.where(self._counted, right, 0.0)
        square = (y**2).sum(axis=-1) / np.maximum(self._counted.sum(axis=-1), 1)
        told = (square > (THRESHOLDS.min_roundings * tiny) ** 2) & np.isfinite(noise)
        level = noise + (ONE_ROUNDING * unit) ** 2 * square
        self._weight: Floats = np.where(told, 1 / np.where(told, level, 1.0), 0.0)[..., None]
        rounding = self._counted * (np.hypot(ONE_ROUNDING * unit, growth) * np.abs(y) + tiny)
        rows = names[:1] == "B" and "T" in names[:-1] and not set(names) & set("Sn1")
        self._group = self._alike(y) if rows else None
        self._bends = [*self._whole(right, y, rounding), *self._bent(y, bends, rounding)]
        self._columns(y, rounding)
        self._draws: dict[bool, list[Sums]] = {}

    def _whole(self, right: Floats, y: Floats, rounding: Floats) -> Iterator[Bend]:
        """A factor and a constant; nothing of few numbers."""
        weight, counted = self._weight, self._counted
        squares = float((weight * y * y).sum())
        if counted.sum() < THRESHOLDS.min_numbers or not squares > 0:
            return
        sizes = float((weight[..., 0] * np.sqrt(counted.sum(axis=-1) * (y * y).sum(axis=-1))).sum())
        for kind, direction, terms, size in (
            (FACTOR, lambda: weight / squares * np.where(counted, right, 0.0), rounding * np.abs(y), squares),
            (CONSTANT, lambda: weight / sizes, rounding, sizes),
        ):
            own = float(np.sqrt((self._by_position(y, weight * terms) ** 2).sum()))
            yield Bend(kind, direction, own / size, 1.0)

    def _bent(self, y: Floats, bends: dict[str, Floats], rounding: Floats) -> Iterator[Bend]:
        weight = self._weight
        squares = float((weight * y * y).sum())
        for kind, bend in bends.items():
            d = np.where(self._counted & np.isfinite(bend), bend, 0.0)
            if not squares > 0 or not (size := float((weight * d * d).sum())) > 0:
                continue
            d = d - float((weight * d * y).sum()) / squares * y
            bent = float((weight * d * d).sum())
            all_alike = float((weight * np.abs(y * d)).sum())
            if bent < 1e-6 * size or (kind != EPSILON and self._unit * all_alike > THRESHOLDS.hidden_share * bent):
                continue
            own = self._by_chance(y, weight * rounding * np.sign(y) * d)
            yield Bend(kind, _constant(weight * d / bent), own / bent, all_alike / bent)

    def _by_chance(self, y: Floats, terms: Floats) -> float:
        """What roundings of y come to: of a position one that all its rows share, and of each number its own."""
        used = terms != 0
        _, same = np.unique(nearly(y[used], self._unit), return_inverse=True)
        single = np.bincount(same.reshape(-1), np.abs(terms[used]))
        return float(np.sqrt((self._by_position(y, terms) ** 2).sum() + (single**2).sum()))

    def _by_position(self, y: Floats, terms: Floats) -> Floats:
        """The sums of terms over each row, added up over the rows of a position, or those that are alike."""
        rows = np.abs(terms.sum(axis=-1))
        if self._group is not None and self._group.size == rows.size:  # and not several heads of a position
            return np.asarray(np.bincount(self._group, rows.reshape(-1)), dtype=np.float64)
        position = next((self._names.index(n) for n in "TS" if n in self._names), 0)
        shared = rows if position == rows.ndim else np.moveaxis(rows, position, 0).reshape(y.shape[position], -1)
        by_position: Floats = shared.reshape(len(shared), -1).sum(axis=1)
        return by_position

    def _alike(self, y: Floats) -> NDArray[np.intp]:
        """Number the rows so that those that are alike have one number; of rows of no weight it is any."""
        table = self._table(y)
        size = np.sqrt((table**2).mean(axis=1))
        shade = table @ np.random.default_rng(0).standard_normal(table.shape[1]) / math.sqrt(max(1, table.shape[1]))
        shade = np.where(size > 0, shade / np.where(size > 0, size, 1.0), np.inf)
        order = np.argsort(shade)
        with np.errstate(invalid="ignore"):
            new = np.diff(shade[order], prepend=-np.inf) > THRESHOLDS.alike_distance * self._unit
        group = np.empty(len(order), dtype=np.intp)
        group[order] = np.cumsum(new)
        return group

    def _columns(self, y: Floats, rounding: Floats) -> None:
        self._first: NDArray[np.intp] | None = None
        if self._group is None:
            return
        table, weight = self._table(y), self._table(np.broadcast_to(self._weight, y.shape))
        some = np.flatnonzero(weight.any(axis=1))
        first = some[np.unique(self._group[some], return_index=True)[1]]
        if len(first) < THRESHOLDS.min_rows:
            return
        self._first = first
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
        """Rows are positions of all sequences, columns everything else."""
        x = np.moveaxis(x, self._names.index("T"), 1) if x.ndim > 2 else x
        return x.reshape(x.shape[0] * x.shape[1], -1)

    def sums(self, off: Floats) -> Sums:
        """Return how much of each there is in an error."""
        e = np.where(self._counted & np.isfinite(off), off, 0.0)
        columns = None
        if self._first is not None:
            table = self._table(e)[self._first]
            whole = float((self._shares * table * self._rows).sum() / (self._shares * self._rows**2).sum())
            columns = (self._shares * (table - whole * self._rows)).sum(axis=0)
        return Sums(np.array([(e * bend.direction()).sum() for bend in self._bends]), columns)

    def add(self, off: Floats, *, alike: bool) -> None:
        """Take what a run with rounding is off by; `alike`: equal numbers were rounded alike in it."""
        self._draws.setdefault(alike, []).append(self.sums(off))

    def judge(self, off: Floats, epsilon: float, common: float) -> tuple[OneWay | None, float]:
        """Return the largest in shares of what is allowed, None where nothing is told; and what a factor may be.

        Args:
            epsilon: of the norm, if it is one. common: see `IN_COMMON`.
        """
        found, given = [], self.sums(off)
        elementary = THRESHOLDS.elementary_error * min(self._unit, 2.0**-24)
        constants = {FACTOR: common, CONSTANT: common, EPSILON: epsilon}
        for i, (kind, _, own, all_alike) in enumerate(self._bends):
            drawn = max(float(np.sqrt(np.mean([s.along[i] ** 2 for s in some]))) for some in self._draws.values())
            steady = constants.get(kind, THRESHOLDS.constant_error * common) * self._unit
            rounding = float(np.hypot(THRESHOLDS.drawn_spreads * drawn, THRESHOLDS.position_spreads * own))
            found.append(OneWay(kind, float(given.along[i]), steady + elementary * all_alike + rounding))
        factor = min((item.limit for item in found if item.kind == FACTOR), default=np.inf)
        alike = any(item.ratio > 1 for item in found if item.kind in (FACTOR, CONSTANT))
        if given.columns is not None and not alike:  # a constant may be the same for all columns
            columns = [np.stack([s.columns for s in some if s.columns is not None]) for some in self._draws.values()]
            drawn = max(_sure(runs) * float(np.sqrt((runs**2).mean())) for runs in columns)
            steady = (common * self._unit + elementary) * self._mean
            limit = (
                steady + float(np.hypot(drawn, THRESHOLDS.position_spreads * self._own_columns)) + np.finfo(float).tiny
            )
            found.append(OneWay(COLUMNS, float(np.sqrt((given.columns**2).mean())), limit))
        return max(found, key=lambda item: item.ratio, default=None), factor


def _sure(draws: Floats) -> float:
    """How many times their root mean square a right run may be: `drawn_spreads` if all lie along one line, else less.

    n draws of r independent numbers have cosines of mean square 1/r among them.
    """
    size = np.sqrt((draws**2).sum(axis=1, keepdims=True))
    one = draws / np.maximum(size, np.finfo(np.float64).tiny)
    cosines = (one @ one.T)[np.triu_indices(len(one), 1)]
    alike = float(np.sqrt(np.mean(cosines**2))) if len(cosines) else 1.0
    return 1 + (THRESHOLDS.drawn_spreads - 1) * alike
