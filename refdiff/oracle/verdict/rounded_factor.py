"""Kernels that round the factor after the norm: a Python number times a 16-bit array, in JAX and MLX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import lambda_init
from refdiff.oracle.verdict.verdict import FAIL, TensorVerdict

Numpy = np.ndarray[Any, Any]
UNSCALED = ("lse", "lse1", "lse2", "lambda_full")
"""Tensors that the factor is not in."""


def allow_rounded_factor(
    spec: Spec,
    recipe: Recipe,
    arrays: Mapping[str, Numpy],
    verdicts: dict[str, TensorVerdict],
    judge: Callable[[str, Numpy], TensorVerdict],
) -> tuple[dict[str, TensorVerdict], tuple[str, ...]]:
    """Judge failing tensors once more, as those of a kernel that rounds 1 − λ_init where the recipe's `o` has 16 bits.

    In JAX and MLX the product of a Python number and a 16-bit array rounds the number; in torch it does not. The
    rounding scales a whole tensor, so the tensor is judged divided by it: no limit becomes looser.

    Args:
        verdicts: on the arrays, by name.
        judge: returns the verdict on an array with this name.

    Returns:
        The verdicts, with those that do not fail any more, and a note that names these tensors.
    """
    failed = [name for name, found in verdicts.items() if found.status == FAIL and name not in UNSCALED]
    if not failed or recipe.o is None or recipe.o == "float32" or "lambda_init" not in spec.out_scale:
        return verdicts, ()
    start = lambda_init(spec, ops_for())
    exact = start if spec.out_scale == "lambda_init" else 1 - start
    ratio = float(round_to(np.asarray(exact), recipe.o)) / exact if exact else 1.0
    again = {name: judge(name, np.asarray(arrays[name], dtype=np.float64) / ratio) for name in failed}
    right = {name: y for name, y in again.items() if y.status != FAIL and _is_explained(verdicts[name], y)}
    if not right:
        return verdicts, ()
    note = f"{spec.out_scale.replace('lambda_init', 'λ_init')} is rounded to {recipe.o} in {', '.join(right)}"
    return {**verdicts, **right}, (f"{note}, as by a product of a number and an array in JAX and MLX",)


def _is_explained(before: TensorVerdict, after: TensorVerdict) -> bool:
    """Whether the rounding explains at least half of every statistic of a common factor that failed."""
    left = {statistic.name: statistic.value for statistic in after.statistics}
    of_factors = (x for x in before.statistics if x.name in ("slope", "factor") and not x.holds)
    return all(THRESHOLDS.better_ratio * left[x.name] <= x.value for x in of_factors)
