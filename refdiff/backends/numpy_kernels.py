"""Fast twins for NumPy: the name and signature of a layer, the same result, less time and memory.

A kernel returns `NotImplemented` for what it does not serve, errors included; the layer then answers, or raises.
Activations are kept feature-major where that comes for free: a product W Xᵀ is returned as its transposed view, and
elementwise steps keep that layout, so that the next product reads it as it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from refdiff import layers
from refdiff.backends import untouched
from refdiff.backends.numpy_product_kernels import NumpyProductKernels
from refdiff.backends.numpy_row_kernels import ELEMENTS, FLOATS, WORTH_A_THREAD, FloatArray, alike, lies_by_features
from refdiff.backends.numpy_stored import is_stored

TOKENS = 512
"""How many tokens the feed-forward network takes at a time: what lies between its products stays in the cache."""


class NumpyKernels(NumpyProductKernels):
    """The kernels of one model's way forward."""

    def activation(self, x: FloatArray, name: str) -> Any:
        """Compute silu, x / (1 + e^−x), piece by piece."""
        if name not in ("silu", "swish") or x.dtype not in FLOATS:
            return NotImplemented
        return self._pieces(_silu, 1, x)[0]

    def swiglu(
        self,
        x: FloatArray,
        gate_proj: Mapping[str, FloatArray],
        up_proj: Mapping[str, FloatArray],
        down_proj: Mapping[str, FloatArray],
        *,
        act: str = "silu",
        linear: Callable[..., Any] = layers.linear,
        activation: Callable[..., Any] = layers.activation,
    ) -> Any:
        """Multiply silu(gate) and up piece by piece."""
        weights = (p["weight"] for p in (gate_proj, up_proj, down_proj))
        if act not in ("silu", "swish") or not alike(x, *(w for w in weights if not is_stored(w))):
            return NotImplemented

        def part(x: FloatArray) -> FloatArray:
            both = self.linears(x, gate_proj, up_proj) if untouched(linear) else NotImplemented
            gate, up = (linear(x, **gate_proj), linear(x, **up_proj)) if both is NotImplemented else both
            (hidden,) = self._pieces(gated, 1, gate, up)
            result: FloatArray = linear(hidden, **down_proj)
            return result

        flat = x.reshape(-1, x.shape[-1])
        if len(flat) < 2 * TOKENS or not untouched(linear):
            return part(x)
        first = part(flat[:TOKENS])
        out = self._workspace.empty((first.shape[-1], len(flat)), first.dtype).T
        out[:TOKENS] = first
        for start in range(TOKENS, len(flat), TOKENS):
            out[start : start + TOKENS] = part(flat[start : start + TOKENS])
        return out.reshape(*x.shape[:-1], -1)

    def _pieces(
        self, step: Callable[..., None], results: int, *arrays: FloatArray, into: FloatArray | None = None
    ) -> list[FloatArray]:
        """Call `step(outs, *arrays)` on pieces of arrays of one shape, whatever order they lie in.

        The results lie like the first array, in memory of their own, or in the rows of `into`.
        """
        first = arrays[0]
        rows = first.reshape(-1, first.shape[-1]) if first.ndim > 1 and first.size else first
        order: Literal["F", "C"] = "F" if lies_by_features(first) else "C"
        flat = [a.reshape(rows.shape).ravel(order=order) for a in arrays]
        outs: Sequence[FloatArray] = (
            [self._workspace.empty((first.size,), first.dtype) for _ in range(results)] if into is None else list(into)
        )

        def part(start: int, stop: int) -> None:
            for i in range(start, stop, ELEMENTS):
                piece = slice(i, min(i + ELEMENTS, stop))
                step([out[piece] for out in outs], *(a[piece] for a in flat))

        if first.size < WORTH_A_THREAD:
            part(0, first.size)
        else:
            self._workers.split(first.size, part, align=16)
        return [out.reshape(rows.shape, order=order).reshape(first.shape) for out in outs]


def gated(outs: list[FloatArray], gate: FloatArray, up: FloatArray) -> None:
    """Write silu(gate) ⊙ up."""
    _silu(outs, gate)
    outs[0] *= up


def _silu(outs: list[FloatArray], x: FloatArray) -> None:
    (out,) = outs
    np.negative(x, out=out)
    with np.errstate(over="ignore"):  # e^−x = ∞ gives the right limit, 0
        np.exp(out, out=out)
    out += 1
    np.divide(x, out, out=out)
