"""The embedding table: rows gathered, and their gradients added up by id."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.numpy.layout import FloatArray, same_dtype
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
