"""How arrays lie in memory: dtypes that the kernels serve, slices of ranges, feature-major views."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

KERNEL_DTYPES = {np.dtype(np.float32), np.dtype(np.float64)}
"""Dtypes that the kernels compute in."""


def same_dtype(*arrays: NDArray[Any] | None) -> bool:
    """Return whether all arrays are float32, or all float64; NumPy's promotion rules decide everything else."""
    dtypes = [x.dtype for x in arrays if x is not None]
    return bool(dtypes) and dtypes[0] in KERNEL_DTYPES and dtypes.count(dtypes[0]) == len(dtypes)


def cut(length: int, size: int) -> list[slice]:
    """Cut range(length) into slices of `size`; the last one has the rest."""
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


def is_feature_major(x: FloatArray) -> bool:
    """Return whether (…, D) lies feature-major in memory, and not also in C order."""
    rows = x.reshape(-1, x.shape[-1]) if x.ndim > 1 and x.size else x
    return rows.flags.f_contiguous and not rows.flags.c_contiguous


def feature_view(x: FloatArray) -> FloatArray | None:
    """View feature-major (…, D) as (1, D, tokens), (B, H, T, D) as (H, D, tokens); None for another layout."""
    tokens = x.shape[0] * x.shape[2] if x.ndim == 4 else x.size // max(x.shape[-1], 1)
    if x.ndim < 2 or tokens < 2 or x.size == 0:
        return None
    transposed = x.transpose(1, 3, 0, 2) if x.ndim == 4 else np.moveaxis(x, -1, 0)[None]
    if not transposed.flags.c_contiguous:
        return None
    return transposed.reshape(*transposed.shape[:2], -1)
