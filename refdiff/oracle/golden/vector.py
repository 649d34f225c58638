"""A test vector: the inputs of a case, the truth, and the limits of each judged tensor, as arrays and numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.budget.statistics import LIMITS, slope_limit, uncertain_share
from refdiff.oracle.cases.fixed import Case
from refdiff.oracle.rounding import FORMATS, round_to
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.verdict.verdict import PASS

Numpy = np.ndarray[Any, Any]
LIMIT_NAMES = ("row", "bulk", "slope", "certain")
"""The numbers of a judged tensor; the guide says how they judge it."""


@dataclass(frozen=True)
class Vector:
    """A case with what it expects.

    inputs: by name, with `dout` if gradients are asked for. arrays: those of the guide, by name. limits: for each
    judged tensor the values of `LIMIT_NAMES`. metadata: spec and recipe as JSON.
    """

    name: str
    case: Case
    inputs: dict[str, Numpy]
    arrays: dict[str, Numpy]
    limits: dict[str, tuple[float, ...]]
    metadata: dict[str, str]


def make_vector(name: str, case: Case, recipe: Recipe, gradients: bool) -> Vector:
    """Compute what a case expects."""
    inputs = {of: np.asarray(x) for of, x in case.inputs.items()} | ({"dout": case.dout} if gradients else {})
    found = budget(case.spec, case.inputs, recipe, dout=inputs.get("dout"))
    arrays = {f"inputs.{of}": x for of, x in inputs.items()}
    limits = {tensor: _add_judged_tensor(tensor, found, arrays) for tensor in found.names}
    metadata = {"spec": json.dumps(case.spec.to_dict()), "recipe": json.dumps(recipe.to_dict())}
    return Vector(name, case, inputs, arrays, limits, metadata)


@np.errstate(over="ignore", invalid="ignore")
def _add_judged_tensor(name: str, found: Budget, arrays: dict[str, Numpy]) -> tuple[float, ...]:
    """Add the arrays of one judged tensor to `arrays`; return its limits.

    The truth is infinite where it overflows the storage type. A row is not judged if it has a number so near to the
    largest of the type that correct kernels may overflow or not.
    """
    padded = found.padded(name)
    if (tensor := found.tensors.get(name)) is None:
        expected, allowed = found.absolute(name)  # a row is one number, and any slope is allowed
        limits = (1.0, 1.0, 1e30, float(found.judge({name: expected}).status == PASS))
    else:
        expected, allowed = tensor.expected, np.where(tensor.doubtful, np.inf, tensor.rows)
        padded = None if padded is None else padded[..., 0]
        limits = (LIMITS.row, LIMITS.bulk, slope_limit(tensor), float(uncertain_share(tensor) <= LIMITS.share))
    exact, storage = np.asarray(expected, dtype=np.float64), FORMATS[found.recipe.storage]
    stored = round_to(exact, found.recipe.storage)
    edge = (np.isfinite(stored) ^ (np.abs(exact) < storage.top * (1 - 2 * storage.u))) & ~np.isnan(exact)
    allowed = np.broadcast_to(allowed, exact.shape[: np.ndim(allowed)])
    unjudged = edge if allowed.ndim == exact.ndim else edge.any(axis=-1)
    allowed = np.where(unjudged if padded is None else unjudged | padded, np.inf, allowed)
    arrays[f"budget.{name}"] = allowed.astype(np.float32)
    arrays[f"expected.{name}"] = np.where(np.isfinite(stored), exact, stored)
    return limits
