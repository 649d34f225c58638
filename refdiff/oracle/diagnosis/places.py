"""Find where an output or a gradient is wrong: in one place, where it is NaN, and where it is unwritten."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refdiff.oracle.budget.budget import Budget
from refdiff.oracle.budget.statistics import (
    LIMITS,
    RowBudget,
    errors,
    kind_mismatch,
    root_mean_square,
    safe_ratio,
    statistics,
    weighted_slope,
)
from refdiff.oracle.inputs.sequences import Numpy
from refdiff.oracle.rounding import round_to
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.verdict.region_format import (
    Box,
    find_box,
    format_indices,
    format_rows,
    split_box,
)

REST_IN_BUDGET = "everything else is within budget"


@dataclass(frozen=True)
class ErrorPlaces:
    """The places of an error, one line of text each.

    not_finite: whether NaN or ∞ are among the error.
    local: whether everything outside one place with a shape is correct.
    """

    lines: tuple[str, ...]
    not_finite: bool
    local: bool = False


@dataclass(frozen=True)
class Place:
    """Some rows.

    rows, counted: the rows, and those that a wrong kernel could have got wrong, as masks.
    """

    rows: Numpy
    counted: Numpy
    axes: tuple[str, ...]

    @property
    def box(self) -> Box | None:
        """The box that the rows are."""
        return find_box(self.rows, self.counted)

    @property
    def is_shaped(self) -> bool:
        """Whether the rows have indices with a pattern on each axis."""
        box = self.box
        part = {} if box is None else split_box(box, self.counted, self.axes)
        return box is not None and None not in [format_indices(axis, *some) for axis, some in part.items()]

    @property
    def text(self) -> str:
        """The place in words; "" if it is everywhere."""
        return format_rows(self.rows, self.counted, self.axes)


def locate_errors(actual: Numpy, budget: Budget, name: str = "out") -> ErrorPlaces:
    """Say where an output or the gradient `name` that fails is wrong, unless the error is everywhere."""
    b = budget.tensors[name]
    stored, other = round_to(b.expected, b.storage), kind_mismatch(actual, b)
    lines = _describe_nonfinite(actual, stored, other, b)
    rest = np.where(other, stored, actual)
    place = _find_place(rest, b)
    more = _describe_finite(rest, stored, b, place, "besides, it is" if lines else "it is")
    wrong = int((_row_ratios(rest, b) > LIMITS.row).sum())
    if lines and not more:
        more = [f"besides, {wrong} of {b.rows.size} rows are wrong" if wrong else REST_IN_BUDGET]
    local = place.is_shaped if place is not None else bool(lines) and not wrong
    return ErrorPlaces((*lines, *more), bool(lines), local)


def _describe_finite(actual: Numpy, stored: Numpy, b: RowBudget, place: Place | None, prefix: str) -> list[str]:
    """Describe where finite numbers are wrong, and where they are exactly zero."""
    lines = []
    if place is not None:
        factor = _describe_factor(actual, b, place)
        lines.append(f"{prefix} wrong only in {place.text}; {REST_IN_BUDGET}{factor and f': {factor}'}")
    zeros = _find_zeros(actual, stored, b)
    if zeros is not None:
        same = place is not None and place.text == zeros.text
        where = "there" if same else f"in {zeros.text}" if zeros.text else "everywhere"
        looks = ": it looks like memory never written to, or every key masked" if zeros.is_shaped else ""
        lines.append(f"{'it is' if same else prefix} exactly zero {where}, where the truth is not{looks}")
    return lines


def _row_ratios(actual: Numpy, b: RowBudget) -> Numpy:
    """Return the error of each row over its budget; a row above `LIMITS.row` fails on its own."""
    return safe_ratio(root_mean_square(errors(actual, b)), b.rows)


def _find_place(actual: Numpy, b: RowBudget) -> Place | None:
    """Return the place outside of which the output is correct; None if it is most of the output."""
    ratio = _row_ratios(actual, b)
    wrong = ratio > LIMITS.row
    if not wrong.any():
        return None
    # in other rows, as in dq of a query with one key, zeros would pass, and so does any factor
    nonzero = root_mean_square(np.where(np.isfinite(b.expected), b.expected, 0.0)) > LIMITS.row * b.rows
    counted = nonzero | wrong
    place = Place(wrong, counted, tuple(b.axes.split()))
    stretches = np.count_nonzero(wrong[..., :1]) + np.count_nonzero(wrong[..., 1:] & ~wrong[..., :-1])
    few = wrong.sum() <= THRESHOLDS.local_share * counted.sum()
    few = few and (place.is_shaped or stretches <= THRESHOLDS.max_places)
    within = all(s.holds for s in statistics(np.where(wrong[..., None], b.expected, actual), b))
    rest = ratio[counted & ~wrong]
    # scattered rows may be the peaks of an error that is everywhere: each must stand out
    size = root_mean_square(ratio[wrong][None])[0] if place.is_shaped else np.min(ratio[wrong])
    stands_out = size >= THRESHOLDS.place_contrast * np.max(rest, initial=0.0)
    return place if few and stands_out and within and _is_within_limits(rest) else None


def _is_within_limits(ratio: Numpy) -> bool:
    """Whether the error ratios of rows are within the limits of a correct kernel."""
    bulk = LIMITS.bulk + (LIMITS.row - LIMITS.bulk) / np.sqrt(max(1, ratio.size))
    return ratio.size > 0 and float(ratio.max()) <= LIMITS.row and float(root_mean_square(ratio[None])[0]) <= bulk


def _find_zeros(actual: Numpy, stored: Numpy, b: RowBudget) -> Place | None:
    """Return the rows that are exactly zero and should not be; None without any."""
    here = np.any(stored != 0, axis=-1)
    zero = np.all(actual == 0, axis=-1) & here
    return Place(zero, here, tuple(b.axes.split())) if zero.any() else None


def _describe_nonfinite(actual: Numpy, stored: Numpy, other: Numpy, b: RowBudget) -> list[str]:
    """Describe where the output is NaN or infinite and the truth is not, and the reverse."""
    lines = []
    finite, every, axes = np.isfinite(stored), np.ones(b.rows.shape, dtype=np.bool_), tuple(b.axes.split())
    for mask in (other & finite, other & ~finite):
        if not mask.any():
            continue
        some = np.any(mask, axis=-1)
        place = Place(some, every, axes).text or "all rows"
        found, truth, why = _describe_kind(actual[mask]), _describe_kind(stored[mask]), ""
        if not np.any(stored[some]):
            why = ", zero: these rows may see no key"
        elif b.storage == "float16" and truth == "finite" and "infinite" in found:
            why = ": it looks like more than float16 holds"
        lines.append(f"it is {found} in {place}, where the truth is {truth}{why}")
    return lines


def _describe_kind(x: Numpy) -> str:
    kinds = [("NaN", np.isnan(x)), ("infinite", np.isinf(x)), ("finite", np.isfinite(x))]
    return " or ".join(word for word, here in kinds if here.any())


def _describe_factor(actual: Numpy, b: RowBudget, place: Place) -> str:
    """Say by which single factor the numbers of a place differ from the truth; "" if there is none."""
    x, y, off = actual[place.rows], b.expected[place.rows], b.rows[place.rows]
    factor = weighted_slope(x, y, off) if x.size > 1 else 0.0
    if not factor or abs(factor - 1) < THRESHOLDS.same_factor:
        return ""
    error = safe_ratio(root_mean_square(x - factor * y), off * max(1.0, abs(factor)))
    return f"it is {factor:.4g} times the truth there" if np.max(error) <= LIMITS.row else ""
