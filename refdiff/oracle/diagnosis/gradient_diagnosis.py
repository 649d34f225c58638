"""Diagnose wrong gradients of a correct output: their deviation, or the factor by which they are wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.oracle.budget.budget import Budget
from refdiff.oracle.budget.statistics import LIMITS, root_mean_square
from refdiff.oracle.deviations.deviation import Deviation, deviated, ops_with
from refdiff.oracle.deviations.listed import deviations
from refdiff.oracle.diagnosis.ranking import Candidate
from refdiff.oracle.diagnosis.region_format import join_words
from refdiff.oracle.diagnosis.targets import Target, explained_share, quick_residual, worst_residual
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
    truth_residuals = {name: worst_residual(some, [t.expected for t in some]) for name, some in targets.items()}
    limits = {
        n: min(THRESHOLDS.gradient_residual, x / THRESHOLDS.better_ratio,
               max(THRESHOLDS.correct_residual, x / THRESHOLDS.clear_ratio)) for n, x in truth_residuals.items()
    }  # fmt: skip
    tensors = [n for n in names if n not in budgets[0].sums]
    near: dict[Deviation, dict[str, float]] = {}
    shares: dict[Deviation, dict[str, float]] = {}
    contradicted: set[Deviation] = set()
    for deviation in _candidate_deviations(spec, budgets):
        found = [_gradients(b, dout, deviation) for b, dout in zip(budgets, douts, strict=True)]
        off = {name: worst_residual(some, [g.get(name) for g in found]) for name, some in targets.items()}
        if any(off[n] > THRESHOLDS.better_ratio * max(1.0, truth_residuals[n]) for n in names if n not in wrong):
            contradicted.add(deviation)
        near[deviation] = {
            n: off[n] for n in wrong
            if off[n] < limits[n] and all(_has_size(t, g[n]) for t, g in zip(targets[n], found, strict=True))
        }  # fmt: skip
        of_tensors = {n: x for n, x in near[deviation].items() if n in tensors}
        changes = any(not math.isclose(off[n], truth_residuals[n], rel_tol=1e-3) for n in tensors)
        if deviation in contradicted or (changes and not of_tensors):
            near[deviation] = of_tensors
        shares[deviation] = {
            n: min(explained_share(t, g.get(n)) for t, g in zip(targets[n], found, strict=True))
            for n in near[deviation]
        }
    left = list(wrong)
    while left:
        matched = {d: [n for n in left if n in some] for d, some in near.items()}
        worst = {d: max(near[d][n] for n in some) for d, some in matched.items() if some}
        if not worst:
            break
        best = max(worst, key=lambda d: (len(matched[d]), d not in contradicted, -left.index(matched[d][0]), -worst[d]))
        together, limit = matched[best], THRESHOLDS.better_ratio * max(1.0, worst[best])
        fits = [d for d, x in worst.items() if matched[d] == together and x <= limit]
        alone = contradicted.issuperset(fits)
        fits = [d for d in fits if alone or d not in contradicted]
        text = f"{_format_answer(together, 'that', 'those')} of {_format_names(fits)}"
        text += "; other gradients, which it changes too, are right" if alone else ""
        share = {d: min(shares[d][n] for n in together) for d in fits}
        yield Answer(text, tuple(together), tuple(Candidate((d,), worst[d], share[d], True) for d in fits))
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
    allowed = THRESHOLDS.size_error * max(target.recipe.u, 2.0**-11) + THRESHOLDS.projection_ratio * spread
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


def _gradients(budget: Budget, dout: Any, deviation: Deviation | None = None) -> Gradients:
    """Return the gradients, by name, of a kernel with a deviation; {} if it has none for these inputs."""
    problem = deviated(budget.spec, budget.inputs, [] if deviation is None else [deviation])
    if problem is None:
        return {}
    g = round_to(read_output(dout, "dout").astype(np.float64), budget.recipe.storage)
    try:
        with np.errstate(all="ignore"):
            found = backward(problem.spec, problem.inputs, g, ops_with(problem.mistakes))
    except (ValueError, IndexError, TypeError):
        return {}
    return {f"d{name}": np.atleast_1d(x) for name, x in found.items()}


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


def _format_names(found: Sequence[Deviation]) -> str:
    if len(found) > MAX_NAMED:
        return f"{found[0].name} or one of {len(found) - 1} other deviations, which these inputs do not tell apart"
    return " or ".join(f"{d.name} ({d.what.rstrip('.')})" for d in found)
