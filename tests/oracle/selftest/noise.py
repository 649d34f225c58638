"""What correct kernels are off by, and whether a mistake can be told from that: without the budget that is under test.

A mistake is *identifiable* on some inputs where it moves, without any roundings,

    a row       by more than 5 times the largest error that a correct kernel has in that row (root mean square),
    a number    by more than 5 times the largest error that a correct kernel has in any number of its row,
    a sum       (∂L/∂λ, a log-sum-exp) by more than 5 times the largest error that a correct kernel has in it, or
    the scale   of a tensor, ⟨e, y⟩ / ⟨y, y⟩, by more than 5 times what it is off by in a correct kernel.

Legal kernels are the orders that no budget is made of, and errors at random from seeds that no budget is made of; real
kernels show more than orders alone do, of RoPE's angles and of λ. *Plain* is what is 5 times the noise of the orders
alone, *large* what is 20 times the noise. None of the checker's limits, none of its rows' budgets and none of its
floors but the rounding of the result itself go into this: a checker that allows too much finds fewer, and not fewer to
be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refdiff.oracle.budget.statistics import root_mean_square, safe_ratio, slope
from refdiff.oracle.rounding import FORMATS
from refdiff.oracle.rounding.evaluation_order import DRAWS, HELD_OUT, Order

Numpy = np.ndarray[Any, Any]
ORDERS: tuple[Order, ...] = HELD_OUT
AT_RANDOM: tuple[Order, ...] = tuple(replace(order, noise=order.noise + 100) for order in DRAWS)
TIMES = 5.0
LARGE = 20.0


@dataclass(frozen=True)
class Noise:
    """Of one tensor: the largest error in each row (root mean square) and in any number of it, and of its scale.

    Shapes:
        rows, numbers: the tensor's without the last axis; for a sum `rows` is None and numbers has the tensor's
    """

    rows: Numpy | None
    numbers: Numpy
    scale: float

    def times(self, wrong: Numpy, right: Numpy) -> float:
        """How many times the noise a mistake is, in whichever of the four it is most; ∞ for NaN and infinities."""
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.abs(wrong - right)
        if not np.all(np.isfinite(off)):
            return np.inf
        with np.errstate(over="ignore"):
            if self.rows is None:
                return float(np.max(safe_ratio(off, self.numbers), initial=0.0))
            found = np.max(safe_ratio(root_mean_square(off), self.rows), initial=0.0)
            found = max(found, np.max(safe_ratio(off, self.numbers[..., None]), initial=0.0))
            scale = safe_ratio(np.asarray(abs(slope(*_in_one_unit(wrong - right, right)))), np.asarray(self.scale))
            return float(max(found, scale))


def noise(right: Numpy, runs: Sequence[Numpy], storage: str, by_rows: bool) -> Noise:
    """Measure what runs of correct kernels are off by, at least by the rounding of the result to its type."""
    form = FORMATS[storage]
    # half of all roundings are below a unit's quarter; what a processor flushes may be lost
    least = form.u / np.sqrt(12) * np.abs(right) + np.where(right != 0, max(form.tiny, 2.0**-126), 0.0)
    with np.errstate(invalid="ignore"):
        errors = [np.where(np.isfinite(run), np.abs(run - right), 0.0) for run in runs]
    if not by_rows:
        return Noise(None, np.max([least, *errors], axis=0), 0.0)
    rows = np.max([root_mean_square(e) for e in (least, *errors)], axis=0)
    numbers = np.max([np.max(e, axis=-1) for e in (least, *errors)], axis=0)
    lost = [np.where(np.isfinite(run), run, right) for run in runs]
    scale = max(abs(slope(*_in_one_unit(run - right, right))) for run in lost)
    return Noise(rows, numbers, scale + 0.02 * form.u)


def _in_one_unit(error: Numpy, right: Numpy) -> tuple[Numpy, Numpy]:
    """Both divided by the largest number, lest their squares overflow."""
    unit = float(np.abs(right).max(initial=0.0)) or 1.0
    return error / unit, right / unit
