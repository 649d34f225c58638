"""Judge a fitted number: do the outputs pass with it, and how much of their error does it explain?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.oracle.diagnosis.ranking import Fit
from refdiff.oracle.diagnosis.targets import (
    Kernel,
    Target,
    compute_outputs,
    explained_share,
    judge_problem,
    worst_residual,
)
from refdiff.oracle.inputs.sequences import Numpy
from refdiff.oracle.rounding import round_to
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.verdict.judge import judge_rows
from refdiff.oracle.verdict.verdict import FAIL

MAX_LISTED = 16
"""The most heads whose numbers a message lists."""


@dataclass(frozen=True)
class Trial:
    """A fitted number: its name, its value, a text that describes it, and a kernel that uses it."""

    parameter: str
    value: Any
    text: str
    kernel: Kernel


def evaluate(trial: Trial, stages: Sequence[tuple[Target, ...]], *, large: bool = False) -> list[Fit]:
    """Judge a trial on each stage in turn: parts of the targets first, then the whole.

    Returns [] if a stage fails and the trial explains less than `Thresholds.nearly_explained` there, or if the kernel's
    output is correct: the number is then the spec's own.

    Args:
        large: skip the judgement, which takes long, where the quick residual is above `Thresholds.quick_residual`.
    """
    worst, passed = 0.0, True
    for targets in stages:
        worst = 0.0 if passed else worst  # of the stage that fails
        outs = compute_outputs(trial.kernel, targets)
        share = min(explained_share(t, x) for t, x in zip(targets, outs, strict=True))
        if large and worst_residual(targets, outs) > THRESHOLDS.quick_residual:
            worst, passed = np.inf, False
        for t in targets if passed else ():
            found = judge_problem(trial.kernel(t.inputs), t)
            passed, worst = found.fits, max(worst, found.residual)
            if not passed:
                break
        passed = passed and is_near(targets, outs)
        if not passed and share < THRESHOLDS.nearly_explained:
            return []
    if all(_is_correct(t, x) for t, x in zip(targets, outs, strict=True)):
        return []  # it is the spec's own number
    return [Fit(trial.parameter, trial.value, trial.text, worst, passed, share)]


def is_near(targets: Sequence[Target], outs: Sequence[Numpy | None]) -> bool:
    """Whether a kernel's outputs explain most of the error, or leave little more than rounding errors.

    Without this, noise would pass by a large softcap c, which explains none of it: its scores have errors of c u₃₂,
    since tanh is computed by exp.
    """
    share = min(explained_share(t, x) for t, x in zip(targets, outs, strict=True))
    return share >= THRESHOLDS.explained or worst_residual(targets, outs) < THRESHOLDS.better_ratio


def _is_correct(target: Target, out: Numpy | None) -> bool:
    """Whether a kernel's output is a correct one for the target, by the rule of `check`."""
    if target.allowed is None or out is None or out.shape != target.expected.shape:
        return False
    return judge_rows("out", round_to(out, target.recipe.storage), target.allowed).status != FAIL


def is_uniform(values: Numpy) -> bool:
    """Whether all heads have the same number, up to `Thresholds.same_factor`."""
    size = max(THRESHOLDS.fits.zero_factor, float(np.abs(values).max()))
    return bool(np.ptp(values) <= THRESHOLDS.same_factor * size)


def format_list(values: Numpy) -> str:
    """Format the first few values: "0.5, 0.7, 1, …"."""
    return ", ".join(f"{x:.3g}" for x in values[:MAX_LISTED]) + (", …" if len(values) > MAX_LISTED else "")


def format_by_head(values: Numpy) -> str:
    """Format one value per head: "0.5 in every head", or "by head 0.5, 0.7"."""
    return f"{float(np.median(values)):.4g} in every head" if is_uniform(values) else f"by head {format_list(values)}"


def format_spec_value(values: Any, heads: int) -> str:
    """Format the spec's values, broadcastable to (B, h, T, 1): "0.36", "by head 0.3, 0.4", "one for each token"."""
    x = np.asarray(values, dtype=np.float64)
    if x.size not in (1, heads) or (x.size > 1 and x.shape[-3] != heads):
        return "one for each token"
    return f"{x.flat[0]:.4g}" if is_uniform(x.ravel()) else f"by head {format_list(x.ravel())}"
