"""All single deviations, then all pairs: which of them give the output?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation, deviated, output
from refdiff.oracle.diagnosis.ranking import Candidate
from refdiff.oracle.diagnosis.sub_case import reduced
from refdiff.oracle.diagnosis.variants import NEAR, Target, explained, judged, quick_residual
from refdiff.oracle.spec import Spec

FINALISTS = 16
AS_GOOD = 2.0
"""A name whose residual is more than this many times the best one's is not the one, though it may pass by itself."""


def search(
    spec: Spec, targets: tuple[Target, ...], known: tuple[Deviation, ...], max_deviations: int
) -> tuple[list[Candidate], list[Candidate]]:
    """Return the candidates that fit all targets, with the fewest deviations; and the ones that come closest.

    A pair is of two axes. Where a single fits, no pair is looked for. Pairs are compared on a part of a large case, and
    are of deviations that act in that part as in the whole; those that come near are judged on all of it.
    """
    closest: list[Candidate] = []
    for count in range(1, max_deviations + 1):
        small, local = (targets, known) if count == 1 else _reduced(spec, targets, known)
        found = _ranked(spec, targets, small, _together(local, count))
        closest = sorted([*closest, *found], key=lambda c: (-c.explains, len(c.deviations)))[:3]
        if fitting := [c for c in found if c.fits]:
            return [c for c in fitting if c.residual <= AS_GOOD * fitting[0].residual], closest
    return [], closest


def _reduced(
    spec: Spec, targets: tuple[Target, ...], known: tuple[Deviation, ...]
) -> tuple[tuple[Target, ...], tuple[Deviation, ...]]:
    """Parts of the targets that are large, and the deviations that act on the parts as on the whole."""
    small, local = [], known
    for target in targets:
        part = reduced(spec, target)
        small.append(target if part is None else part.target)
        if part is not None:
            local = tuple(d for d in local if part.same(spec, target, d))
    return tuple(small), local


def _together(known: tuple[Deviation, ...], count: int) -> Iterable[tuple[Deviation, ...]]:
    for some in combinations(known, count):
        if len({d.axis for d in some}) == count:
            yield some


def _ranked(
    spec: Spec, targets: tuple[Target, ...], small: tuple[Target, ...], sets: Iterable[tuple[Deviation, ...]]
) -> list[Candidate]:
    """Every set with its quick residual on the small targets, those near with one of their own budget on all."""
    scored = [c for some in sets if (c := _quick(spec, small, some)) is not None]
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
