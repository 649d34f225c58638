"""The same numbers, laid out in memory as a kernel may find them: strides that are not those of a fresh array."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.oracle.inputs.sequences import Inputs

Numpy = np.ndarray[Any, Any]
LAYOUTS = ("contiguous", "tokens before heads", "width first", "padded width", "offset", "backwards", "one for all")


def relaid(inputs: Inputs, layout: str) -> Inputs:
    """Return inputs whose q, k, v (or pages) are views with other strides; `one for all` needs equal sequences.

    Equation:
        tokens before heads: (B, T, H, d) in memory. width first: the last axis has the largest stride. padded width:
        rows lie further apart than they are long. offset: memory does not start at the array. backwards: tokens with a
        negative stride. one for all: a stride of 0 over B, where every sequence has the keys of the first.

    Shapes:
        as they were; the numbers too, but for "one for all"

    Raises:
        ValueError: no layout has that name.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"no layout is called {layout!r}: there are {', '.join(map(repr, LAYOUTS))}")
    names = ("q", "k", "v", "k_pages", "v_pages", "x")
    made = dict(inputs)
    for name in names:
        if name in made and (layout != "one for all" or name in ("k", "v")):
            made[name] = view(made[name], layout)
    return made


def view(x: Numpy, layout: str) -> Numpy:
    """Return a view with the numbers of an array and the strides of a layout, as `relaid` does for each input."""
    if layout == "tokens before heads":
        return np.swapaxes(np.ascontiguousarray(np.swapaxes(x, 1, -2)), 1, -2)
    if layout == "width first":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0, -1)
    if layout == "padded width":
        wide = np.zeros((*x.shape[:-1], x.shape[-1] + 3), dtype=x.dtype)
        wide[..., : x.shape[-1]] = x
        return wide[..., : x.shape[-1]]
    if layout == "offset":
        flat = np.zeros(x.size + 1, dtype=x.dtype)
        flat[1:] = x.ravel()
        return flat[1:].reshape(x.shape)
    if layout == "backwards":
        return np.ascontiguousarray(x[..., ::-1, :])[..., ::-1, :]
    if layout == "one for all" and x.shape[0]:
        return np.broadcast_to(x[:1], x.shape)
    return np.ascontiguousarray(x)
