"""One way to deviate from a spec: another spec, other inputs, or a wrong layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from refdiff.backends import Ops, ops_for, overlay
from refdiff.oracle.inputs import VECTORS, is_layer, options, shapes
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.mistakes import Mistake, wrap
from refdiff.oracle.mistakes.catalogue import Call
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.forward import forward, matching_layer

Numpy = np.ndarray[Any, Any]
HEAD_COUNT_AXES = ("pair", "gqa", "cache")
"""Axes of mistakes about the numbers of heads: they are themselves only in the layer that has the whole wiring."""


@dataclass(frozen=True)
class Problem:
    """A spec, float64 inputs, the mistakes that are laid over the layers, and what the output is multiplied by at last.

    factor: broadcastable to the output, such as (h, 1, 1).
    """

    spec: Spec
    inputs: Inputs
    mistakes: tuple[Mistake, ...] = ()
    factor: float | Numpy = 1.0


@dataclass(frozen=True)
class Deviation:
    """A deviation by name: what it does, the choice it concerns, its row in `mistakes.ROWS`, and where it happened.

    Exactly one of: fields, the spec's fields that it changes, or None where it cannot; arrays, the inputs as they are
    misread, or None; problem, another spec and other inputs, or None; mistake, a wrong layer.
    """

    name: str
    what: str
    axis: str
    row: str = ""
    link: str = ""
    fields: Callable[[Spec], dict[str, Any] | None] | None = None
    arrays: Callable[[Spec, Inputs], Inputs | None] | None = None
    problem: Callable[[Spec, Inputs], tuple[Spec, Inputs] | None] | None = None
    mistake: Mistake | None = None
    aliases: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    @classmethod
    def of(cls, mistake: Mistake) -> Deviation:
        """The deviation of a kernel that has this mistake."""
        return cls(mistake.name, mistake.what, mistake.axis, mistake.row, mistake.link, mistake=mistake)

    @classmethod
    def of_attention(cls, name: str, what: str, axis: str, wrong: Callable[[Call], Any]) -> Deviation:
        """The deviation of a kernel that computes the difference of its two maps by `wrong`."""
        return cls.of(Mistake(name, what, "diff_attention", axis, wrong))

    def apply(self, problem: Problem) -> Problem | None:
        """Return the problem that deviates, or None where this one has no such deviation."""
        spec, inputs = problem.spec, problem.inputs
        if self.mistake is not None:
            m = self.mistake
            route = matching_layer(spec, inputs) or (None if m.axis in HEAD_COUNT_AXES else "diff_heads_paper")
            fits = not m.layer.startswith("diff_heads") or route in (m.layer, *m.also)
            return replace(problem, mistakes=(*problem.mistakes, m)) if fits else None
        if self.arrays is not None:
            misread = self.arrays(spec, inputs)
            return None if misread is None else replace(problem, inputs=misread)
        if self.problem is not None:
            other = self.problem(spec, inputs)
            return None if other is None else replace(problem, spec=other[0], inputs=other[1])
        changes = self.fields(spec) if self.fields else None
        if not changes:
            return None
        if "values" in changes and spec.v_head_dim is not None:  # the same heads of the output
            changes = {**changes, "v_head_dim": spec.out_dim // (1 if changes["values"] in ("wide", "single") else 2)}
        try:
            changed = spec.replace(**changes)
        except ValueError:
            return None
        recast = _reinterpret(spec, changed, inputs)
        return None if recast is None or changed == spec else replace(problem, spec=changed, inputs=recast)


def deviated(spec: Spec, inputs: Inputs, deviations: Iterable[Deviation]) -> Problem | None:
    """Return the problem with all of `deviations`, one after another; None where one of them cannot be."""
    problem: Problem | None = Problem(spec, inputs)
    for deviation in deviations:
        problem = None if problem is None else deviation.apply(problem)
    return problem


@lru_cache(maxsize=4096)
def ops_with(mistakes: tuple[Mistake, ...]) -> Ops:
    """The layers with these mistakes over them, the first one innermost."""
    return overlay(ops_with(mistakes[:-1]), wrap(mistakes[-1])) if mistakes else ops_for()


def output(problem: Problem) -> Numpy | None:
    """The output of a problem; None where a wrong layer cannot work on such inputs."""
    try:
        with np.errstate(all="ignore"):
            return forward(problem.spec, problem.inputs, ops_with(problem.mistakes)) * problem.factor
    except (ValueError, IndexError, ZeroDivisionError, TypeError):
        return None


def output_with(spec: Spec, inputs: Inputs, deviations: Iterable[Deviation]) -> Numpy | None:
    """The output of a kernel with all of `deviations`; None where these inputs have no such kernel."""
    problem = deviated(spec, inputs, deviations)
    return None if problem is None else output(problem)


def is_same_output(a: Numpy | None, b: Numpy | None) -> bool:
    """Whether two outputs are one function's; what both cannot compute is no difference."""
    if a is None or b is None or a.shape != b.shape:
        return a is None and b is None
    largest = float(np.max(np.abs(b), initial=1e-300, where=np.isfinite(b)))
    with np.errstate(invalid="ignore"):
        apart = np.any(np.abs(a - b) > THRESHOLDS.same_function * largest)
    return not apart and np.array_equal(np.isnan(a), np.isnan(b))


def _reinterpret(spec: Spec, changed: Spec, inputs: Inputs) -> Inputs | None:
    """The same memory read as the changed spec has it; None where it does not fit."""
    if (changed.heads, changed.out_dim) != (spec.heads, spec.out_dim):
        return None
    if changed.value_heads * changed.value_dim != spec.value_heads * spec.value_dim:
        return None
    made = dict(inputs)
    if not is_layer(inputs):
        for name in ("v", "v_pages"):
            if name in made:
                made[name] = _regroup_values(made[name], changed.value_heads, changed.value_dim)
    for names, before, after in (
        (VECTORS, spec.lambda_per_head, changed.lambda_per_head),
        (("norm_weight", "norm_bias"), spec.norm_per_head, changed.norm_per_head),
    ):
        if before and not after:  # what every head has of its own is the first's
            made |= {name: made[name][0] for name in names if name in made}
    wanted = shapes(changed, made)
    made = {name: x for name, x in made.items() if name in wanted or name in options(made)}
    return made if set(wanted) <= set(made) else None


def _regroup_values(v: Numpy, heads: int, width: int) -> Numpy:
    """(B, V, S, w) with the same numbers of each token in other heads."""
    B, _, S, _ = v.shape
    return np.moveaxis(np.moveaxis(v, 1, 2).reshape(B, S, heads, width), 2, 1)
