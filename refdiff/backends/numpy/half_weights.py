"""Weights kept in 16 bits: half the memory, expanded some rows at a time where they are used.

NumPy has no bfloat16 and is slow with float16. A product therefore expands some rows of its weight into a buffer that
stays in the cache, multiplies those, and goes on to the next. For few tokens the expansion takes most of the time:

- Two bfloat16 numbers are read as one word of 32 bits. Its lower half, shifted up, is the number at an even place; its
  upper half is the number at an odd one: W x = W_even x_even + W_odd x_odd.
- The bits of a float16 are moved to where a float32 has them. Its exponent then means 2⁻¹¹² times as much, even for
  subnormal numbers, and `scaled_up` makes x as much larger. Infinity and NaN have no such form: `FiniteWeights` finds
  them.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALL_PLACES, EVEN_PLACES, ODD_PLACES = slice(None), slice(0, None, 2), slice(1, None, 2)

BIAS_DIFFERENCE = 112
"""The exponent bias of float32, 127, less that of float16, 15."""

HALF_BITS, UPPER_HALF = np.array(16, np.uint32), np.array(0xFFFF0000, np.uint32)
FLOAT16_BITS, FRACTION_SHIFT = np.array(0x47FFF, np.int32), np.array(13, np.int32)


def is_half(weight: NDArray[Any]) -> bool:
    """Return whether a weight has 16 bits per number."""
    return weight.dtype.itemsize == 2


def has_words(rows: NDArray[Any], dtype: Any) -> bool:
    """Return whether rows of bfloat16 can be read as words of two numbers, to become float32."""
    even = rows.shape[-1] % 2 == 0 and rows.flags.c_contiguous and rows.ctypes.data % 4 == 0
    return even and rows.dtype.kind != "f" and dtype == np.float32 and sys.byteorder == "little"


def expand(rows: NDArray[Any], out: NDArray[Any], place: slice = ALL_PLACES) -> None:
    """Write float16 or bfloat16 numbers, all or those at the places named, into a float array; exact.

    A bfloat16 is the upper half of a float32. `EVEN_PLACES` and `ODD_PLACES` are for rows that `has_words`.
    """
    if place is EVEN_PLACES:
        np.left_shift(rows.view(np.uint32), HALF_BITS, out=out.view(np.uint32))
    elif place is ODD_PLACES:
        np.bitwise_and(rows.view(np.uint32), UPPER_HALF, out=out.view(np.uint32))
    elif rows.dtype.kind == "f" or out.dtype != np.float32:
        with np.errstate(invalid="ignore"):  # of a signalling NaN, which stays a NaN
            out[...] = rows
    else:
        np.left_shift(rows.view(np.uint16), HALF_BITS, out=out.view(np.uint32), dtype=np.uint32)


def expand_scaled(rows: NDArray[Any], out: NDArray[Any]) -> None:
    """Write finite float16 numbers, 2⁻¹¹² times as large, into a float32 array; exact.

    float16, signed, as 32 bits   ssss ssss ssss ssss s eeee ecc cccc cccc     s sign, e exponent, c fraction
    & 0x47FFF                     0000 0000 0000 0s00 0 eeee ecc cccc cccc
    << 13                         s000 eeee ecc cccc cccc 0 0000 0000 0000
    """
    bits = out.view(np.int32)
    np.bitwise_and(rows.view(np.int16), FLOAT16_BITS, out=bits, dtype=np.int32)
    np.left_shift(bits, FRACTION_SHIFT, out=bits)


def scaled_up(columns: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Make float32 columns (K,) or (K, N) as much larger as `expand_scaled` makes a weight smaller.

    Numbers of 2¹⁵ and more would overflow: their columns become less large, and the second result, (1,) or (N,), is the
    factor that a product with them still needs. It is None where none is needed.
    """
    largest = np.abs(columns).max(axis=0, where=np.isfinite(columns), initial=0)
    power = np.minimum(BIAS_DIFFERENCE, 127 - np.frexp(largest)[1])
    with np.errstate(over="ignore", invalid="ignore"):
        larger = np.ldexp(columns, power)
    missing = BIAS_DIFFERENCE - power
    return larger, np.ldexp(np.float32(1), missing) if np.any(missing) else None


class FiniteWeights:
    """Tells whether a float16 weight has neither infinity nor NaN; remembers it for read-only weights."""

    def __init__(self, numbers: int) -> None:
        self._numbers = numbers
        self._known: dict[int, tuple[weakref.ref[NDArray[Any]], bool]] = {}

    def __call__(self, weight: NDArray[Any]) -> bool:
        """Return whether all numbers are finite."""
        key = id(weight)
        if key in self._known:  # an id is free for another array only after this one is gone
            return self._known[key][1]
        finite = self._all_finite(weight)
        if not weight.flags.writeable:
            self._known[key] = weakref.ref(weight, lambda _: self._known.pop(key, None)), finite
        return finite

    def _all_finite(self, weight: NDArray[Any]) -> bool:
        rows = max(self._numbers // max(weight.shape[1], 1), 1)
        for i in range(0, len(weight), rows):
            part = weight[i : i + rows]
            if part.size and (part.view(np.int16).max() >= 0x7C00 or part.view(np.uint16).max() >= 0xFC00):
                return False
        return True
