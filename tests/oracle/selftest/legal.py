"""What legal kernels compute on a problem: output, gradients, log-sum-exps, in one order or another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refdiff.oracle import Recipe
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import Arithmetic, Order
from refdiff.oracle.rounding.rounded_attention import scores_of_maps, top
from refdiff.oracle.rounding.rounded_layers import rounded_ops
from refdiff.oracle.truth.attention_operands import attention_operands
from tests.oracle.selftest.settings import Setting

Numpy = np.ndarray[Any, Any]


def run(setting: Setting, inputs: Inputs, recipe: Recipe, order: Order, dout: Numpy) -> dict[str, Numpy]:
    """Compute all tensors that the selftest judges of a problem: log-sum-exps of the main one alone."""
    found = evaluate(setting.spec, inputs, recipe, order, dout)
    return found | log_sums(setting, inputs, recipe, order) if setting.main else found


def log_sums(setting: Setting, inputs: Inputs, recipe: Recipe, order: Order) -> dict[str, Numpy]:
    """Both log-sum-exps of a dense problem as a kernel has them, in float32.

    Shapes:
        lse1, lse2 (B, h, T); of plain attention lse
    """
    how = Arithmetic(recipe, order)
    s = attention_operands(setting.spec, inputs, rounded_ops(recipe, order))
    base = math.log(2) if setting.spec.lse_base == "2" else 1.0
    found = {}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        maps = scores_of_maps(how, (s.q1, s.k1, s.q2, s.k2), s.mask, s.bias, s.causal)
        for name, z in zip(setting.spec.lse_names, maps, strict=False):
            largest = top(z)
            total = how.single_step(np.sum(how.exp(z, largest), axis=-1, keepdims=True))
            lse = how.single_step(largest + np.log(total))[..., 0].astype(np.float64)
            found[name] = round_to(np.broadcast_to(lse / base, s.q1.shape[:3]).copy(), "float32")
    return found
