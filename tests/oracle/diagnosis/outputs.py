"""Outputs of wrong kernels: what a legal order of roundings makes of a problem with deviations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from refdiff.backends import overlay
from refdiff.oracle import Case, Mistake, Recipe, Spec, deviations
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes import wrap
from refdiff.oracle.mistakes.kernel import deviated
from refdiff.oracle.mistakes.listed import EVERY
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import evaluate, quantise
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from refdiff.oracle.rounding.rounded_layers import rounded_ops
from refdiff.oracle.truth.attention_operands import attention_operands, scores, truth_ops
from refdiff.oracle.truth.forward import forward, normalize_and_scale


def kernel(case: Case, some: Sequence[Mistake], order: int = 0) -> np.ndarray | None:
    """What a kernel with these deviations gives, in an order that no budget is made of; None where it has none."""
    recipe = Recipe.of(case.dtype)
    problem = deviated(case.spec, as_float64(case.spec, quantise(case.inputs, recipe)), some)
    if problem is None:
        return None
    ops = rounded_ops(recipe, HELD_OUT[order % len(HELD_OUT)])
    for mistake in problem.mistakes:
        ops = overlay(ops, wrap(mistake))
    with np.errstate(all="ignore"):
        return round_to(forward(problem.spec, problem.inputs, ops), recipe.storage)


def rounded(
    spec: Spec,
    inputs: Mapping[str, Any],
    dtype: str | Recipe = "float32",
    order: int = 0,
    dout: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Output, and gradients where there is `dout`, of a right kernel, in an order that no budget is made of."""
    recipe = Recipe.of(dtype)
    return evaluate(spec, quantise(inputs, recipe), recipe, HELD_OUT[order], dout)


def natural(spec: Spec, shape: Structure, dtype: str, values: str = "natural", seed: int = 0) -> Case:
    """A case of a shape that no profile has."""
    return Case("", values, seed, dtype, spec, draw(spec, shape, values, seed, dtype))


def output_of(case: Case, *names: str, order: int = 0) -> np.ndarray:
    """What a kernel gives with the deviations of these names; a right one's output without any."""
    every = (*deviations(case.spec), *EVERY)
    return kernel(case, [next(d for d in every if name in (d.name, *d.aliases)) for name in names], order)


def by_weights(spec: Spec, inputs: Mapping[str, Any], weights: Callable[..., Sequence[np.ndarray]]) -> np.ndarray:
    """The output where `weights` makes the two maps of their scores, which are −∞ where a query does not see."""
    exact, ops = as_float64(spec, inputs), truth_ops()
    s = attention_operands(spec, exact, ops)
    first, second = weights(scores(s, 1), scores(s, 2))
    return normalize_and_scale(spec, (first - s.lambda_full * second) @ s.v, exact, ops)


def by_tiles(spec: Spec, inputs: Mapping[str, Any], tile: int, mistake: str) -> np.ndarray:
    """The output of an online softmax over tiles of keys that forgets to rescale its sums."""
    exact, ops, maps = as_float64(spec, inputs), truth_ops(), []
    s = attention_operands(spec, exact, ops)
    for z in (scores(s, 1), scores(s, 2)):
        top, total, out = np.full((*z.shape[:-1], 1), -np.inf), 0.0, 0.0
        for keys in (slice(i, i + tile) for i in range(0, z.shape[-1], tile)):
            new = np.maximum(top, np.max(z[..., keys], axis=-1, keepdims=True))
            raw, fade = np.exp(z[..., keys] - new), np.exp(top - new)
            total = total * (fade if mistake == "accumulator" else 1.0) + np.sum(raw, axis=-1, keepdims=True)
            out = out * (fade if mistake == "denominator" else 1.0) + raw @ s.v[:, :, keys]
            top = new
        maps.append(out / total)
    return normalize_and_scale(spec, maps[0] - s.lambda_full * maps[1], exact, ops)
