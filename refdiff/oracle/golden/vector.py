"""A test vector: the inputs of a case, the truth, and the limits of each judged tensor, as arrays and numbers."""

from __future__ import annotations

import json
import math
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
    judged tensor its `LIMIT_NAMES`; rows: the names of those that are judged by rows.
    """

    name: str
    case: Case
    recipe: Recipe
    inputs: dict[str, Numpy]
    arrays: dict[str, Numpy]
    limits: dict[str, dict[str, float]]
    rows: tuple[str, ...]

    @property
    def metadata(self) -> dict[str, str]:
        """Spec and recipe as JSON."""
        return {"spec": json.dumps(self.case.spec.to_dict()), "recipe": json.dumps(self.recipe.to_dict())}

    @staticmethod
    def of(name: str, case: Case, recipe: Recipe, gradients: bool) -> Vector:
        """Compute what a case expects."""
        inputs = {of: np.asarray(x) for of, x in case.inputs.items()} | ({"dout": case.dout} if gradients else {})
        found = budget(case.spec, case.inputs, recipe, dout=inputs.get("dout"))
        arrays = {f"inputs.{of}": x for of, x in inputs.items()}
        limits = {tensor: _add_judged_tensor(tensor, found, arrays) for tensor in found.names}
        return Vector(name, case, recipe, inputs, arrays, limits, tuple(found.tensors))


@np.errstate(over="ignore", invalid="ignore")
def _add_judged_tensor(name: str, found: Budget, arrays: dict[str, Numpy]) -> dict[str, float]:
    """Add the arrays of one judged tensor to `arrays`; return its limits."""
    limits = {**dict.fromkeys(LIMIT_NAMES, 0.0), "row": 1.0}
    padded = found.padded(name)
    if (tensor := found.tensors.get(name)) is None:
        expected, allowed = found.absolute(name)
        limits["certain"] = found.judge({name: expected}).status == PASS
    else:
        expected, allowed = tensor.expected, np.where(tensor.doubtful, np.inf, tensor.rows)
        padded = None if padded is None else padded[..., 0]
        limits |= {"row": LIMITS.row, "bulk": LIMITS.bulk, "slope": slope_limit(tensor)}
        limits["certain"] = uncertain_share(tensor) <= LIMITS.share
    allowed = np.where(False if padded is None else padded, np.inf, allowed)
    arrays[f"budget.{name}"] = np.broadcast_to(allowed, expected.shape[: allowed.ndim]).astype(np.float32)
    arrays[f"expected.{name}"] = np.asarray(expected, dtype=np.float64)
    arrays[f"expected.{name}.hi"], arrays[f"expected.{name}.lo"] = _split_float64(expected, found.recipe.storage)
    return limits


def _split_float64(x: Numpy, storage: str) -> tuple[Numpy, Numpy]:
    """Split float64 numbers into sums of two float32 numbers, `hi` + `lo`.

    hi is infinite where the number overflows the storage type. lo is NaN where the number is so near to the largest of
    the type that correct kernels may overflow or not.
    """
    stored = round_to(np.asarray(x, dtype=np.float64), storage)
    hi = np.where(np.isfinite(stored), x, stored).astype(np.float32)
    lo = np.where(np.isfinite(hi), x - hi.astype(np.float64), 0.0)
    top = FORMATS[storage].top * (1 - 2 * FORMATS[storage].u)
    edge = np.isfinite(stored) ^ (np.abs(x) < top)
    return hi, np.where(edge & ~np.isnan(x), math.nan, lo).astype(np.float32)
