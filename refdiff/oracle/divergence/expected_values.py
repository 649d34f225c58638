"""What each point should be, and how far off it may be: the run once more in float64, and with rounding put in.

"local": whatever is computed goes on from the arrays of the run under test, so that an error belongs to the point that
made it. "free": it goes on from what was computed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array
from refdiff.oracle.divergence.bias_tests import Patterns
from refdiff.oracle.divergence.noise_samples import Draw, Sampled, alike, draws_of, row_mean
from refdiff.oracle.divergence.systematic_error import EPSILON, KNOBS, ONE
from refdiff.oracle.trace.points import SINGLE

Floats = NDArray[np.float64]

_DIFF = re.compile(r"(.*?)diff((?:\[\d+\])?)")

BEND = 2.0**-12
"""A factor that shows what a point changes by is 1 + this."""

SMALL = 1e-30
"""Roundings near 0 of types that have smaller ones than this are too small to be drawn."""

ROUNDING = 0.6
"""That of the value of a point: of two roundings. `ROW` leaves room for the four that the scores of transformers' eager
attention have (product, scale, mask, and the exponential's argument)."""

SUMMATION = ONE / math.sqrt(6)
"""That of a sum of n terms, in roundoffs of float32 times √n and the root of the sum of their squares; see `growth`."""


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
    run: Callable[..., None],
    given: Mapping[str, Floats],
    unit: float,
    tiny: float = 0.0,
    *,
    local: bool,
    axes: Callable[[str], str],
    padding: Callable[[str, Floats], Any] = lambda path, value: None,
) -> dict[str, Sampled]:
    """Run again: once exactly, then with every value off by about `unit`, as `draws_of` lists.

    Args:
        given: the arrays of the run under test, in the axes of the points.
        unit: the unit roundoff of the run under test.
        tiny: how far off, at most, one rounding brings a number near 0: half of the distance of subnormals.
        axes: the letters of a point's axes. padding: which entries of a point stand at padding, if any.
    """
    points: dict[str, Sampled] = {}

    def exactly(
        path: str, value: Array, *, hidden: NDArray[np.bool_] | None = None,
        doubt: Callable[[float], Any] | None = None, terms: int = 1,
        epsilon: tuple[float, Callable[[], Array]] | None = None,
    ) -> Array:  # fmt: skip
        point = Sampled(np.array(value, dtype=np.float64), hidden=hidden, growth=growth(terms, unit))
        if doubt is not None:
            spread = np.broadcast_to(np.asarray(doubt(unit), dtype=np.float64), value.shape)
            point.sure = row_mean(spread**2, None)
        if epsilon is not None and path in given:
            point.epsilon, point.bends[EPSILON] = epsilon[0], np.array(epsilon[1](), dtype=np.float64)
        points[path] = point
        return going_on(path, value, hidden)

    def going_on(path: str, value: Array, hidden: NDArray[np.bool_] | None) -> Array:
        if not local or path not in given:
            return value
        return given[path] if hidden is None else np.where(hidden, 0.0, given[path])

    run(exactly, maps=True)
    _bend(run, given, points, going_on if local else None)
    for draw in draws_of(local):
        rng = np.random.default_rng(draw.seed)

        def rounded(
            path: str, value: Array, *, hidden: NDArray[np.bool_] | None = None,
            doubt: Callable[[float], Any] | None = None, terms: int = 1, epsilon: Any = None,
            draw: Draw = draw, rng: np.random.Generator = rng,
        ) -> Array:  # fmt: skip
            point = points[path]
            with np.errstate(invalid="ignore"):
                off = np.asarray(value, dtype=np.float64) - point.value
            summed = doubt is None and off.ndim > 1
            if not draw.pilot:
                point.add(off, draw, summed)
            elif summed and path in given:
                unseen = padding(path, point.value)
                unseen = hidden if unseen is None else unseen if hidden is None else hidden | unseen
                point.patterns = Patterns(
                    point.value, unseen, point.level(off), axes(path), point.bends,
                    unit=unit, tiny=tiny, growth=point.growth,
                )  # fmt: skip
                point.bends = {}  # they are as large as the point
            value = np.asarray(going_on(path, value, hidden), dtype=np.float64)
            noise = ROUNDING * unit
            if value.ndim:
                noise += SUMMATION * min(unit, SINGLE) * value.shape[-1] ** 0.5
            if not local or path not in given:
                noise += growth(terms, unit)  # what is given has its error, and goes on with it
            normal = np.asarray(rng.standard_normal(value.shape))
            value = value * (1 + draw.size * noise * (alike(value, normal) if draw.alike else normal))
            if tiny > SMALL:
                value = value + draw.size * ROUNDING * tiny * rng.standard_normal(value.shape)
            if doubt is not None:
                value = value + draw.size * ROUNDING * np.asarray(doubt(unit)) * rng.standard_normal(value.shape)
            return value

        run(rounded, maps=True)
    for point in points.values():
        point.finish(tiny)
    _of_whole_kernels(points)
    return points


def _bend(
    run: Callable[..., None], given: Mapping[str, Floats], points: dict[str, Sampled],
    going_on: Callable[..., Array] | None,
) -> None:  # fmt: skip
    """Find what points of the run change by, per factor on points that it has not; up to the next points that it has.

    `going_on` says what the run goes on with from a point; without it that is what is expected.
    """
    for kind in sorted({_name(path) for path in points if path not in given} & KNOBS.keys()):

        def bent(path: str, value: Array, *, hidden: Any = None, kind: str = kind, **_: Any) -> Any:
            if path in given:
                with np.errstate(invalid="ignore"):
                    change = (np.asarray(value, dtype=np.float64) - points[path].value) / BEND
                if np.any(np.isfinite(change) & (change != 0)):
                    points[path].bends[kind] = change
                return points[path].value if going_on is None else going_on(path, value, hidden)
            return value * (1 + BEND) if _name(path) == kind else value

        run(bent, maps=True)


def _name(path: str) -> str:
    return path.rpartition(".")[2].partition("[")[0]


def _of_whole_kernels(points: dict[str, Sampled]) -> None:
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
