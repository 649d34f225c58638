"""A deviation from a spec: another spec, misread inputs, or a wrong layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from refdiff.backends import Ops, ops_for, overlay
from refdiff.oracle.inputs import VECTORS, is_layer, options, shapes
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.mistakes import Mistake, wrap
from refdiff.oracle.mistakes.catalogue import Call
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.forward import forward, matching_layer

HEAD_COUNT_AXES = ("pair", "gqa", "cache")
"""The axes of mistakes in how heads are paired or grouped: only a layer with the spec's whole wiring can have them."""


@dataclass(frozen=True)
class Kernel:
    """What a kernel computes: a spec, float64 inputs, and mistakes wrapped around the layers.

    finish: functions that change a tensor in the end, given its name and the exact or rounded tensor.
    queries: the queries that are left of a larger case; None for all.
    part: (names, mask): gradients that are computed from `dout` times a mask, and that mask.
    """

    spec: Spec
    inputs: Inputs
    mistakes: tuple[Mistake, ...] = ()
    finish: tuple[Callable[[str, Numpy], Numpy], ...] = ()
    queries: Numpy | None = None
    part: tuple[tuple[str, ...], Numpy] | None = None


@dataclass(frozen=True)
class Deviation:
    """A named way to deviate from a spec: exactly one of `fields`, `arrays`, `problem` and `mistake`.

    axis: the choice that it concerns. Two deviations of one axis are not combined.
    row, link: its row in `mistakes.ROWS`, and a place where it happened.
    fields, arrays, problem: return the fields of the spec that change, the inputs as they are misread, or a new spec
        with its inputs; None if a kernel cannot have this deviation.
    mistake: a wrong layer.
    aliases: the names of other deviations that compute the same function.
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
        """Return the deviation of a kernel with this mistake."""
        return cls(mistake.name, mistake.what, mistake.axis, mistake.row, mistake.link, mistake=mistake)

    @classmethod
    def of_attention(cls, name: str, what: str, axis: str, wrong: Callable[[Call], Any]) -> Deviation:
        """Return the deviation of a kernel that computes `diff_attention` by `wrong`."""
        return cls.of(Mistake(name, what, "diff_attention", axis, wrong))

    def apply(self, kernel: Kernel) -> Kernel | None:
        """Return the kernel with this deviation; None if it cannot have it."""
        spec, inputs = kernel.spec, kernel.inputs
        if self.mistake is not None:
            m = self.mistake
            route = matching_layer(spec, inputs) or (None if m.axis in HEAD_COUNT_AXES else "diff_heads_paper")
            fits = not m.layer.startswith("diff_heads") or route in (m.layer, *m.also)
            return replace(kernel, mistakes=(*kernel.mistakes, m)) if fits else None
        if self.arrays is not None:
            misread = self.arrays(spec, inputs)
            return None if misread is None else replace(kernel, inputs=misread)
        if self.problem is not None:
            other = self.problem(spec, inputs)
            return None if other is None else replace(kernel, spec=other[0], inputs=other[1])
        changes = self.fields(spec) if self.fields else None
        if not changes:
            return None
        if "values" in changes and spec.v_head_dim is not None:  # the output keeps its heads
            changes = {**changes, "v_head_dim": spec.out_dim // (1 if changes["values"] in ("wide", "single") else 2)}
        try:
            changed = spec.replace(**changes)
        except ValueError:
            return None
        recast = _reinterpret(spec, changed, inputs)
        return None if recast is None or changed == spec else replace(kernel, spec=changed, inputs=recast)


def deviated(spec: Spec, inputs: Inputs, deviations: Iterable[Deviation]) -> Kernel | None:
    """Return the kernel with all of `deviations`, applied in order; None if one does not apply."""
    kernel: Kernel | None = Kernel(spec, inputs)
    for deviation in deviations:
        kernel = None if kernel is None else deviation.apply(kernel)
    return kernel


@lru_cache(maxsize=4096)
def ops_with(mistakes: tuple[Mistake, ...]) -> Ops:
    """Return the layers wrapped in these mistakes, the first one innermost."""
    return overlay(ops_with(mistakes[:-1]), wrap(mistakes[-1])) if mistakes else ops_for()


def output(kernel: Kernel | None) -> Numpy | None:
    """Compute the output of a kernel; None without a kernel, or if a wrong layer cannot handle the inputs."""
    if kernel is None:
        return None
    try:
        with np.errstate(all="ignore"):
            return forward(kernel.spec, kernel.inputs, ops_with(kernel.mistakes))
    except (ValueError, IndexError, ZeroDivisionError, TypeError):
        return None


def output_with(spec: Spec, inputs: Inputs, deviations: Iterable[Deviation]) -> Numpy | None:
    """Compute the output of a kernel with all of `deviations`; None if one does not apply to these inputs."""
    return output(deviated(spec, inputs, deviations))


def is_same_output(a: Numpy | None, b: Numpy | None) -> bool:
    """Whether two outputs are equal up to `Thresholds.same_function`, or both None."""
    if a is None or b is None or a.shape != b.shape:
        return a is None and b is None
    largest = float(np.max(np.abs(b), initial=1e-300, where=np.isfinite(b)))
    with np.errstate(invalid="ignore"):
        apart = np.any(np.abs(a - b) > THRESHOLDS.same_function * largest)
    return not apart and np.array_equal(np.isnan(a), np.isnan(b))


def _reinterpret(spec: Spec, changed: Spec, inputs: Inputs) -> Inputs | None:
    """Return the same memory in the shapes of the changed spec; None if it does not fit."""
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
        if before and not after:  # every head uses the weights of the first
            made |= {name: made[name][0] for name in names if name in made}
    wanted = shapes(changed, made)
    made = {name: x for name, x in made.items() if name in wanted or name in options(made)}
    return made if set(wanted) <= set(made) else None


def _regroup_values(v: Numpy, heads: int, width: int) -> Numpy:
    """Regroup the numbers of each token, (B, V, S, w), into other heads: (B, heads, S, width)."""
    B, _, S, _ = v.shape
    return np.moveaxis(np.moveaxis(v, 1, 2).reshape(B, S, heads, width), 2, 1)
