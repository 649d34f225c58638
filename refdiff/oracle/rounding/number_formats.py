"""Round arrays to a narrower type in one step: to nearest, ties to even.

NumPy has no bfloat16 and no tf32, and float64 that is cast to bfloat16 via float32 is rounded twice. Rounded values
stay in float32 or float64 arrays, so that NumPy can compute with them.

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
    """A binary floating-point type: significant bits, and the exponents of the smallest and largest normal number."""

    bits: int
    smallest: int
    largest: int

    @property
    def u(self) -> float:
        """Unit roundoff: the largest relative error of one rounding of a normal number."""
        return 2.0**-self.bits

    @property
    def tiny(self) -> float:
        """The largest absolute error of rounding a number near 0: half the distance of subnormals."""
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

NARROW = ("bfloat16", "float16")
U32 = FORMATS["float32"].u
"""Unit roundoff of float32."""

_EXPONENT: dict[str, np.unsignedinteger[Any]] = {"d": np.uint64(0x7FF0_0000_0000_0000), "f": np.uint32(0x7F80_0000)}
_BITS = {"d": 53, "f": 24}


def round_to(x: Numpy, name: str) -> Numpy:
    """Round float64 or float32 to the nearest value of a type, ties to even, held in the dtype of `x`.

    Numbers beyond the type's range become ±∞, numbers below it subnormals or zeros with the sign of `x`. NaN stays.

    Equation:
        q ⌊x / q⌉, where q is the distance of neighbors in the type at |x|. Adding and subtracting 1.5 · 2⁵² q rounds a
        float64 to a multiple of q

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


def rounds_to_finite(x: Numpy, name: str) -> Numpy:
    """Return the mask of numbers that `round_to` leaves finite: those nearer to the largest number than to the next."""
    form = FORMATS[name]
    finite: Numpy = np.abs(x) < form.top + 2.0 ** (form.largest - form.bits)
    return finite


def _round_bits(x: Numpy, bits: int) -> Numpy:
    """Round off the last bits of float32, for types with its exponents; a carry into the exponent is right."""
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
    rounded = np.asarray(np.clip(x, -4 * form.top, 4 * form.top))  # still rounds to ∞, and `shift` stays finite
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


def truncate_to(x: Numpy, name: str) -> Numpy:
    """Round float64 or float32 toward zero to a value of a type, held in the dtype of `x`.

    Numbers beyond the type's range become its largest number. NaN and ±∞ stay.
    """
    unit = ulp(np.where(np.isfinite(x), x, 0.0), name).astype(x.dtype)
    with np.errstate(invalid="ignore"):
        cut = np.clip(np.trunc(x / unit) * unit, -FORMATS[name].top, FORMATS[name].top)
    return np.where(np.isfinite(x), cut, x).astype(x.dtype, copy=False)


def ulp(x: Numpy, name: str) -> Numpy:
    """Return the distance from |x| to the next larger value of the type: 2 u 2^e."""
    form = FORMATS[name]
    _, exponent = np.frexp(np.maximum(np.abs(np.asarray(x, dtype=np.float64)), 2.0**form.smallest))
    distance: Numpy = np.ldexp(1.0, exponent - form.bits)
    return distance


def root_mean_square(x: Numpy) -> Numpy:
    """Return the root mean square over the last axis.

    Where a sum of squares may overflow or underflow, each row is divided by its largest entry first.
    """
    if x.shape[-1] == 0:
        return np.zeros(x.shape[:-1])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        square = np.einsum("...i,...i->...", x, x)
    if np.all((square > 1e-200) & (square < 1e300)):
        plain: Numpy = np.sqrt(square / x.shape[-1])
        return plain
    top = np.abs(x).max(axis=-1, keepdims=True)
    unit = np.where((top > 0) & np.isfinite(top), top, 1.0)
    result: Numpy = np.sqrt(np.mean((x / unit) ** 2, axis=-1)) * unit[..., 0]
    return result


def safe_ratio(x: Numpy, y: Numpy) -> Numpy:
    """Return x / y for non-negative arrays, with 0 / 0 = 0: an error of 0 is within a budget of 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.asarray(x / (y + 0.0))  # no −0
    np.copyto(ratio, 0.0, where=x == 0)
    return ratio
