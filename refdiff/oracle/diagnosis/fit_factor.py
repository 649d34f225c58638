"""What the whole output is multiplied by, one number or one for each head, where all else is as the spec has it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.deviations.deviation import Problem
from refdiff.oracle.diagnosis.parameter_fit import Trial
from refdiff.oracle.diagnosis.per_head_format import is_one, short_list
from refdiff.oracle.diagnosis.variants import Numpy, Target
from refdiff.oracle.inputs import is_layer
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.forward import out_factor


def fit_factor(spec: Spec, targets: tuple[Target, ...]) -> Iterator[Trial]:
    """Yield one factor, then one by head where there are heads, each that of the least squared error.

    A head that is zero is not multiplied by zero: nothing was written to it.
    """
    along, square = (np.sum([_by_head(t, of) for t in targets], axis=0) for of in ("actual", "expected"))
    if not np.all(square > 0) or not np.all(along != 0):
        return
    one = float(np.sum(along) / np.sum(square))
    has = "" if is_layer(targets[0].inputs) else _has(spec, one, targets[0])
    yield _trial(spec, one, one, f"out is multiplied by {one:.4g}{has}")
    factors = along / square
    if not is_one(factors):
        text = f"out is multiplied by a factor that differs by head: {short_list(factors)}"
        yield _trial(spec, factors.tolist(), factors[:, None, None], text)


def _trial(spec: Spec, value: float | list[float], factor: float | Numpy, text: str) -> Trial:
    return Trial("factor", value, text, lambda inputs: Problem(spec, inputs, factor=factor))


def _by_head(target: Target, name: str) -> Numpy:
    """⟨x, truth⟩ of each head; of a layer's output, which has none, of all of it: (h,) or (1,)."""
    known = target.compared
    x, y = (np.where(known, z, 0.0) for z in (getattr(target, name), target.expected))
    axes = (0, 2, 3) if x.ndim == 4 else None
    found: Numpy = np.atleast_1d(np.sum(x * y, axis=axes))
    return found


def _has(spec: Spec, factor: float, target: Target) -> str:
    """What that makes of the spec's own scale, where it has one."""
    own = np.asarray(out_factor(spec, target.inputs, ops_for()))
    if spec.out_scale == "none" or own.size != 1:
        return " beside what the spec has" if spec.out_scale != "none" else ", where the spec has no factor"
    return f": it is scaled by {factor * own.item():.4g}, where the spec has {own.item():.4g}"
