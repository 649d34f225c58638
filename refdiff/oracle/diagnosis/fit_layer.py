"""The layer whose λ_init a kernel has, a whole number: in λ and the scale of the output, or in one of the two."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.deviations.deviation import Problem
from refdiff.oracle.diagnosis.parameter_fit import Trial, held
from refdiff.oracle.diagnosis.ranking import Fit
from refdiff.oracle.diagnosis.sub_case import Parts
from refdiff.oracle.diagnosis.variants import Kernel, Target, worst_residual
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.mistakes import Mistake
from refdiff.oracle.mistakes.catalogue import Layer
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import lambda_init

DEEPEST, SHALLOW = 99, 40
"""The last layer that is tried; from the other on all are nearly alike, and tried only where that one is the best."""
BOTH, LAMBDA, SCALE = "layer", "layer_of_lambda", "layer_of_scale"
"""Where the other layer's λ_init is."""
PLACES = {BOTH: "", LAMBDA: " in λ alone", SCALE: " in the scale of the output alone"}
"""In words, where it can be in both."""


def fit_layer(spec: Spec, parts: Parts) -> list[Fit]:
    """Return the layers with whose λ_init the output passes, the best first, in each place where it does.

    Layers count as those of the spec do, and from 0 where its λ_init is a constant.
    """
    targets = [t for t in parts.small if not t.right]
    if not targets:
        return []
    found = (_in_place(spec, place, targets, parts) for place in _places(spec))
    return [fit for fit in found if fit is not None]


def _in_place(spec: Spec, place: str, targets: Sequence[Target], parts: Parts) -> Fit | None:
    def kernel(layer: int) -> Kernel:
        return partial(_problem, spec, place, layer)

    def fitted(layer: int, large: bool = True) -> Fit | None:
        trial = Trial(place, [layer], "", kernel(layer))
        fits = held(trial, parts.in_turn(parts.small), large=large)
        return next((f for f in fits if f.fits), None)

    best = _best(lambda layer: worst_residual(kernel(layer), targets))
    fit = fitted(best, parts.are_parts)
    if fit is None:
        return None
    first, last = _reach(best, 0, fitted), _reach(best, DEEPEST, fitted)
    layers = sorted(range(first, last + 1), key=lambda n: (abs(n - best), n))
    return replace(fit, value=layers, text=_in_words(spec, place, best, first, last))


def spec_at_layer(spec: Spec, layer: int) -> Spec:
    """The spec in another layer; one whose λ_init is a constant then has that of the layer."""
    if spec.lambda_base == "constant":
        return spec.replace(lambda_base="depth", lambda_init=None, layer=layer)
    return spec.replace(layer=layer)


def _places(spec: Spec) -> tuple[str, ...]:
    """Where λ_init of another layer can be."""
    in_lambda, in_scale = spec.lambda_form == "exp", spec.out_scale in ("1 - lambda_init", "lambda_init")
    if in_lambda and in_scale:
        return BOTH, LAMBDA, SCALE
    return (LAMBDA,) if in_lambda else (SCALE,) if in_scale else ()


def _problem(spec: Spec, place: str, layer: int, inputs: Inputs) -> Problem:
    other = spec_at_layer(spec, layer)
    if place == BOTH:
        return Problem(other, inputs)
    for_lambda, for_scale = (other, spec) if place == LAMBDA else (spec, other)
    start = lambda_init(for_lambda, ops_for())

    def another_start(right: Layer, q1: Any, k1: Any, q2: Any, k2: Any, _: float) -> Any:
        return right(q1, k1, q2, k2, start)

    wrong = Mistake("λ_init_of_another_layer", "", "diff_lambda", "linit base", "", "", another_start)
    return Problem(for_scale, inputs, (wrong,))


def _best(residual: Callable[[int], float]) -> int:
    residuals = [residual(n) for n in range(SHALLOW + 1)]
    if residuals[-1] == min(residuals):
        residuals += [residual(n) for n in range(SHALLOW + 1, DEEPEST + 1)]
    return int(np.argmin(residuals))


def _reach(best: int, end: int, fitted: Callable[[int], Fit | None]) -> int:
    """The last layer from the best one to `end` with which the output passes: all between them do."""
    if best == end or fitted(end):
        return end
    step = 1 if best < end else -1
    between = range(best + step, end, step)
    return best + step * bisect_left(between, True, key=lambda layer: fitted(layer) is None)


def _in_words(spec: Spec, place: str, best: int, first: int, last: int) -> str:
    has = f"spec has {spec.lambda_init:.4g}" if spec.lambda_init is not None else f"spec's layer is {spec.layer}"
    others = f"layers {first} to {last}" if last < DEEPEST else f"layers {first} and deeper"
    also = f"; {others} pass too" if first < last else ""
    where = PLACES[place] if len(_places(spec)) > 1 else ""
    return f"λ_init is that of layer {best}{where}, where the {has}{also}"
