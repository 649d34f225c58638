"""In which order a kernel computes: valid ways to the same numbers, which differ in their roundings alone.

`MEMBERS` are those that a budget is made of, `HELD_OUT` are those that only tests use. `Arithmetic` is a recipe and an
order together: products with sums in float32, exponentials, and rounding where the recipe stores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.oracle.rounding import FORMATS, round_to
from refdiff.oracle.rounding.recipe import Recipe

Numpy = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Order:
    """One valid order of evaluation.

    subtract: "outputs" of two passes, or "weights" before one product with V.
    tile: keys at a time in an online softmax, from the last key where `reverse`; None is the whole row at once.
    stored: every operation's result is rounded to the type that the recipe has there, as a framework does that goes op
    by op; else what follows one another is computed in float32 and rounded once.
    terms: products that are added at a time, one such sum to the next; 0 leaves it to BLAS.
    base2: exponentials as 2^(x log₂ e). scale_first: q is scaled before the product with k.
    shift: how many standard errors of its own roundings λ is off.
    scalars: λ_init is off by this share of what computing it in float32 may cost (`lambda_init_error`).
    noise: a seed; what is not 0 is no order, but errors at random of the size that roundings and sums in float32 have.
    Orders alone would agree by luck: one map that has all its weight on one key cancels exactly in most of them.
    alike: with `noise`, equal numbers are rounded alike: where all tokens are alike, all rows share these errors. The
    sums of products have errors of their own all the same, since equal terms may be added in different orders.
    flush: with `noise`, what is below 2⁻¹²⁶ becomes 0, as in code that XLA compiles and on many GPUs.
    """

    name: str
    subtract: str = "outputs"
    tile: int | None = None
    reverse: bool = False
    stored: bool = False
    terms: int = 0
    base2: bool = False
    scale_first: bool = False
    shift: float = 0.0
    scalars: float = 0.0
    noise: int = 0
    alike: bool = False
    flush: bool = False


MEMBERS = (
    Order("two passes, op by op", stored=True, terms=1),
    Order("weights subtracted", subtract="weights", shift=1.0),
    Order("online, 16 keys", tile=16, terms=4, base2=True),
    Order("online, 64 keys", tile=64, shift=-1.0, scale_first=True),
    Order("online, 16 keys from the last", tile=16, reverse=True, stored=True),
    Order("weights subtracted, op by op", subtract="weights", stored=True, terms=2, base2=True),
    Order("two passes", terms=2, shift=1.0),
    Order("online, 128 keys, op by op", tile=128, stored=True, base2=True, shift=-1.0),
)

DRAWS = (
    Order("at random", noise=1, flush=True, scalars=1.0),
    Order("at random, weights subtracted", noise=2, subtract="weights", stored=True),
    Order("at random, op by op", noise=3, alike=True, stored=True, flush=True, scalars=-1.0),
    Order("at random, online, 16 keys", noise=4, alike=True, tile=16),
)

HELD_OUT = (
    Order("online, 32 keys", tile=32, stored=True, base2=True),
    Order("online, 8 keys", tile=8, terms=16),
    Order("online, 24 keys from the last", tile=24, reverse=True, scale_first=True),
    Order("two passes, base 2", base2=True, terms=1),
    Order("weights subtracted, 16 terms", subtract="weights", terms=16, base2=True),
)


SMALLEST_NORMAL = 2.0**-126
"""The smallest normal number of float32 and bfloat16."""

TENSOR_CORE = 16
"""Products that one instruction of a tensor core adds to its accumulator (m16n8k16 of 16-bit types)."""

RMS_ROUNDING = 0.6
"""Root mean square of a rounding's error in units of u |x|: 1/√3 at a power of two, half of it just below one."""


def lambda_init_error(start: float) -> float:
    """Bound the error of λ_init = 0.8f − 0.6f · expf(−0.3f · l) in float32, as CUDA, C and JAX compute it.

    Equation:
        w = |0.8 − λ_init| is the product. Its factors, the exponent (at most 0.37 of 0.6 times two roundings) and expf
        are off by less than 4 u w in all; 0.8f is off by 0.2 u, and the difference is rounded once: u |λ_init|.
        1 − λ_init inherits the error: at λ_init = 0.8 it is five times as large as a share of 0.2.
    """
    return FORMATS["float32"].u * (abs(start) + 4.0 * abs(0.8 - start) + 0.2)


def sum_error(n: int, name: str = "float32") -> float:
    """What a sum of n products in a type is usually off by, in units of the root of their squares' sum.

    One after another, the k-th partial sum is rounded, which has grown as √k.
    """
    return RMS_ROUNDING * FORMATS[name].u * math.sqrt(1 + n / 4)


class Arithmetic:
    """What a kernel of this recipe does in this order; arrays are float32.

    query_factor: what q has been multiplied by for a scale other than 1/√d. Kernels that store the product of q and k
        before they scale it store it without the factor.
    """

    def __init__(self, recipe: Recipe, order: Order, query_factor: float = 1.0) -> None:
        self.recipe, self.order, self.query_factor = recipe, order, query_factor
        self._random = np.random.default_rng(order.noise)
        self._forward_random = np.random.default_rng([order.noise, 1])
        self._gate_random = np.random.default_rng([order.noise, 2])

    @property
    def dtype(self) -> Any:
        """float32; float64 where errors are drawn at random, which may be below what float32 can tell."""
        return np.float64 if self.order.noise else np.float32

    def array(self, x: Numpy) -> Numpy:
        """As the type that is computed in."""
        with np.errstate(over="ignore"):
            return np.asarray(x).astype(self.dtype, copy=False)

    def round_at(self, x: Numpy, site: str) -> Numpy:
        """Round to the type that the recipe has at `site` ("p", "o", …)."""
        return self._round(x, getattr(self.recipe, site))

    def _round(self, x: Numpy, name: str) -> Numpy:
        if not self.order.noise:
            return round_to(x, name)
        form = FORMATS[name]
        with np.errstate(invalid="ignore", over="ignore"):
            size = np.asarray(np.abs(x))
            np.copyto(size, 0.0, where=~np.isfinite(size))
            off = np.asarray(np.minimum(size, form.tiny))
            size *= form.u
            off += size
            off *= RMS_ROUNDING
            noisy = self._sign(x)
            noisy *= off
            noisy += x
        if (lost := np.abs(noisy) > form.top).any():
            np.copyto(noisy, np.copysign(np.inf, x), where=lost)
        return self._flushed(noisy)

    def _flushed(self, x: Numpy) -> Numpy:
        """x itself, what is too small set to 0 where the order flushes."""
        if self.order.flush:
            np.copyto(x, 0.0, where=np.abs(x) < SMALLEST_NORMAL)
        return x

    def _sign(self, x: Numpy, random: np.random.Generator | None = None) -> Numpy:
        """Return a sign for each element; where the order has it so, one for all that are the same number."""
        return (_signs_by_value if self.order.alike else _signs)(x, random or self._random)

    def perturb(self, x: Numpy, error: Numpy) -> Numpy:
        """x with an error of this size, of either sign, where errors are drawn at random; else x."""
        return x + self._sign(x) * error if self.order.noise else x

    def perturb_forward(self, x: Numpy, error: Numpy) -> Numpy:
        """The same for what a backward pass has from the forward pass: the errors of all else are drawn as without."""
        return x + self._sign(x, self._forward_random) * error if self.order.noise else x

    def perturb_gate(self, x: Numpy, error: Numpy) -> Numpy:
        """The same for the sigmoid of a gate."""
        return x + self._sign(x, self._gate_random) * error if self.order.noise else x

    def round_float32(self, x: Numpy) -> Numpy:
        """What one operation in float32 is off by, where errors are drawn at random; else nothing is done."""
        return self._round(x, "float32") if self.order.noise else x

    def round_if_eager(self, x: Numpy, site: str) -> Numpy:
        """Round where every operation's result is stored; else leave it in float32."""
        return self.round_at(x, site) if self.order.stored else x

    def operand(self, x: Numpy) -> Numpy:
        """What enters a product: as it is, or cut to tf32."""
        return self._round(x, "tf32") if self.recipe.matmul == "tf32" else x

    def product(self, a: Numpy, b: Numpy) -> Numpy:
        """a b, some terms at a time; each partial sum is rounded to the type that the recipe accumulates in."""
        a, b = self.operand(self.array(a)), self.operand(self.array(b))
        n, terms, sums = a.shape[-1], self.order.terms, self.recipe.accumulate
        with np.errstate(over="ignore", invalid="ignore"):
            step = terms or (max(n, 1) if sums == "float32" or self.order.noise else TENSOR_CORE)
            multiply = np.multiply if step == 1 and n else np.matmul
            total: Numpy = self._partial_sum(multiply(a[..., :step], b[..., :step, :]))
            more = np.empty_like(total)
            for i in range(step, n, step):
                total += multiply(a[..., i : i + step], b[..., i : i + step, :], out=more)
                total = self._partial_sum(total)
            if self.order.noise:
                off = np.sqrt(np.matmul(a * a, b * b))
                off *= sum_error(n, sums)
                off *= _signs(total, self._random)  # equal terms, too, may be added in different orders
                total += off
            return self._partial_sum(total)

    def _partial_sum(self, x: Numpy) -> Numpy:
        """Round where sums are kept in 16 bits: float32 has its rounding already, or an error drawn for the whole."""
        if self.recipe.accumulate == "float32":
            return x
        form = FORMATS[self.recipe.accumulate]
        return (
            np.where(np.abs(x) > form.top, np.copysign(np.inf, x), x)
            if self.order.noise
            else round_to(x, self.recipe.accumulate)
        )

    def inner(self, a: Numpy, b: Numpy, site: str) -> Numpy:
        """⟨a, b⟩ over the last axis, b having been stored at `site`."""
        terms = a * b
        total: Numpy = np.sum(terms, axis=-1, keepdims=True)
        if not self.order.noise:
            return total
        # one number for a whole row, which must not come out near 0 by luck
        spread = max(self.u(site), 4 * FORMATS["float32"].u) * np.sqrt(np.sum(terms * terms, axis=-1, keepdims=True))
        total += self._sign(total) * (spread + FORMATS["float32"].u * np.abs(total))
        return total

    def exp(self, x: Numpy, less: Numpy) -> Numpy:
        """exp(x − less), `less` being the row's largest x or what stands for it."""
        with np.errstate(invalid="ignore", under="ignore"):
            if self.order.noise:
                x, less = self.round_float32(x), self.round_float32(less)
            if not (self.order.base2 or self.recipe.exp == "ex2approx"):
                return self._flushed(np.asarray(np.exp(x - less)))
            log2 = np.float32(math.log2(math.e))
            power = x * log2 - less * log2
            result = np.asarray(np.exp2(power))
            if self.recipe.exp == "ex2approx":
                result *= _ex2_error(power)
            return self._flushed(result)

    def u(self, site: str) -> float:
        """Unit roundoff at `site`."""
        return FORMATS[getattr(self.recipe, site)].u


def _signs(x: Numpy, random: np.random.Generator) -> Numpy:
    """±1 for each element."""
    bits = random.integers(0, 2**32, x.shape, dtype=np.uint32) >> np.uint32(31)
    return np.asarray(2.0 * bits - 1.0)  # as of integers(0, 2, …), in a fifth of the time


def _signs_by_value(x: Numpy, random: np.random.Generator) -> Numpy:
    """±1 for each number: one and the same for those that agree in float32, and the opposite for their negatives.

    Sums of the same terms may differ beyond float32. What differs in it is rounded up or down as it comes, though a
    narrow type has one number for both.
    """
    wide = np.asarray(x, dtype=np.float64)
    bits = np.asarray(np.abs(round_to(wide, "float32"))).view(np.uint64)
    bits ^= random.integers(2**64, dtype=np.uint64)  # else 0 would have one sign in all draws
    # the highest bit of such a product hashes them (multiply-shift, Dietzfelbinger et al. 1997)
    bits *= 2 * random.integers(2**63, dtype=np.uint64) + np.uint64(1)
    bits ^= bits >> np.uint64(32)
    bits *= 2 * random.integers(2**63, dtype=np.uint64) + np.uint64(1)
    bits >>= np.uint64(63)
    signs = 2.0 * bits - 1.0
    return np.asarray(np.copysign(signs, signs * wide))


def _ex2_error(power: Numpy) -> Numpy:
    """The error of a GPU's 2^x, of which only the size is told: up to 2⁻²² of it, as if at random."""
    noise = np.where(np.isfinite(power), power, 0.0).astype(np.float64) * 12_345.678
    return (1.0 + (2.0 * (noise - np.floor(noise)) - 1.0) * 2.0**-22).astype(np.float32)
