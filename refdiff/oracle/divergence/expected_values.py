"""Compute the expected value and the allowed error of each point: repeat the run in float64, exactly and with rounding.

Mode "local" computes each point from the arrays of the run under test, so that an error is charged to the point that
made it. Mode "free" computes each point from the expected values of the points before it.
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
from refdiff.oracle.divergence.systematic_error import EPSILON, ONE_ROUNDING, SCORE_FACTORS, BiasTests, rounding_keys
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.trace.points import SINGLE

Floats = NDArray[np.float64]


class NoiseRun(NamedTuple):
    """A run with simulated rounding.

    size: factor on the rounding errors. shared: equal numbers have equal errors. pilot: the run only sets the weights
    of `BiasTests`.
    """

    seed: int
    size: float = 1.0
    shared: bool = False
    pilot: bool = False


@dataclass
class Expected:
    """The expected value of a point, and the error that runs with rounding show.

    Half of the runs round every number independently, the others round equal numbers alike: over equal rows, such as
    those of a repeated token, independent errors average out and shared ones do not. The larger mean square counts.

    spread: the mean square error of each row. hidden: masked entries. growth: see `growth`. unit: the unit roundoff of
    the run under test. doubt: the error of a correct evaluation in addition to the rounding of the value. bias_tests:
    only for a point without doubt that the run under test has. derivatives: ∂value/∂a by the name of a
    (`systematic_error`). epsilon: ε of a norm.
    """

    value: Floats
    spread: Any = 0.0
    hidden: NDArray[np.bool_] | None = None
    growth: float = 0.0
    unit: float = 0.0
    doubt: Floats | None = None
    bias_tests: BiasTests | None = None
    derivatives: dict[str, Floats] = field(default_factory=dict)
    epsilon: float = 0.0
    _furthest: Floats | None = None
    _squares: list[Any] = field(default_factory=lambda: [0.0, 0.0])

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Mark the entries that are finite and not masked."""
        finite: NDArray[np.bool_] = np.isfinite(self.value)
        return finite if self.hidden is None else finite & ~self.hidden

    def add(self, error: Floats, noise_run: NoiseRun) -> None:
        """Record the error of one run."""
        square = self._row_squares(error)
        if noise_run.size > 1:
            self._furthest = square if self._furthest is None else np.maximum(self._furthest, square)
            return
        self._squares[noise_run.shared] = self._squares[noise_run.shared] + square / THRESHOLDS.trace.runs
        if self.bias_tests is not None:
            self.bias_tests.add(error, shared=noise_run.shared)

    def level(self, error: Floats) -> Floats:
        """Return the mean square error of each row in the pilot run."""
        return self._with_jumps(self._row_squares(error))

    def finish(self, tiny: float) -> None:
        """Set `spread` from all runs; `tiny` as in `expect`."""
        self.spread = self._with_jumps((tiny**2 + np.maximum(*self._squares)) * _margin(self))
        if self.doubt is not None:
            self.spread = self.spread + row_mean(self.doubt**2, None)

    def _row_squares(self, error: Floats) -> Floats:
        return row_mean(np.where(np.isfinite(error), error, 0.0) ** 2, self.hidden)

    def _with_jumps(self, usual: Floats) -> Floats:
        """Return `usual`, or for rows in which errors do more than add up, a larger one.

        If only strong errors do, it is ∞ for a row that may lose `jump_share` of itself.
        """
        if self._furthest is None:
            return usual
        limits = THRESHOLDS.trace
        strong, margin = self._furthest / limits.row**2, limits.jump_margin
        lost = limits.jump_share**2 * row_mean(np.where(np.isfinite(self.value), self.value, 0.0) ** 2, None)
        far = np.where((margin * limits.row) ** 2 * strong > lost, np.inf, margin**2 * strong)
        near = np.where(limits.row**2 * usual > lost, margin**2 * usual, usual)
        result: Floats = np.where(strong > limits.jump_ratio * usual, far, near)
        return result


@dataclass(frozen=True)
class RowComparison:
    """The worst row of a point.

    ratio: its error over the limit; infinite if NaN or infinities are in other places. worst: its index, without the
    last axis. error, size: root mean squares of its error and of its expected value.
    """

    ratio: float
    worst: tuple[int, ...] = ()
    error: float = 0.0
    size: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every row is within its limit."""
        return self.ratio <= 1


def compare(mine: Floats, expected: Expected) -> RowComparison:
    """Compare an array with its expected value."""
    right, seen = expected.value, True if expected.hidden is None else ~expected.hidden
    if right.ndim == 0:
        mine, expected = mine[None], replace(expected, value=right[None], spread=np.asarray(expected.spread))
        right = expected.value
    if right.size == 0:
        return RowComparison(0.0)
    nonfinite = seen & ~(np.isfinite(mine) & np.isfinite(right))
    with np.errstate(invalid="ignore"):
        different = nonfinite & ~((mine == right) | (np.isnan(mine) & np.isnan(right)))
    if different.any():
        at = tuple(int(i) for i in np.argwhere(different)[0])
        return RowComparison(np.inf, at[:-1] if right.ndim > 1 else at, float(mine[at]), float(right[at]))
    counted = seen & ~nonfinite
    difference = np.where(counted, mine - np.where(counted, right, 0.0), 0.0)
    value = np.where(counted, right, 0.0)
    n = np.maximum(counted.sum(axis=-1), 1)
    error, size = (np.sqrt((x**2).sum(axis=-1) / n) for x in (difference, value))
    allowed = allowed_rows(expected)
    limits, units = THRESHOLDS.trace, expected.unit + expected.growth
    limit = limits.element_spreads * allowed[..., None] + limits.element_units * units * np.abs(value)
    ratio = np.maximum(error / (limits.row * allowed), (np.abs(difference) / limit).max(axis=-1))
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratio)), ratio.shape))
    return RowComparison(float(ratio[at]), at, float(error[at]), float(size[at]))


def allowed_rows(expected: Expected) -> Floats:
    """Return the spread of each row with its floor; an error above `TraceLimits.row` times this is wrong."""
    limits, counted = THRESHOLDS.trace, expected.counted
    square = (np.where(counted, expected.value, 0.0) ** 2).sum(axis=-1) / np.maximum(counted.sum(axis=-1), 1)
    # the mean square error of few numbers varies more
    margin = 1 + limits.few_numbers / effective_count(expected)
    floor = (limits.spread_floor * expected.unit) ** 2 + expected.growth**2
    allowed = np.sqrt(expected.spread + margin * floor * square)
    result: Floats = np.maximum(allowed, np.finfo(np.float64).tiny)
    return result


def effective_count(expected: Expected) -> Floats:
    """Return the effective number of elements of each row: all if they are of one size, 1 if one is far larger."""
    if expected.value.ndim == 0:
        return np.ones(())
    y = np.where(expected.counted, expected.value, 0.0)
    y = (y / np.maximum(np.abs(y).max(axis=-1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)) ** 2
    n: Floats = np.maximum(y.sum(axis=-1) ** 2 / np.maximum((y**2).sum(axis=-1), np.finfo(np.float64).tiny), 1.0)
    return n


_DIFF_POINT = re.compile(r"(.*?)diff((?:\[\d+\])?)")

STEP = 2.0**-12
"""Derivatives are finite differences: a point is multiplied by 1 + this."""

SUMMATION = ONE_ROUNDING / math.sqrt(6)
"""The standard deviation of the error of a sum of n terms t, in roundoffs of float32 times √(n Σ t²); see `growth`."""

EQUAL_UNIT = 2.0**-37
"""Numbers are equal if their relative difference is below 1/8 of this. Float64 sums in another order differ less."""

HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ / golden ratio: a product with it has its upper bits spread evenly (Knuth, TAOCP 3, 6.4)."""

SLOTS_PER_VALUE = 2
"""Equal values are found by a hash table with at least this many slots per value. One in ten pairs is missed because
another number takes the slot; of values that occur more often, fewer."""


def growth(terms: int, unit: float) -> float:
    """Return the standard deviation of the error of a sum from rounding its partial sums, relative to the sum.

    Equation:
        A sum y of n terms t, added one by one, is rounded at each partial sum s_k: its variance is (c u)² Σ_k s_k² with
        c = `ONE_ROUNDING`. Averaged over all orders of the terms, Σ_k s_k² is (n + 1) (Σ t² / 6 + y² / 3). The first
        part dominates if terms cancel, and is simulated by noise in the factors (`SUMMATION`). This function returns
        the root of the second part, which dominates if terms add up. Blocked and pairwise sums have fewer steps.
    """
    return ONE_ROUNDING / math.sqrt(3) * min(unit, SINGLE) * math.sqrt(max(terms - 1, 0))


def expect(
    run: Callable[..., None],
    given: Mapping[str, Floats],
    unit: float,
    tiny: float,
    common: float,
    *,
    local: bool,
    axes: Callable[[str], str],
    padding: Callable[[str, Floats], NDArray[np.bool_] | None],
) -> dict[str, Expected]:
    """Repeat a run: once exactly, then with relative errors of about `unit` in every value (`list_noise_runs`).

    Args:
        run: calls a `Visit` at each point (`refdiff.oracle.trace.points`).
        given: the arrays of the run under test, in the axes of the points.
        unit: the unit roundoff of the run under test.
        tiny: the largest rounding error of a number near 0, half of the distance between subnormals.
        common: the error that all numbers may have alike, in roundoffs (1; `TraceLimits.tf32_error` in tf32).
        local: compute each point from the arrays in `given`, else from the values of this run.
        axes: returns the letters of a point's axes. padding: returns the entries of a point at padding, or None.
    """
    points: dict[str, Expected] = {}

    def exactly(
        path: str, value: Array, *, hidden: NDArray[np.bool_] | None = None,
        doubt: Callable[[float], Any] | None = None, terms: int = 1,
        epsilon: tuple[float, Callable[[], Array]] | None = None,
    ) -> Array:  # fmt: skip
        point = Expected(np.array(value, dtype=np.float64), hidden=hidden, growth=growth(terms, unit), unit=unit)
        if doubt is not None:
            point.doubt = np.broadcast_to(np.asarray(doubt(unit), dtype=np.float64), value.shape)
        if epsilon is not None and path in given:
            point.epsilon, point.derivatives[EPSILON] = epsilon[0], np.array(epsilon[1](), dtype=np.float64)
        points[path] = point
        return continue_with(path, value)

    def continue_with(path: str, value: Array) -> Array:
        if not local or path not in given:
            return value
        hidden = points[path].hidden
        return given[path] if hidden is None else np.where(hidden, 0.0, given[path])

    run(exactly, maps=True)
    _differentiate(run, given, points, continue_with if local else None)

    def rounding(noise_run: NoiseRun) -> Callable[..., Array]:
        rng = np.random.default_rng(noise_run.seed)

        def rounded(path: str, value: Array, **_: Any) -> Array:
            point = points[path]
            with np.errstate(invalid="ignore"):
                error = np.asarray(value, dtype=np.float64) - point.value
            if not noise_run.pilot:
                point.add(error, noise_run)
            elif point.doubt is None and error.ndim > 1 and path in given:
                unseen = union_masks(point.hidden, padding(path, point.value))
                point.bias_tests = BiasTests(
                    point.value, unseen, point.level(error), axes(path), point.derivatives,
                    epsilon=point.epsilon, growth=point.growth, unit=unit, tiny=tiny, common=common,
                )  # fmt: skip
                point.derivatives = {}  # to free memory
            of_sums = 0.0 if local and path in given else point.growth  # a given array already has this error
            value = np.asarray(continue_with(path, value), dtype=np.float64)
            return _round(value, point, of_sums, noise_run, rng, tiny)

        return rounded

    for noise_run in list_noise_runs(local):
        run(rounding(noise_run), maps=True)
    for point in points.values():
        point.finish(tiny)
    _add_map_errors(points)
    for path, point in points.items():
        point.hidden = union_masks(point.hidden, padding(path, point.value))
    return points


def _round(
    value: Floats, point: Expected, of_sums: float, noise_run: NoiseRun, rng: np.random.Generator, tiny: float
) -> Floats:
    """Return a value with the errors of a run with simulated rounding; `of_sums` is its `growth`."""
    one = THRESHOLDS.trace.point_rounding
    noise = one * point.unit
    if value.ndim:
        noise += SUMMATION * min(point.unit, SINGLE) * value.shape[-1] ** 0.5
    noise += of_sums
    normal = np.asarray(rng.standard_normal(value.shape))
    value = value * (1 + noise_run.size * noise * (share_noise(value, normal) if noise_run.shared else normal))
    if tiny > THRESHOLDS.trace.smallest_drawn:
        value = value + noise_run.size * one * tiny * rng.standard_normal(value.shape)
    if point.doubt is not None:
        value = value + noise_run.size * one * point.doubt * rng.standard_normal(value.shape)
    return value


def union_masks(first: NDArray[np.bool_] | None, second: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return the union of two masks; None is an empty mask."""
    return second if first is None else first if second is None else first | second


def _differentiate(
    run: Callable[..., None], given: Mapping[str, Floats], points: dict[str, Expected],
    continue_with: Callable[..., Array] | None,
) -> None:  # fmt: skip
    """Differentiate given points by a factor on each kind of scores that is not given (`SCORE_FACTORS`).

    A change stops at the first given points: the run continues with `continue_with` from there, or with the expected
    value if that is None.
    """
    for kind in sorted({_name(path) for path in points if path not in given} & SCORE_FACTORS.keys()):

        def scaled(path: str, value: Array, kind: str = kind, **_: Any) -> Any:
            if path in given:
                with np.errstate(invalid="ignore"):
                    change = (np.asarray(value, dtype=np.float64) - points[path].value) / STEP
                if np.any(np.isfinite(change) & (change != 0)):
                    points[path].derivatives[kind] = change
                return points[path].value if continue_with is None else continue_with(path, value)
            return value * (1 + STEP) if _name(path) == kind else value

        run(scaled, maps=True)


def _name(path: str) -> str:
    return path.rpartition(".")[2].partition("[")[0]


def _add_map_errors(points: dict[str, Expected]) -> None:
    """Add the errors of both maps to the spread of their difference.

    A fused kernel does not compute the difference from the `attn1` and `attn2` of the trace, which were computed
    separately: its own scores and sums are rounded in another order.
    """
    for path in filter(_DIFF_POINT.fullmatch, points):
        parts = [points.get(_DIFF_POINT.sub(rf"\g<1>{name}\g<2>", path)) for name in ("attn1", "attn2", "lambda_full")]
        if None not in parts:
            first, second, lambda_ = (point for point in parts if point is not None)
            square = (lambda_.value if lambda_.value.ndim == 0 else lambda_.value[..., 0]) ** 2
            points[path].spread = points[path].spread + first.spread + square * second.spread


def list_noise_runs(local: bool) -> list[NoiseRun]:
    """Return the strong runs unless local, a pilot for the weights of `BiasTests`, and the usual runs of each kind."""
    limits = THRESHOLDS.trace
    strong = [] if local else [NoiseRun(limits.runs + n, size=limits.row) for n in range(limits.strong_runs)]
    pilot = NoiseRun(limits.runs + limits.strong_runs, shared=True, pilot=True)
    return [*strong, pilot, *(NoiseRun(n, shared=kind) for kind in (False, True) for n in range(limits.runs))]


def share_noise(value: Floats, normal: Floats) -> Floats:
    """Return the normal numbers with one number shared by all equal values, since equal numbers are rounded alike.

    A value without an equal keeps its own number, so that runs of the two kinds differ only at equal values.
    """
    keys, own = rounding_keys(value, EQUAL_UNIT), normal.reshape(-1)
    bits = (SLOTS_PER_VALUE * keys.size).bit_length()
    slots = (keys * HASH_MULTIPLIER) >> np.uint64(64 - bits)
    last = np.empty(1 << bits, dtype=np.intp)
    last[slots] = np.arange(keys.size)
    shared = last[slots]
    found: Floats = np.where(keys[shared] == keys, own[shared], own).reshape(np.shape(value))
    return found


def _margin(expected: Expected) -> Any:
    """Return the factor by which a mean of n squares is increased so that it is rarely too small; 1 for large n.

    Wilson and Hilferty 1931: (χ²ₙ / n)^⅓ is about normal, of mean 1 − 2/(9n) and variance 2/(9n).
    """
    n = THRESHOLDS.trace.runs * effective_count(expected)
    return (1 - 2 / (9 * n) - THRESHOLDS.trace.spread_margin * np.sqrt(2 / (9 * n))) ** -3.0


def row_mean(x: Floats, hidden: NDArray[np.bool_] | None) -> Floats:
    """Return the mean of the unmasked entries over the last axis; a single number is returned as it is."""
    if x.ndim == 0 or x.shape[-1] == 0:
        return x if x.ndim == 0 else np.zeros(x.shape[:-1])
    if hidden is None:
        return np.asarray(x.mean(axis=-1))
    seen = ~hidden
    mean: Floats = np.where(seen, x, 0.0).sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1)
    return mean
