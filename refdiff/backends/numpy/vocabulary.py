"""The two ends of a model: embeddings, and the cross-entropy loss over blocks of tokens.

The loss makes no second array as large as the logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.numpy.layout import KERNEL_DTYPES, FloatArray, cut, same_dtype
from refdiff.backends.numpy.runtime import Runtime


def embedding(rt: Runtime, ids: NDArray[np.integer[Any]], weight: FloatArray) -> Any:
    """Write the rows feature-major, like the products of many tokens that are added to them."""
    if weight.ndim != 2 or ids.size < 2 or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= len(weight):
        return NotImplemented
    y = rt.empty((weight.shape[1], ids.size), weight.dtype)
    y[...] = weight[ids.reshape(-1)].T
    return y.T.reshape(*ids.shape, weight.shape[1])


def embedding_vjp(rt: Runtime, g: FloatArray, ids: NDArray[np.integer[Any]], weight: FloatArray) -> Any:
    """Sort the tokens by their ids, and sum each run."""
    flat = ids.reshape(-1)
    if weight.ndim != 2 or g.shape != (*ids.shape, weight.shape[1]) or flat.size == 0 or ids.dtype.kind not in "iu":
        return NotImplemented
    if not same_dtype(g, weight):
        return NotImplemented
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    if ordered[0] < 0 or ordered[-1] >= len(weight):
        return NotImplemented
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    rows, table = g.reshape(flat.size, -1), np.zeros(weight.shape, g.dtype)

    def part(start: int, stop: int) -> None:
        gathered = np.ascontiguousarray(rows[:, start:stop])[order]
        table[ordered[starts], start:stop] = np.add.reduceat(gathered, starts, axis=0)

    rt.workers.split(weight.shape[1], part, align=16)
    return None, table


def cross_entropy(rt: Runtime, logits: FloatArray, targets: NDArray[Any], *, ignore_index: int = -100) -> Any:
    """Compute the mean loss of the tokens that have a target."""
    flat = _columns_and_targets(logits, targets, ignore_index)
    if flat is None:
        return NotImplemented
    z, t, keep = flat
    losses = np.empty(len(t), logits.dtype)

    def block(at: slice) -> None:
        top, sums, _ = _exponentials(rt, z[:, at])
        picked = z[t[at], np.arange(at.start, at.stop)] - top
        np.subtract(np.log(sums), picked, out=losses[at])

    rt.workers.map(block, cut(len(t), rt.tuning.block_tokens))
    return losses[keep].sum() / logits.dtype.type(np.count_nonzero(keep))


def cross_entropy_vjp(
    rt: Runtime, g: FloatArray, logits: FloatArray, targets: NDArray[Any], *, ignore_index: int = -100
) -> Any:
    """Compute the gradient alone; see `cross_entropy_and_vjp`."""
    both = cross_entropy_and_vjp(rt, g, logits, targets, ignore_index=ignore_index)
    return both if both is NotImplemented else (both[1], None)


def cross_entropy_and_vjp(
    rt: Runtime, g: FloatArray, logits: FloatArray, targets: NDArray[Any], *, ignore_index: int = -100
) -> Any:
    """Compute the loss and its gradient from the same exponentials, which are most of the work of either."""
    flat = _columns_and_targets(logits, targets, ignore_index)
    if flat is None or np.ndim(g) or not same_dtype(g, logits):
        return NotImplemented
    z, t, keep = flat
    count = logits.dtype.type(np.count_nonzero(keep))
    share = keep.astype(logits.dtype) * (g / count)
    losses, dz = np.empty(len(t), logits.dtype), np.empty_like(z)

    def block(at: slice) -> None:
        out = dz[:, at]
        picked = t[at], np.arange(at.stop - at.start)
        top, sums, parts = _exponentials(rt, z[:, at], out)
        np.subtract(np.log(sums), z[:, at][picked] - top, out=losses[at])
        scale = share[at] / sums
        for part in parts:
            out[part] *= scale
        out[picked] -= share[at]

    rt.workers.map(block, cut(len(t), rt.tuning.block_tokens))
    return losses[keep].sum() / count, dz.T.reshape(logits.shape)


def _exponentials(
    rt: Runtime, z: FloatArray, out: FloatArray | None = None
) -> tuple[FloatArray, FloatArray, list[slice]]:
    """Return the maximum of each column, the sum of e^(z − maximum), which goes to `out`, and the parts it took."""
    top = z.max(axis=0)
    sums, parts = np.zeros_like(top), cut(len(z), max(rt.tuning.block_elements // len(top), 1))
    ones = np.ones(len(z), z.dtype)
    for part in parts:
        shifted = np.subtract(z[part], top, out=None if out is None else out[part])
        np.exp(shifted, out=shifted)
        sums += np.dot(ones[part], shifted)
    return top, sums, parts


def _columns_and_targets(
    logits: FloatArray, targets: NDArray[Any], ignore_index: int
) -> tuple[FloatArray, NDArray[Any], NDArray[np.bool_]] | None:
    """Return logits as columns, the target of each (0 where there is none), and which have one; None if none has."""
    V = logits.shape[-1]
    if logits.shape[:-1] != targets.shape or logits.size == 0 or logits.dtype not in KERNEL_DTYPES:
        return None
    t = targets.reshape(-1)
    keep = t != ignore_index
    t = np.where(keep, t, 0)
    if t.min() < 0 or t.max() >= V or not keep.any():
        return None
    return logits.reshape(-1, V).T, t, keep
