"""Compute the tensors of a kernel that differs from its spec, exactly or as a recipe rounds in some order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from refdiff.oracle.budget.row_sample import select_queries
from refdiff.oracle.deviations.deviation import Kernel, ops_with
from refdiff.oracle.inputs.sequences import Numpy
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import perturb_lambda_init
from refdiff.oracle.rounding.evaluation_order import Order
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.rounding.rounded_layers import rounded_mistakes
from refdiff.oracle.truth.backward import backward
from refdiff.oracle.truth.forward import forward

Tensors = dict[str, Numpy]


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
                found |= _named(backward(spec, inputs, dout, ops))
            if dout is not None and kernel.part is not None:
                some, mask = kernel.part
                part = _named(backward(spec, inputs, dout * mask, ops))
                found |= {name: part[name] for name in some}
            for finish in kernel.finish:
                found = {name: finish(name, x) for name, x in found.items()}
            found = {name: x for name, x in found.items() if name in names}
            if recipe is not None and order is not None:
                found = {name: round_to(x, recipe.storage) for name, x in found.items()}
    except (ValueError, IndexError, ZeroDivisionError, TypeError):
        return None
    return found or None


def _named(gradients: Tensors) -> Tensors:
    return {f"d{name}": np.atleast_1d(g) for name, g in gradients.items()}
