"""What is to be explained, whole and in parts, and how far it is from what a kernel with certain deviations gives.

Most deviations act on some tokens of one sequence as they do on the whole of a large case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from refdiff.oracle.budget.budget import Budget
from refdiff.oracle.budget.statistics import (
    LIMITS,
    Limits,
    RowBudget,
    Statistic,
    common_factor,
    errors_of_runs,
    safe_ratio,
    root_mean_square,
    row_floor,
    statistics,
)
from refdiff.oracle.deviations.deviation import Deviation, Problem, ops_with, output
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.sequences import Inputs, select
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding import FORMATS, round_to
from refdiff.oracle.rounding.ensemble import perturb_lambda_init, run_orders
from refdiff.oracle.rounding.evaluation_order import DRAWS, MEMBERS, Order
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.rounding.rounded_layers import rounded_mistakes
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import padded_queries, zero_padded
from refdiff.oracle.truth.forward import forward
from refdiff.oracle.verdict.judge import judge_rows

Numpy = np.ndarray[Any, Any]
Kernel = Callable[[Inputs], Problem | None]
"""What a kernel computes of its inputs; None where it cannot have such."""
WRONG_LIMITS = THRESHOLDS.wrong_limits
TENSOR_STATISTICS = ("slope", "factor")
"""Statistics that add over all rows: no row, and no part of a case, shows what they refuse."""

SCREENING_ORDERS = (DRAWS[0], MEMBERS[1])
"""Enough to see what is hopeless: one order in which everything is rounded at random, and one with λ off."""
AXES = {2: "b t", 3: "b h t"}
"""Of the rows of a whole layer's output, and of the core's."""
HOPELESS_RATIO = 3 * WRONG_LIMITS.row
"""In the budget of those two: a row further off than this is not within that of all orders."""


@dataclass(frozen=True)
class Target:
    """What is to be explained: an output of these inputs, the truth, what a right kernel may be off by in each row.

    right: a part of a case, in which nothing is wrong: it tells what the rest must leave as it is. allowed: of a whole
    case all that a right kernel may be off by. is_gradient: rows that are 0, such as dq of a query with one key, are
    differences, and have an error.
    """

    inputs: Inputs
    actual: Numpy
    expected: Numpy
    rows: Numpy
    recipe: Recipe
    is_correct: bool = False
    allowed: RowBudget | None = None
    is_gradient: bool = False

    @staticmethod
    def of(actual: Numpy, known: Budget) -> Target:
        """From an output and the budget of its inputs."""
        exact = as_float64(known.spec, known.inputs)
        allowed = known.tensors["out"]
        y, rows = known.expected["out"], known.rows["out"]
        actual = zero_padded(padded_queries(known.spec, exact), actual) if actual.shape == y.shape else actual
        return Target(exact, actual, y, rows, known.recipe, allowed=allowed)

    @cached_property
    def limits(self) -> Limits:
        """The limits of a candidate: those of a correct kernel in the statistics by which alone it was refused."""
        if not self.fails_as_tensor:
            return WRONG_LIMITS
        return replace(WRONG_LIMITS, **{name: getattr(LIMITS, name) for name in TENSOR_STATISTICS})

    @cached_property
    def fails_as_tensor(self) -> bool:
        """Whether a statistic over all rows refused it, and no other."""
        broken = {s.name for s in statistics(self.actual, self.allowed) if not s.holds} if self.allowed else set()
        return bool(broken) and broken <= set(TENSOR_STATISTICS)

    @cached_property
    def finite(self) -> Numpy:
        """Which numbers of the output are finite."""
        return np.isfinite(self.actual)

    @cached_property
    def compared(self) -> Numpy:
        """Which are, and are in the truth."""
        return self.finite & np.isfinite(self.expected)

    @cached_property
    def size(self) -> Numpy:
        """Root mean square of the truth's rows."""
        return root_mean_square(np.where(np.isfinite(self.expected), self.expected, 0.0))

    @cached_property
    def typical_error(self) -> float:
        """What a row may usually be off by, as a share of it."""
        some = self.size > 0
        return float(np.median(safe_ratio(self.rows[some], self.size[some]))) if np.any(some) else 0.0


def compute_outputs(kernel: Kernel, targets: Iterable[Target]) -> list[Numpy | None]:
    """The output of a kernel for the inputs of each target; None where it has none."""
    problems = (kernel(t.inputs) for t in targets)
    return [None if p is None else output(p) for p in problems]


def row_ratios(target: Target, x: Numpy) -> Numpy:
    """How far each row is from the truth, in its budget; of what is NaN or infinite nothing is known."""
    known = np.isfinite(x) & np.isfinite(target.expected)
    y = np.where(known, target.expected, 0.0)
    return safe_ratio(root_mean_square(np.where(known, x, 0.0) - y), target.rows)


def exceeds_limit(rows: Numpy) -> bool:
    """Whether one of the rows is further off, in its budget, than a right kernel's."""
    return bool(np.max(rows, initial=0.0) > LIMITS.row)


def quick_residual(target: Target, wrong: Numpy | None) -> float:
    """The error in budgets, root mean square over rows, the budget being the truth's, as large as the rows now are.

    Infinite where NaN and ∞ stand in other places, or the shape is another. Of an output that statistics over all rows
    alone refused, the larger of that and of what these are.
    """
    known = target.finite
    if wrong is None or wrong.shape != target.actual.shape:
        return np.inf
    if not np.array_equal(known, np.isfinite(round_to(wrong, target.recipe.storage))):
        return np.inf
    error = np.where(known, target.actual, 0.0) - np.where(known, wrong, 0.0)
    size, before = root_mean_square(np.where(np.isfinite(wrong), wrong, 0.0)), target.size
    rows = np.maximum(target.rows * np.minimum(safe_ratio(size, before), 1e6), row_floor(size, target.recipe))
    rows = np.maximum(rows, np.where(before == 0, np.maximum(target.rows, target.typical_error * size), 0.0))
    if target.is_gradient:
        rows = np.where(size == 0, target.rows, rows)
    ratio = np.minimum(safe_ratio(root_mean_square(error), rows), 1e9)
    residual = float(np.sqrt(np.mean(ratio**2))) if ratio.size else 0.0
    if not target.fails_as_tensor or target.allowed is None:
        return residual
    return max(residual, _tensor_ratio(statistics(target.actual, replace(target.allowed, expected=wrong))))


def _tensor_ratio(found: Iterable[Statistic]) -> float:
    """The largest statistic over all rows, as many limits of a row as it is of its own."""
    return LIMITS.row * max((s.value / s.limit for s in found if s.name in TENSOR_STATISTICS), default=0.0)


def worst_residual(kernel: Kernel, targets: Sequence[Target]) -> float:
    """The largest quick residual of a kernel over some targets."""
    return max(quick_residual(t, x) for t, x in zip(targets, compute_outputs(kernel, targets), strict=True))


def explained_share(target: Target, wrong: Numpy | None) -> float:
    """The share of the squared difference from the truth that is gone; 0 where it is more than before.

    In a part that is right it is all, or 0 where it is wrong now.
    """
    return max(0.0, 1.0 - remaining_share(target, wrong))


def remaining_share(target: Target, wrong: Numpy | None) -> float:
    """The share that is left; more than 1 where it is more than before, ∞ where there is no such output."""
    if wrong is None or wrong.shape != target.actual.shape:
        return np.inf
    if target.is_correct:
        return float(exceeds_limit(row_ratios(target, wrong)))
    known = target.compared & np.isfinite(wrong)
    before, now = (float(np.sum((target.actual[known] - x[known]) ** 2)) for x in (target.expected, wrong))
    return now / before if before > 0 else np.inf


@dataclass(frozen=True)
class Judgement:
    """An output held against that of a kernel with certain deviations.

    wrong: what they compute. rows: what such a kernel may be off by in each row; runs: what several orders of it give.
    furthest: the error of the row that is furthest off, in its budget. truth_fits: whether the truth would pass too.
    """

    fits: bool
    residual: float
    wrong: Numpy
    rows: Numpy
    runs: tuple[Numpy, ...]
    worst_row: float = 0.0
    truth_fits: bool = False


def deviation_budget(wrong: Numpy, runs: Sequence[Numpy], target: Target) -> RowBudget:
    """What a kernel with some deviations may be off by from what they compute, from runs in several orders."""
    recipe = target.recipe
    floor = row_floor(root_mean_square(np.where(np.isfinite(wrong), wrong, 0.0)), recipe)
    errors, largest_slope, doubtful = errors_of_runs(wrong, runs)
    rows = np.maximum(floor, np.max(errors, axis=0))
    factor = target.allowed.factor if target.allowed else None
    if factor is not None:
        factor = common_factor(wrong, runs, ~doubtful, recipe.storage, factor.divisor, FORMATS[recipe.storage].tiny)
    bounds = np.full(rows.shape, np.inf)
    return RowBudget(wrong, rows, bounds, largest_slope, recipe.storage, AXES[rows.ndim], doubtful, factor=factor)


def judge_problem(problem: Problem | None, target: Target, *, stop: bool = False) -> Judgement | None:
    """Hold the output against these deviations, with a budget of their own; None where they give none of its shape.

    With `stop` not all orders are tried where the first are enough to say that the output is none of them.
    """
    wrong = None if problem is None else output(problem)
    if problem is None or wrong is None or wrong.shape != target.actual.shape:
        return None
    orders = (*DRAWS, *MEMBERS[:3])
    runs: list[Numpy] = []
    for some in (SCREENING_ORDERS, tuple(o for o in orders if o not in SCREENING_ORDERS)) if stop else (orders,):
        runs += run_orders(lambda order: _rounded_output(problem, target.recipe, order), some, problem.inputs)
        found = _judge_runs(wrong, tuple(runs), target)
        if found.worst_row > HOPELESS_RATIO:
            break
    return found


def _judge_runs(wrong: Numpy, runs: tuple[Numpy, ...], target: Target) -> Judgement:
    allowed = deviation_budget(wrong, runs, target)
    verdict = judge_rows("out", target.actual, allowed, target.limits)
    values = {s.name: s.value for s in verdict.statistics}
    residual = max(values["bulk"], _tensor_ratio(verdict.statistics) if target.fails_as_tensor else 0.0)
    fits = verdict.status != "fail"
    is_of_truth = fits and target.expected.shape == wrong.shape
    truth_fits = is_of_truth and judge_rows("out", target.expected, allowed).status != "fail"
    return Judgement(fits, residual, wrong, allowed.rows, runs, values["row"], truth_fits)


def passes_as(problem: Problem | None, target: Target) -> tuple[bool, float]:
    """Whether the output passes as that of a kernel with these deviations, and its residual in their own budget."""
    found = judge_problem(problem, target)
    return (False, np.inf) if found is None else (found.fits, found.residual)


def _rounded_output(problem: Problem, recipe: Recipe, order: Order) -> Numpy:
    """The output of a kernel of this recipe, with the problem's mistakes over its rounded layers."""
    ops = rounded_mistakes(recipe, order, problem.mistakes)
    with np.errstate(all="ignore"):
        spec = perturb_lambda_init(problem.spec, order, ops_with(problem.mistakes))
        return round_to(forward(spec, problem.inputs, ops) * problem.factor, recipe.storage)


LARGE_COST = 600_000
"""Multiplications from which a case is reduced: a hundred singles and a few thousand pairs are tried on it."""
MAX_WHOLE_COST = 2**28
"""Of what the whole is tried, where statistics over all rows alone refused it: no part shows that."""
MIN_QUERIES = 4
KEY_AXES = ("mask", "mask off by one", "window", "bias")
"""Axes of deviations that depend on which keys there are: they see those that come after, or not those long before."""
QUERY_AXES = ("mask align", "cache", "concat", "layout", "rope offset")
"""Axes of those that depend on how many queries there are, or how the whole lies in memory."""


def count_multiplications(spec: Spec, inputs: Inputs) -> int:
    """About how many multiplications the two maps take."""
    B, _, T, _ = inputs["q"].shape
    return int(2 * B * spec.heads * T * inputs["k"].shape[2] * (spec.head_dim + spec.out_dim))


def typical_part(spec: Spec, target: Target, *, all_keys: bool = False) -> Target | None:
    """Return a part of a dense core of about `LARGE` multiplications; None where it has no more, or is of another kind.

    Causal and with as many queries as keys it is the first tokens, which see nothing that comes after them; else, or
    with `all_keys`, the last queries with all keys.
    """
    inputs = target.inputs
    if kind_of(inputs) != "dense" or 0 in target.actual.shape or count_multiplications(spec, inputs) <= LARGE_COST:
        return None
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    first = T == S and spec.causal != "none" and not all_keys
    if spec.causal == "top_left" and not first:
        return None  # which keys the last queries see depends on how many come before
    by_row = count_multiplications(spec, inputs) // (inputs["q"].shape[0] * T)
    n = int(np.sqrt(LARGE_COST * S / by_row)) if first else LARGE_COST // by_row
    n = min(T, max(n, MIN_QUERIES))
    return _sub_case(target, 0, slice(0, n), n) if first else _sub_case(target, 0, slice(T - n, T), S)


def worst_part(spec: Spec, target: Target, typical: Target, *, all_keys: bool = False) -> Target | None:
    """Return the row of a large case that is furthest off, where the usual part is right and it is not; else None.

    With it are those before it, or, where they need later keys, those after it.
    """
    wrong = _row_ratios(target)
    if spec.causal == "top_left" or not exceeds_limit(wrong) or exceeds_limit(_row_ratios(typical)):
        return None
    T, S = target.inputs["q"].shape[2], target.inputs["k"].shape[2]
    sequence, _, t = (int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    if all_keys or spec.causal == "none" or S - T + t < 0:
        return _sub_case(target, sequence, slice(max(0, min(t, T - MIN_QUERIES)), T), S)
    return _sub_case(target, sequence, slice(max(0, t - MIN_QUERIES + 1), t + 1), S - T + t + 1)


def _row_ratios(target: Target) -> Numpy:
    """How far off the rows are: where NaN and ∞ stand in other places, as far as can be."""
    other = np.any(np.isfinite(target.actual) != np.isfinite(target.expected), axis=-1)
    return np.where(other, np.inf, row_ratios(target, target.actual))


def _split_target(spec: Spec, target: Target, *, all_keys: bool = False) -> list[Target]:
    """The usual part of a large target, and what is beside or instead of it; nothing of a small one."""
    usual = typical_part(spec, target, all_keys=all_keys)
    other = None if usual is None else worst_part(spec, target, usual, all_keys=all_keys)
    if usual is None:
        return []
    right = replace(usual, is_correct=other is not None or not exceeds_limit(_row_ratios(target)))
    if other is None:
        return [right]
    return [other] if all_keys else [right, other]


def _sub_case(target: Target, sequence: int, rows: slice, keys: int) -> Target:
    """These queries of a sequence, and its first keys."""
    at = (slice(sequence, sequence + 1), slice(None), rows)
    part = select(target.inputs, at[0], rows, slice(0, keys))
    return Target(part, target.actual[at], target.expected[at], target.rows[at], target.recipe)


@dataclass(frozen=True)
class Parts:
    """Targets whole, and the parts of them on which deviations are tried.

    Where the usual part of a target is right, `small` has the row that is furthest off beside it, and `last` that row
    and all after it instead.
    """

    whole: tuple[Target, ...]
    local: tuple[Target, ...]
    all_keys: tuple[Target, ...]
    cost: int

    @staticmethod
    def of(spec: Spec, targets: tuple[Target, ...]) -> Parts:
        """Reduce each target, where it is large."""

        def parts(*, all_keys: bool) -> tuple[Target, ...]:
            found = [_split_target(spec, t, all_keys=all_keys) for t in targets]
            if not any(found):
                return targets  # itself, so that nothing is judged twice
            return tuple(part for t, some in zip(targets, found, strict=True) for part in some or [t])

        total = sum(
            count_multiplications(spec, t.inputs) if "q" in t.inputs and "k" in t.inputs else 0 for t in targets
        )
        if any(
            t.fails_as_tensor and count_multiplications(spec, t.inputs) <= MAX_WHOLE_COST
            for t in targets
            if kind_of(t.inputs) == "dense"
        ):
            return Parts(targets, targets, targets, total)
        return Parts(targets, parts(all_keys=False), parts(all_keys=True), total)

    @property
    def is_split(self) -> bool:
        """Whether the targets are so large that parts of them are tried."""
        return self.local is not self.whole

    def select(self, some: Iterable[Deviation]) -> tuple[Target, ...]:
        """The smallest part on which these deviations together act as on the whole."""
        axes = {d.axis for d in some}
        if axes & set(QUERY_AXES):
            return self.whole
        return self.all_keys if axes & set(KEY_AXES) else self.local

    def stages(self, part: tuple[Target, ...]) -> list[tuple[Target, ...]]:
        """Return a part and then the whole, if they differ: what fails on the part need not be tried on the whole."""
        return [part] if part is self.whole else [part, self.whole]
