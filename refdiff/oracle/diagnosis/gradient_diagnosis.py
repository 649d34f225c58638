"""Gradients that are wrong where the output is right: of which deviation they are, or what they are multiplied by."""

from __future__ import annotations

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
from refdiff.oracle.diagnosis.targets import Target, explained_share, quick_residual
from refdiff.oracle.inputs import is_layer, kind_of
from refdiff.oracle.inputs.outputs import read_output
from refdiff.oracle.mistakes.in_backward import BACKWARD_MISTAKES, GENERAL_BACKWARD_MISTAKES, query_head_mistake
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.backward import backward

Numpy = np.ndarray[Any, Any]
Gradients = dict[str, Numpy]
MAX_NAMED = 3
"""So many deviations that fit are named, of more only how many they are."""
MAX_PARTS = 16
"""Of more sequences or heads it is not asked whether a sum is that of one."""


@dataclass(frozen=True)
class Answer:
    """What is said of some wrong gradients, by name; the deviations that they are of, if they are of any."""

    text: str
    names: tuple[str, ...]
    candidates: tuple[Candidate, ...] = ()


def diagnose_gradients(
    spec: Spec, known: Sequence[Budget], given: Sequence[Mapping[str, Any]], douts: Sequence[Any], wrong: Sequence[str]
) -> Iterator[Answer]:
    """Say of which deviations the gradients named `wrong` are, first of that which most of them have.

    Only deviations that have a backward of their own are tried: other choices of the spec, inputs that are misread, and
    mistakes in derivatives. Of those that fit, those are named that leave the other gradients right, if any does; no
    sum, whose few numbers are near by chance, is named by one that does not.
    """
    names = [n for n in known[0].expected if n.startswith("d") and all(n in one for one in given)]
    targets = {
        name: [gradient_target(b, name, one[name]) for b, one in zip(known, given, strict=True)] for name in names
    }
    by_truth = {name: _worst_residual(some, [t.expected for t in some]) for name, some in targets.items()}
    near: dict[Deviation, dict[str, float]] = {}
    shares: dict[Deviation, dict[str, float]] = {}
    elsewhere: set[Deviation] = set()
    for deviation in _candidate_deviations(spec, known):
        found = [_gradients(b, dout, deviation) for b, dout in zip(known, douts, strict=True)]
        off = {name: _worst_residual(some, [g.get(name) for g in found]) for name, some in targets.items()}
        if any(off[n] > THRESHOLDS.better_ratio * max(1.0, by_truth[n]) for n in names if n not in wrong):
            elsewhere.add(deviation)
        near[deviation] = {
            n: off[n]
            for n in wrong
            if off[n] < min(THRESHOLDS.gradient_residual, by_truth[n] / THRESHOLDS.better_ratio)
            and not (deviation in elsewhere and n in known[0].sums)
        }
        shares[deviation] = {
            n: min(explained_share(t, g.get(n)) for t, g in zip(targets[n], found, strict=True))
            for n in near[deviation]
        }
    left = list(wrong)
    while left:
        of_each = {d: [n for n in left if n in some] for d, some in near.items()}
        furthest = {d: max(near[d][n] for n in some) for d, some in of_each.items() if some}
        if not furthest:
            break
        best = max(
            furthest, key=lambda d: (len(of_each[d]), d not in elsewhere, -left.index(of_each[d][0]), -furthest[d])
        )
        together, limit = of_each[best], THRESHOLDS.better_ratio * max(1.0, furthest[best])
        fits = [d for d, x in furthest.items() if of_each[d] == together and x <= limit]
        alone = elsewhere.issuperset(fits)
        fits = [d for d in fits if alone or d not in elsewhere]
        text = f"{_format_answer(together, 'that', 'those')} of {_format_names(fits)}"
        text += "; other gradients, which it changes too, are right" if alone else ""
        share = {d: min(shares[d][n] for n in together) for d in fits}
        yield Answer(text, tuple(together), tuple(Candidate((d,), furthest[d], share[d], True) for d in fits))
        left = [name for name in left if name not in together]
    sums = {
        name: targets[name] for name in left if name in known[0].sums and any(np.any(t.actual) for t in targets[name])
    }
    for answer in _name_partial_sums(known, douts, sums, by_truth):
        yield answer
        left = [name for name in left if name not in answer.names]
    yield from _name_factors({name: targets[name] for name in left})


def _worst_residual(targets: Sequence[Target], found: Sequence[Numpy | None]) -> float:
    return max(quick_residual(t, x) for t, x in zip(targets, found, strict=True))


def _name_partial_sums(
    known: Sequence[Budget],
    douts: Sequence[Any],
    sums: Mapping[str, Sequence[Target]],
    by_truth: Mapping[str, float],
) -> Iterator[Answer]:
    """Say which sums are those of one sequence or head alone, or of all but one: blocks that overwrite, or do not add.

    Where more than one part fits, nothing is said.
    """
    fits: dict[str, list[str]] = {name: [] for name in sums}
    shapes = [np.shape(dout) for dout in douts] if sums else []
    for axis, part in enumerate(("sequence", "head")[: 1 if is_layer(known[0].inputs) else 2]):
        count = min((shape[axis] for shape in shapes), default=0)
        for n in range(count if 1 < count <= MAX_PARTS else 0):
            for alone in (True, False)[: count - 1]:
                found = [_gradients(b, _mask_dout(dout, axis, n, alone)) for b, dout in zip(known, douts, strict=True)]
                for name, some in sums.items():
                    near = min(THRESHOLDS.gradient_residual, by_truth[name] / THRESHOLDS.better_ratio)
                    if _worst_residual(some, [g.get(name) for g in found]) < near:
                        fits[name].append(f"of {part} {n} alone" if alone else f"without {part} {n}")
    for said in dict.fromkeys(words[0] for words in fits.values() if len(words) == 1):
        names = [name for name, words in fits.items() if words == [said]]
        yield Answer(_format_answer(names, f"that {said}", f"those {said}"), tuple(names))


def _mask_dout(dout: Any, axis: int, n: int, alone: bool) -> Numpy:
    """The gradient of the output with zeros in all but one sequence or head, or in that one."""
    x = np.array(read_output(dout, "dout"), dtype=np.float64)
    x[(slice(None),) * axis + (np.arange(x.shape[axis]) != n if alone else n,)] = 0
    return x


def _name_factors(targets: Mapping[str, Sequence[Target]]) -> Iterator[Answer]:
    """Say which of the gradients are zero, and which a number times the right ones, those of one number together."""
    zero = [name for name, some in targets.items() if not any(np.any(t.actual) for t in some)]
    if zero:
        yield Answer(_format_answer(zero, "zero where it should not be", "zero where they should not be"), tuple(zero))
    left = {n: f for n, some in targets.items() if n not in zero and (f := _fit_factor(some)) is not None}
    while left:
        factor = next(iter(left.values()))
        alike = [
            n
            for n, f in left.items()
            if abs(f - factor) < THRESHOLDS.same_factor * abs(factor) and _has_factor(targets[n], factor)
        ]
        left = {n: f for n, f in left.items() if n not in alike}
        short = f"{factor:.4g}"
        times = f"{f'{factor:.7g}' if short == '1' else short} times what"
        yield Answer(_format_answer(alike, f"{times} it should be", f"{times} they should be"), tuple(alike))


def _format_answer(names: Sequence[str], one: str, several: str) -> str:
    """What one gradient is, or several are."""
    return f"{join_words(names)} is {one}" if len(names) == 1 else f"{join_words(names)} are {several}"


def _candidate_deviations(spec: Spec, known: Sequence[Budget]) -> Iterator[Deviation]:
    """Deviations of the spec and of its inputs, and mistakes in derivatives: sums over heads once for each head."""
    yield from (d for d in deviations(spec, kind_of(known[0].inputs)) if d.mistake is None)
    shared = spec.heads // spec.key_groups
    every = GENERAL_BACKWARD_MISTAKES if spec.is_plain else BACKWARD_MISTAKES
    mistakes = [m for m in every if m.name != "gradient_of_one_query_head_of_a_group"]
    for alone in (True, False)[: shared - 1]:  # of two heads all but one is the other alone, of one there is no sum
        mistakes += [query_head_mistake(n, shared, alone=alone) for n in range(shared)]
    yield from map(Deviation.of, mistakes)


def _gradients(known: Budget, dout: Any, deviation: Deviation | None = None) -> Gradients:
    """The gradients of a kernel with a deviation, by their names; none where it has none on such inputs."""
    problem = deviated(known.spec, known.inputs, [] if deviation is None else [deviation])
    if problem is None:
        return {}
    g = round_to(read_output(dout, "dout").astype(np.float64), known.recipe.storage)
    try:
        with np.errstate(all="ignore"):
            found = backward(problem.spec, problem.inputs, g, ops_with(problem.mistakes))
    except (ValueError, IndexError, TypeError):
        return {}
    return {f"d{name}": np.atleast_1d(x) for name, x in found.items()}


def gradient_target(known: Budget, name: str, actual: Any) -> Target:
    """A gradient as what is to be explained; a sum of many terms as one row, whose limit is what it may be off by."""
    x = np.atleast_1d(read_output(actual, name).astype(np.float64))
    if name in known.tensors:
        return Target(known.inputs, x, known.expected[name], known.rows[name], known.recipe, is_gradient=True)
    expected, allowed = (np.atleast_1d(y) for y in known.sums[name])
    return Target(known.inputs, x, expected, root_mean_square(allowed) / LIMITS.row, known.recipe)


def _fit_factor(targets: Sequence[Target]) -> float | None:
    """The number with which the right gradients are near, if there is one and they are not near without it."""
    finite = all(np.isfinite(t.actual).all() and np.isfinite(t.expected).all() for t in targets)
    square = sum(float(np.sum(t.expected**2)) for t in targets) if finite else 0.0
    if square == 0:
        return None
    factor = sum(float(np.sum(t.actual * t.expected)) for t in targets) / square
    return factor if _has_factor(targets, factor) and not _has_factor(targets, 1.0) else None


def _has_factor(targets: Sequence[Target], factor: float) -> bool:
    """Whether they are near a number times the right gradients."""
    return all(quick_residual(t, factor * t.expected) < THRESHOLDS.gradient_residual for t in targets)


def _format_names(found: Sequence[Deviation]) -> str:
    if len(found) > MAX_NAMED:
        return f"{found[0].name} or one of {len(found) - 1} other deviations, which these inputs do not tell apart"
    return " or ".join(f"{d.name} ({d.what.rstrip('.')})" for d in found)
