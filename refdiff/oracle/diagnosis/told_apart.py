"""Several names for one output: which are one function, and which of the others the output points away from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation, deviated, output
from refdiff.oracle.deviations.listed import kind_of, probes
from refdiff.oracle.diagnosis.ranking import Candidate
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Judgement, Target
from refdiff.oracle.spec import Spec

Numpy = np.ndarray[Any, Any]
SAME = 1e-9
SMALLEST = 1e-150
"""The least that a row is divided by: where all is zero nothing points anywhere."""
AWAY = 3.0
"""How many times further than any legal order of it an output points away from a kernel that it is not of."""
LEAST = 0.1
"""Of the way to the other: nobody's roundings are known better."""


def each_function_once(spec: Spec, targets: tuple[Target, ...], fitting: list[Candidate]) -> list[Candidate]:
    """Put candidates that are one function into one, the others' names in `also`: two keys crossed, or two queries."""
    if len(fitting) < 2:
        return fitting
    inputs = [t.inputs for t in targets] + probes(spec, kind_of(targets[0].inputs))
    kept: list[tuple[Candidate, list[Numpy | None]]] = []
    for candidate in fitting:
        outs = []
        for x in inputs:
            problem = deviated(spec, x, candidate.deviations)
            outs.append(None if problem is None else output(problem))
        for n, (other, known) in enumerate(kept):
            if all(equal(a, b) for a, b in zip(outs, known, strict=True)):
                kept[n] = (replace(other, also=(*other.also, candidate.name)), known)
                break
        else:
            kept.append((candidate, outs))
    return [candidate for candidate, _ in kept]


def equal(a: Numpy | None, b: Numpy | None) -> bool:
    """Whether two outputs are one function's; what both cannot compute is no difference."""
    if a is None or b is None or a.shape != b.shape:
        return (a is None) == (b is None) and a is None
    size = float(np.max(np.abs(a), initial=1e-300, where=np.isfinite(a)))
    return bool(np.allclose(a, b, rtol=0, atol=SAME * size, equal_nan=True))


def those_that_point_to_no_other(
    fitting: list[Candidate], evidence: Mapping[tuple[Deviation, ...], list[Judgement]], parts: Parts
) -> list[Candidate]:
    """Drop a candidate that passes by itself, but whose error points to another one, as no order of it does.

    Equation:
        on the way from f_b to f_a, rows by their budgets, the output is at s = ⟨y − f_b, f_a − f_b⟩ / ‖f_a − f_b‖²:
        0 up to rounding if b is its name, 1 if a is. All rows add to it, so that it sees what none of them shows.
    """
    kept = []
    for b in fitting:
        rivals = [a for a in fitting if a is not b and parts.which(a.deviations) is parts.which(b.deviations)]
        if not any(
            _points_to(evidence[b.deviations], evidence[a.deviations], parts.which(b.deviations)) for a in rivals
        ):
            kept.append(b)
    return kept or fitting


def _points_to(of_b: list[Judgement], of_a: list[Judgement], targets: tuple[Target, ...]) -> bool:
    at_b, spread_b = _place(of_b, of_a, targets)
    at_a, spread_a = _place(of_a, of_b, targets)
    return abs(at_b) > AWAY * spread_b + LEAST and abs(at_a) <= AWAY * spread_a + LEAST


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
