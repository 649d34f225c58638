"""Several names for one output: which are one function, which one it points away from, what hides, what separates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from refdiff.oracle.budget.budget import budget
from refdiff.oracle.budget.statistics import RowBudget, over, root_mean_square
from refdiff.oracle.cases.fixed import Case, cases
from refdiff.oracle.deviations.deviation import Deviation, Problem, deviated, equal, output_with
from refdiff.oracle.deviations.listed import probes, smaller
from refdiff.oracle.diagnosis.ranking import Candidate
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Judgement, Target, judgement, row_budget
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.verdict.judge import judge_rows
from refdiff.oracle.verdict.verdict import FAIL

Numpy = np.ndarray[Any, Any]
Set = tuple[Deviation, ...]
Evidence = dict[Set, tuple[list[Judgement], list[Judgement]]]
"""Of what fits, how each target was judged: on the part where it was tried, and whole."""
SMALLEST = 1e-150
"""The least that a row is divided by: where all is zero nothing points anywhere."""


def merge_equivalent(spec: Spec, fitting: list[Candidate], evidence: Evidence, kind: str) -> list[Candidate]:
    """Put candidates that are one function into one, the others' names in `also`: two keys crossed, or two queries."""
    if len(fitting) < 2:
        return fitting
    spec = smaller(spec)
    probed = probes(spec, kind)
    kept: list[tuple[Candidate, list[Numpy | None]]] = []
    for candidate in fitting:
        outs: list[Numpy | None] = [j.wrong for j in evidence[candidate.deviations][1]]
        outs += [output_with(spec, x, candidate.deviations) for x in probed]
        for n, (other, known) in enumerate(kept):
            if all(equal(a, b) for a, b in zip(outs, known, strict=True)):
                kept[n] = (replace(other, also=(*other.also, candidate.name)), known)
                break
        else:
            kept.append((candidate, outs))
    return [candidate for candidate, _ in kept]


def drop_dominated(fitting: list[Candidate], evidence: Evidence, parts: Parts) -> list[Candidate]:
    """Drop a candidate that passes by itself, but whose error points to another one, as no order of it does.

    Equation:
        on the way from f_b to f_a, rows by their budgets, the output is at s = ⟨y − f_b, f_a − f_b⟩ / ‖f_a − f_b‖²:
        0 up to rounding if b is its name, 1 if a is. All rows add to it, so that it sees what none of them shows.
    """
    kept = []
    for b in fitting:
        rivals = [a for a in fitting if a is not b and parts.which(a.deviations) is parts.which(b.deviations)]
        if not any(
            _points_to(evidence[b.deviations][0], evidence[a.deviations][0], parts.which(b.deviations)) for a in rivals
        ):
            kept.append(b)
    return kept or fitting


def keep_indicated(spec: Spec, fitting: list[Candidate], evidence: Evidence, parts: Parts) -> list[Candidate]:
    """Of candidates for an output that nearly passes as right, those to which it points from what a right kernel gives.

    It passes as well with whatever its inputs do not show, which explains nothing.
    """
    kept = []
    for b in fitting:
        on = parts.which(b.deviations)
        right = [judgement(Problem(spec, t.inputs), t) for t in on]
        if _points_to([j for j in right if j is not None], evidence[b.deviations][0], on):
            kept.append(b)
    return kept


def unobservable(spec: Spec, parts: Parts, candidate: Candidate, known: Set, evidence: Evidence) -> list[str]:
    """Names of deviations that may be there as well: with them a kernel gives no more than other roundings."""
    axes = {d.axis for d in candidate.deviations}
    of_part, of_whole = evidence[candidate.deviations]
    judged = {id(parts.which(candidate.deviations)): of_part, id(parts.whole): of_whole}
    own: dict[int, list[RowBudget]] = {}

    def shows(targets: tuple[Target, ...], some: list[Deviation]) -> bool:
        """Whether these deviations together give an output of their own, or are no kernel."""
        if id(targets) not in own:
            alone = (judgement(deviated(spec, t.inputs, candidate.deviations), t) for t in targets)
            found = judged.get(id(targets)) or [j for j in alone if j]
            own[id(targets)] = [row_budget(j.wrong, j.runs, t) for j, t in zip(found, targets, strict=True)]
        outs = [output_with(spec, t.inputs, some) for t in targets]
        return any(
            x is None or x.shape != b.expected.shape or judge_rows("out", x, b).status == FAIL
            for x, b in zip(outs, own[id(targets)], strict=True)
        )

    hidden = []
    for d in known:
        some = [x for x in known if x == d or x in candidate.deviations]
        if d.axis not in axes and not any(shows(targets, some) for targets in parts.in_turn(parts.which(some))):
            hidden.append(d.name)
    return hidden


def _points_to(of_b: list[Judgement], of_a: list[Judgement], targets: tuple[Target, ...]) -> bool:
    at_b, spread_b = _place(of_b, of_a, targets)
    at_a, spread_a = _place(of_a, of_b, targets)
    return (
        abs(at_b) > THRESHOLDS.points_away * spread_b + THRESHOLDS.points_least
        and abs(at_a) <= THRESHOLDS.points_away * spread_a + THRESHOLDS.points_least
    )


def _place(of: list[Judgement], to: list[Judgement], targets: tuple[Target, ...]) -> tuple[float, float]:
    """Where the output is on the way from one function to another, and where that function's own orders are at most."""
    square, along = 0.0, 0.0
    runs = np.zeros(len(of[0].runs))
    for one, other, target in zip(of, to, targets, strict=True):
        y = target.actual
        known = np.isfinite(one.wrong) & np.isfinite(other.wrong) & np.isfinite(y)
        rows = np.maximum(np.maximum(one.rows, other.rows), SMALLEST)[..., None]
        f = np.where(known, one.wrong, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            way = (np.where(known, other.wrong, 0.0) - f) / rows
            square += float(np.sum(way * way))
            along += float(np.sum((np.where(known, y, 0.0) - f) / rows * way))
            for n, run in enumerate(one.runs):
                runs[n] += float(np.sum((np.where(known & np.isfinite(run), run, f) - f) / rows * way))
    if not square > 0 or not np.isfinite(square):
        return 0.0, np.inf
    return along / square, float(np.max(np.abs(runs))) / square


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
    outs = [output_with(case.spec, exact, candidate.deviations) for candidate in candidates]
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
