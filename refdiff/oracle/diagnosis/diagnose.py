"""Name the mistake of a kernel from its wrong output: deviations, a fitted number, or the place of the error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.budget.statistics import root_mean_square, safe_ratio
from refdiff.oracle.cases.fixed import Case, cases
from refdiff.oracle.deviations.deviation import Deviation, Problem, output_with
from refdiff.oracle.deviations.listed import deviations, enlarge_spec, needs_two_maps
from refdiff.oracle.deviations.rare import RARE_DEVIATIONS
from refdiff.oracle.diagnosis.fits import fit_fields, fit_head_order, fit_parameters, is_single
from refdiff.oracle.diagnosis.gradient_diagnosis import diagnose_gradients, gradient_target
from refdiff.oracle.diagnosis.lost_tokens import find_lost_keys, find_lost_queries
from refdiff.oracle.diagnosis.places import correct_rows, locate_errors
from refdiff.oracle.diagnosis.ranking import (
    AMBIGUOUS,
    NO_DEVIATION,
    NONE_FITS,
    RIGHT_OUTPUT,
    UNIQUE,
    Candidate,
    Fit,
    Ranking,
    percent,
)
from refdiff.oracle.diagnosis.search import find_hidden, score_candidate, score_on_whole, search
from refdiff.oracle.diagnosis.targets import Parts, Target, as_stored
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.outputs import collect_outputs, read_output, require_out, to_float64
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.resolve import resolve_spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.verdict.verdict import FAIL, INCONCLUSIVE, PASS

BITS_NOTE = "the output is right, but its bits are read as integers: .view(ml_dtypes.bfloat16) reads them as numbers"
COARSER_RECIPES = {"float32": ("tf32", "float16", "bfloat16"), "float16": ("bfloat16",), "bfloat16": ()}
"""For each storage type, the types' default recipes with larger rounding errors, the finest first."""


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

    The search stops at the first of these that reproduces the output:

    1. One deviation, or two together. The notes name those that could be present without a visible effect. Two
       deviations that one fitted number could replace are ambiguous, or left out if the number fits clearly better.
    2. A fitted number, such as the scale of the scores or λ of each head. Pairs are not tried if the output is the
       truth times one number, or if one number, or lost keys that no name explains, explain a large output.
    3. A coarser recipe, two fields of the spec, or a deviation from a spec with one field changed: "with norm='none'
       it is layer_norm".

    If none does, the answer has the deviations that explain most of the error, or a number that explains 99 % of it,
    and the keys that seem to be lost. Log-sum-exps, if given, tell which of the two maps is wrong. Unless one name
    fits, a local error is described by its place.

    Printed, an answer is a name with its meaning and a link to an example:

        unique: layer_norm
          layer_norm  (fits, residual 0.517)
              norm kind: LayerNorm in place of RMSNorm: the mean is subtracted first.
                  Also called layer_norm_for_rms_norm.
                  https://huggingface.co/spaces/hudsongouge/DAT-Byte-Demo/...

    or a place, here of a kernel that does not write one tile of one head:

        none fits
          it is wrong only in tokens 32 to 63 of head 3 of sequence 1; everything else
              is within budget: it looks like a tile not written, or written too early
              or late
          it is exactly zero there, where the truth is not: it looks like memory never
              written to, or every key masked
          nothing in the catalogue, alone or in pairs, explains more than 0% of the
              squared difference

    or a fitted number, here of a kernel that multiplies two of six heads:

        none fits, but a number does
          it is wrong only in heads 0 and 1; everything else is within budget: it looks
              like how heads are counted
          out is multiplied by a factor that differs by head: 0.5, 0.7, 1, 1, 1, 1
              (fits, residual 0.117)

    NaN and ∞ are reported by place: "it is NaN in tokens 5 to 8 of head 1 of sequence 0, where the truth is finite".

    Args:
        actual: the output, an array of any library; a mapping with it as "out", or only with gradients or log-sum-exps;
            or a function that computes either, as in `check`. The gradients are diagnosed if the output is correct.
            What else is wrong then is in the notes.
        spec: as in `truth`.
        inputs: as in `truth`. For a list of inputs, `actual` is a list too. A name must fit all of them, and one case
            may show what another hides.
        recipe: what the kernel rounds, or the name of a type for its default recipe.
        dout: as in `check`, if there are gradients; a list for a list of inputs.
        max_deviations: 1 or 2, the most deviations that are combined.

    Raises:
        ValueError: inputs or an output do not fit `spec`, or the numbers of inputs and outputs differ.
        TypeError: something is not an array.
    """
    if max_deviations not in (1, 2):
        raise ValueError(f"max_deviations: got {max_deviations!r}, expected 1 or 2")
    recipe = Recipe.of(recipe)
    several, actuals, douts = _as_lists(actual, inputs, dout)
    spec = resolve_spec(spec, several[0])
    budgets = [budget(spec, x, recipe, dout=d) for x, d in zip(several, douts, strict=True)]
    outs = [collect_outputs(one, spec, x, d) for one, x, d in zip(actuals, several, douts, strict=True)]
    without = [isinstance(one, Mapping) and "out" not in one and len(one) > 0 for one in outs]
    if any(without) and not all(without):
        raise ValueError("some of the outputs lack 'out', and others have it: give it in all, or in none")
    arrays = [] if all(without) else [to_float64(require_out(one, "a diagnosis")) for one in outs]
    targets = tuple(map(Target.of, arrays, budgets))
    failing = [b.judge({"out": t.actual}).status == FAIL for b, t in zip(budgets, targets, strict=False)]
    if any(failing):
        wrong_lse = _find_wrong_lse(spec, budgets, outs)
        right_lse = wrong_lse == ()
        found = diagnose_output(spec, recipe, targets, budgets, failing, max_deviations, right_lse=right_lse)
        maps = _describe_lse(spec, wrong_lse) if found.status == NONE_FITS and not found.fits else ()
        return replace(found, where=(*maps, *found.where))
    if found_elsewhere := _diagnose_other_tensors(spec, budgets, outs, douts):
        return found_elsewhere
    return Ranking(NO_DEVIATION, notes=_blind_spot_notes(spec, targets))


def _as_lists(actual: Any, inputs: Any, dout: Any) -> tuple[list[Mapping[str, Any]], list[Any], list[Any]]:
    """Return lists of inputs, outputs and gradients of the output, one of each per case."""
    if isinstance(inputs, Mapping) or not isinstance(inputs, Iterable):
        return [inputs], [actual], [dout]
    several = list(inputs)
    outs = [actual] * len(several) if callable(actual) else list(actual)
    if len(outs) != len(several) or not outs:
        raise ValueError(
            f"got {len(outs)} outputs and {len(several)} inputs, expected as many of both, and one or more"
        )
    return several, outs, [None] * len(several) if dout is None else list(dout)


def _find_wrong_lse(spec: Spec, budgets: Sequence[Budget], outs: Sequence[Any]) -> tuple[str, ...] | None:
    """Return the names of the wrong log-sum-exps of a wrong output; None if some are unknown."""
    names = spec.lse_names
    if not all(isinstance(one, Mapping) and set(names) <= one.keys() for one in outs):
        return None
    verdicts = [b.judge({name: one[name] for name in names}).tensors for b, one in zip(budgets, outs, strict=True)]
    if any(found.status == INCONCLUSIVE for tensors in verdicts for found in tensors.values()):
        return None
    return tuple(name for name in names if any(tensors[name].status == FAIL for tensors in verdicts))


def _describe_lse(spec: Spec, wrong: tuple[str, ...] | None) -> tuple[str, ...]:
    """Say which map is wrong, or that both are correct, from the names of the wrong log-sum-exps; () if unknown."""
    names = spec.lse_names
    if wrong is None or len(wrong) == len(names):
        return ()
    if not wrong:
        are = "are" if len(names) > 1 else "is"
        later = "" if spec.is_plain else ", λ, the difference and the norm"
        sums = "values, the weighted sums and their rescaling or merging over tiles"
        return (f"{' and '.join(names)} {are} right: look at what comes after the scores: {sums}{later}",)
    right, number = ("lse2", "first") if wrong == ("lse1",) else ("lse1", "second")
    return (f"{wrong[0]} is wrong and {right} is right: look at the scores and the mask of the {number} map",)


@np.errstate(over="ignore", invalid="ignore")  # a wrong result may hold any numbers
def _diagnose_other_tensors(spec: Spec, budgets: list[Budget], outs: list[Any], douts: list[Any]) -> Ranking | None:
    """Diagnose wrong gradients, log-sum-exps or λ of kernels whose outputs are correct; None if nothing is wrong."""
    said: dict[str, str] = {}
    other_convention: set[str] = set()
    where: dict[str, list[str]] = {}
    arrays = [dict(one) if isinstance(one, Mapping) else {"out": one} for one in outs]
    for one, b in zip(arrays, budgets, strict=True):
        more = {name: x for name, x in one.items() if name != "out"}
        tensors = b.judge(more).tensors if more else {}
        for name, found in tensors.items():
            if found.status == FAIL:
                wrong = f"{RIGHT_OUTPUT}{name} is not" if "out" in one else f"{name} is wrong"
                said.setdefault(name, f"{wrong}: {'; '.join((*found.notes, *found.reasons))}")
                other_convention |= {name} if found.notes and name in spec.lse_names else set()
                if name in b.tensors:
                    x = to_float64(read_output(one[name], name))
                    where.setdefault(name, []).extend(locate_errors(x, b, name).lines)
    if not said:
        return None
    grads = [name for name in said if name.startswith("d")]
    everywhere = grads and all(name in one for name in grads for one in arrays)
    answers = list(diagnose_gradients(spec, budgets, arrays, douts, grads)) if everywhere else []
    named = {name for answer in answers if answer.candidates for name in answer.names}
    told = {name for answer in answers for name in answer.names}
    orders: list[Fit] = []
    for name in [n for n in where if everywhere and n.startswith("d") and n not in told]:
        targets = tuple(gradient_target(b, name, one[name]) for b, one in zip(budgets, arrays, strict=True))
        orders += [replace(fit, text=f"{name}: {fit.text}") for fit in fit_head_order(targets)]
        lost = [
            line
            for b, t, g in zip(budgets, targets, douts, strict=True)
            for line in find_lost_queries(b, name, t.actual, g)
        ]
        where[name] = list(dict.fromkeys(lost)) or where[name]
    lines = tuple(line.replace("it is", f"{name} is", 1) for name in where for line in where[name] if name not in named)
    notes = (*(answer.text for answer in answers), *said.values())
    if len(answers) == 1 and named == set(said):
        fits = answers[0].candidates
        return Ranking(UNIQUE if len(fits) == 1 else AMBIGUOUS, fits, notes=notes, where=lines)
    explained = set(said) <= told | other_convention
    return Ranking(NONE_FITS, fits=tuple(orders), notes=notes, where=lines, explained=explained)


def _blind_spot_notes(spec: Spec, targets: tuple[Target, ...]) -> tuple[str, ...]:
    """Return a note with the deviations that none of the inputs can show; () if there are none."""
    names: list[str] | None = None
    for target in targets:
        every = deviations(enlarge_spec(spec), kind_of(target.inputs))
        left = tuple(d for d in every if names is None or d.name in names)
        names = find_hidden(spec, Parts.of(spec, (target,)), (), left, {})
    return (f"these inputs could not show {len(names)} deviations: {', '.join(names)}",) if names else ()


@np.errstate(over="ignore", invalid="ignore")  # a wrong result may hold any numbers
def diagnose_output(
    spec: Spec, recipe: Recipe, targets: tuple[Target, ...], budgets: Sequence[Budget], fails: Sequence[bool],
    most: int, *, right_lse: bool = False,
) -> Ranking:  # fmt: skip
    """Diagnose outputs of which at least one fails, with up to `most` deviations together."""
    kinds = {kind_of(t.inputs) for t in targets}
    if len(kinds) > 1:
        raise ValueError(f"the inputs are of several kinds, {', '.join(sorted(kinds))}: diagnose each kind by itself")
    places = [locate_errors(t.actual, b, right_lse=right_lse) for t, b in zip(targets, budgets, strict=True)]
    where, not_finite = _join_places([p.lines for p in places]), any(p.not_finite for p in places)
    local = all(p.local or not wrong for p, wrong in zip(places, fails, strict=True))
    correct = [correct_rows(t.actual, b.tensors["out"]) for t, b in zip(targets, budgets, strict=True) if local]
    rare = (d for d in RARE_DEVIATIONS if not (spec.is_plain and needs_two_maps(d)))
    every = (*deviations(spec, kinds.pop()), *rare)
    zero = not any(t.actual.any() for t in targets)  # as many pairs give, and memory never written to
    parts = Parts.of(spec, targets)

    @cache
    def numbers() -> tuple[Fit, ...]:
        return () if not_finite else fit_parameters(spec, parts, local=local)  # no number gives NaN

    @cache
    def lost_keys() -> list[tuple[str, ...]]:
        return [find_lost_keys(spec, t) if wrong else () for t, wrong in zip(targets, fails, strict=True)]

    def is_explained(closest: Sequence[Candidate]) -> bool:
        if any(is_single(fit) and (fit.parameter == "factor" or parts.is_large) for fit in numbers()):
            return True
        if not parts.is_large or any(c.explains >= THRESHOLDS.explained for c in closest):
            return False  # the closest may be a mask, whose lost keys would hide the other name of a pair
        return all(said or not wrong for said, wrong in zip(lost_keys(), fails, strict=True))

    found = search(
        spec, parts, every, 1 if zero else most,
        not_finite=not_finite, correct=correct or None, is_explained=is_explained,
    )  # fmt: skip
    fitting, notes = found.fitting, found.notes
    if zero and len(fitting) < 2:  # one name that gives zeros is no likelier than the others
        return Ranking(NONE_FITS, where=where)
    if len(fitting) == 1:
        return _answer_single(fitting[0], numbers, notes, where)
    if fitting:
        return Ranking(AMBIGUOUS, tuple(fitting), separating=find_separating_case(spec, recipe, fitting), where=where)
    if all(_is_bit_pattern(t, b) for t, b in zip(targets, budgets, strict=True)):
        return Ranking(NONE_FITS, notes=(BITS_NOTE,))
    fitted = () if found.nearly_right else numbers()  # a nearly correct output passes with any number
    if any(f.fits for f in fitted):
        return Ranking(NONE_FITS, (), fitted, notes=notes, where=where)
    other = None if not_finite else find_coarser_recipe(spec, recipe, parts.local, local=local)
    if other is not None and not local:
        return Ranking(NONE_FITS, notes=(other, *notes), where=where)
    if found.tried_pairs and not local:
        said = fit_fields(spec, parts) or relax_field(spec, recipe, parts, every, found.closest)
        if said is not None:
            return Ranking(NONE_FITS, notes=(said, *notes), where=where)
    if not found.nearly_right:
        where += _join_places(lost_keys())
    shown, told = _pick_shown(spec, parts, found.closest, fitted, found.tried_pairs)
    return Ranking(NONE_FITS, shown, fitted, notes=(*filter(None, (other, told)), *notes), where=where)


def _pick_shown(
    spec: Spec, parts: Parts, closest: Sequence[Candidate], fitted: Sequence[Fit], pairs: bool
) -> tuple[tuple[Candidate, ...], str]:
    """Return the candidates to show although none fits, and a note on how close they or a fitted number come.

    Candidates that explain clearly less than a fitted number are left out. Most pairs that do not fit are wrong names.
    In their place, the one of their deviations that explains most is shown.
    """
    left = min((1 - f.explains for f in fitted), default=math.inf)
    closest = [c for c in closest if 1 - c.explains <= THRESHOLDS.better_ratio * left]
    shown = tuple(c for c in closest if c.explains >= THRESHOLDS.explained)
    if not any(len(c.deviations) > 1 for c in shown):
        return shown, _format_closeness((*closest, *fitted), pairs)
    alone = _score_singles(spec, parts, dict.fromkeys(d for c in shown for d in c.deviations))
    whole = [score_on_whole(spec, parts, c) for c in alone if c.explains >= THRESHOLDS.explained]
    first = max(whole, key=lambda c: c.explains, default=None)
    if first is None or first.explains < THRESHOLDS.explained:
        return (), "it may be several mistakes: no single name explains most of the squared difference"
    note = f"several mistakes: fix {first.name} first, which explains {percent(first.explains)}, then diagnose again"
    return (first,), note


def _is_bit_pattern(target: Target, own_budget: Budget) -> bool:
    """Whether an output holds the bits of a correct bfloat16 output as signed or unsigned integers."""
    x = target.actual
    if not np.array_equal(x, np.round(x)) or not 255 < np.max(np.abs(x), initial=0.0) < 2**16:
        return False
    numbers = (x.astype(np.int64).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return own_budget.judge({"out": numbers}).status == PASS


def relax_field(
    spec: Spec, recipe: Recipe, parts: Parts, every: Sequence[Deviation], closest: Sequence[Candidate]
) -> str | None:
    """Diagnose an output after one field of the spec is changed; None if no such spec gives a name.

    The fields tried are those that explain most of the error, alone or with another deviation.
    """
    alone = _score_singles(spec, parts, (d for d in every if d.fields))
    explaining = (c for c in (*alone, *closest) if c.explains >= THRESHOLDS.explained)
    best = sorted(explaining, key=lambda c: -c.explains)
    fields = dict.fromkeys(d for c in best for d in c.deviations if d.fields)
    found = (_search_with_field(spec, recipe, parts.whole, d) for d in list(fields)[: THRESHOLDS.max_fields])
    return next((text for text in found if text), None)


def _score_singles(spec: Spec, parts: Parts, some: Iterable[Deviation]) -> list[Candidate]:
    """Score each deviation alone, on parts of large inputs."""
    found = (score_candidate(spec, parts.select((d,)), (d,)) for d in some)
    return [c for c in found if c is not None]


def _search_with_field(spec: Spec, recipe: Recipe, targets: tuple[Target, ...], field: Deviation) -> str | None:
    """Diagnose the outputs from the spec that `field` changes; None if nothing fits."""
    problems = [field.apply(Problem(spec, t.inputs)) for t in targets]
    budgets = [budget(p.spec, as_stored(p.inputs, recipe), recipe, members=4) for p in problems if p is not None]
    if len(budgets) < len(targets):
        return None
    other = budgets[0].spec
    looser = tuple(Target.of(t.actual, b) for t, b in zip(targets, budgets, strict=True))
    parts = Parts.of(other, looser)
    most = 1 if parts.is_split else 2  # pairs of large inputs take long
    found = search(other, parts, deviations(other, kind_of(looser[0].inputs)), most)
    fields = ", ".join(f"{n}={x!r}" for n, x in other.to_dict().items() if x != getattr(spec, n))
    if names := [c.name for c in found.fitting]:
        return f"with {fields} it is {' or '.join(names)}"
    return next((f"with {fields}, {f.text}" for f in fit_parameters(other, parts) if f.fits), None)


def _answer_single(
    one: Candidate, numbers: Callable[[], tuple[Fit, ...]], notes: tuple[str, ...], where: tuple[str, ...]
) -> Ranking:
    """Return the answer for a single candidate that fits, unless fitted numbers are as good.

    They must fit better than a doubtful name, or as well as two names together.
    """
    several = len(one.deviations) > 1
    better: tuple[Fit, ...] = ()
    if several or one.residual > THRESHOLDS.correct_residual:
        most = THRESHOLDS.better_ratio * one.residual if several else one.residual / THRESHOLDS.better_ratio
        better = tuple(f for f in numbers() if f.fits and f.residual < most)
    if not better:
        return Ranking(UNIQUE, (one,), notes=notes)
    if several and not any(THRESHOLDS.better_ratio * f.residual < one.residual for f in better):
        return Ranking(AMBIGUOUS, (one,), better, where=where)
    return Ranking(NONE_FITS, (), better, where=where)


def _format_closeness(closest: Sequence[Candidate | Fit], pairs: bool) -> str:
    best = max((c.explains for c in closest), default=0.0)
    if best >= THRESHOLDS.explained:
        return f"the closest explains {percent(best)} of the squared difference"
    alone = "alone or in pairs" if pairs else "alone"
    most = math.ceil(100 * best - 1e-6)
    return f"nothing in the catalogue, {alone}, explains more than {most}% of the squared difference"


def _join_places(lines: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Join the places of all outputs; places that are the same for all outputs are listed once."""
    if len(set(lines)) == 1:
        return lines[0]
    return tuple(f"output {n}: {line}" for n, one in enumerate(lines) for line in one)


def find_coarser_recipe(spec: Spec, recipe: Recipe, targets: Sequence[Target], *, local: bool = False) -> str | None:
    """Name the finest coarser recipe with which the outputs pass; None if there is none.

    Called only if no deviation and no number fits: the rounding errors of a coarser type hide small mistakes.

    Args:
        local: whether the outputs are wrong in one place only. Rounded scores can be the cause, if few are large.
    """
    for words, other in _list_coarser_recipes(recipe, local=local):
        budgets = ((t, budget(spec, as_stored(t.inputs, recipe), other, members=4)) for t in targets)
        if all(b.judge({"out": t.actual}).status == PASS for t, b in budgets):
            own = recipe.name
            return f"it passes with {words}: does your kernel round there, where {own!r} does not say so?"
    return None


def _list_coarser_recipes(recipe: Recipe, *, local: bool) -> Iterator[tuple[str, Recipe]]:
    """Yield recipes that round q · scale or the scores too, as eager kernels do, then those of coarser types."""
    for sites in (("scaled_q",), ("qk",), ("qk", "scaled_q")):
        if all(getattr(recipe, site) != recipe.storage for site in sites):
            words = " and ".join(f"{site}={recipe.storage!r}" for site in sites)
            yield words, replace(recipe, **dict.fromkeys(sites, recipe.storage))
    for name in () if local else COARSER_RECIPES[recipe.storage]:
        if Recipe.of(name) != recipe:
            yield f"recipe={name!r}", Recipe.of(name)


def find_separating_case(spec: Spec, recipe: Recipe, candidates: list[Candidate]) -> Case | None:
    """Return a case on which as many candidates as possible differ from each other; None if none do.

    The case is in float32 if 16-bit rounding errors hide the differences.
    """
    best: tuple[int, Case | None] = (0, None)
    pairs = len(candidates) * (len(candidates) - 1) // 2
    for own in (recipe, Recipe.of("float32")):
        for profile in ("discriminating", "tiny_values", "extreme"):
            for case in cases(profile, 7, spec=spec, dtype=own.storage):
                count = _count_separated(case, own, candidates)
                if count > best[0]:
                    best = (count, case)
                if count == pairs:
                    return case
    return best[1]


def _count_separated(case: Case, recipe: Recipe, candidates: list[Candidate]) -> int:
    own_budget = budget(case.spec, case.inputs, recipe, members=2)
    exact = as_float64(case.spec, own_budget.inputs)
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
                size = np.maximum(own_budget.rows["out"], recipe.u * root_mean_square(np.where(np.isfinite(a), a, 0.0)))
                count += float(np.max(safe_ratio(apart, size), initial=0.0)) > THRESHOLDS.case_separation
    return count
