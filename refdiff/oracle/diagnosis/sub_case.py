"""A small part of a large case, on which most deviations act as they do on the whole: its first or its last tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from refdiff.oracle.deviations.deviation import Deviation
from refdiff.oracle.deviations.listed import kind_of
from refdiff.oracle.diagnosis.variants import Target
from refdiff.oracle.sequences import Inputs
from refdiff.oracle.spec import Spec

LARGE = 600_000
"""Multiplications from which a case is reduced: singles, and the pairs that come near, are a hundred of them."""
TINY = 60_000
"""Of what all pairs are tried on first, a few thousand."""
FEWEST = 4
OF_KEYS = ("mask", "mask off by one", "window", "bias")
"""Axes of deviations that depend on which keys there are: they see those that come after, or not those long before."""
OF_QUERIES = ("mask align", "cache", "concat", "rope offset")
"""Axes of those that depend on how many queries there are."""


@dataclass(frozen=True)
class SubCase:
    """The target of a part, and which rows of the whole it is: sequence 0, queries `rows`."""

    target: Target
    rows: slice


def acts_alike(deviation: Deviation) -> bool:
    """Whether a deviation gives in a part what it gives in those rows of the whole."""
    return deviation.axis not in (*OF_KEYS, *OF_QUERIES)


def cost(spec: Spec, inputs: Inputs) -> int:
    """About how many multiplications the two maps take."""
    B, _, T, _ = inputs["q"].shape
    return int(2 * B * spec.heads * T * inputs["k"].shape[2] * (spec.head_dim + spec.out_dim))


def reduced(spec: Spec, target: Target, most: int | None = None, *, all_keys: bool = False) -> SubCase | None:
    """Return a part of a dense core of about `most` multiplications; None where it has no more, or is of another kind.

    Causal and with as many queries as keys it is the first tokens, which see nothing that comes after them; else, or
    with `all_keys`, the last queries with all keys.
    """
    inputs, most = target.inputs, LARGE if most is None else most
    if kind_of(inputs) != "dense" or 0 in target.actual.shape or cost(spec, inputs) <= most:
        return None
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    first = T == S and spec.causal != "none" and not all_keys
    if spec.causal == "top_left" and not first:
        return None  # which keys the last queries see depends on how many come before
    by_row = cost(spec, inputs) // (inputs["q"].shape[0] * T)
    n = int(np.sqrt(most * S / by_row)) if first else most // by_row
    n = min(T, max(n, FEWEST))
    rows = slice(0, n) if first else slice(T - n, T)
    part = _part(inputs, rows, slice(0, n) if first else slice(None), (T, S))
    at = (slice(0, 1), slice(None), rows)
    return SubCase(Target(part, target.actual[at], target.expected[at], target.rows[at], target.recipe), rows)


@dataclass(frozen=True)
class Parts:
    """Targets whole, and the parts of them on which deviations are tried."""

    whole: tuple[Target, ...]
    small: tuple[Target, ...]
    tiny: tuple[Target, ...]
    last: tuple[Target, ...]
    cost: int

    @staticmethod
    def of(spec: Spec, targets: tuple[Target, ...]) -> Parts:
        """Reduce each target, where it is large."""

        def parts(most: int, **how: bool) -> tuple[Target, ...]:
            found = [reduced(spec, t, most, **how) for t in targets]
            if not any(found):
                return targets  # itself, so that nothing is judged twice
            return tuple(t if f is None else f.target for t, f in zip(targets, found, strict=True))

        total = sum(cost(spec, t.inputs) if "q" in t.inputs and "k" in t.inputs else 0 for t in targets)
        return Parts(targets, parts(LARGE), parts(TINY), parts(LARGE, all_keys=True), total)

    def which(self, some: Iterable[Deviation]) -> tuple[Target, ...]:
        """The smallest part, but for `tiny`, on which these deviations together act as on the whole."""
        axes = {d.axis for d in some}
        if axes & set(OF_QUERIES):
            return self.whole
        return self.last if axes & set(OF_KEYS) else self.small


def _part(inputs: Inputs, rows: slice, keys: slice, lengths: tuple[int, int]) -> Inputs:
    """Sequence 0, some queries and some keys of every input."""
    along: dict[str, tuple[slice | int, ...]] = {
        "q": (slice(0, 1), slice(None), rows),
        "k": (slice(0, 1), slice(None), keys),
        "v": (slice(0, 1), slice(None), keys),
        "q_positions": (slice(0, 1), rows),
        "k_positions": (slice(0, 1), keys),
        "key_mask": (slice(0, 1), keys),
        "lambda_logits": (slice(0, 1), rows),
    }
    part = {name: x[along[name]] if name in along else x for name, x in inputs.items()}
    if "lambda_full" in part and part["lambda_full"].ndim == 3:
        part["lambda_full"] = part["lambda_full"][0:1, :, rows]
    for name in ("mask", "bias"):
        if name in part:
            x = part[name][(None,) * (4 - part[name].ndim)][0:1]
            x = x[:, :, rows] if x.shape[2] == lengths[0] else x
            part[name] = x[..., keys] if x.shape[3] == lengths[1] else x
    return part
