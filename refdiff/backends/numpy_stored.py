"""Matrices of 16 bits, kept as they are stored: half the memory, and expanded a few rows at a time where they are used.

NumPy has no bfloat16 and multiplies float16 slowly, so a product expands some rows of its weight into a buffer that
stays in the cache, multiplies those, and goes on to the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = 256
"""How many rows of a weight are expanded at a time: fewer make products too small, more would leave the cache."""


def is_stored(weight: NDArray[Any]) -> bool:
    """Whether a weight has 16 bits a number."""
    return weight.dtype.itemsize == 2


def expand(rows: NDArray[Any], out: NDArray[Any]) -> None:
    """Write float16 or bfloat16 numbers into a float array of the same shape; exact.

    A bfloat16 is the upper half of a float32.
    """
    if rows.dtype.kind == "f" or out.dtype != np.float32:
        with np.errstate(invalid="ignore"):  # of a signalling NaN, which stays a NaN
            out[...] = rows
    else:
        np.left_shift(rows.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)
