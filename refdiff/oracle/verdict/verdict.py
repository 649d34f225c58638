"""Verdicts: pass, fail or inconclusive, with each statistic, its limit and the worst row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from refdiff.oracle.budget.statistics import Statistic
from refdiff.oracle.printing import wrap_text

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"


@dataclass(frozen=True)
class TensorVerdict:
    """The verdict on one tensor: statistics, reasons for a fail, notes (why it is inconclusive, or a likely cause)."""

    name: str
    status: str
    statistics: tuple[Statistic, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        numbers = "  ".join(f"{s.name} {s.value:.3g}/{s.limit:.3g}" for s in self.statistics if s.name != "masks")
        head, said = f"  {self.name:<12} {self.status:<13}", (*self.reasons, *self.notes)
        lines = [head, *(f"      {line}" for line in (*said, numbers) if line)] if said else [f"{head} {numbers}"]
        return wrap_text("\n".join(line.rstrip() for line in lines))

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as values of JSON; an infinite number becomes a string."""
        return {
            "status": self.status,
            "statistics": {
                s.name: {
                    "value": s.value if math.isfinite(s.value) else str(s.value),
                    "limit": s.limit if math.isfinite(s.limit) else str(s.limit),
                    "at": None if s.at is None else list(s.at),
                    "what": s.what,
                }
                for s in self.statistics
            },
            "reasons": list(self.reasons),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Verdict:
    """The verdict on all tensors of a call; true if and only if the status is "pass".

    When it is printed, each tensor has what is wrong in words, then value/limit pairs; a value above its limit fails. A
    row is the last axis, at one index of the other axes. e_r is the root mean square error of row r, and E_r the
    measured rounding error of correct kernels there. e is an error, y the true value, u the unit roundoff of the
    storage type. Each statistic is sensitive to another kind of mistake:

        row       max e_r / E_r: a key lost in one row
        bulk      root mean square of e_r / E_r: a small error everywhere
        slope     ⟨e, y⟩ / ⟨y, y⟩ over all rows in units of E_r: a wrong scale
        sum       for a sum of many terms x, such as the gradient of λ: max |e| / allowance, about 3 u ‖x‖ + 2 ulp
        lse       for a log-sum-exp: max |e| / (error of its scores + its own rounding)
    """

    tensors: dict[str, TensorVerdict]
    recipe: str
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """ "fail" if any tensor fails; else "inconclusive" if any is inconclusive; else "pass"."""
        found = {t.status for t in self.tensors.values()}
        return FAIL if FAIL in found else INCONCLUSIVE if INCONCLUSIVE in found else PASS

    def __bool__(self) -> bool:
        return self.status == PASS

    def __str__(self) -> str:
        head = f"{self.status}, judged as {self.recipe}; numbers are value/limit; value ≤ limit passes"
        return wrap_text("\n".join([head, *(str(t) for t in self.tensors.values()), *self.notes]))

    def to_dict(self) -> dict[str, Any]:
        """Return status, recipe, each tensor's verdict and the notes as values of JSON."""
        return {
            "status": self.status,
            "recipe": self.recipe,
            "tensors": {name: tensor.to_dict() for name, tensor in self.tensors.items()},
            "notes": list(self.notes),
        }
