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
from refdiff.backends import laid_over, untouched
from refdiff.backends.numpy_product_kernels import FEW, NumpyProductKernels, run
from refdiff.backends.numpy_row_kernels import (
    ELEMENTS,
    FLOATS,
    WORTH_A_THREAD,
    FloatArray,
    alike,
    gated,
    lies_by_features,
    silu,
)
from refdiff.backends.numpy_stored import is_stored

TOKENS = 512
"""How many tokens the feed-forward network takes at a time: what lies between its products stays in the cache."""


class NumpyKernels(NumpyProductKernels):
    """The kernels of one model's way forward."""

    def diff_lambda(
        self,
        lambda_q1: FloatArray,
        lambda_k1: FloatArray,
        lambda_q2: FloatArray,
        lambda_k2: FloatArray,
        lambda_init: float,
    ) -> Any:
        """Compute λ without looking at what library the vectors are of: every token asks for it in every layer."""
        vectors = lambda_q1, lambda_k1, lambda_q2, lambda_k2
        if lambda_q1.ndim != 1 or any(x.shape != lambda_q1.shape for x in vectors) or not alike(*vectors):
            return NotImplemented
        return np.exp(np.vecdot(lambda_q1, lambda_k1)) - np.exp(np.vecdot(lambda_q2, lambda_k2)) + lambda_init

    def activation(self, x: FloatArray, name: str) -> Any:
        """Compute silu, x / (1 + e^−x), piece by piece."""
        if name not in ("silu", "swish") or x.dtype not in FLOATS:
            return NotImplemented
        return self._pieces(silu, 1, x)[0]

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
        expanded = [w for p in (gate_proj, up_proj, down_proj) if not is_stored(w := p["weight"])]
        if act not in ("silu", "swish") or laid_over(activation) or not alike(x, *expanded):
            return NotImplemented

        def part(x: FloatArray) -> FloatArray:
            hidden = self._gated_linears(x, gate_proj, up_proj) if untouched(linear) else NotImplemented
            if hidden is NotImplemented:
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

    def _gated_linears(self, x: FloatArray, gate_proj: Mapping[str, Any], up_proj: Mapping[str, Any]) -> Any:
        """Multiply few tokens by both, and silu of the one by the other: a thread has the same rows of both."""
        if x.ndim < 1 or x.size > FEW * x.shape[-1] or not gate_proj.get("bias") is up_proj.get("bias") is None:
            return NotImplemented
        plans = self._plans(x, (gate_proj, up_proj))
        if plans is None:
            return NotImplemented
        gate, up = plans
        y = self._workspace.empty(gate.y.shape, x.dtype)

        def part(at: slice) -> None:
            gate.part(at)
            up.part(at)
            gated([y[:, at]], gate.y[:, at], up.y[:, at])

        if gate.cuts and gate.cuts == up.cuts:
            self._workers.each(part, gate.cuts)
        else:
            self._workers.each(run, [(plan, at) for plan in plans for at in plan.cuts])
            gated([y], gate.y, up.y)
        return y.reshape(*x.shape[:-1], y.shape[-1])

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
