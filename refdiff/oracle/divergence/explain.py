"""Explain a wrong array: it may be the expected one scaled, with heads reordered, or transposed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.oracle.divergence.expected import Expected, Floats
from refdiff.oracle.divergence.layouts import arrangements, axes_of
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.trace.known_points import split_repeated

Points = Mapping[str, Expected]
Arrays = Mapping[str, NDArray[Any]]


def explanation(path: str, mine: Floats, expected: Points, reference: Arrays) -> str:
    """Say up to what `mine` is equal to the expected value, or return "".

    Tried in this order: a factor, another order of heads, also across the two maps, and another order of axes.
    """
    said = _factor(mine, expected[path]) or _heads(path, mine, expected, reference)
    said = said or _axes(path, mine, expected, reference)
    return said and f"equal up to {said}"


def _factor(mine: Floats, point: Expected) -> str:
    counted = np.isfinite(mine) & np.isfinite(point.value)
    counted = counted if point.hidden is None else counted & ~point.hidden
    x, y = mine[counted], point.value[counted]
    square = float(y @ y)
    if y.size < 2 or square == 0 or not (x @ x) > 0:
        return ""
    factor = float(x @ y) / square
    scaled = replace(point, value=factor * point.value, rows=abs(factor) * point.rows).compare(mine)
    # a fitted factor always helps a little
    helps = scaled.ok and THRESHOLDS.better_ratio * scaled.ratio <= point.compare(mine).ratio
    return f"the factor {factor:.5g}" if helps else ""


def _heads(path: str, mine: Floats, expected: Points, reference: Arrays) -> str:
    """Take each head for the expected head that is nearest to it, and compare the whole."""
    stem, repetition = split_repeated(path)
    maps = [f"{stem[:-1]}{i}{repetition}" for i in "12"] if re.search(r"(scores|lse|probs|attn)[12]$", stem) else []
    names = maps if maps and reference.keys() >= set(maps) else [path]
    point = expected[path]
    own = _split_heads(path, mine, reference)
    if own is None or len(own) < 2:
        return ""
    pool = np.concatenate([_split_heads(name, expected[name].value, reference) for name in names])
    with np.errstate(invalid="ignore"):
        order = [int(np.argmin([np.nansum((head - other) ** 2) for other in pool])) for head in own]
    taken = replace(point, value=pool[order], rows=np.max(point.rows), doubtful=False, hidden=None)
    if point.hidden is not None:
        hidden = _split_heads(path, point.hidden, reference)
        taken.value, own = (np.where(hidden, 0.0, x) for x in (taken.value, own))
    first = names.index(path) * len(own)
    if not taken.compare(own).ok or order == list(range(first, first + len(own))):
        return ""
    if len(names) == 2 and order == list(range(len(own) - first, 2 * len(own) - first)):
        return f"a swap of the maps: it is {names[1 - names.index(path)].rpartition('.')[2]}"
    return f"{'an order of' if len(set(order)) == len(order) else 'repeated'} heads: {tuple(order)}"


def _split_heads(path: str, array: Any, reference: Arrays) -> Any:
    """Return an array with all heads on its first axis; None if the point has no heads."""
    axes = axes_of(path, reference)
    # the halves of a joined value are heads too, in the original order (half, head)
    front = sorted((i for i, n in enumerate(axes.names) if n in "HKp"), key=lambda i: axes.names[i] != "p")
    if not front:
        return None
    heads = array.reshape(axes.sizes).transpose(front + [i for i in range(len(axes.names)) if i not in front])
    return heads.reshape(-1, *heads.shape[len(front) :])


def _axes(path: str, mine: Floats, expected: Points, reference: Arrays) -> str:
    axes = axes_of(path, reference)
    plain = "".join(n for n, size in zip(axes.names, axes.sizes, strict=True) if size != 1)
    for array, order in arrangements(mine.reshape(-1), axes):
        if order != plain and array.shape == mine.shape and expected[path].compare(array).ok:
            return f"a transpose: its numbers lie as ({', '.join(order)}), not ({', '.join(plain)})"
    return ""
