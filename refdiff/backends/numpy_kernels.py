"""Fast twins for NumPy: the name and signature of a layer, the same result, less time and memory.

A kernel returns `NotImplemented` for what it does not serve, errors included; the layer then answers, or raises.
Activations are kept feature-major where that comes for free: a product W Xᵀ is returned as its transposed view, and
elementwise steps keep that layout, so that the next product reads it as it lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refdiff import layers
from refdiff.backends.workers import Workers

FloatArray = NDArray[np.floating[Any]]

FEW = 24
"""Up to so many rows, a product is cut into pieces that OpenBLAS multiplies without packing."""

UNPACKED = 10**6
"""The largest rows · N · K of such a piece: OpenBLAS's limit for its small-matrix kernels, just over which a product
takes twice as long. Other BLAS libraries lose little by the pieces."""

WORTH_A_THREAD = 2**19
"""The fewest multiplications, or elements of exp, for which handing a part to another thread pays."""

SCORES = 2**18
"""How many attention scores of one map a block holds: 1 MB in float32, what a core's cache takes."""

QUERIES = 128
"""The most queries in a block: more would compute too much of the triangle that causality hides."""

ELEMENTS = 2**15
"""How many elements an elementwise step handles at a time, so that its temporaries stay in the cache."""


class NumpyKernels:
    """The kernels of one model, and the threads that they share."""

    def __init__(self, workers: Workers | None = None) -> None:
        self._workers = workers or Workers()
        self.running = self._workers.running

    def linear(self, x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> Any:
        """Put the weight first, W Xᵀ, cut over its rows: a matrix-vector product, unpacked pieces, or whole halves."""
        if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1] or x.size == 0:
            return NotImplemented
        if bias is not None and bias.shape != weight.shape[:1]:
            return NotImplemented
        outputs, K = weight.shape
        flat = x.reshape(-1, K)
        N = len(flat)
        y = np.empty((outputs, N), np.result_type(x, weight))
        columns = flat.T if N > 1 else flat[0]
        out = y if N > 1 else y[:, 0]
        rows = max(UNPACKED // (N * K) // 4 * 4, 4) if 1 < N <= FEW else outputs

        def part(start: int, stop: int) -> None:
            for i in range(start, stop, rows):
                j = min(i + rows, stop)
                np.matmul(weight[i:j], columns, out=out[i:j])

        if outputs * N * K < WORTH_A_THREAD:
            part(0, outputs)
        else:
            self._workers.split(outputs, part, align=16)
        result = y.T.reshape(*x.shape[:-1], outputs)
        if bias is not None:
            result += bias
        return result

    def rms_norm(self, x: FloatArray, weight: FloatArray | None, eps: float) -> Any:
        """Sum squares without holding them, and scale once."""
        if not eps >= 0 or (weight is not None and weight.shape != x.shape[-1:]):
            return NotImplemented
        scale = np.vecdot(x, x)[..., None]
        scale /= x.shape[-1]
        scale += eps
        np.sqrt(scale, out=scale)
        y = x / scale
        if weight is not None:
            y *= weight
        return y

    def activation(self, x: FloatArray, name: str) -> Any:
        """Compute silu, x / (1 + e^−x), piece by piece."""
        if name not in ("silu", "swish"):
            return NotImplemented
        return self._elementwise(_silu, x)

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
        if act not in ("silu", "swish"):
            return NotImplemented

        def inner(gate: FloatArray, out: FloatArray, up: FloatArray) -> None:
            _silu(gate, out)
            out *= up

        hidden = self._elementwise(inner, linear(x, **gate_proj), linear(x, **up_proj))
        return linear(hidden, **down_proj)

    def diff_attention(
        self,
        q1: FloatArray,
        k1: FloatArray,
        q2: FloatArray,
        k2: FloatArray,
        v: FloatArray,
        lambda_: Any,
        mask: NDArray[np.bool_] | None = None,
        bias: FloatArray | None = None,
        *,
        causal: bool = True,
    ) -> Any:
        """Go through heads and blocks of queries, each over the keys that it may see, and multiply by V once.

        With P = exp(S − max S) and row sums s, (P₁/s₁ − λ P₂/s₂) V = ((P₁ − λ (s₁/s₂) P₂) V) / s₁. Only the scores of
        a block are held, so that memory grows with T and not with T².
        """
        if not _fits(q1, k1, q2, k2, v):
            return NotImplemented
        B, H, T, _ = q1.shape
        K, S, e = v.shape[1:]
        lambdas = np.asarray(lambda_, dtype=q1.dtype)
        if (causal and S < T) or not _covers(lambdas, (B, H, T, 1)) or (mask is not None and mask.dtype != np.bool_):
            return NotImplemented
        if any(x is not None and not _covers(x, (B, _mask_heads(x, H), T, S)) for x in (mask, bias)):
            return NotImplemented
        lambdas = np.broadcast_to(lambdas, (B, H, T, 1))
        masks, biases = _by_map(mask, H), _by_map(bias, H)
        out = np.empty((B, H, T, e), q1.dtype)
        G = H // K

        def block(at: tuple[slice, slice, slice, slice]) -> None:
            b, h, k, t = at
            keys = S - T + t.stop if causal else S
            hidden = np.triu(np.ones((t.stop - t.start,) * 2, dtype=np.bool_), 1) if causal else None
            maps = []
            for q, key, m, z in ((q1, k1, masks[0], biases[0]), (q2, k2, masks[1], biases[1])):
                m, z = (None if x is None else _part(x, (b, h, t, slice(keys))) for x in (m, z))
                maps.append(_map(q[b, h, t], key[b, k, :keys], m, z, hidden))
            (p1, s1), (p2, s2) = maps
            p2 *= lambdas[b, h, t] * (s1 / s2)
            p1 -= p2
            product = p1.reshape(*p1.shape[:1], k.stop - k.start, -1, keys) @ v[b, k, :keys]
            np.divide(product.reshape(*p1.shape[:3], e), s1, out=out[b, h, t])

        if B * H * T * S <= SCORES:
            block((slice(0, B), slice(0, H), slice(0, K), slice(0, T)))
            return out
        rows = min(max(SCORES // (G * S), 1), QUERIES)
        self._workers.each(
            block,
            [
                (slice(b, b + 1), slice(k * G, k * G + G), slice(k, k + 1), slice(t, min(t + rows, T)))
                for t in reversed(range(0, T, rows))  # the longest rows first, so that threads end together
                for b in range(B)
                for k in range(K)
            ],
        )
        return out

    def _elementwise(self, step: Callable[..., None], *arrays: FloatArray) -> FloatArray:
        """Call `step(first, out, *others)` on pieces of arrays of one shape, whatever order they lie in."""
        first = arrays[0]
        order: Literal["F", "C"] = "F" if first.flags.f_contiguous and not first.flags.c_contiguous else "C"
        flat = [a.ravel(order=order) for a in arrays]
        out: FloatArray = np.empty(first.size, first.dtype)

        def part(start: int, stop: int) -> None:
            for i in range(start, stop, ELEMENTS):
                piece = slice(i, min(i + ELEMENTS, stop))
                step(flat[0][piece], out[piece], *(a[piece] for a in flat[1:]))

        if first.size < WORTH_A_THREAD:
            part(0, first.size)
        else:
            self._workers.split(first.size, part, align=16)
        result: FloatArray = out.reshape(first.shape, order=order)
        return result


def _silu(x: FloatArray, out: FloatArray) -> None:
    np.negative(x, out=out)
    with np.errstate(over="ignore"):  # e^−x = ∞ gives the right limit, 0
        np.exp(out, out=out)
    out += 1
    np.divide(x, out, out=out)


def _fits(q1: FloatArray, k1: FloatArray, q2: FloatArray, k2: FloatArray, v: FloatArray) -> bool:
    return (
        q1.ndim == k1.ndim == v.ndim == 4
        and q1.shape == q2.shape
        and k1.shape == k2.shape
        and v.shape[:3] == k1.shape[:3]
        and q1.shape[0] == k1.shape[0]
        and q1.shape[3] == k1.shape[3]
        and k1.shape[1] > 0
        and q1.shape[1] % k1.shape[1] == 0
        and q1.size > 0
        and k1.size > 0
    )


def _mask_heads(x: NDArray[Any], heads: int) -> int:
    """How many heads a mask or bias may have: those of one map, or those of both."""
    return 2 * heads if x.ndim > 2 and x.shape[-3] == 2 * heads else heads


def _covers(x: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Whether `x` broadcasts to `shape` without enlarging it."""
    axes = (1,) * (len(shape) - x.ndim) + x.shape
    return len(axes) == len(shape) and all(m in (1, n) for m, n in zip(axes, shape, strict=True))


def _by_map(x: NDArray[Any] | None, heads: int) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Give each map its part of a mask or bias, with all four axes."""
    if x is None:
        return None, None
    x = x[(None,) * (4 - x.ndim)]
    return (x[:, :heads], x[:, heads:]) if x.shape[1] == 2 * heads else (x, x)


def _part(x: NDArray[Any], at: tuple[slice, slice, slice, slice]) -> NDArray[Any]:
    """Cut a mask or bias to a block; an axis of length 1 stands for all."""
    return x[tuple(s if n > 1 else slice(None) for s, n in zip(at, x.shape, strict=True))]


def _map(
    q: FloatArray,
    k: FloatArray,
    mask: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    hidden: NDArray[np.bool_] | None,
) -> tuple[FloatArray, FloatArray]:
    """Compute P (B, H, t, S) and its row sums (B, H, t, 1); a row that sees nothing has P = 0 and sum 1."""
    B, H, t, d = q.shape
    K, S = k.shape[1:3]
    grouped, root = q.reshape(B, K, H // K * t, d), math.sqrt(d)
    exact = math.frexp(root)[0] == 0.5  # a power of two: dividing q, which is smaller, rounds nothing
    p: FloatArray = ((grouped / root if exact else grouped) @ k.swapaxes(2, 3)).reshape(B, H, t, S)
    if not exact:
        p /= root
    if bias is not None:
        p += bias
    if mask is not None:
        np.copyto(p, -np.inf, where=~mask)
    if hidden is not None and t > 1:
        np.copyto(p[..., S - t :], -np.inf, where=hidden)
    top = p.max(axis=-1, keepdims=True)
    if mask is not None:
        top[top == -np.inf] = 0
    p -= top
    np.exp(p, out=p)
    sums = p.sum(axis=-1, keepdims=True)
    if mask is not None:
        sums[sums == 0] = 1
    return p, sums
