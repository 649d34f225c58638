"""λ and the scale of the output, head by head, from the two maps' own outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.deviations.deviation import Problem, output
from refdiff.oracle.diagnosis.ranking import Fit
from refdiff.oracle.diagnosis.variants import Numpy, Target, judged
from refdiff.oracle.forward import normed
from refdiff.oracle.inputs import VECTORS, is_layer
from refdiff.oracle.sequences import Inputs
from refdiff.oracle.spec import Spec
from refdiff.oracle.streams import lambda_init

STEPS = 22
ENOUGH = 64
"""Tokens to which two numbers a head are fitted, spread over all of them."""
LOW, HIGH = -2.0, 3.0
"""Where λ is looked for."""


def fit_lambda(spec: Spec, targets: tuple[Target, ...]) -> list[Fit]:
    """Fit λ and the factor after the norm in every head of a core, as s · Norm(A₁V − λ A₂V)."""
    target = targets[0]
    if is_layer(target.inputs) or spec.norm_over != "head" or target.actual.size == 0:
        return []
    first, second = _maps(spec, target.inputs)
    weight = target.inputs.get("norm_weight")
    lambdas, factors = _by_head(spec, target.actual, first, second, weight)
    if not np.isfinite([*lambdas, *factors]).all():
        return []
    factor = float(np.median(factors))
    fitted = spec.replace(
        lambda_form="given", lambda_base="constant", lambda_init=1 - factor, out_scale="1 - lambda_init"
    )
    worst, good = 0.0, True
    for t in targets:
        fits_one, residual = judged(Problem(fitted, _with(t.inputs, lambdas)), t)
        worst, good = max(worst, residual), good and fits_one
    text = f"λ is {_words(lambdas)}{_named(spec, lambdas)}, and the output is scaled by {_words(factors)}"
    return [Fit("lambda_full", {"lambda_full": lambdas.tolist(), "scale": factors.tolist()}, text, worst, good)]


def _with(inputs: Inputs, lambda_full: Numpy) -> Inputs:
    made = {name: x for name, x in inputs.items() if name not in (*VECTORS, "lambda_logits")}
    return {**made, "lambda_full": np.asarray(lambda_full, dtype=np.float64)}


def _maps(spec: Spec, inputs: Inputs) -> tuple[Numpy, Numpy]:
    """A₁V and A₂V: (B, h, T, e) twice."""
    bare = spec.replace(lambda_form="given", norm="none", norm_weight=False, out_scale="none")
    plain = {name: x for name, x in inputs.items() if name != "norm_weight"}
    first, both = (output(Problem(bare, _with(plain, np.asarray(value)))) for value in (0.0, 1.0))
    if first is None or both is None:
        raise ValueError("the maps of these inputs cannot be computed")
    return first, first - both


def _by_head(spec: Spec, actual: Numpy, first: Numpy, second: Numpy, weight: Numpy | None) -> tuple[Numpy, Numpy]:
    """The λ and factor of each head for which the squared error is least: a grid, then smaller and smaller ones."""
    step = max(1, actual.shape[2] // ENOUGH)
    out, o1, o2 = (x[:, :, ::step] for x in (actual, first, second))
    known = np.isfinite(out) & np.isfinite(o1) & np.isfinite(o2)
    out, o1, o2 = (np.where(known, x, 0.0) for x in (out, o1, o2))
    h = out.shape[1]
    centre, width = np.full(h, (LOW + HIGH) / 2), (HIGH - LOW) / 2
    factors, ops = np.ones(h), ops_for()
    for n in range(STEPS):
        offsets = np.linspace(-1.0, 1.0, 101 if n == 0 else 11) * width
        errors, scales = [], []
        for offset in offsets:
            y = normed(spec, o1 - (centre + offset)[None, :, None, None] * o2, weight, ops)
            square = np.sum(y * y, axis=(0, 2, 3))
            s = np.sum(out * y, axis=(0, 2, 3)) / np.where(square > 0, square, 1.0)
            errors.append(np.sum((out - s[None, :, None, None] * y) ** 2, axis=(0, 2, 3)))
            scales.append(s)
        best = np.argmin(np.asarray(errors), axis=0)
        centre, factors = centre + offsets[best], np.asarray(scales)[best, np.arange(h)]
        width *= 2.0 / (50 if n == 0 else 5)
    return centre, factors


def _words(values: Numpy) -> str:
    if np.ptp(values) <= 0.02 * max(1e-3, float(np.abs(values).max())):
        return f"{float(np.median(values)):.4g} in every head"
    return "by head " + ", ".join(f"{x:.3g}" for x in values)


def _named(spec: Spec, lambdas: Numpy) -> str:
    """What that number is known as."""
    value = float(np.median(lambdas))
    if np.ptp(lambdas) > 0.02 * max(1e-3, abs(value)):
        return ""
    start: dict[str, Any] = {"λ_init of the layer": lambda_init(spec, ops_for()), "1": 1.0, "0": 0.0, "0.8": 0.8}
    deeper = spec.replace(lambda_base="depth", lambda_init=None, layer=spec.layer + 1)
    start["λ_init of the next layer"] = lambda_init(deeper, ops_for())
    lower = spec.replace(lambda_base="depth - 1", lambda_init=None)
    start["λ_init of one layer lower"] = lambda_init(lower, ops_for())
    name, known = min(start.items(), key=lambda item: abs(item[1] - value))
    return f", which is {name}" if abs(known - value) <= 0.01 else ""
