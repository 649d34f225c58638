"""Which deviations explain most of an error, each set without what the inputs do not show."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation, deviated, output
from refdiff.oracle.diagnosis.ranking import Candidate
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Numpy, looks_like, rows_off
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS

SHOWN = 3
Set = tuple[Deviation, ...]


def closest_of(spec: Spec, parts: Parts, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return those that explain most, the best first, but no pair beside one of the two that explains as much alone.

    Nor a pair that looks like one of the two: the other one makes no difference on these inputs.
    """
    known: dict[tuple[int, Set], list[Numpy | None]] = {}
    kept: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (-c.explains, len(c.deviations))):
        if len(kept) == SHOWN:
            break
        if c.explains >= THRESHOLDS.explained and not c.fits and _changes_nothing(spec, parts, c.deviations):
            continue  # of a part that is right it would explain everything
        more = any(set(k.deviations) < set(c.deviations) for k in kept)  # that do not explain more
        if c.fits or c.explains < THRESHOLDS.explained or not (more or _hides_one(spec, parts, c.deviations, known)):
            kept.append(c)
    return kept


def _changes_nothing(spec: Spec, parts: Parts, some: Set) -> bool:
    """Whether these inputs do not show the deviations at all: they explain no error, whatever a part of them says."""
    for target in parts.whole:
        problem = deviated(spec, target.inputs, some)
        out = None if problem is None else output(problem)
        if out is not None and (out.shape != target.expected.shape or np.max(rows_off(target, out), initial=0.0) > 0):
            return False
    return True


def _hides_one(spec: Spec, parts: Parts, some: Set, known: dict[tuple[int, Set], list[Numpy | None]]) -> bool:
    """Whether one of several deviations makes no difference that could be seen beside the others."""
    targets = parts.which(some)

    def outs(of: Set) -> list[Numpy | None]:
        problems = [deviated(spec, t.inputs, of) for t in targets]
        return [None if p is None else output(p) for p in problems]

    together = outs(some) if len(some) > 1 else []
    for n in range(len(some) if together else 0):
        rest = (*some[:n], *some[n + 1 :])
        if (id(targets), rest) not in known:
            known[id(targets), rest] = outs(rest)
        alone = known[id(targets), rest]
        if all(looks_like(t, a, b) for t, a, b in zip(targets, together, alone, strict=True)):
            return True
    return False
