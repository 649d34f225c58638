"""What a kernel of a recipe may be off by, row by row, on these inputs; and the verdict on one that is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.gradient_terms import TermRecorder, exponential_error, sigmoid_error, term_norms
from refdiff.oracle.budget.hard_bound import bounds, lambda_error
from refdiff.oracle.budget.row_sample import (
    RowSample,
    RowSizeRecorder,
    is_dense,
    is_large,
    least_row_error,
    sampled_queries,
    scale_estimates,
    select_queries,
)
from refdiff.oracle.budget.statistics import (
    LIMITS,
    Limits,
    RowBudget,
    common_factor,
    errors_of_runs,
    root_mean_square,
    row_floor,
)
from refdiff.oracle.inputs import VECTORS, is_layer
from refdiff.oracle.inputs.outputs import read_output
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.inputs.validation import nonfinite_warnings
from refdiff.oracle.printing import array_summary
from refdiff.oracle.rounding import FORMATS, round_to, ulp
from refdiff.oracle.rounding.ensemble import quantise, rounding_groups, run_members, score_errors
from refdiff.oracle.rounding.evaluation_order import SMALLEST_NORMAL, sum_error
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.resolve import resolve_spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth import truth
from refdiff.oracle.truth.attention_operands import padded_queries
from refdiff.oracle.truth.forward import has_plain_norm, project
from refdiff.oracle.verdict.judge import judge_lse, judge_rows, judge_sums, other_conventions
from refdiff.oracle.verdict.verdict import TensorVerdict, Verdict

Numpy = np.ndarray[Any, Any]
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
"""What has a row for each query: of padding they may be anything where the spec says so."""
LAYER_ROW_AXES = {"out": "b t", "dx": "b t", "dx_past": "b t"}


@dataclass(frozen=True)
class Budget:
    """The truth of a case and what a kernel of the recipe may differ from it by.

    tensors: for the output, and gradients of tensors, by rows. sums: (truth, allowed) for gradients that are sums of
    many terms. Names of gradients are d and the input's name: dq, dlambda_q1, dnorm_weight. sample: the queries
    that were run in all orders, where these are not all.
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
        """E_r of each tensor that is judged by rows: its shape without the last axis."""
        return {name: b.rows for name, b in self.tensors.items()}

    @property
    def bounds(self) -> dict[str, Numpy]:
        """B_r of each tensor that is judged by rows; ∞ where none is known."""
        return {name: b.bounds for name, b in self.tensors.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """What can be judged."""
        lambda_ = () if self.spec.is_plain else ("lambda_full",)
        return (*self.tensors, *self.spec.lse_names, *lambda_, *self.sums)

    def judge(self, actual: Any, limits: Limits = LIMITS) -> Verdict:
        """Judge an output, or a mapping from names to arrays.

        Raises:
            ValueError: nothing to judge, an unknown name, a gradient without `dout`, another shape.
            TypeError: something is no array, or a tuple or list of arrays in place of a mapping.
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
            tensors = {name: self._judge_tensor(name, x, limits) for name, x in arrays.items()}
        return Verdict(tensors, self.recipe.name, nonfinite_warnings(self.inputs))

    def _judge_tensor(self, name: str, given: Numpy, limits: Limits) -> TensorVerdict:
        actual, by_rows = given.astype(np.float64), self.tensors.get(name)
        expected, allowed = self.absolute(name) if by_rows is None else (by_rows.expected, by_rows.rows)
        if actual.shape == expected.shape and (padded := self.padded(name)) is not None:
            actual = np.where(padded, expected, actual)
        if by_rows is not None:
            return judge_rows(name, actual, by_rows, limits)
        if name not in self.spec.lse_names:
            return judge_sums(name, actual, expected, allowed)
        if given.dtype.name in NARROW:  # as jax gives them; others have float32 here, whatever they store
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
        """Which rows of a tensor are of queries that are padding and may be anything, broadcastable to it; or None."""
        found = padded_queries(self.spec, self.inputs) if name in QUERY_TENSORS else None
        if found is None or (name == "lambda_full" and self.spec.lambda_form != "sigmoid"):
            return None
        if name in (*self.spec.lse_names, "lambda_full"):
            return found[:, None]
        return found[..., None] if is_layer(self.inputs) or name == "dlambda_logits" else found[:, None, :, None]

    def absolute(self, name: str) -> tuple[Numpy, Numpy]:
        """The truth of λ, a log-sum-exp or a sum, and what each of its numbers may be off by."""
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
        some, part = select_queries(self.spec, self.inputs, self.sample.queries)
        first, second = score_errors(some, part, self.recipe, self.members)
        return self.sample.extend(first), self.sample.extend(second)

    def _lse(self, name: str) -> tuple[Numpy, Numpy]:
        expected = np.asarray(getattr(truth(self.spec, self.inputs, want=(name,)), name))
        of_scores = self._score_errors[self.spec.lse_names.index(name)]
        unit = math.log(2) if self.spec.lse_base == "2" else 1.0
        nats = np.where(np.isfinite(expected), np.abs(expected) * unit, 0.0)
        of_exp = THRESHOLDS.narrow_exp if self.recipe.storage in NARROW else 0.0
        allowed = 1.5 * of_scores + 8 * FORMATS["float32"].u * (1 + nats) + of_exp
        return expected, allowed / unit


def budget(
    spec: Spec | str, inputs: Mapping[str, Any], recipe: Recipe | str, *, members: int = 6, dout: Any = None
) -> Budget:
    """Evaluate a recipe in several valid orders, and take from it what a correct kernel may be off by.

    Equation:
        E_r = max over members of rms(member − truth) in row r, at least 0.29 u rms(truth); in a gradient more by the
        standard deviation over members. For a sum of terms 3 u ‖terms‖₂ + 2 ulp, or 3 times a member's largest error;
        for the gradients of λ's logits and vectors more by `sigmoid_error` and `exponential_error`

    Args:
        spec: as in `truth`.
        inputs: as `refdiff.oracle.inputs` has them; q, k and v are rounded to the storage type first.
        members: how many orders, 2 to 8.
        dout: the gradient of the output; with it gradients can be judged too.

    Raises:
        ValueError: inputs that do not fit `spec`, a number of members that there is not.
        TypeError: `spec` is no Spec or name, `inputs` no mapping, or something in it no array.
    """
    spec = resolve_spec(spec, inputs)
    recipe = Recipe.of(recipe)
    exact = quantise(inputs, recipe)
    if dout is None and is_large(spec, exact) and (sampled := _sampled_budget(spec, exact, recipe, members)):
        return sampled
    recorder = TermRecorder(spec)
    if dout is not None:
        dout = round_to(read_output(dout, "dout").astype(np.float64), recipe.storage)
    right = truth(spec, exact, dout=dout, want=("out",), ops=recorder.ops())
    expected = {"out": np.asarray(right.out), **{f"d{name}": g for name, g in right.grads.items()}}
    runs = run_members(spec, exact, recipe, members, dout)
    rows = LAYER_ROW_AXES if is_layer(exact) else ROW_AXES
    tensors, sums = {}, {}
    norms = term_norms(spec, project(spec, exact, ops_for()), recorder, right.grads) if right.grads else {}
    for name, y in expected.items():
        found = [run[name] for run in runs]
        if name in rows or "_proj." in name:
            hard = None
            if name == "out" and not is_layer(exact):
                hard = bounds(spec, exact, recipe)
            divisor = _norm_weight(spec, exact) if name == "out" else None
            tensors[name] = _row_budget(name, y, found, hard, recipe, rows.get(name, "row"), divisor)
            if name == "out" and is_dense(spec, exact):
                tensors[name] = _raise_lucky_rows(tensors[name], spec, exact, recipe)
        else:
            _, count = recorder.token_sums.get(name[1:], (None, 0))
            sums[name] = (y, _sum_allowance(y, found, norms.get(name[1:], np.asarray(0.0)), count, recipe))
    if "dlambda_logits" in sums:
        y, allowed = sums["dlambda_logits"]
        off = sigmoid_error(exact["lambda_logits"], right.grads["lambda_full"], recipe)
        sums["dlambda_logits"] = (y, allowed + off)
    for q, k in (VECTORS[:2], VECTORS[2:]):
        for name in {f"d{q}", f"d{k}"} & sums.keys():
            y, allowed = sums[name]
            sums[name] = (y, allowed + exponential_error(exact[q], exact[k], y))
    return Budget(spec, exact, recipe, members, tensors, sums)


def _raise_lucky_rows(found: RowBudget, spec: Spec, inputs: Inputs, recipe: Recipe) -> RowBudget:
    """Raise E_r of an output where it is small by luck (`least_row_error`)."""
    recorder = RowSizeRecorder()
    truth(spec, inputs, want=("out",), ops=recorder.ops())
    least = least_row_error(spec, inputs, recipe, recorder.sizes(), found.expected, found.rows)
    return replace(found, rows=np.maximum(found.rows, np.minimum(least, found.bounds)))


def _sampled_budget(spec: Spec, inputs: Inputs, recipe: Recipe, members: int) -> Budget | None:
    """The budget of a large output, from all orders of some queries (`row_sample`); None where it takes all of them."""
    recorder = RowSizeRecorder()
    y = np.asarray(truth(spec, inputs, want=("out",), ops=recorder.ops()).out)
    sizes = recorder.sizes()
    with np.errstate(over="ignore", invalid="ignore"):
        estimate = sizes.row_error(spec, inputs, recipe, y)
        rows = sampled_queries(spec, inputs, recipe, sizes, estimate, y)
    if len(rows) == y.shape[2]:
        return None
    some, part = select_queries(spec, inputs, rows)
    runs = [run["out"] for run in run_members(some, part, recipe, members, None)]
    hard, divisor = bounds(some, part, recipe), _norm_weight(spec, inputs)
    of_rows = _row_budget("out", y[:, :, rows], runs, hard, recipe, ROW_AXES["out"], divisor)
    of_rows = _raise_lucky_rows(of_rows, some, part, recipe)
    known = scale_estimates(estimate, rows, of_rows.rows, ~of_rows.doubtful)
    if known is None:
        return None
    floor, _ = _floor(y, recipe)
    found = replace(
        of_rows,
        expected=y,
        rows=np.maximum(known, floor),
        bounds=_fill_sampled(of_rows.bounds, rows, np.full(known.shape, np.inf)),
        doubtful=_fill_sampled(of_rows.doubtful, rows, np.zeros(known.shape, dtype=np.bool_)),
        factor=of_rows.factor and of_rows.factor.at(rows, y.shape[2]),
        sampled=rows,
    )
    return Budget(spec, inputs, recipe, members, {"out": found}, sample=RowSample(rows, sizes.reach))


def _fill_sampled(some: Numpy, queries: Numpy, others: Numpy) -> Numpy:
    others[..., queries] = some
    return others


def _norm_weight(spec: Spec, inputs: Inputs) -> Numpy | float | None:
    """What a norm that makes the rows of the output multiplies them by; None where there is none, or by zeros."""
    if is_layer(inputs) or not has_plain_norm(spec) or spec.gate != "none":
        return None
    weight = inputs.get("norm_weight", 1.0)
    return weight if np.all(weight) else None


def _row_budget(
    name: str,
    y: Numpy,
    runs: list[Numpy],
    hard: Numpy | None,
    recipe: Recipe,
    axes: str,
    divisor: Numpy | float | None = None,
) -> RowBudget:
    floor, lost_below = _floor(y, recipe)
    errors, largest_slope, doubtful = errors_of_runs(y, runs)
    rows = np.maximum(floor, np.max(errors, axis=0))
    if name != "out":
        # one number, ⟨dout, out⟩, moves a whole row of a gradient: members scatter, and may all be near by luck; the
        # more where sums are kept in 16 bits (a held-out order of bfloat16 was at 4.03 of 4 with one deviation)
        deviations = 1 if recipe.accumulate == "float32" else 2
        rows = np.maximum(rows, np.max(errors, axis=0) + deviations * np.std(errors, axis=0))
    # a row of next to nothing may be lost whole, with the weights that a processor takes for zero
    hard = np.full(rows.shape, np.inf) if hard is None else np.maximum(hard, floor)
    if np.any((rows > hard) & ~doubtful):
        at = tuple(int(i) for i in np.argwhere((rows > hard) & ~doubtful)[0])
        raise ArithmeticError(
            f"a valid order is off by {rows[at]:.3g} in row {at} of {name}, beyond the hard bound {hard[at]:.3g}: "
            "this is a mistake of refdiff; please report it with the inputs"
        )
    relative = "row" if name == "out" else "tensor"
    factor = common_factor(y, runs, ~doubtful, recipe.storage, divisor, lost_below, rounding_groups(len(runs)))
    return RowBudget(y, rows, hard, largest_slope, recipe.storage, axes, doubtful, relative, factor)


def _floor(y: Numpy, recipe: Recipe) -> tuple[Numpy, float]:
    """The least E_r of each row, and what of a number may be lost."""
    finite = np.isfinite(y)
    size = root_mean_square(np.where(finite, y, 0.0))
    # what is below the type's range may be lost, and so may the weights that a processor which flushes takes for zero,
    # one for each row, with all that the largest rows are multiplied by
    flushed = SMALLEST_NORMAL * max(1.0, size.size * float(np.max(size, initial=0.0)))
    lost_below = max(FORMATS[recipe.storage].tiny, flushed)
    return row_floor(size, recipe) + np.where(np.any(finite & (y != 0), axis=-1), lost_below, 0.0), lost_below


def _sum_allowance(y: Numpy, runs: list[Numpy], norm: Numpy, count: int, recipe: Recipe) -> Numpy:
    """What a sum may be off by; with `count` terms that kernels add in any order, and members in one."""
    off = np.max([np.where(np.isfinite(run), np.abs(run - y), np.inf) for run in runs], axis=0)
    of_order = THRESHOLDS.sum_order * sum_error(count, recipe.accumulate) if count else 0.0
    by_terms = (THRESHOLDS.sum_terms * recipe.u + of_order) * norm + 2 * ulp(y, recipe.storage)
    allowed: Numpy = np.maximum(by_terms, THRESHOLDS.sum_members * off)
    return allowed
