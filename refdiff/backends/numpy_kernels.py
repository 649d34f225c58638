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
from refdiff.backends.numpy_row_kernels import ELEMENTS, WORTH_A_THREAD, FloatArray, NumpyRowKernels
from refdiff.backends.numpy_stored import ROWS, expand, is_stored

FEW = 24
"""Up to so many rows, a product is cut into pieces that OpenBLAS multiplies without packing."""

TOKENS = 512
"""How many tokens the feed-forward network takes at a time: what lies between its products stays in the cache."""

UNPACKED = 10**6
"""The largest rows · N · K of such a piece: OpenBLAS's limit for its small-matrix kernels, just over which a product
takes twice as long. Other BLAS libraries lose little by the pieces."""

SCORES = 2**18
"""How many attention scores of one map a block holds: 1 MB in float32, what a core's cache takes."""

QUERIES = 128
"""The most queries in a block: more would compute too much of the triangle that causality hides."""


class NumpyKernels(NumpyRowKernels):
    """The kernels of one model's way forward, and the threads that they share."""

    def linear(self, x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> Any:
        """Put the weight first, W Xᵀ, cut over its rows: a matrix-vector product, unpacked pieces, or whole halves.

        A weight of 16 bits is expanded as it is used, see numpy_stored.py; a result then has the dtype of `x`.
        """
        if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1] or x.size == 0:
            return NotImplemented
        if bias is not None and bias.shape != weight.shape[:1]:
            return NotImplemented
        outputs, K = weight.shape
        flat, stored = x.reshape(-1, K), is_stored(weight)
        N = len(flat)
        y = np.empty((outputs, N), x.dtype if stored else np.result_type(x, weight))
        columns = flat.T if N > 1 else flat[0]
        out = y if N > 1 else y[:, 0]
        rows = max(UNPACKED // (N * K) // 4 * 4, 4) if 1 < N <= FEW else outputs
        rows = min(rows, ROWS) if stored else rows

        def part(start: int, stop: int) -> None:
            tile = np.empty((min(rows, stop - start), K), y.dtype) if stored else None
            for i in range(start, stop, rows):
                j = min(i + rows, stop)
                piece = weight[i:j]
                if tile is not None:
                    expand(piece, tile[: j - i])
                    piece = tile[: j - i]
                np.matmul(piece, columns, out=out[i:j])

        if outputs * N * K < WORTH_A_THREAD:
            part(0, outputs)
        else:
            self._workers.split(outputs, part, align=16)
        result = y.T.reshape(*x.shape[:-1], outputs)
        if bias is not None:
            result += bias
        return result

    def activation(self, x: FloatArray, name: str) -> Any:
        """Compute silu, x / (1 + e^−x), piece by piece."""
        if name not in ("silu", "swish"):
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
        if act not in ("silu", "swish"):
            return NotImplemented

        def part(x: FloatArray) -> FloatArray:
            (hidden,) = self._pieces(gated, 1, linear(x, **gate_proj), linear(x, **up_proj))
            result: FloatArray = linear(hidden, **down_proj)
            return result

        flat = x.reshape(-1, x.shape[-1])
        if len(flat) < 2 * TOKENS or getattr(linear, "keeps", False):
            return part(x)
        out = np.empty((len(down_proj["weight"]), len(flat)), x.dtype).T
        for start in range(0, len(flat), TOKENS):
            out[start : start + TOKENS] = part(flat[start : start + TOKENS])
        return out.reshape(*x.shape[:-1], -1)

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
        if not fits(q1, k1, q2, k2, v):
            return NotImplemented
        B, H, T, _ = q1.shape
        K, S, e = v.shape[1:]
        lambdas = np.asarray(lambda_, dtype=q1.dtype)
        if (causal and S < T) or not covers(lambdas, (B, H, T, 1)) or (mask is not None and mask.dtype != np.bool_):
            return NotImplemented
        if any(x is not None and not covers(x, (B, mask_heads(x, H), T, S)) for x in (mask, bias)):
            return NotImplemented
        lambdas = np.broadcast_to(lambdas, (B, H, T, 1))
        masks, biases = by_map(mask, H), by_map(bias, H)
        out = np.empty((B, H, T, e), q1.dtype)

        def block(at: tuple[slice, slice, slice, slice]) -> None:
            b, h, k, t = at
            keys = S - T + t.stop if causal else S
            hidden = np.triu(np.ones((t.stop - t.start,) * 2, dtype=np.bool_), 1) if causal else None
            maps = []
            for q, key, m, z in ((q1, k1, masks[0], biases[0]), (q2, k2, masks[1], biases[1])):
                m, z = (None if x is None else part_of(x, (b, h, t, slice(keys))) for x in (m, z))
                maps.append(softmax_rows(q[b, h, t], key[b, k, :keys], m, z, hidden))
            (p1, s1), (p2, s2) = maps
            p2 *= lambdas[b, h, t] * (s1 / s2)
            p1 -= p2
            product = p1.reshape(*p1.shape[:1], k.stop - k.start, -1, keys) @ v[b, k, :keys]
            np.divide(product.reshape(*p1.shape[:3], e), s1, out=out[b, h, t])

        self._by_queries(block, (B, H, T, S), K)
        return out

    def plain_heads(
        self,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        mask: NDArray[np.bool_] | None = None,
        bias: FloatArray | None = None,
        *,
        causal: bool = True,
        attention_weights: Callable[..., Any] = layers.attention_weights,
    ) -> Any:
        """Go through heads and blocks of queries as `diff_attention` does, over one map."""
        if not fits(q, k, q, k, v) or (causal and k.shape[2] < q.shape[2]):
            return NotImplemented
        (B, H, T, _), (K, S, e) = q.shape, v.shape[1:]
        if any(x is not None and not covers(x, (B, H, T, S)) for x in (mask, bias)):
            return NotImplemented
        if mask is not None and mask.dtype != np.bool_:
            return NotImplemented
        see = [None if x is None else x[(None,) * (4 - x.ndim)] for x in (mask, bias)]
        out = np.empty((B, T, H, e), q.dtype)

        def block(at: tuple[slice, slice, slice, slice]) -> None:
            b, h, k_, t = at
            keys = S - T + t.stop if causal else S
            hidden = np.triu(np.ones((t.stop - t.start,) * 2, dtype=np.bool_), 1) if causal else None
            m, z = (None if x is None else part_of(x, (b, h, t, slice(keys))) for x in see)
            p, sums = softmax_rows(q[b, h, t], k[b, k_, :keys], m, z, hidden)
            product = p.reshape(*p.shape[:1], k_.stop - k_.start, -1, keys) @ v[b, k_, :keys]
            np.divide(product.reshape(*p.shape[:3], e), sums, out=out[b, t, h].swapaxes(1, 2))

        self._by_queries(block, (B, H, T, S), K)
        return out.reshape(B, T, H * e)

    def _by_queries(self, block: Callable[[Any], None], shape: tuple[int, int, int, int], groups: int) -> None:
        """Call `block` for slices of batch, query heads, key heads and queries with about `SCORES` scores a map."""
        (B, H, T, S), G = shape, shape[1] // groups
        if B * H * T * S <= SCORES:
            block((slice(0, B), slice(0, H), slice(0, groups), slice(0, T)))
            return
        rows = min(max(SCORES // (G * S), 1), QUERIES)
        self._workers.each(
            block,
            [
                (slice(b, b + 1), slice(k * G, k * G + G), slice(k, k + 1), slice(t, min(t + rows, T)))
                for t in reversed(range(0, T, rows))  # the longest rows first, so that threads end together
                for b in range(B)
                for k in range(groups)
            ],
        )

    def _pieces(self, step: Callable[..., None], results: int, *arrays: FloatArray) -> list[FloatArray]:
        """Call `step(outs, *arrays)` on pieces of arrays of one shape, whatever order they lie in."""
        first = arrays[0]
        rows = first.reshape(-1, first.shape[-1]) if first.ndim > 1 and first.size else first
        order: Literal["F", "C"] = "F" if rows.flags.f_contiguous and not rows.flags.c_contiguous else "C"
        flat = [a.reshape(rows.shape).ravel(order=order) for a in arrays]
        outs: list[FloatArray] = [np.empty(first.size, first.dtype) for _ in range(results)]

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


def fits(q1: FloatArray, k1: FloatArray, q2: FloatArray, k2: FloatArray, v: FloatArray) -> bool:
    """Whether queries, keys and values are (B, H, T, d), (B, K, S, d), (B, K, S, e), with H a multiple of K."""
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


def mask_heads(x: NDArray[Any], heads: int) -> int:
    """How many heads a mask or bias may have: those of one map, or those of both."""
    return 2 * heads if x.ndim > 2 and x.shape[-3] == 2 * heads else heads


def covers(x: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Whether `x` broadcasts to `shape` without enlarging it."""
    axes = (1,) * (len(shape) - x.ndim) + x.shape
    return len(axes) == len(shape) and all(m in (1, n) for m, n in zip(axes, shape, strict=True))


def by_map(x: NDArray[Any] | None, heads: int) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Give each map its part of a mask or bias, with all four axes."""
    if x is None:
        return None, None
    x = x[(None,) * (4 - x.ndim)]
    return (x[:, :heads], x[:, heads:]) if x.shape[1] == 2 * heads else (x, x)


def part_of(x: NDArray[Any], at: tuple[slice, slice, slice, slice]) -> NDArray[Any]:
    """Cut a mask or bias to a block; an axis of length 1 stands for all."""
    return x[tuple(s if n > 1 else slice(None) for s, n in zip(at, x.shape, strict=True))]


def softmax_rows(
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
