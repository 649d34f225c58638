"""How far a deviation moves an output; the axes of deviations from v1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refdiff.oracle import Budget, Deviation, Spec
from refdiff.oracle.budget.statistics import over, root_mean_square
from refdiff.oracle.deviations.deviation import output_with
from refdiff.oracle.inputs.validation import as_float64

AXES = {
    "pair", "gqa", "vlay", "rope kind", "rope dim", "rope base", "rope offset", "scale", "linit base", "linit const",
    "lam form", "post scale", "norm kind", "norm extent", "eps", "order", "clamp", "renorm", "mask align",
    "mask off by one", "window", "lse base", "k1/k2 crossed", "V2-vs-V1",
}  # fmt: skip
"""Of v1; in V2-vs-V1 λ is squashed."""


def effect(spec: Spec, inputs: Mapping[str, Any], deviation: Deviation, allowed: Budget) -> float:
    """How far a deviation moves the output, in budgets of the row in which that is most."""
    wrong = output_with(spec, as_float64(spec, allowed.inputs), [deviation])
    if wrong is None:
        return 0.0
    expected, rows = allowed.expected["out"], allowed.rows["out"]
    if not np.array_equal(np.isfinite(wrong), np.isfinite(expected)):
        return np.inf
    off = np.where(np.isfinite(expected), wrong - expected, 0.0)
    return float(np.max(over(root_mean_square(off), rows), initial=0.0))
