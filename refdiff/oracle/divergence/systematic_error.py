"""An error that points one way everywhere, as a factor or a constant: small in each row, and sure over all of them.

    factor      |⟨e, y⟩ / ⟨y, y⟩|
    constant    |Σ e| / Σ |y|, |y| the root mean square of a row

over all rows, each divided by what it may be off by. e is the error, y the right value. Rounding may bring them to: one
unit of roundoff, as of a constant that is rounded once, such as 1/√d; what roundings of the points before show here,
a λ that all share among them; and roundings of its own, as if all numbers of one position had the same, since softmax
of equal scores gives all heads the same 1/t to round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refdiff.oracle.divergence.verdict import Expected

Floats = NDArray[np.float64]
Sums = tuple[Floats, Floats]

FEWEST = 32
"""Of fewer numbers nothing is said: their rows are judged."""

ONE = 0.42
"""The standard deviation of one rounding, in units of roundoff: an error even within ± u 2^e, of numbers whose places
in [2^e, 2^(e + 1)) are as even in their logarithm, √(1 / (8 ln 2))."""

COARSE = 8.0
"""Rows smaller than so many roundings near 0 are left out: a whole one of them may have become 0."""

SURE = 4.0
"""How many standard deviations the roundings of the positions may add up to."""

DRAWN = 8.0
"""How many of those that a few draws show: a Student's t of 6 draws is above that once in 5000 times."""

COMMON = {"tf32": 3.0}
"""How many roundoffs may point one way, where it is not 1: tf32 cuts both factors of a product."""

ELEMENTARY = 16.0
"""How many roundoffs of float32 more: functions of a processor or GPU may be off by a few, all of them upwards."""


EPSILON = "ε"
KNOBS = {"scores1": "the first scores", "scores2": "the second scores", "scores": "the scores"}
"""Points that a factor is tried on where they are not there. λ is none: in 16 bits it is a sum of terms each rounded, a
few hundredths off in right runs."""


class OneWay(NamedTuple):
    """What was found, how large and in which direction, and what rounding explains.

    kind: "factor", "constant", "columns", ε, or a point of `KNOBS`.
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
        if self.kind == "constant":
            return f"a constant: on average {size} of its size too {'large' if self.value > 0 else 'small'}, {limit}"
        if self.kind == "columns":
            return f"a bias: a constant for each column, about {size} of its size, {limit}"
        if self.kind == EPSILON:
            return f"an ε that is about {size} {'larger' if self.value > 0 else 'smaller'}, {limit}"
        on = f" on {KNOBS[self.kind]}" if self.kind in KNOBS else ""
        return f"the factor {1 + self.value:.5g}{on}, where rounding explains 1 ± {self.limit:.2g}"


def row_sums(off: Floats, right: Floats, hidden: NDArray[np.bool_] | None) -> Sums:
    """Sum ⟨e, y⟩ and e over each row, of what counts."""
    counted = np.isfinite(off) & np.isfinite(right) & (True if hidden is None else ~hidden)
    e = np.where(counted, off, 0.0)
    return np.einsum("...i,...i->...", e, np.where(counted, right, 0.0)), e.sum(axis=-1)


def one_way(
    mine: Floats, expected: Expected, allowed: Floats, draws: Sequence[Sequence[Sums]], *,
    axis: int, unit: float, tiny: float, common: float,
) -> OneWay | None:  # fmt: skip
    """Return the larger of the two, in shares of what is allowed; None where there are too few numbers.

    Args:
        allowed: what each row may be off by (`verdict.allowed_rows`); draws: `row_sums` of runs with rounding, of each
            kind of run: that with the larger ones counts.
        axis: that of the positions. unit and tiny: as `expect` has them. common: see `COMMON`.
    """
    right, counted = expected.value, np.isfinite(mine) & expected.counted
    if right.ndim < 2 or counted.sum() < FEWEST:
        return None
    y = np.where(counted, right, 0.0)
    square, n = (y**2).sum(axis=-1), counted.sum(axis=-1)
    told = (square > n * (COARSE * tiny) ** 2) & np.isfinite(allowed)
    weight = np.where(told, 1 / np.maximum(allowed, np.finfo(np.float64).tiny) ** 2, 0.0)
    squares, sizes = float((weight * square).sum()), float((weight * np.sqrt(n * square)).sum())
    if not squares > 0:
        return None
    rounding = np.hypot(ONE * unit, expected.growth) * y**2 + tiny * (np.sqrt(square / np.maximum(n, 1)))[..., None]
    by_position = (weight[..., None] * rounding).sum(axis=tuple(i for i in range(y.ndim) if i != axis))
    own = float(np.sqrt((by_position**2).sum())) / squares

    def of(sums: Sums) -> tuple[float, float]:
        return float((weight * sums[0]).sum()) / squares, float((weight * sums[1]).sum()) / sizes

    drawn = np.max([np.zeros(2), *(_root_mean_square([of(sums) for sums in some]) for some in draws)], axis=0)
    steady = common * unit + ELEMENTARY * min(unit, 2.0**-24)
    limits = steady + np.hypot(DRAWN * drawn, SURE * own)
    values = of(row_sums(np.where(counted, mine, 0.0) - y, right, expected.hidden))
    found = [OneWay(*item) for item in zip(("factor", "constant"), values, limits.tolist(), strict=True)]
    return max(found, key=lambda item: item.ratio)


def _root_mean_square(draws: Sequence[tuple[float, float]]) -> Floats:
    result: Floats = np.sqrt(np.mean(np.square(draws), axis=0))
    return result
