"""λ and the scale of the output, head by head, from the two maps' own outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.deviations.deviation import Problem, output
from refdiff.oracle.diagnosis.fit_layer import spec_at_layer
from refdiff.oracle.diagnosis.parameter_fit import Trial, held, in_words, is_one, spec_value_format
from refdiff.oracle.diagnosis.ranking import Fit
from refdiff.oracle.diagnosis.region_format import listed
from refdiff.oracle.diagnosis.variants import Numpy, Target
from refdiff.oracle.inputs import VECTORS, is_layer
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import lambda_init, lambda_of
from refdiff.oracle.truth.forward import has_plain_norm, normed, out_factor

STEPS = 22
ENOUGH = 64
"""Tokens to which two numbers a head are fitted, spread over all of them."""
LOW, HIGH = -2.0, 3.0
"""Where λ is looked for."""
LAYERS, MOST_NAMES = 30, 3
"""How many layers' λ_init have a name as λ, and how many of the nearest names are tried."""


def fit_lambda(spec: Spec, targets: tuple[Target, ...], *, and_scale: bool = True) -> list[Trial]:
    """Fit to every head of a core, as s · Norm(A₁V − λ A₂V): λ, if s is the spec's one number; then λ and s together.

    Of inputs whose λ differ, one λ for all is fitted first, then one for each.

    Args:
        and_scale: whether both together are fitted.
    """
    inputs = targets[0].inputs
    plain = spec.gate == "none" and (has_plain_norm(spec) or spec.norm == "none")
    if is_layer(inputs) or not plain or any(t.actual.size == 0 for t in targets):
        return []
    shown = [_shown(spec, t) for t in targets]
    own = np.asarray(out_factor(spec, inputs, ops_for()))
    groups: dict[bytes, list[int]] = {}
    for n, t in enumerate(targets):
        groups.setdefault(_own_lambda(spec, t.inputs).tobytes(), []).append(n)
    found = []
    known = [own.item()] if own.size == 1 and (len(groups) == 1 or spec.out_scale != "1 - lambda") else []
    for factor in (*known, None) if and_scale else known:
        lambdas, factors = _by_head(spec, shown, factor)
        if np.isfinite([*lambdas, *factors]).all():
            found.append(_trial(spec, targets, lambdas, factors, own, with_scale=factor is None))
    if len(groups) > 1 and known:
        each = {key: _by_head(spec, [shown[n] for n in some], known[0])[0] for key, some in groups.items()}
        found += _trial_of_each(spec, each, [_own_lambda(spec, targets[some[0]].inputs) for some in groups.values()])
    return found


def _own_lambda(spec: Spec, inputs: Inputs) -> Numpy:
    """The λ that the spec has of these inputs."""
    return lambda_of(spec, inputs, ops_for())


def _trial(
    spec: Spec, targets: tuple[Target, ...], lambdas: Numpy, factors: Numpy, own: Numpy, *, with_scale: bool
) -> Trial:
    """In words, beside what the spec has."""
    h = spec.heads
    now = " and ".join(dict.fromkeys(spec_value_format(_own_lambda(spec, t.inputs), h) for t in targets))
    text = f"λ is {in_words(lambdas)}, where the spec has {now}"
    if with_scale:
        text += f", and the scale of the output is {in_words(factors)}, where the spec has {spec_value_format(own, h)}"
    return _with_lambda(spec, lambdas, factors, text)


def _trial_of_each(spec: Spec, each: dict[bytes, Numpy], own: list[Numpy]) -> list[Trial]:
    """λ of each input beside the spec's, as one sum or one factor where it is that; not of λ that differ by token."""
    h = spec.heads
    if any(x.size not in (1, h) for x in own):
        return []
    now = np.stack([np.broadcast_to(x.ravel(), h) for x in own])
    found = np.stack(list(each.values()))
    words = "; ".join(
        f"{in_words(x)}, where the spec has {spec_value_format(y, h)}" for x, y in zip(found, own, strict=True)
    )
    if is_one(found - now):
        more = float(np.median(found - now))
        words = f"{abs(more):.4g} {'more' if more > 0 else 'less'} than the spec's"
    elif np.all(now != 0) and is_one(found / now):
        words = f"{np.median(found / now):.4g} times the spec's"
    changed = spec.replace(lambda_form="given")

    def problem(x: Inputs) -> Problem:
        return Problem(changed, _with(x, each[_own_lambda(spec, x).tobytes()]))

    return [Trial("lambda_full", {"lambda_full": found.tolist()}, f"λ is {words}", problem)]


def _with_lambda(spec: Spec, lambdas: Numpy, factors: Numpy, text: str) -> Trial:
    changed = spec.replace(lambda_form="given", out_scale="none")
    value = {"lambda_full": lambdas.tolist(), "scale": factors.tolist()}
    scale = factors[:, None, None]
    return Trial("lambda_full", value, text, lambda x: Problem(changed, _with(x, lambdas), factor=scale))


def _with(inputs: Inputs, lambda_full: Numpy) -> Inputs:
    made = {name: x for name, x in inputs.items() if name not in (*VECTORS, "lambda_logits")}
    return {**made, "lambda_full": np.asarray(lambda_full, dtype=np.float64)}


def _shown(spec: Spec, target: Target) -> tuple[Numpy, Numpy, Numpy, Inputs]:
    """Output, A₁V and A₂V of some tokens, in numbers that are finite in all three; the inputs."""
    bare = spec.replace(lambda_form="given", norm="none", norm_weight=False, out_scale="none")
    plain = {name: x for name, x in target.inputs.items() if name != "norm_weight"}
    first, both = (output(Problem(bare, _with(plain, np.asarray(value)))) for value in (0.0, 1.0))
    if first is None or both is None:
        raise ValueError("the maps of these inputs cannot be computed")
    step = max(1, target.actual.shape[2] // ENOUGH)
    out, o1, o2 = (x[:, :, ::step] for x in (target.actual, first, first - both))
    known = np.isfinite(out) & np.isfinite(o1) & np.isfinite(o2)
    out, o1, o2 = (np.where(known, x, 0.0) for x in (out, o1, o2))
    return out, o1, o2, target.inputs


def _by_head(spec: Spec, shown: list[tuple[Numpy, Numpy, Numpy, Inputs]], factor: float | None) -> tuple[Numpy, Numpy]:
    """The λ and factor of each head for which the squared error is least: a grid, then smaller and smaller ones.

    Args:
        factor: the one of all heads, if it is known.
    """
    h = spec.heads
    centre, width = np.full(h, (LOW + HIGH) / 2), (HIGH - LOW) / 2
    factors, ops = np.ones(h), ops_for()
    for n in range(STEPS):
        offsets = np.linspace(-1.0, 1.0, 101 if n == 0 else 11) * width
        errors, scales = [], []
        for offset in offsets:
            ys = [normed(spec, o1 - (centre + offset)[None, :, None, None] * o2, x, ops) for _, o1, o2, x in shown]
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


def with_name(spec: Spec, targets: tuple[Target, ...], fit: Fit, *, large: bool = False) -> Fit:
    """Say what λ is known as, where it is one number and the output passes with exactly that which is known."""
    lambdas = np.asarray(fit.value["lambda_full"])
    if not fit.fits or lambdas.ndim > 1 or not is_one(lambdas):
        return fit
    factors, value = np.asarray(fit.value["scale"]), float(np.median(lambdas))
    passing = {}
    for x, name in sorted(_known(spec).items(), key=lambda item: abs(item[0] - value))[:MOST_NAMES]:
        trial = _with_lambda(spec, np.full(spec.heads, x), factors, "")
        if any(f.fits for f in held(trial, [targets], large=large)):
            passing[x] = name
    if not passing:
        return fit
    names, printed, exact = list(passing.values()), f"{value:.4g}", targets[0].recipe.u < THRESHOLDS.exact
    if exact and names == [printed]:
        return replace(fit, text=fit.text.replace("λ is ", "λ is exactly ", 1))
    same = exact and [f"{x:.4g}" for x in passing] == [printed]
    which = f" in every head, which {'is' if same else 'may be'} {listed(names, 'or')}"
    return replace(fit, text=fit.text.replace(" in every head", which, 1))


def _known(spec: Spec) -> dict[float, str]:
    """Numbers that λ may have by mistake: λ_init of some layer, without what is learned, or a constant."""
    ops = ops_for()
    found = {lambda_init(spec_at_layer(spec, n), ops): f"λ_init of layer {n}" for n in range(LAYERS)}
    own = "λ_init of the spec" if spec.lambda_base == "constant" else "λ_init of the layer"
    return found | {lambda_init(spec, ops): own, 0.0: "0", 1.0: "1", 0.8: "0.8"}
