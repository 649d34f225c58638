"""The answer for an output that fails: a name, several, a number, or the place where it is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.budget.statistics import over, root_mean_square
from refdiff.oracle.cases.fixed import Case, cases
from refdiff.oracle.deviations.deviation import Deviation, Problem, output_with
from refdiff.oracle.deviations.listed import deviations
from refdiff.oracle.deviations.tiles import UNUSUAL
from refdiff.oracle.diagnosis.fits import fits, two_fields
from refdiff.oracle.diagnosis.lost_tokens import lost_keys
from refdiff.oracle.diagnosis.places import Damage, damage, right_rows
from refdiff.oracle.diagnosis.ranking import AMBIGUOUS, NONE_FITS, UNIQUE, Candidate, Fit, Ranking, percent
from refdiff.oracle.diagnosis.search import (
    NEARLY_RIGHT,
    NO_PAIRS,
    NO_PAIRS_OF_LARGE,
    explained_of_whole,
    quick_candidate,
    search,
)
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Numpy, Target
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.verdict.verdict import PASS

BITS = "the output is right, and its bits are taken for whole numbers: .view(ml_dtypes.bfloat16) makes them numbers"
UNWRITTEN = "an output that nothing was written to looks the same"
MOST_FIELDS = 2
"""Of so many fields another value is tried, each with all deviations, and their pairs, from what the spec then is."""
COARSER = {"float32": ("tf32", "float16", "bfloat16"), "float16": ("bfloat16",), "bfloat16": ()}
"""By storage type, the recipes that round more, the finest first."""


def name_output(
    spec: Spec, recipe: Recipe, targets: tuple[Target, ...], known: Sequence[Budget], failing: Sequence[bool], most: int
) -> Ranking:
    """Look for the fewest deviations, `most` at a time, that give outputs of which one fails or more."""
    kinds = {kind_of(t.inputs) for t in targets}
    if len(kinds) > 1:
        raise ValueError(f"the inputs are of several kinds, {', '.join(sorted(kinds))}: diagnose each kind by itself")
    damages = [damage(t.actual, b) for t, b in zip(targets, known, strict=True)]
    where, not_finite = _where([d.lines for d in damages]), any(d.not_finite for d in damages)
    right = _right(targets, known, damages, failing)
    unusual = (d for d in UNUSUAL if not (spec.is_plain and d.axis == "maximum"))  # of both maps
    every = (*deviations(spec, kinds.pop()), *unusual)
    fitting, closest, notes = search(spec, targets, every, most, not_finite=not_finite, right=right)
    if len(fitting) == 1:
        return _one(spec, targets, fitting[0], notes, where, finite=not not_finite, local=right is not None)
    if fitting:
        return Ranking(AMBIGUOUS, tuple(fitting), separating=separating(spec, recipe, fitting), where=where)
    if all(_are_bits(t, b) for t, b in zip(targets, known, strict=True)):
        return Ranking(NONE_FITS, notes=(BITS,))
    # of what passes as right, any number fits; and none gives NaN
    fitted = () if NEARLY_RIGHT in notes or not_finite else fits(spec, targets, local=right is not None)
    if any(f.fits for f in fitted):
        return Ranking(NONE_FITS, (), fitted, notes=notes, where=where)
    parts = Parts.of(spec, targets)
    other = None if not_finite or right is not None else matching_recipe(spec, recipe, parts.small)
    if other is not None:
        return Ranking(NONE_FITS, notes=(other, *notes), where=where)
    pairs = most == 2 and not {NEARLY_RIGHT, NO_PAIRS, NO_PAIRS_OF_LARGE} & set(notes)
    if pairs and right is None:
        said = two_fields(spec, parts) or loosened(spec, recipe, parts, every, closest)
        if said is not None:
            return Ranking(NONE_FITS, notes=(said, *notes), where=where)
    if NEARLY_RIGHT not in notes:
        where += _where([lost_keys(spec, t) if fails else () for t, fails in zip(targets, failing, strict=True)])
    shown, told = _leads(spec, parts, closest, pairs)
    return Ranking(NONE_FITS, shown, fitted, notes=(told, *notes), where=where)


def _leads(spec: Spec, parts: Parts, closest: Sequence[Candidate], pairs: bool) -> tuple[tuple[Candidate, ...], str]:
    """The candidates to show though none fits, and what they come to.

    Pairs that do not fit are named wrongly more often than not: of these the one that explains most by itself.
    """
    shown = tuple(c for c in closest if c.explains >= THRESHOLDS.explained)
    if not any(len(c.deviations) > 1 for c in shown):
        return shown, _how_close(closest, pairs)
    alone = _alone(spec, parts, dict.fromkeys(d for c in shown for d in c.deviations))
    whole = [explained_of_whole(spec, parts, c) for c in alone if c.explains >= THRESHOLDS.explained]
    first = max(whole, key=lambda c: c.explains, default=None)
    if first is None or first.explains < THRESHOLDS.explained:
        return (), "it may be several mistakes: no single name explains most of the squared difference"
    return (first,), f"several: first mend {first.name}, which alone explains {percent(first.explains)}, then ask again"


def _are_bits(target: Target, known: Budget) -> bool:
    """Whether an output is right in bfloat16, and its bits are given as whole numbers, with a sign or without."""
    x = target.actual
    if not np.array_equal(x, np.round(x)) or not 255 < np.max(np.abs(x), initial=0.0) < 2**16:
        return False
    numbers = (x.astype(np.int64).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return known.judge({"out": numbers}).status == PASS


def loosened(
    spec: Spec, recipe: Recipe, parts: Parts, every: Sequence[Deviation], closest: Sequence[Candidate]
) -> str | None:
    """Say what an output is with another value of one field of the spec; None where no such spec has a name for it.

    Fields are tried that explain most, alone or beside another deviation.
    """
    alone = _alone(spec, parts, (d for d in every if d.fields))
    best = sorted((*(c for c in alone if c.explains >= THRESHOLDS.explained), *closest), key=lambda c: -c.explains)
    fields = dict.fromkeys(d for c in best for d in c.deviations if d.fields)
    found = (_with_field(spec, recipe, parts.whole, d) for d in list(fields)[:MOST_FIELDS])
    return next((text for text in found if text), None)


def _alone(spec: Spec, parts: Parts, some: Iterable[Deviation]) -> list[Candidate]:
    """How much of the error each deviation explains by itself, of large inputs in a part."""
    found = (quick_candidate(spec, parts.which((d,)), (d,)) for d in some)
    return [c for c in found if c is not None]


def _with_field(spec: Spec, recipe: Recipe, targets: tuple[Target, ...], field: Deviation) -> str | None:
    """What the outputs are where the spec is changed by this deviation."""
    problems = [field.apply(Problem(spec, t.inputs)) for t in targets]
    known = [budget(p.spec, p.inputs, recipe, members=4) for p in problems if p is not None]
    if len(known) < len(targets):
        return None
    other = known[0].spec
    looser = tuple(Target.of(t.actual, b) for t, b in zip(targets, known, strict=True))
    most = 1 if Parts.of(other, looser).are_parts else 2  # of large inputs pairs take long
    fitting, _, _ = search(other, looser, deviations(other, kind_of(looser[0].inputs)), most)
    names = [c.name for c in fitting] or [f.text for f in fits(other, looser) if f.fits][:1]
    fields = ", ".join(f"{n}={x!r}" for n, x in other.to_dict().items() if x != getattr(spec, n))
    return f"with {fields} it is {' or '.join(names)}" if names else None


def _right(
    targets: tuple[Target, ...], known: Sequence[Budget], damages: Sequence[Damage], failing: Sequence[bool]
) -> tuple[Numpy, ...] | None:
    """The rows that are right, where every output that fails is wrong in one place only."""
    if not all(d.local or not fails for d, fails in zip(damages, failing, strict=True)):
        return None
    return tuple(right_rows(t.actual, b.tensors["out"]) for t, b in zip(targets, known, strict=True))


def _one(
    spec: Spec, targets: tuple[Target, ...], one: Candidate, notes: tuple[str, ...], where: tuple[str, ...], *,
    finite: bool, local: bool,
) -> Ranking:  # fmt: skip
    """The answer where one name fits, or two together: a number may be the better one."""
    numbers = _numbers_instead(spec, targets, one, local=local) if finite else ()
    if numbers and len(one.deviations) > 1:
        return Ranking(AMBIGUOUS, (one,), numbers, where=where)
    if numbers:
        return Ranking(NONE_FITS, (), numbers, where=where)
    zero = not any(t.actual.any() for t in targets)
    return Ranking(UNIQUE, (one,), notes=(UNWRITTEN, *notes) if zero else notes)


def _numbers_instead(spec: Spec, targets: tuple[Target, ...], one: Candidate, *, local: bool) -> tuple[Fit, ...]:
    """The numbers that are a better answer than a name which leaves much, or as good a one as two names together."""
    several = len(one.deviations) > 1
    if not several and one.residual <= THRESHOLDS.doubtful:
        return ()
    most = THRESHOLDS.as_good * one.residual if several else one.residual / THRESHOLDS.as_good
    return tuple(f for f in fits(spec, targets, local=local) if f.fits and f.residual < most)


def _how_close(closest: Sequence[Candidate], pairs: bool) -> str:
    best = max((c.explains for c in closest), default=0.0)
    if best >= THRESHOLDS.explained:
        return f"the closest explains {percent(best)} of the squared difference"
    alone = "alone or in pairs" if pairs else "alone"
    most = math.ceil(100 * best - 1e-6)
    return f"nothing in the catalogue, {alone}, explains more than {most}% of the squared difference"


def _where(lines: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The places of each output's error; of all, where they are one."""
    if len(set(lines)) == 1:
        return lines[0]
    return tuple(f"output {n}: {line}" for n, one in enumerate(lines) for line in one)


def matching_recipe(spec: Spec, recipe: Recipe, targets: Sequence[Target]) -> str | None:
    """Say with which coarser recipe the outputs pass, the finest such one; None where there is none.

    Only what no deviation and no number explains is asked: a small mistake hides in the roundings of a coarser type.
    """
    for name in COARSER[recipe.storage]:
        other = Recipe.of(name)
        known = [(t, budget(spec, t.inputs, other, members=4)) for t in targets if other != recipe]
        if known and all(b.judge({"out": t.actual}).status == PASS for t, b in known):
            return (
                f"it passes with recipe={name!r}: does your kernel round there, where {recipe.name!r} does not say so?"
            )
    return None


def separating(spec: Spec, recipe: Recipe, candidates: list[Candidate]) -> Case | None:
    """Return a case on which as many of the candidates as possible differ from each other; None where none does.

    One in float32 where roundings of 16 bits are larger than what the candidates differ by.
    """
    best: tuple[int, Case | None] = (0, None)
    pairs = len(candidates) * (len(candidates) - 1) // 2
    for own in (recipe, Recipe.of("float32")):
        for profile in ("discriminating", "tiny_values", "extreme"):
            for case in cases(profile, 7, spec=spec, dtype=own.storage):
                count = _count_apart(case, own, candidates)
                if count > best[0]:
                    best = (count, case)
                if count == pairs:
                    return case
    return best[1]


def _count_apart(case: Case, recipe: Recipe, candidates: list[Candidate]) -> int:
    known = budget(case.spec, case.inputs, recipe, members=2)
    exact = as_float64(case.spec, known.inputs)
    outs = [output_with(case.spec, exact, candidate.deviations) for candidate in candidates]
    count = 0
    for n, a in enumerate(outs):
        for b in outs[:n]:
            if a is None or b is None or a.shape != b.shape:
                count += (a is None) != (b is None)
            elif not np.array_equal(np.isfinite(a), np.isfinite(b)):
                count += 1
            else:
                apart = root_mean_square(np.where(np.isfinite(a), a - b, 0.0))
                size = np.maximum(known.rows["out"], recipe.u * root_mean_square(np.where(np.isfinite(a), a, 0.0)))
                count += float(np.max(over(apart, size), initial=0.0)) > THRESHOLDS.apart
    return count
