"""What chapter 03 measures of each row's favorite, the token to which the leading map gives most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import sketches

from refdiff import oracle


def parts(row: Any, values: Any) -> Any:
    """Return which part of the output, the weighted sum of the values, each token makes up; the parts sum to 1."""
    out = row @ values
    return row * (out @ values.swapaxes(-1, -2)) / (out * out).sum(axis=-1, keepdims=True)


def measure(model: Any, maps: Iterable[Any], tales: Sequence[Sequence[int]]) -> tuple[Any, Any, Any, Any]:
    """Measure rows of all maps of all tales.

    Returns:
        by layer, the favorite's part of the output before and after the subtraction, and in which share of the rows it
        grows, (3, layers); the cosines of the sums of the leading map's noise, the other map's, and the average value,
        (3, layers); the length of the average value in typical lengths of a value, (layers,); and how far the other
        tokens' sum reaches along the average value, in its lengths, before and after the subtraction, (2, layers).
    """
    table, likeness, common, reach = [], [], [], []
    for m, tale in zip(maps, tales, strict=True):
        trace = oracle.trace(model, np.array([tale[:256]]))
        layers = range(len(m.lambdas))
        values = np.array([trace[f"model.layers.{layer}.self_attn.values"][0] for layer in layers])
        leading, other, strength = sketches.leading_maps(m)  # swapped where λ > 1
        top = leading.argmax(axis=-1)[..., None]
        before, after = (
            np.take_along_axis(parts(row, values), top, -1) for row in (leading, leading - strength * other)
        )
        table.append([x.mean(axis=(1, 2, 3)) for x in (before, after, after > before)])
        visible = np.tri(values.shape[2])[-leading.shape[2] :]
        average = visible / visible.sum(axis=-1, keepdims=True) @ values  # of all so far
        without = np.arange(leading.shape[-1]) != top
        one, two = ((row * without) @ values for row in (leading, other))
        sums = (one, two), (one, average), (two, average)
        likeness.append([_cosine(*x).mean(axis=(1, 2)) for x in sums])
        reach.append([_along(x, average).mean(axis=(1, 2)) for x in (one, one - strength * two)])
        typical = np.sqrt((values**2).sum(axis=-1).mean(axis=-1))
        common.append((np.linalg.norm(values.mean(axis=2), axis=-1) / typical).mean(axis=-1))
    return tuple(np.mean(x, axis=0) for x in (table, likeness, common, reach))


def _along(a: Any, b: Any) -> Any:
    return (a * b).sum(axis=-1) / (b * b).sum(axis=-1)


def _cosine(a: Any, b: Any) -> Any:
    return (a * b).sum(axis=-1) / np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
