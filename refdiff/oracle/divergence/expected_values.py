"""What each point should be, and how far off it may be: the run once more in float64, and with rounding put in.

"local": whatever is computed goes on from the arrays of the run under test, so that an error belongs to the point that
made it. "free": it goes on from what was computed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array
from refdiff.oracle.divergence.systematic_error import EPSILON, KNOBS, ONE_ROUNDING, Patterns, nearly
from refdiff.oracle.trace.points import SINGLE

Floats = NDArray[np.float64]

ROW = 4.0
"""How many times the spread of its roundings a row may be off, as a root mean square."""

FLOOR = 0.4
"""The least spread of a row: so many units of roundoff, times the root mean square of its numbers."""

ELEMENT = (12.0, 4.0)
"""How far off one number may be: so many spreads of its row, and so many roundoffs and growths of itself."""


class Draw(NamedTuple):
    """A run with rounding: errors `size` times as large; `alike`: equal numbers are rounded alike."""

    seed: int
    size: float = 1.0
    alike: bool = False
    pilot: bool = False


@dataclass
class Expected:
    """What a point should be, and how far off it may be, as runs with rounding show it.

    Where rows are equal, as of a token that is repeated, errors of each number by itself average out over them, and
    those that equal numbers share do not: the larger counts.

    spread: the mean square of what rounding does to each row. hidden: entries that nobody uses. growth: of a sum, what
    its own size adds, relative to it. doubt: how far off a right evaluation may be beside the rounding of the value.
    patterns: of a point that the run under test has, and whose doubt is not the same for many numbers. bends: what it
    changes by, per number that it depends on; epsilon: that of a norm.
    """

    value: Floats
    spread: Any = 0.0
    hidden: NDArray[np.bool_] | None = None
    growth: float = 0.0
    doubt: Floats | None = None
    patterns: Patterns | None = None
    bends: dict[str, Floats] = field(default_factory=dict)
    epsilon: float = 0.0
    _furthest: Floats | None = None
    _squares: list[Any] = field(default_factory=lambda: [0.0, 0.0])

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which entries are numbers that somebody uses."""
        finite: NDArray[np.bool_] = np.isfinite(self.value)
        return finite if self.hidden is None else finite & ~self.hidden

    def add(self, off: Floats, draw: Draw) -> None:
        """Take what one run is off by."""
        square = self._rows(off)
        if draw.size > 1:
            self._furthest = square if self._furthest is None else np.maximum(self._furthest, square)
            return
        self._squares[draw.alike] = self._squares[draw.alike] + square / MEMBERS
        if self.patterns is not None:
            self.patterns.add(off, alike=draw.alike)

    def level(self, off: Floats) -> Floats:
        """The mean squares of rows as one more run shows them."""
        return self._beyond(self._rows(off))

    def finish(self, tiny: float) -> None:
        """Take the mean squares of rows as all runs show them, and of roundings near 0, `tiny` as in `expect`."""
        self.spread = self._beyond((tiny**2 + np.maximum(*self._squares)) * _margin(self))
        if self.doubt is not None:
            self.spread = self.spread + row_mean(self.doubt**2, None)

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


_DIFF = re.compile(r"(.*?)diff((?:\[\d+\])?)")

BEND = 2.0**-12
"""A factor that shows what a point changes by is 1 + this."""

SMALL = 1e-30
"""Roundings near 0 of types that have smaller ones than this are too small to be drawn."""

ROUNDING = 0.6
"""That of the value of a point: of two roundings. `ROW` leaves room for the four that the scores of transformers' eager
attention have (product, scale, mask, and the exponential's argument)."""

SUMMATION = ONE_ROUNDING / math.sqrt(6)
"""That of a sum of n terms, in roundoffs of float32 times √n and the root of the sum of their squares; see `growth`."""

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


def growth(terms: int, unit: float) -> float:
    """How far off rounding of its partial sums brings a sum, relative to the sum itself.

    Equation:
        a sum y of n terms t, added up one by one, is rounded at each partial sum s_k: variance (c u)² Σ_k s_k², with
        c = `ONE_ROUNDING`. Over all orders of the terms, the mean of Σ_k s_k² is (n + 1) (Σ t² / 6 + y² / 3). The first
        part, of terms that cancel, is put into the factors as noise (`SUMMATION`); this is the root of the second,
        of terms that add up, as those of trained weights do. Blocked and pairwise sums have fewer steps.
    """
    return ONE_ROUNDING / math.sqrt(3) * min(unit, SINGLE) * math.sqrt(max(terms - 1, 0))


def expect(
    run: Callable[..., None],
    given: Mapping[str, Floats],
    unit: float,
    tiny: float = 0.0,
    *,
    local: bool,
    axes: Callable[[str], str],
    padding: Callable[[str, Floats], NDArray[np.bool_] | None],
) -> dict[str, Expected]:
    """Run again: once exactly, then with every value off by about `unit`, as `draws_of` lists.

    Args:
        given: the arrays of the run under test, in the axes of the points.
        unit: the unit roundoff of the run under test.
        tiny: how far off, at most, one rounding brings a number near 0: half of the distance of subnormals.
        axes: the letters of a point's axes. padding: which entries of a point stand at padding, if any.
    """
    points: dict[str, Expected] = {}

    def exactly(
        path: str, value: Array, *, hidden: NDArray[np.bool_] | None = None,
        doubt: Callable[[float], Any] | None = None, terms: int = 1,
        epsilon: tuple[float, Callable[[], Array]] | None = None,
    ) -> Array:  # fmt: skip
        point = Expected(np.array(value, dtype=np.float64), hidden=hidden, growth=growth(terms, unit))
        if doubt is not None:
            point.doubt = np.broadcast_to(np.asarray(doubt(unit), dtype=np.float64), value.shape)
        if epsilon is not None and path in given:
            point.epsilon, point.bends[EPSILON] = epsilon[0], np.array(epsilon[1](), dtype=np.float64)
        points[path] = point
        return going_on(path, value)

    def going_on(path: str, value: Array) -> Array:
        if not local or path not in given:
            return value
        hidden = points[path].hidden
        return given[path] if hidden is None else np.where(hidden, 0.0, given[path])

    run(exactly, maps=True)
    _bend(run, given, points, going_on if local else None)
    for draw in draws_of(local):
        rng = np.random.default_rng(draw.seed)

        def rounded(path: str, value: Array, draw: Draw = draw, rng: np.random.Generator = rng, **_: Any) -> Array:
            point = points[path]
            with np.errstate(invalid="ignore"):
                off = np.asarray(value, dtype=np.float64) - point.value
            if not draw.pilot:
                point.add(off, draw)
            elif point.doubt is None and off.ndim > 1 and path in given:
                unseen = either(point.hidden, padding(path, point.value))
                point.patterns = Patterns(
                    point.value, unseen, point.level(off), axes(path), point.bends,
                    unit=unit, tiny=tiny, growth=point.growth,
                )  # fmt: skip
                point.bends = {}  # they are as large as the point
            value = np.asarray(going_on(path, value), dtype=np.float64)
            noise = ROUNDING * unit
            if value.ndim:
                noise += SUMMATION * min(unit, SINGLE) * value.shape[-1] ** 0.5
            if not local or path not in given:
                noise += point.growth  # what is given has its error, and goes on with it
            normal = np.asarray(rng.standard_normal(value.shape))
            value = value * (1 + draw.size * noise * (alike(value, normal) if draw.alike else normal))
            if tiny > SMALL:
                value = value + draw.size * ROUNDING * tiny * rng.standard_normal(value.shape)
            if point.doubt is not None:
                value = value + draw.size * ROUNDING * point.doubt * rng.standard_normal(value.shape)
            return value

        run(rounded, maps=True)
    for point in points.values():
        point.finish(tiny)
    _of_whole_kernels(points)
    for path, point in points.items():
        point.hidden = either(point.hidden, padding(path, point.value))
    return points


def either(first: NDArray[np.bool_] | None, second: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """What one of two masks marks, each None where it marks nothing."""
    return second if first is None else first if second is None else first | second


def _bend(
    run: Callable[..., None], given: Mapping[str, Floats], points: dict[str, Expected],
    going_on: Callable[..., Array] | None,
) -> None:  # fmt: skip
    """Find what points of the run change by, per factor on points that it has not; up to the next points that it has.

    `going_on` says what the run goes on with from a point; without it that is what is expected.
    """
    for kind in sorted({_name(path) for path in points if path not in given} & KNOBS.keys()):

        def bent(path: str, value: Array, kind: str = kind, **_: Any) -> Any:
            if path in given:
                with np.errstate(invalid="ignore"):
                    change = (np.asarray(value, dtype=np.float64) - points[path].value) / BEND
                if np.any(np.isfinite(change) & (change != 0)):
                    points[path].bends[kind] = change
                return points[path].value if going_on is None else going_on(path, value)
            return value * (1 + BEND) if _name(path) == kind else value

        run(bent, maps=True)


def _name(path: str) -> str:
    return path.rpartition(".")[2].partition("[")[0]


def _of_whole_kernels(points: dict[str, Expected]) -> None:
    """Add to the difference what both of its maps may be off by.

    A kernel that gives the difference alone has not computed it from the `attn1` and `attn2` of the trace, which were
    computed beside it: its own sums and scores are rounded in another order.
    """
    for path in filter(_DIFF.fullmatch, points):
        of = [points.get(_DIFF.sub(rf"\g<1>{name}\g<2>", path)) for name in ("attn1", "attn2", "lambda_full")]
        if None not in of:
            first, second, lambda_ = (point for point in of if point is not None)
            square = (lambda_.value if lambda_.value.ndim == 0 else lambda_.value[..., 0]) ** 2
            points[path].spread = points[path].spread + first.spread + square * second.spread


def draws_of(local: bool) -> list[Draw]:
    """`STRONG` if errors add up, a pilot, from which rows get their weights in `Patterns`, `MEMBERS` of each kind."""
    strong = [] if local else [Draw(MEMBERS + n, size=ROW) for n in range(STRONG)]
    pilot = Draw(MEMBERS + STRONG, alike=True, pilot=True)
    return [*strong, pilot, *(Draw(n, alike=kind) for kind in (False, True) for n in range(MEMBERS))]


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
