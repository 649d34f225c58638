"""Judge outputs against a budget: by the statistics of rows; log-sum-exps and sums of many terms by absolute bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.budget import NARROW, Budget
from refdiff.oracle.budget.statistics import (
    RowBudget,
    Statistic,
    element_allowance,
    errors,
    largest,
    root_mean_square,
    row_allowance,
    safe_ratio,
    slope,
    statistics,
    uncertain_share,
)
from refdiff.oracle.inputs import axes_of
from refdiff.oracle.inputs.outputs import read_output
from refdiff.oracle.inputs.sequences import Inputs, Numpy, sequences
from refdiff.oracle.inputs.validation import layout_hint, nonfinite_warnings
from refdiff.oracle.rounding import FORMATS
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import attention_mask, attention_operands, log_sum_exp, scores
from refdiff.oracle.truth.forward import project
from refdiff.oracle.verdict.rounded_factor import allow_rounded_factor
from refdiff.oracle.verdict.verdict import FAIL, INCONCLUSIVE, PASS, TensorVerdict, Verdict

DESCRIPTIONS = {
    "bulk": "a small error in most rows",
    "element": "one number is wrong",
    "slope": "a factor: all rows are too large or too small by the same part",
    "factor": "a factor: all rows are too large or too small by the same part",
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
        tensors, notes = allow_rounded_factor(
            budget.spec, budget.recipe, arrays, tensors, lambda name, x: _judge_tensor(budget, name, x)
        )
    return Verdict(tensors, budget.recipe.name, (*nonfinite_warnings(budget.inputs), *notes))


def _judge_tensor(budget: Budget, name: str, given: Numpy) -> TensorVerdict:
    actual, spec, row_budget = given.astype(np.float64), budget.spec, budget.tensors.get(name)
    expected, allowed = budget.absolute(name) if row_budget is None else (row_budget.expected, row_budget.rows)
    if actual.shape == expected.shape and (padded := budget.padded(name)) is not None:
        actual = np.where(padded, expected, actual)
    if row_budget is not None:
        return judge_rows(name, actual, row_budget)
    if name not in spec.lse_names:
        return judge_sums(name, actual, expected, allowed)
    if given.dtype.name in NARROW:  # JAX stores log-sum-exps in 16 bits, other libraries in float32
        unit = FORMATS[given.dtype.name].u
        allowed = allowed + 2 * unit * np.where(np.isfinite(expected), np.abs(expected), 0.0)

    def conventions() -> dict[str, Numpy]:
        return other_conventions(spec, project(spec, budget.inputs, ops_for()), name)

    return judge_lse(name, actual, expected, allowed, conventions)


def judge_rows(name: str, actual: Numpy, budget: RowBudget) -> TensorVerdict:
    """Judge a tensor by the statistics of its rows.

    Shapes:
        actual as `budget.expected`

    Raises:
        ValueError: `actual` has another shape.
    """
    check_shape(name, actual.shape, budget.expected.shape)
    found = statistics(actual, budget)
    broken = [s for s in found if not s.holds]
    wrong = _wrong_rows(actual, budget) if broken else np.zeros(budget.rows.shape, dtype=np.bool_)
    reported = [s for s in broken if not _is_implied(s, broken, wrong, actual, budget)] or broken
    reasons = [_reason(s, actual, budget, wrong) for s in reported]
    share = uncertain_share(budget)
    notes = []
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
    names = [{"h": "head", "H": "head", "K": "head", "V": "head"}.get(a, a.lower()) for a in axes.split()]
    names += ["i"] * (len(at) - len(names))
    return "(" + ", ".join(f"{n} {i}" for n, i in zip(names, at, strict=False)) + ")"


def _wrong_rows(actual: Numpy, budget: RowBudget) -> Numpy:
    """Mark the rows whose error is above the limit of a single row."""
    return root_mean_square(errors(actual, budget)) > row_allowance(budget)


def _is_implied(s: Statistic, broken: list[Statistic], wrong: Numpy, actual: Numpy, budget: RowBudget) -> bool:
    """Whether another broken statistic explains this one, so that the verdict need not report it.

    "slope" explains "factor". "row" explains "bulk" if the remaining rows alone are within the bulk limit, and a scale
    ("slope" or "factor") if less than `Thresholds.parallel_share` of the squared error is parallel to the truth.
    """
    if s.name == "factor" and any(other.name == "slope" for other in broken):
        return True
    if s.name not in ("bulk", "slope", "factor") or not any(other.name == "row" for other in broken):
        return False
    off = errors(actual, budget)
    if s.name in ("slope", "factor"):
        size = math.sqrt(float(np.sum(np.where(np.isfinite(budget.expected), budget.expected, 0.0) ** 2)))
        return s.value * size < math.sqrt(THRESHOLDS.parallel_share * float(np.sum(off**2)))
    rest = safe_ratio(root_mean_square(off), budget.rows)[~wrong]
    return float(root_mean_square(rest[None])[0]) <= s.limit


def _is_slope_of_wrong_rows(wrong: Numpy, actual: Numpy, budget: RowBudget) -> bool:
    """Whether the correct rows by themselves show less than `Thresholds.slope_share` of the slope of the whole."""
    y, e = np.where(np.isfinite(budget.expected), budget.expected, 0.0), errors(actual, budget)
    right = ~wrong & (root_mean_square(y) > budget.rows)  # a row of zeros has no slope
    if not wrong.any() or not right.any():
        return False
    unit = float(np.abs(y).max()) or 1.0
    whole, rest = (slope(e[rows] / unit, y[rows] / unit) for rows in (wrong | right, right))
    return abs(rest) < THRESHOLDS.slope_share * abs(whole)


def _count_wrong_rows(wrong: Numpy, axes: str) -> str:
    """Say how many rows are wrong, and which heads, tokens or sequences they are confined to."""
    where = np.argwhere(wrong)
    names = {"b": "sequence", "h": "head", "H": "head", "K": "head", "V": "head", "t": "token", "s": "key"}
    shared = [_index_range(names[a], where[:, n], wrong.shape[n]) for n, a in enumerate(axes.split()) if a in names]
    common = " of ".join(word for word in reversed(shared) if word)
    extent = f", all in {common}" if common and len(where) > 1 else ""
    return f"{len(where)} of {wrong.size} rows {'is' if len(where) == 1 else 'are'} wrong{extent}"


def _index_range(name: str, found: Numpy, size: int) -> str:
    """Format indices that form one contiguous range, "head 3" or "heads 4 to 7"; "" for others and the whole axis."""
    low, high = int(np.min(found, initial=size)), int(np.max(found, initial=0))
    if len(set(found.tolist())) != high - low + 1 or high - low + 1 == size:
        return ""
    return f"{name} {low}" if low == high else f"{name}s {low} to {high}"


def _reason(s: Statistic, actual: Numpy, budget: RowBudget, wrong: Numpy) -> str:
    if s.name == "masks":
        many = "1 number is" if s.value == 1 else f"{int(s.value)} numbers are"
        at = place(budget.axes, s.at or ())
        return f"{many} NaN or infinite in other places than in the truth: {s.what} at {at}"
    description = _count_wrong_rows(wrong, budget.axes) if s.name == "row" else DESCRIPTIONS[s.name]
    if s.name in ("slope", "factor") and _is_slope_of_wrong_rows(wrong, actual, budget):
        description = "a factor: the wrong rows are too large or too small on the whole"
    if s.name == "element" and np.any(wrong):
        description = "the worst number"
    text = f"{s.name}: {description}"
    if s.name != "row":  # of a row the error itself follows
        text += f", {s.what} is {s.value:.4g}, allowed {s.limit:.4g}"
    if s.at is None:
        return text
    row = s.at[: budget.rows.ndim]
    error = float(root_mean_square(errors(actual, budget)[row][None])[0])
    size = float(root_mean_square(budget.expected[row][None])[0])
    if s.name == "element":
        y, a = float(budget.expected[s.at]), float(actual[s.at])
        allowed = s.limit * float(element_allowance(budget, budget.rows[row], np.abs(budget.expected[row]))[s.at[-1]])
        mine, right = _format_distinct(a, y)
        return f"{text}; at {place(budget.axes, s.at)} it is {mine}, the truth {right} ± {allowed:.2g}"
    allowed = error * s.limit / s.value
    where = f"row {place(budget.axes, row)}"
    return f"{text}; {where} is off by {error:.3g} rms, allowed {allowed:.3g}, of a row of {size:.3g}"


def _format_distinct(actual: float, expected: float) -> tuple[str, str]:
    """Format two numbers with six digits, or with as many more as show two digits of their difference."""
    apart, size = abs(actual - expected), max(abs(actual), abs(expected))
    digits = 6
    if math.isfinite(size) and apart > 0:
        digits = min(17, max(6, 2 + math.floor(math.log10(size)) - math.floor(math.log10(apart))))
    return f"{actual:.{digits}g}", f"{expected:.{digits}g}"


def judge_sums(name: str, actual: Numpy, expected: Numpy, allowed: Numpy) -> TensorVerdict:
    """Judge a sum of many terms, such as ∂L/∂λ, by an absolute bound for each element.

    A bound relative to the sum would be too tight, because the terms cancel.

    Shapes:
        actual and expected the same; allowed broadcastable to them
    """
    s, notes = _largest_error(name, actual, expected, allowed, "sum", "|e| / (3 errors of orders + 2 ulp)")
    reasons = []
    if not notes and np.any(expected) and np.all(np.abs(expected) <= allowed):
        notes.append("it is no larger than the error of correct kernels may be: zeros would pass too")
    if not s.holds:
        at = s.at or ()
        bound = float(np.broadcast_to(allowed, expected.shape)[at])
        index = f"element {', '.join(map(str, at))}" if at else "it"
        mine, right = _format_distinct(float(actual[at]), float(expected[at]))
        reasons.append(f"{index} is {mine}, expected {right} ± {bound:.2g}")
    status = FAIL if reasons else INCONCLUSIVE if notes else PASS
    return TensorVerdict(name, status, (s,), tuple(reasons), tuple(notes))


def judge_lse(
    name: str, actual: Numpy, expected: Numpy, allowed: Numpy, conventions: Callable[[], dict[str, Numpy]] | None = None
) -> TensorVerdict:
    """Judge a log-sum-exp by an absolute bound; name the convention, such as base 2, under which a wrong one is right.

    Args:
        conventions: computes the expected value under other conventions, each keyed by its description
            (`other_conventions`).

    Shapes:
        all (B, h, T), in the unit of `expected`
    """
    s, notes = _largest_error(name, actual, expected, allowed, "lse", "|e| / (logit error + u |lse|)")
    if s.holds:
        return TensorVerdict(name, INCONCLUSIVE if notes else PASS, (s,), (), tuple(notes))
    at = s.at or ()
    mine, right = _format_distinct(float(actual[at]), float(expected[at]))
    reason = f"is {mine} at {place('b h t', at)}, the truth {right}"
    hints = []
    for text, other in (conventions() if conventions else {}).items():
        size = np.maximum(1.0, np.where(np.isfinite(other), np.abs(other), 0.0))
        tolerance = THRESHOLDS.lse_convention * allowed * size
        if float(np.max(_error_ratio(actual, other, tolerance), initial=0.0)) <= 1:
            hints.append(text)
            break
    return TensorVerdict(name, FAIL, (s,), (f"{reason} ± {float(allowed[at]):.2g}",), tuple(hints))


def other_conventions(spec: Spec, core: Inputs, name: str) -> dict[str, Numpy]:
    """Compute `lse1`, `lse2` or `lse` under other conventions, each keyed by its description.

    Shapes:
        each (B, h, T), −∞ in a row that attends to no key and no sink
    """
    B, _, T, _ = core["q"].shape
    scale = spec.scale if spec.scale is not None else 1 / math.sqrt(spec.head_dim)
    bases = {"e": 1.0, "2": math.log(2)}
    right = bases.pop(spec.lse_base)
    ((other, unit),) = bases.items()
    conventions = {
        f"it is to base {other}, the spec's is {spec.lse_base}": (1.0, unit, "all"),
        "its scores were not scaled": (1 / scale, right, "all"),
        f"its scores were not scaled, and it is to base {other}": (1 / scale, unit, "all"),
        "it lacks the row's largest score, which was subtracted before the exponentials": (1.0, right, "rest"),
        "it is the row's largest score alone": (1.0, right, "top"),
    }
    if spec.sinks:
        conventions["it leaves the sink out"] = (1.0, right, "keys")
    sums = {text: np.full((B, spec.heads, T), -math.inf) for text in conventions}
    for part in sequences(core):
        if part.is_empty and not spec.sinks:
            continue
        z = scores(attention_operands(spec, part.inputs, ops_for()), spec.lse_names.index(name) + 1)
        attends = np.any(attention_mask(spec, part.inputs), axis=-1) | spec.sinks
        top = np.max(z, axis=-1)
        for text, (factor, base, what) in conventions.items():
            with np.errstate(invalid="ignore"):
                whole = log_sum_exp(z * factor)
                keys = log_sum_exp(z[..., :-1]) if what == "keys" else whole
                value = {"all": whole, "rest": whole - top, "top": top, "keys": keys}[what] / base
            sums[text][part.index] = np.where(attends, value, -math.inf)
    return sums


def _largest_error(
    name: str, actual: Numpy, expected: Numpy, allowed: Numpy, statistic: str, what: str
) -> tuple[Statistic, list[str]]:
    """Return the largest ratio of an error to its allowance, and a note if some allowances are infinite."""
    check_shape(name, actual.shape, expected.shape)
    known = np.isfinite(np.broadcast_to(allowed, expected.shape))
    ratio = np.where(known, _error_ratio(actual, expected, allowed), 0.0)
    overflows = f"correct kernels overflow in {int(np.sum(~known))} of {known.size} numbers, which were not judged"
    return largest(statistic, ratio, 1.0, what), [] if known.all() else [overflows]


def _error_ratio(actual: Numpy, expected: Numpy, allowed: Numpy) -> Numpy:
    """|actual − expected| / allowed; where either is NaN or infinite, 0 if they are the same, else ∞."""
    both = np.isfinite(actual) & np.isfinite(expected)
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    error = np.where(both, np.abs(np.where(both, actual, 0.0) - np.where(both, expected, 0.0)), 0.0)
    return np.where(both, safe_ratio(error, allowed), np.where(same, 0.0, np.inf))
