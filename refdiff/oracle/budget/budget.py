"""The error budget of a recipe on given inputs, row by row, and the verdict on a kernel's outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.backends.numpy.thread_pool import BLAS
from refdiff.oracle.budget.gradient_terms import (
    TermRecorder,
    lambda_errors,
    order_errors,
    term_norms,
)
from refdiff.oracle.budget.row_sample import (
    RowSample,
    is_large,
    least_row_error,
    measure_rows,
    sampled_queries,
    scale_estimates,
    select_queries,
)
from refdiff.oracle.budget.statistics import (
    RowBudget,
    common_factor,
    errors_of_runs,
    root_mean_square,
    row_floor,
)
from refdiff.oracle.inputs import VECTORS, is_layer
from refdiff.oracle.inputs.outputs import read_output
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.inputs.validation import nonfinite_warnings
from refdiff.oracle.printing import array_summary
from refdiff.oracle.rounding import FORMATS, U32, round_to, ulp
from refdiff.oracle.rounding.ensemble import quantise, rounding_groups, run_members, scatter_allowance, score_errors
from refdiff.oracle.rounding.evaluation_order import SMALLEST_NORMAL, lambda_init_error
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth import truth
from refdiff.oracle.truth.attention_operands import compute_lambda, lambda_init, padded_queries
from refdiff.oracle.truth.forward import has_plain_norm, project
from refdiff.oracle.verdict.judge import judge_lse, judge_rows, judge_sums, other_conventions
from refdiff.oracle.verdict.rounded_factor import allow_rounded_factor
from refdiff.oracle.verdict.verdict import TensorVerdict, Verdict

NARROW = ("bfloat16", "float16")
ROW_AXES = {
    "out": "b h t",
    "dq": "b H t",
    "dk": "b K s",
    "dv": "b V s",
    "dgate_logits": "b h t",
    "dk_pages": "page K slot",
    "dv_pages": "page V slot",
}
QUERY_TENSORS = ("out", "dq", "dgate_logits", "dx", "dlambda_logits", "lse", "lse1", "lse2", "lambda_full")
"""Tensors with a row for each query; rows of padded queries are not judged if the spec says so."""
LAYER_ROW_AXES = {"out": "b t", "dx": "b t", "dx_past": "b t"}


@dataclass(frozen=True)
class Budget:
    """The truth of a case, and how far the outputs of a kernel of this recipe may differ from it.

    A gradient is named d and the input's name: dq, dlambda_q1, dnorm_weight.

    tensors: the budgets of the output and of gradients that are judged by rows.
    sums: (truth, allowed error) of gradients that are sums of many terms.
    sample: the queries that were run in all orders; None if all were.
    """

    spec: Spec
    inputs: Inputs
    recipe: Recipe
    members: int
    tensors: dict[str, RowBudget]
    sums: dict[str, tuple[Numpy, Numpy]] = field(default_factory=dict)
    sample: RowSample | None = None

    def __repr__(self) -> str:
        return f"Budget({self.recipe.name}, {self.members} orders, expected: {array_summary(self.expected)})"

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
        """Judge an output, or a mapping from names to arrays.

        Raises:
            ValueError: there is nothing to judge, a name is unknown, a shape is wrong, or a gradient lacks `dout`.
            TypeError: something is not an array, or a tuple or list of arrays is given in place of a mapping.
        """
        given = dict(actual) if isinstance(actual, Mapping) else {"out": actual}
        if not given:
            raise ValueError(f"nothing to judge: give an array, or a mapping with {', '.join(self.names)}")
        for name in given:
            if name not in self.names:
                hint = "; gradients need dout=" if name.startswith("d") and len(self.tensors) == 1 else ""
                hint = " (bias has no gradient here; leave it out)" if name == "dbias" else hint
                raise ValueError(f"{name!r} cannot be judged{hint}: there are {', '.join(self.names)}")
        with np.errstate(over="ignore", invalid="ignore"):
            arrays = {name: read_output(x, name) for name, x in given.items()}
            tensors = {name: self._judge_tensor(name, x) for name, x in arrays.items()}
            tensors, notes = allow_rounded_factor(self.spec, self.recipe, arrays, tensors, self._judge_tensor)
        return Verdict(tensors, self.recipe.name, (*nonfinite_warnings(self.inputs), *notes))

    def _judge_tensor(self, name: str, given: Numpy) -> TensorVerdict:
        actual, row_budget = given.astype(np.float64), self.tensors.get(name)
        expected, allowed = self.absolute(name) if row_budget is None else (row_budget.expected, row_budget.rows)
        if actual.shape == expected.shape and (padded := self.padded(name)) is not None:
            actual = np.where(padded, expected, actual)
        if row_budget is not None:
            return judge_rows(name, actual, row_budget)
        if name not in self.spec.lse_names:
            return judge_sums(name, actual, expected, allowed)
        if given.dtype.name in NARROW:  # JAX stores log-sum-exps in 16 bits, other libraries in float32
            unit = FORMATS[given.dtype.name].u
            allowed = allowed + 2 * unit * np.where(np.isfinite(expected), np.abs(expected), 0.0)
        return judge_lse(
            name,
            actual,
            expected,
            allowed,
            lambda: other_conventions(self.spec, project(self.spec, self.inputs, ops_for()), name),
        )

    def padded(self, name: str) -> Numpy | None:
        """Return which rows of a tensor belong to padded queries and are not judged, broadcastable to it; or None."""
        found = padded_queries(self.spec, self.inputs) if name in QUERY_TENSORS else None
        if found is None or (name == "lambda_full" and self.spec.lambda_form != "sigmoid"):
            return None
        if name in (*self.spec.lse_names, "lambda_full"):
            return found[:, None]
        return found[..., None] if is_layer(self.inputs) or name == "dlambda_logits" else found[:, None, :, None]

    def absolute(self, name: str) -> tuple[Numpy, Numpy]:
        """Return the truth of λ, a log-sum-exp or a sum, and the allowed error of each of its numbers."""
        if name in self.sums:
            return self.sums[name]
        return self._lambda() if name == "lambda_full" else self._lse(name)

    def _lambda(self) -> tuple[Numpy, Numpy]:
        expected = np.asarray(truth(self.spec, self.inputs, want=("lambda_full",)).lambda_full)
        off = lambda_error(self.spec, project(self.spec, self.inputs, ops_for()), self.recipe)
        off = off if off.ndim == 0 else off[..., 0]
        return expected, np.broadcast_to(off, expected.shape)

    @cached_property
    def _score_errors(self) -> tuple[Numpy, Numpy]:
        if self.sample is None:
            return score_errors(self.spec, self.inputs, self.recipe, self.members)
        spec, inputs = select_queries(self.spec, self.inputs, self.sample.queries)
        first, second = score_errors(spec, inputs, self.recipe, self.members)
        return self.sample.extend(first), self.sample.extend(second)

    def _lse(self, name: str) -> tuple[Numpy, Numpy]:
        expected = np.asarray(getattr(truth(self.spec, self.inputs, want=(name,)), name))
        score_error = self._score_errors[self.spec.lse_names.index(name)]
        unit = math.log(2) if self.spec.lse_base == "2" else 1.0
        nats = np.where(np.isfinite(expected), np.abs(expected) * unit, 0.0)
        exp_error = THRESHOLDS.narrow_exp if self.recipe.storage in NARROW else 0.0
        allowed = THRESHOLDS.lse_scores * score_error + THRESHOLDS.lse_units * U32 * (1 + nats) + exp_error
        return expected, allowed / unit


def lambda_error(spec: Spec, inputs: Inputs, recipe: Recipe) -> Numpy:
    """Bound the error of λ, rounded at every step, the products of its vectors included."""
    ops = ops_for()
    exact = compute_lambda(spec, inputs, ops)
    u = recipe.type_at("lam").u
    off = (2 * u + 8 * U32) * np.abs(exact)
    if spec.lambda_form != "exp":
        return off
    q1, k1, q2, k2 = (inputs[name] for name in VECTORS)
    for q, k in ((q1, k1), (q2, k2)):
        power, size = np.exp(np.sum(q * k, axis=-1)), np.sum(np.abs(q * k), axis=-1)
        off = off + (power * (2 * u + (u + (q.shape[-1] + 4) * U32) * size + 8 * U32)).reshape(exact.shape)
    start = lambda_init(spec, ops)
    return off + 2 * u * abs(start) + lambda_init_error(start)


@BLAS.limited(1)  # its threads spin between small products
def budget(
    spec: Spec | str, inputs: Mapping[str, Any], recipe: Recipe | str, *, members: int = 6, dout: Any = None
) -> Budget:
    """Evaluate a recipe in several valid orders and derive the error budget of a correct kernel.

    Equation:
        E_r = max over orders of rms(order − truth) in row r, at least 0.29 u rms(truth). Rows of gradients also get the
        standard deviation over orders. A sum of terms may differ by 3 u ‖terms‖₂ + 2 ulp, or by 3 times the largest
        error of an order; the gradients of λ's logits and vectors also by `sigmoid_error` and `exponential_error`

    Args:
        spec: as in `truth`.
        inputs: as in `refdiff.oracle.inputs`, rounded to the storage type first (`Recipe.storage`).
        members: the number of orders beside the random ones, 2 to 8.
        dout: the gradient of the output; with it gradients can be judged too.

    Raises:
        ValueError: the inputs do not fit `spec`, or `members` is not 2 to 8.
        TypeError: `spec` is neither a Spec nor a name, `inputs` is not a mapping, or an input is not an array.
    """
    spec = resolve_spec(spec, inputs)
    recipe = Recipe.of(recipe)
    exact = quantise(inputs, recipe)
    if dout is None and is_large(spec, exact) and (sampled := _sampled_budget(spec, exact, recipe, members)):
        return sampled
    recorder = TermRecorder(spec, exact)
    if dout is not None:
        dout = round_to(read_output(dout, "dout").astype(np.float64), recipe.storage)
    right = truth(spec, exact, dout=dout, want=("out",), ops=recorder.ops())
    runs = run_members(spec, exact, recipe, members, dout)
    tensors = {"out": _out_budget(spec, exact, recipe, np.asarray(right.out), [run["out"] for run in runs])}
    sums = {}
    axes = LAYER_ROW_AXES if is_layer(exact) else ROW_AXES
    norms = term_norms(spec, project(spec, exact, ops_for()), recorder, right.grads) if right.grads else {}
    any_order, of_lambda = order_errors(recorder, right.grads, recipe), lambda_errors(exact, right.grads, recipe)
    for of, y in right.grads.items():
        name = f"d{of}"
        found = [run[name] for run in runs]
        if name in axes or name.endswith("_proj.weight"):
            factor = exact.get({"q": "k", "k": "q"}.get(of, ""))
            flushed_times = 0.0 if factor is None else float(np.max(np.abs(factor), initial=0.0))
            tensors[name] = _row_budget(name, y, found, recipe, axes.get(name, "row"), None, flushed_times)
        else:
            allowed = _sum_allowance(y, found, norms.get(of, np.asarray(0.0)), any_order.get(of, 0.0), recipe)
            sums[name] = (y, allowed + of_lambda.get(of, 0.0))
    return Budget(spec, exact, recipe, members, tensors, sums)


def _out_budget(spec: Spec, inputs: Inputs, recipe: Recipe, y: Numpy, runs: list[Numpy]) -> RowBudget:
    """Return the budget of an output: of a core with E_r of at least `least_row_error`."""
    if is_layer(inputs):
        return _row_budget("out", y, runs, recipe, LAYER_ROW_AXES["out"])
    divisor = _norm_weight(spec, inputs)
    found = _row_budget("out", y, runs, recipe, ROW_AXES["out"], divisor)
    if spec.padded_queries != "computed":
        return found
    least = least_row_error(spec, inputs, recipe, y, found.rows)
    return replace(found, rows=np.maximum(found.rows, least))


def _sampled_budget(spec: Spec, inputs: Inputs, recipe: Recipe, members: int) -> Budget | None:
    """Return the budget of a large output from a sample of queries (`row_sample`); None if all queries are needed."""
    y, sizes = measure_rows(spec, inputs, recipe)
    with np.errstate(over="ignore", invalid="ignore"):
        estimate = sizes.row_error(y)
        queries = sampled_queries(sizes, estimate, y)
    if len(queries) == y.shape[2]:
        return None
    small_spec, small_inputs = select_queries(spec, inputs, queries)
    runs = [run["out"] for run in run_members(small_spec, small_inputs, recipe, members, None)]
    sampled = _out_budget(small_spec, small_inputs, recipe, y[:, :, queries], runs)
    known = scale_estimates(estimate, queries, sampled.rows, ~sampled.doubtful)
    if known is None:
        return None
    floor, _ = _floor(y, recipe)
    found = replace(
        sampled,
        expected=y,
        rows=np.maximum(known, floor),
        doubtful=_fill_sampled(sampled.doubtful, queries, np.zeros(known.shape, dtype=np.bool_)),
        factor=sampled.factor and sampled.factor.expand(queries, y.shape[2]),
        sampled=queries,
    )
    return Budget(spec, inputs, recipe, members, {"out": found}, sample=RowSample(queries, sizes.reach))


def _fill_sampled(sampled: Numpy, queries: Numpy, others: Numpy) -> Numpy:
    others[..., queries] = sampled
    return others


def _norm_weight(spec: Spec, inputs: Inputs) -> Numpy | float | None:
    """Return the weight of the norm that makes the rows of a core's output; None without a norm, or if it has zeros."""
    if not has_plain_norm(spec) or spec.gate != "none":
        return None
    weight = inputs.get("norm_weight", 1.0)
    return weight if np.all(weight) else None


def _row_budget(
    name: str,
    y: Numpy,
    runs: list[Numpy],
    recipe: Recipe,
    axes: str,
    divisor: Numpy | float | None = None,
    flushed_times: float = 0.0,
) -> RowBudget:
    floor, lost_below = _floor(y, recipe, flushed_times)
    errors, largest_slope, doubtful = errors_of_runs(y, runs)
    rows = np.maximum(floor, np.max(errors, axis=0))
    if name != "out":
        # the error of one number, ⟨dout, out⟩, affects a whole row of a gradient
        rows = np.maximum(rows, np.max(errors, axis=0) + scatter_allowance(recipe) * np.std(errors, axis=0))
    relative = "row" if name == "out" else "tensor"
    factor = common_factor(y, runs, ~doubtful, recipe.storage, divisor, lost_below, rounding_groups(len(runs)))
    return RowBudget(y, rows, largest_slope, recipe.storage, axes, doubtful, relative, factor)


def _floor(y: Numpy, recipe: Recipe, flushed_times: float = 0.0) -> tuple[Numpy, float]:
    """Return the least E_r of each row, and the size below which a number may become 0.

    Args:
        flushed_times: the largest factor of the gradients of scores in a sum, such as that of a key in dq.
    """
    finite = np.isfinite(y)
    size = root_mean_square(np.where(finite, y, 0.0))
    # numbers below the type's range may become 0; so may weights on a processor that flushes, one for each row, times
    # the size of the largest row, and the gradients of scores, times what they are multiplied by
    flushed = SMALLEST_NORMAL * max(1.0, size.size * max(float(np.max(size, initial=0.0)), flushed_times))
    lost_below = max(recipe.type_at("storage").tiny, flushed)
    return row_floor(size, recipe) + np.where(np.any(finite & (y != 0), axis=-1), lost_below, 0.0), lost_below


def _sum_allowance(y: Numpy, runs: list[Numpy], norm: Numpy, order_error: float, recipe: Recipe) -> Numpy:
    """Return the allowed error of a sum with this norm of its terms.

    Args:
        order_error: as a share of the norm, if kernels may add the terms in any order: the ensemble uses one.
    """
    off = np.max([np.where(np.isfinite(run), np.abs(run - y), np.inf) for run in runs], axis=0)
    # all runs may be near one element by chance: it may have the typical error of elements, relative to their terms
    relative = np.divide(off, norm, out=np.zeros_like(off), where=np.broadcast_to(norm > 0, off.shape))
    typical = math.sqrt(float(np.mean(relative**2))) if relative.size and np.isfinite(relative).all() else 0.0
    off = np.maximum(off, typical * norm)
    storage_error = THRESHOLDS.sum_ulps * ulp(y, recipe.storage)
    term_allowance = (THRESHOLDS.sum_terms * recipe.u + order_error) * norm + storage_error
    allowed: Numpy = np.maximum(term_allowance, THRESHOLDS.sum_members * off)
    return allowed
