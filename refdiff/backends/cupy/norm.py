"""RMSNorm and its backward pass, λ, and embeddings on the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.arrays import Array, namespace
from refdiff.backends.cupy.device import NUMBERS, SIXTEEN_BITS, Runtime, contiguous
from refdiff.backends.cupy.geometry import row_shares, row_threads


def embedding(rt: Runtime, ids: Array, weight: Array) -> Any:
    """Look up without waiting for the device: whether the ids are known was checked where they came from."""
    if weight.ndim != 2 or ids.size == 0:
        return NotImplemented
    xp = namespace(ids, weight)
    rows = xp.take(weight, xp.reshape(ids, (-1,)), axis=0)
    if weight.dtype.name in SIXTEEN_BITS:
        rows = xp.astype(rows, xp.float32)
    return xp.reshape(rows, (*ids.shape, weight.shape[1]))


def rms_norm(rt: Runtime, x: Array, weight: Array | None, eps: float) -> Any:
    """Read each row once, in any memory order of the rows."""
    return scaled_norm(rt, x, weight, eps, 1.0)


def scaled_norm(rt: Runtime, x: Array, weight: Array | None, eps: float, factor: float) -> Any:
    """Norm, and multiply by a factor."""
    if not _serves(x, weight, eps):
        return NotImplemented
    xp = namespace(x, weight)
    order = sorted(range(x.ndim - 1), key=lambda axis: -x.strides[axis])
    ordered = contiguous(xp.permute_dims(x, (*order, x.ndim - 1)))
    y = rt.device.empty(ordered.shape, x.dtype)
    size, threads = x.shape[-1], row_threads(x.shape[-1])
    rt.device.launch(
        "rms_norm.cu", "rms_norm", _defines(x, weight), (x.size // size, 1, 1), threads,
        (ordered, weight, y, np.int32(size), np.float32(eps), np.float32(factor)), 4 * 32,
    )  # fmt: skip
    return xp.permute_dims(y, (*(order.index(axis) for axis in range(x.ndim - 1)), x.ndim - 1))


def rms_norm_vjp(rt: Runtime, g: Array, x: Array, weight: Array | None, eps: float) -> Any:
    """Sum up each row once for ∂L/∂x, and each column in a few shares of the rows for ∂L/∂w."""
    if not _serves(x, weight, eps) or g.dtype != x.dtype or g.shape != x.shape:
        return NotImplemented
    xp = namespace(g, x, weight)
    g, x = contiguous(g), contiguous(x)
    size, threads = x.shape[-1], row_threads(x.shape[-1])
    rows = x.size // size
    dx, roots = rt.device.empty(x.shape, x.dtype), rt.device.empty((rows,), np.float32)
    rt.device.launch(
        "rms_norm_vjp.cu", "to_rows", _defines(x, weight), (rows, 1, 1), threads,
        (g, x, weight, dx, roots, np.int32(size), np.float32(eps)), 8 * threads // 32,
    )  # fmt: skip
    if weight is None:
        return dx, None
    shares = row_shares(rows)
    partial = rt.device.empty((shares, size), np.float32)
    rt.device.launch(
        "rms_norm_vjp.cu", "to_weight", _defines(x, weight), (-(-size // 32), shares, 1), 256,
        (g, x, roots, partial, np.int32(rows), np.int32(size)), 4 * 256,
    )  # fmt: skip
    return dx, xp.astype(xp.sum(partial, axis=0), weight.dtype)


def diff_lambda(
    rt: Runtime, lambda_q1: Array, lambda_k1: Array, lambda_q2: Array, lambda_k2: Array, lambda_init: float
) -> Any:
    """Compute λ in one launch; every token needs it in every layer."""
    vectors = (lambda_q1, lambda_k1, lambda_q2, lambda_k2)
    fits = (x.dtype.name == "float32" and x.ndim == 1 and x.shape == lambda_q1.shape for x in vectors)
    if not all(fits) or not all(x.flags.c_contiguous for x in vectors):
        return NotImplemented
    where = (*map(rt.device.address, vectors), lambda_init)
    if rt.lambdas is not None and where in rt.lambdas:
        return rt.lambdas[where]
    lambda_ = rt.device.empty((), np.float32)
    rt.device.launch(
        "diff_lambda.cu", "diff_lambda", {}, (1, 1, 1), 32,
        (*vectors, lambda_, np.int32(lambda_q1.size), np.float32(lambda_init)),
    )  # fmt: skip
    if rt.lambdas is not None:
        rt.lambdas[where] = lambda_
    return lambda_


def _serves(x: Array, weight: Array | None, eps: float) -> bool:
    """Return whether there is a kernel for these types and shapes."""
    if x.dtype.name not in NUMBERS or not eps >= 0 or x.ndim < 1 or x.size == 0:
        return False
    if weight is None:
        return True
    return weight.dtype.name in NUMBERS and tuple(weight.shape) == x.shape[-1:] and bool(weight.flags.c_contiguous)


def _defines(x: Array, weight: Array | None) -> dict[str, str]:
    return {"NUMBER": NUMBERS[x.dtype.name], "WEIGHT": NUMBERS[(x if weight is None else weight).dtype.name]}
