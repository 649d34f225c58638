"""Explain a wrong array: it may be the expected one with heads reordered, transposed, or scaled."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.oracle.divergence.expected import Expected, Floats
from refdiff.oracle.divergence.layouts import arrangements, axes_of
from refdiff.oracle.rounding import round_to
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.trace.known_points import split_repeated

Points = Mapping[str, Expected]
Arrays = Mapping[str, NDArray[Any]]


def explanation(path: str, mine: Floats, expected: Points, reference: Arrays) -> str:
    """Say up to what `mine` is equal to the expected value, or return "".

    Tried in this order: weights rounded to 16 bits, a factor, another order of heads, also across the two maps, and
    another order of axes.
    """
    for attempt in (_half_weights, _factor, _heads, _axes):
        if said := attempt(path, mine, expected, reference):
            return f"equal up to {said}"
    return ""


def _half_weights(path: str, mine: Floats, expected: Points, reference: Arrays) -> str:
    if path.rpartition(".")[2] == "embed_tokens":
        for kind in ("bfloat16", "float16"):
            if np.array_equal(mine, round_to(expected[path].value, kind)):
                return f"weights that are rounded to {kind}: record the reference with --dtype {kind}"
    return ""


def _factor(path: str, mine: Floats, expected: Points, reference: Arrays) -> str:
    point = expected[path]
    counted = np.isfinite(mine) & np.isfinite(point.value)
    counted = counted if point.hidden is None else counted & ~point.hidden
    x, y = mine[counted], point.value[counted]
    square = float(y @ y)
    if y.size < 2 or square == 0 or not (x @ x) > 0:
        return ""
    factor = float(x @ y) / square
    scaled = replace(point, value=factor * point.value, rows=abs(factor) * point.rows).compare(mine)
    # a fitted factor always helps a little
    if not scaled.ok or THRESHOLDS.better_ratio * scaled.ratio > point.compare(mine).ratio:
        return ""
    return f"the factor {factor:.5g}{_scale_cause(factor, path, reference)}"


def _scale_cause(factor: float, path: str, reference: Arrays) -> str:
    """Name the likely cause of a factor on scores."""
    q = reference.get(path.rpartition(".")[0] + ".q_rope", reference.get("q_rope"))
    if "scores" not in path:
        return ""
    known = {
        "√2: scaled by the root of half of d": math.sqrt(2), "1/√2: scaled by the root of 2d": 1 / math.sqrt(2),
        "log₂ e: for powers of two": 1 / math.log(2), "ln 2": math.log(2),
    }  # fmt: skip
    if q is not None:
        d = q.shape[-1]
        known = {f"√d, d = {d}: not scaled": math.sqrt(d), f"1/√d, d = {d}: scaled twice": 1 / math.sqrt(d), **known}
    near = THRESHOLDS.trace.known_factor
    return next((f" = {name}" for name, value in known.items() if abs(factor / value - 1) < near), "")


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
    if not taken.compare(own).ok:
        return ""
    first = names.index(path) * len(own)
    if len(names) == 2 and order == list(range(len(own) - first, 2 * len(own) - first)):
        return f"a swap of the maps: it is {names[1 - names.index(path)].rpartition('.')[2]}"
    if len(set(order)) < len(order):
        return f"repeated heads: {tuple(order)}"
    return "" if order == list(range(first, first + len(own))) else f"an order of heads: {tuple(order)}"


def _split_heads(path: str, array: Any, reference: Arrays) -> Any:
    """Return an array with all heads on its first axis; None if the point has no heads."""
    axes = axes_of(path, reference)
    names = axes.names
    if not set(names) & set("HKp"):
        return None
    # the halves of a joined value are heads too, in the original order (half, head)
    front = sorted((i for i, n in enumerate(names) if n in "HKp"), key=lambda i: names[i] != "p")
    rest = [i for i in range(len(names)) if i not in front]
    heads = array.reshape(axes.sizes).transpose(front + rest)
    return heads.reshape(-1, *heads.shape[len(front) :])


def _axes(path: str, mine: Floats, expected: Points, reference: Arrays) -> str:
    axes = axes_of(path, reference)
    plain = "".join(n for n, size in zip(axes.names, axes.sizes, strict=True) if size != 1)
    for array, order in arrangements(mine.reshape(-1), axes):
        if order != plain and array.shape == mine.shape and expected[path].compare(array).ok:
            return f"a transpose: its numbers lie as ({', '.join(order)}), not ({', '.join(plain)})"
    return ""
