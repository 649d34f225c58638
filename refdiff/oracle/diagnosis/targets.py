"""Compare a wrong output or gradient with that of a kernel with certain deviations.

A large case is compared in part: most deviations act on a few tokens of one sequence as they do on all of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.budget.statistics import (
    LIMITS,
    RowBudget,
    Statistic,
    common_factor,
    errors_of_runs,
    root_mean_square,
    row_floor,
    safe_ratio,
    statistics,
)
from refdiff.oracle.cases.values import round_to_storage
from refdiff.oracle.deviations.deviation import Deviation, Problem, ops_with, output
from refdiff.oracle.deviations.tiles import ONE_MAP_ALIGN_AXIS, ONE_MAP_AXIS, ONLINE_AXIS
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.sequences import Inputs, Numpy, select
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding import FORMATS, round_to, rounds_to_finite
from refdiff.oracle.rounding.ensemble import perturb_lambda_init, run_orders, scatter_allowance
from refdiff.oracle.rounding.evaluation_order import DRAWS, MEMBERS, Order
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.rounding.rounded_layers import rounded_mistakes
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS, RowLimits
from refdiff.oracle.truth.attention_operands import padded_queries, zero_padded
from refdiff.oracle.truth.forward import forward
from refdiff.oracle.verdict.judge import judge_rows

Kernel = Callable[[Inputs], Problem | None]
"""The problem that a kernel solves for given inputs; None if it does not apply to them."""
WRONG_LIMITS = THRESHOLDS.wrong_limits
TENSOR_STATISTICS = ("slope", "factor")
"""The statistics of a whole tensor. They can fail where no single row and no part of a case does."""

SCREENING_ORDERS = (DRAWS[0], MEMBERS[1])
"""Two orders that suffice to reject most candidates: one rounds everything at random, one has an error in λ."""
AXES = {1: "row", 2: "b t", 3: "b h t"}
"""The axes of rows, by their number: of a projection's gradient, of a layer's output, and of attention alone."""


@dataclass(frozen=True, eq=False)
class Target:
    """An output or gradient to explain, and the truth. A target equals itself alone.

    rows: the error that correct kernels have in each row, E_r.
    is_correct: whether this is a correct part of a wrong case. An explanation must leave it as it is.
    allowed: the budget of a case, or of a part that fails as a tensor; None for other parts and for gradients.
    is_gradient: whether rows that are 0 keep their budget. Such rows, as dq of a query with one key, are
        differences with a rounding error.
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
    def of(actual: Numpy, own: Budget) -> Target:
        """Combine an output with the budget of its inputs."""
        exact = as_float64(own.spec, own.inputs)
        y, rows = own.expected["out"], own.rows["out"]
        actual = zero_padded(padded_queries(own.spec, exact), actual) if actual.shape == y.shape else actual
        return Target(exact, actual, y, rows, own.recipe, allowed=own.tensors["out"])

    @cached_property
    def limits(self) -> RowLimits:
        """The limits of a candidate. If only statistics of the whole tensor fail, these keep the limits of `check`."""
        if not self.fails_as_tensor:
            return WRONG_LIMITS
        return replace(WRONG_LIMITS, **{name: getattr(LIMITS, name) for name in TENSOR_STATISTICS})

    @cached_property
    def fails_as_tensor(self) -> bool:
        """Whether only statistics of the whole tensor fail."""
        broken = {s.name for s in statistics(self.actual, self.allowed) if not s.holds} if self.allowed else set()
        return bool(broken) and broken <= set(TENSOR_STATISTICS)

    @cached_property
    def finite(self) -> Numpy:
        """The mask of numbers that are finite in the output."""
        return np.isfinite(self.actual)

    @cached_property
    def compared(self) -> Numpy:
        """The mask of numbers that are finite in the output and in the truth."""
        return self.finite & np.isfinite(self.expected)

    @cached_property
    def size(self) -> Numpy:
        """The root mean square of each row of the truth."""
        return root_mean_square(np.where(np.isfinite(self.expected), self.expected, 0.0))

    @cached_property
    def typical_error(self) -> float:
        """The median over rows of the budget over the size of the row."""
        some = self.size > 0
        return float(np.median(safe_ratio(self.rows[some], self.size[some]))) if np.any(some) else 0.0


def compute_outputs(kernel: Kernel, targets: Iterable[Target]) -> list[Numpy | None]:
    """Return the kernel's output for each target; None where the kernel does not apply."""
    return [output(kernel(t.inputs)) for t in targets]


def row_ratios(target: Target, x: Numpy) -> Numpy:
    """Return the error of each row over its budget. Numbers that are not finite count as correct."""
    known = np.isfinite(x) & np.isfinite(target.expected)
    y = np.where(known, target.expected, 0.0)
    return safe_ratio(root_mean_square(np.where(known, x, 0.0) - y), target.rows)


def exceeds_limit(rows: Numpy) -> bool:
    """Whether the error ratio of a row is above the limit of correct kernels."""
    return bool(np.max(rows, initial=0.0) > LIMITS.row)


def quick_residual(target: Target, wrong: Numpy | None) -> float:
    """Return the root mean square over rows of actual − wrong, in units of each row's budget.

    The budget is that of the truth, scaled to the size of the row of `wrong`: it is cheap, since no order is run.
    Infinite if the shapes differ or NaN and ∞ are in other places. If only statistics of the whole tensor fail, it
    is √(r² + s²), with r as above and s the largest of these statistics over its limit, in units of a row's limit.
    """
    known = target.finite
    if wrong is None or wrong.shape != target.actual.shape:
        return np.inf
    if not np.array_equal(known, rounds_to_finite(wrong, target.recipe.storage)):
        return np.inf
    error = np.subtract(target.actual, wrong, out=np.zeros(wrong.shape), where=known)
    size, before = root_mean_square(np.where(np.isfinite(wrong), wrong, 0.0)), target.size
    rows = np.maximum(target.rows * np.minimum(safe_ratio(size, before), 1e6), row_floor(size, target.recipe))
    rows = np.maximum(rows, np.where(before == 0, np.maximum(target.rows, target.typical_error * size), 0.0))
    if target.is_gradient:
        rows = np.where(size == 0, target.rows, rows)
    ratio = np.minimum(safe_ratio(root_mean_square(error), rows), 1e9)
    residual = float(np.sqrt(np.mean(ratio**2))) if ratio.size else 0.0
    if not target.fails_as_tensor or target.allowed is None:
        return residual
    return math.hypot(residual, _tensor_ratio(statistics(target.actual, replace(target.allowed, expected=wrong))))


def _tensor_ratio(found: Iterable[Statistic]) -> float:
    """Return the largest statistic of the whole tensor over its limit, in units of the limit of a row."""
    return LIMITS.row * max((s.value / s.limit for s in found if s.name in TENSOR_STATISTICS), default=0.0)


def worst_residual(targets: Sequence[Target], outs: Sequence[Numpy | None]) -> float:
    """Return the largest quick residual of a kernel's outputs, one for each target."""
    return max(quick_residual(t, x) for t, x in zip(targets, outs, strict=True))


def explained_share(target: Target, wrong: Numpy | None) -> float:
    """Return the share of the squared difference from the truth that `wrong` explains: 1 − `remaining_share`, or 0."""
    return max(0.0, 1.0 - remaining_share(target, wrong))


def remaining_share(target: Target, wrong: Numpy | None) -> float:
    """Return ‖actual − wrong‖² / ‖actual − expected‖²; ∞ if there is no output of this shape.

    In a correct part of a case it is 1 if `wrong` exceeds the limit of a row there, else 0.
    """
    if wrong is None or wrong.shape != target.actual.shape:
        return np.inf
    if target.is_correct:
        return float(exceeds_limit(row_ratios(target, wrong)))
    known = target.compared & np.isfinite(wrong)
    before, now = (
        float(np.sum(np.subtract(target.actual, x, out=np.zeros(x.shape), where=known) ** 2))
        for x in (target.expected, wrong)
    )
    return now / before if before > 0 else np.inf


@dataclass(frozen=True)
class Judgement:
    """The result of judging an output against a kernel with certain deviations.

    wrong, runs: the output of that kernel, exact and rounded in several orders.
    rows: the error that such kernels have in each row.
    worst_row: the largest error of a row over its budget.
    truth_fits: whether the truth would pass too.
    """

    fits: bool
    residual: float
    wrong: Numpy
    rows: Numpy
    runs: tuple[Numpy, ...]
    worst_row: float = 0.0
    truth_fits: bool = False


NO_OUTPUT = Judgement(False, np.inf, np.empty(0), np.empty(0), ())
"""The judgement of a problem that has no output of the target's shape."""


def deviation_budget(wrong: Numpy, runs: Sequence[Numpy], target: Target) -> RowBudget:
    """Return the budget of a kernel with deviations, from its exact output and its runs in several orders."""
    recipe = target.recipe
    floor = row_floor(root_mean_square(np.where(np.isfinite(wrong), wrong, 0.0)), recipe)
    errors, largest_slope, doubtful = errors_of_runs(wrong, runs)
    scatter = scatter_allowance(recipe) if target.is_gradient else 0
    rows = np.maximum(floor, np.max(errors, axis=0) + scatter * np.std(errors, axis=0))
    factor = target.allowed.factor if target.allowed else None
    if factor is not None:
        factor = common_factor(wrong, runs, ~doubtful, recipe.storage, factor.divisor, FORMATS[recipe.storage].tiny)
    bounds = np.full(rows.shape, np.inf)
    return RowBudget(wrong, rows, bounds, largest_slope, recipe.storage, AXES[rows.ndim], doubtful, factor=factor)


Rejected = dict[tuple[Target, bytes], Judgement]
"""The judgements of problems that a target does not fit, by a digest of their outputs."""


def judge_problem(
    problem: Problem | None, target: Target, *, stop: bool = False, rejected: Rejected | None = None
) -> Judgement:
    """Judge the output by the budget of a problem with deviations; `NO_OUTPUT` if that has none of the same shape.

    Args:
        stop: run only the screening orders if they suffice to reject the problem.
        rejected: judgements to reuse, and to add to. Many deviations have no effect on the inputs: their output is the
            same, exact and in the screening orders.
    """
    wrong = output(problem)
    if problem is None or wrong is None or wrong.shape != target.actual.shape:
        return NO_OUTPUT
    orders = (*DRAWS, *MEMBERS[:3])
    runs: list[Numpy] = []
    key = (target, b"")
    for some in (SCREENING_ORDERS, tuple(o for o in orders if o not in SCREENING_ORDERS)) if stop else (orders,):
        runs += run_orders(lambda order: _rounded_output(problem, target.recipe, order), some, problem.inputs)
        if rejected is not None and not key[1]:
            key = (target, hashlib.sha256(np.concatenate((wrong, *runs), axis=None).data).digest())
            if key in rejected:
                return rejected[key]
        found = judge_runs(wrong, tuple(runs), target)
        if found.worst_row > THRESHOLDS.hopeless * WRONG_LIMITS.row:
            break
    if rejected is not None and not found.fits:
        rejected[key] = replace(NO_OUTPUT, residual=found.residual)
    return found


def judge_runs(wrong: Numpy, runs: tuple[Numpy, ...], target: Target) -> Judgement:
    """Judge the target by the budget of a kernel whose exact result is `wrong`, and its results in several orders."""
    allowed = deviation_budget(wrong, runs, target)
    verdict = judge_rows("out", target.actual, replace(allowed, limits=target.limits))
    values = {s.name: s.value for s in verdict.statistics}
    residual = max(values["bulk"], _tensor_ratio(verdict.statistics) if target.fails_as_tensor else 0.0)
    overflow = 2 * int(np.count_nonzero(allowed.doubtful)) > allowed.doubtful.size  # of kernels with its deviations
    fits = verdict.status != "fail" and not overflow
    same_shape = fits and target.expected.shape == wrong.shape
    truth_fits = same_shape and judge_rows("out", target.expected, allowed).status != "fail"
    return Judgement(fits, residual, wrong, allowed.rows, runs, values["row"], truth_fits)


def _rounded_output(problem: Problem, recipe: Recipe, order: Order) -> Numpy:
    """Compute the output in one order of this recipe, with the problem's mistakes wrapped around the rounded layers."""
    ops = rounded_mistakes(recipe, order, problem.mistakes)
    with np.errstate(all="ignore"):
        spec = perturb_lambda_init(problem.spec, order, ops_with(problem.mistakes))
        return round_to(forward(spec, problem.inputs, ops) * problem.factor, recipe.storage)


KEY_AXES = ("mask", "mask off by one", "window", "bias", ONE_MAP_AXIS, ONLINE_AXIS)
"""The axes of deviations that depend on all keys, such as later keys, keys outside a window, or a sink behind them."""
QUERY_AXES = ("mask align", ONE_MAP_ALIGN_AXIS, "cache", "output layout", "layout", "rope offset", "padding")
"""The axes of deviations that depend on the number of queries, on other sequences, or on the memory layout."""
QUERY_NAMES = ("v2_one_lambda_per_layer", "v2_lambda_read_as_tokens_first")
"""The deviations of other axes that do so."""


def needs_whole(deviation: Deviation) -> bool:
    """Whether a deviation acts on no part as on the whole."""
    return deviation.axis in QUERY_AXES or deviation.name in QUERY_NAMES


def estimate_cost(spec: Spec, inputs: Inputs) -> int:
    """Estimate the multiplications of both maps."""
    B, _, T, _ = inputs["q"].shape
    return int(2 * B * spec.heads * T * inputs["k"].shape[2] * (spec.head_dim + spec.out_dim))


def typical_part(
    spec: Spec, target: Target, *, all_keys: bool = False, most: int = THRESHOLDS.large_cost
) -> Target | None:
    """Return a part of a dense target of about `most` multiplications; None if it is no larger, or not dense.

    With a causal mask and as many queries as keys, the part is the first tokens: they see no later ones. Otherwise, or
    with `all_keys`, it is the last queries with all keys.
    """
    inputs = target.inputs
    if kind_of(inputs) != "dense" or 0 in target.actual.shape or estimate_cost(spec, inputs) <= most:
        return None
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    first = T == S and spec.causal != "none" and not all_keys
    if spec.causal == "top_left" and not first:
        return None  # the visible keys depend on the index of the query in the whole
    by_row = estimate_cost(spec, inputs) // (inputs["q"].shape[0] * T)
    n = int(np.sqrt(most * S / by_row)) if first else most // by_row
    n = min(T, max(n, THRESHOLDS.min_queries))
    return _sub_case(target, 0, slice(0, n), n) if first else _sub_case(target, 0, slice(T - n, T), S)


def as_stored(inputs: Inputs, recipe: Recipe) -> Inputs:
    """Return rounded inputs with q in its storage type: beside it, `budget` takes the others as they are."""
    return {**inputs, "q": round_to_storage(inputs["q"], recipe.storage)} if "q" in inputs else inputs


def failing_part(spec: Spec, target: Target, *, all_keys: bool = False) -> Target | None:
    """Return the smallest typical part that fails as a tensor too, by a budget of its own; None if only the whole does.

    Such a part has less evidence than the whole, on which names are judged in the end. Numbers are fitted to the whole.
    """
    most = THRESHOLDS.large_cost
    while most <= THRESHOLDS.max_whole_cost:
        part = typical_part(spec, target, all_keys=all_keys, most=most)
        if part is None:
            break
        own = budget(spec, as_stored(part.inputs, target.recipe), target.recipe, members=4)
        part = Target.of(part.actual, own)
        if part.fails_as_tensor:
            return part
        if part.actual.shape[2] == target.actual.shape[2]:
            break
        most *= 4
    return None


def worst_part(spec: Spec, target: Target, typical: Target, *, all_keys: bool = False) -> Target | None:
    """Return a part with a wrong row of a large target, if it has one and the typical part has none; else None.

    Candidates are the rows whose error is at least the largest over `Thresholds.better_ratio`. The part is the first of
    them with the rows before it. If these need later keys, it is the last of them with the rows after it.
    """
    wrong = _actual_ratios(target)
    if spec.causal == "top_left" or not exceeds_limit(wrong) or exceeds_limit(_actual_ratios(typical)):
        return None
    T, S = target.inputs["q"].shape[2], target.inputs["k"].shape[2]
    large = np.argwhere(wrong >= max(LIMITS.row, np.max(wrong) / THRESHOLDS.better_ratio))
    first, last = large[np.argmin(large[:, 2])], large[np.argmax(large[:, 2])]
    (sequence, _, t), (last_sequence, _, last_t) = first.tolist(), last.tolist()
    least = THRESHOLDS.min_queries
    if all_keys or spec.causal == "none" or S - T + t < 0:
        return _sub_case(target, last_sequence, slice(max(0, min(last_t, T - least)), T), S)
    return _sub_case(target, sequence, slice(max(0, t - least + 1), t + 1), S - T + t + 1)


def _actual_ratios(target: Target) -> Numpy:
    """Return the error of each row over its budget: ∞ where NaN and ∞ differ from the truth's."""
    other = np.any(np.isfinite(target.actual) != np.isfinite(target.expected), axis=-1)
    return np.where(other, np.inf, row_ratios(target, target.actual))


def _split_target(spec: Spec, target: Target, *, all_keys: bool = False) -> list[Target]:
    """Split a large target into its typical part, its worst part, or both; [] for a small one."""
    if target.fails_as_tensor and kind_of(target.inputs) == "dense":
        part = failing_part(spec, target, all_keys=all_keys)
        if part is not None or estimate_cost(spec, target.inputs) <= THRESHOLDS.max_whole_cost:
            return [part] if part is not None else []
    typical = typical_part(spec, target, all_keys=all_keys)
    if typical is None:
        return []
    worst = worst_part(spec, target, typical, all_keys=all_keys)
    typical = replace(typical, is_correct=worst is not None or not exceeds_limit(_actual_ratios(target)))
    if worst is None:
        return [typical]
    return [worst] if all_keys else [typical, worst]


def _sub_case(target: Target, sequence: int, rows: slice, keys: int) -> Target:
    """Select some queries of one sequence, and its first keys."""
    at = (slice(sequence, sequence + 1), slice(None), rows)
    part = select(target.inputs, at[0], rows, slice(0, keys))
    return Target(part, target.actual[at], target.expected[at], target.rows[at], target.recipe)


@dataclass(frozen=True)
class Parts:
    """Targets, and the parts of them on which deviations are tried.

    whole: the targets.
    local: their typical parts; if one is correct, also a part with a wrong row.
    all_keys: the same with all keys; only the worst part if the typical one is correct.
    cost: the multiplications of all targets.
    is_large: whether some dense target is above `Thresholds.large_cost`. It is compared as a whole if no part of it
        fails as a tensor as it does, or if its mask is top-left with other keys than queries.
    coarse: parts of `all_keys` on which a fitted number is searched first; () for none.
    """

    whole: tuple[Target, ...]
    local: tuple[Target, ...]
    all_keys: tuple[Target, ...]
    cost: int
    is_large: bool
    coarse: tuple[Target, ...] = ()

    @staticmethod
    def of(spec: Spec, targets: tuple[Target, ...]) -> Parts:
        """Split each large target."""

        def parts(*, all_keys: bool) -> tuple[Target, ...]:
            found = [_split_target(spec, t, all_keys=all_keys) for t in targets]
            if not any(found):
                return targets  # the same object, so that nothing is judged twice
            return tuple(part for t, some in zip(targets, found, strict=True) for part in some or [t])

        total = sum(estimate_cost(spec, t.inputs) for t in targets if "q" in t.inputs and "k" in t.inputs)
        dense = (t for t in targets if kind_of(t.inputs) == "dense")
        is_large = any(estimate_cost(spec, t.inputs) > THRESHOLDS.large_cost for t in dense)
        return Parts(targets, parts(all_keys=False), parts(all_keys=True), total, is_large)

    @property
    def is_split(self) -> bool:
        """Whether deviations are tried on parts of the targets."""
        return self.local is not self.whole

    def select(self, some: Iterable[Deviation]) -> tuple[Target, ...]:
        """Return the smallest parts on which these deviations together act as on the whole."""
        found = list(some)
        if any(map(needs_whole, found)):
            return self.whole
        return self.all_keys if any(d.axis in KEY_AXES for d in found) else self.local

    def stages(self, part: tuple[Target, ...]) -> list[tuple[Target, ...]]:
        """Return the parts and, if they differ, the whole: what fails on the parts is not tried on the whole."""
        return [part] if part is self.whole else [part, self.whole]
