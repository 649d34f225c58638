"""The structure of a case without its numbers: lengths, padding, masks, packing, pages; and memory layouts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.inputs.validation import axis_lengths
from refdiff.oracle.spec import Spec


@dataclass(frozen=True)
class Structure:
    """The lengths, masks and layout of a case.

    batch, queries, keys: B, T and S of a dense case.
    hidden: D, for inputs of the whole layer; 0 stands for H d, as in models.
    padding: the side of the keys that is padded, with another length in each sequence.
    unseen: what masks every key of the last sequence, so that all its rows attend to nothing: padding, a mask, or a
        bias of −∞.
    window: a mask by which a query attends to this many keys at most, the last of them its own (dense only).
    bias: whether the scores have a bias for each head (dense only).
    hole: positions are given, and this many are skipped before key 64 (dense only).
    packed: (queries, keys) of each sequence, one after another; B is then 1, and T and S are the sums.
    pages: (queries, keys) of each sequence, the keys in shuffled pages of `page` keys, two of them unused. Sequences
        with different numbers of queries are packed.
    """

    batch: int = 2
    queries: int = 5
    keys: int = 7
    hidden: int | None = None
    padding: str = "none"
    unseen: str = "none"
    window: int | None = None
    bias: bool = False
    hole: int = 0
    packed: tuple[tuple[int, int], ...] | None = None
    pages: tuple[tuple[int, int], ...] | None = None
    page: int = 4

    @property
    def sequences(self) -> tuple[tuple[int, int], ...] | None:
        """(queries, keys) of each packed or paged sequence; None for a dense case."""
        return self.packed if self.pages is None else self.pages

    @property
    def sizes(self) -> str:
        """Batch, queries and keys in a case's name: "2x9x14", for a layer "layer-2x9x14".

        Packed or paged sequences have their number and the most queries and keys of one: "packed-5x5x7".
        """
        kinds = {"layer": self.hidden, "packed": self.packed, "paged": self.pages}
        B, T, S = self.batch, self.queries, self.keys
        if self.sequences is not None:
            B = len(self.sequences)
            T, S = (max((pair[i] for pair in self.sequences), default=0) for i in (0, 1))
        return "-".join([*(kind for kind, of in kinds.items() if of is not None), f"{B}x{T}x{S}"])

    @property
    def is_ragged(self) -> bool:
        """Whether the queries are packed: B is 1."""
        return self.packed is not None or (self.pages is not None and len({q for q, _ in self.pages}) > 1)

    def lengths(self, spec: Spec) -> dict[str, int]:
        """The length of each axis, by its letter in `refdiff.oracle.inputs`."""
        B, T, S = self.batch, self.queries, self.keys
        if self.sequences is not None:
            of_q, of_k = [q for q, _ in self.sequences], [k for _, k in self.sequences]
            B, T, S = (1, sum(of_q), sum(of_k)) if self.is_ragged else (len(of_q), max(of_q, default=0), 0)
        if self.hidden is not None and self.packed is not None:
            S = T
        n = axis_lengths(spec)
        return {**n, "B": B, "T": T, "S": S, "R": max(S - T, 0), "D": self.hidden or n["Hd"]}

    def tables(self, rng: np.random.Generator) -> dict[str, Numpy]:
        """Draw the integer and boolean inputs: cu_seqlens, block tables and lengths, or the key mask."""
        if self.sequences is None:
            return self._padding(rng)
        of_q, of_k = ([q for q, _ in self.sequences], [k for _, k in self.sequences])
        found: dict[str, Numpy] = {}
        if self.is_ragged:
            found["cu_seqlens_q"] = np.cumsum([0, *of_q]).astype(np.int32)
        if self.packed is not None:
            return found if self.hidden is not None else found | {"cu_seqlens_k": np.cumsum([0, *of_k], dtype=np.int32)}
        return found | self._pages(rng, of_k)

    def masks(self, spec: Spec) -> dict[str, Numpy]:
        """The mask of `window`, the mask or bias of `unseen`, and the positions of `hole`."""
        found: dict[str, Numpy] = {}
        T, S = self.queries, self.keys
        if self.window is not None:
            t = np.arange(T)[:, None] + (0 if spec.causal == "top_left" else S - T)
            found["mask"] = (np.abs(np.arange(S)[None] - t) < self.window)[None, None]
        if self.unseen in ("mask", "bias"):
            see = np.ones((self.batch, 1, 1, S), dtype=np.bool_)
            see[-1:] = False
            found |= {"mask": see} if self.unseen == "mask" else {"bias": np.where(see, 0.0, -np.inf)}
        if self.hole and spec.rope != "none":
            s = np.arange(S, dtype=np.int32)[None]
            found["k_positions"] = s + np.int32(self.hole) * (s >= 64)
            found["q_positions"] = np.arange(S - T, S, dtype=np.int32)[None] + np.int32(self.hole)
        return found

    def _padding(self, rng: np.random.Generator) -> dict[str, Numpy]:
        if self.unseen == "padding":
            return {"key_mask": np.arange(self.batch)[:, None] < np.full((1, self.keys), self.batch - 1)}
        if self.padding == "none" or self.keys == 0:
            return {}
        count = rng.permutation(np.arange(self.batch) % max(1, self.keys - 1))
        s = np.arange(self.keys)[None]
        real = s >= count[:, None] if self.padding == "left" else s < self.keys - count[:, None]
        return {"key_mask": real}

    def _pages(self, rng: np.random.Generator, keys: list[int]) -> dict[str, Numpy]:
        counts = [-(-k // self.page) for k in keys]
        order = rng.permutation(sum(counts) + 2)  # two pages are unused
        table = np.full((len(keys), max(counts, default=0)), int(order[-1]), dtype=np.int32)
        taken = 0
        for row, count in zip(table, counts, strict=True):
            row[:count] = order[taken : taken + count]
            taken += count
        return {"block_table": table, "lengths": np.asarray(keys, dtype=np.int32)}


def relaid(inputs: Inputs, layout: str) -> Inputs:
    """Return inputs whose q, k, v, x or pages are views with other strides (`strided_view`), and the same numbers."""
    names = ("q", "k", "v", "k_pages", "v_pages", "x")
    return {name: strided_view(x, layout) if name in names else x for name, x in inputs.items()}


def strided_view(x: Numpy, layout: str) -> Numpy:
    """Return a view with the numbers of `x` and other strides.

    Equation:
        tokens before heads: (B, T, H, d) in memory. width first: the last axis has the largest stride. padded width:
        the stride of rows is larger than their length. contiguous: none of these.
    """
    if layout == "tokens before heads":
        return np.swapaxes(np.ascontiguousarray(np.swapaxes(x, 1, -2)), 1, -2)
    if layout == "width first":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0, -1)
    if layout == "padded width":
        wide = np.zeros((*x.shape[:-1], x.shape[-1] + 3), dtype=x.dtype)
        wide[..., : x.shape[-1]] = x
        return wide[..., : x.shape[-1]]
    return np.ascontiguousarray(x)
