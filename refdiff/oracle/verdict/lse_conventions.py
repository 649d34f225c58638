"""Log-sum-exps that are right for somebody else: to another base, of unscaled scores, without the maximum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.inputs.sequences import Inputs, sequences
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_mask import attention_mask
from refdiff.oracle.truth.attention_operands import attention_operands, log_sum_exp, scores

Numpy = np.ndarray[Any, Any]


def other_sums(spec: Spec, core: Inputs, name: str) -> dict[str, Numpy]:
    """What `lse1`, `lse2` or `lse` would be under other conventions, by the words that say which.

    Shapes:
        each (B, h, T), −∞ in a row that sees nothing
    """
    B, _, T, _ = core["q"].shape
    scale = spec.scale if spec.scale is not None else 1 / math.sqrt(spec.head_dim)
    bases = {"e": 1.0, "2": math.log(2)}
    right = bases.pop(spec.lse_base)
    ((other, unit),) = bases.items()
    found = {
        f"it is to base {other}, the spec's is {spec.lse_base}": (1.0, unit, "all"),
        "its scores were not scaled": (1 / scale, right, "all"),
        f"its scores were not scaled, and it is to base {other}": (1 / scale, unit, "all"),
        "it lacks the row's largest score, which was subtracted before the exponentials": (1.0, right, "rest"),
        "it is the row's largest score alone": (1.0, right, "top"),
    }
    if spec.sinks:
        found["it leaves the sink out"] = (1.0, right, "keys")
    sums = {text: np.full((B, spec.heads, T), -math.inf) for text in found}
    for part in sequences(core):
        if part.inputs["k"].shape[2] == 0 or 0 in part.inputs["q"].shape:
            continue
        z = scores(attention_operands(spec, part.inputs, ops_for()), spec.lse_names.index(name) + 1)
        some = np.any(attention_mask(spec, part.inputs), axis=-1) | spec.sinks
        top = np.max(z, axis=-1)
        for text, (factor, base, what) in found.items():
            with np.errstate(invalid="ignore"):
                whole = log_sum_exp(z * factor)
                keys = log_sum_exp(z[..., :-1]) if what == "keys" else whole
                value = {"all": whole, "rest": whole - top, "top": top, "keys": keys}[what] / base
            sums[text][part.batch, :, part.queries] = np.where(some, value, -math.inf)
    return sums
