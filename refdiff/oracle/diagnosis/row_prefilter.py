"""What a few rows of a large case exclude: those in which an output is furthest from what is tried on it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refdiff.oracle.budget.statistics import over, root_mean_square
from refdiff.oracle.deviations.deviation import Problem, output
from refdiff.oracle.deviations.listed import kind_of
from refdiff.oracle.diagnosis.disambiguation import equal
from refdiff.oracle.diagnosis.sub_case import LARGE, around, cost
from refdiff.oracle.diagnosis.variants import LOOSE, Numpy, Target, judgement, quick_rows
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.spec import Spec

FEWER = 6
"""How many times fewer multiplications the rows must take, so that they are tried before the whole."""


def few_rows_exclude(target: Target, problem: Callable[[Inputs], Problem | None], wrong: Numpy) -> bool:
    """Whether the rows that are furthest from `wrong` show that a large output is not of it.

    Orders of roundings of the whole take long, and what is nearly the truth would need them all to fail by little.
    Only rows that computed alone give what they give in the whole are asked: not where a deviation depends on keys or
    queries that are left out.

    Equation:
        budget of a row ≈ E_right (own / right): what a right kernel may be off by in the whole, times how much worse
        `wrong` rounds than the truth in the few rows alone, where the error of λ, which rows share, is another draw

    Args:
        problem: from inputs, the problem of which `wrong` is the output for the target's.
    """
    spec, inputs = target.spec, target.inputs
    if spec is None or kind_of(inputs) != "dense" or cost(spec, inputs) <= LARGE:
        return False
    rows = quick_rows(target, target.actual, wrong)
    if rows is None:
        return False
    few = _few(spec, target, problem, wrong, rows)
    if few is None:
        return False
    alone = problem(few.inputs)
    own, right = (None if p is None else judgement(p, few) for p in (alone, Problem(spec, few.inputs)))
    if own is None or right is None:
        return False
    known = np.isfinite(few.actual) & np.isfinite(own.wrong)
    error = root_mean_square(np.where(known, few.actual, 0.0) - np.where(known, own.wrong, 0.0))
    off = over(error, few.rows * over(own.rows, right.rows))
    return bool(np.max(off, initial=0.0) > LOOSE.row)


def _few(
    spec: Spec, target: Target, problem: Callable[[Inputs], Problem | None], wrong: Numpy, rows: Numpy
) -> Target | None:
    """The row that is furthest off, and some before or after it, if they alone give what they give in the whole."""
    for all_keys in (False, True):
        few = around(spec, target, rows, all_keys=all_keys)
        alone = problem(few.target.inputs)
        if alone is None or FEWER * cost(spec, few.target.inputs) > cost(spec, target.inputs):
            continue
        if equal(output(alone), wrong[few.at]):
            return few.target
    return None
