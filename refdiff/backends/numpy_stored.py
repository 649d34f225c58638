"""Matrices of 16 bits, kept as they are stored: half the memory, and expanded some rows at a time where they are used.

NumPy has no bfloat16 and is slow with float16, so a product expands some rows of its weight into a buffer that stays in
the cache, multiplies those, and goes on to the next. With few tokens it is the expansion that takes the time: so

- two bfloat16 are read as one word of 32 bits: its lower half, shifted up, is the number at an even place, and its
  upper half that at an odd one, so that W x = W_even x_even + W_odd x_odd;
- the bits of a float16 are put where a float32 has them. Its exponent then means 2⁻¹¹² times as much, for a subnormal
  number too, and `factors` makes up for it in x. Infinity and NaN have no such form: `Finite` finds them.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBERS = 2**20
"""How many numbers are expanded at a time. That is more than a core's own cache holds, but each step on fewer would be
so short that threads spend their time waiting for the interpreter."""

ROWS = 256
"""The fewest rows at a time where many tokens share them: BLAS puts the tokens in order for each product anew."""

WHOLE = slice(None)
EVEN, ODD = slice(0, None, 2), slice(1, None, 2)

SMALLER = 112
"""The power of 2 that a float16 in the form of a float32 is too small by: the biases of the two exponents, 127 − 15."""

UP, UPPER = np.array(16, np.uint32), np.array(0xFFFF0000, np.uint32)
SIGN_AND_REST, PLACE = np.array(0x47FFF, np.int32), np.array(13, np.int32)


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
        np.left_shift(rows.view(np.uint32), UP, out=out.view(np.uint32))
    elif place is ODD:
        np.bitwise_and(rows.view(np.uint32), UPPER, out=out.view(np.uint32))
    elif rows.dtype.kind == "f" or out.dtype != np.float32:
        with np.errstate(invalid="ignore"):  # of a signalling NaN, which stays a NaN
            out[...] = rows
    else:
        np.left_shift(rows.view(np.uint16), UP, out=out.view(np.uint32), dtype=np.uint32)


def spread(rows: NDArray[Any], out: NDArray[Any]) -> None:
    """Write finite float16 numbers, 2⁻¹¹² times as large, into a float32 array; exact.

    float16, signed, as 32 bits   ssss ssss ssss ssss s eeee ecc cccc cccc     s sign, e exponent, c fraction
    & 0x47FFF                     0000 0000 0000 0s00 0 eeee ecc cccc cccc
    << 13                         s000 eeee ecc cccc cccc 0 0000 0000 0000
    """
    bits = out.view(np.int32)
    np.bitwise_and(rows.view(np.int16), SIGN_AND_REST, out=bits, dtype=np.int32)
    np.left_shift(bits, PLACE, out=bits)


def factors(columns: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Make float32 columns (K,) or (K, N) as much larger as `spread` makes a weight smaller, by a power of 2.

    Numbers of 2¹⁵ and more would overflow: their columns become less large, and the second result, (1,) or (N,), is
    what is still missing in a product with them. It is None where nothing is.
    """
    largest = np.abs(columns).max(axis=0, where=np.isfinite(columns), initial=0)
    power = np.minimum(SMALLER, 127 - np.frexp(largest)[1])
    with np.errstate(over="ignore", invalid="ignore"):
        larger = np.ldexp(columns, power)
    missing = SMALLER - power
    return larger, np.ldexp(np.float32(1), missing) if np.any(missing) else None


class Finite:
    """Whether a float16 weight has neither infinity nor NaN; looked up once for one that nobody may write to."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[NDArray[Any]], bool]] = {}

    def __call__(self, weight: NDArray[Any]) -> bool:
        """Say so."""
        if id(weight) in self._known:  # it is this one: another has its number only after it is gone
            return self._known[id(weight)][1]
        finite = _is_finite(weight)
        if not weight.flags.writeable:
            self._keep(weight, finite)
        return finite

    def _keep(self, weight: NDArray[Any], finite: bool) -> None:
        name = id(weight)

        def gone(_: weakref.ref[NDArray[Any]]) -> None:
            self._known.pop(name, None)

        self._known[name] = weakref.ref(weight, gone), finite


def _is_finite(weight: NDArray[Any]) -> bool:
    rows = max(NUMBERS // max(weight.shape[1], 1), 1)
    for i in range(0, len(weight), rows):
        part = weight[i : i + rows]
        if part.size and (part.view(np.int16).max() >= 0x7C00 or part.view(np.uint16).max() >= 0xFC00):
            return False
    return True
