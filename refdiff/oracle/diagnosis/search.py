"""Search single deviations, then pairs, for those that reproduce the output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

import numpy as np

from refdiff.oracle.budget.statistics import RowBudget
from refdiff.oracle.deviations.deviation import Deviation, Problem, deviated, is_same_output, output_with
from refdiff.oracle.deviations.listed import draw_probes, shrink_spec
from refdiff.oracle.deviations.rare import SINGLE_AXES
from refdiff.oracle.diagnosis.ranking import Candidate
from refdiff.oracle.diagnosis.targets import (
    WRONG_LIMITS,
    Judgement,
    Parts,
    Rejected,
    Target,
    deviation_budget,
    explained_share,
    judge_problem,
    needs_whole,
    quick_residual,
    row_ratios,
)
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.rounding import rounds_to_finite
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.verdict.judge import judge_rows
from refdiff.oracle.verdict.verdict import FAIL

NEARLY_RIGHT = (
    "the error is slightly larger than that of right kernels of this recipe, and points to no deviation: "
    "does the recipe name everything that the kernel rounds?"
)

NO_PAIRS = "pairs were not tried: no single deviation is wrong, or NaN, in exactly these places"
NO_LARGE_PAIRS = (
    "pairs were not tried: the inputs are large and no part of them suffices, since the error is NaN, in one place, or "
    "too small to show in one row, or since the mask is top-left"
)

MIN_ROW_BUDGET = 1e-150
"""The smallest divisor of a row: it avoids a division by zero."""


@dataclass(frozen=True)
class SearchResult:
    """The deviations that reproduce the outputs, or come closest.

    fitting: the candidates that fit all targets with the fewest deviations; none if no set does.
    closest: up to `Thresholds.max_closest` candidates that explain most.
    notes: what the inputs could not show, and what was not tried.
    nearly_right: whether the outputs pass under the wider limits of a wrong kernel.
    tried_pairs: whether pairs were tried.
    """

    fitting: list[Candidate]
    closest: list[Candidate]
    notes: tuple[str, ...] = ()
    nearly_right: bool = False
    tried_pairs: bool = False


DeviationSet = tuple[Deviation, ...]
Evidence = dict[DeviationSet, tuple[list[Judgement], list[Judgement]]]
"""For each set that fits, the judgements of the parts on which it was tried, and of the whole."""


def search(
    spec: Spec,
    parts: Parts,
    known: tuple[Deviation, ...],
    max_deviations: int,
    *,
    not_finite: bool = False,
    correct: Sequence[Numpy] | None = None,
    is_explained: Callable[[Sequence[Candidate]], bool] = lambda _: False,
) -> SearchResult:
    """Search the deviations that reproduce the outputs of all targets: single ones, then pairs.

    Pairs are tried only if no single deviation fits. The two of a pair are of different axes. Large targets are
    compared in parts; candidates near to the output there are judged on the whole. If the outputs are nearly correct,
    only a single deviation to which their error points is returned.

    Args:
        not_finite: whether NaN or ∞ are in other places than in the truth. One of a pair must put them there alone.
        correct: if the outputs are wrong in one place only, the masks of their correct rows. Neither of a pair may
            change these rows.
        is_explained: whether a fitted number or lost keys make pairs needless: called if no single deviation fits, with
            the closest of them.
    """
    nearly_right = _is_nearly_right(spec, parts)
    evidence: Evidence = {}
    rejected: Rejected = {}
    closest: list[Candidate] = []
    untried: set[str] = set()
    singles: list[DeviationSet] = [(d,) for d in known]
    pairable = tuple(d for d in known if d.axis not in SINGLE_AXES)
    for count in range(1, 2 if nearly_right else max_deviations + 1):
        if count > 1 and is_explained(closest):
            return SearchResult([], closest)
        sets = singles if count == 1 else _list_pairs(spec, parts, known, pairable, not_finite, correct)
        if not sets:
            return SearchResult([], closest, (NO_PAIRS if parts.cost <= THRESHOLDS.max_pair_cost else NO_LARGE_PAIRS,))
        scored = list(_score_sets(spec, parts, sets, untried))
        found = _rank(spec, parts, scored, nearly_right, evidence, rejected)
        single = closest[:1]
        closest = select_closest(spec, parts, [*closest, *found])
        if not any(len(c.deviations) == 1 for c in closest):
            closest += single
        if fitting := [c for c in found if c.fits]:
            one = fitting[0].deviations
            hidden = find_hidden(spec, parts, one, pairable, evidence) if len(fitting) == 1 else []
            note = f"these inputs could not show whether {len(hidden)} others are there too: {', '.join(hidden)}"
            return SearchResult(fitting, closest, (note,) if hidden else ())
    if nearly_right:
        return SearchResult([], closest, (NEARLY_RIGHT,), nearly_right=True)
    note = f"{len(untried)} names were not tried in pairs, since the inputs are large: {', '.join(sorted(untried))}"
    return SearchResult([], closest, (note,) if untried else (), tried_pairs=max_deviations > 1)


def _list_pairs(
    spec: Spec,
    parts: Parts,
    known: tuple[Deviation, ...],
    pairable: tuple[Deviation, ...],
    not_finite: bool,
    correct: Sequence[Numpy] | None,
) -> list[DeviationSet]:
    """Return the pairs to try; none for large inputs that fail as a tensor or that must be compared as a whole."""
    as_tensor = any(t.fails_as_tensor for t in parts.whole)
    if parts.is_large and (as_tensor or not parts.is_split) and parts.cost > THRESHOLDS.max_pair_cost:
        return []
    pairs: list[DeviationSet] = [pair for pair in combinations(pairable, 2) if pair[0].axis != pair[1].axis]
    if not_finite:
        same_nonfinite = {d for d in known if _holds_on_all(spec, parts, d, _has_same_nonfinite)}
        pairs = [some for some in pairs if same_nonfinite & set(some)]
    if correct is not None:
        correct_rows = dict(zip(parts.whole, correct, strict=True))

        def keeps_correct_rows(target: Target, wrong: Numpy) -> bool:
            changes = row_ratios(target, wrong)[correct_rows[target]]
            return bool(np.max(changes, initial=0.0) <= THRESHOLDS.max_change)

        local = {d for d in known if _holds_on_all(spec, parts, d, keeps_correct_rows)}
        pairs = [some for some in pairs if local >= set(some)]
    return pairs


def _is_nearly_right(spec: Spec, parts: Parts) -> bool:
    """Whether the failing outputs pass under the wider limits of a wrong kernel."""
    worst = (np.max(row_ratios(t, t.actual), initial=0.0) for t in parts.whole if t.allowed is not None)
    if any(x > WRONG_LIMITS.row for x in worst):
        return False
    stages = parts.stages(parts.local)
    return all(judge_problem(Problem(spec, t.inputs), t).fits for targets in stages for t in targets)


def _holds_on_all(spec: Spec, parts: Parts, deviation: Deviation, holds: Callable[[Target, Numpy], bool]) -> bool:
    """Whether `holds` is true of a deviation's output for every target; False for large inputs."""
    if parts.cost > THRESHOLDS.max_pair_cost:
        return False
    outs = ((t, output_with(spec, t.inputs, (deviation,))) for t in parts.whole)
    return all(x is not None and x.shape == t.expected.shape and holds(t, x) for t, x in outs)


def _has_same_nonfinite(target: Target, wrong: Numpy) -> bool:
    return np.array_equal(rounds_to_finite(wrong, target.recipe.storage), target.finite)


def _score_sets(spec: Spec, parts: Parts, sets: Iterable[DeviationSet], untried: set[str]) -> Iterator[Candidate]:
    """Yield a candidate with its quick residual for each set; add names that are too expensive to `untried`."""
    for some in sets:
        whole = {d.name for d in some if needs_whole(d)}
        if whole and len(some) > 1 and parts.cost > THRESHOLDS.max_pair_cost:
            untried |= whole
        elif (found := score_candidate(spec, parts.select(some), some, THRESHOLDS.quick_residual)) is not None:
            yield found


def _rank(
    spec: Spec, parts: Parts, scored: list[Candidate], nearly_right: bool, evidence: Evidence, rejected: Rejected
) -> list[Candidate]:
    """Sort all candidates, those that fit first. Near ones are judged with a budget of their own."""
    scored.sort(key=lambda c: (c.residual, -c.explains))
    least = THRESHOLDS.large_explained if parts.is_large else 0.0
    near = [
        c
        for n, c in enumerate(scored[: THRESHOLDS.max_judged])
        if c.residual < THRESHOLDS.quick_residual or (n < THRESHOLDS.always_judged and c.explains >= least)
    ]
    far = sorted(scored, key=lambda c: -c.explains)[: THRESHOLDS.always_judged]
    near += [c for c in far if c not in near and c.explains >= THRESHOLDS.explained]
    final = [_judge_candidate(spec, parts, c, evidence, rejected) for c in near]
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
    """Whether the truth would fit as well and the candidate explains little: rounding errors hide the difference."""
    truth_fits = all(j.truth_fits for j in evidence[candidate.deviations][1])
    return truth_fits and candidate.explains < THRESHOLDS.explained


def score_candidate(
    spec: Spec, targets: tuple[Target, ...], deviations: DeviationSet, near: float = math.inf
) -> Candidate | None:
    """Return a candidate with its worst quick residual; None if no kernel has these deviations.

    Targets after the first with a residual above `near` are skipped.
    """
    residual, shares = 0.0, []
    for target in targets:
        wrong = output_with(spec, target.inputs, deviations)
        if wrong is None:
            return None
        residual = max(residual, quick_residual(target, wrong))
        shares.append(explained_share(target, wrong))
        if residual > near:
            break
    return Candidate(deviations, residual, min(shares), False)


def _judge_candidate(
    spec: Spec, parts: Parts, candidate: Candidate, evidence: Evidence, rejected: Rejected
) -> Candidate:
    """Judge a candidate on the parts where it was scored, then on the whole if it fits there."""
    found: list[list[Judgement]] = []
    for targets in parts.stages(parts.select(candidate.deviations)):
        residual, kept = 0.0, []
        for target in targets:
            problem = deviated(spec, target.inputs, candidate.deviations)
            one = judge_problem(problem, target, stop=parts.is_large, rejected=rejected)
            residual = max(residual, one.residual)
            if not one.fits:
                return replace(candidate, residual=residual)
            kept.append(one)
        found.append(kept)
    evidence[candidate.deviations] = (found[0], found[-1])
    return replace(candidate, residual=residual, fits=True)


def merge_equivalent(spec: Spec, fitting: list[Candidate], evidence: Evidence, kind: str) -> list[Candidate]:
    """Merge candidates that compute the same function, such as k₁ and k₂ exchanged, or q₁ and q₂, into one."""
    if len(fitting) < 2:
        return fitting
    spec = shrink_spec(spec)
    probed = draw_probes(spec, kind)
    probed += [{**x, "key_mask": x["key_mask"][::-1]} for x in probed if "key_mask" in x]  # padding in sequence 0
    probed += [_fill_unused_slots(x) for x in probed if "k_pages" in x]
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


def _fill_unused_slots(inputs: Inputs) -> Inputs:
    """Return paged inputs with numbers in place of NaN: all reads beyond a length give the same NaN."""
    random, made = np.random.default_rng(0), dict(inputs)
    for name in ("k_pages", "v_pages"):
        made[name] = np.where(np.isnan(made[name]), random.normal(size=made[name].shape), made[name])
    return made


def drop_dominated(fitting: list[Candidate], evidence: Evidence, parts: Parts) -> list[Candidate]:
    """Drop each candidate b whose error points to another candidate a.

    Every row may pass as b's while all rows together show that the output is a's.

    Equation:
        s = ⟨y − f_b, f_a − f_b⟩ / ‖f_a − f_b‖², with each row divided by its budget: 0 up to rounding error if b is
        correct, 1 if a is
    """
    kept = []
    for b in fitting:
        part, judged = parts.select(b.deviations), evidence[b.deviations][0]
        rivals = (a for a in fitting if a is not b and parts.select(a.deviations) is part)
        if not any(_points_to(judged, evidence[a.deviations][0], part) for a in rivals):
            kept.append(b)
    return kept or fitting


def keep_indicated(spec: Spec, fitting: list[Candidate], evidence: Evidence, parts: Parts) -> list[Candidate]:
    """Keep the candidates to which the error of a nearly correct output points.

    Such an output also passes as that of any deviation that its inputs do not show.
    """
    kept = []
    for b in fitting:
        part = parts.select(b.deviations)
        correct = [judge_problem(Problem(spec, t.inputs), t) for t in part]
        if _points_to(correct, evidence[b.deviations][0], part):
            kept.append(b)
    return kept


def find_hidden(spec: Spec, parts: Parts, base: DeviationSet, known: DeviationSet, evidence: Evidence) -> list[str]:
    """Return the names of deviations that may be present without a visible effect on the output.

    Args:
        base: the deviations that the kernel has; none if the outputs are correct.
    """
    axes, single = {d.axis for d in base}, tuple(d for d in base if d not in known)
    of_part, of_whole = evidence.get(base, ([], []))
    judged = {parts.select(base): of_part, parts.whole: of_whole}

    @cache
    def budgets(targets: tuple[Target, ...]) -> list[RowBudget]:
        if not base and targets is parts.whole:
            return [t.allowed for t in targets if t.allowed is not None]
        found = judged.get(targets) or [judge_problem(deviated(spec, t.inputs, base), t) for t in targets]
        return [deviation_budget(j.wrong, j.runs, t) for j, t in zip(found, targets, strict=True)]

    def shows(targets: tuple[Target, ...], some: list[Deviation]) -> bool:
        """Whether these deviations change the output visibly, or cannot be combined with those in `base`."""
        outs = [output_with(spec, t.inputs, some) for t in targets]
        return any(
            bool(base) if x is None else x.shape != b.expected.shape or judge_rows("out", x, b).status == FAIL
            for x, b in zip(outs, budgets(targets), strict=True)
        )

    hidden = []
    for d in (d for d in known if d.axis not in axes):
        some = [*(x for x in known if x in (d, *base)), *single]
        if not any(shows(targets, some) for targets in parts.stages(parts.select(some))):
            hidden.append(d.name)
    return hidden


def _points_to(b: list[Judgement], a: list[Judgement], targets: tuple[Target, ...]) -> bool:
    """Whether the output is further from b, towards a, than b's own runs, and no further from a than a's own runs."""
    at_b, spread_b = _project(b, a, targets)
    at_a, spread_a = _project(a, b, targets)
    return (
        abs(at_b) > THRESHOLDS.projection_ratio * spread_b + THRESHOLDS.min_projection
        and abs(at_a) <= THRESHOLDS.projection_ratio * spread_a + THRESHOLDS.min_projection
    )


def _project(b: list[Judgement], a: list[Judgement], targets: tuple[Target, ...]) -> tuple[float, float]:
    """Return s of `drop_dominated` for the output, and the largest |s| of b's own runs."""
    square, along = 0.0, 0.0
    runs = np.zeros(len(b[0].runs))
    for one, other, target in zip(b, a, targets, strict=True):
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
    """Return up to `Thresholds.max_closest` candidates that explain most, the best first.

    A pair must leave less of the error than each of its two alone, by `Thresholds.better_ratio`. Otherwise one of the
    two has no effect on these inputs.
    """

    @cache
    def explains_alone(targets: tuple[Target, ...], deviation: Deviation) -> float:
        one = score_candidate(spec, targets, (deviation,))
        return 0.0 if one is None else one.explains

    kept: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (-c.explains, len(c.deviations))):
        better = [k for k in kept if k.fits or k.explains >= min(c.explains, THRESHOLDS.explained)]
        if len(better) == THRESHOLDS.max_closest or len(kept) == THRESHOLDS.max_judged:
            break
        if c.fits or c.explains < THRESHOLDS.explained:
            kept.append(c)
            continue
        others = [explains_alone(parts.select(c.deviations), d) for d in c.deviations if len(c.deviations) > 1]
        if THRESHOLDS.better_ratio * (1 - c.explains) < 1 - max(others, default=-np.inf):
            kept.append(score_on_whole(spec, parts, c))
    return sorted(kept, key=lambda c: -c.explains)[: THRESHOLDS.max_closest]


def score_on_whole(spec: Spec, parts: Parts, candidate: Candidate) -> Candidate:
    """Return a candidate with its score on all targets as a whole, not on parts or on the first targets."""
    return score_candidate(spec, parts.whole, candidate.deviations) or candidate
