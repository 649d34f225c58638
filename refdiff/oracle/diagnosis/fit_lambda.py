"""Fit λ and the scale of the output to each head, and the layer whose λ_init the kernel uses."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.statistics import LIMITS
from refdiff.oracle.deviations.deviation import Problem
from refdiff.oracle.diagnosis.parameter_fit import Trial, evaluate, format_by_head, format_spec_value, is_uniform
from refdiff.oracle.diagnosis.ranking import Fit
from refdiff.oracle.diagnosis.targets import Kernel, Parts, Target, compute_outputs, worst_residual
from refdiff.oracle.inputs import VECTORS, is_layer
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.mistakes import Mistake
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import compute_lambda, lambda_init
from refdiff.oracle.truth.forward import forward, has_plain_norm, normalize, out_factor

LAYER, LAYER_OF_LAMBDA, LAYER_OF_SCALE = "layer", "layer_of_lambda", "layer_of_scale"
"""What uses the λ_init of another layer: λ and the scale of the output, or one of the two."""
LAYER_TEXTS = {LAYER: "", LAYER_OF_LAMBDA: " in λ alone", LAYER_OF_SCALE: " in the scale of the output alone"}
"""The same in words, for specs in which both depend on λ_init."""
MapOutputs = tuple[Numpy, Numpy, Numpy, Inputs]


def fit_lambda(spec: Spec, targets: tuple[Target, ...], *, fit_scale: bool = True) -> list[Trial]:
    """Fit λ, then λ and s together, to every head of s · Norm(A₁V − λ A₂V); [] for layers and other forms.

    λ alone is fitted only if the spec's s is one number. If the inputs have different λ, one λ for all is fitted first,
    then one for each.

    Args:
        fit_scale: whether λ and s are also fitted together.
    """
    inputs = targets[0].inputs
    plain = spec.gate == "none" and (has_plain_norm(spec) or spec.norm == "none")
    if is_layer(inputs) or not plain or any(t.actual.size == 0 for t in targets):
        return []
    shown = [_map_outputs(spec, t) for t in targets]
    own = np.asarray(out_factor(spec, inputs, ops_for()))
    groups: dict[bytes, list[int]] = {}
    for n, t in enumerate(targets):
        groups.setdefault(compute_lambda(spec, t.inputs, ops_for()).tobytes(), []).append(n)
    found = []
    known = [own.item()] if own.size == 1 and (len(groups) == 1 or spec.out_scale != "1 - lambda") else []
    for factor in (*known, None) if fit_scale else known:
        lambdas, factors = _fit_heads(spec, shown, factor)
        if np.isfinite([*lambdas, *factors]).all():
            found.append(_lambda_trial(spec, targets, lambdas, factors, own, with_scale=factor is None))
    if len(groups) > 1 and known:
        each = {key: _fit_heads(spec, [shown[n] for n in some], known[0])[0] for key, some in groups.items()}
        current = [compute_lambda(spec, targets[some[0]].inputs, ops_for()) for some in groups.values()]
        found += _per_input_trials(spec, each, current)
    return found


def _lambda_trial(
    spec: Spec, targets: tuple[Target, ...], lambdas: Numpy, factors: Numpy, own: Numpy, *, with_scale: bool
) -> Trial:
    """Return a trial for the fitted λ and scale of each head, with the spec's own values in its text."""
    h = spec.heads
    now = " and ".join(dict.fromkeys(format_spec_value(compute_lambda(spec, t.inputs, ops_for()), h) for t in targets))
    text = f"λ is {format_by_head(lambdas)}{_format_matching_layer(spec, lambdas)}, where the spec has {now}"
    if with_scale:
        has = format_spec_value(own, h)
        text += f", and the scale of the output is {format_by_head(factors)}, where the spec has {has}"
    changed, scale = spec.replace(lambda_form="given", out_scale="none"), factors[:, None, None]
    value = {"lambda_full": lambdas.tolist(), "scale": factors.tolist()}
    return Trial("lambda_full", value, text, lambda x: Problem(changed, _replace_lambda(x, lambdas), factor=scale))


def _format_matching_layer(spec: Spec, lambdas: Numpy) -> str:
    """Name the layer whose λ_init has the same printed digits as λ; "" if λ differs by head or no single layer has."""
    printed = f"{float(np.median(lambdas)):.4g}"
    known = range(THRESHOLDS.fits.distinct_layers)
    layers = [n for n in known if f"{lambda_init(spec_at_layer(spec, n), ops_for()):.4g}" == printed]
    return f", which is λ_init of layer {layers[0]}" if is_uniform(lambdas) and len(layers) == 1 else ""


def _per_input_trials(spec: Spec, each: dict[bytes, Numpy], own: list[Numpy]) -> list[Trial]:
    """Return a trial for one λ per input, in words relative to the spec's; [] if the spec's λ differs by token."""
    h = spec.heads
    if any(x.size not in (1, h) for x in own):
        return []
    now = np.stack([np.broadcast_to(x.ravel(), h) for x in own])
    found = np.stack(list(each.values()))
    words = "; ".join(
        f"{format_by_head(x)}, where the spec has {format_spec_value(y, h)}" for x, y in zip(found, own, strict=True)
    )
    if is_uniform(found - now):
        more = float(np.median(found - now))
        words = f"{abs(more):.4g} {'more' if more > 0 else 'less'} than the spec's"
    elif np.all(now != 0) and is_uniform(found / now):
        words = f"{np.median(found / now):.4g} times the spec's"
    changed = spec.replace(lambda_form="given")

    def problem(x: Inputs) -> Problem:
        return Problem(changed, _replace_lambda(x, each[compute_lambda(spec, x, ops_for()).tobytes()]))

    return [Trial("lambda_full", {"lambda_full": found.tolist()}, f"λ is {words}", problem)]


def _replace_lambda(inputs: Inputs, lambda_full: Numpy) -> Inputs:
    made = {name: x for name, x in inputs.items() if name not in (*VECTORS, "lambda_logits")}
    return {**made, "lambda_full": np.asarray(lambda_full, dtype=np.float64)}


def _map_outputs(spec: Spec, target: Target) -> MapOutputs:
    """Return the output, A₁V and A₂V of some tokens, with 0 where one of them is not finite, and the inputs."""
    bare = spec.replace(lambda_form="given", norm="none", norm_weight=False, out_scale="none")
    plain = {name: x for name, x in target.inputs.items() if name != "norm_weight"}
    with np.errstate(all="ignore"):
        first, both = (forward(bare, _replace_lambda(plain, np.asarray(value)), ops_for()) for value in (0.0, 1.0))
    step = max(1, target.actual.shape[2] // THRESHOLDS.fits.lambda_tokens)
    out, o1, o2 = (x[:, :, ::step] for x in (target.actual, first, first - both))
    known = np.isfinite(out) & np.isfinite(o1) & np.isfinite(o2)
    out, o1, o2 = (np.where(known, x, 0.0) for x in (out, o1, o2))
    return out, o1, o2, target.inputs


def _fit_heads(spec: Spec, shown: list[MapOutputs], factor: float | None) -> tuple[Numpy, Numpy]:
    """Return λ and the scale of each head that minimize the squared error, by a grid search with ever finer grids.

    Args:
        factor: the scale of all heads; None to fit it.
    """
    h = spec.heads
    low, high = THRESHOLDS.fits.lambda_range
    centre, width = np.full(h, (low + high) / 2), (high - low) / 2
    factors, ops = np.ones(h), ops_for()
    for n in range(THRESHOLDS.fits.lambda_grids):
        offsets = np.linspace(-1.0, 1.0, 101 if n == 0 else 11) * width
        errors, scales = [], []
        for offset in offsets:
            ys = [normalize(spec, o1 - (centre + offset)[None, :, None, None] * o2, x, ops) for _, o1, o2, x in shown]
            square = np.sum([np.sum(y * y, axis=(0, 2, 3)) for y in ys], axis=0)
            along = np.sum([np.sum(one[0] * y, axis=(0, 2, 3)) for one, y in zip(shown, ys, strict=True)], axis=0)
            s = along / np.where(square > 0, square, 1.0) if factor is None else np.full(h, factor)
            off = [one[0] - s[None, :, None, None] * y for one, y in zip(shown, ys, strict=True)]
            errors.append(np.sum([np.sum(x**2, axis=(0, 2, 3)) for x in off], axis=0))
            scales.append(s)
        best = np.argmin(np.asarray(errors), axis=0)
        centre, factors = centre + offsets[best], np.asarray(scales)[best, np.arange(h)]
        width *= 2.0 / (50 if n == 0 else 5)
    return centre, factors


def fit_layer(spec: Spec, parts: Parts) -> list[Fit]:
    """Fit the layer whose λ_init the kernel uses in λ and the scale of the output, or in one of them.

    Each fit lists all layers with which the output passes, the best first. Layers are counted as in the spec, and from
    0 if its λ_init is a constant.
    """
    targets = [t for t in parts.local if not t.is_correct]
    if not targets:
        return []
    found = (_fit_layer_at(spec, place, targets, parts) for place in _layer_places(spec))
    return [fit for fit in found if fit is not None]


def _fit_layer_at(spec: Spec, place: str, targets: Sequence[Target], parts: Parts) -> Fit | None:
    def kernel(layer: int) -> Kernel:
        return partial(_layer_problem, spec, place, layer)

    def fitted(layer: int, large: bool = True) -> Fit | None:
        trial = Trial(place, [layer], "", kernel(layer))
        fits = evaluate(trial, parts.stages(parts.local), large=large)
        return next((f for f in fits if f.fits), None)

    def residual(targets: Sequence[Target], layer: int) -> float:
        return worst_residual(targets, compute_outputs(kernel(layer), targets))

    likely = _closest_layers(partial(residual, parts.coarse or targets))
    if parts.coarse:
        if residual(parts.coarse, likely[0]) > LIMITS.row:
            return None
        likely.sort(key=partial(residual, targets))
    best = likely[0]
    fit = fitted(best, parts.is_split)
    if fit is None:
        return None
    first, last = (_last_passing_layer(best, end, fitted) for end in (0, THRESHOLDS.fits.last_layer))
    layers = sorted(range(first, last + 1), key=lambda n: (abs(n - best), n))
    return replace(fit, value=layers, text=_format_layers(spec, place, best, first, last))


def spec_at_layer(spec: Spec, layer: int) -> Spec:
    """Return the spec of another layer. A constant λ_init is replaced by that of the layer."""
    if spec.lambda_base == "constant":
        return spec.replace(lambda_base="depth", lambda_init=None, layer=layer)
    return spec.replace(layer=layer)


def _layer_places(spec: Spec) -> tuple[str, ...]:
    """Return what can use the λ_init of another layer in this spec."""
    in_lambda, in_scale = spec.lambda_form == "exp", spec.out_scale in ("1 - lambda_init", "lambda_init")
    if in_lambda and in_scale:
        return LAYER, LAYER_OF_LAMBDA, LAYER_OF_SCALE
    return (LAYER_OF_LAMBDA,) if in_lambda else (LAYER_OF_SCALE,) if in_scale else ()


def _layer_problem(spec: Spec, place: str, layer: int, inputs: Inputs) -> Problem:
    other = spec_at_layer(spec, layer)
    if place == LAYER:
        return Problem(other, inputs)
    for_lambda, for_scale = (other, spec) if place == LAYER_OF_LAMBDA else (spec, other)
    start = lambda_init(for_lambda, ops_for())

    wrong = Mistake(
        "λ_init_of_another_layer", "", "diff_lambda", "lambda_init layer", lambda call: call(lambda_init=start)
    )
    return Problem(for_scale, inputs, (wrong,))


def _closest_layers(residual: Callable[[int], float]) -> list[int]:
    """Return the layer with the smallest residual, then those with less than `Thresholds.better_ratio` times it."""
    distinct, last = THRESHOLDS.fits.distinct_layers, THRESHOLDS.fits.last_layer
    residuals = [residual(n) for n in range(distinct + 1)]
    if residuals[-1] == min(residuals):
        residuals += [residual(n) for n in range(distinct + 1, last + 1)]
    close = np.flatnonzero(np.asarray(residuals) < THRESHOLDS.better_ratio * min(residuals))
    return sorted(close.tolist() or [int(np.argmin(residuals))], key=residuals.__getitem__)


def _last_passing_layer(best: int, end: int, fitted: Callable[[int], Fit | None]) -> int:
    """Return the last layer from `best` to `end` with which the output passes, by bisection."""
    if best == end or fitted(end):
        return end
    step = 1 if best < end else -1
    between = range(best + step, end, step)
    return best + step * bisect_left(between, True, key=lambda layer: fitted(layer) is None)


def _format_layers(spec: Spec, place: str, best: int, first: int, last: int) -> str:
    has = f"spec has {spec.lambda_init:.4g}" if spec.lambda_init is not None else f"spec's layer is {spec.layer}"
    where = LAYER_TEXTS[place] if len(_layer_places(spec)) > 1 else ""
    if last == THRESHOLDS.fits.last_layer > first:
        limit = f"{lambda_init(spec_at_layer(spec, last), ops_for()):.4g}"
        return f"λ_init is {limit}{where}, the limit for deep layers, where the {has}; layers {first} and deeper pass"
    also = f"; layers {first} to {last} pass too" if first < last else ""
    return f"λ_init is that of layer {best}{where}, where the {has}{also}"
