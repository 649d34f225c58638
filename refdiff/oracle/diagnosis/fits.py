"""Where no name fits: numbers of the spec fitted to the output, and which of its heads is which of the truth's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from refdiff.oracle.deviations.deviation import Problem, output
from refdiff.oracle.diagnosis.fit_lambda import fit_lambda
from refdiff.oracle.diagnosis.ranking import Fit
from refdiff.oracle.diagnosis.variants import Numpy, Target, judged, quick_residual
from refdiff.oracle.spec import Spec

COARSE, FINE = 33, 40
LONGEST = 256
"""Windows are tried one by one up to this length."""


def fits(spec: Spec, targets: tuple[Target, ...], *, local: bool = False) -> tuple[Fit, ...]:
    """Return the numbers with which the output passes: λ and scale by head, scale of scores, ε, base, window, order.

    Of an output that is wrong in one place only (`local`), those that differ by head or by token.
    """
    found = [*fit_lambda(spec, targets), *_window(spec, targets), *_order_of_heads(targets)]
    if not local:
        unit = spec.scale or spec.head_dim**-0.5
        found += _number(spec, targets, "scale", unit, 1 / 30, 30.0, "scores are multiplied by")
    if spec.norm != "none" and not local:
        found += _number(spec, targets, "norm_eps", 1.0, 1e-12, 1.0, "ε of the norm is")
    if spec.rope != "none" and not local:
        found += _number(spec, targets, "rope_theta", 1.0, 30.0, 1e8, "the base of RoPE is")
    return tuple(sorted((f for f in found if f.fits), key=lambda f: f.residual))


def passes(problems: Iterable[Problem], targets: tuple[Target, ...]) -> tuple[bool, float]:
    """Whether all outputs pass as those of these problems, and the largest residual."""
    worst = 0.0
    for problem, target in zip(problems, targets, strict=True):
        fits_one, residual = judged(problem, target)
        worst = max(worst, residual)
        if not fits_one:
            return False, worst
    return True, worst


def _number(
    spec: Spec, targets: tuple[Target, ...], field: str, unit: float, low: float, high: float, words: str
) -> list[Fit]:
    """Fit one field on a logarithmic scale between low and high units."""
    target = targets[0]

    def residual(log: float) -> float:
        changed = spec.replace(**{field: unit * math.exp(log)})
        return quick_residual(target, output(Problem(changed, target.inputs)))

    best, _ = smallest(residual, np.linspace(math.log(low), math.log(high), COARSE))
    value = unit * math.exp(best)
    changed = spec.replace(**{field: value})
    good, worst = passes((Problem(changed, t.inputs) for t in targets), targets)
    now = spec.head_dim**-0.5 if field == "scale" and spec.scale is None else getattr(spec, field)
    return [Fit(field, value, f"{words} {value:.4g}, where the spec has {now:.4g}", worst, good)]


def smallest(f: Callable[[float], float], grid: Numpy) -> tuple[float, float]:
    """The place of the smallest value: the best of a grid, then a golden section around it."""
    values = [f(float(x)) for x in grid]
    n = int(np.argmin(values))
    a, b = float(grid[max(n - 1, 0)]), float(grid[min(n + 1, len(grid) - 1)])
    ratio = (math.sqrt(5) - 1) / 2
    c, d = b - ratio * (b - a), a + ratio * (b - a)
    fc, fd = f(c), f(d)
    for _ in range(FINE):
        if fc < fd:
            b, d, fd = d, c, fc
            c = b - ratio * (b - a)
            fc = f(c)
        else:
            a, c, fc = c, d, fd
            d = a + ratio * (b - a)
            fd = f(d)
    x = (a + b) / 2
    at_x = f(x)
    return (x, at_x) if at_x <= values[n] else (float(grid[n]), values[n])


def _window(spec: Spec, targets: tuple[Target, ...]) -> list[Fit]:
    """Try every window."""
    target = targets[0]
    keys = target.inputs["k"].shape[2] if "k" in target.inputs else 0
    tried = range(1, min(keys, LONGEST) + 1)
    if not tried:
        return []
    residuals = [quick_residual(target, output(Problem(spec.replace(window=w), target.inputs))) for w in tried]
    w = tried[int(np.argmin(residuals))]
    good, worst = passes((Problem(spec.replace(window=w), t.inputs) for t in targets), targets)
    now = "all keys" if spec.window is None else str(spec.window)
    return [Fit("window", w, f"a query sees {w} keys, itself among them, where the spec has {now}", worst, good)]


def _order_of_heads(targets: tuple[Target, ...]) -> list[Fit]:
    """Which head of the truth each head of the output is, if all are, in another order."""
    target = targets[0]
    h = target.expected.shape[1]
    if target.expected.ndim != 4 or target.expected.size == 0:
        return []
    a, y = (np.where(np.isfinite(x), x, 0.0) for x in (target.actual, target.expected))
    apart = [[float(np.sum((a[:, i] - y[:, j]) ** 2)) for j in range(h)] for i in range(h)]
    order = [int(np.argmin(row)) for row in apart]
    if sorted(order) != list(range(h)) or order == list(range(h)):
        return []
    worst = 0.0
    for t in targets:
        moved = Target(t.inputs, t.actual, t.expected[:, order], t.rows[:, order], t.recipe)
        worst = max(worst, quick_residual(moved, moved.expected))
    text = f"the heads are right and stand in another order: head i is head {tuple(order)}[i] of the truth"
    return [Fit("heads", order, text, worst, worst < 2.0)]
