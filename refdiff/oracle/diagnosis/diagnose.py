"""Name the mistake of a kernel from its wrong output or gradients, or say where they are wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from refdiff.backends.numpy.thread_pool import BLAS
from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.budget.statistics import root_mean_square, safe_ratio
from refdiff.oracle.cases.values import round_to_storage
from refdiff.oracle.diagnosis.evidence import Case
from refdiff.oracle.diagnosis.hypotheses import Hypothesis, hypotheses, wrong_derivatives
from refdiff.oracle.diagnosis.places import locate_errors
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
from refdiff.oracle.diagnosis.search import Search, SearchResult
from refdiff.oracle.diagnosis.tokens import lost_keys, lost_parts
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.outputs import collect_outputs, read_output, require_out, to_float64
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.inputs.sequences import Numpy
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.verdict.verdict import FAIL, INCONCLUSIVE, PASS

BITS_NOTE = "the output is right, but its bits are read as integers: .view(ml_dtypes.bfloat16) reads them as numbers"
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
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
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
              is within budget: it looks like a tile not written, or written too early
              or late
          it is exactly zero there, where the truth is not: it looks like memory never
              written to, or every key masked
          nothing in the catalogue, alone, explains more than 6% of the squared
              difference

    or a number:

        unique: scale = 0.2
          scale = 0.2  (fits, residual 0.0904)
              scale: Scores are multiplied by 0.2, where the spec has 0.25.

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
        max_deviations: 1 or 2, the most hypotheses that are combined.

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
    if any(b.judge({"out": y}).status == FAIL for b, y in zip(budgets, arrays, strict=False)):
        kinds = {kind_of(b.inputs) for b in budgets}
        if len(kinds) > 1:
            said = ", ".join(sorted(kinds))
            raise ValueError(f"the inputs are of several kinds, {said}: diagnose each kind by itself")
        return _diagnose_output(budgets, arrays, _find_wrong_lse(spec, budgets, outs), max_deviations)
    given = [dict(one) if isinstance(one, Mapping) else {"out": one} for one in outs]
    return _diagnose_others(budgets, given, douts, max_deviations)


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


def _diagnose_output(
    budgets: Sequence[Budget], arrays: Sequence[Numpy], wrong_lse: tuple[str, ...] | None, most: int
) -> Ranking:
    """Diagnose outputs of which at least one fails."""
    spec, kind = budgets[0].spec, kind_of(budgets[0].inputs)
    cases = [Case(b, {"out": y}) for b, y in zip(budgets, arrays, strict=True)]
    places = [locate_errors(y, b, right_lse=wrong_lse == ()) for y, b in zip(arrays, budgets, strict=True)]
    where = (*_describe_lse(spec, wrong_lse), *_join_places([p.lines for p in places]))
    zero = not any(y.any() for y in arrays)  # as many pairs give, and memory never written to
    sampled = any(c.fine is not None for c in cases)
    search = Search(cases, hypotheses(spec, [c.start.inputs for c in cases], kind, sampled=sampled))

    def more() -> Iterator[Hypothesis]:
        if len(cases) == 1:
            yield from head_orders(cases[0])
            yield from lost_keys(cases[0])

    found = search.run(1 if zero else most, more)
    if zero and len(found.fitting) < 2:  # one name that gives zeros is no likelier than the others
        return Ranking(NONE_FITS, where=where)
    if len(found.fitting) == 1:
        one = found.fitting[0]
        return Ranking(UNIQUE, (one,), where=() if all(h.is_name for h in one.hypotheses) else where)
    if found.fitting:
        return Ranking(AMBIGUOUS, tuple(found.fitting), where=where)
    if all(_is_bit_pattern(y, b) for y, b in zip(arrays, budgets, strict=True)):
        return Ranking(NONE_FITS, notes=(BITS_NOTE,))
    local = all(p.local or not c.wrong for p, c in zip(places, cases, strict=True))
    finite = not any(p.not_finite for p in places)
    rounding = find_coarser_recipe(cases, local=local) if finite and all(map(is_small, cases)) else None
    shown, told = _pick_shown(found, finite=finite)
    notes = filter(None, (rounding, NEARLY_RIGHT if found.nearly_right else told))
    return Ranking(NONE_FITS, shown, notes=tuple(notes), where=where)


def head_orders(case: Case) -> Iterator[Hypothesis]:
    """Yield the order of heads with which the truth is nearest to a wrong tensor."""
    for name in case.wrong:
        y, f = case.actual[name], case.expected[name]
        if y.ndim != 4 or not 1 < y.shape[1] <= THRESHOLDS.max_parts or not np.isfinite(y).all():
            continue
        apart = np.array([[np.sum((y[:, i] - f[:, j]) ** 2) for j in range(f.shape[1])] for i in range(f.shape[1])])
        order = np.argmin(apart, axis=1)
        if sorted(order) == list(range(len(order))) and list(order) != sorted(order):
            said = ", ".join(map(str, order))
            what = f"The heads of {name} are right but in another order: head i is head ({said})[i] of the truth."
            yield Hypothesis(
                f"heads of {name} ordered {said}", what, "head order", _finish(name, lambda x, o=order: x[:, o])
            )


def _finish(of: str, change: Any) -> Any:
    def changed(name: str, x: Numpy) -> Numpy:
        return change(x) if name == of else x

    return lambda kernel, _: replace(kernel, finish=(*kernel.finish, changed))


def _pick_shown(found: SearchResult, *, finite: bool) -> tuple[tuple[Finding, ...], str]:
    """Return the findings to show although none fits, and a note on how close they come.

    Most pairs that do not fit are wrong names. In their place, the one of them that explains most alone is shown.
    """
    near = [f for f in found.closest if math.isfinite(f.residual) or not finite]
    alone = [f for f in near if len(f.hypotheses) == 1]
    pairs = [f for f in near if len(f.hypotheses) > 1]
    best = max((f.explains for f in near), default=0.0)
    first = max((f.explains for f in alone), default=0.0)
    if best < THRESHOLDS.explained:
        how = "alone or in pairs" if found.tried_pairs else "alone"
        most = math.ceil(100 * best - 1e-6)
        return (), f"nothing in the catalogue, {how}, explains more than {most}% of the squared difference"
    if pairs and THRESHOLDS.better_ratio * (1 - best) < 1 - first:
        if first < THRESHOLDS.explained:
            return (), "it may be several mistakes: no single name explains most of the squared difference"
        name = alone[0].name
        return tuple(
            alone[:1]
        ), f"several mistakes: fix {name} first, which explains {percent(first)}, then diagnose again"
    shown = [f for f in alone if f.explains >= THRESHOLDS.explained]
    return tuple(shown[: THRESHOLDS.max_closest]), f"the closest explains {percent(best)} of the squared difference"


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


def _diagnose_others(
    budgets: Sequence[Budget], given: list[dict[str, Any]], douts: Sequence[Any], most: int
) -> Ranking:
    """Diagnose wrong gradients of kernels whose outputs are correct; note what else is wrong."""
    said: dict[str, str] = {}
    where: dict[str, list[str]] = {}
    for one, b in zip(given, budgets, strict=True):
        more = {name: x for name, x in one.items() if name != "out"}
        for name, found in (b.judge(more).tensors if more else {}).items():
            if found.status == FAIL:
                wrong = f"{RIGHT_OUTPUT}{name} is not" if "out" in one else f"{name} is wrong"
                said.setdefault(name, f"{wrong}: {'; '.join((*found.notes, *found.reasons))}")
                if name in b.tensors:
                    x = to_float64(read_output(one[name], name))
                    where.setdefault(name, []).extend(locate_errors(x, b, name).lines)
    if not said:
        return Ranking(NO_DEVIATION)
    notes: list[str] = []
    named: set[str] = set()
    wrong_gradients = [name for name in said if name.startswith("d")]
    if wrong_gradients and all(name in one for name in wrong_gradients for one in given):
        names = [n for n in budgets[0].expected if n.startswith("d") and all(n in one for one in given)]
        cases = [
            Case(
                b,
                {n: to_float64(read_output(one[n], n)) for n in names},
                round_to(read_output(dout, "dout").astype(np.float64), b.recipe.storage),
            )
            for b, one, dout in zip(budgets, given, douts, strict=True)
        ]
        kind = kind_of(budgets[0].inputs)
        search = Search(cases, wrong_derivatives(budgets[0].spec, budgets[0].recipe, kind, wrong_gradients))

        def more_of() -> Iterator[Hypothesis]:
            yield from zeros(cases)
            if len(cases) == 1:
                yield from head_orders(cases[0])
            yield from lost_parts(cases)

        result = search.run(most, more_of)
        if result.fitting and set(wrong_gradients) == set(said):
            status = UNIQUE if len(result.fitting) == 1 else AMBIGUOUS
            return Ranking(status, tuple(result.fitting), notes=tuple(said.values()))
        for text, some in search.cover():
            notes.append(text)
            named |= set(some)
    lines = (line.replace("it is", f"{n} is", 1) for n in where for line in dict.fromkeys(where[n]) if n not in named)
    return Ranking(NONE_FITS, notes=(*notes, *said.values()), where=tuple(lines))


def zeros(cases: Sequence[Case]) -> Iterator[Hypothesis]:
    """Yield the hypothesis that all wrong gradients that are zero are zero."""
    names = tuple(n for n in cases[0].wrong if all(n in c.wrong and not c.actual[n].any() for c in cases))
    if names:
        which = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'}"

        def edit(kernel: Any, _: float) -> Any:
            return replace(kernel, finish=(*kernel.finish, lambda name, x: 0 * x if name in names else x))

        yield Hypothesis(f"{', '.join(names)} zero", f"{which} zero.", "zero", edit)


def _is_bit_pattern(x: Numpy, own_budget: Budget) -> bool:
    """Whether an output holds the bits of a correct bfloat16 output as signed or unsigned integers."""
    if not np.array_equal(x, np.round(x)) or not 255 < np.max(np.abs(x), initial=0.0) < 2**16:
        return False
    numbers = (x.astype(np.int64).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return own_budget.judge({"out": numbers}).status == PASS


def _join_places(lines: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Join the places of all outputs; places that are the same for all outputs are listed once."""
    if len(set(lines)) == 1:
        return lines[0]
    return tuple(f"output {n}: {line}" for n, one in enumerate(lines) for line in one)


def is_small(case: Case) -> bool:
    """Whether the errors of most wrong rows are small beside these rows, as rounding errors are."""
    off, size = (root_mean_square(x) for x in (case.actual["out"] - case.expected["out"], case.expected["out"]))
    wrong = case.wrong_rows
    return not wrong.any() or float(np.median(safe_ratio(off[wrong], size[wrong]))) < THRESHOLDS.rounding_size


def find_coarser_recipe(cases: Sequence[Case], *, local: bool = False) -> str | None:
    """Name the finest coarser recipe with which the outputs pass; None if there is none.

    Called only if nothing fits: the rounding errors of a coarser type hide small mistakes.

    Args:
        local: whether the outputs are wrong in one place only. Rounded scores can be the cause, if few are large.
    """
    spec, recipe = cases[0].start.spec, cases[0].recipe
    for words, other in _list_coarser_recipes(recipe, local=local):
        budgets = []
        for c in cases:
            inputs = c.start.inputs
            stored = {**inputs, "q": round_to_storage(inputs["q"], recipe.storage)} if "q" in inputs else inputs
            budgets.append(budget(spec, stored, other, members=4))
        if all(b.judge({"out": c.actual["out"]}).status == PASS for b, c in zip(budgets, cases, strict=True)):
            if all(_looks_like_rounding(c, b) for b, c in zip(budgets, cases, strict=True)):
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
