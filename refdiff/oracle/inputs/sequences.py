"""Split packed and paged inputs into dense ones: one attention problem for each sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.oracle.inputs import AXES

Numpy = np.ndarray[Any, Any]
Inputs = dict[str, Numpy]
LAYOUT = ("cu_seqlens_q", "cu_seqlens_k", "k_pages", "v_pages", "block_table", "lengths")
"""Names of inputs that only packed and paged inputs have."""


@dataclass(frozen=True)
class Sequence:
    """The dense inputs of one sequence, or of a whole dense batch, and their place in the original inputs.

    batch, queries: its part of the output is `out[batch, :, queries]`.
    keys: its part of the axis S of dense or packed k; None for paged keys.
    number: its index in the tables of packed and paged inputs.
    """

    inputs: Inputs
    batch: slice
    queries: slice
    keys: slice | None
    number: int

    @property
    def index(self) -> tuple[slice, slice, slice]:
        """Its index into arrays (B, h, T, …)."""
        return self.batch, slice(None), self.queries

    @property
    def is_empty(self) -> bool:
        """Whether it has no query or no key."""
        return self.inputs["k"].shape[2] == 0 or 0 in self.inputs["q"].shape


def sequences(inputs: Inputs) -> Iterator[Sequence]:
    """Yield the sequences of core inputs; dense inputs are one problem, whatever B is."""
    if "cu_seqlens_q" not in inputs and "k_pages" not in inputs:
        yield Sequence(inputs, slice(None), slice(None), slice(None), 0)
        return
    starts = inputs.get("cu_seqlens_q")
    count = inputs["q"].shape[0] if starts is None else len(starts) - 1
    for n in range(count):
        batch = slice(n, n + 1) if starts is None else slice(0, 1)
        queries = slice(None) if starts is None else slice(int(starts[n]), int(starts[n + 1]))
        keys = None
        if "k_pages" not in inputs:
            key_starts = inputs.get("cu_seqlens_k", inputs["cu_seqlens_q"])
            keys = slice(int(key_starts[n]), int(key_starts[n + 1]))
        yield Sequence(_select_sequence(inputs, batch, queries, keys, n), batch, queries, keys, n)


def _select_sequence(inputs: Inputs, batch: slice, queries: slice, keys: slice | None, n: int) -> Inputs:
    part = {name: x for name, x in inputs.items() if name not in LAYOUT}
    if keys is None:
        keys = slice(0, int(inputs["lengths"][n]))
        for name, pages in (("k", "k_pages"), ("v", "v_pages")):
            part[name] = gather(inputs[pages], inputs["block_table"][n], keys.stop)
    return select(part, batch, queries, keys)


def select(inputs: Inputs, batch: slice, queries: slice | Numpy, keys: slice) -> Inputs:
    """Select batch items, queries and keys of dense core inputs."""
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    part = dict(inputs)
    for name in ("mask", "bias"):
        if name in part:
            x = _select_batch(part[name][(None,) * (4 - part[name].ndim)], batch)
            x = x[:, :, queries] if x.shape[2] == T else x
            part[name] = x[..., keys] if x.shape[3] == S else x
    for name, x in inputs.items():
        letters = AXES[name].split()
        if letters[0] == "B" and len(letters) == x.ndim:
            along = {"T": queries, "S": keys}
            part[name] = _select_batch(x, batch)[:, *(along.get(a, slice(None)) for a in letters[1:])]
    return part


def _select_batch(x: Numpy, batch: slice) -> Numpy:
    return x if x.shape[0] == 1 else x[batch]


def gather(pages: Numpy, table: Numpy, length: int) -> Numpy:
    """Return the first `length` keys of a sequence, (P, K, p, d) to (1, K, length, d); no other slot is read."""
    page, slot = slots(pages, table, length)
    return np.moveaxis(pages[page, :, slot], 0, 1)[None]


def scatter(into: Numpy, x: Numpy, table: Numpy, length: int) -> None:
    """Add `x`, (1, K, length, d), to the slots that `gather` reads; a page shared by two sequences gets both."""
    page, slot = slots(into, table, length)
    slots_first = np.moveaxis(into, 1, 2)
    np.add.at(slots_first, (page, slot), np.moveaxis(x[0], 1, 0))


def slots(pages: Numpy, table: Numpy, length: int) -> tuple[Numpy, Numpy]:
    """Return the page of each of the first `length` keys, and its index in the page."""
    s = np.arange(length)
    return table[s // pages.shape[2]], s % pages.shape[2]
