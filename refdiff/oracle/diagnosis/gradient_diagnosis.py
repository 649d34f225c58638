"""Diagnose wrong gradients of a correct output: their deviation, or the factor by which they are wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from refdiff.oracle.budget.budget import Budget
from refdiff.oracle.budget.statistics import LIMITS, root_mean_square
from refdiff.oracle.deviations.deviation import Deviation, deviated, is_same_output, ops_with
from refdiff.oracle.deviations.listed import deviations
from refdiff.oracle.diagnosis.ranking import Candidate
from refdiff.oracle.diagnosis.region_format import join_words
from refdiff.oracle.diagnosis.targets import Target, explained_share, judge_runs, quick_residual, worst_residual
from refdiff.oracle.inputs import is_layer, kind_of
from refdiff.oracle.inputs.outputs import read_output, to_float64
from refdiff.oracle.mistakes.in_backward import (
    BACKWARD_MISTAKES,
    GENERAL_BACKWARD_MISTAKES,
    lse_mistake,
    query_head_mistake,
    row_sum_mistake,
    softcap_mistake,
    tiled_heads_mistake,
)
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import perturb_lambda_init, run_orders
from refdiff.oracle.rounding.evaluation_order import DRAWS, MEMBERS, Order
from refdiff.oracle.rounding.rounded_layers import rounded_mistakes
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import head_indices
from refdiff.oracle.truth.backward import backward

Numpy = np.ndarray[Any, Any]
Gradients = dict[str, Numpy]
MAX_NAMED = 3
"""The most fitting deviations that are named; of more, only the first and their number."""


@dataclass(frozen=True)
class Answer:
    """The answer for the wrong gradients `names`, with the deviations that reproduce them, if any do."""

    text: str
    names: tuple[str, ...]
    candidates: tuple[Candidate, ...] = ()


def diagnose_gradients(
    spec: Spec, budgets: Sequence[Budget], arrays: Sequence[Mapping[str, Any]], douts: Sequence[Any], wrong: list[str]
) -> Iterator[Answer]:
    """Yield answers for the gradients in `wrong`, the deviation that explains most of them first.

    Only deviations with a backward pass of their own are tried: of the spec, of the inputs, and mistakes in
    derivatives. If possible, a deviation is chosen that leaves the other gradients correct. A sum has few numbers and
    matches by chance, so that it needs such a deviation.
    """
    names = [n for n in budgets[0].expected if n.startswith("d") and all(n in one for one in arrays)]
    targets = {
        name: [gradient_target(b, name, one[name]) for b, one in zip(budgets, arrays, strict=True)] for name in names
    }
    before = {name: worst_residual(some, [t.expected for t in some]) for name, some in targets.items()}
    matches = (_match(d, budgets, douts, targets, before, wrong) for d in _candidate_deviations(spec, budgets))
    every = {m.deviation: m for m in matches if m.near}
    left = list(wrong)
    while left:
        matched = {d: [n for n in left if n in m.near] for d, m in every.items()}
        worst = {d: max(every[d].near[n] for n in some) for d, some in matched.items() if some}
        if not worst:
            break
        doubts = {d: (every[d].contradicted, bool(every[d].unlike)) for d in worst}
        best = max(worst, key=lambda d: (len(matched[d]), not any(doubts[d]), -left.index(matched[d][0]), -worst[d]))
        together, limit = matched[best], THRESHOLDS.better_ratio * max(1.0, worst[best])
        fits = [d for d, x in worst.items() if matched[d] == together and x <= limit]
        fits = [d for d in fits if doubts[d] == min(doubts[f] for f in fits)]
        yield Answer(
            _format_names(together, [every[d] for d in fits]),
            tuple(together),
            tuple(Candidate((d,), worst[d], min(every[d].shares[n] for n in together), True) for d in fits),
        )
        left = [name for name in left if name not in together]
    if "dq" in left and (row_sums := _name_row_sums(spec, budgets, douts, targets, left)):
        yield row_sums
        left = [name for name in left if name not in row_sums.names]
    sums = {
        name: targets[name] for name in left if name in budgets[0].sums and any(np.any(t.actual) for t in targets[name])
    }
    for answer in _name_partial_sums(budgets, douts, sums):
        yield answer
        left = [name for name in left if name not in answer.names]
    yield from _name_factors({name: targets[name] for name in left})


@dataclass(frozen=True)
class _Match:
    """How a deviation reproduces wrong gradients.

    near: the residual of each gradient that agrees, in units of the errors of kernels with the deviation.
    shares: the share of the squared error of each of them that the deviation explains.
    unlike: the wrong gradients that it changes, but in another way.
    contradicted: whether it changes gradients that are correct.
    """

    deviation: Deviation
    near: dict[str, float]
    shares: dict[str, float]
    unlike: tuple[str, ...]
    contradicted: bool


def _match(
    deviation: Deviation,
    budgets: Sequence[Budget],
    douts: Sequence[Any],
    targets: Mapping[str, Sequence[Target]],
    before: Mapping[str, float],
    wrong: Sequence[str],
) -> _Match:
    """Compare the gradients in `wrong` with those of a deviation.

    They agree if they pass as those of a kernel with the deviation, are nearer to them than to the truth, and their
    error has its size. The kernel is evaluated in several orders only if some gradient is near by the budget of the
    truth. The errors of such kernels may be far larger than those of correct ones, as where padding is visible.

    Args:
        before: the residuals of the truth.
    """
    exact = [_gradients(b, dout, deviation) for b, dout in zip(budgets, douts, strict=True)]
    near, shares = {}, {}
    off = {name: worst_residual(some, [g.get(name) for g in exact]) for name, some in targets.items()}
    contradicted = any(off[n] > THRESHOLDS.better_ratio * max(1.0, x) for n, x in before.items() if n not in wrong)
    changed = [n for n, some in targets.items()
               if not all(is_same_output(g.get(n), t.expected) for g, t in zip(exact, some, strict=True))]  # fmt: skip
    unlike = [n for n in wrong if n in changed]
    if not any(off[n] < min(THRESHOLDS.gradient_residual, before[n] / THRESHOLDS.better_ratio) for n in unlike):
        return _Match(deviation, {}, {}, tuple(unlike), contradicted)
    orders = (*DRAWS, *MEMBERS[:3])
    runs = [
        run_orders(partial(_gradients, b, dout, deviation), orders, b.inputs)
        for b, dout in zip(budgets, douts, strict=True)
    ]
    for name in tuple(unlike):
        of_cases = zip(targets[name], exact, runs, strict=True)
        each = [(t, g[name], [run[name] for run in some]) for t, g, some in of_cases if _has_shape(t, g.get(name))]
        if len(each) < len(budgets):
            continue
        own, truth = (max(x) for x in zip(*(_own_residuals(*one) for one in each), strict=True))
        if own < THRESHOLDS.correct_residual:
            unlike.remove(name)
            if own < truth / THRESHOLDS.better_ratio and all(_has_size(t, g) for t, g, _ in each):
                near[name], shares[name] = own, min(explained_share(t, g) for t, g, _ in each)
    sums = set(budgets[0].sums)
    if contradicted or (sums.issuperset(near) and not sums.issuperset(changed)):
        near = {n: x for n, x in near.items() if n not in sums}
    return _Match(deviation, near, shares, tuple(unlike), contradicted)


def _has_shape(target: Target, wrong: Numpy | None) -> bool:
    return wrong is not None and wrong.shape == target.actual.shape


def _own_residuals(target: Target, wrong: Numpy, runs: Sequence[Numpy]) -> tuple[float, float]:
    """Return the residuals of a gradient and of the truth in units of the errors of a deviation's runs.

    The first is ∞ if the gradient does not pass as theirs. A sum of many terms has one budget, at least the truth's.
    """
    if target.is_gradient:
        judged = judge_runs(wrong, tuple(runs), target)
        rows, residual = judged.rows, judged.residual if judged.fits else math.inf
    else:
        largest = float(np.max(np.abs(np.stack(runs) - wrong), initial=0.0))
        if not math.isfinite(largest):
            return math.inf, math.inf
        rows = np.maximum(target.rows, THRESHOLDS.sum_members * largest / LIMITS.row)
        residual = quick_residual(replace(target, expected=wrong, rows=rows), wrong)
    return residual, quick_residual(replace(target, actual=target.expected, expected=wrong, rows=rows), wrong)


def _has_size(target: Target, wrong: Numpy) -> bool:
    """Whether the error is as large as that of `wrong`, not a part or a multiple of it.

    Equation:
        s = ⟨y − f, f − truth⟩ / ‖f − truth‖², with each row divided by its budget: 0 up to its standard error if y is
        f, and x − 1 if the error of y is x times that of f
    """
    scale = np.where(target.rows > 0, target.rows, np.inf)[..., None]
    way, rest = (wrong - target.expected) / scale, (target.actual - wrong) / scale
    square, along = np.sum(way * way, axis=-1), np.sum(rest * way, axis=-1)
    s = np.sum(along) / np.sum(square)
    spread = np.sqrt(np.sum((along - s * square) ** 2)) / np.sum(square)
    allowed = THRESHOLDS.size_error * max(target.recipe.u, THRESHOLDS.size_unit) + THRESHOLDS.projection_ratio * spread
    return along.size == 1 or not abs(s) > allowed


def _name_row_sums(
    spec: Spec,
    budgets: Sequence[Budget],
    douts: Sequence[Any],
    targets: Mapping[str, Sequence[Target]],
    wrong: list[str],
) -> Answer | None:
    """Return the answer for dq, and for dk of dense inputs, if one wrong number per row explains it; else None.

    Equation:
        ∂L/∂S = A ⊙ (∂L/∂A − D + x) with one x for each row of a map adds x A K to ∂L/∂Q
    """
    if spec.head_dim < THRESHOLDS.min_row_width or not all(np.isfinite(t.actual).all() for t in targets["dq"]):
        return None
    w, names = head_indices(spec), [name for name in ("dq", "dk") if name in wrong]
    for n, (b, dout) in enumerate(zip(budgets, douts, strict=True)):
        target = targets["dq"][n]
        unit = _gradients(b, dout, Deviation.of(row_sum_mistake(1.0, 1.0)))["dq"] - target.expected
        square = np.sum(unit * unit, axis=-1, keepdims=True)
        along = np.sum((target.actual - target.expected) * unit, axis=-1, keepdims=True)
        x = along / np.where(square > 0, square, 1.0)
        found = {"dq": target.expected + x * unit}
        if kind_of(b.inputs) == "dense":
            found |= {"dk": _gradients(b, dout, Deviation.of(row_sum_mistake(x[:, w.q1], x[:, w.q2])))["dk"]}
        names = [name for name in names if name in found and _is_explained(targets[name][n], found[name])]
        if "dq" not in names:
            return None
    words = "of other row sums D = rowsum(∂L/∂O ⊙ O): one number per row explains the error"
    return Answer(_format_answer(names, f"that {words}", f"those {words}"), tuple(names))


def _is_explained(target: Target, wrong: Numpy) -> bool:
    """Whether a gradient is near `wrong`, and much nearer than to the truth: noise may be near both."""
    near = min(THRESHOLDS.gradient_residual, quick_residual(target, target.expected) / THRESHOLDS.better_ratio)
    return quick_residual(target, wrong) < near


def _name_partial_sums(
    budgets: Sequence[Budget], douts: Sequence[Any], sums: Mapping[str, Sequence[Target]]
) -> Iterator[Answer]:
    """Yield answers for sums over one sequence or head alone, or over all but one.

    Blocks give such sums if they overwrite each other, or if one does not add. Nothing is yielded if several parts fit,
    or if one of so many would fit by chance.
    """
    fits: dict[str, list[str]] = {name: [] for name in sums}
    shapes = [np.shape(dout) for dout in douts] if sums else []
    axes = range(1 if is_layer(budgets[0].inputs) else 2)
    counts = [min((shape[axis] for shape in shapes), default=0) for axis in axes]
    parts = [(axis, n, alone) for axis, count in enumerate(counts) if 1 < count <= THRESHOLDS.max_parts
             for n in range(count) for alone in (True, False)[: count - 1]]  # fmt: skip
    for axis, n, alone in parts:
        found = [_gradients(b, _mask_dout(x, axis, n, alone)) for b, x in zip(budgets, douts, strict=True)]
        part = f"{('sequence', 'head')[axis]} {n}"
        for name, some in sums.items():
            by_chance = THRESHOLDS.chance * worst_residual(some, [t.expected for t in some]) / len(parts)
            if worst_residual(some, [g.get(name) for g in found]) < min(THRESHOLDS.gradient_residual, by_chance):
                fits[name].append(f"of {part} alone" if alone else f"without {part}")
    for said in dict.fromkeys(words[0] for words in fits.values() if len(words) == 1):
        names = [name for name, words in fits.items() if words == [said]]
        yield Answer(_format_answer(names, f"that {said}", f"those {said}"), tuple(names))


def _mask_dout(dout: Any, axis: int, n: int, alone: bool) -> Numpy:
    """Return dout with zeros outside sequence or head n (`alone`), or with zeros in it."""
    x = np.array(read_output(dout, "dout"), dtype=np.float64)
    x[(slice(None),) * axis + (np.arange(x.shape[axis]) != n if alone else n,)] = 0
    return x


def _name_factors(targets: Mapping[str, Sequence[Target]]) -> Iterator[Answer]:
    """Yield answers for gradients that are zero, or a constant factor times the correct ones."""
    zero = [name for name, some in targets.items() if not any(np.any(t.actual) for t in some)]
    if zero:
        yield Answer(_format_answer(zero, "zero where it should not be", "zero where they should not be"), tuple(zero))
    left = {n: f for n, some in targets.items() if n not in zero and (f := _fit_factor(some)) is not None}
    while left:
        factor = next(iter(left.values()))
        near = [n for n, f in left.items() if abs(f - factor) < THRESHOLDS.same_factor * abs(factor)]
        alike = [n for n in near if _has_factor(targets[n], factor)]
        left = {n: f for n, f in left.items() if n not in alike}
        short = f"{factor:.4g}"
        times = f"{f'{factor:.7g}' if short == '1' else short} times what"
        yield Answer(_format_answer(alike, f"{times} it should be", f"{times} they should be"), tuple(alike))


def _format_answer(names: Sequence[str], one: str, several: str) -> str:
    """Format "dq is …" or "dq and dk are …"."""
    return f"{join_words(names)} is {one}" if len(names) == 1 else f"{join_words(names)} are {several}"


def _candidate_deviations(spec: Spec, budgets: Sequence[Budget]) -> Iterator[Deviation]:
    """Yield deviations of the spec and its inputs, and mistakes in derivatives: also of each query head and softcap."""
    yield from (d for d in deviations(spec, kind_of(budgets[0].inputs)) if d.mistake is None)
    shared = spec.heads // spec.key_groups
    every = GENERAL_BACKWARD_MISTAKES if spec.is_plain else BACKWARD_MISTAKES
    mistakes = [m for m in every if m.name != "gradient_of_one_query_head"]
    for alone in (True, False)[: shared - 1]:  # of two heads, all but one is the other alone
        mistakes += [query_head_mistake(n, shared, alone=alone) for n in range(shared)]
    if shared > 1 and spec.key_groups > 1:
        mistakes.append(tiled_heads_mistake(spec.key_groups, tiled=spec.group_order == "blocks"))
    coarser = {"float32": ("bfloat16", "float16"), "float16": ("bfloat16",)}
    mistakes += [lse_mistake(dtype) for dtype in coarser.get(budgets[0].recipe.storage, ())]
    mistakes += [] if spec.softcap is None else [softcap_mistake(spec.softcap)]
    yield from map(Deviation.of, mistakes)


def _gradients(budget: Budget, dout: Any, deviation: Deviation | None = None, order: Order | None = None) -> Gradients:
    """Return the gradients, by name, of a kernel with a deviation; {} if it has none for these inputs.

    Args:
        order: the order in which the recipe rounds; None for exact gradients.
    """
    problem = deviated(budget.spec, budget.inputs, [] if deviation is None else [deviation])
    if problem is None:
        return {}
    recipe = budget.recipe
    g = round_to(read_output(dout, "dout").astype(np.float64), recipe.storage)
    spec, ops = problem.spec, ops_with(problem.mistakes)
    if order is not None:
        spec, ops = perturb_lambda_init(spec, order, ops), rounded_mistakes(recipe, order, problem.mistakes)
    try:
        with np.errstate(all="ignore"):
            found = backward(spec, problem.inputs, g, ops)
    except (ValueError, IndexError, TypeError):
        return {}
    exact = {f"d{name}": np.atleast_1d(x) for name, x in found.items()}
    return exact if order is None else {name: round_to(x, recipe.storage) for name, x in exact.items()}


def gradient_target(budget: Budget, name: str, actual: Any) -> Target:
    """Return a gradient as a target. A sum of many terms is one row, whose limit is the allowance of the sum."""
    x = np.atleast_1d(to_float64(read_output(actual, name)))
    if name in budget.tensors:
        return Target(budget.inputs, x, budget.expected[name], budget.rows[name], budget.recipe, is_gradient=True)
    expected, allowed = (np.atleast_1d(y) for y in budget.sums[name])
    return Target(budget.inputs, x, expected, root_mean_square(allowed) / LIMITS.row, budget.recipe)


def _fit_factor(targets: Sequence[Target]) -> float | None:
    """Return the least-squares factor of the correct gradients if it, but not 1, matches the targets; else None."""
    finite = all(np.isfinite(t.actual).all() and np.isfinite(t.expected).all() for t in targets)
    square = sum(float(np.sum(t.expected**2)) for t in targets) if finite else 0.0
    if square == 0:
        return None
    factor = sum(float(np.sum(t.actual * t.expected)) for t in targets) / square
    return factor if _has_factor(targets, factor) and not _has_factor(targets, 1.0) else None


def _has_factor(targets: Sequence[Target], factor: float) -> bool:
    """Whether the targets are close to `factor` times the correct gradients."""
    return all(quick_residual(t, factor * t.expected) < THRESHOLDS.gradient_residual for t in targets)


def _format_names(names: Sequence[str], found: Sequence[_Match]) -> str:
    """Format "dq is that of …", or where a deviation changes other gradients too, "dq agrees with …; dk … does not"."""
    which = " or ".join(f"{m.deviation.name} ({m.deviation.what.rstrip('.')})" for m in found)
    if len(found) > MAX_NAMED:
        others = f"one of {len(found) - 1} other deviations, which these inputs do not tell apart"
        which = f"{found[0].deviation.name} or {others}"
    unlike = [n for n in found[0].unlike if all(n in m.unlike for m in found)]
    if not unlike and not found[0].contradicted:
        return f"{_format_answer(names, 'that', 'those')} of {which}"
    text = f"{join_words(names)} {'agrees' if len(names) == 1 else 'agree'} with {which}"
    if unlike:
        text += f"; {join_words(unlike)}, which it changes too, {'does' if len(unlike) == 1 else 'do'} not"
    return f"{text}; other gradients, which it changes too, are right" if found[0].contradicted else text
