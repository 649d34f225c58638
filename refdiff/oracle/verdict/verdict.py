"""The answer: pass, fail or inconclusive, with the numbers, the worst row, and what would have been allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from refdiff.oracle.budget.statistics import Statistic
from refdiff.oracle.printing import wrap_text

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"


@dataclass(frozen=True)
class TensorVerdict:
    """The answer for one tensor: its numbers, and in words what does not hold, where, and what was allowed."""

    name: str
    status: str
    statistics: tuple[Statistic, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        numbers = "  ".join(f"{s.name} {s.value:.3g}/{s.limit:.3g}" for s in self.statistics if s.name != "masks")
        lines = [f"  {self.name:<12} {self.status:<13} {numbers}".rstrip()]
        return wrap_text("\n".join([*lines, *(f"      {line}" for line in (*self.reasons, *self.notes))]))

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
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
    """The answer for all tensors of a call. It is true where it is a pass, and only there.

    Printed, each tensor has a line of value/limit; a value above its limit fails. A row is the last axis at one place
    of the others. Its error e_r is a root mean square; E_r is the error that correct kernels have there, as measured.
    e is the error of a number, y its true value, u the unit roundoff of the storage type:

        bound     the largest e_r over B_r, the most that a correct kernel can have; not printed where no B_r is known
        row       the largest e_r over E_r: a key lost in one row
        bulk      the root mean square of e_r over E_r: a small error everywhere
        element   the largest |e| / (6 E_r + 2 u |y|): one wrong number
        slope     ⟨e, y⟩ over ⟨y, y⟩, with the result y of all rows: a wrong scale
        factor    the same, weighted by row: a wrong scale where some rows are noisy
        sum       of a sum of many terms, such as the gradient of λ, the largest |e| over what correct kernels may be
                  off by: of terms x, about 3 u ‖x‖ + 2 ulp
        lse       of a log-sum-exp, the largest |e| over the error of its scores and of its own rounding
    """

    tensors: dict[str, TensorVerdict]
    recipe: str
    notes: tuple[str, ...] = field(default=())

    @property
    def status(self) -> str:
        """ "fail" where one tensor fails; else "inconclusive" where one is; else "pass"."""
        found = {t.status for t in self.tensors.values()}
        return FAIL if FAIL in found else INCONCLUSIVE if INCONCLUSIVE in found else PASS

    def __bool__(self) -> bool:
        return self.status == PASS

    def __str__(self) -> str:
        head = f"{self.status}, judged as {self.recipe}; numbers are value/limit, the value may be at most the limit"
        return wrap_text("\n".join([head, *(str(t) for t in self.tensors.values()), *self.notes]))

    def raise_for_status(self) -> None:
        """Do nothing after a pass.

        Raises:
            AssertionError: a fail, or an inconclusive, with the whole report.
        """
        if not self:
            raise AssertionError(str(self))

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: status, recipe, and each tensor's numbers."""
        return {
            "status": self.status,
            "recipe": self.recipe,
            "tensors": {name: tensor.to_dict() for name, tensor in self.tensors.items()},
            "notes": list(self.notes),
        }
