"""Stored numbers → numbers to compute with, and back.

Sixteen-bit types are held in float32: every float16 and bfloat16 value is a float32 value, NumPy has no arithmetic of its own for bfloat16, and
none that is fast for float16. A ``dtype`` of ``"bfloat16"`` therefore means float32 arrays whose values are bfloat16 values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = ("float32", "float64", "float16", "bfloat16")

STORED = {"F32": "float32", "F64": "float64", "F16": "float16", "BF16": "bfloat16"}
"""The safetensors names of the types that a weight may have."""

_TILE = 1 << 18
"""Numbers converted at a time: the temporaries stay in the processor's cache instead of doubling peak memory."""


def compute_dtype(dtype: str) -> np.dtype[Any]:
    """Return the type of the arrays that hold values of ``dtype``: float64 for ``"float64"``, else float32."""
    return np.dtype(np.float64 if dtype == "float64" else np.float32)


def round_to(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Round to the nearest value of ``dtype`` (ties to even), in the array type that holds it.

    float64 reaches the sixteen-bit types by way of float32, as it does in torch. What lies beyond float16's range becomes infinite.
    """
    wide = np.asarray(values, dtype=compute_dtype(dtype))
    if dtype == "float16":
        return wide.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        import ml_dtypes

        return wide.astype(ml_dtypes.bfloat16).astype(np.float32)
    return wide


def to_compute(stored: NDArray[Any], stored_dtype: str, dtype: str) -> NDArray[Any]:
    """Return stored numbers as values of ``dtype``: the array itself where that changes nothing, else a new array.

    ``stored``: float16, float32, float64, or for bfloat16 its bits as uint16.
    """
    if stored_dtype == dtype and dtype in ("float32", "float64"):
        # Copies only what BLAS would otherwise copy in every call: data that starts off its natural boundary (which the file format allows),
        # and on a big-endian machine everything.
        return np.require(stored, compute_dtype(dtype), ["A"])
    result = np.empty(stored.shape, compute_dtype(dtype))
    source, target = stored.reshape(-1), result.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, source.size, _TILE):
            tile = source[start : start + _TILE]
            if stored_dtype == "bfloat16":  # the upper half of a float32's bits
                tile = (tile.astype(np.uint32) << np.uint32(16)).view(np.float32)
            target[start : start + _TILE] = tile if dtype == stored_dtype else round_to(tile, dtype)
    return result
