"""Products with weights as they are stored: few rows in linear.cu, many by cuBLAS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refdiff.arrays import Array, namespace
from refdiff.backends.cupy_kernels.device import NUMBERS, gaps

FEW = 16
"""Up to so many rows a product with a 16-bit weight reads it in a kernel of ours, which keeps the rows in float32."""


def linears(device: Any, x: Array, *projections: Mapping[str, Any]) -> Any:
    """Multiply x by several weights, x Wᵀ + b each; many rows of x are rounded once for all weights of a type.

    Shapes:
        x (..., inputs), weights (outputs, inputs), biases (outputs,) or None or missing -> list of (..., outputs) in
        float32; NotImplemented where one of them does not fit.
    """
    if not all(_fits(x, **p) for p in projections):
        return NotImplemented
    xp = namespace(x)
    flat = xp.reshape(x, (-1, x.shape[-1]))
    if gaps(flat):
        flat = flat.copy(order="C")
    rounded = {"float32": flat}
    results = []
    for p in projections:
        weight, bias = p["weight"], p.get("bias")
        kind = weight.dtype.name
        if gaps(weight):
            weight = weight.copy(order="C")
        if bias is not None:
            bias = xp.astype(bias, xp.float32, copy=False)
        if flat.shape[0] <= FEW:
            y = _few_rows(device, flat, weight, bias)
        else:
            if kind not in rounded:
                rounded[kind] = xp.astype(flat, weight.dtype)
            y = device.product(rounded[kind], weight)
            y = y if bias is None else y + bias
        results.append(xp.reshape(y, (*x.shape[:-1], weight.shape[0])))
    return results


def _fits(x: Array, weight: Array, bias: Array | None = None) -> bool:
    """Whether there is a way to multiply these."""
    if weight.dtype.name not in NUMBERS or x.dtype.name != "float32" or weight.ndim != 2 or x.ndim < 1:
        return False
    if x.shape[-1] != weight.shape[1] or x.size == 0:
        return False
    return bias is None or bias.shape == weight.shape[:1]


def _few_rows(device: Any, flat: Array, weight: Array, bias: Array | None) -> Array:
    """Multiply rows (N, inputs) without rounding them."""
    (N, inputs), outputs, rows = flat.shape, weight.shape[0], 1
    while rows < min(N, 8):
        rows *= 2
    y = device.empty((N, outputs), np.float32)
    device.launch(
        "linear.cu", "linear", {"NUMBER": "float", "WEIGHT": NUMBERS[weight.dtype.name], "ROWS": rows},
        (-(-outputs // 8), -(-N // rows), 1), 256,
        (flat, weight, bias, y, np.int32(N), np.int32(outputs), np.int32(inputs)),
    )  # fmt: skip
    return y
