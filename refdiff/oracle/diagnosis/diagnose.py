"""Name the mistake of a kernel from its wrong output or gradients, or say where they are wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from refdiff.backends.numpy.thread_pool import BLAS
from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.budget.statistics import root_mean_square, safe_ratio
from refdiff.oracle.cases.values import round_to_storage
from refdiff.oracle.diagnosis.evidence import Case
from refdiff.oracle.diagnosis.hypotheses import Hypothesis, hypotheses, wrong_derivatives
from refdiff.oracle.diagnosis.places import REST_IN_BUDGET, locate_errors
from refdiff.oracle.diagnosis.ranking import (
    AMBIGUOUS,
    NO_DEVIATION,
    NONE_FITS,
    RIGHT_OUTPUT,
    UNIQUE,
    Finding,
    Ranking,
    percent,
)
from refdiff.oracle.diagnosis.search import Search
from refdiff.oracle.diagnosis.tokens import head_orders, lost_keys, zeros
from refdiff.oracle.inputs.outputs import collect_outputs, read_output, to_float64
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.inputs.sequences import Numpy
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.verdict.verdict import FAIL, INCONCLUSIVE, PASS

NEARLY_RIGHT = (
    "the error is slightly larger than that of right kernels of this recipe, and points to no deviation: "
    "does the recipe name everything that the kernel rounds?"
)
COARSER_RECIPES = {"float32": ("tf32", "float16", "bfloat16"), "float16": ("bfloat16",), "bfloat16": ()}
"""For each storage type, the types' default recipes with larger rounding errors, the finest first."""


@np.errstate(over="ignore", invalid="ignore")  # a wrong result may hold any numbers
@BLAS.limited(1)  # its threads spin between small products
def diagnose(
    actual: Any,
    spec: Spec | str,
    inputs: Mapping[str, Any],
    *,
    recipe: Recipe | str,
    dout: Any = None,
    max_deviations: int = 2,
) -> Ranking:
    """Name what your kernel does differently from its spec.

    Each hypothesis changes the spec, the inputs, a layer or a derivative. It is the answer if your tensors are as near
    to a kernel with it as rounding errors allow, and the truth is not. The search stops at the first of these that
    gives an answer:

    1. The names of the catalogue of mistakes.
    2. A number, such as the scale of the scores; a choice that has no name, such as the share of a head that RoPE
       rotates; a set of keys that wrong rows do not see. What was fitted is part of the name.
    3. Two hypotheses together.

    If none fits, the answer has those that explain most of the error, and the place of a local error. Log-sum-exps, if
    given, tell which of the two maps is wrong. Hypotheses that compute the same function are one answer.

    Printed, an answer is a name with its meaning and a link to an example:

        unique: layer_norm
          layer_norm  (fits, residual 0.517)
              norm kind: LayerNorm in place of RMSNorm: the mean is subtracted first.
                  Also called layer_norm_for_rms_norm.
                  https://huggingface.co/spaces/hudsongouge/DAT-Byte-Demo/...

    or a place, here of a kernel that does not write one tile of one head:

        none fits
          it is wrong only in tokens 32 to 63 of head 3 of sequence 1; everything else
              is within budget
          it is exactly zero there, where the truth is not: it looks like memory never
              written to, or every key masked
          nothing in the catalogue, alone, explains more than 6% of the squared
              difference

    or a number:

        unique: scale = 0.2
          scale = 0.2  (fits, residual 0.128)
              scale: Scores are multiplied by 0.2, where the spec has 0.25.

    NaN and ∞ are reported by place: "it is NaN in tokens 5 to 8 of head 1 of sequence 0, where the truth is finite".

    Args:
        actual: the output, an array of any library; a mapping with it as "out", or only with gradients or log-sum-exps;
            or a function that computes either, as in `check`. The gradients are diagnosed if the output is correct.
            What else is wrong then is in the notes.
        spec: as in `truth`.
        inputs: as in `truth`.
        recipe: what the kernel rounds, or the name of a type for its default recipe.
        dout: as in `check`, if there are gradients.
        max_deviations: 1 or 2, the most hypotheses that are combined.

    Raises:
        ValueError: inputs or an output do not fit `spec`, or there is nothing to diagnose.
        TypeError: something is not an array.
    """
    if max_deviations not in (1, 2):
        raise ValueError(f"max_deviations: got {max_deviations!r}, expected 1 or 2")
    spec = resolve_spec(spec, inputs)
    own = budget(spec, inputs, Recipe.of(recipe), dout=dout)
    found = collect_outputs(actual, spec, inputs, dout)
    given = dict(found) if isinstance(found, Mapping) else {"out": found}
    given = {name: read_output(x, name) for name, x in given.items()}
    verdicts = own.judge(given).tensors
    if "out" in given and verdicts["out"].status == FAIL:
        return _diagnose_output(own, given, max_deviations)
    return _diagnose_others(own, given, dout, max_deviations)


def _diagnose_output(own: Budget, given: Mapping[str, Numpy], most: int) -> Ranking:
    """Diagnose an output that fails."""
    spec, y = own.spec, to_float64(given["out"])
    case = Case(own, {"out": y})
    wrong_lse = _find_wrong_lse(own, given)
    place = locate_errors(y, own)
    where = (*_describe_lse(spec, wrong_lse), *place.lines)
    zero = not y.any()  # as many pairs give, and memory never written to
    search = Search(case, hypotheses(spec, case.start.inputs, case.kind, own.recipe, sampled=case.is_sampled))

    def more() -> Iterator[Hypothesis]:
        yield from head_orders(case)
        yield from lost_keys(case)

    found = search.run(1 if zero else most, more)
    if zero and len(found) < 2:  # one name that gives zeros is no likelier than the others
        return Ranking(NONE_FITS, where=where)
    if len(found) == 1:
        return Ranking(UNIQUE, tuple(found), where=() if all(h.is_name for h in found[0].hypotheses) else where)
    if found:
        return Ranking(AMBIGUOUS, tuple(found), where=where)
    rounding = None if place.not_finite else find_coarser_recipe(case, local=place.local)
    shown, told = ((), "") if REST_IN_BUDGET in place.lines else _pick_shown(search, finite=not place.not_finite)
    notes = filter(None, (rounding, NEARLY_RIGHT if search.nearly_right else told))
    return Ranking(NONE_FITS, shown, notes=tuple(notes), where=where)


def _pick_shown(search: Search, *, finite: bool) -> tuple[tuple[Finding, ...], str]:
    """Return the findings to show although none fits, and a note on how close they come.

    Most pairs that do not fit are wrong names. In their place, the one of them that explains most alone is shown.
    """
    near = [f for f in search.closest if math.isfinite(f.residual) or not finite]
    alone = [f for f in near if len(f.edits) == 1]
    best, first = (max((f.explains for f in some), default=0.0) for some in (near, alone))
    if best < THRESHOLDS.explained:
        how = "alone or in pairs" if search.several else "alone"
        most = math.ceil(100 * best - 1e-6)
        return (), f"nothing in the catalogue, {how}, explains more than {most}% of the squared difference"
    if THRESHOLDS.better_ratio * (1 - best) < 1 - first:  # a pair
        if first < THRESHOLDS.explained:
            return (), "it may be several mistakes: no single name explains most of the squared difference"
        advice = f"fix {alone[0].name} first, which explains {percent(first)}, then diagnose again"
        return (alone[0],), f"several mistakes: {advice}"
    shown = [f for f in alone if f.explains >= THRESHOLDS.explained]
    return tuple(shown[: THRESHOLDS.max_closest]), f"the closest explains {percent(best)} of the squared difference"


def _find_wrong_lse(own: Budget, given: Mapping[str, Numpy]) -> tuple[str, ...] | None:
    """Return the names of the wrong log-sum-exps of a wrong output; None if some are unknown."""
    names = own.spec.lse_names
    if not set(names) <= given.keys():
        return None
    verdicts = own.judge({name: given[name] for name in names}).tensors
    if any(found.status == INCONCLUSIVE for found in verdicts.values()):
        return None
    return tuple(name for name in names if verdicts[name].status == FAIL)


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


def _diagnose_others(own: Budget, given: Mapping[str, Numpy], dout: Any, most: int) -> Ranking:
    """Diagnose wrong gradients of a kernel whose output is correct; note what else is wrong."""
    others = {name: x for name, x in given.items() if name != "out"}
    said: dict[str, str] = {}
    for name, found in (own.judge(others).tensors if others else {}).items():
        if found.status == FAIL:
            wrong = f"{RIGHT_OUTPUT}{name} is not" if "out" in given else f"{name} is wrong"
            said[name] = f"{wrong}: {'; '.join((*found.notes, *found.reasons))}"
    if not said:
        return Ranking(NO_DEVIATION)
    notes: list[str] = []
    named: set[str] = set()
    wrong_gradients = [name for name in said if name.startswith("d")]
    if wrong_gradients:
        gradients = {n: to_float64(x) for n, x in others.items() if n in own.expected and n.startswith("d")}
        case = Case(own, gradients, round_to(read_output(dout, "dout").astype(np.float64), own.recipe.storage))
        search = Search(case, wrong_derivatives(own.spec, case.kind, wrong_gradients))

        def more() -> Iterator[Hypothesis]:
            yield from zeros(case)
            yield from head_orders(case)

        result = search.run(most, more)
        if result and len(wrong_gradients) == len(said):
            status = UNIQUE if len(result) == 1 else AMBIGUOUS
            return Ranking(status, tuple(result), notes=tuple(said.values()))
        for text, some in search.cover().items():
            notes.append(f"{' and '.join(some)} {'agrees' if len(some) == 1 else 'agree'} with {text}")
            named |= set(some)
    where = [
        line.replace("it is", f"{name} is", 1)
        for name in said
        if name in own.tensors and name not in named
        for line in locate_errors(to_float64(given[name]), own, name).lines
    ]
    return Ranking(NONE_FITS, notes=(*notes, *said.values()), where=tuple(where))


def find_coarser_recipe(case: Case, *, local: bool = False) -> str | None:
    """Name the finest coarser recipe with which an output passes; None if there is none, or most errors are large.

    Called only if nothing fits: the rounding errors of a coarser type hide small mistakes.

    Args:
        local: whether the output is wrong in one place only. Rounded scores can be the cause, if few are large.
    """
    spec, recipe, inputs, out = case.start.spec, case.recipe, case.start.inputs, case.actual["out"]
    off, size = (root_mean_square(x) for x in (out - case.expected["out"], case.expected["out"]))
    wrong = case.wrong_rows
    if wrong.any() and np.median(safe_ratio(off[wrong], size[wrong])) >= THRESHOLDS.rounding_size:
        return None
    stored = {**inputs, "q": round_to_storage(inputs["q"], recipe.storage)} if "q" in inputs else inputs
    for words, other in _list_coarser_recipes(recipe, local=local):
        coarser = budget(spec, stored, other)
        if coarser.judge({"out": out}).status == PASS:
            if _looks_like_rounding(case, coarser):
                return f"it passes with {words}: does your kernel round there, where {recipe.name!r} does not say so?"
            return f"the error is as small as that of {words}, but does not look like rounding"
    return None


def _looks_like_rounding(case: Case, coarser: Budget) -> bool:
    """Whether the errors of neighboring rows are unrelated, and those of most rows are near what rounding gives."""
    off = np.nan_to_num(case.actual["out"] - case.expected["out"])
    ratio = root_mean_square(off) / np.maximum(coarser.rows["out"], 1e-300)
    a, b = off[..., 1:, :], off[..., :-1, :]
    sizes = math.sqrt(float(np.sum(a * a)) * float(np.sum(b * b)))
    alike = float(np.sum(a * b)) / sizes if sizes else 0.0
    return float(np.median(ratio)) > THRESHOLDS.rounding_share and abs(alike) < THRESHOLDS.alike_rows


def _list_coarser_recipes(recipe: Recipe, *, local: bool) -> Iterator[tuple[str, Recipe]]:
    """Yield recipes that round q · scale or the scores too, as eager kernels do, then those of coarser types."""
    for sites in (("scaled_q",), ("qk",), ("qk", "scaled_q")):
        if all(getattr(recipe, site) != recipe.storage for site in sites):
            words = " and ".join(f"{site}={recipe.storage!r}" for site in sites)
            yield words, replace(recipe, **dict.fromkeys(sites, recipe.storage))
    for name in () if local else COARSER_RECIPES[recipe.storage]:
        if Recipe.of(name) != recipe:
            yield f"recipe={name!r}", Recipe.of(name)
