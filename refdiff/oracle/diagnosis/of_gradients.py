"""Gradients that are wrong where the output is right: of which deviation they are, or what they are multiplied by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from refdiff.oracle.backward import backward
from refdiff.oracle.budget import Budget
from refdiff.oracle.deviations.deviation import Deviation, deviated, laid_over
from refdiff.oracle.deviations.listed import deviations, kind_of
from refdiff.oracle.diagnosis.variants import Target, quick_residual
from refdiff.oracle.mistakes import CATALOGUE
from refdiff.oracle.outputs import output
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec
from refdiff.oracle.statistics import root_mean_square

Numpy = np.ndarray[Any, Any]
Gradients = dict[str, Numpy]
NEAR = 6.0
"""In budgets of the truth, root mean square over rows: a gradient this near to that of a deviation may be that."""
AS_GOOD = 2.0
"""How many times as near as the others the nearest must be to be the only one."""
MOST = 3
"""So many deviations that fit are named, of more only how many they are."""


def of_gradients(
    spec: Spec, known: Sequence[Budget], given: Sequence[Mapping[str, Any]], douts: Sequence[Any], wrong: Sequence[str]
) -> Iterator[str]:
    """Say of which deviations the gradients named `wrong` are, first of that which most of them have.

    Only deviations that have a backward of their own are tried: other choices of the spec, inputs that are misread, and
    mistakes in derivatives.
    """
    targets = {name: [_target(b, name, one[name]) for b, one in zip(known, given, strict=True)] for name in wrong}
    near: dict[str, dict[Deviation, float]] = {name: {} for name in wrong}
    for deviation in _with_a_backward(spec, known):
        found = [_gradients(b, dout, deviation) for b, dout in zip(known, douts, strict=True)]
        for name in wrong:
            residual = max(quick_residual(t, g.get(name)) for t, g in zip(targets[name], found, strict=True))
            if residual < NEAR:
                near[name][deviation] = residual
    fitting = {name: [d for d, r in some.items() if r <= AS_GOOD * min(some.values())] for name, some in near.items()}
    left = list(wrong)
    while left:
        together = max((_alike(left, fitting, d) for name in left for d in fitting[name]), key=len, default=left[:1])
        fits = [d for d in fitting[together[0]] if _alike(left, fitting, d) == together]
        left = [name for name in left if name not in together]
        if len(together) > 1:
            yield f"{', '.join(together[:-1])} and {together[-1]} are those of {_named(fits)}"
        elif fits:
            yield f"{together[0]} is that of {_named(fits)}"
        elif (factor := _factor(targets[together[0]])) is not None:
            yield f"{together[0]} is {factor:.4g} times what it should be"


def _alike(names: list[str], fitting: dict[str, list[Deviation]], deviation: Deviation) -> list[str]:
    """Which of the gradients are of a deviation."""
    return [name for name in names if deviation in fitting[name]]


def _with_a_backward(spec: Spec, known: Sequence[Budget]) -> Iterator[Deviation]:
    yield from (d for d in deviations(spec, kind_of(known[0].inputs)) if d.mistake is None)
    for m in CATALOGUE:
        if m.layer.endswith("_vjp"):
            yield Deviation(m.name, m.what, m.axis, m.row, m.link, mistake=m)


def _gradients(known: Budget, dout: Any, deviation: Deviation) -> Gradients:
    """The gradients of a kernel with a deviation, by their names; none where it has none on such inputs."""
    problem = deviated(known.spec, known.inputs, [deviation])
    if problem is None:
        return {}
    g = round_to(output(dout, "dout").astype(np.float64), known.recipe.storage)
    try:
        with np.errstate(all="ignore"):
            found = backward(problem.spec, problem.inputs, g, laid_over(problem.mistakes))
    except (ValueError, IndexError, TypeError):
        return {}
    return {f"d{name}": np.atleast_1d(x) for name, x in found.items()}


def _target(known: Budget, name: str, actual: Any) -> Target:
    """A gradient as what is to be explained; a sum of many terms, which has no rows, as one row."""
    x = np.atleast_1d(output(actual, name).astype(np.float64))
    if name in known.tensors:
        return Target(known.inputs, x, known.expected[name], known.rows[name], known.recipe)
    expected, allowed = (np.atleast_1d(y) for y in known.sums[name])
    return Target(known.inputs, x, expected, root_mean_square(allowed), known.recipe)


def _factor(targets: Sequence[Target]) -> float | None:
    """The number with which the right gradients are near, if there is one."""
    finite = all(np.isfinite(t.actual).all() and np.isfinite(t.expected).all() for t in targets)
    square = sum(float(np.sum(t.expected**2)) for t in targets) if finite else 0.0
    if square == 0:
        return None
    factor = sum(float(np.sum(t.actual * t.expected)) for t in targets) / square
    return factor if all(quick_residual(t, factor * t.expected) < NEAR for t in targets) else None


def _named(found: Sequence[Deviation]) -> str:
    if len(found) > MOST:
        return f"{found[0].name} or one of {len(found) - 1} other deviations, which these inputs do not tell apart"
    return " or ".join(f"{d.name} ({d.what.rstrip('.')})" for d in found)
