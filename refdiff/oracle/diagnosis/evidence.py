"""Compare the tensors of a wrong kernel with those under a hypothesis: a quick score, and a budget of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from refdiff.oracle.budget.budget import Budget
from refdiff.oracle.budget.statistics import (
    LIMITS,
    RowBudget,
    errors_of_runs,
    largest_slope,
    root_mean_square,
    row_floor,
    safe_ratio,
)
from refdiff.oracle.diagnosis.hypotheses import Edits
from refdiff.oracle.diagnosis.ranking import Finding
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.sequences import Numpy
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes.catalogue import Kernel
from refdiff.oracle.mistakes.kernel import Tensors, compute, select_rows
from refdiff.oracle.rounding import rounds_to_finite
from refdiff.oracle.rounding.ensemble import run_orders, scatter_allowance
from refdiff.oracle.rounding.evaluation_order import DRAWS, MEMBERS, Order
from refdiff.oracle.thresholds import THRESHOLDS, RowLimits
from refdiff.oracle.verdict.judge import judge_rows
from refdiff.oracle.verdict.verdict import FAIL

WRONG_LIMITS = THRESHOLDS.wrong_limits
ORDERS = (DRAWS[0], MEMBERS[1], *(o for o in (*DRAWS, *MEMBERS[:3]) if o not in (DRAWS[0], MEMBERS[1])))
"""The orders of a hypothesis' own budget. The first two suffice to reject most: random errors, and one in λ."""
SCREENING = 2
AXES = {1: "row", 2: "b t", 3: "b h t"}


@dataclass(frozen=True, eq=False)
class Judged:
    """Exact tensors under a hypothesis, those of several orders, the error of each row, and whether it fits.

    each: the residual of each tensor by its own budget; ∞ if it does not fit.
    """

    fits: bool
    residual: float
    each: Mapping[str, float]
    exact: Tensors
    runs: list[Tensors]
    rows: Tensors


@dataclass(frozen=True, eq=False)
class Sample:
    """The tensors of a wrong kernel at some queries, None for all: actual, expected, E_row; and a correct kernel."""

    queries: Numpy | None
    actual: Tensors
    expected: Tensors
    errors: Tensors
    start: Kernel


class Case:
    """The tensors of one wrong kernel, with the truth and E_row of each: its output, or its gradients.

    Of a large dense case a sample of queries is compared, first at the few of `coarse`, then at those of `fine`.
    """

    def __init__(self, budget: Budget, actual: Tensors, dout: Numpy | None = None) -> None:
        self.budget, self.recipe, self.dout = budget, budget.recipe, dout
        self.start = Kernel(budget.spec, as_float64(budget.spec, budget.inputs))
        self.kind = kind_of(self.start.inputs)
        self.actual: Tensors = {}
        self.expected: Tensors = {}
        self.errors: Tensors = {}
        for name, y in actual.items():
            self._add(name, np.atleast_1d(y))
        self.wrong = [name for name, v in budget.judge(actual).tensors.items() if v.status == FAIL]
        self.limits: RowLimits = WRONG_LIMITS
        self.coarse = self.fine = self.whole = Sample(None, self.actual, self.expected, self.errors, self.start)
        self._take_samples()
        self.right = self.judge(())
        if self.right is not None and self.right.fits:  # only statistics of the whole tensor fail: keep their limits
            self.coarse = self.fine = self.whole
            self.right = self.judge(())
            self.limits = replace(WRONG_LIMITS, slope=LIMITS.slope)

    def _add(self, name: str, y: Numpy) -> None:
        if name in self.budget.tensors:
            f, E = self.budget.expected[name], self.budget.rows[name]
        else:  # a sum of many terms
            f, allowed = (np.atleast_1d(x) for x in self.budget.absolute(name))
            E = root_mean_square(np.broadcast_to(allowed, f.shape)) / LIMITS.row
        if (padded := self.budget.padded(name)) is not None:
            y = np.where(padded[..., None] if padded.ndim < y.ndim else padded, f, y)
        self.actual[name], self.expected[name], self.errors[name] = y, f, E

    @property
    def is_sampled(self) -> bool:
        """Whether a sample of the queries is compared."""
        return self.fine is not self.whole

    @property
    def wrong_rows(self) -> Numpy:
        """The mask of the rows of the output that fail on their own, (B, h, T)."""
        off = np.nan_to_num(root_mean_square(self.actual["out"] - self.expected["out"]), nan=np.inf)
        found: Numpy = off > LIMITS.row * self.errors["out"]
        return found

    def _take_samples(self) -> None:
        """Choose queries of a large case: the worst of them, those spread over all, the first and the last."""
        inputs, spec = self.start.inputs, self.start.spec
        if self.kind != "dense" or "out" not in self.actual:
            return
        B, _, T, _ = inputs["q"].shape
        cost = B * spec.heads * T * inputs["k"].shape[2] * (spec.head_dim + spec.out_dim)
        n = THRESHOLDS.sampled_rows
        if cost < THRESHOLDS.sampled_cost or 2 * n > T:
            return
        off = root_mean_square(np.nan_to_num(self.actual["out"] - self.expected["out"], nan=1e300, posinf=1e300))
        ratio = np.max(safe_ratio(off, self.errors["out"]), axis=(0, 1))
        worst, spread = np.argsort(-ratio), np.linspace(0, T - 1, n // 2).astype(int)
        self.fine = self._sample(np.unique([*worst[: n // 2], *spread, *range(n // 8), *range(T - n // 8, T)]))
        self.coarse = self._sample(np.unique([*worst[: n // 12], *spread[:: n // 12], T - 1]))

    def _sample(self, queries: Numpy) -> Sample:
        actual, expected, errors = (
            {n: x[:, :, queries] for n, x in of.items()} for of in (self.actual, self.expected, self.errors)
        )
        return Sample(queries, actual, expected, errors, select_rows(self.start, queries))

    def kernel(self, edits: Edits, sample: Sample) -> Kernel | None:
        """Return the kernel with some hypotheses, for the queries of a sample."""
        kernel: Kernel | None = self.start
        for h, value in (edit for edit in edits if not edit[0].on_sample):
            kernel = None if kernel is None else h.edit(kernel, value)
        if kernel is not None and sample.queries is not None:
            if kernel.spec is self.start.spec and kernel.inputs is self.start.inputs:
                some = sample.start
                kernel = replace(kernel, spec=some.spec, inputs=some.inputs, queries=sample.queries)
            else:
                kernel = select_rows(kernel, sample.queries)
        for h, value in (edit for edit in edits if edit[0].on_sample):
            kernel = None if kernel is None else h.edit(kernel, value)
        return kernel

    def tensors(self, edits: Edits, sample: Sample, order: Order | None = None) -> Tensors | None:
        """Compute the tensors under some hypotheses, at the queries of a sample."""
        by_row = all(h.by_row for h, _ in edits)
        try:
            kernel = self.kernel(edits, sample if by_row else self.whole)
        except (ValueError, IndexError):
            return None
        found = compute(kernel, self.actual, dout=self.dout, recipe=self.recipe, order=order)
        if found is None or sample.queries is None or by_row:
            return found
        T = self.start.inputs["q"].shape[2]
        return {
            n: x[:, :, sample.queries] if x.ndim == 4 and x.shape[2] == T else np.empty(0) for n, x in found.items()
        }

    def score(self, edits: Edits, sample: Sample) -> Finding:
        """Compare the tensors with those under some hypotheses: no order is run."""
        return self.compare(edits, self.tensors(edits, sample), sample)

    def compare(self, edits: Edits, found: Tensors | None, sample: Sample) -> Finding:
        """Compare the tensors with those that were computed under some hypotheses."""
        each: dict[str, float] = {}
        shares: list[float] = []
        for name, y in sample.actual.items():
            f, E, g = sample.expected[name], sample.errors[name], (found or {}).get(name)
            if g is None or g.shape != y.shape:
                return Finding(edits)
            finite = np.isfinite(y)
            known = finite & np.isfinite(g) & np.isfinite(f)
            same = np.array_equal(finite, rounds_to_finite(g, self.recipe.storage))
            if not known.all():
                y, g, f = (np.where(known, x, 0.0) for x in (y, g, f))
            off = y - g
            ratio = np.minimum(safe_ratio(root_mean_square(off), self._row_error(f, g, E)), 1e9)
            each[name] = float(np.sqrt(np.mean(ratio**2))) if same and ratio.size else math.inf
            before, floor = float(np.sum((y - f) ** 2)), float(np.sum(E**2)) * y.shape[-1]
            if before > floor or name in self.wrong:
                shares.append(1 - min(float(np.sum(off * off)) / max(before, floor, 1e-300), 2.0))
        explains = max(0.0, float(np.mean(shares))) if shares else 0.0
        return Finding(edits, max(each.values(), default=math.inf), explains, each)

    def _row_error(self, f: Numpy, g: Numpy, E: Numpy) -> Numpy:
        """Return E_row scaled to the size of the wrong row: no order is run."""
        before, size = root_mean_square(f), root_mean_square(g)
        if before.ndim == 0 or self.dout is not None:
            found: Numpy = np.maximum(E * np.clip(safe_ratio(size, before), 1.0, 1e6), 1e-300)
            return found
        scaled = np.maximum(E * np.minimum(safe_ratio(size, before), 1e6), row_floor(size, self.recipe))
        least: Numpy = np.where(before == 0, np.maximum(E, 1e-300), 1e-300)
        wider: Numpy = np.maximum(scaled, least)
        return wider

    def judge(self, edits: Edits) -> Judged | None:
        """Judge the tensors by the budget of kernels with these hypotheses; None if there are no such tensors."""
        sample = self.fine
        exact = self.tensors(edits, sample)
        if exact is None or any(n not in exact or exact[n].shape != y.shape for n, y in sample.actual.items()):
            return None
        near = self.compare(edits, exact, sample).residual <= THRESHOLDS.own_residual  # rows that are 0 in two orders
        runs: list[Tensors] = []
        for some in (ORDERS[:SCREENING], ORDERS[SCREENING:]):
            more = run_orders(lambda order: self.tensors(edits, sample, order), some, self.start.inputs)
            if any(run is None for run in more):
                return None
            runs += [run for run in more if run is not None]
            fits, worst, residual, rows, each = True, 0.0, 0.0, {}, {}
            for name, y in sample.actual.items():
                one = self._judge_tensor(name, y, exact[name], [run[name] for run in runs], sample.errors[name])
                fits, worst, residual = fits and one[0], max(worst, one[1]), max(residual, one[2])
                rows[name], each[name] = one[3], one[2] if one[0] else math.inf
            if worst > THRESHOLDS.hopeless * WRONG_LIMITS.row and not near:
                break
        fits = fits and len(runs) == len(ORDERS) and self._fits_everywhere(edits, rows)
        fits = fits and not (edits and self._runs_lack(exact, runs))
        return Judged(fits, residual, each, exact, runs, rows)

    def _runs_lack(self, exact: Tensors, runs: list[Tensors]) -> bool:
        """Whether the runs compute the truth rather than the hypothesis: rounded layers need not call a wrong layer.

        Their errors would then span all that lies between the two, and any output there would fit.
        """
        along = square = 0.0
        for name, f in self.fine.expected.items():
            g, mean = exact[name], np.mean([run[name] for run in runs], axis=0)
            known = np.isfinite(f) & np.isfinite(g) & np.isfinite(mean)
            way = np.where(known, f - g, 0.0)
            along += float(np.sum(np.where(known, mean - g, 0.0) * way))
            square += float(np.sum(way * way))
        return along > square / 2

    def _judge_tensor(
        self, name: str, y: Numpy, g: Numpy, runs: list[Numpy], E: Numpy
    ) -> tuple[bool, float, float, Numpy]:
        """Return whether a tensor fits, its largest and its typical error in units of E_row, and E_row."""
        if name in self.budget.tensors:
            allowed = self._row_budget(name, g, runs)
            verdict = judge_rows("out", y, allowed)
            values = {s.name: s.value for s in verdict.statistics}
            fits = verdict.status != FAIL and 2 * int(np.count_nonzero(allowed.doubtful)) <= allowed.doubtful.size
            return fits, values["row"], values["bulk"], allowed.rows
        largest = np.max(np.abs(np.stack(runs) - g), axis=0)
        rows = np.maximum(E, THRESHOLDS.sum_members * root_mean_square(largest) / LIMITS.row)
        finite = np.isfinite(y)
        ratio = np.atleast_1d(safe_ratio(root_mean_square(np.where(finite & np.isfinite(g), y - g, 0.0)), rows))
        worst, typical = float(np.max(ratio, initial=0.0)), float(root_mean_square(ratio.ravel()))
        return bool(worst <= LIMITS.row) and np.array_equal(finite, np.isfinite(g)), worst, typical, rows

    def _row_budget(self, name: str, g: Numpy, runs: list[Numpy]) -> RowBudget:
        floor = row_floor(root_mean_square(np.where(np.isfinite(g), g, 0.0)), self.recipe)
        errors, doubtful = errors_of_runs(g, runs)
        scatter = 0 if name == "out" else scatter_allowance(self.recipe)
        rows = np.maximum(floor, np.max(errors, axis=0) + scatter * np.std(errors, axis=0))
        slope = largest_slope(g, runs, rows, doubtful)
        return RowBudget(g, rows, slope, self.recipe.storage, AXES[rows.ndim], doubtful, limits=self.limits)

    def _fits_everywhere(self, edits: Edits, sampled: Tensors) -> bool:
        """Whether no row contradicts a hypothesis, by E_row scaled as in the worst row of the sample."""
        if not self.is_sampled or not edits:
            return True
        found, y, f, E = self.tensors(edits, self.whole), self.actual["out"], self.expected["out"], self.errors["out"]
        if found is None or found["out"].shape != y.shape:
            return False
        g = found["out"]
        known = np.isfinite(y) & np.isfinite(g) & np.isfinite(f)
        same = np.array_equal(np.isfinite(y), rounds_to_finite(g, self.recipe.storage))
        y, g, f = (np.where(known, x, 0.0) for x in (y, g, f))
        quick = self._row_error(f, g, E)
        wider = float(np.max(safe_ratio(sampled["out"], quick[:, :, self.fine.queries]), initial=1.0))
        worst = float(np.max(safe_ratio(root_mean_square(y - g), wider * quick), initial=0.0))
        return same and worst <= WRONG_LIMITS.noisy_row

    def _project(self, b: Judged, a: Judged) -> tuple[float, float]:
        """Return s = ⟨y − b, a − b⟩ / ‖a − b‖² in units of E_row, and the largest |s| of b's own runs."""
        square, along, of_runs = 0.0, 0.0, np.zeros(len(ORDERS))
        with np.errstate(all="ignore"):
            for name, y in self.fine.actual.items():
                f, g = b.exact[name], a.exact[name]
                known = np.isfinite(f) & np.isfinite(g) & np.isfinite(y)
                size = np.maximum(np.maximum(b.rows[name], a.rows[name]), 1e-150)[..., None]
                way = np.where(known, g - f, 0.0) / size
                square += float(np.sum(way * way))
                along += float(np.sum(np.where(known, y - f, 0.0) / size * way))
                for n, run in enumerate(b.runs):
                    of_runs[n] += float(np.nansum(np.where(known, run[name] - f, 0.0) / size * way))
        if not square > 0 or not np.isfinite(square):
            return 0.0, np.inf
        return along / square, float(np.max(np.abs(of_runs))) / square

    def is_better(self, a: Judged, b: Judged) -> bool:
        """Whether the tensors are further from b, towards a, than b's own runs, and as near to a as a's own."""
        (at_b, spread_b), (at_a, spread_a) = self._project(b, a), self._project(a, b)
        ratio, least = THRESHOLDS.projection_ratio, THRESHOLDS.min_projection
        return abs(at_b) > ratio * spread_b + least and abs(at_a) <= ratio * spread_a + least
