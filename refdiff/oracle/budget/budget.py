"""The error budget of a recipe on given inputs: how far a correct kernel's tensors may be from the truth, by row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.backends.numpy.thread_pool import BLAS
from refdiff.oracle.budget.statistics import RowBudget, errors_of_runs, largest_slope, row_floor
from refdiff.oracle.inputs import DATA, axes_of, is_layer
from refdiff.oracle.inputs.outputs import read_output
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.printing import array_summary
from refdiff.oracle.rounding import NARROW, U32, root_mean_square, round_to, ulp
from refdiff.oracle.rounding.ensemble import quantise, run_members, scatter_allowance
from refdiff.oracle.rounding.evaluation_order import SMALLEST_NORMAL
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.rounding.row_estimate import (
    RowEstimate,
    broadcast_lambda,
    estimate_rows,
    fill_sample,
    is_large,
    least_errors,
    select_queries,
    typical_lambda_error,
)
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth import truth
from refdiff.oracle.truth.attention_operands import padded_queries
from refdiff.oracle.truth.forward import project
from refdiff.oracle.verdict.judge import judge
from refdiff.oracle.verdict.verdict import Verdict

ROW_AXES = {"B": "b", "T": "t", "S": "s", "R": "t", "P": "page", "p": "slot"}
"""The names of axes of rows, where they are not the letters of `refdiff.oracle.inputs`."""


@dataclass(frozen=True)
class Budget:
    """The truth of a case, and how far the outputs of a kernel of this recipe may differ from it.

    A gradient is named d and the input's name: dq, dlambda_q1, dnorm_weight.

    tensors: the budgets of the output and of gradients that are judged by rows.
    sums: (truth, allowed error) of gradients that are sums of many terms.
    estimate: that of all rows, if only a sample of queries was run in all orders.
    """

    spec: Spec
    inputs: Inputs
    recipe: Recipe
    tensors: dict[str, RowBudget]
    sums: dict[str, tuple[Numpy, Numpy]] = field(default_factory=dict)
    estimate: RowEstimate | None = None

    def __repr__(self) -> str:
        return f"Budget({self.recipe.name}, expected: {array_summary(self.expected)})"

    @property
    def sample(self) -> Numpy | None:
        """The queries that were run in all orders; None if all were."""
        return self.tensors["out"].sampled

    @property
    def expected(self) -> dict[str, Numpy]:
        """The truth of each tensor, in float64."""
        return {**{n: b.expected for n, b in self.tensors.items()}, **{n: y for n, (y, _) in self.sums.items()}}

    @property
    def rows(self) -> dict[str, Numpy]:
        """E_r of each tensor that is judged by rows, with the tensor's shape less the last axis."""
        return {name: b.rows for name, b in self.tensors.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the outputs and gradients that can be judged."""
        lambda_ = () if self.spec.is_plain else ("lambda_full",)
        return (*self.tensors, *self.spec.lse_names, *lambda_, *self.sums)

    def judge(self, actual: Any) -> Verdict:
        """Judge an output, or a mapping from names to arrays, as `refdiff.oracle.verdict.judge.judge`."""
        return judge(self, actual)

    def padded(self, name: str) -> Numpy | None:
        """Return which rows of a tensor belong to padded queries and are not judged, broadcastable to it; or None."""
        axes = axes_of(name, self.inputs).split()
        found = padded_queries(self.spec, self.inputs)
        if found is None or "T" not in axes or (name.endswith("lambda_full") and self.spec.lambda_form != "sigmoid"):
            return None
        return found.reshape([dict(zip("BT", found.shape, strict=True)).get(a, 1) for a in axes])

    def absolute(self, name: str) -> tuple[Numpy, Numpy]:
        """Return the truth of λ, a log-sum-exp or a sum, and the allowed error of each of its numbers."""
        if name in self.sums:
            return self.sums[name]
        expected = np.asarray(getattr(truth(self.spec, self.inputs, want=(name,)), name))
        if name == "lambda_full":
            off = typical_lambda_error(self.spec, project(self.spec, self.inputs, ops_for()), self.recipe)
            unit = THRESHOLDS.lambda_units * U32 * np.abs(expected)
            return expected, THRESHOLDS.lambda_errors * broadcast_lambda(off, expected.shape) + unit
        score_error = self._score_errors[self.spec.lse_names.index(name)]
        unit = math.log(2) if self.spec.lse_base == "2" else 1.0
        nats = np.where(np.isfinite(expected), np.abs(expected) * unit, 0.0)
        exp_error = THRESHOLDS.narrow_exp if self.recipe.storage in NARROW else 0.0
        stored = THRESHOLDS.lse_units * U32 + self.recipe.type_at("qk").u + self.recipe.operand_u
        allowed = THRESHOLDS.lse_scores * score_error + stored * (1 + nats) + exp_error
        return expected, allowed / unit

    @cached_property
    def _score_errors(self) -> Numpy:
        return (self.estimate or estimate_rows(self.spec, self.inputs, self.recipe)).score_errors


@BLAS.limited(1)  # its threads spin between small products
def budget(spec: Spec | str, inputs: Mapping[str, Any], recipe: Recipe | str, *, dout: Any = None) -> Budget:
    """Evaluate a recipe in several valid orders and derive the error budget of a correct kernel.

    Equation:
        E_r = max over orders of rms(order − truth) in row r, at least 0.29 u rms(truth). Rows of gradients also get the
        standard deviation over orders. A sum of terms may differ by 3 times the largest error of an order, which is at
        least u ‖terms‖₂ in the random ones (`Arithmetic.perturb_sum`), + 2 ulp

    Args:
        spec: as in `truth`.
        inputs: as in `refdiff.oracle.inputs`, rounded to the storage type first (`Recipe.storage`).
        dout: the gradient of the output; with it gradients can be judged too.

    Raises:
        ValueError: the inputs do not fit `spec`.
        TypeError: `spec` is neither a Spec nor a name, `inputs` is not a mapping, or an input is not an array.
    """
    spec = resolve_spec(spec, inputs)
    recipe = Recipe.of(recipe)
    exact = quantise(inputs, recipe)
    if dout is None and is_large(spec, exact) and (sampled := _sampled_budget(spec, exact, recipe)):
        return sampled
    if dout is not None:
        dout = round_to(read_output(dout, "dout").astype(np.float64), recipe.storage)
    right = truth(spec, exact, dout=dout, want=("out",))
    runs = run_members(spec, exact, recipe, dout)
    tensors = {"out": _out_budget(spec, exact, recipe, np.asarray(right.out), [run["out"] for run in runs], None)}
    sums = {}
    for of, y in right.grads.items():
        name = f"d{of}"
        found = [run[name] for run in runs]
        if of in (*DATA, "x_past", "gate_logits") or of.endswith("_proj.weight"):
            factor = exact.get({"q": "k", "k": "q"}.get(of, ""))
            flushed_times = 0.0 if factor is None else float(np.max(np.abs(factor), initial=0.0))
            tensors[name] = _row_budget(name, y, found, recipe, _row_axes(name, exact), flushed_times)
        else:
            off = np.max([np.where(np.isfinite(run), np.abs(run - y), np.inf) for run in found], axis=0)
            sums[name] = (y, THRESHOLDS.sum_members * off + THRESHOLDS.sum_ulps * ulp(y, recipe.storage))
    return Budget(spec, exact, recipe, tensors, sums)


def _row_axes(name: str, inputs: Inputs) -> str:
    axes = axes_of(name, inputs).split()[:-1]
    return "row" if "_proj." in name else " ".join(ROW_AXES.get(a, a) for a in axes)


def _out_budget(
    spec: Spec, inputs: Inputs, recipe: Recipe, y: Numpy, runs: list[Numpy], known: Numpy | None
) -> RowBudget:
    """Return the budget of an output: of a core with E_r of at least `least_errors`, by the estimates `known`."""
    found = _row_budget("out", y, runs, recipe, _row_axes("out", inputs))
    if is_layer(inputs) or spec.padded_queries != "computed":
        return found
    known = estimate_rows(spec, inputs, recipe).known if known is None else known
    return replace(found, rows=np.maximum(found.rows, least_errors(found.rows, known)))


def _sampled_budget(spec: Spec, inputs: Inputs, recipe: Recipe) -> Budget | None:
    """Return the budget of a large output from a sample of queries; None if all queries are needed."""
    estimate = estimate_rows(spec, inputs, recipe)
    queries, y = estimate.sample(), estimate.out
    if len(queries) == y.shape[2]:
        return None
    small_spec, small_inputs = select_queries(spec, inputs, queries)
    runs = [run["out"] for run in run_members(small_spec, small_inputs, recipe, None)]
    known = estimate.known[..., queries]
    sampled = _out_budget(small_spec, small_inputs, recipe, y[:, :, queries], runs, known)
    rows = estimate.extend(queries, sampled.rows, ~sampled.doubtful)
    if rows is None:
        return None
    found = replace(
        sampled,
        expected=y,
        rows=np.maximum(rows, _floor(y, recipe)),
        doubtful=fill_sample(np.zeros(rows.shape, dtype=np.bool_), queries, sampled.doubtful),
        sampled=queries,
    )
    return Budget(spec, inputs, recipe, {"out": found}, estimate=estimate)


def _row_budget(
    name: str, y: Numpy, runs: list[Numpy], recipe: Recipe, axes: str, flushed_times: float = 0.0
) -> RowBudget:
    errors, doubtful = errors_of_runs(y, runs)
    largest = np.max(errors, axis=0)
    if name != "out":
        # the error of one number, ⟨dout, out⟩, affects a whole row of a gradient
        largest = largest + scatter_allowance(recipe) * np.std(errors, axis=0)
    rows = np.maximum(_floor(y, recipe, flushed_times), largest)
    relative = "row" if name == "out" else "tensor"
    return RowBudget(y, rows, largest_slope(y, runs, rows, doubtful), recipe.storage, axes, doubtful, relative)


def _floor(y: Numpy, recipe: Recipe, flushed_times: float = 0.0) -> Numpy:
    """Return the least E_r of each row.

    Args:
        flushed_times: the largest factor of the gradients of scores in a sum, such as that of a key in dq.
    """
    finite = np.isfinite(y)
    size = root_mean_square(np.where(finite, y, 0.0))
    # numbers below the type's range may become 0; so may weights on a processor that flushes, one for each row, times
    # the size of the largest row, and the gradients of scores, times what they are multiplied by
    flushed = SMALLEST_NORMAL * max(1.0, size.size * max(float(np.max(size, initial=0.0)), flushed_times))
    lost_below = max(recipe.type_at("storage").tiny, flushed)
    return row_floor(size, recipe) + np.where(np.any(finite & (y != 0), axis=-1), lost_below, 0.0)
