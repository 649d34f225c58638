"""All single deviations, then all pairs: which of them give the output?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation, deviated, output
from refdiff.oracle.diagnosis.ranking import Candidate
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.told_apart import each_function_once, those_that_point_to_no_other
from refdiff.oracle.diagnosis.variants import NEAR, Judgement, Target, explained, judgement, quick_residual
from refdiff.oracle.spec import Spec

FINALISTS = 16
AS_GOOD = 2.0
"""A name whose residual is more than this many times the best one's is not the one, though it may pass by itself."""
NEAR_ON_FEW = 3 * NEAR
"""Of the few rows of a tiny part one may be far off by itself."""
MOST = 8_000_000
"""Multiplications of targets on the whole of which pairs are tried, where a part of them does not do."""

Set = tuple[Deviation, ...]


def search(
    spec: Spec, targets: tuple[Target, ...], known: tuple[Deviation, ...], max_deviations: int
) -> tuple[list[Candidate], list[Candidate], tuple[str, ...]]:
    """Return the candidates that fit all targets, with the fewest deviations; those that come closest; and notes.

    A pair is of two axes. Where a single fits, no pair is looked for. Of a large case parts are compared on which the
    deviations act as on the whole, for pairs a tiny part first; those that come near are judged on all of it.
    """
    parts = Parts.of(spec, targets)
    closest: list[Candidate] = []
    left: set[str] = set()
    for count in range(1, max_deviations + 1):
        scored = list(_scored(spec, parts, _together(known, count), left))
        found = _ranked(spec, parts, scored)
        closest = sorted([*closest, *found], key=lambda c: (-c.explains, len(c.deviations)))[:3]
        if fitting := [c for c in found if c.fits]:
            return fitting, closest, ()
    return [], closest, _said(left)


def _said(left: set[str]) -> tuple[str, ...]:
    if not left:
        return ()
    return (f"of pairs none was tried with {', '.join(sorted(left))}, which need the whole of these large inputs",)


def _together(known: Set, count: int) -> Iterator[Set]:
    for some in combinations(known, count):
        if len({d.axis for d in some}) == count:
            yield some


def _scored(spec: Spec, parts: Parts, sets: Iterable[Set], left: set[str]) -> Iterator[Candidate]:
    """Every set with its quick residual, of a tiny part where that is hopeless already."""
    for some in sets:
        on = parts.which(some)
        if len(some) > 1:
            if on is parts.whole and parts.cost > MOST:
                left |= {d.name for d in some if parts.which([d]) is parts.whole}
                continue
            if on is parts.small and parts.tiny is not parts.small:
                first = _quick(spec, parts.tiny, some, NEAR_ON_FEW)
                if first is None or first.residual > NEAR_ON_FEW:
                    if first is not None:
                        yield first
                    continue
        if (found := _quick(spec, on, some, NEAR)) is not None:
            yield found


def _ranked(spec: Spec, parts: Parts, scored: list[Candidate]) -> list[Candidate]:
    """Those that are near with a residual in their own budget, on all of the targets; and those that come closest."""
    scored.sort(key=lambda c: (c.residual, -c.explains))
    evidence: dict[Set, list[Judgement]] = {}
    final = [_judged(spec, parts, c, evidence) for c in scored[:FINALISTS] if c.residual < NEAR]
    fitting = sorted((c for c in final if c.fits), key=lambda c: c.residual)
    fitting = [c for c in fitting if c.residual <= AS_GOOD * fitting[0].residual]
    fitting = each_function_once(spec, parts.whole, fitting)
    fitting = those_that_point_to_no_other(fitting, evidence, parts)
    best = sorted(scored, key=lambda c: -c.explains)[:3]
    seen = {c.deviations for c in final}
    others = [c for c in final if not c.fits] + [c for c in best if c.deviations not in seen]
    return [*fitting, *sorted(others, key=lambda c: c.residual)]


def _quick(spec: Spec, targets: tuple[Target, ...], some: Set, near: float) -> Candidate | None:
    """The worst residual over the targets, up to the first that is hopeless; None where there is no such kernel."""
    residual, shares = 0.0, []
    for target in targets:
        problem = deviated(spec, target.inputs, some)
        wrong = None if problem is None else output(problem)
        if wrong is None:
            return None
        residual = max(residual, quick_residual(target, wrong))
        shares.append(explained(target, wrong))
        if residual > near:
            break
    return Candidate(some, residual, min(shares), False)


def _judged(spec: Spec, parts: Parts, candidate: Candidate, evidence: dict[Set, list[Judgement]]) -> Candidate:
    """Judge a candidate where it was scored, and on the whole where it fits there."""
    on = parts.which(candidate.deviations)
    for targets in (on, parts.whole):
        residual, kept = 0.0, []
        for target in targets:
            problem = deviated(spec, target.inputs, candidate.deviations)
            found = None if problem is None else judgement(problem, target)
            residual = max(residual, np.inf if found is None else found.residual)
            if found is None or not found.fits:
                return replace(candidate, residual=residual)
            kept.append(found)
        if targets is on:
            evidence[candidate.deviations] = kept
        if on is parts.whole:
            break
    return replace(candidate, residual=residual, fits=True)
