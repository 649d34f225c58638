"""Attention and its backward pass on the device: the arguments of attention.cu, attention_mma.cu, attention_vjp.cu."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.arrays import Array, namespace
from refdiff.backends.attention_inputs import fits, masks_fit, split_by_map
from refdiff.backends.cupy.device import NUMBERS, Runtime
from refdiff.backends.cupy.geometry import (
    Tiles,
    attention_tiles,
    key_splits,
    mma_columns,
    mma_tiles,
    worth_tensor_cores,
)
from refdiff.backends.cupy.norm import scaled_norm
from refdiff.layers.diff_attention import sum_to
from refdiff.layers.plain_heads import concat_heads
from refdiff.layers.softmax import broadcasts_to

AXES = np.dtype([(name, np.int64) for name in ("batch", "head", "row", "key")])
"""`Axes` of attention.cuh: distances in elements between neighbors along an axis, 0 where all share one."""

SHAPE = np.dtype(
    [("length", np.int64)]
    + [(name, AXES) for name in ("q", "k", "v", "lambda", "mask", "bias")]
    + [(name, np.int32) for name in ("H", "K", "T", "S", "causal", "splits", "keys_of_a_split")]
    + [("scale", np.float32)]
)
"""`Shape` of attention.cuh."""

MAX_GRID = 2**16 - 1
"""The largest second or third axis of a grid."""


def axes_of(x: Array | None) -> Any:
    """Fill `Axes` for an array with up to four axes; an axis of length 1 stands for all."""
    if x is None:
        return np.zeros((), AXES)
    steps = [0 if n == 1 else stride // x.itemsize for n, stride in zip(x.shape, x.strides, strict=True)]
    return np.array((*steps, *[0] * (4 - len(steps))), AXES)


def rows_lie_whole(*arrays: Array) -> tuple[Array, ...]:
    """Return arrays whose last axes lie without gaps, and that all lie alike: themselves, or copies."""
    first = arrays[0]
    alike = all(x.strides == first.strides for x in arrays)
    if alike and (first.shape[-1] == 1 or first.strides[-1] == first.itemsize):
        return arrays
    return tuple(x.copy(order="C") for x in arrays)


@dataclass(frozen=True)
class AttentionCall:
    """One call of attention: its arrays, in the order in which the kernels take them, and its shape.

    tile: the 16-bit type that tensor cores compute it in, or None where they do not.
    """

    rt: Runtime
    defines: dict[str, Any]
    operands: tuple[Array | None, ...]
    masks: tuple[Array | None, ...]
    shape: Any
    tiles: Tiles
    rows: int
    sizes: tuple[int, int, int, int, int, int, int]
    tile: str | None = None

    @classmethod
    def create(
        cls,
        rt: Runtime,
        q: tuple[Array, ...],
        k: tuple[Array, ...],
        v: Array,
        lambda_: Any,
        mask: Array | None,
        bias: Array | None,
        causal: bool,
        *,
        backward: bool = False,
    ) -> AttentionCall | None:
        """Read the arguments of a layer; None for what the kernels do not serve."""
        if not fits(q[0], k[0], q[-1], k[-1], v):
            return None
        device = rt.device
        B, H, T, d = q[0].shape
        K, S, e = v.shape[1:]
        maps, number = len(q), NUMBERS.get(q[0].dtype.name)
        if number is None or any(x.dtype != q[0].dtype for x in (*q, *k, v)):
            return None
        if (causal and S < T) or B * K > MAX_GRID or (mask is not None and mask.dtype.name != "bool"):
            return None
        if not masks_fit((mask, bias), maps, (B, H, T, S)):
            return None
        xp = namespace(*q, *k, v)
        if maps == 2:
            if lambda_ is None:
                return None
            lambda_ = xp.asarray(lambda_, dtype=xp.float32)
            if not broadcasts_to(lambda_, (B, H, T, 1)):
                return None
            lambda_ = lambda_[(None,) * (4 - lambda_.ndim)]
        tiles = attention_tiles(d, e, maps, H // K * T, device.shared, backward=backward)
        if tiles is None:
            return None
        if bias is not None:
            bias = xp.astype(bias, xp.float32, copy=False)
        masks, biases = split_by_map(mask, H), split_by_map(bias, H)
        q, k, (v,) = rows_lie_whole(*q), rows_lie_whole(*k), rows_lie_whole(v)
        length = 0 if backward or rt.length is None else device.address(rt.length)
        axes = (axes_of(x).item() for x in (q[0], k[0], v, lambda_, masks[0], biases[0]))
        shape = np.array((length, *axes, H, K, T, S, causal, 1, S, 1 / math.sqrt(d)), SHAPE)
        return cls(
            rt,
            {"NUMBER": number, "MAPS": maps, "D": d, "E": e, "ROWS": tiles.rows, "KEYS": tiles.keys},
            (*(x[m] if m < maps else None for m in range(2) for x in (q, k)), v, lambda_),
            (*masks, *biases),
            shape,
            tiles,
            -(-(H // K * T) // tiles.rows),
            (B, H, K, T, S, d, e),
            device.tensor_cores((None if backward else rt.rounded) if number == "float" else number),
        )

    def forward(self) -> Array:
        """Compute (B, T, H, e)."""
        B, H, K, T, S, d, e = self.sizes
        splits, each = key_splits(self.rt.tuning, self.rows * B * K, S, self.tiles.keys, self.rt.device.multiprocessors)
        out = self.rt.device.empty((B, T, H, e), self.operands[0].dtype)  # type: ignore[union-attr]
        mma = mma_tiles(d, e, self.defines["MAPS"], H // K * T, self.rt.device.shared) if self.tile else None
        if mma is not None and worth_tensor_cores(self.rt.tuning, mma, splits):
            defines = {**self.defines, "TILE": self.tile, "ROWS": mma.rows, "KEYS": mma.keys}
            grid = (-(-(H // K * T) // mma.rows), -(-e // mma_columns(e)), B * K)
            arguments: tuple[Any, ...] = (*self.operands, *self.masks, out, self.shape)
            self.rt.device.launch(
                "attention_mma.cu", "attention_mma", defines, grid, 2 * mma.rows, arguments, mma.shared
            )
            return out
        if splits == 1:
            self._attention((self.rows, 1, B * K), out, None, self.shape)
            return out
        shape = self.shape.copy()
        shape["splits"], shape["keys_of_a_split"] = splits, each
        partial = self._partial(splits)
        self._attention((self.rows, splits, B * K), out, partial, shape)
        arguments = (partial, self.operands[5], out, shape)
        self.rt.device.launch("attention.cu", "combine", self.defines, (B * H * T, 1, 1), 128, arguments)
        return out

    def backward(self, g: Array) -> tuple[Array | None, ...]:
        """Compute ∂L/∂q and ∂L/∂k of both maps, ∂L/∂v, and ∂L/∂λ of each row (B, H, T, 1), from g (B, H, T, e).

        What belongs to a second map is None where there is one.
        """
        B, H, K, T, S, d, e = self.sizes
        maps, launch = self.defines["MAPS"], self.rt.device.launch
        (g,) = rows_lie_whole(g)
        axes, dtype = axes_of(g), g.dtype
        partial = self._partial(1)
        self._attention((self.rows, 1, B * K), None, partial, self.shape)
        sums = self.rt.device.empty((B * H * T, maps, 3), np.float32)
        dlambda = self.rt.device.empty((B, H, T, 1), np.float32) if maps == 2 else None
        launch(
            "attention_vjp.cu", "row_sums", self.defines, (B * H * T, 1, 1), 32,
            (partial, g, sums, dlambda, axes, self.shape),
        )  # fmt: skip
        arguments = (g, *self.operands, *self.masks, sums)
        dq, dk = (
            [self.rt.device.empty(shape, dtype) if m < maps else None for m in range(2)]
            for shape in ((B, H, T, d), (B, K, S, d))
        )
        dv = self.rt.device.empty((B, K, S, e), dtype)
        bytes_ = self.tiles.shared
        launch(
            "attention_vjp.cu", "to_queries", self.defines, (self.rows, 1, B * K), 256,
            (*arguments, *dq, axes, self.shape), bytes_,
        )  # fmt: skip
        launch(
            "attention_vjp.cu", "to_keys", self.defines, (-(-S // self.tiles.keys), 1, B * K), 256,
            (*arguments, *dk, dv, axes, self.shape), bytes_,
        )  # fmt: skip
        return *dq, *dk, dv, dlambda

    def _partial(self, splits: int) -> Array:
        B, H, _, T, _, _, e = self.sizes
        return self.rt.device.empty((splits, B * H * T, self.defines["MAPS"], e + 2), np.float32)

    def _attention(self, grid: tuple[int, int, int], out: Array | None, partial: Array | None, shape: Any) -> None:
        arguments = (*self.operands, *self.masks, out, partial, shape)
        self.rt.device.launch("attention.cu", "attention", self.defines, grid, 256, arguments, self.tiles.shared)


def diff_attention(
    rt: Runtime,
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
    call = AttentionCall.create(rt, (q1, q2), (k1, k2), v, lambda_, mask, bias, causal)
    return NotImplemented if call is None else namespace(q1).permute_dims(call.forward(), (0, 2, 1, 3))


def diff_attention_vjp(
    rt: Runtime,
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
    """Compute the weights again tile by tile, from the largest score and the sum of each row."""
    call = AttentionCall.create(rt, (q1, q2), (k1, k2), v, lambda_, mask, bias, causal, backward=True)
    if call is None or tuple(g.shape) != (*q1.shape[:3], v.shape[3]) or g.dtype != q1.dtype:
        return NotImplemented
    dq1, dq2, dk1, dk2, dv, dlambda = call.backward(g)
    xp = namespace(g)
    lambda_ = xp.asarray(lambda_)
    return dq1, dk1, dq2, dk2, dv, xp.astype(sum_to(dlambda, tuple(lambda_.shape)), lambda_.dtype)


def diff_heads_hf(
    rt: Runtime,
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
) -> Any:
    """Scale in the norm's own launch."""
    if any(x.ndim != 4 or x.shape[1] % 2 for x in (q, k)):
        return NotImplemented
    H, K = q.shape[1] // 2, k.shape[1] // 2
    halves = q[:, :H, ...], k[:, :K, ...], q[:, H:, ...], k[:, K:, ...]
    heads = diff_attention(rt, *halves, v, lambda_, mask, bias, causal=causal)
    if heads is NotImplemented:
        return NotImplemented
    normed = scaled_norm(rt, heads, None, eps, 1 - lambda_init)
    return normed if normed is NotImplemented else concat_heads(normed)


def plain_heads(
    rt: Runtime, q: Array, k: Array, v: Array, mask: Array | None = None, bias: Array | None = None, *,
    causal: bool = True,
) -> Any:  # fmt: skip
    """Sum up one softmax map as `diff_attention` does two."""
    call = AttentionCall.create(rt, (q,), (k,), v, None, mask, bias, causal)
    return NotImplemented if call is None else namespace(q).reshape(call.forward(), (q.shape[0], q.shape[2], -1))


def plain_heads_vjp(
    rt: Runtime, g: Array, q: Array, k: Array, v: Array, mask: Array | None = None, bias: Array | None = None, *,
    causal: bool = True,
) -> Any:  # fmt: skip
    """Compute the weights again, as `diff_attention_vjp` does."""
    call = AttentionCall.create(rt, (q,), (k,), v, None, mask, bias, causal, backward=True)
    if call is None or g.dtype != q.dtype:
        return NotImplemented
    (B, H, T, _), e = q.shape, v.shape[3]
    if tuple(g.shape) != (B, T, H * e):
        return NotImplemented
    xp = namespace(g, q)
    dq, _, dk, _, dv, _ = call.backward(xp.permute_dims(xp.reshape(g, (B, T, H, e)), (0, 2, 1, 3)))
    return dq, dk, dv
