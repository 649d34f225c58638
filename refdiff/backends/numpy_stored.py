"""Matrices of 16 bits, kept as they are stored: half the memory, and expanded a few rows at a time where they are used.

NumPy has no bfloat16 and multiplies float16 slowly, so a product expands some rows of its weight into a buffer that
stays in the cache, multiplies those, and goes on to the next. With few tokens it is the expansion that takes the time.
Then two bfloat16 are read as one word of 32 bits: its lower half, shifted up, is the number at an even place, and its
upper half that at an odd one, so that W x = W_even x_even + W_odd x_odd.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = 256
"""How many rows of a weight are expanded at a time: fewer make products too small, more would leave the cache."""

NUMBERS = 2**20
"""How many numbers at a time where those at even and at odd places are expanded by themselves."""

WHOLE = slice(None)
EVEN, ODD = slice(0, None, 2), slice(1, None, 2)


def is_stored(weight: NDArray[Any]) -> bool:
    """Whether a weight has 16 bits a number."""
    return weight.dtype.itemsize == 2


def has_words(rows: NDArray[Any], dtype: Any) -> bool:
    """Whether rows of bfloat16 can be read as words of two numbers, to become float32."""
    even = rows.shape[-1] % 2 == 0 and rows.flags.c_contiguous and rows.ctypes.data % 4 == 0
    return even and rows.dtype.kind != "f" and dtype == np.float32 and sys.byteorder == "little"


def expand(rows: NDArray[Any], out: NDArray[Any], place: slice = WHOLE) -> None:
    """Write float16 or bfloat16 numbers, all or those at the places named, into a float array; exact.

    A bfloat16 is the upper half of a float32. `EVEN` and `ODD` are for rows that `has_words`.
    """
    if place is EVEN:
        np.left_shift(rows.view(np.uint32), np.uint32(16), out=out.view(np.uint32))
    elif place is ODD:
        np.bitwise_and(rows.view(np.uint32), np.uint32(0xFFFF0000), out=out.view(np.uint32))
    elif rows.dtype.kind == "f" or out.dtype != np.float32:
        with np.errstate(invalid="ignore"):  # of a signalling NaN, which stays a NaN
            out[...] = rows
    else:
        np.left_shift(rows.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)
