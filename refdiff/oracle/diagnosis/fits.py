"""Fit numbers of the spec, and the order of the heads, to an output that no named deviation reproduces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.statistics import LIMITS
from refdiff.oracle.deviations.deviation import Deviation, Problem, deviated, output_with
from refdiff.oracle.deviations.input_deviations import query_positions
from refdiff.oracle.deviations.listed import deviations
from refdiff.oracle.deviations.tiles import TILE_SIZES, pad_tail, tail_padding, tile_window
from refdiff.oracle.diagnosis.fit_lambda import LAYER, LAYER_TEXTS, fit_lambda, fit_layer
from refdiff.oracle.diagnosis.parameter_fit import Trial, evaluate, format_list, is_near, is_uniform
from refdiff.oracle.diagnosis.ranking import Fit, percent
from refdiff.oracle.diagnosis.targets import (
    Parts,
    Target,
    compute_outputs,
    exceeds_limit,
    explained_share,
    judge_problem,
    quick_residual,
    remaining_share,
    row_ratios,
    worst_residual,
)
from refdiff.oracle.inputs import is_layer, kind_of
from refdiff.oracle.inputs.sequences import Numpy
from refdiff.oracle.mistakes import Mistake
from refdiff.oracle.mistakes.catalogue import Call
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.validation import CHOICES
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import transform_scores
from refdiff.oracle.truth.forward import out_factor


def fit_parameters(spec: Spec, parts: Parts, *, local: bool = False) -> tuple[Fit, ...]:
    """Return the fitted numbers with which the output passes, the layer of λ_init first.

    1. the layer of λ_init, or else a factor of the output and λ
    2. the window, the offset of the queries' positions, the share of a head that RoPE rotates, tiles of padding and of
       the window, the order of the heads
    3. the scale of the scores, ε of the norm, the base of RoPE; if nothing passes yet, a limit of the scores

    If the output passes with several, those that leave much more than the best are left out. If it passes with none,
    the one that explains nearly all of its error is returned, if any. Numbers are fitted to parts of large targets and
    then judged on the whole. If only statistics of the whole tensor fail, they are fitted to the whole; the scalars and
    the layer are searched on a part first.

    Args:
        local: whether the output is wrong in one place only. Layers and list 3 change all rows and are skipped then.
    """
    if any(t.fails_as_tensor for t in parts.whole) and parts.cost <= THRESHOLDS.max_whole_cost:
        coarse = parts.all_keys if parts.all_keys is not parts.whole else ()
        parts = replace(parts, local=parts.whole, all_keys=parts.whole, coarse=coarse)
    layers = [] if local else fit_layer(spec, parts)
    # a layer says more than λ and a factor; in 16 bits, though, λ alone or a factor alone may match one by chance
    is_exact = parts.whole[0].recipe.u < THRESHOLDS.exact_unit
    named = any(f.parameter == LAYER for f in layers) or (bool(layers) and is_exact)
    found = [
        *layers,
        *([] if named else _fit_factor_and_lambda(spec, parts)),
        *_evaluate_best(_window_trials(spec, parts), parts),
        *_evaluate_best(_offset_trials(spec, parts), parts),
        *_evaluate_best(_rotary_trials(spec), parts),
        *_evaluate_best(_padding_trials(spec, parts.all_keys), parts),
        *_evaluate_best(_tiled_window_trials(spec, parts), parts),
        *fit_head_order(parts.whole),
    ]
    if not local:
        *usual, softcap = scalar_fields(spec)
        for number in usual:
            found += _fit_scalar(spec, parts, number)
        if not any(f.fits for f in found):
            found += [*_fit_scalar(spec, parts, softcap), *_fit_clamp(spec, parts)]
    passing = sorted((f for f in found if f.fits), key=lambda f: (f.parameter not in LAYER_TEXTS, f.residual))
    if passing:
        least = min(f.residual for f in passing)
        return tuple(f for f in passing if f.residual <= THRESHOLDS.better_ratio * least)
    # the first, which has fewer numbers, that leaves not much more than the best
    least = min((1 - f.explains for f in found), default=0.0)
    return tuple(f for f in found if 1 - f.explains <= THRESHOLDS.better_ratio * least)[:1]


def is_single(fit: Fit) -> bool:
    """Whether the output passes with one number, which leaves at most `Thresholds.correct_residual`."""
    one = fit.parameter in LAYER_TEXTS or isinstance(fit.value, int | float)
    return one and fit.fits and fit.residual <= THRESHOLDS.correct_residual


def _evaluate_factor(trial: Trial, parts: Parts) -> list[Fit]:
    return evaluate(trial, parts.stages(parts.local), large=parts.is_large)


def _fit_factor_and_lambda(spec: Spec, parts: Parts) -> list[Fit]:
    """Fit a factor, then λ; fit both together only if the output passes with no factor alone."""
    stages, large = parts.stages(parts.local), parts.is_large
    factors = _first_passing(_evaluate_factor(trial, parts) for trial in factor_trials(spec, parts.whole))
    both = not any(f.fits for f in factors)
    found: list[Fit] = []
    for targets in () if spec.is_plain else stages:
        trials = fit_lambda(spec, targets, fit_scale=both)
        found = _first_passing(evaluate(trial, [targets], large=large) for trial in trials)
        if not found:
            break
    return [*factors, *found]


def _first_passing(held_ones: Iterable[list[Fit]]) -> list[Fit]:
    """Return the first fit with which the output passes, or else all of them."""
    kept: list[Fit] = []
    for fit in chain.from_iterable(held_ones):
        if fit.fits:
            return [fit]
        kept.append(fit)
    return kept


class Field(NamedTuple):
    """A field of the spec to fit, or several that change together.

    deviate: returns the deviation for a number of the grid.
    grid: the numbers to try: logarithms of a continuous value, or indices of choices.
    words: the text before the value; "" for choices.
    """

    name: str
    deviate: Callable[[float], Deviation]
    grid: Numpy
    words: str = ""


def scalar_fields(spec: Spec) -> Iterator[Field]:
    """Yield the continuous numbers that the spec uses, and last the limit of scores, which it may lack."""
    unit, factor = spec.scale or spec.head_dim**-0.5, THRESHOLDS.fits.scale_range
    every = [("scale", _log_grid(unit / factor, unit * factor), "scores are multiplied by")]
    if spec.norm != "none":
        every.append(("norm_eps", _log_grid(*THRESHOLDS.fits.epsilon_range), "ε of the norm is"))
    if spec.rope != "none":
        every.append(("rope_theta", _log_grid(*THRESHOLDS.fits.theta_range), "the base of RoPE is"))
    every.append(("softcap", _log_grid(*THRESHOLDS.fits.softcap_range), "scores z are c tanh(z / c) with c ="))
    for name, grid, words in every:
        yield Field(name, partial(_set_field, name, math.exp), grid, words)


def _log_grid(low: float, high: float) -> Numpy:
    return np.linspace(math.log(low), math.log(high), THRESHOLDS.fits.grid)


def _fit_scalar(spec: Spec, parts: Parts, number: Field) -> list[Fit]:
    """Fit one continuous number of the spec."""
    field, _, grid, words = number
    now = spec.head_dim**-0.5 if field == "scale" and spec.scale is None else getattr(spec, field)
    has = "none" if now is None else f"{now:.4g}"
    text = f"{words} {{:.4g}}, where the spec has {has}"
    return _fit_on_grid(parts, lambda x: _field_trial(spec, field, x, text.format(x)), grid)


def _fit_clamp(spec: Spec, parts: Parts) -> list[Fit]:
    """Fit the c of scores clipped to [−c, c], which no field of the spec describes."""

    def trial(limit: float) -> Trial:
        text = f"scores are clipped at ±{limit:.4g}, where the spec has no such limit"
        wrong = Mistake("scores_cut_off", text, "diff_attention", "clamp", partial(_clamped_attention, limit))
        return Trial("score_limit", limit, text, lambda inputs: Problem(spec, inputs, (wrong,)))

    return _fit_on_grid(parts, trial, _log_grid(*THRESHOLDS.fits.softcap_range))


def _clamped_attention(limit: float, call: Call) -> Any:
    k1, k2, v = (np.repeat(x, call.q1.shape[1] // x.shape[1], axis=1) for x in (call.k1, call.k2, call.v))
    of_maps = ((call.q1, k1), (call.q2, k2))
    (q1, k1), (q2, k2) = (transform_scores(q, k, lambda z: np.clip(z, -limit, limit)) for q, k in of_maps)
    return call(q1=q1, k1=k1, q2=q2, k2=k2, v=v)


def _fit_on_grid(parts: Parts, trial: Callable[[float], Trial], grid: Numpy) -> list[Fit]:
    """Fit a number on a logarithmic scale, then judge the outputs with it."""

    def residual(targets: tuple[Target, ...], log: float) -> float:
        return worst_residual(targets, compute_outputs(trial(math.exp(log)).kernel, targets))

    if parts.coarse:
        near, least = minimize(partial(residual, parts.coarse), grid)
        if least > LIMITS.row:
            return []
        grid = near + (grid[1] - grid[0]) * np.arange(-1, 2)
    best, _ = minimize(partial(residual, parts.all_keys), grid)
    return _evaluate_trial(trial(math.exp(best)), parts)


def _evaluate_best(trials: Sequence[Trial], parts: Parts) -> list[Fit]:
    """Judge the outputs with the trial that has the smallest residual; parts may not tell some trials apart."""
    if not trials:
        return []
    outs = (compute_outputs(trial.kernel, parts.all_keys) for trial in trials)  # one at a time: they may be large
    scored = [(worst_residual(parts.all_keys, x), parts.is_split and is_near(parts.all_keys, x)) for x in outs]
    residuals = [residual for residual, _ in scored]
    if parts.is_split:
        allowed = THRESHOLDS.better_ratio * min(residuals)
        trials = [t for t, (residual, near) in zip(trials, scored, strict=True) if near and residual <= allowed]
        residuals = [worst_residual(parts.whole, compute_outputs(x.kernel, parts.whole)) for x in trials]
    return _evaluate_trial(trials[int(np.argmin(residuals))], parts) if trials else []


def _evaluate_trial(trial: Trial, parts: Parts) -> list[Fit]:
    return evaluate(trial, parts.stages(parts.all_keys), large=parts.is_large)


def _field_trial(spec: Spec, field: str, value: Any, text: str) -> Trial:
    """Return a trial for another value of a field."""
    changed = spec.replace(**{field: value})
    return Trial(field, value, text, lambda inputs: Problem(changed, inputs))


def minimize(f: Callable[[float], float], grid: Numpy) -> tuple[float, float]:
    """Minimize f: the best point of the grid, then steps of halved size from it until f no longer changes.

    Returns the point and its value.
    """
    least, x = min((f(x), x) for x in grid.tolist())
    step = float(grid[1] - grid[0])
    for _ in range(THRESHOLDS.fits.halvings):
        step /= 2
        near = sorted((f(y), y) for y in (x - step, x + step))
        if near[0][0] < least:
            least, x = near[0]
        elif near[1][0] <= (1 + THRESHOLDS.fits.flat) * least:
            break
    return x, least


def _window_trials(spec: Spec, parts: Parts) -> list[Trial]:
    """Return a trial for each window length; none for large inputs whose last queries, with most keys, are correct."""
    last = THRESHOLDS.min_queries
    if parts.is_large and not any(exceeds_limit(row_ratios(t, t.actual)[:, :, -last:]) for t in parts.all_keys):
        return []
    keys = max(t.inputs["k"].shape[2] if "k" in t.inputs else 0 for t in parts.all_keys)
    now = "all keys" if spec.window is None else str(spec.window)
    return [
        _field_trial(spec, "window", w, f"a query sees {w} keys, itself among them, where the spec has {now}")
        for w in range(1, min(keys, THRESHOLDS.fits.max_window) + 1)
    ]


def _offset_trials(spec: Spec, parts: Parts) -> list[Trial]:
    """Return trials in which RoPE shifts the positions of the queries against those of the keys."""
    if spec.rope == "none":
        return []

    def trial(by: int) -> Trial:
        text = f"queries are rotated by their position {by:+d}, and keys by theirs"
        return Trial("q_offset", by, text, lambda x: Problem(spec, {**x, "q_positions": query_positions(spec, x) + by}))

    return [trial(by) for by in THRESHOLDS.fits.query_offsets]


def _rotary_trials(spec: Spec) -> list[Trial]:
    """Return trials in which RoPE rotates another share of each head."""
    if spec.rope == "none" or spec.rope_parameters:
        return []

    def words(one: Spec) -> str:
        whole = one.rotary_dim == one.head_dim
        return "all of each head" if whole else f"the {one.rotary_at} {one.rotary_dim} dimensions of each head"

    shares = [share for share in THRESHOLDS.fits.rotary_shares if share * spec.head_dim >= 2]
    others = (spec.replace(partial_rotary_factor=n, rotary_at=at) for n in shares for at in ("first", "last"))
    return [
        Trial("partial_rotary_factor", (one.partial_rotary_factor, one.rotary_at),
              f"RoPE rotates {words(one)}, where the spec rotates {words(spec)}", partial(Problem, one))
        for one in others
        if (one.rotary_dim, one.rotary_at) != (spec.rotary_dim, spec.rotary_at)
    ]  # fmt: skip


def _padding_trials(spec: Spec, targets: tuple[Target, ...]) -> list[Trial]:
    """Return a trial for each amount of visible padding, with all tile sizes that give it."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for n in TILE_SIZES:
        sizes.setdefault(tuple(tail_padding(spec, t.inputs, n) for t in targets), []).append(n)
    words = {padding: " or ".join(map(str, some)) for padding, some in sizes.items() if any(padding)}
    return [
        Trial("tile", sizes[padding], f"keys are padded with zeros to a multiple of {multiple}, and not masked",
              partial(pad_tail, spec, tile=sizes[padding][0]))
        for padding, multiple in words.items()
    ]  # fmt: skip


def _tiled_window_trials(spec: Spec, parts: Parts) -> list[Trial]:
    if spec.window is None or spec.causal == "none":
        return []
    by_position = all(t.inputs["q"].shape[2] == t.inputs["k"].shape[2] for t in parts.whole if "k" in t.inputs)
    if parts.is_split and not by_position:
        return []  # in a part, the index of a query within its tile is unknown
    return [
        Trial("window_tiles", (queries, keys), f"the window starts at a tile of {keys} keys, one for each tile of "
              f"{queries} queries, where the spec has {spec.window} keys for each query",
              partial(tile_window, spec, queries=queries, keys=keys, by_position=by_position))
        for queries in (1, *TILE_SIZES)
        for keys in (1, *TILE_SIZES)
        if queries * keys > 1
    ]  # fmt: skip


def fit_head_order(targets: tuple[Target, ...]) -> list[Fit]:
    """Return the permutation of the truth's heads that gives the output; [] if there is none."""
    h = targets[0].expected.shape[1]
    if any(t.expected.ndim != 4 or t.expected.size == 0 for t in targets):
        return []
    apart = np.zeros((h, h))
    for t in targets:
        a, y = (np.where(np.isfinite(x), x, 0.0) for x in (t.actual, t.expected))
        apart += [[float(np.sum((a[:, i] - y[:, j]) ** 2)) for j in range(h)] for i in range(h)]
    order = [int(np.argmin(row)) for row in apart]
    if sorted(order) != list(range(h)) or order == list(range(h)):
        return []
    worst, share = 0.0, 1.0
    for t in targets:
        moved = Target(t.inputs, t.actual, t.expected[:, order], t.rows[:, order], t.recipe)
        worst, share = max(worst, quick_residual(moved, moved.expected)), min(share, explained_share(t, moved.expected))
    if worst >= THRESHOLDS.better_ratio and share < THRESHOLDS.nearly_explained:
        return []
    text = f"the heads are right but in another order: head i is head {tuple(order)}[i] of the truth"
    return [Fit("heads", order, text, worst, worst < THRESHOLDS.better_ratio, share)]


def factor_trials(spec: Spec, targets: tuple[Target, ...]) -> Iterator[Trial]:
    """Yield the least-squares factor of the output, then one factor for each head if they differ.

    Nothing is yielded if a head is zero, which is rather unwritten than multiplied by zero, or if the factor overflows.
    """
    along, square = (np.sum([_project_on_truth(t, of) for t in targets], axis=0) for of in ("actual", "expected"))
    if not np.all(square > 0) or not np.all(along != 0):
        return
    one = float(np.sum(along) / np.sum(square))
    if not math.isfinite(one):
        return
    has = "" if is_layer(targets[0].inputs) else _format_scale(spec, one, targets[0])
    yield _factor_trial(spec, one, one, f"out is multiplied by {one:.{_digits(one)}g}{has}")
    factors = along / square
    if not is_uniform(factors):
        text = f"out is multiplied by a factor that differs by head: {format_list(factors)}"
        yield _factor_trial(spec, factors.tolist(), factors[:, None, None], text)


def _factor_trial(spec: Spec, value: float | list[float], factor: float | Numpy, text: str) -> Trial:
    return Trial("factor", value, text, lambda inputs: Problem(spec, inputs, factor=factor))


def _project_on_truth(target: Target, name: str) -> Numpy:
    """Return ⟨x, truth⟩ of each head (h,), or of the whole output of a layer (1,), with x the field called `name`."""
    known = target.compared
    x, y = (np.where(known, z, 0.0) for z in (getattr(target, name), target.expected))
    axes = (0, 2, 3) if x.ndim == 4 else None
    found: Numpy = np.atleast_1d(np.sum(x * y, axis=axes))
    return found


def _format_scale(spec: Spec, factor: float, target: Target) -> str:
    """Describe a factor relative to the spec's own scale of the output."""
    own = np.asarray(out_factor(spec, target.inputs, ops_for()))
    if spec.out_scale == "none" or own.size != 1:
        return " beside what the spec has" if spec.out_scale != "none" else ", where the spec has no factor"
    digits = _digits(factor)
    return f": it is scaled by {factor * own.item():.{digits}g}, where the spec has {own.item():.{digits}g}"


def _digits(factor: float) -> int:
    """Return how many digits show that a factor is not 1: 4, or more if it is close to 1."""
    apart = abs(factor - 1.0)
    return 4 if apart == 0.0 else max(4, 2 - math.floor(math.log10(apart)))


class Change(NamedTuple):
    """A field at its best value, and the share of the squared error that is left."""

    field: Field
    deviation: Deviation
    left: float


def fit_fields(spec: Spec, parts: Parts) -> str | None:
    """Name a field of the spec with which the outputs pass, or two, the one that explains more first; None without any.

    Fits each field alone, every other field beside each of the best ones, and the best pairs alternately.
    """
    targets = parts.local
    fields = list(_list_fields(spec, kind_of(targets[0].inputs)))
    alone = sorted((_fit_field(spec, f, (), targets) for f in fields), key=lambda c: c.left)
    if 1 - alone[0].left < THRESHOLDS.first_field:
        return None
    if changed := _passing_spec(spec, (alone[0].deviation,), parts.whole):
        values = _format_changed(spec, changed, alone[:1])
        return f"{'fields' if ', ' in alone[0].field.name else 'a field'} of the spec: with {values} it passes"
    pairs = [
        (first, _fit_field(spec, f, (first.deviation,), targets))
        for first in alone[: THRESHOLDS.fits.first_fields]
        for f in fields
        if f.name != first.field.name
    ]
    for first, second in sorted(pairs, key=lambda pair: pair[1].left)[: THRESHOLDS.fits.pairs]:
        if 1 - second.left < THRESHOLDS.explained:
            break
        first, second = _fit_alternately(spec, first, second, targets)
        if changed := _passing_spec(spec, (first.deviation, second.deviation), parts.whole):
            share = {c.field.name: 1 - c.left for c in reversed(alone)}  # of each field, its best choice
            both = sorted((first, second), key=lambda c: -share[c.field.name])
            values, best = _format_changed(spec, changed, both), both[0].field.name
            explained = percent(max(0.0, share[best]))
            return f"several fields of the spec: with {values} it passes; the best {best} alone explains {explained}"
    return None


def _passing_spec(spec: Spec, deviations: tuple[Deviation, ...], targets: Sequence[Target]) -> Spec | None:
    """Return the spec with these deviations if the outputs pass with it."""
    problems = [deviated(spec, t.inputs, deviations) for t in targets]
    fits = all(judge_problem(p, t).fits for p, t in zip(problems, targets, strict=True))
    return problems[0].spec if fits and problems[0] is not None else None


def _format_changed(spec: Spec, changed: Spec, changes: Sequence[Change]) -> str:
    values = {n: x for n, x in changed.to_dict().items() if x != getattr(spec, n)}
    values = {n: float(f"{x:.4g}") if isinstance(x, float) else x for n, x in values.items()}
    names = dict.fromkeys(n for c in changes for n in c.field.name.split(", "))
    return ", ".join(f"{n}={values[n]!r}" for n in names if n in values)


def _list_fields(spec: Spec, kind: str) -> Iterator[Field]:
    """Yield all fields that can be changed: the numbers that the spec uses, the layer, and every other choice."""
    yield from scalar_fields(spec)
    if spec.lambda_init is None and (spec.lambda_form == "exp" or "lambda_init" in spec.out_scale):
        yield Field("layer", partial(_set_field, "layer", int), np.arange(THRESHOLDS.fits.field_layers))
    for name, words in CHOICES.items():
        others = [word for word in words if word != getattr(spec, name)]
        yield Field(name, partial(_set_field, name, others.__getitem__), np.arange(len(others)))
    for d in deviations(spec, kind):
        values = d.fields(spec) if d.fields else None
        if values and not set(values) <= set(CHOICES):
            yield Field(", ".join(values), lambda _, d=d: d, np.zeros(1))  # type: ignore[misc]


def _set_field(name: str, value: Callable[[Any], Any], x: float) -> Deviation:
    return Deviation("", "", name, fields=lambda _: {name: value(x)})


def _fit_field(spec: Spec, field: Field, beside: tuple[Deviation, ...], targets: Sequence[Target]) -> Change:
    """Return the value of a field that leaves least, together with the deviations `beside`."""

    def off(value: float) -> float:
        some = (*beside, field.deviate(value))
        return max(remaining_share(t, output_with(spec, t.inputs, some)) for t in targets)

    if field.words:
        best, least = minimize(off, field.grid)
    else:
        least, best = min((off(x), x) for x in field.grid.tolist())
    return Change(field, field.deviate(best), least)


def _fit_alternately(spec: Spec, first: Change, second: Change, targets: Sequence[Target]) -> tuple[Change, Change]:
    """Fit each of two fields beside the other, until the error left shrinks by less than a tenth."""
    for _ in range(THRESHOLDS.fits.rounds):
        before = second.left
        first = _fit_field(spec, first.field, (second.deviation,), targets)
        second = _fit_field(spec, second.field, (first.deviation,), targets)
        if not second.left < THRESHOLDS.fits.round_gain * before:
            break
    return first, second
