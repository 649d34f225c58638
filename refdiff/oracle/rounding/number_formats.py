"""Numbers as a narrower type would hold them: rounded to nearest, ties to even, in one step and exactly.

NumPy has no bfloat16 and no tf32, and a float64 that goes to bfloat16 by way of float32 is rounded twice. Here a value
of the narrow type is held in the float32 or float64 that it came in, so that arithmetic on it stays NumPy's.

    float32    24 significant bits, 2⁻¹²⁶ to 2¹²⁸      float16   11 significant bits, 2⁻¹⁴ to 2¹⁶, subnormals below
    bfloat16    8 significant bits, range of float32   tf32      11 significant bits, range of float32
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Numpy = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Format:
    """A binary type: how many significant bits, and the exponents of its smallest and largest normal number."""

    bits: int
    smallest: int
    largest: int

    @property
    def u(self) -> float:
        """Unit roundoff: the largest relative error of one rounding of a normal number."""
        return 2.0**-self.bits

    @property
    def tiny(self) -> float:
        """Half the distance of subnormals: the largest absolute error of one rounding of a number near 0."""
        return 2.0 ** (self.smallest - self.bits)

    @property
    def top(self) -> float:
        """The largest finite number."""
        return (2.0 - 2.0 ** (1 - self.bits)) * 2.0**self.largest


FORMATS = {
    "float64": Format(53, -1022, 1023),
    "float32": Format(24, -126, 127),
    "tf32": Format(11, -126, 127),
    "bfloat16": Format(8, -126, 127),
    "float16": Format(11, -14, 15),
}

_EXPONENT: dict[str, np.unsignedinteger[Any]] = {"d": np.uint64(0x7FF0_0000_0000_0000), "f": np.uint32(0x7F80_0000)}
_BITS = {"d": 53, "f": 24}


def round_to(x: Numpy, name: str) -> Numpy:
    """Round float64 or float32 to the nearest value of a type, ties to even, held in the dtype of `x`.

    Equation:
        q ⌊x / q⌉ with q the distance of neighbours in the type at |x|: adding 1.5 · 2⁵² q and taking it away again
        leaves a multiple of q, by float64's own rounding

    Shapes:
        any -> the same; beyond the type's range ±∞, below it subnormals and zeros with the sign of `x`, NaN stays

    Raises:
        ValueError: no type has that name, or `x` is neither float64 nor float32.
    """
    if name not in FORMATS:
        raise ValueError(f"no number type is called {name!r}: there are {', '.join(FORMATS)}")
    x = np.asarray(x)
    if x.dtype.char not in _BITS:
        raise ValueError(f"round_to: x: got dtype {x.dtype}, expected float64 or float32")
    form = FORMATS[name]
    if form.bits >= _BITS[x.dtype.char]:
        return x
    if name == "float32":
        with np.errstate(over="ignore"):
            return x.astype(np.float32).astype(np.float64)
    if x.dtype.char == "f" and form.smallest == -126:
        return _round_bits(x, 24 - form.bits)
    return _round_by_addition(x, form)


def _round_bits(x: Numpy, bits: int) -> Numpy:
    """float32 without its last bits, for types that have float32's exponents: the carry goes where it should."""
    raw = np.ascontiguousarray(x).view(np.uint32)
    rounded = raw >> np.uint32(bits)
    rounded &= np.uint32(1)
    rounded += np.uint32(2 ** (bits - 1) - 1)
    rounded += raw
    rounded &= np.uint32(0xFFFF_FFFF << bits & 0xFFFF_FFFF)
    result = rounded.view(np.float32).reshape(x.shape)
    np.copyto(result, x, where=np.isnan(x))
    return result


def _round_by_addition(x: Numpy, form: Format) -> Numpy:
    kind = x.dtype.char
    rounded = np.asarray(np.clip(x, -4 * form.top, 4 * form.top))  # ∞ all the same, and what is added stays finite
    raw = np.ascontiguousarray(rounded).view(_EXPONENT[kind].dtype)
    shift = (raw & _EXPONENT[kind]).view(x.dtype).reshape(x.shape)  # 2^e of each number
    np.maximum(shift, x.dtype.type(2.0**form.smallest), out=shift)
    shift *= x.dtype.type(1.5 * 2.0 ** (_BITS[kind] - form.bits))
    with np.errstate(invalid="ignore"):  # a signalling NaN
        rounded += shift
        rounded -= shift
    np.copyto(rounded, np.inf, where=np.abs(rounded, out=shift) > form.top)
    np.copysign(rounded, x, out=rounded)
    return rounded


def ulp(x: Numpy, name: str) -> Numpy:
    """The distance from |x| to the next larger value of the type: 2 u 2^e."""
    form = FORMATS[name]
    _, exponent = np.frexp(np.maximum(np.abs(np.asarray(x, dtype=np.float64)), 2.0**form.smallest))
    distance: Numpy = np.ldexp(1.0, exponent - form.bits)
    return distance
