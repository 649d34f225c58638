"""How far a deviation moves an output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refdiff.oracle import Budget, Deviation, Spec
from refdiff.oracle.budget.statistics import over, root_mean_square
from refdiff.oracle.deviations.deviation import output_with
from refdiff.oracle.inputs.validation import as_float64


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
