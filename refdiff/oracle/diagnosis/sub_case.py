"""A small part of a large case, on which most deviations act as they do on the whole: some tokens of one sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation, equal
from refdiff.oracle.diagnosis.variants import (
    Kernel,
    Numpy,
    Target,
    is_wrong,
    judgement,
    outputs,
    quick_rows,
    rows_off,
)
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.sequences import Inputs, select
from refdiff.oracle.spec import Spec

LARGE = 600_000
"""Multiplications from which a case is reduced: a hundred singles and a few thousand pairs are tried on it."""
WHOLE = 2**28
"""Of what the whole is tried, where statistics over all rows alone refused it: no part shows that."""
FEWEST = 4
FEWER = 6
"""How many times fewer multiplications a few rows must take, so that they are tried before the whole."""
OF_KEYS = ("mask", "mask off by one", "window", "bias")
"""Axes of deviations that depend on which keys there are: they see those that come after, or not those long before."""
OF_QUERIES = ("mask align", "cache", "concat", "layout", "rope offset")
"""Axes of those that depend on how many queries there are, or how the whole lies in memory."""


def cost(spec: Spec, inputs: Inputs) -> int:
    """About how many multiplications the two maps take."""
    B, _, T, _ = inputs["q"].shape
    return int(2 * B * spec.heads * T * inputs["k"].shape[2] * (spec.head_dim + spec.out_dim))


def reduced(spec: Spec, target: Target, *, all_keys: bool = False) -> Target | None:
    """Return a part of a dense core of about `LARGE` multiplications; None where it has no more, or is of another kind.

    Causal and with as many queries as keys it is the first tokens, which see nothing that comes after them; else, or
    with `all_keys`, the last queries with all keys.
    """
    inputs = target.inputs
    if kind_of(inputs) != "dense" or 0 in target.actual.shape or cost(spec, inputs) <= LARGE:
        return None
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    first = T == S and spec.causal != "none" and not all_keys
    if spec.causal == "top_left" and not first:
        return None  # which keys the last queries see depends on how many come before
    by_row = cost(spec, inputs) // (inputs["q"].shape[0] * T)
    n = int(np.sqrt(LARGE * S / by_row)) if first else LARGE // by_row
    n = min(T, max(n, FEWEST))
    return _sub_case(target, 0, slice(0, n), n) if first else _sub_case(target, 0, slice(T - n, T), S)


def furthest_off(spec: Spec, target: Target, usual: Target, *, all_keys: bool = False) -> Target | None:
    """Return the row of a large case that is furthest off, where the usual part is right and it is not; else None."""
    wrong = _wrong(target)
    if spec.causal == "top_left" or not is_wrong(wrong) or is_wrong(_wrong(usual)):
        return None
    return around(spec, target, wrong, all_keys=all_keys)


def around(spec: Spec, target: Target, off: Numpy, *, all_keys: bool = False) -> Target:
    """Return the row that is furthest off, with those before it, or, where they need later keys, those after it.

    Args:
        off: how far each row is off, (B, h, T).
    """
    T, S = target.inputs["q"].shape[2], target.inputs["k"].shape[2]
    sequence, _, t = (int(i) for i in np.unravel_index(int(np.argmax(off)), off.shape))
    if all_keys or spec.causal == "none" or S - T + t < 0:
        return _sub_case(target, sequence, slice(max(0, min(t, T - FEWEST)), T), S)
    return _sub_case(target, sequence, slice(max(0, t - FEWEST + 1), t + 1), S - T + t + 1)


def _wrong(target: Target) -> Numpy:
    """How far off the rows are: where NaN and ∞ stand in other places, as far as can be."""
    other = np.any(np.isfinite(target.actual) != np.isfinite(target.expected), axis=-1)
    return np.where(other, np.inf, rows_off(target, target.actual))


def _parts(spec: Spec, target: Target, *, all_keys: bool = False) -> list[Target]:
    """The usual part of a large target, and what is beside or instead of it; nothing of a small one."""
    usual = reduced(spec, target, all_keys=all_keys)
    other = None if usual is None else furthest_off(spec, target, usual, all_keys=all_keys)
    if usual is None:
        return []
    right = replace(usual, right=other is not None or not is_wrong(_wrong(target)))
    if other is None:
        return [right]
    return [other] if all_keys else [right, other]


def _sub_case(target: Target, sequence: int, rows: slice, keys: int) -> Target:
    """These queries of a sequence, and its first keys."""
    at = (slice(sequence, sequence + 1), slice(None), rows)
    part = select(target.inputs, at[0], rows, slice(0, keys))
    return Target(part, target.actual[at], target.expected[at], target.rows[at], target.recipe, at=at)


@dataclass(frozen=True)
class Parts:
    """Targets whole, and the parts of them on which deviations are tried.

    Where the usual part of a target is right, `small` has the row that is furthest off beside it, and `last` that row
    and all after it instead.
    """

    whole: tuple[Target, ...]
    small: tuple[Target, ...]
    last: tuple[Target, ...]
    cost: int

    @staticmethod
    def of(spec: Spec, targets: tuple[Target, ...]) -> Parts:
        """Reduce each target, where it is large."""

        def parts(*, all_keys: bool) -> tuple[Target, ...]:
            found = [_parts(spec, t, all_keys=all_keys) for t in targets]
            if not any(found):
                return targets  # itself, so that nothing is judged twice
            return tuple(part for t, some in zip(targets, found, strict=True) for part in some or [t])

        total = sum(cost(spec, t.inputs) if "q" in t.inputs and "k" in t.inputs else 0 for t in targets)
        if any(t.of_all_rows and cost(spec, t.inputs) <= WHOLE for t in targets if kind_of(t.inputs) == "dense"):
            return Parts(targets, targets, targets, total)
        return Parts(targets, parts(all_keys=False), parts(all_keys=True), total)

    @property
    def are_parts(self) -> bool:
        """Whether the targets are so large that parts of them are tried."""
        return self.small is not self.whole

    def which(self, some: Iterable[Deviation]) -> tuple[Target, ...]:
        """The smallest part on which these deviations together act as on the whole."""
        axes = {d.axis for d in some}
        if axes & set(OF_QUERIES):
            return self.whole
        return self.last if axes & set(OF_KEYS) else self.small

    def stages(self, part: tuple[Target, ...]) -> list[tuple[Target, ...]]:
        """Return a part and then the whole, if they differ: what fails on the part need not be tried on the whole."""
        return [part] if part is self.whole else [part, self.whole]


def few_rows_exclude(target: Target, kernel: Kernel, wrong: Numpy | None) -> bool:
    """Whether the rows that are furthest from `wrong`, what a kernel gives, show that a large output is not of it.

    Orders of roundings of the whole take long, and what is nearly the truth would need them all to fail by little.
    Only rows that computed alone give what they give in the whole are asked: not where a deviation depends on keys or
    queries that are left out.
    """
    spec, inputs = target.spec, target.inputs
    if wrong is None or spec is None or kind_of(inputs) != "dense" or cost(spec, inputs) <= LARGE:
        return False
    rows = quick_rows(target, target.actual, wrong)
    few = None if rows is None else _few(spec, target, kernel, wrong, rows)
    alone = None if few is None else judgement(kernel(few.inputs), few)
    return alone is not None and not alone.fits


def _few(spec: Spec, target: Target, kernel: Kernel, wrong: Numpy, rows: Numpy) -> Target | None:
    """The row that is furthest off, and some before or after it, if they alone give what they give in the whole."""
    for all_keys in (False, True):
        few = around(spec, target, rows, all_keys=all_keys)
        if FEWER * cost(spec, few.inputs) <= cost(spec, target.inputs):
            (alone,) = outputs(kernel, [few])
            if alone is not None and equal(alone, wrong[few.at]):
                return few
    return None
