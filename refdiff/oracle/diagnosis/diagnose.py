"""What is the mistake called? Every deviation is computed, and the output held against each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.deviations.listed import deviations, revealing
from refdiff.oracle.diagnosis.answer import name_output
from refdiff.oracle.diagnosis.fits import order_of_heads
from refdiff.oracle.diagnosis.gradient_diagnosis import diagnose_gradients, gradient_target
from refdiff.oracle.diagnosis.lost_tokens import lost_queries
from refdiff.oracle.diagnosis.places import damage
from refdiff.oracle.diagnosis.ranking import AMBIGUOUS, NO_DEVIATION, NONE_FITS, UNIQUE, Fit, Ranking
from refdiff.oracle.diagnosis.search import unobservable
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Target
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.outputs import output, output_alone, outputs_of
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.resolve import resolve_spec
from refdiff.oracle.verdict.verdict import FAIL, INCONCLUSIVE


def diagnose(
    actual: Any,
    spec: Spec | str,
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    recipe: Recipe | str,
    dout: Any = None,
    max_deviations: int = 2,
) -> Ranking:
    """Name what your kernel does differently from its spec.

    A unique name is that of the fewest deviations that give the outputs; which others may be there as well, because
    the inputs do not show them beside it, is in the notes. Two together, for which one number could stand as well, are
    ambiguous. Where none fits, numbers with which the output passes are listed, or else the deviations that explain
    most of the error, and that number which explains 99 % of it; where one place is wrong and the rest is right, that
    place, or the first of several, and the keys that seem to be lost there. Log-sum-exps, where they are given, tell
    which map is wrong, or that both are right. Where one field of the spec explains most, the rest is looked for with
    another value of that field: "with norm='none' it is layer_norm".

    Printed, an answer is a name with what it means and a link to where it happened:

        unique: layer_norm
          layer_norm  (fits, residual 0.517)
              norm kind: The mean taken away first. Also called
                  mean_taken_away_before_the_norm.
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
          it is wrong only in heads 0 and 1; everything else is within budget: it looks
              like how heads are counted
          out is multiplied by a factor that differs by head: 0.5, 0.7, 1, 1, 1, 1
              (fits, residual 0.117)

    NaN and ∞ are looked for first: "it is NaN in tokens 5 to 8 of head 1 of sequence 0, where the truth is finite".

    Args:
        actual: the output, an array of any library, or a mapping with it under "out", or with gradients or log-sum-exps
            alone. Or a list of them, one for each of a list of `inputs`: a name must then fit all, and what one case
            hides the other may show. Or a function that computes them, as in `check`. A name is of the output, or of
            the gradients where the output is right; what else `check` judges and is wrong then stands in the notes.
        spec: as in `truth`.
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
    several, given, douts = _as_lists(actual, inputs, dout)
    spec = resolve_spec(spec, several[0])
    known = [budget(spec, x, recipe, dout=d) for x, d in zip(several, douts, strict=True)]
    outs = [outputs_of(one, spec, x, d) for one, x, d in zip(given, several, douts, strict=True)]
    without = [isinstance(one, Mapping) and "out" not in one and len(one) > 0 for one in outs]
    if any(without) and not all(without):
        raise ValueError("some of the outputs lack 'out', and others have it: give it in all, or in none")
    arrays = () if all(without) else (output_alone(one, "a diagnosis").astype(np.float64) for one in outs)
    targets = tuple(Target.of(x, b) for x, b in zip(arrays, known, strict=not all(without)))
    failing = [b.judge({"out": t.actual}).status == FAIL for b, t in zip(known, targets, strict=bool(targets))]
    if any(failing):
        found = name_output(spec, recipe, targets, known, failing, max_deviations)
        side = _side_of_the_softmax(spec, known, outs) if found.status == NONE_FITS and not found.fits else ()
        return replace(found, where=(*side, *found.where))
    if beside := _beside(spec, known, outs, douts):
        return beside
    return Ranking(NO_DEVIATION, notes=_hidden(spec, targets))


def _as_lists(actual: Any, inputs: Any, dout: Any) -> tuple[list[Mapping[str, Any]], list[Any], list[Any]]:
    """Inputs, outputs and gradients of the output, one of each for every case."""
    if isinstance(inputs, Mapping) or not isinstance(inputs, Iterable):
        return [inputs], [actual], [dout]
    several = list(inputs)
    outs = [actual] * len(several) if callable(actual) else list(actual)
    if len(outs) != len(several) or not outs:
        raise ValueError(
            f"there are {len(outs)} outputs and {len(several)} inputs, but must be as many, and one or more"
        )
    return several, outs, [None] * len(several) if dout is None else list(dout)


def _side_of_the_softmax(spec: Spec, known: Sequence[Budget], given: Sequence[Any]) -> tuple[str, ...]:
    """Which map is wrong, or that both are right, by the log-sum-exps that were given beside a wrong output."""
    names = spec.lse_names
    if not all(isinstance(one, Mapping) and set(names) <= one.keys() for one in given):
        return ()
    verdicts = [b.judge({name: one[name] for name in names}).tensors for b, one in zip(known, given, strict=True)]
    if any(found.status == INCONCLUSIVE for tensors in verdicts for found in tensors.values()):
        return ()
    wrong = [name for name in names if any(tensors[name].status == FAIL for tensors in verdicts)]
    if not wrong:
        are = "are" if len(names) > 1 else "is"
        behind = "values" if spec.is_plain else "values, λ, the difference and the norm"
        return (f"{' and '.join(names)} {are} right: look behind the softmax, at {behind}",)
    if len(wrong) == len(names):
        return ()
    right, number = ("lse2", "first") if wrong == ["lse1"] else ("lse1", "second")
    return (f"{wrong[0]} is wrong and {right} is right: look at the scores and the mask of the {number} map",)


def _beside(spec: Spec, known: list[Budget], given: list[Any], douts: list[Any]) -> Ranking | None:
    """The answer where no output is wrong, but log-sum-exps, λ or gradients are: of which deviation gradients are."""
    said: dict[str, str] = {}
    where: dict[str, list[str]] = {}
    arrays = [dict(one) if isinstance(one, Mapping) else {"out": one} for one in given]
    for one, b in zip(arrays, known, strict=True):
        more = {name: x for name, x in one.items() if name != "out"}
        tensors = b.judge(more).tensors if more else {}
        for name, found in tensors.items():
            if found.status == FAIL:
                wrong = f"the output is right, {name} is not" if "out" in one else f"{name} is wrong"
                said.setdefault(name, f"{wrong}: {'; '.join((*found.notes, *found.reasons))}")
                if name in b.tensors:
                    where.setdefault(name, []).extend(damage(output(one[name], name).astype(np.float64), b, name).lines)
    if not said:
        return None
    grads = [name for name in said if name.startswith("d")]
    everywhere = grads and all(name in one for name in grads for one in arrays)
    answers = list(diagnose_gradients(spec, known, arrays, douts, grads)) if everywhere else []
    named = {name for answer in answers if answer.candidates for name in answer.names}
    told = {name for answer in answers for name in answer.names}
    orders: list[Fit] = []
    for name in [n for n in where if everywhere and n.startswith("d") and n not in told]:
        targets = tuple(gradient_target(b, name, one[name]) for b, one in zip(known, arrays, strict=True))
        orders += [replace(fit, text=f"{name}: {fit.text}") for fit in order_of_heads(targets)]
        lost = [
            line for b, t, g in zip(known, targets, douts, strict=True) for line in lost_queries(b, name, t.actual, g)
        ]
        where[name] = list(dict.fromkeys(lost)) or where[name]
    lines = tuple(line.replace("it is", f"{name} is", 1) for name in where for line in where[name] if name not in named)
    notes = (*said.values(), *(answer.text for answer in answers))
    if len(answers) == 1 and named == set(said):
        fits = answers[0].candidates
        return Ranking(UNIQUE if len(fits) == 1 else AMBIGUOUS, fits, notes=notes, where=lines)
    return Ranking(NONE_FITS, fits=tuple(orders), notes=notes, where=lines)


def _hidden(spec: Spec, targets: tuple[Target, ...]) -> tuple[str, ...]:
    """What none of the inputs could show."""
    names: list[str] | None = None
    for target in targets:
        every = deviations(revealing(spec), kind_of(target.inputs))
        left = tuple(d for d in every if names is None or d.name in names)
        names = unobservable(spec, Parts.of(spec, (target,)), (), left, {})
    return (f"these inputs could not show {len(names)} deviations: {', '.join(names)}",) if names else ()
