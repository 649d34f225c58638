"""Judge outputs against a budget: by the statistics of rows; log-sum-exps and sums of many terms by absolute bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.statistics import (
    RowBudget,
    Statistic,
    errors,
    largest,
    root_mean_square,
    row_allowance,
    safe_ratio,
    statistics,
    uncertain_share,
)
from refdiff.oracle.inputs import axes_of
from refdiff.oracle.inputs.outputs import read_output
from refdiff.oracle.inputs.sequences import Numpy
from refdiff.oracle.inputs.validation import layout_hint, nonfinite_warnings
from refdiff.oracle.rounding import FORMATS, NARROW, round_to
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import lambda_init
from refdiff.oracle.verdict.region_format import find_box, format_rows
from refdiff.oracle.verdict.verdict import FAIL, INCONCLUSIVE, PASS, TensorVerdict, Verdict

if TYPE_CHECKING:
    from refdiff.oracle.budget.budget import Budget

DESCRIPTIONS = {
    "bulk": "all rows together",
    "slope": "the rows as a whole are too large or too small",
}


def judge(budget: Budget, actual: Any) -> Verdict:
    """Judge an output, or a mapping from names to arrays.

    Raises:
        ValueError: there is nothing to judge, a name is unknown, a shape is wrong, or a gradient lacks `dout`.
        TypeError: something is not an array, or a tuple or list of arrays is given in place of a mapping.
    """
    given = dict(actual) if isinstance(actual, Mapping) else {"out": actual}
    if not given:
        raise ValueError(f"nothing to judge: give an array, or a mapping with {', '.join(budget.names)}")
    for name in given:
        if name not in budget.names:
            hint = "; gradients need dout=" if name.startswith("d") and len(budget.tensors) == 1 else ""
            hint = " (bias has no gradient here; leave it out)" if name == "dbias" else hint
            raise ValueError(f"{name!r} cannot be judged{hint}: there are {', '.join(budget.names)}")
    with np.errstate(over="ignore", invalid="ignore"):
        arrays = {name: read_output(x, name) for name, x in given.items()}
        tensors = {name: _judge_tensor(budget, name, x) for name, x in arrays.items()}
        again = _judge_unscaled(budget, arrays, tensors)
    notes = nonfinite_warnings(budget.inputs)
    if again:
        factor = budget.spec.out_scale.replace("lambda_init", "λ_init")
        notes += (
            f"{factor} is rounded to {budget.recipe.o} in {', '.join(again)}, as by a product of a number and an array "
            "in JAX and MLX",
        )
    return Verdict({**tensors, **again}, budget.recipe.name, notes)


def _judge_unscaled(
    budget: Budget, arrays: Mapping[str, Numpy], verdicts: Mapping[str, TensorVerdict]
) -> dict[str, TensorVerdict]:
    """Return the verdicts on failing tensors that do not fail if 1 − λ_init is rounded to 16 bits, the recipe's `o`.

    In JAX and MLX the product of a Python number and a 16-bit array rounds the number; in torch it does not. The
    rounding scales a whole tensor, so the tensor is judged divided by it: no limit becomes looser. It must explain at
    least half of a slope that failed.
    """
    recipe, scale = budget.recipe, budget.spec.out_scale
    if recipe.o in (None, "float32") or "lambda_init" not in scale:
        return {}
    start = lambda_init(budget.spec, ops_for())
    exact = start if scale == "lambda_init" else 1 - start
    ratio = float(round_to(np.asarray(exact), str(recipe.o))) / exact if exact else 1.0
    found = {}
    for name, before in verdicts.items():
        if before.status != FAIL or name in (*budget.spec.lse_names, "lambda_full"):
            continue
        after = _judge_tensor(budget, name, arrays[name].astype(np.float64) / ratio)
        left = {s.name: THRESHOLDS.better_ratio * s.value for s in after.statistics}
        slopes = [s for s in before.statistics if s.name == "slope" and not s.holds]
        if after.status != FAIL and all(left[s.name] <= s.value for s in slopes):
            found[name] = after
    return found


def _judge_tensor(budget: Budget, name: str, given: Numpy) -> TensorVerdict:
    actual, spec, row_budget = given.astype(np.float64), budget.spec, budget.tensors.get(name)
    expected, allowed = budget.absolute(name) if row_budget is None else (row_budget.expected, row_budget.rows)
    if actual.shape == expected.shape and (padded := budget.padded(name)) is not None:
        actual = np.where(padded, expected, actual)
    if row_budget is not None:
        return judge_rows(name, actual, row_budget)
    if name not in spec.lse_names:
        return judge_numbers(name, actual, expected, allowed)
    if given.dtype.name in NARROW:  # JAX stores log-sum-exps in 16 bits, other libraries in float32
        unit = FORMATS[given.dtype.name].u
        allowed = allowed + 2 * unit * np.where(np.isfinite(expected), np.abs(expected), 0.0)
    return judge_numbers(name, actual, expected, allowed, spec.lse_base)


def judge_rows(name: str, actual: Numpy, budget: RowBudget) -> TensorVerdict:
    """Judge a tensor by the statistics of its rows.

    Shapes:
        actual as `budget.expected`

    Raises:
        ValueError: `actual` has another shape.
    """
    check_shape(name, actual.shape, budget.expected.shape)
    found = statistics(actual, budget)
    broken = {s.name: s for s in found if not s.holds}
    reasons = []
    if broken:
        off = errors(actual, budget)
        wrong = root_mean_square(off) > row_allowance(budget)
        # a few wrong rows explain what is wrong with all rows together
        local = "row" in broken and np.mean(wrong) < THRESHOLDS.local_share
        shown = [s for s in broken.values() if not (local and s.name in ("bulk", "slope"))]
        reasons = [_reason(s, actual, off, budget, wrong) for s in shown]
    share, notes = uncertain_share(budget), []
    if share > budget.limits.share:
        overflow = float(np.mean(budget.doubtful))
        differ = f"differ from the truth by more than {budget.limits.noise:.0%} of it"
        if overflow:
            differ = "overflow" if overflow == share else f"{differ}, or overflow,"
        notes.append(
            f"correct kernels {differ} in {share:.0%} of the rows ({budget.limits.share:.0%} may be): "
            "these inputs cannot tell right from wrong in this recipe"
        )
    if actual.size and np.isnan(budget.expected).all():
        notes.append("the truth is NaN throughout: there was no number to compare")
    return _verdict(name, found, reasons, notes)


def _verdict(name: str, found: Sequence[Statistic], reasons: list[str], notes: list[str]) -> TensorVerdict:
    status = FAIL if reasons else INCONCLUSIVE if notes else PASS
    return TensorVerdict(name, status, tuple(found), tuple(reasons), tuple(notes))


def check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise ValueError if the shapes differ; the message has the likely cause."""
    if shape != expected:
        raise ValueError(f"{name}: got shape {shape}, expected {expected}{_shape_hint(name, shape, expected)}")


def _shape_hint(name: str, shape: tuple[int, ...], right: tuple[int, ...]) -> str:
    """Return the likely cause of a wrong shape and its fix, or "" if the sizes differ."""
    if math.prod(shape) != math.prod(right):
        return ""
    if name == "out" and len(right) == 3 and len(shape) == 4:
        return ": the size is right, but a layer's out is (B, T, D), the output of o_proj"
    axes = ("B", "T", "D") if name == "out" and len(right) == 3 else tuple(axes_of(name).split())
    axes = axes if len(axes) == len(right) else tuple("ABCDEF"[: len(right)])
    if found := layout_hint(shape, axes, dict(zip(axes, right, strict=True))):
        return found
    if [n for n in shape if n != 1] == [n for n in right if n != 1]:
        return f": .reshape{right} puts it right"
    must = f"; it must be ({', '.join(axes)})" if axes[0] in ("B", "P") else ""
    return f": the size is right, but the layout is another{must}"


def place(axes: str, at: tuple[int, ...]) -> str:
    """Format an index: (b 0, head 3, t 95)."""
    names = ["head" if a in "hHKV" else a.lower() for a in axes.split()]
    names += ["i"] * (len(at) - len(names))
    return "(" + ", ".join(f"{n} {i}" for n, i in zip(names, at, strict=False)) + ")"


def _count_wrong_rows(wrong: Numpy, axes: str) -> str:
    """Say how many rows are wrong, and which heads, tokens or sequences they are confined to."""
    count, every = int(wrong.sum()), np.ones_like(wrong)
    where = format_rows(wrong, every, axes.split()) if count > 1 and find_box(wrong, every) else ""
    extent = f", all in {where}" if where and not where.startswith(f"{count} of ") else ""
    return f"{count} of {wrong.size} rows {'is' if count == 1 else 'are'} wrong{extent}"


def _reason(s: Statistic, actual: Numpy, off: Numpy, budget: RowBudget, wrong: Numpy) -> str:
    if s.name == "masks":
        many = "1 number is" if s.value == 1 else f"{int(s.value)} numbers are"
        at = place(budget.axes, s.at or ())
        return f"{many} NaN or infinite in other places than in the truth: {s.what} at {at}"
    if s.name == "row" and s.at is not None:
        error, size = (float(root_mean_square(x[s.at][None])[0]) for x in (off, budget.expected))
        where = f"row {place(budget.axes, s.at)} is off by {error:.3g} rms, allowed {error * s.limit / s.value:.3g}"
        return f"row: {_count_wrong_rows(wrong, budget.axes)}; {where}, of a row of {size:.3g}"
    return f"{s.name}: {DESCRIPTIONS[s.name]}, {s.what} is {s.value:.4g}, allowed {s.limit:.4g}"


def _format_distinct(actual: float, expected: float) -> tuple[str, str]:
    """Format two numbers with six digits, or with as many more as show two digits of their difference."""
    apart, size = abs(actual - expected), max(abs(actual), abs(expected))
    digits = 6
    if math.isfinite(size) and apart > 0:
        digits = min(17, max(6, 2 + math.floor(math.log10(size)) - math.floor(math.log10(apart))))
    return f"{actual:.{digits}g}", f"{expected:.{digits}g}"


def judge_numbers(
    name: str, actual: Numpy, expected: Numpy, allowed: Numpy, lse_base: str | None = None
) -> TensorVerdict:
    """Judge λ, a log-sum-exp or a sum of many terms, such as ∂L/∂λ, by an absolute bound for each number.

    A bound relative to the sum would be too tight, because the terms cancel.

    Args:
        lse_base: of a log-sum-exp, its base: a wrong one that is right to the other base is said to be.

    Shapes:
        actual and expected the same, a log-sum-exp (B, h, T); allowed broadcastable to them
    """
    check_shape(name, actual.shape, expected.shape)
    is_lse = name.startswith("lse")
    allowed = np.broadcast_to(allowed, expected.shape)
    known = np.isfinite(allowed)
    ratio = np.where(known, _error_ratio(actual, expected, allowed), 0.0)
    what = "|e| / (logit error + u |lse|)" if is_lse else "|e| / (3 errors of orders + 2 ulp)"
    s = largest("lse" if is_lse else "sum", ratio, 1.0, what)
    reasons, notes = [], []
    if not s.holds:
        at = s.at or ()
        index = place("b h t", at) if is_lse else f"element {', '.join(map(str, at))}" if at else "it"
        mine, right = _format_distinct(float(actual[at]), float(expected[at]))
        reasons.append(f"{index} is {mine}, expected {right} ± {float(allowed[at]):.2g}")
        if lse_base is not None:
            base, other = other_base(lse_base, expected)
            size = np.maximum(1.0, np.where(np.isfinite(other), np.abs(other), 0.0))
            if np.all(_error_ratio(actual, other, THRESHOLDS.lse_convention * allowed * size) <= 1):
                notes.append(f"it is to base {base}, the spec's is {lse_base}")
    if not known.all():
        notes.append(
            f"correct kernels overflow in {int(np.sum(~known))} of {known.size} numbers, which were not judged"
        )
    elif not is_lse and np.any(expected) and np.all(np.abs(expected) <= allowed):
        notes.append("it is no larger than the error of correct kernels may be: zeros would pass too")
    return _verdict(name, (s,), reasons, notes)


def other_base(lse_base: str, sums: Numpy) -> tuple[str, Numpy]:
    """Return the other base of log-sum-exps, "2" or "e", and what they are to it."""
    return ("2", sums / math.log(2)) if lse_base == "e" else ("e", sums * math.log(2))


def _error_ratio(actual: Numpy, expected: Numpy, allowed: Numpy) -> Numpy:
    """|actual − expected| / allowed; where either is NaN or infinite, 0 if they are the same, else ∞."""
    both = np.isfinite(actual) & np.isfinite(expected)
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    error = np.where(both, np.abs(np.where(both, actual, 0.0) - np.where(both, expected, 0.0)), 0.0)
    return np.where(both, safe_ratio(error, allowed), np.where(same, 0.0, np.inf))
