"""A small part of a large case, on which most deviations act as they do on the whole: its first or its last tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation
from refdiff.oracle.deviations.listed import kind_of
from refdiff.oracle.diagnosis.variants import Target
from refdiff.oracle.sequences import Inputs
from refdiff.oracle.spec import Spec

LARGE = 600_000
"""Multiplications from which a case is reduced: all pairs of deviations are a few thousand of them."""
FEWEST = 4
WHOLE = ("mask", "mask align", "mask off by one", "window", "cache", "concat", "rope offset", "bias")
"""Axes of deviations that depend on how many tokens there are, or see those that come after."""


@dataclass(frozen=True)
class SubCase:
    """The target of a part, and which rows of the whole it is: sequence 0, queries `rows`."""

    target: Target
    rows: slice


def acts_alike(deviation: Deviation) -> bool:
    """Whether a deviation gives in a part what it gives in those rows of the whole."""
    return deviation.axis not in WHOLE


def cost(spec: Spec, inputs: Inputs) -> int:
    """About how many multiplications the two maps take."""
    B, _, T, _ = inputs["q"].shape
    return int(2 * B * spec.heads * T * inputs["k"].shape[2] * (spec.head_dim + spec.out_dim))


def reduced(spec: Spec, target: Target) -> SubCase | None:
    """Return the part of a large dense core; None where it is small, or of another kind.

    Causal and with as many queries as keys it is the first tokens, which see nothing that comes after them; else the
    last queries with all keys.
    """
    inputs = target.inputs
    if kind_of(inputs) != "dense" or cost(spec, inputs) <= LARGE or 0 in target.actual.shape:
        return None
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    by_row = cost(spec, inputs) // (inputs["q"].shape[0] * T)
    first = T == S and spec.causal != "none"
    n = int(np.sqrt(LARGE * S / by_row)) if first else LARGE // by_row
    n = min(T, max(n, FEWEST))
    rows = slice(0, n) if first else slice(T - n, T)
    part = _part(inputs, rows, slice(0, n) if first else slice(None), (T, S))
    at = (slice(0, 1), slice(None), rows)
    return SubCase(Target(part, target.actual[at], target.expected[at], target.rows[at], target.recipe), rows)


def _part(inputs: Inputs, rows: slice, keys: slice, lengths: tuple[int, int]) -> Inputs:
    """Sequence 0, some queries and some keys of every input."""
    along: dict[str, tuple[slice | int, ...]] = {
        "q": (slice(0, 1), slice(None), rows),
        "k": (slice(0, 1), slice(None), keys),
        "v": (slice(0, 1), slice(None), keys),
        "q_positions": (slice(0, 1), rows),
        "k_positions": (slice(0, 1), keys),
        "key_mask": (slice(0, 1), keys),
        "lambda_logits": (slice(0, 1), rows),
    }
    part = {name: x[along[name]] if name in along else x for name, x in inputs.items()}
    if "lambda_full" in part and part["lambda_full"].ndim == 3:
        part["lambda_full"] = part["lambda_full"][0:1, :, rows]
    for name in ("mask", "bias"):
        if name in part:
            x = part[name][(None,) * (4 - part[name].ndim)][0:1]
            x = x[:, :, rows] if x.shape[2] == lengths[0] else x
            part[name] = x[..., keys] if x.shape[3] == lengths[1] else x
    return part
