"""One token a row, chosen where the logits are: `choose.cu` and what it is told."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.arrays import Array
from refdiff.backends.cupy_kernels.device import NUMBERS
from refdiff.backends.cupy_kernels.geometry import row_threads


def choose(
    device: Any,
    logits: Array,
    uniforms: Array | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Any:
    """Choose the most likely token of each row, or with a number of `uniforms` for each row one drawn by it.

    Shapes:
        logits (B, V), uniforms (B,) float64 in [0, 1), or None -> (B,) int64, −1 for a row with NaN, with nothing but
        −inf, with an infinity to draw by, or with weights that overflow; NotImplemented for logits of other types.
    """
    B, V = logits.shape
    if logits.dtype.name not in NUMBERS or V == 0:
        return NotImplemented
    if V > 1 and logits.strides[1] != logits.itemsize:
        logits = logits.copy(order="C")
    tokens, threads = device.empty((B,), np.int64), row_threads(V)
    device.launch(
        "choose.cu", "choose", {"NUMBER": NUMBERS[logits.dtype.name]}, (B, 1, 1), threads,
        (logits, uniforms, tokens, np.int64(logits.strides[0] // logits.itemsize), np.int32(V), np.float64(temperature),
         np.int32(top_k), np.float64(top_p), np.float64(min_p)),
        24 * threads,
    )  # fmt: skip
    return tokens
