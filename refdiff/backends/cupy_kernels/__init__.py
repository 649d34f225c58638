"""Fast twins for CUDA: the name and signature of a layer, the same result, fewer and larger steps.

    cuda/*.cu       the kernels, readable by themselves
    geometry.py     how their work is cut into blocks
    device.py       NVRTC, launches, cuBLAS
    products.py     products with weights, several of one x at once
    attention.py    the arguments of the kernels of attention
    rotation.py     the arguments of those of RoPE, and of RoPE with the cache
    choosing.py     from logits to a token
    graph.py        a step's launches as one

A kernel returns `NotImplemented` for what it does not serve; the layer then answers, or raises. Numbers are float32,
float16 or bfloat16, and summed in float32. Weights may be of a 16-bit type where activations are float32.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from refdiff import layers
from refdiff.arrays import Array, namespace
from refdiff.backends import laid_over, untouched
from refdiff.backends.attention_inputs import fits
from refdiff.backends.cupy_kernels import rotation
from refdiff.backends.cupy_kernels.attention import Call
from refdiff.backends.cupy_kernels.choosing import choose
from refdiff.backends.cupy_kernels.device import NUMBERS, Device, gaps
from refdiff.backends.cupy_kernels.geometry import row_shares, row_threads
from refdiff.backends.cupy_kernels.graph import GraphError, recordable
from refdiff.backends.cupy_kernels.products import gated, linears
from refdiff.layers.diff_attention import sum_to
from refdiff.layers.plain_heads import concat_heads

PIECE = 8192
"""Tokens of all rows that go through a model at once.

A layer is a dozen launches or more and reads its weights once, however few the tokens are: 1,024, enough for a CPU,
leave a large card waiting. More need more memory, for 8,192 tokens 32 KiB a feature in float32: gate, up and their
product, the widest that there are at a time, take 1.4 GB together where each has 14,336 features.
"""

SIXTEEN_BITS = ("float16", "bfloat16")


class CupyKernels:
    """The kernels of one model.

    piece: how many tokens of a prompt are read at once.

    Args:
        device: what compiles and launches; None is the current CUDA device.
        rounded: the 16-bit type of the model's matrices, if it is one: where many rows are multiplied, they are rounded
            to it, in attention too; in float16, what is above 65504 is infinite there, and NaN from there on.
    """

    piece = PIECE

    def __init__(self, device: Any = None, rounded: str | None = None) -> None:
        self._device = device or Device()
        self.running, self.each = contextlib.nullcontext, _one_by_one  # as the kernels of a CPU have them
        self.choose = functools.partial(choose, self._device)
        self.linears, self.rope_append, self.counted_by = self._linears, self._rope_append, self._counted_by
        self._state: dict[str, Any] = {"length": None, "rounded": rounded}
        self._lambdas: dict[Any, Array] | None = None
        self.fill = self._device.fill
        self.record, self.refusal = self._record, GraphError
        self.recordable_ops = functools.partial(recordable, self)

    @contextlib.contextmanager
    def _counted_by(self, length: Array) -> Iterator[None]:
        """Let the device count the tokens of the cache, in `length` (1,) int64, where the shapes say how many fit."""
        self._state["length"] = length
        try:
            yield
        finally:
            self._state["length"] = None

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Any:
        """Multiply with a weight as it is stored: few rows in float32, many rounded to its type and by cuBLAS."""
        results = self._linears(x, {"weight": weight, "bias": bias})
        return results if results is NotImplemented else results[0]

    def embedding(self, ids: Array, weight: Array) -> Any:
        """Look up without waiting for the device: whether the ids are known was seen where they came from."""
        if weight.ndim != 2 or ids.size == 0:
            return NotImplemented
        xp = namespace(ids, weight)
        rows = xp.take(weight, xp.reshape(ids, (-1,)), axis=0)
        if weight.dtype.name in SIXTEEN_BITS:
            rows = xp.astype(rows, xp.float32)
        return xp.reshape(rows, (*ids.shape, weight.shape[1]))

    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> Any:
        """Go once through each row, in whatever order the rows lie."""
        return self._norm(x, weight, eps)

    def _norm(self, x: Array, weight: Array | None, eps: float, factor: float = 1.0) -> Any:
        """Norm, and multiply by a factor."""
        served = x.dtype.name in NUMBERS and (weight is None or weight.dtype.name in NUMBERS)
        if not served or not eps >= 0 or x.ndim < 1 or x.size == 0:
            return NotImplemented
        if weight is not None and (tuple(weight.shape) != x.shape[-1:] or gaps(weight)):
            return NotImplemented
        xp = namespace(x, weight)
        order = sorted(range(x.ndim - 1), key=lambda axis: -x.strides[axis])
        lying = xp.permute_dims(x, (*order, x.ndim - 1))
        if gaps(lying):
            lying = lying.copy(order="C")
        y = self._device.empty(lying.shape, x.dtype)
        size, threads = x.shape[-1], row_threads(x.shape[-1])
        defines = {"NUMBER": NUMBERS[x.dtype.name], "WEIGHT": NUMBERS[(x if weight is None else weight).dtype.name]}
        self._device.launch(
            "rms_norm.cu", "rms_norm", defines, (x.size // size, 1, 1), threads,
            (lying, weight, y, np.int32(size), np.float32(eps), np.float32(factor)), 4 * 32,
        )  # fmt: skip
        return xp.permute_dims(y, (*(order.index(axis) for axis in range(x.ndim - 1)), x.ndim - 1))

    def rms_norm_vjp(self, g: Array, x: Array, weight: Array | None, eps: float) -> Any:
        """Sum up each row once for ∂L/∂x, and each column in a few shares of the rows for ∂L/∂w."""
        served = x.dtype.name in NUMBERS and (weight is None or weight.dtype.name in NUMBERS)
        if not served or g.dtype != x.dtype or g.shape != x.shape or not eps >= 0 or x.ndim < 1 or x.size == 0:
            return NotImplemented
        if weight is not None and (tuple(weight.shape) != x.shape[-1:] or gaps(weight)):
            return NotImplemented
        xp = namespace(g, x, weight)
        g, x = (y.copy(order="C") if gaps(y) else y for y in (g, x))
        size, threads = x.shape[-1], row_threads(x.shape[-1])
        rows = x.size // size
        dx, roots = self._device.empty(x.shape, x.dtype), self._device.empty((rows,), np.float32)
        defines = {"NUMBER": NUMBERS[x.dtype.name], "WEIGHT": NUMBERS[(x if weight is None else weight).dtype.name]}
        self._device.launch(
            "rms_norm_vjp.cu", "to_rows", defines, (rows, 1, 1), threads,
            (g, x, weight, dx, roots, np.int32(size), np.float32(eps)), 8 * threads // 32,
        )  # fmt: skip
        if weight is None:
            return dx, None
        shares = row_shares(rows)
        partial = self._device.empty((shares, size), np.float32)
        self._device.launch(
            "rms_norm_vjp.cu", "to_weight", defines, (-(-size // 32), shares, 1), 256,
            (g, x, roots, partial, np.int32(rows), np.int32(size)), 4 * 256,
        )  # fmt: skip
        return dx, xp.astype(xp.sum(partial, axis=0), weight.dtype)

    def rope(self, x: Array, cos: Array, sin: Array, *, interleaved: bool = False) -> Any:
        """Turn all pairs of a row at once, and leave them as the cache keeps them: by head and token."""
        return rotation.rope(self._device, x, cos, sin, interleaved=interleaved)

    def swiglu(
        self,
        x: Array,
        gate_proj: Mapping[str, Array],
        up_proj: Mapping[str, Array],
        down_proj: Mapping[str, Array],
        *,
        act: str = "silu",
        linear: Callable[..., Any] = layers.linear,
        activation: Callable[..., Any] = layers.activation,
    ) -> Any:
        """Multiply silu(gate) and up in one step, of few rows that with their products."""
        if act not in ("silu", "swish") or laid_over(activation) or x.dtype.name not in NUMBERS or x.size == 0:
            return NotImplemented
        hidden = gated(self._device, x, gate_proj, up_proj) if untouched(linear) else NotImplemented
        if hidden is not NotImplemented:
            return linear(hidden, **down_proj)
        both = self._linears(x, gate_proj, up_proj) if untouched(linear) else NotImplemented
        gate, up = (linear(x, **gate_proj), linear(x, **up_proj)) if both is NotImplemented else both
        gate, up = (y.copy(order="C") if gaps(y) else y for y in (gate, up))
        hidden = self._device.empty(gate.shape, gate.dtype)
        blocks = min(-(-gate.size // 256), 32 * self._device.multiprocessors)
        self._device.launch(
            "gated.cu", "gated", {"NUMBER": NUMBERS[gate.dtype.name]}, (blocks, 1, 1), 256,
            (gate, up, hidden, np.int64(gate.size)),
        )  # fmt: skip
        return linear(hidden, **down_proj)

    def diff_lambda(
        self, lambda_q1: Array, lambda_k1: Array, lambda_q2: Array, lambda_k2: Array, lambda_init: float
    ) -> Any:
        """Compute λ at once; every token read asks for it in every layer."""
        vectors = (lambda_q1, lambda_k1, lambda_q2, lambda_k2)
        if any(x.dtype.name != "float32" or x.ndim != 1 or x.shape != lambda_q1.shape or gaps(x) for x in vectors):
            return NotImplemented
        where = (*map(self._device.address, vectors), lambda_init)
        if self._lambdas is not None and where in self._lambdas:
            return self._lambdas[where]
        lambda_ = self._device.empty((), np.float32)
        self._device.launch(
            "diff_lambda.cu", "diff_lambda", {}, (1, 1, 1), 32,
            (*vectors, lambda_, np.int32(lambda_q1.size), np.float32(lambda_init)),
        )  # fmt: skip
        if self._lambdas is not None:
            self._lambdas[where] = lambda_
        return lambda_

    def diff_heads_hf(
        self,
        q: Array,
        k: Array,
        v: Array,
        lambda_: Array,
        lambda_init: float,
        eps: float,
        mask: Array | None = None,
        bias: Array | None = None,
        *,
        causal: bool = True,
        diff_attention: Callable[..., Any] = layers.diff_attention,
        rms_norm: Callable[..., Any] = layers.rms_norm,
    ) -> Any:
        """Scale in the norm's own launch."""
        if not untouched(rms_norm) or any(x.ndim != 4 or x.shape[1] % 2 for x in (q, k)):
            return NotImplemented
        H, K = q.shape[1] // 2, k.shape[1] // 2
        halves = q[:, :H, ...], k[:, :K, ...], q[:, H:, ...], k[:, K:, ...]
        heads = diff_attention(*halves, v, lambda_, mask, bias, causal=causal)
        normed = self._norm(heads, None, eps, 1 - lambda_init)
        return normed if normed is NotImplemented else concat_heads(normed)

    def diff_attention(
        self,
        q1: Array,
        k1: Array,
        q2: Array,
        k2: Array,
        v: Array,
        lambda_: Array,
        mask: Array | None = None,
        bias: Array | None = None,
        *,
        causal: bool = True,
    ) -> Any:
        """Sum up both softmax maps in one pass over keys and values; no scores are kept.

        A row of which a bias of −∞ hides every key is 0 as if a mask did, where the layer has NaN.
        """
        if not fits(q1, k1, q2, k2, v):
            return NotImplemented
        call = Call.of(self._device, (q1, q2), (k1, k2), v, lambda_, mask, bias, causal, **self._state)
        return NotImplemented if call is None else namespace(q1).permute_dims(call.forward(), (0, 2, 1, 3))

    def diff_attention_vjp(
        self,
        g: Array,
        q1: Array,
        k1: Array,
        q2: Array,
        k2: Array,
        v: Array,
        lambda_: Array,
        mask: Array | None = None,
        bias: Array | None = None,
        *,
        causal: bool = True,
    ) -> Any:
        """Compute the weights anew tile by tile, from the largest score and the sum of each row."""
        if not fits(q1, k1, q2, k2, v) or tuple(g.shape) != (*q1.shape[:3], v.shape[3]) or g.dtype != q1.dtype:
            return NotImplemented
        call = Call.of(self._device, (q1, q2), (k1, k2), v, lambda_, mask, bias, causal, backward=True)
        if call is None:
            return NotImplemented
        dq1, dq2, dk1, dk2, dv, dlambda = call.backward(g)
        xp = namespace(g)
        lambda_ = xp.asarray(lambda_)
        return dq1, dk1, dq2, dk2, dv, xp.astype(sum_to(dlambda, tuple(lambda_.shape)), lambda_.dtype)

    def plain_heads(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        bias: Array | None = None,
        *,
        causal: bool = True,
        attention_weights: Callable[..., Any] = layers.attention_weights,
    ) -> Any:
        """Sum up one softmax map as `diff_attention` does two."""
        if laid_over(attention_weights) or not fits(q, k, q, k, v) or not _one_map(q, mask, bias):
            return NotImplemented
        call = Call.of(self._device, (q,), (k,), v, None, mask, bias, causal, **self._state)
        return NotImplemented if call is None else namespace(q).reshape(call.forward(), (q.shape[0], q.shape[2], -1))

    def plain_heads_vjp(
        self,
        g: Array,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        bias: Array | None = None,
        *,
        causal: bool = True,
        attention_weights: Callable[..., Any] = layers.attention_weights,
        attention_weights_vjp: Callable[..., Any] = layers.attention_weights_vjp,
    ) -> Any:
        """Compute the weights anew, as `diff_attention_vjp` does."""
        if laid_over(attention_weights) or laid_over(attention_weights_vjp) or g.dtype != q.dtype:
            return NotImplemented
        if not fits(q, k, q, k, v) or not _one_map(q, mask, bias):
            return NotImplemented
        (B, H, T, _), e = q.shape, v.shape[3]
        if tuple(g.shape) != (B, T, H * e):
            return NotImplemented
        call = Call.of(self._device, (q,), (k,), v, None, mask, bias, causal, backward=True)
        if call is None:
            return NotImplemented
        xp = namespace(g, q)
        dq, _, dk, _, dv, _ = call.backward(xp.permute_dims(xp.reshape(g, (B, T, H, e)), (0, 2, 1, 3)))
        return dq, dk, dv

    def _linears(self, x: Array, *projections: Mapping[str, Any]) -> Any:
        """Multiply by several weights, each as `linear` would; see `products.linears`."""
        return linears(self._device, x, *projections)

    def _record(self, work: Callable[[], Any]) -> Any:
        """Record work; see `graph.Recorder`. λ, which the weights alone decide, is computed once and not recorded."""
        lambdas: dict[Any, Array] = {}

        def knowing() -> Any:
            self._lambdas = lambdas
            try:
                return work()
            finally:
                self._lambdas = None

        return self._device.recorder().record(knowing)

    def _rope_append(self, *args: Any, **kwargs: Any) -> Any:
        """Rotate, and append to the cache; see `rotation.rope_append`."""
        return rotation.rope_append(self._device, self._state["length"], *args, **kwargs)


def _one_by_one(work: Callable[[Any], Any], items: Iterable[Any]) -> None:
    """Call `work` for every item: the device has its own threads, and the host only hands it work."""
    for item in items:
        work(item)


def _one_map(q: Array, *masks: Array | None) -> bool:
    """Whether no mask has rows for the heads of two maps."""
    return all(x is None or x.ndim < 3 or x.shape[-3] in (1, q.shape[1]) for x in masks)
