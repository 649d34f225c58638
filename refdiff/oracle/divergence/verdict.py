"""Whether an array is what its point should be, row by row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ROW = 4.0
"""How many times the spread of its roundings a row may be off, as a root mean square."""

FLOOR = 0.4
"""The least spread of a row: so many units of roundoff, times the root mean square of its numbers."""

ELEMENT = (12.0, 4.0)
"""How far off one number may be: so many spreads of its row, and so many roundoffs and growths of itself."""


@dataclass
class Expected:
    """What a point should be, and how far off it may be.

    spread: the mean square of what rounding does to each row. hidden: entries that nobody uses. growth: of a sum, what
    its own size adds, relative to it.
    """

    value: Floats
    spread: Any = 0.0
    hidden: NDArray[np.bool_] | None = None
    growth: float = 0.0

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which entries are numbers that somebody uses."""
        finite: NDArray[np.bool_] = np.isfinite(self.value)
        return finite if self.hidden is None else finite & ~self.hidden


@dataclass(frozen=True)
class Found:
    """The worst row of a point: how often the allowed error it is off, where, and the error by itself.

    ratio is infinite where NaN or infinities stand in other places. worst: the index of the row (its last axis left
    out); error and size: the root mean squares of what it is off by and of what it should be.
    """

    ratio: float
    worst: tuple[int, ...] = ()
    error: float = 0.0
    size: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every row is within what is allowed."""
        return self.ratio <= 1


def compare(mine: Floats, expected: Expected, unit: float) -> Found:
    """Hold an array against what it should be, from the unit roundoff of its run."""
    right, seen = expected.value, True if expected.hidden is None else ~expected.hidden
    if right.ndim == 0:
        mine, expected = mine[None], replace(expected, value=right[None], spread=np.asarray(expected.spread))
        right = expected.value
    if right.size == 0:
        return Found(0.0)
    strange = seen & ~(np.isfinite(mine) & np.isfinite(right))
    with np.errstate(invalid="ignore"):
        unlike = strange & ~((mine == right) | (np.isnan(mine) & np.isnan(right)))
    if unlike.any():
        at = tuple(int(i) for i in np.argwhere(unlike)[0])
        return Found(np.inf, at[:-1] if right.ndim > 1 else at, float(mine[at]), float(right[at]))
    counted = seen & ~strange
    off = np.where(counted, mine - np.where(counted, right, 0.0), 0.0)
    value = np.where(counted, right, 0.0)
    n = np.maximum(counted.sum(axis=-1), 1)
    error, size = (np.sqrt((x**2).sum(axis=-1) / n) for x in (off, value))
    allowed = allowed_rows(expected, unit)
    element = np.abs(off) / (ELEMENT[0] * allowed[..., None] + ELEMENT[1] * (unit + expected.growth) * np.abs(value))
    ratio = np.maximum(error / (ROW * allowed), element.max(axis=-1))
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratio)), ratio.shape))
    return Found(float(ratio[at]), at, float(error[at]), float(size[at]))


def allowed_rows(expected: Expected, unit: float) -> Floats:
    """Return how far off each row may be, as a root mean square: `ROW` times that is wrong."""
    counted = expected.counted
    square = (np.where(counted, expected.value, 0.0) ** 2).sum(axis=-1) / np.maximum(counted.sum(axis=-1), 1)
    # of few numbers the mean is less sure, up to what a single one may be off by
    some = 1 + 4 / counting(expected)
    allowed = np.sqrt(expected.spread + some * ((FLOOR * unit) ** 2 + expected.growth**2) * square)
    result: Floats = np.maximum(allowed, np.finfo(np.float64).tiny)
    return result


def counting(expected: Expected) -> Floats:
    """How many numbers of each row count: all where they are alike, 1 where one is far above the rest."""
    if expected.value.ndim == 0:
        return np.ones(())
    y = np.where(expected.counted, expected.value, 0.0)
    y = (y / np.maximum(np.abs(y).max(axis=-1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)) ** 2
    n: Floats = np.maximum(y.sum(axis=-1) ** 2 / np.maximum((y**2).sum(axis=-1), np.finfo(np.float64).tiny), 1.0)
    return n
