"""The next token of each sequence, chosen on the device from its logits: the arguments of choose.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.arrays import Array
from refdiff.backends.cupy.device import NUMBERS
from refdiff.backends.cupy.geometry import row_threads
from refdiff.backends.cupy.runtime import Runtime


def choose(
    rt: Runtime,
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
    tokens, threads = rt.device.empty((B,), np.int64), row_threads(V)
    rt.device.launch(
        "choose.cu", "choose", {"NUMBER": NUMBERS[logits.dtype.name]}, (B, 1, 1), threads,
        (logits, uniforms, tokens, np.int64(logits.strides[0] // logits.itemsize), np.int32(V), np.float64(temperature),
         np.int32(top_k), np.float64(top_p), np.float64(min_p)),
        24 * threads,
    )  # fmt: skip
    return tokens
