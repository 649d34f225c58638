"""What each point should be, and how far off it may be: the run once more in float64, and with rounding put in.

"local": whatever is computed goes on from the arrays of the run under test, so that an error belongs to the point that
made it. "free": it goes on from what was computed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array
from refdiff.oracle.divergence.one_way import ONE, Sums, row_sums
from refdiff.oracle.divergence.verdict import ROW, counting
from refdiff.oracle.tracing.points import SINGLE

Floats = NDArray[np.float64]

_DIFF = re.compile(r"(.*?)diff((?:\[\d+\])?)")

MEMBERS = 6
"""How many times the run is repeated with rounding."""

STRONG = 16
"""How many times more in "free" mode, with errors `ROW` times as large. Where errors only add up, such a run is off by
as much more, and says nothing new. Where two keys have nearly the same score, errors that have come so far decide which
is the larger: a right run may see the other one, though none of a few usual draws did. Most of these do."""

MORE = 1.5
"""The furthest of them, divided by `ROW`, must be so many times what usual draws show (in squares) for errors not to
just add up."""

JUMP = 1.5
"""How much further than the furthest of them a right run may then be. Of a row that may lose half of itself nothing can
be said."""

DOUBTFUL = 3.09
"""How many standard deviations (1 in 1000) the spread that so few rounded numbers show may be too small."""

SMALL = 1e-30
"""Roundings near 0 of types that have smaller ones than this are too small to be drawn."""

ROUNDING = 0.6
"""That of the value of a point: of two roundings. `ROW` leaves room for the four that the scores of transformers' eager
attention have (product, scale, mask, and the exponential's argument)."""

SUMMATION = ONE / math.sqrt(6)
"""That of a sum of n terms, in roundoffs of float32 times √n and the root of the sum of their squares; see `growth`."""


@dataclass
class Expected:
    """The points of a run in float64, entries that nobody uses, and the squares of what rounding does to each row.

    growth: of points that are sums, what their own size adds, relative to it. draws: `one_way.row_sums` of each run
    with rounding; not of points whose doubt is the same for many numbers.
    """

    values: dict[str, Floats] = field(default_factory=dict)
    hidden: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    spread: dict[str, Floats] = field(default_factory=dict)
    growth: dict[str, float] = field(default_factory=dict)
    draws: dict[str, list[Sums]] = field(default_factory=dict)


def growth(terms: int, unit: float) -> float:
    """How far off rounding of its partial sums brings a sum, relative to the sum itself.

    Equation:
        a sum y of n terms t, added up one by one, is rounded at each partial sum s_k: variance (`ONE` u)² Σ_k s_k².
        Over all orders in which the terms may stand, the mean of Σ_k s_k² is (n + 1) (Σ t² / 6 + y² / 3). The first
        part, of terms that cancel, is put into the factors as noise (`SUMMATION`); this is the root of the second,
        of terms that add up, as those of trained weights do. Blocked and pairwise sums have fewer steps.
    """
    return ONE / math.sqrt(3) * min(unit, SINGLE) * math.sqrt(max(terms - 1, 0))


def expect(
    run: Callable[..., None], given: Mapping[str, Floats], unit: float, tiny: float = 0.0, *, local: bool
) -> Expected:
    """Run again: once exactly, then `MEMBERS` times with every value off by about `unit`, and `STRONG` by more if free.

    Args:
        given: the arrays of the run under test, in the axes of the points.
        unit: the unit roundoff of the run under test.
        tiny: how far off, at most, one rounding brings a number near 0: half of the distance of subnormals.
    """
    expected, paths = Expected(), _Paths()
    sure: dict[str, Floats] = {}

    def exactly(
        path: str, value: Array, *, hidden: NDArray[np.bool_] | None = None,
        doubt: Callable[[float], Any] | None = None, terms: int = 1,
    ) -> Array:  # fmt: skip
        path = paths.next(path)
        expected.values[path] = np.array(value, dtype=np.float64)
        expected.spread[path] = np.full(expected.values[path].shape[:-1], tiny**2)
        expected.growth[path] = growth(terms, unit)
        if hidden is not None:
            expected.hidden[path] = hidden
        if doubt is not None:
            spread = np.broadcast_to(np.asarray(doubt(unit), dtype=np.float64), value.shape)
            sure[path] = _row_mean(spread**2, None)
        return _going_on(path, value, hidden)

    def _going_on(path: str, value: Array, hidden: NDArray[np.bool_] | None) -> Array:
        if not local or path not in given:
            return value
        return given[path] if hidden is None else np.where(hidden, 0.0, given[path])

    run(exactly, maps=True)
    furthest: dict[str, Floats] = {}
    for member in range(MEMBERS if local else MEMBERS + STRONG):
        rng = np.random.default_rng(member)
        paths = _Paths()

        def rounded(
            path: str, value: Array, *, hidden: NDArray[np.bool_] | None = None,
            doubt: Callable[[float], Any] | None = None, terms: int = 1,
            rng: np.random.Generator = rng, paths: _Paths = paths, usual: bool = member < MEMBERS,
        ) -> Array:  # fmt: skip
            path = paths.next(path)
            with np.errstate(invalid="ignore"):
                off = np.asarray(value, dtype=np.float64) - expected.values[path]
            square = _row_mean(np.where(np.isfinite(off), off, 0.0) ** 2, hidden)
            if usual:
                expected.spread[path] += square / MEMBERS
                if doubt is None and off.ndim > 1:
                    expected.draws.setdefault(path, []).append(row_sums(off, expected.values[path], hidden))
            else:
                furthest[path] = np.maximum(furthest.get(path, 0.0), square)
            value = np.asarray(_going_on(path, value, hidden), dtype=np.float64)
            noise = ROUNDING * unit
            if value.ndim:
                noise += SUMMATION * min(unit, SINGLE) * value.shape[-1] ** 0.5
            if not local or path not in given:
                noise += growth(terms, unit)  # what is given has its error, and goes on with it
            size = 1.0 if usual else ROW
            value = value * (1 + size * noise * rng.standard_normal(value.shape))
            if tiny > SMALL:
                value = value + size * ROUNDING * tiny * rng.standard_normal(value.shape)
            if doubt is not None:
                value = value + size * ROUNDING * np.asarray(doubt(unit)) * rng.standard_normal(value.shape)
            return value

        run(rounded, maps=True)
    for path, spread in expected.spread.items():
        usual = spread * _margin(expected.values[path], expected.hidden.get(path))
        jump = furthest.get(path, np.zeros(usual.shape)) / ROW**2
        value = expected.values[path]
        half = _row_mean(np.where(np.isfinite(value), value, 0.0) ** 2, None) / 4
        far = np.where((JUMP * ROW) ** 2 * jump > half, np.inf, JUMP**2 * jump)
        expected.spread[path] = np.where(jump > MORE * usual, far, usual) + sure.get(path, 0.0)
    _of_whole_kernels(expected)
    return expected


def _of_whole_kernels(expected: Expected) -> None:
    """Add to the difference what both of its maps may be off by.

    A kernel that gives the difference alone has not computed it from the `attn1` and `attn2` of the trace, which were
    computed beside it: its own sums and scores are rounded in another order.
    """
    for path in [p for p in expected.spread if _DIFF.fullmatch(p)]:
        of = {name: _DIFF.sub(rf"\g<1>{name}\g<2>", path) for name in ("attn1", "attn2", "lambda_full")}
        if all(p in expected.values for p in of.values()):
            lambda_ = expected.values[of["lambda_full"]]
            square = (lambda_ if lambda_.ndim == 0 else lambda_[..., 0]) ** 2
            expected.spread[path] = (
                expected.spread[path] + expected.spread[of["attn1"]] + square * expected.spread[of["attn2"]]
            )


def _margin(value: Floats, hidden: NDArray[np.bool_] | None) -> Any:
    """What a mean of squares of n numbers is multiplied by, so that it is hardly ever too small; 1 for large n.

    Wilson and Hilferty 1931: (χ²ₙ / n)^⅓ is about normal, of mean 1 − 2/(9n) and variance 2/(9n).
    """
    n = MEMBERS * counting(value, hidden)
    return (1 - 2 / (9 * n) - DOUBTFUL * np.sqrt(2 / (9 * n))) ** -3.0


def _row_mean(x: Floats, hidden: NDArray[np.bool_] | None) -> Floats:
    """The mean over the last axis of what is not hidden; of a single number, itself."""
    if x.ndim == 0 or x.shape[-1] == 0:
        return x if x.ndim == 0 else np.zeros(x.shape[:-1])
    if hidden is None:
        return np.asarray(x.mean(axis=-1))
    seen = ~hidden
    mean: Floats = np.where(seen, x, 0.0).sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1)
    return mean


class _Paths:
    """Paths that a run comes to several times are numbered, as in a trace."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def next(self, path: str) -> str:
        n = self._seen.get(path, -1) + 1
        self._seen[path] = n
        return f"{path}[{n}]" if n else path
