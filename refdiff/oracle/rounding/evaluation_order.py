"""Valid orders of evaluation, which differ only in rounding, and the arithmetic of a recipe in an order.

A budget is computed from `MEMBERS` and `DRAWS`; only tests use `HELD_OUT`. `Arithmetic` has the products, sums and
exponentials of a kernel, and rounds where the recipe stores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.oracle.rounding import FORMATS, U32, round_to, truncate_to
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.thresholds import THRESHOLDS

Numpy = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Order:
    """One valid order of evaluation.

    subtract: subtract the "outputs" of two passes, or the "weights" before one product with V.
    tile: the number of keys per tile of an online softmax; None computes the whole row at once.
    reverse: whether the tiles go from the last key to the first.
    stored: whether the result of every operation is rounded, as in an eager framework. Otherwise fused operations are
        computed in float32, and only their result is rounded.
    terms: how many products are summed at a time and then added to the accumulator; 0 leaves it to BLAS.
    base2: whether exponentials are computed as 2^(x log₂ e).
    scale_first: whether q is scaled before the product with k.
    shift: an error of λ, in standard deviations of the sum of its rounding errors.
    scalars: an error of λ_init, as a share of `lambda_init_error`.
    noise: a seed other than 0 adds random errors of the size of rounding and summation errors. Without them all orders
        may agree by chance: a map with all its weight on one key cancels exactly in most of them.
    alike: with `noise`, equal numbers get equal rounding errors, so that equal rows share them. The sums of matrix
        products still have separate errors, because equal terms may be added in different orders.
    flush: with `noise`, numbers below 2⁻¹²⁶ become 0, as in code compiled by XLA and on many GPUs.
    truncate: truncate the operands of tf32 products, as tensor cores do that are given float32; otherwise they are
        rounded to nearest. Truncation makes every number smaller, by up to 2⁻¹⁰, which no sum averages out.
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
    truncate: bool = False


MEMBERS = (
    Order("two passes, op by op", stored=True, terms=1),
    Order("weights subtracted", subtract="weights", shift=1.0, truncate=True),
    Order("online, 16 keys", tile=16, terms=4, base2=True),
    Order("online, 64 keys", tile=64, shift=-1.0, scale_first=True, truncate=True),
    Order("online, 16 keys from the last", tile=16, reverse=True, stored=True),
    Order("weights subtracted, op by op", subtract="weights", stored=True, terms=2, base2=True),
)

DRAWS = (
    Order("at random", noise=1, flush=True, scalars=1.0),
    Order("at random, weights subtracted", noise=2, subtract="weights", stored=True),
    Order("at random, op by op", noise=3, alike=True, stored=True, flush=True, scalars=-1.0),
    Order("at random, online, 16 keys", noise=4, alike=True, tile=16, truncate=True),
)

HELD_OUT = (
    Order("online, 32 keys", tile=32, stored=True, base2=True),
    Order("online, 8 keys", tile=8, terms=16, truncate=True),
    Order("online, 24 keys from the last", tile=24, reverse=True, scale_first=True),
    Order("two passes, base 2", base2=True, terms=1),
    Order("weights subtracted, 16 terms", subtract="weights", terms=16, base2=True, truncate=True),
)


SMALLEST_NORMAL = 2.0**-126
"""The smallest normal number of float32 and bfloat16."""

TENSOR_CORE = 16
"""The number of products that one tensor-core instruction adds to its accumulator (m16n8k16 of 16-bit types)."""

RMS_ROUNDING = 0.6
"""Root mean square of a rounding error, in units of u |x|: 1/√3 at a power of two, half of that just below one."""


def lambda_init_error(start: float) -> float:
    """Bound the error of λ_init = 0.8f − 0.6f · expf(−0.3f · l) in float32, as CUDA, C and JAX compute it.

    Equation:
        |error| ≤ u (4 w + 0.2 + |λ_init|) with the product w = |0.8 − λ_init|

        4 u w covers the factors of the product, the exponent (at most 0.37 of 0.6 times two roundings) and expf. 0.8f
        has an error of 0.2 u, and the difference is rounded once. 1 − λ_init inherits the error: at λ_init = 0.8 the
        relative error of 0.2 is five times as large.
    """
    return U32 * (abs(start) + 4.0 * abs(0.8 - start) + 0.2)


def sum_error(n: int, name: str = "float32") -> float:
    """Return the typical error of a sum of n products, in units of the root of the sum of their squares.

    Each partial sum is rounded, and the k-th has grown as √k.
    """
    return RMS_ROUNDING * FORMATS[name].u * math.sqrt(1 + n / 4)


def lambda_error(value: Numpy, u: float, terms: Sequence[Numpy] = (), start: float = 0.0) -> Numpy:
    """Return the typical error of λ = exp Σ terms₁ − exp Σ terms₂ + start, whose steps are rounded to u.

    Partial sums are rounded too; where large ones cancel, their rounding errors remain.

    Shapes:
        value (…), terms two times (…, d), or none for λ by another formula -> (…)
    """
    powers = [np.exp(np.sum(x, axis=-1)) for x in terms]
    sums = [e * np.sqrt(np.sum(x * x, axis=-1)) for e, x in zip(powers, terms, strict=True)]
    steps = [value, *powers, *sums, *([value - start] if terms else [])]
    off = [u / math.sqrt(3) * x for x in steps] + [sum_error(terms[0].shape[-1]) * x for x in sums]
    found: Numpy = np.sqrt(sum(x * x for x in off))
    return found


class Arithmetic:
    """The operations of a kernel of this recipe in this order, on arrays of `dtype`.

    Args:
        query_factor: the factor that q includes for a scale other than 1/√d. A kernel that stores Q Kᵀ before it is
            scaled stores it without this factor.

    raw_score_error: with noise, the error of the last scores that a softcap is applied to.
    capped_errors: with noise, the errors of the capped scores of map 1 and of map 2, from those of the raw scores.
    """

    def __init__(self, recipe: Recipe, order: Order, query_factor: float = 1.0) -> None:
        self.recipe, self.order, self.query_factor = recipe, order, query_factor
        self._random = np.random.default_rng(order.noise)
        self.raw_score_error: Numpy | None = None
        self.capped_errors: tuple[Numpy, ...] = ()

    @property
    def dtype(self) -> Any:
        """float32; float64 with random errors, which may be smaller than the resolution of float32."""
        return np.float64 if self.order.noise else np.float32

    def array(self, x: Numpy) -> Numpy:
        """Convert to `dtype`."""
        with np.errstate(over="ignore"):
            return np.asarray(x).astype(self.dtype, copy=False)

    def round_at(self, x: Numpy, site: str) -> Numpy:
        """Round to the type of the recipe's field `site` ("p", "o", …)."""
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
        """Set numbers below the normal range to 0, in place, if the order flushes them."""
        if self.order.flush:
            np.copyto(x, 0.0, where=np.abs(x) < SMALLEST_NORMAL)
        return x

    def _sign(self, x: Numpy) -> Numpy:
        """Return a random sign for each element; with `alike`, equal numbers get equal signs."""
        return (_signs_by_value if self.order.alike else _signs)(x, self._random)

    def perturb(self, x: Numpy, error: Numpy) -> Numpy:
        """Return x with an error of this size and a random sign if the order has noise, else x."""
        return x + self._sign(x) * error if self.order.noise else x

    def perturb_sum(self, total: Numpy, squares: Numpy, count: int, sums: str = "float32") -> Numpy:
        """Return a gradient that is a sum, with the errors of its terms and of their order if the order has noise.

        Kernels add the terms, which the ensemble adds in one order, in any order, in float32 or in the type `sums`.

        Args:
            squares: the sum of the squares of the terms.
            count: the number of terms.
        """
        if not self.order.noise:
            return total
        of_order = THRESHOLDS.sum_order / THRESHOLDS.sum_members * sum_error(count, sums)
        return self.perturb(total, (of_order + self.u("storage")) * np.sqrt(squares))

    def total(self, terms: Numpy, axis: int | tuple[int, ...], sums: str = "float32") -> Numpy:
        """Return the sum of terms along these axes as a gradient (`perturb_sum`)."""
        total = np.asarray(np.sum(terms, axis=axis, dtype=self.dtype))
        return self.perturb_sum(total, np.sum(terms * terms, axis=axis), terms.size // max(total.size, 1), sums)

    def round_float32(self, x: Numpy) -> Numpy:
        """Return x with the random error of one float32 operation if the order has noise, else x."""
        return self._round(x, "float32") if self.order.noise else x

    def round_if_eager(self, x: Numpy, site: str) -> Numpy:
        """Round as `round_at` if the order stores every result, else return x."""
        return self.round_at(x, site) if self.order.stored else x

    def operand(self, x: Numpy) -> Numpy:
        """Return a factor of a matrix product: x, or x rounded to the recipe's `matmul`; tf32 may be truncated."""
        kind = self.recipe.matmul
        if kind == "ieee":
            return x
        return truncate_to(x, kind) if kind == "tf32" and self.order.truncate else self._round(x, kind)

    def product(self, a: Numpy, b: Numpy) -> Numpy:
        """Return the matrix product of a and b, with partial sums rounded to the recipe's `accumulate` type.

        Shapes:
            a (…, n, k), b (…, k, m) -> (…, n, m); or a (B, H, n, k) and b (B, K, k, m), whose heads serve H / K of a
        """
        a, b = self.operand(self.array(a)), self.operand(self.array(b))
        if b.ndim == 4 and a.shape[1] != b.shape[1]:
            (B, H, rows, _), K = a.shape, b.shape[1]
            grouped = self.product(a.reshape(B, K, H // K * rows, a.shape[-1]), b)
            return grouped.reshape(B, H, rows, b.shape[-1])
        n, sums = a.shape[-1], self.recipe.accumulate
        # beside the roundings of 16 bits, the order of a float32 sum does not show, and BLAS's is many times as fast
        terms = self.order.terms if self.recipe.storage == "float32" or sums != "float32" else 0
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
        """Round a partial sum kept in 16 bits. With noise, `product` adds one error for all, and only ∞ is set here."""
        if self.recipe.accumulate == "float32":
            return x
        form = self.recipe.type_at("accumulate")
        return (
            np.where(np.abs(x) > form.top, np.copysign(np.inf, x), x)
            if self.order.noise
            else round_to(x, self.recipe.accumulate)
        )

    def inner(self, a: Numpy, b: Numpy, site: str) -> Numpy:
        """Return ⟨a, b⟩ over the last axis, with noise for b having been stored at `site`."""
        terms = a * b
        total: Numpy = np.sum(terms, axis=-1, keepdims=True)
        if not self.order.noise:
            return total
        # this one number affects a whole row, so its error must not happen to be near 0
        spread = max(self.u(site), 4 * U32) * np.sqrt(np.sum(terms * terms, axis=-1, keepdims=True))
        total += self._sign(total) * (spread + U32 * np.abs(total))
        return total

    def exp(self, x: Numpy, offset: Numpy) -> Numpy:
        """Return exp(x − offset); `offset` is the row's maximum or its log-sum-exp."""
        with np.errstate(invalid="ignore", under="ignore"):
            if self.order.noise:
                x, offset = self.round_float32(x), self.round_float32(offset)
            log2 = np.float32(math.log2(math.e))
            result = np.exp2(x * log2 - offset * log2) if self.order.base2 else np.exp(x - offset)
            return self._flushed(np.asarray(result))

    def tanh(self, x: Numpy) -> Numpy:
        """Return tanh x, with the errors of an approximate one if the recipe has it."""
        y = np.asarray(np.tanh(x))
        if error := self.recipe.tanh_error:
            # numbers near each other may have errors of one sign, as in the orders with a shift
            sign = self._sign(y) if self.order.noise else self.order.shift or _pseudo_random(x)
            y = np.asarray(y * (1.0 + error * sign), dtype=y.dtype)
        return y

    def u(self, site: str) -> float:
        """Unit roundoff at `site`."""
        return self.recipe.type_at(site).u


def _signs(x: Numpy, random: np.random.Generator) -> Numpy:
    """Return a random ±1 for each element."""
    bits = random.integers(0, 2**32, x.shape, dtype=np.uint32) >> np.uint32(31)
    return np.asarray(2.0 * bits - 1.0)  # five times as fast as integers(0, 2, …)


def _signs_by_value(x: Numpy, random: np.random.Generator) -> Numpy:
    """Return ±1 for each number: the same for numbers that are equal in float32, the opposite for their negatives.

    Numbers are compared in float32 because float64 sums of the same terms may differ in later digits. Numbers that
    differ in float32 get independent signs, even if a narrow type rounds them to one value.
    """
    wide = np.asarray(x, dtype=np.float64)
    bits = np.asarray(np.abs(round_to(wide, "float32"))).view(np.uint64)
    bits ^= random.integers(2**64, dtype=np.uint64)  # otherwise 0 would have the same sign in all draws
    # multiply-shift hashing: the highest bit of the product (Dietzfelbinger et al. 1997)
    bits *= 2 * random.integers(2**63, dtype=np.uint64) + np.uint64(1)
    bits ^= bits >> np.uint64(32)
    bits *= 2 * random.integers(2**63, dtype=np.uint64) + np.uint64(1)
    bits >>= np.uint64(63)
    signs = 2.0 * bits - 1.0
    return np.asarray(np.copysign(signs, signs * wide))


def _pseudo_random(x: Numpy) -> Numpy:
    """Return a number from −1 to 1 for each number: the error of an approximation of which only the size is known."""
    noise = np.where(np.isfinite(x), x, 0.0).astype(np.float64) * 12_345.678
    return np.asarray(2.0 * (noise - np.floor(noise)) - 1.0)
