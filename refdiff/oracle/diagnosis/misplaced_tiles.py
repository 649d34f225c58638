"""A place that holds what the truth has in another one: a tile of another head, or of other tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.oracle.budget.statistics import LIMITS, over, root_mean_square
from refdiff.oracle.diagnosis.region_format import Box, indices
from refdiff.oracle.diagnosis.rows import NAMES, Place, Rows

Numpy = np.ndarray[Any, Any]
APART = 10.0
"""In budgets: two places of the truth that are nearer than this are not told apart."""


def source_of_misplaced(rows: Rows, place: Place) -> str:
    """Say where the truth has the numbers of one box of the output: "head 2", "tokens 64 to 95"; "" if nowhere.

    The box is moved along one axis at a time, by as much as there is room.
    """
    axes, shape = rows.budget.axes.split(), rows.budget.rows.shape
    if not place.part or place.columns is not None:
        return ""
    box = tuple(place.part[a][0] if a in place.part else np.arange(n) for a, n in zip(axes, shape, strict=True))
    for n, a in enumerate(axes):
        if a in place.part:
            for by in range(-int(box[n][0]), shape[n] - int(box[n][-1])):
                source = tuple(some + by if m == n else some for m, some in enumerate(box))
                if by and _is(rows, box, source):
                    return indices(NAMES[a], source[n], np.arange(shape[n])) or f"other {NAMES[a]}s"
    return ""


def _is(rows: Rows, box: Box, source: Box) -> bool:
    """Whether the output is in a box what the truth is in another, and the truth itself is not."""
    b, at, of = rows.budget, np.ix_(*box), np.ix_(*source)
    known = rows.real[at] & rows.real[of] & ~b.doubtful[of] & (b.rows[of] > 0)
    if not known.any():
        return False
    other, size = b.expected[of], b.rows[of]

    def furthest(x: Numpy) -> Numpy:
        with np.errstate(invalid="ignore", over="ignore"):
            found: Numpy = np.nan_to_num(over(root_mean_square(x - other), size)[known], nan=np.inf)
        return found

    return bool(np.max(furthest(rows.actual[at])) <= LIMITS.row and np.median(furthest(b.expected[at])) > APART)
