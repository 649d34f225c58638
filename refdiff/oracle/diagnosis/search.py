"""All single deviations, then all pairs: which of them give the output?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation, deviated, output
from refdiff.oracle.diagnosis.ranking import Candidate
from refdiff.oracle.diagnosis.sub_case import acts_alike, reduced
from refdiff.oracle.diagnosis.variants import NEAR, Target, explained, judged, quick_residual
from refdiff.oracle.spec import Spec

FINALISTS = 16
AS_GOOD = 2.0
"""A name whose residual is more than this many times the best one's is not the one, though it may pass by itself."""


def search(
    spec: Spec, targets: tuple[Target, ...], known: tuple[Deviation, ...], max_deviations: int
) -> tuple[list[Candidate], list[Candidate]]:
    """Return the candidates that fit all targets, with the fewest deviations; and the ones that come closest.

    A pair is of two axes. Where a single fits, no pair is looked for. On a part of a large case all are
    compared that act there as in the whole; those that come near are judged on all of it.
    """
    closest: list[Candidate] = []
    small = tuple(target if (part := reduced(spec, target)) is None else part.target for target in targets)
    untouched = all(a is b for a, b in zip(small, targets, strict=True))
    alike = tuple(d for d in known if untouched or acts_alike(d))
    for count in range(1, max_deviations + 1):
        scored = _scored(spec, small, _together(alike, count))
        if count == 1:
            scored += _scored(spec, targets, ((d,) for d in known if d not in alike))
        found = _ranked(spec, targets, scored)
        closest = sorted([*closest, *found], key=lambda c: (-c.explains, len(c.deviations)))[:3]
        if fitting := [c for c in found if c.fits]:
            return [c for c in fitting if c.residual <= AS_GOOD * fitting[0].residual], closest
    return [], closest


def _together(known: tuple[Deviation, ...], count: int) -> Iterable[tuple[Deviation, ...]]:
    for some in combinations(known, count):
        if len({d.axis for d in some}) == count:
            yield some


def _scored(spec: Spec, targets: tuple[Target, ...], sets: Iterable[tuple[Deviation, ...]]) -> list[Candidate]:
    """Every set with its quick residual."""
    return [c for some in sets if (c := _quick(spec, targets, some)) is not None]


def _ranked(spec: Spec, targets: tuple[Target, ...], scored: list[Candidate]) -> list[Candidate]:
    """Those that are near with a residual in their own budget, on all of the targets; and those that come closest."""
    scored.sort(key=lambda c: (c.residual, -c.explains))
    final = [_judged(spec, targets, c) if c.residual < NEAR else c for c in scored[:FINALISTS]]
    best = sorted(scored, key=lambda c: -c.explains)[:3]
    seen = {c.deviations for c in final}
    return sorted([*final, *(c for c in best if c.deviations not in seen)], key=lambda c: (not c.fits, c.residual))


def _quick(spec: Spec, targets: tuple[Target, ...], some: tuple[Deviation, ...]) -> Candidate | None:
    """The worst residual over the targets, up to the first that is hopeless; None where there is no such kernel."""
    residual, shares = 0.0, []
    for target in targets:
        problem = deviated(spec, target.inputs, some)
        wrong = None if problem is None else output(problem)
        if wrong is None:
            return None
        residual = max(residual, quick_residual(target, wrong))
        shares.append(explained(target, wrong))
        if residual > NEAR:
            break
    return Candidate(some, residual, min(shares), False)


def _judged(spec: Spec, targets: tuple[Target, ...], candidate: Candidate) -> Candidate:
    residual = 0.0
    for target in targets:
        problem = deviated(spec, target.inputs, candidate.deviations)
        fits, one = (False, np.inf) if problem is None else judged(problem, target)
        residual = max(residual, one)
        if not fits:
            return replace(candidate, residual=residual)
    return replace(candidate, residual=residual, fits=True)
