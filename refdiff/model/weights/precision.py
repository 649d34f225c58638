"""Stored numbers → numbers to compute with, and back.

Sixteen-bit types are held in float32, which has every float16 and bfloat16 value: NumPy has no bfloat16 of its own and
computes slowly in float16. `dtype="bfloat16"` therefore means float32 arrays whose values are bfloat16 values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import bfloat16
from refdiff.model.config_checks import DTYPES

STORED = {"F32": "float32", "F64": "float64", "F16": "float16", "BF16": "bfloat16"}
"""Names in the safetensors format of the types that a weight may have."""

NBYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
"""Bytes of one stored number."""

UNIT = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The largest error that rounding to a type makes, as a share of the number: half the distance from 1 to the next."""

TILE = 1 << 18
"""Numbers converted at a time: the temporaries stay in the processor's cache, and peak memory does not double."""


def compute_dtype(dtype: str) -> np.dtype[Any]:
    """Return the type of the arrays that hold values of `dtype`: float64 for `"float64"`, else float32.

    Raises:
        ValueError: `dtype` is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    return np.dtype(np.float64 if dtype == "float64" else np.float32)


def round_to(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Round to the nearest value of `dtype` (ties to even), held as the type that computes with it.

    float64 reaches the sixteen-bit types by way of float32, as in torch. Values beyond the range become infinite.
    """
    bits = encode(values, dtype)
    return np.asarray(decode(bits, dtype), compute_dtype(dtype))  # of a number without axes, decode gives no array


def encode(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return numbers as a file holds them: little-endian, rounded to `dtype`; bfloat16 as its bits in uint16."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows or is no number is the caller's to judge
        if dtype == "float64":
            return values.astype("<f8", copy=False)
        single = values.astype("<f4", copy=False)
        if dtype == "float32":
            return single
        if dtype == "float16":
            return single.astype("<f2")
        return single.astype(bfloat16()).view(np.uint16).astype("<u2", copy=False)


def decode(bits: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Undo `encode`; float16 stays float16, bfloat16 becomes the float32 whose upper half its bits are."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32) if dtype == "bfloat16" else bits


def to_compute(
    stored: NDArray[Any], stored_dtype: str, dtype: str, done: Callable[[int, int], None] | None = None
) -> NDArray[Any]:
    """Return numbers in the form of `encode` as values of `dtype`: the same array if that changes nothing.

    `done(first, last)` is told which bytes of `stored` have been converted.
    """
    kind = compute_dtype(dtype)
    if stored_dtype == dtype and dtype in ("float32", "float64"):
        # Copied only where BLAS would copy it again in every call: data off its natural boundary, which the file format
        # allows, and on a big-endian machine everything.
        return np.require(stored, kind, ["A"])
    result = np.empty(stored.shape, kind)
    source, target = stored.reshape(-1), result.reshape(-1)
    for start in range(0, source.size, TILE):
        tile = decode(source[start : start + TILE], stored_dtype)
        target[start : start + TILE] = tile if stored_dtype == dtype else round_to(tile, dtype)
        if done is not None:
            done(start * source.itemsize, (start + tile.size) * source.itemsize)
    return result
