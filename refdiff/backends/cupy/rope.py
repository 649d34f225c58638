"""RoPE on the device: the arguments of rope.cu for one array, and for all that a layer rotates and caches at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.arrays import Array, namespace
from refdiff.backends.cupy.device import NUMBERS, Runtime, contiguous

STEPS = np.dtype([(name, np.int64) for name in ("batch", "head", "row")])
"""`Steps` of rope.cu: distances in elements between neighbors along an axis."""

APPEND = np.dtype(
    [("length", np.int64)]
    + [(name, STEPS) for name in ("q", "k", "v", "keys", "values")]
    + [("angles_batch", np.int64)]
    + [(name, np.int32) for name in ("H", "K", "T", "d", "e", "turning", "interleaved", "start")]
)
"""`Append` of rope.cu."""


def rope(rt: Runtime, x: Array, cos: Array, sin: Array, *, interleaved: bool = False) -> Any:
    """Rotate all pairs of a row at once, into memory (B, T, H, d)."""
    if not _fits(x, cos, sin) or not _whole_rows(x):
        return NotImplemented
    (B, H, T, d), n = x.shape, cos.shape[-1]
    cos, sin = _angles(cos, sin)
    y = rt.device.empty((B, T, H, d), x.dtype)
    rt.device.launch(
        "rope.cu", "rope", {"NUMBER": NUMBERS[x.dtype.name]}, (T, H, B), _threads(d),
        (x, cos, sin, y, *(np.int64(step // x.itemsize) for step in x.strides[:3]),
         np.int64(0 if cos.shape[0] == 1 else T * n), *(np.int32(i) for i in (H, T, d, n, interleaved))),
    )  # fmt: skip
    return namespace(x).permute_dims(y, (0, 2, 1, 3))


def rope_append(
    rt: Runtime,
    cache: Any,
    layer: int,
    q: Array,
    k: Array,
    v: Array,
    cos: Array,
    sin: Array,
    *,
    interleaved: bool = False,
) -> Any:
    """Rotate new queries and keys, and append the keys and values to a layer of a cache, in one step.

    Shapes:
        q (B, H, T, d), k (B, K, T, d), v (B, Kv, T, e) -> q rotated, and all keys and values of the layer;
        NotImplemented, and the cache is as before, for other shapes and types
    """
    alike = q.ndim == k.ndim == v.ndim == 4 and q.dtype == k.dtype == v.dtype
    if not alike or not _fits(q, cos, sin) or not _fits(k, cos, sin) or v.shape[2] != k.shape[2] or v.size == 0:
        return NotImplemented
    (B, H, T, d), (K, Kv, e), n = q.shape, (k.shape[1], v.shape[1], v.shape[3]), cos.shape[-1]
    if k.shape[3] != d or v.shape[0] != B or H + K + Kv >= 2**16:
        return NotImplemented
    keys, values, start = cache.allocate(layer, k, v)
    q, k, v = (x if _whole_rows(x) else x.copy(order="C") for x in (q, k, v))
    cos, sin = _angles(cos, sin)
    length, each = 0 if rt.length is None else rt.device.address(rt.length), 0 if cos.shape[0] == 1 else T * n
    steps = (tuple(step // x.itemsize for step in x.strides[:3]) for x in (q, k, v, keys, values))
    told = np.array((length, *steps, each, H, K, T, d, e, n, interleaved, start), APPEND)
    y = rt.device.empty((B, T, H, d), q.dtype)
    rt.device.launch(
        "rope.cu", "rope_append", {"NUMBER": NUMBERS[q.dtype.name]}, (T, H + K + Kv, B), _threads(max(d, e)),
        (q, k, v, cos, sin, y, keys, values, told),
    )  # fmt: skip
    return namespace(q).permute_dims(y, (0, 2, 1, 3)), *cache.commit(layer, start + T)


def _fits(x: Array, cos: Array, sin: Array) -> bool:
    """Return whether the kernels take these shapes and types."""
    if x.ndim != 4 or cos.ndim != 4 or x.dtype.name not in NUMBERS or x.size == 0:
        return False
    (B, H, T, d), n = x.shape, cos.shape[-1]
    alike = tuple(cos.shape) in ((1, 1, T, n), (B, 1, T, n)) and cos.shape == sin.shape and 2 * n <= d
    return alike and max(H, B) < 2**16


def _angles(cos: Array, sin: Array) -> tuple[Array, Array]:
    """Return both in float32, without gaps."""
    xp = namespace(cos, sin)
    cos, sin = (contiguous(xp.astype(y, xp.float32, copy=False)) for y in (cos, sin))
    return cos, sin


def _whole_rows(x: Array) -> bool:
    """Return whether the last axis lies without gaps."""
    return bool(x.shape[-1] == 1 or x.strides[-1] == x.itemsize)


def _threads(size: int) -> int:
    """Return how many threads rotate a row."""
    return 32 if size <= 64 else 128
