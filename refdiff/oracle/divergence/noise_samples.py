"""Runs with rounding: which there are, which numbers have the same errors in them, and what rows they allow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refdiff.oracle.divergence.bias_tests import Patterns, nearly
from refdiff.oracle.divergence.systematic_error import Sums, row_sums
from refdiff.oracle.divergence.verdict import ROW, Expected, counting

Floats = NDArray[np.float64]

MEMBERS = 6
"""How many times the run is repeated with every number rounded for itself, and with equal numbers rounded alike."""

STRONG = 32
"""How many times more in "free" mode, with errors `ROW` times as large. Where errors only add up, such a run is off by
as much more, and says nothing new. Where two keys have nearly the same score, errors that have come so far decide which
is the larger: a right run may see the other one, though none of a few usual draws did. Most of these do; in one right
run of sharp maps in bfloat16 none of the first 16 did."""

MORE = 1.5
"""The furthest of them, divided by `ROW`, must be so many times what usual draws show (in squares) for errors not to
just add up."""

JUMP = 1.5
"""How much further than the furthest of them a right run may then be. Of a row that may lose half of itself nothing can
be said."""

DOUBTFUL = 3.09
"""How many standard deviations (1 in 1000) the spread that so few rounded numbers show may be too small."""

SAME = 2.0**-37
"""Equal numbers are nearer than an eighth of this, far more than sums in another order make of the same number."""

ODD = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ / golden ratio: a product with it has its upper bits spread evenly (Knuth, TAOCP 3, 6.4)."""

SLOTS = 2
"""Equal values are found in a table of at least so many slots for each. Of pairs one in ten is missed, since another
number has its slot; of values that come more often, fewer."""


class Draw(NamedTuple):
    """A run with rounding: errors `size` times as large; `alike`: equal numbers are rounded alike."""

    seed: int
    size: float = 1.0
    alike: bool = False
    pilot: bool = False


def draws_of(local: bool) -> list[Draw]:
    """`STRONG` if errors add up, a pilot, from which rows get their weights in `patterns`, `MEMBERS` of each kind."""
    strong = [] if local else [Draw(MEMBERS + n, size=ROW) for n in range(STRONG)]
    pilot = Draw(MEMBERS + STRONG, alike=True, pilot=True)
    return [*strong, pilot, *(Draw(n, alike=kind) for kind in (False, True) for n in range(MEMBERS))]


@dataclass
class Sampled(Expected):
    """A point of a run, and what runs with rounding are off by there.

    Where rows are equal, as of a token that is repeated, errors of each number by itself average out over them, and
    those that equal numbers share do not: the larger counts.

    draws: `systematic_error.row_sums` of each run with rounding, by kind; not of points whose doubt is the same for
    many numbers. patterns: of a point that the run under test has. bends: what it changes by, per number that it
    depends on; epsilon: that of a norm. sure: the mean squares of its doubt.
    """

    draws: tuple[list[Sums], list[Sums]] = field(default_factory=lambda: ([], []))
    patterns: Patterns | None = None
    bends: dict[str, Floats] = field(default_factory=dict)
    epsilon: float = 0.0
    sure: Any = 0.0
    _furthest: Floats | None = None
    _squares: list[Any] = field(default_factory=lambda: [0.0, 0.0])

    def add(self, off: Floats, draw: Draw, summed: bool) -> None:
        """Take one run's; `summed`: its sums over rows count, too."""
        square = self._rows(off)
        if draw.size > 1:
            self._furthest = square if self._furthest is None else np.maximum(self._furthest, square)
            return
        self._squares[draw.alike] = self._squares[draw.alike] + square / MEMBERS
        if summed:
            self.draws[draw.alike].append(row_sums(off, self.value, self.hidden))
        if self.patterns is not None:
            self.patterns.add(off, alike=draw.alike)

    def level(self, off: Floats) -> Floats:
        """The mean squares of rows as one more run shows them."""
        return self._beyond(self._rows(off))

    def finish(self, tiny: float) -> None:
        """Take the mean squares of rows as all runs show them, and of roundings near 0, `tiny` as in `expect`."""
        self.spread = self._beyond((tiny**2 + np.maximum(*self._squares)) * _margin(self)) + self.sure

    def _rows(self, off: Floats) -> Floats:
        return row_mean(np.where(np.isfinite(off), off, 0.0) ** 2, self.hidden)

    def _beyond(self, usual: Floats) -> Floats:
        """The mean squares of rows, or what stronger errors show where they do more than add up; ∞ if too much."""
        if self._furthest is None:
            return usual
        jump = self._furthest / ROW**2
        half = row_mean(np.where(np.isfinite(self.value), self.value, 0.0) ** 2, None) / 4
        far = np.where((JUMP * ROW) ** 2 * jump > half, np.inf, JUMP**2 * jump)
        result: Floats = np.where(jump > MORE * usual, far, usual)
        return result


def alike(value: Floats, normal: Floats) -> Floats:
    """Give equal values the same of the normal numbers, and the others their own: rounding does not see where they are.

    Equal is what differs by less than `SAME`; two scores that are only near each other may be rounded apart. Of values
    that have no equal the draw is the one of every number by itself, so that the two kinds differ by no chance.
    """
    keys, own = nearly(value, SAME), normal.reshape(-1)
    bits = (SLOTS * keys.size).bit_length()
    slots = (keys * ODD) >> np.uint64(64 - bits)
    last = np.empty(1 << bits, dtype=np.intp)
    last[slots] = np.arange(keys.size)
    of = last[slots]
    found: Floats = np.where(keys[of] == keys, own[of], own).reshape(np.shape(value))
    return found


def _margin(expected: Expected) -> Any:
    """What a mean of squares of n numbers is multiplied by, so that it is hardly ever too small; 1 for large n.

    Wilson and Hilferty 1931: (χ²ₙ / n)^⅓ is about normal, of mean 1 − 2/(9n) and variance 2/(9n).
    """
    n = MEMBERS * counting(expected)
    return (1 - 2 / (9 * n) - DOUBTFUL * np.sqrt(2 / (9 * n))) ** -3.0


def row_mean(x: Floats, hidden: NDArray[np.bool_] | None) -> Floats:
    """The mean over the last axis of what is not hidden; of a single number, itself."""
    if x.ndim == 0 or x.shape[-1] == 0:
        return x if x.ndim == 0 else np.zeros(x.shape[:-1])
    if hidden is None:
        return np.asarray(x.mean(axis=-1))
    seen = ~hidden
    mean: Floats = np.where(seen, x, 0.0).sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1)
    return mean
