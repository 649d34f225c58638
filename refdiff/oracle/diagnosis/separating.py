"""A case on which candidates that one output cannot tell apart differ."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.oracle.budget.budget import budget
from refdiff.oracle.budget.statistics import over, root_mean_square
from refdiff.oracle.cases.fixed import Case, cases
from refdiff.oracle.deviations.deviation import deviated, output
from refdiff.oracle.diagnosis.ranking import Candidate
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS

Numpy = np.ndarray[Any, Any]


def separating(spec: Spec, recipe: Recipe, candidates: list[Candidate]) -> Case | None:
    """Return a case on which as many of the candidates as possible differ from each other; None where none does.

    One in float32 where roundings of 16 bits are larger than what the candidates differ by.
    """
    best: tuple[int, Case | None] = (0, None)
    pairs = len(candidates) * (len(candidates) - 1) // 2
    for own in (recipe, Recipe.of("float32")):
        for profile in ("discriminating", "tiny_values", "extreme"):
            for case in cases(profile, 7, spec=spec, dtype=own.storage):
                count = _told_apart(case, own, candidates)
                if count > best[0]:
                    best = (count, case)
                if count == pairs:
                    return case
    return best[1]


def _told_apart(case: Case, recipe: Recipe, candidates: list[Candidate]) -> int:
    known = budget(case.spec, case.inputs, recipe, members=2)
    exact = as_float64(case.spec, known.inputs)
    outs: list[Numpy | None] = []
    for candidate in candidates:
        problem = deviated(case.spec, exact, candidate.deviations)
        outs.append(None if problem is None else output(problem))
    count = 0
    for n, a in enumerate(outs):
        for b in outs[:n]:
            if a is None or b is None or a.shape != b.shape:
                count += (a is None) != (b is None)
            elif not np.array_equal(np.isfinite(a), np.isfinite(b)):
                count += 1
            else:
                apart = root_mean_square(np.where(np.isfinite(a), a - b, 0.0))
                size = np.maximum(known.rows["out"], recipe.u * root_mean_square(np.where(np.isfinite(a), a, 0.0)))
                count += float(np.max(over(apart, size), initial=0.0)) > THRESHOLDS.apart
    return count
