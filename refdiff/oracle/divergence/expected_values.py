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
from refdiff.oracle.divergence.bias_tests import EPSILON, KNOBS, Patterns
from refdiff.oracle.divergence.noise_samples import Draw, Shown, alike, draws_of, row_mean
from refdiff.oracle.divergence.systematic_error import ONE, Sums
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


@dataclass
class Expected:
    """The points of a run in float64, entries that nobody uses, and the squares of what rounding does to each row.

    growth: of points that are sums, what their own size adds, relative to it. draws: `one_way.row_sums` of each run
    with rounding, by kind; not of points whose doubt is the same for many numbers. patterns: of the points that the
    run under test has; epsilon: of its norms.
    """

    values: dict[str, Floats] = field(default_factory=dict)
    hidden: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    spread: dict[str, Floats] = field(default_factory=dict)
    growth: dict[str, float] = field(default_factory=dict)
    draws: dict[str, tuple[list[Sums], list[Sums]]] = field(default_factory=dict)
    patterns: dict[str, Patterns] = field(default_factory=dict)
    epsilon: dict[str, float] = field(default_factory=dict)


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
    axes: Callable[[str], str] | None = None,
    padding: Callable[[str, Floats], Any] | None = None,
) -> Expected:
    """Run again: once exactly, then with every value off by about `unit`, as `draws_of` lists.

    Args:
        given: the arrays of the run under test, in the axes of the points.
        unit: the unit roundoff of the run under test.
        tiny: how far off, at most, one rounding brings a number near 0: half of the distance of subnormals.
        axes: the letters of a point's axes; without it there are no `patterns`, which take a run more, and one for each
            of `patterns.KNOBS` that is not given.
        padding: which entries of a point stand at padding, if any.
    """
    expected, paths = Expected(), _Paths()
    sure: dict[str, Floats] = {}
    bends: dict[str, dict[str, Floats]] = {}

    def exactly(
        path: str, value: Array, *, hidden: NDArray[np.bool_] | None = None,
        doubt: Callable[[float], Any] | None = None, terms: int = 1,
        epsilon: tuple[float, Callable[[], Array]] | None = None,
    ) -> Array:  # fmt: skip
        path = paths.next(path)
        expected.values[path] = np.array(value, dtype=np.float64)
        expected.growth[path] = growth(terms, unit)
        if hidden is not None:
            expected.hidden[path] = hidden
        if doubt is not None:
            spread = np.broadcast_to(np.asarray(doubt(unit), dtype=np.float64), value.shape)
            sure[path] = row_mean(spread**2, None)
        if epsilon is not None and axes is not None and path in given:
            bends[path] = {EPSILON: np.array(epsilon[1](), dtype=np.float64)}
            expected.epsilon[path] = epsilon[0]
        return going_on(path, value, hidden)

    def going_on(path: str, value: Array, hidden: NDArray[np.bool_] | None) -> Array:
        if not local or path not in given:
            return value
        return given[path] if hidden is None else np.where(hidden, 0.0, given[path])

    run(exactly, maps=True)
    if axes is not None:
        _bend(run, given, expected, going_on if local else None, bends)
    shown = Shown(expected.values, expected.hidden)
    for draw in draws_of(local, pilot=axes is not None):
        rng = np.random.default_rng(draw.seed)
        paths = _Paths()

        def rounded(
            path: str, value: Array, *, hidden: NDArray[np.bool_] | None = None,
            doubt: Callable[[float], Any] | None = None, terms: int = 1, epsilon: Any = None,
            draw: Draw = draw, rng: np.random.Generator = rng, paths: _Paths = paths,
        ) -> Array:  # fmt: skip
            path = paths.next(path)
            with np.errstate(invalid="ignore"):
                off = np.asarray(value, dtype=np.float64) - expected.values[path]
            summed = doubt is None and off.ndim > 1
            if not draw.pilot:
                shown.add(path, off, draw, summed)
            elif axes is not None and summed and path in given:
                right, level = expected.values[path], shown.level(path, off)
                unseen = None if padding is None else padding(path, right)
                unseen = hidden if unseen is None else unseen if hidden is None else hidden | unseen
                shown.patterns[path] = Patterns(
                    right, unseen, level, axes(path), bends.pop(path, {}),
                    unit=unit, tiny=tiny, growth=expected.growth[path],
                )  # fmt: skip
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
    for path in expected.values:
        expected.spread[path] = shown.spread(path, tiny) + sure.get(path, 0.0)
    expected.draws, expected.patterns = shown.draws, shown.patterns
    _of_whole_kernels(expected)
    return expected


def _bend(
    run: Callable[..., None], given: Mapping[str, Floats], expected: Expected,
    going_on: Callable[..., Array] | None, bends: dict[str, dict[str, Floats]],
) -> None:  # fmt: skip
    """Find what points of the run change by, per factor on points that it has not; up to the next points that it has.

    `going_on` says what the run goes on with from a point; without it that is what is expected.
    """
    missing = {_name(path) for path in expected.values if path not in given} & KNOBS.keys()
    for kind in sorted(missing):
        paths = _Paths()

        def bent(
            path: str, value: Array, *, hidden: Any = None, kind: str = kind, paths: _Paths = paths, **_: Any
        ) -> Any:
            path = paths.next(path)
            if path in given:
                with np.errstate(invalid="ignore"):
                    change = (np.asarray(value, dtype=np.float64) - expected.values[path]) / BEND
                if np.any(np.isfinite(change) & (change != 0)):
                    bends.setdefault(path, {})[kind] = change
                return expected.values[path] if going_on is None else going_on(path, value, hidden)
            return value * (1 + BEND) if _name(path) == kind else value

        run(bent, maps=True)


def _name(path: str) -> str:
    return path.rpartition(".")[2].partition("[")[0]


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


class _Paths:
    """Paths that a run comes to several times are numbered, as in a trace."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def next(self, path: str) -> str:
        n = self._seen.get(path, -1) + 1
        self._seen[path] = n
        return f"{path}[{n}]" if n else path
