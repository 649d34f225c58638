"""Compute the tensors of a kernel that differs from its spec, exactly or as a recipe rounds in some order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np

from refdiff import layers
from refdiff.backends import Ops, overlay
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.mistakes.catalogue import Kernel, Mistake, wrap
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import perturb_lambda_init
from refdiff.oracle.rounding.evaluation_order import Arithmetic, Order
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.rounding.rounded_layers import rounded_lambda, rounded_ops
from refdiff.oracle.rounding.row_estimate import select_queries
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import truth_ops
from refdiff.oracle.truth.backward import backward
from refdiff.oracle.truth.forward import forward

Tensors = dict[str, Numpy]


def deviated(spec: Spec, inputs: Inputs, mistakes: Iterable[Mistake]) -> Kernel | None:
    """Return the kernel with all of `mistakes`, applied in order; None if one does not apply."""
    kernel: Kernel | None = Kernel(spec, inputs)
    for mistake in mistakes:
        kernel = None if kernel is None else mistake.apply(kernel)
    return kernel


@lru_cache(maxsize=4096)
def ops_with(mistakes: tuple[Mistake, ...]) -> Ops:
    """Return the layers wrapped in these mistakes, the first one innermost."""
    return overlay(ops_with(mistakes[:-1]), wrap(mistakes[-1])) if mistakes else truth_ops()


def select_rows(kernel: Kernel, rows: Numpy) -> Kernel:
    """Return the kernel for some queries of a dense case."""
    spec, inputs = select_queries(kernel.spec, kernel.inputs, rows)
    return replace(kernel, spec=spec, inputs=inputs, queries=rows)


def compute(
    kernel: Kernel | None, names: Iterable[str], *, dout: Numpy | None = None, rows: Numpy | None = None,
    recipe: Recipe | None = None, order: Order | None = None,
) -> Tensors | None:  # fmt: skip
    """Compute the tensors of a kernel; None if it has none for its inputs.

    Args:
        dout: the gradient of the output, for gradients.
        rows: queries to compute; None for all.
        order: the order in which `recipe` rounds; None for exact tensors.
    """
    if kernel is None:
        return None
    names, found = set(names), {}
    try:
        with np.errstate(all="ignore"):
            kernel = kernel if rows is None else select_rows(kernel, rows)
            spec, inputs, ops = kernel.spec, kernel.inputs, ops_with(kernel.mistakes)
            if recipe is not None and order is not None:
                spec, ops = perturb_lambda_init(spec, order, ops), rounded_mistakes(recipe, order, kernel.mistakes)
            if "out" in names:
                found["out"] = forward(spec, inputs, ops)
            if dout is not None:
                found |= {f"d{name}": np.atleast_1d(g) for name, g in backward(spec, inputs, dout, ops).items()}
            for finish in kernel.finish:
                found = {name: finish(name, x) for name, x in found.items()}
            found = {name: x for name, x in found.items() if name in names}
            if recipe is not None and order is not None:
                found = {name: round_to(x, recipe.storage) for name, x in found.items()}
    except (ValueError, IndexError, ZeroDivisionError, TypeError):
        return None
    return found or None


def output(kernel: Kernel | None) -> Numpy | None:
    """Compute the output of a kernel; None without a kernel, or if a wrong layer cannot handle the inputs."""
    return (compute(kernel, ("out",)) or {}).get("out")


def output_with(spec: Spec, inputs: Inputs, mistakes: Iterable[Mistake]) -> Numpy | None:
    """Compute the output of a kernel with all of `mistakes`; None if one does not apply to these inputs."""
    return output(deviated(spec, inputs, mistakes))


def is_same_output(a: Numpy | None, b: Numpy | None) -> bool:
    """Whether two outputs are equal up to `Thresholds.same_function`, or both None."""
    if a is None or b is None or a.shape != b.shape:
        return a is None and b is None
    largest = float(np.max(np.abs(b), initial=1e-300, where=np.isfinite(b)))
    with np.errstate(invalid="ignore"):
        apart = np.any(np.abs(a - b) > THRESHOLDS.same_function * largest)
    return not apart and np.array_equal(np.isnan(a), np.isnan(b))


def rounded_mistakes(recipe: Recipe, order: Order, mistakes: Iterable[Mistake]) -> Ops:
    """Return `rounded_ops` with mistakes as an overlay; λ is rounded last, by whichever formula it is computed."""
    ops = Ops(**{**vars(rounded_ops(recipe, order)), "diff_lambda": layers.diff_lambda})
    for mistake in mistakes:
        ops = overlay(ops, wrap(mistake))
    return Ops(**{**vars(ops), "diff_lambda": partial(rounded_lambda, Arithmetic(recipe, order), ops.diff_lambda)})
