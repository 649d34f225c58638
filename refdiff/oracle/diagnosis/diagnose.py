"""What is the mistake called? Every deviation is computed, and the output held against each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.budget.statistics import over, root_mean_square
from refdiff.oracle.cases.fixed import Case, cases
from refdiff.oracle.deviations.blind_spots import blind_spots, output_of, revealing
from refdiff.oracle.deviations.deviation import Deviation, deviated, output
from refdiff.oracle.deviations.listed import deviations, kind_of
from refdiff.oracle.diagnosis.closest import WORTH
from refdiff.oracle.diagnosis.fits import fits
from refdiff.oracle.diagnosis.gradient_diagnosis import diagnose_gradients
from refdiff.oracle.diagnosis.other_recipes import matching_recipe
from refdiff.oracle.diagnosis.places import damage, right_rows
from refdiff.oracle.diagnosis.ranking import AMBIGUOUS, NO_DEVIATION, NONE_FITS, UNIQUE, Candidate, Fit, Ranking
from refdiff.oracle.diagnosis.search import NEARLY_RIGHT, NO_PAIRS, NO_PAIRS_OF_LARGE, search
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Target, explained, is_wrong, quick_residual, rows_off
from refdiff.oracle.inputs.outputs import output_alone
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec

Numpy = np.ndarray[Any, Any]
APART = 5.0
"""In budgets: two deviations that differ by this much in a row are told apart by a case."""
DOUBTFUL = 1.0
"""In budgets: a right name leaves less."""
AS_GOOD = 2.0
"""An answer that leaves so many times less than another is the better one."""
UNWRITTEN = "an output that nothing was written to looks the same"


def diagnose(
    actual: Any,
    spec: Spec,
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    recipe: Recipe | str,
    dout: Any = None,
    max_deviations: int = 2,
) -> Ranking:
    """Name what your kernel does differently from its spec.

    A unique name is that of the fewest deviations that give the outputs; which others may be there as well, because
    the inputs do not show them beside it, is in the notes. Two together, for which one number could stand as well, are
    ambiguous. Where none fits, numbers with which the output passes are
    listed, or else the deviations that explain most of the error, and that number which explains 99 % of it; where one
    place is wrong and the rest is right, that place.

    Printed, an answer is a name with what it means, its row in the catalogue and where it happened:

        unique: layer_norm
          layer_norm  (fits, residual 0.519)
              norm kind: The mean taken away first. [B9]
                  https://huggingface.co/spaces/hudsongouge/DAT-Byte-Demo/...

    or a place, here of a kernel that left a tile of one head unwritten:

        none fits
          it is wrong only in tokens 32 to 63 of head 3 of sequence 1; everything else
              is within budget: it looks like a tile not written, or written too early
              or late
          it is exactly zero there, where the truth is not: it looks like memory never
              written to, or every key masked
          nothing in the catalogue, alone or in pairs, explains more than 0% of the
              squared difference

    or a number with which the output passes, here of a kernel that multiplies two of six heads:

        none fits, but a number does
          it is wrong only in heads 0 to 1; everything else is within budget: it looks
              like how heads are counted
          out is multiplied by a factor that differs by head: 0.5, 0.7, 1, 1, 1, 1
              (fits, residual 0.152)

    NaN and ∞ are looked for first: "it is NaN in tokens 5 to 8 of head 1 of sequence 0, where the truth is finite".

    Args:
        actual: the output, an array of any library, or a mapping with it under "out", or with gradients or log-sum-exps
            alone. Or a list of them, one for each of a list of `inputs`: a name must then fit all, and what one case
            hides the other may show. A name is of the output; what else `check` judges and is wrong where the output is
            right stands in the notes, and the deviation of which wrong gradients are.
        dout: as in `check`, where the mapping has gradients; a list with a list.
        recipe: what the kernel rounds, or a type's name for the usual.
        max_deviations: 1 or 2, how many together are looked for.

    Raises:
        ValueError: inputs or an output that do not fit `spec`, or not as many of both.
        TypeError: something is no array.
    """
    if max_deviations not in (1, 2):
        raise ValueError(f"max_deviations is {max_deviations!r}, but must be 1 or 2")
    recipe = Recipe.of(recipe)
    several = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    outs = [actual] if isinstance(inputs, Mapping) else list(actual)
    if len(outs) != len(several) or not outs:
        raise ValueError(
            f"there are {len(outs)} outputs and {len(several)} inputs, but must be as many, and one or more"
        )
    douts = [dout] if isinstance(inputs, Mapping) else [None] * len(several) if dout is None else list(dout)
    without = [isinstance(one, Mapping) and "out" not in one and len(one) > 0 for one in outs]
    if any(without) and not all(without):
        raise ValueError("some of the outputs lack 'out', and others have it: give it in all, or in none")
    known = [budget(spec, x, recipe, members=4, dout=d) for x, d in zip(several, douts, strict=True)]
    if all(without):
        beside = _beside(spec, known, outs, douts)
        return Ranking(NONE_FITS if beside else NO_DEVIATION, notes=beside)
    targets = tuple(Target.of(_out(given), b) for given, b in zip(outs, known, strict=True))
    verdicts = [b.judge({"out": t.actual}).status for b, t in zip(known, targets, strict=True)]
    if "fail" not in verdicts:
        if beside := _beside(spec, known, outs, douts):
            return Ranking(NONE_FITS, notes=beside)
        return Ranking(NO_DEVIATION, notes=_hidden(spec, targets, known))
    kinds = {kind_of(x) for x in several}
    if len(kinds) > 1:
        raise ValueError(f"the inputs are of several kinds, {', '.join(sorted(kinds))}: diagnose each kind by itself")
    damages = [damage(t.actual, b) for t, b in zip(targets, known, strict=True)]
    not_finite = any(d.not_finite for d in damages)
    named = deviations(spec, kinds.pop())
    right = None
    if all(d.local or status != "fail" for d, status in zip(damages, verdicts, strict=True)):
        right = tuple(right_rows(t.actual, b) for t, b in zip(targets, known, strict=True))
    fitting, closest, notes = search(spec, targets, named, max_deviations, not_finite=not_finite, right=right)
    if len(fitting) == 1 and not not_finite:
        numbers = _numbers_instead(spec, targets, fitting[0], local=right is not None)
        if numbers and len(fitting[0].deviations) > 1:
            return Ranking(AMBIGUOUS, tuple(fitting), numbers, where=_where([d.lines for d in damages]))
        if numbers:
            return Ranking(NONE_FITS, (), numbers, where=_where([d.lines for d in damages]))
    if len(fitting) == 1:
        zero = not any(t.actual.any() for t in targets)
        return Ranking(UNIQUE, tuple(fitting), notes=(UNWRITTEN, *notes) if zero else notes)
    where = _where([d.lines for d in damages])
    if fitting:
        return Ranking(AMBIGUOUS, tuple(fitting), separating=separating(spec, recipe, fitting), where=where)
    # of what passes as right, any number fits; and none gives NaN
    fitted = () if NEARLY_RIGHT in notes or not_finite else fits(spec, targets, local=right is not None)
    if any(f.fits for f in fitted):
        return Ranking(NONE_FITS, (), fitted, notes=notes, where=where)
    other = None if not_finite or right is not None else matching_recipe(spec, recipe, Parts.of(spec, targets).small)
    if other is not None:
        return Ranking(NONE_FITS, notes=(other, *notes), where=where)
    shown = tuple(c for c in closest if c.explains >= WORTH)
    pairs = max_deviations == 2 and not {NEARLY_RIGHT, NO_PAIRS, NO_PAIRS_OF_LARGE} & set(notes)
    told = [_how_close(closest, pairs)]
    if any(len(c.deviations) > 1 for c in shown):
        first = _first_to_mend(spec, targets, shown)
        shown = (first,)
        told.append(f"several: first mend {first.name}, which alone explains {first.explains:.0%}, then ask again")
    return Ranking(NONE_FITS, shown, fitted, notes=(*told, *notes), where=where)


def _first_to_mend(spec: Spec, targets: tuple[Target, ...], closest: tuple[Candidate, ...]) -> Candidate:
    """Of deviations that do not fit together, which names them wrongly more often than not, the one that does most."""
    alone = []
    for d in dict.fromkeys(d for c in closest for d in c.deviations):
        problems = [deviated(spec, t.inputs, [d]) for t in targets]
        outs = [None if p is None else output(p) for p in problems]
        share = min(explained(t, x) for t, x in zip(targets, outs, strict=True))
        residual = max(quick_residual(t, x) for t, x in zip(targets, outs, strict=True))
        alone.append(Candidate((d,), residual, share, False))
    return max(alone, key=lambda c: c.explains)


def _numbers_instead(spec: Spec, targets: tuple[Target, ...], one: Candidate, *, local: bool) -> tuple[Fit, ...]:
    """The numbers that are a better answer than a name which leaves much, or as good a one as two names together."""
    several = len(one.deviations) > 1
    if not several and one.residual <= DOUBTFUL:
        return ()
    most = AS_GOOD * one.residual if several else one.residual / AS_GOOD
    return tuple(f for f in fits(spec, targets, local=local) if f.fits and f.residual < most)


def _out(given: Any) -> Numpy:
    return output_alone(given, "a diagnosis").astype(np.float64)


def _beside(spec: Spec, known: list[Budget], given: list[Any], douts: list[Any]) -> tuple[str, ...]:
    """What is wrong though no output is: log-sum-exps, λ, gradients; and of which deviation gradients are."""
    said: dict[str, str] = {}
    arrays = [dict(one) if isinstance(one, Mapping) else {"out": one} for one in given]
    for one, b in zip(arrays, known, strict=True):
        more = {name: x for name, x in one.items() if name != "out"}
        tensors = b.judge(more).tensors if more else {}
        for name, found in tensors.items():
            if found.status == "fail":
                wrong = f"the output is right, {name} is not" if "out" in one else f"{name} is wrong"
                said.setdefault(name, f"{wrong}: {'; '.join((*found.notes, *found.reasons))}")
    grads = [name for name in said if name.startswith("d")]
    everywhere = grads and all(name in one for name in grads for one in arrays)
    return (*said.values(), *(diagnose_gradients(spec, known, arrays, douts, grads) if everywhere else ()))


def _hidden(spec: Spec, targets: tuple[Target, ...], known: list[Budget]) -> tuple[str, ...]:
    """What none of the inputs could show; of large ones the whole is asked where a part does not show it."""
    names: list[str] | None = None
    for target, b in zip(targets, known, strict=True):
        parts = Parts.of(spec, (target,))
        every = deviations(revealing(spec), kind_of(target.inputs))
        left = {d.name for d in every if (names is None or d.name in names) and not _shown(spec, parts, d)}
        names = [d.name for d in blind_spots(spec, b.inputs, known=b, among=left)]
    return (f"these inputs could not show {len(names)} deviations: {', '.join(names)}",) if names else ()


def _shown(spec: Spec, parts: Parts, deviation: Deviation) -> bool:
    """Whether a part of a large case shows a deviation."""
    on = parts.which((deviation,))
    if on is parts.whole:
        return False
    wrong = [output_of(spec, t.inputs, deviation) for t in on]
    return any(
        x is not None and x.shape == t.expected.shape and is_wrong(rows_off(t, x))
        for x, t in zip(wrong, on, strict=True)
    )


def _how_close(closest: list[Candidate], pairs: bool) -> str:
    best = max((c.explains for c in closest), default=0.0)
    if best >= WORTH:
        return f"the closest explains {best:.0%} of the squared difference"
    alone = "alone or in pairs" if pairs else "alone"
    return f"nothing in the catalogue, {alone}, explains more than {math.ceil(100 * best)}% of the squared difference"


def _where(lines: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The places of each output's error; of all, where they are one."""
    if len(set(lines)) == 1:
        return lines[0]
    return tuple(f"output {n}: {line}" for n, one in enumerate(lines) for line in one)


def separating(spec: Spec, recipe: Recipe, candidates: list[Candidate]) -> Case | None:
    """Return a case on which as many of the candidates as possible differ from each other; None where none does.

    One in float32 where roundings of 16 bits are larger than what the candidates differ by.
    """
    best: tuple[int, Case | None] = (0, None)
    pairs = len(candidates) * (len(candidates) - 1) // 2
    for own in (recipe, Recipe.of("float32")):
        for profile in ("discriminating", "tiny_values", "extreme"):
            for case in cases(profile, 7, spec=spec, dtype=own.storage):
                count = _told_apart(case, own, candidates)
                if count > best[0]:
                    best = (count, case)
                if count == pairs:
                    return case
    return best[1]


def _told_apart(case: Case, recipe: Recipe, candidates: list[Candidate]) -> int:
    known = budget(case.spec, case.inputs, recipe, members=2)
    exact = as_float64(case.spec, known.inputs)
    outs: list[Numpy | None] = []
    for candidate in candidates:
        problem = deviated(case.spec, exact, candidate.deviations)
        outs.append(None if problem is None else output(problem))
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
                count += float(np.max(over(apart, size), initial=0.0)) > APART
    return count
