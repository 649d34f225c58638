"""All single deviations, then all pairs: which of them give the output?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np

from refdiff.oracle.budget.statistics import RowBudget
from refdiff.oracle.deviations.deviation import Deviation, Problem, deviated, is_same_output, output_with
from refdiff.oracle.deviations.listed import draw_probes, shrink_spec
from refdiff.oracle.deviations.tiles import ONLINE_AXIS
from refdiff.oracle.diagnosis.ranking import Candidate
from refdiff.oracle.diagnosis.targets import (
    QUERY_AXES,
    WRONG_LIMITS,
    Judgement,
    Numpy,
    Parts,
    Target,
    deviation_budget,
    explained_share,
    judge_problem,
    quick_residual,
    row_ratios,
)
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.verdict.judge import judge_rows
from refdiff.oracle.verdict.verdict import FAIL

MAX_JUDGED = 16
ALWAYS_JUDGED = 3
"""So many of the nearest, and of those that explain most, get a budget of their own however far they are: a wrong
kernel may round much worse than a right one."""
MAX_SHOWN = 3
"""So many of those that explain most are kept."""
MAX_PAIR_COST = 8_000_000
"""Multiplications of targets on the whole of which pairs are tried, where a part of them does not do."""


NEARLY_RIGHT = (
    "it is off by a little more than right kernels of this recipe are, and towards no deviation: "
    "does the recipe say all that the kernel rounds?"
)

NO_PAIRS = "pairs were not tried: no deviation is wrong, or NaN, in just these places"
NO_LARGE_PAIRS = "pairs were not tried: the inputs are large, and the error is NaN or in one place"

MIN_ROW_BUDGET = 1e-150
"""The least that a row is divided by: where all is zero nothing points anywhere."""

DeviationSet = tuple[Deviation, ...]
Evidence = dict[DeviationSet, tuple[list[Judgement], list[Judgement]]]
"""Of what fits, how each target was judged: on the part where it was tried, and whole."""


def search(
    spec: Spec,
    targets: tuple[Target, ...],
    known: tuple[Deviation, ...],
    max_deviations: int,
    *,
    not_finite: bool = False,
    right: tuple[Numpy, ...] | None = None,
) -> tuple[list[Candidate], list[Candidate], tuple[str, ...]]:
    """Return the candidates that fit all targets, with the fewest deviations; those that come closest; and notes.

    A pair is of two axes. Where a single fits, no pair is looked for. Of a large case parts are compared on which the
    deviations act as on the whole; those that come near are judged on all of it. Where
    the outputs are nearly right, only a single to which they point is an answer. Where they are NaN or ∞ and the truth
    is not (`not_finite`), or the other way round, one of a pair must be so by itself. Where they are wrong in one place
    only, and in all other rows `right`, both of a pair must leave those as they are.
    """
    parts = Parts.of(spec, targets)
    nearly_right = _is_nearly_right(spec, parts)
    evidence: Evidence = {}
    closest: list[Candidate] = []
    left: set[str] = set()
    singles: list[DeviationSet] = [(d,) for d in known]
    in_pairs = tuple(d for d in known if d.axis != ONLINE_AXIS)  # not those that are there once for each size of tiles
    of = {id(t): rows for t, rows in zip(targets, right or (), strict=right is not None)}

    def leaves(target: Target, wrong: Numpy) -> bool:
        """Whether a deviation changes nothing in the rows that are right."""
        return bool(np.max(row_ratios(target, wrong)[of[id(target)]], initial=0.0) <= THRESHOLDS.max_change)

    for count in range(1, 2 if nearly_right else max_deviations + 1):
        sets = singles if count == 1 else [pair for pair in combinations(in_pairs, 2) if pair[0].axis != pair[1].axis]
        if count > 1 and not_finite:
            alike = {d for d in known if _holds_on_all(spec, parts, d, _has_same_nonfinite)}
            sets = [some for some in sets if alike & set(some)]
        if count > 1 and right is not None:
            quiet = {d for d in known if _holds_on_all(spec, parts, d, leaves)}
            sets = [some for some in sets if quiet >= set(some)]
        if not sets:
            return [], closest, (NO_PAIRS if parts.cost <= MAX_PAIR_COST else NO_LARGE_PAIRS,)
        scored = list(_score_sets(spec, parts, sets, left))
        found = _rank(spec, parts, scored, nearly_right, evidence)
        single = closest[:1]
        closest = select_closest(spec, parts, [*closest, *found])
        if not any(len(c.deviations) == 1 for c in closest):
            closest += single
        if fitting := [c for c in found if c.fits]:
            hidden = (
                find_unobservable(spec, parts, fitting[0].deviations, in_pairs, evidence) if len(fitting) == 1 else []
            )
            note = f"these inputs could not show whether {len(hidden)} others are there too: {', '.join(hidden)}"
            return fitting, closest, (note,) if hidden else ()
    if nearly_right:
        return [], closest, (NEARLY_RIGHT,)
    note = f"{len(left)} names were not tried in pairs, since the inputs are large: {', '.join(sorted(left))}"
    return [], closest, (note,) if left else ()


def _is_nearly_right(spec: Spec, parts: Parts) -> bool:
    """Whether outputs that failed pass where they are judged as wide as those of a wrong kernel."""
    if any(
        t.allowed is not None and np.max(row_ratios(t, t.actual), initial=0.0) > WRONG_LIMITS.row for t in parts.whole
    ):
        return False
    found = (judge_problem(Problem(spec, t.inputs), t) for targets in parts.stages(parts.local) for t in targets)
    return all(j is not None and j.fits for j in found)


def _holds_on_all(spec: Spec, parts: Parts, deviation: Deviation, holds: Callable[[Target, Numpy], bool]) -> bool:
    """Whether something holds of what a deviation gives for every target; not asked of large inputs."""
    if parts.cost > MAX_PAIR_COST:
        return False
    outs = ((t, output_with(spec, t.inputs, (deviation,))) for t in parts.whole)
    return all(x is not None and x.shape == t.expected.shape and holds(t, x) for t, x in outs)


def _has_same_nonfinite(target: Target, wrong: Numpy) -> bool:
    return np.array_equal(np.isfinite(round_to(wrong, target.recipe.storage)), target.finite)


def _score_sets(spec: Spec, parts: Parts, sets: Iterable[DeviationSet], left: set[str]) -> Iterator[Candidate]:
    """Every set with its quick residual."""
    for some in sets:
        on = parts.select(some)
        if len(some) > 1:
            whole = {d.name for d in some if d.axis in QUERY_AXES}
            if whole and parts.cost > MAX_PAIR_COST:
                left |= whole
                continue
        if (found := score_candidate(spec, on, some, THRESHOLDS.quick_residual)) is not None:
            yield found


def _rank(spec: Spec, parts: Parts, scored: list[Candidate], nearly_right: bool, evidence: Evidence) -> list[Candidate]:
    """All candidates: those that fit first; those that are near with a residual in their own budget."""
    scored.sort(key=lambda c: (c.residual, -c.explains))
    least = THRESHOLDS.large_explained if parts.is_split else 0.0
    near = [
        c
        for n, c in enumerate(scored[:MAX_JUDGED])
        if c.residual < THRESHOLDS.quick_residual or (n < ALWAYS_JUDGED and c.explains >= least)
    ]
    far = sorted(scored, key=lambda c: -c.explains)[:ALWAYS_JUDGED]
    near += [c for c in far if c not in near and c.explains >= THRESHOLDS.explained]
    final = [_judge_candidate(spec, parts, c, evidence) for c in near]
    fitting = sorted((c for c in final if c.fits), key=lambda c: c.residual)
    fitting = [c for c in fitting if not _is_uninformative(c, evidence)]
    if nearly_right:
        fitting = keep_indicated(spec, fitting, evidence, parts)
    fitting = [c for c in fitting if c.residual <= THRESHOLDS.better_ratio * fitting[0].residual]
    fitting = merge_equivalent(spec, fitting, evidence, kind_of(parts.whole[0].inputs))
    fitting = drop_dominated(fitting, evidence, parts)
    seen = {c.deviations for c in final}
    return [*fitting, *(c for c in final if not c.fits), *(c for c in scored if c.deviations not in seen)]


def _is_uninformative(candidate: Candidate, evidence: Evidence) -> bool:
    """Whether the truth would fit as well and the output is not near: no change, or roundings that hide any."""
    truth_fits = all(j.truth_fits for j in evidence[candidate.deviations][1])
    return truth_fits and candidate.explains < THRESHOLDS.explained


def score_candidate(
    spec: Spec, targets: tuple[Target, ...], some: DeviationSet, near: float = math.inf
) -> Candidate | None:
    """The worst residual over the targets, up to the first that is hopeless; None where there is no such kernel."""
    residual, shares = 0.0, []
    for target in targets:
        wrong = output_with(spec, target.inputs, some)
        if wrong is None:
            return None
        residual = max(residual, quick_residual(target, wrong))
        shares.append(explained_share(target, wrong))
        if residual > near:
            break
    return Candidate(some, residual, min(shares), False)


def _judge_candidate(spec: Spec, parts: Parts, candidate: Candidate, evidence: Evidence) -> Candidate:
    """Judge a candidate where it was scored, and on the whole where it fits there."""
    found: list[list[Judgement]] = []
    for targets in parts.stages(parts.select(candidate.deviations)):
        residual, kept = 0.0, []
        for target in targets:
            one = judge_problem(deviated(spec, target.inputs, candidate.deviations), target, stop=parts.is_split)
            residual = max(residual, np.inf if one is None else one.residual)
            if one is None or not one.fits:
                return replace(candidate, residual=residual)
            kept.append(one)
        found.append(kept)
    evidence[candidate.deviations] = (found[0], found[-1])
    return replace(candidate, residual=residual, fits=True)


def merge_equivalent(spec: Spec, fitting: list[Candidate], evidence: Evidence, kind: str) -> list[Candidate]:
    """Put candidates that are one function into one, the others' names in `also`: two keys crossed, or two queries."""
    if len(fitting) < 2:
        return fitting
    spec = shrink_spec(spec)
    probed = draw_probes(spec, kind)
    kept: list[tuple[Candidate, list[Numpy | None]]] = []
    for candidate in fitting:
        outs: list[Numpy | None] = [j.wrong for j in evidence[candidate.deviations][1]]
        outs += [output_with(spec, x, candidate.deviations) for x in probed]
        for n, (other, known) in enumerate(kept):
            if all(is_same_output(a, b) for a, b in zip(outs, known, strict=True)):
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
        rivals = [a for a in fitting if a is not b and parts.select(a.deviations) is parts.select(b.deviations)]
        if not any(
            _points_to(evidence[b.deviations][0], evidence[a.deviations][0], parts.select(b.deviations)) for a in rivals
        ):
            kept.append(b)
    return kept or fitting


def keep_indicated(spec: Spec, fitting: list[Candidate], evidence: Evidence, parts: Parts) -> list[Candidate]:
    """Of candidates for an output that nearly passes as right, those to which it points from what a right kernel gives.

    It passes as well with whatever its inputs do not show, which explains nothing.
    """
    kept = []
    for b in fitting:
        on = parts.select(b.deviations)
        right = [judge_problem(Problem(spec, t.inputs), t) for t in on]
        if _points_to([j for j in right if j is not None], evidence[b.deviations][0], on):
            kept.append(b)
    return kept


def find_unobservable(
    spec: Spec, parts: Parts, base: DeviationSet, known: DeviationSet, evidence: Evidence
) -> list[str]:
    """Names of deviations that may be there beside others: with them a kernel gives no more than other roundings.

    Args:
        base: the others; none where the outputs are right.
    """
    axes = {d.axis for d in base}
    own: dict[int, list[RowBudget]] = {}
    of_part, of_whole = evidence.get(base, ([], []))
    judged = {id(parts.select(base)): of_part, id(parts.whole): of_whole}

    def budgets(targets: tuple[Target, ...]) -> list[RowBudget]:
        if not base and targets is parts.whole:
            return [t.allowed for t in targets if t.allowed is not None]
        alone = (judge_problem(deviated(spec, t.inputs, base), t) for t in targets)
        found = judged.get(id(targets)) or [j for j in alone if j]
        return [deviation_budget(j.wrong, j.runs, t) for j, t in zip(found, targets, strict=True)]

    def shows(targets: tuple[Target, ...], some: list[Deviation]) -> bool:
        """Whether these deviations together give an output of their own, or beside others are no kernel."""
        if id(targets) not in own:
            own[id(targets)] = budgets(targets)
        outs = [output_with(spec, t.inputs, some) for t in targets]
        return any(
            bool(base) if x is None else x.shape != b.expected.shape or judge_rows("out", x, b).status == FAIL
            for x, b in zip(outs, own[id(targets)], strict=True)
        )

    hidden = []
    for d in (d for d in known if d.axis not in axes):
        some = [x for x in known if x in (d, *base)]
        if not any(shows(targets, some) for targets in parts.stages(parts.select(some))):
            hidden.append(d.name)
    return hidden


def _points_to(of_b: list[Judgement], of_a: list[Judgement], targets: tuple[Target, ...]) -> bool:
    at_b, spread_b = _project(of_b, of_a, targets)
    at_a, spread_a = _project(of_a, of_b, targets)
    return (
        abs(at_b) > THRESHOLDS.projection_ratio * spread_b + THRESHOLDS.min_projection
        and abs(at_a) <= THRESHOLDS.projection_ratio * spread_a + THRESHOLDS.min_projection
    )


def _project(of: list[Judgement], to: list[Judgement], targets: tuple[Target, ...]) -> tuple[float, float]:
    """Where the output is on the way from one function to another, and where that function's own orders are at most."""
    square, along = 0.0, 0.0
    runs = np.zeros(len(of[0].runs))
    for one, other, target in zip(of, to, targets, strict=True):
        y = target.actual
        known = np.isfinite(one.wrong) & np.isfinite(other.wrong) & np.isfinite(y)
        rows = np.maximum(np.maximum(one.rows, other.rows), MIN_ROW_BUDGET)[..., None]
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


def select_closest(spec: Spec, parts: Parts, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return those that explain most of the whole, the best first: pairs that leave half of what each of the two does.

    A pair that leaves more is one of the two, beside which the other makes no difference on these inputs.
    """
    alone: dict[tuple[int, Deviation], float] = {}
    kept: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (-c.explains, len(c.deviations))):
        better = [k for k in kept if k.fits or k.explains >= min(c.explains, THRESHOLDS.explained)]
        if len(better) == MAX_SHOWN or len(kept) == MAX_JUDGED:
            break
        if c.fits or c.explains < THRESHOLDS.explained:
            kept.append(c)
            continue
        on = parts.select(c.deviations)
        for d in c.deviations if len(c.deviations) > 1 else ():
            if (id(on), d) not in alone:
                one = score_candidate(spec, on, (d,))
                alone[id(on), d] = 0.0 if one is None else one.explains
        others = [alone[id(on), d] for d in c.deviations if len(c.deviations) > 1]
        if THRESHOLDS.better_ratio * (1 - c.explains) < 1 - max(others, default=-np.inf):
            kept.append(score_on_whole(spec, parts, c))
    return sorted(kept, key=lambda c: -c.explains)[:MAX_SHOWN]


def score_on_whole(spec: Spec, parts: Parts, candidate: Candidate) -> Candidate:
    """Return a candidate as it explains all targets as a whole: it was scored on a part, or on the first of them."""
    return score_candidate(spec, parts.whole, candidate.deviations) or candidate
