"""Describe a boolean mask of rows in words, as a box of sequences, heads and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refdiff.oracle.thresholds import THRESHOLDS

Numpy = np.ndarray[Any, Any]
Box = tuple[Numpy, ...]
"""The indices of a box along each axis."""
AXIS_NAMES = {"b": "sequence", "page": "page", "slot": "slot", "t": "token", "s": "key", "row": "row"}
AXIS_NAMES |= dict.fromkeys("hHKV", "head")
"""The singular word for an axis, by the letter of the axis."""


def find_box(mask: Numpy, counted: Numpy) -> Box | None:
    """Return the smallest box around `mask` if `Thresholds.filled_share` of its `counted` elements are marked.

    Shapes:
        mask and counted: the same, boolean, any number of axes
    """
    if not mask.any():
        return None
    box = tuple(np.flatnonzero(mask.any(axis=tuple(m for m in range(mask.ndim) if m != n))) for n in range(mask.ndim))
    return box if mask.sum() >= THRESHOLDS.filled_share * counted[np.ix_(*box)].sum() else None


def split_box(box: Box, counted: Numpy, axes: Sequence[str]) -> dict[str, tuple[Numpy, Numpy]]:
    """Return the indices of a box and all counted ones, for each axis of which it does not cover all."""
    part = {}
    for n, axis in enumerate(axes):
        at = tuple(np.arange(counted.shape[m]) if m == n else some for m, some in enumerate(box))
        whole = np.flatnonzero(counted[np.ix_(*at)].any(axis=tuple(m for m in range(len(box)) if m != n)))
        if len(box[n]) < len(whole):
            part[axis] = (box[n], whole)
    return part


def format_rows(mask: Numpy, counted: Numpy, axes: Sequence[str]) -> str:
    """Format rows: "tokens 32 to 63 of head 3", "" if they are all, else how many they are and the first of them."""
    box = find_box(mask, counted)
    part = {} if box is None else split_box(box, counted, axes)
    words = [format_indices(AXIS_NAMES[axis], *some) for axis, some in part.items()]
    if box is not None and None not in words:
        return " of ".join(str(word) for word in reversed(words))
    first = [f"{AXIS_NAMES[axis]} {i}" for axis, i in zip(axes, np.argwhere(mask)[0], strict=True)]
    return f"{mask.sum()} of {counted.sum()} rows, the first {' of '.join(reversed(first))}"


def format_indices(name: str, found: Numpy, of: Numpy) -> str | None:
    """Format the indices `found` of the indices `of`: "" if they are all, None if they have no pattern."""
    if len(found) >= len(of):
        return ""
    if len(found) == 1:
        return f"{name} {found[0]}"
    if found[-1] - found[0] + 1 == len(found):
        return f"{name}s {_format_range(found)}"
    if (period := find_period(found, of)) is not None:
        m, low, high = period
        rest = f"= {low}" if low == high else f"from {low} to {high}"
        return f"{name}s i with i mod {m} {rest}"
    if len(found) <= THRESHOLDS.max_listed:
        return f"{name}s {_join(found)}"
    steps = np.diff(found)
    some = np.split(found, np.flatnonzero(steps > 1) + 1)
    by_chance = len(some) > THRESHOLDS.max_runs or np.min(steps[steps > 1]) < THRESHOLDS.min_block
    if by_chance and len(found) >= THRESHOLDS.filled_share * (found[-1] - found[0] + 1):
        return f"most {name}s from {found[0]} to {found[-1]}"
    return f"{name}s {_join([_format_range(x) for x in some])}" if len(some) <= THRESHOLDS.max_runs else None


def _format_range(found: Numpy) -> str:
    """Format consecutive indices: "3", "3 and 4", "3 to 5"."""
    return f"{found[0]} to {found[-1]}" if len(found) > 2 else _join(found)


def _join(some: Sequence[object] | Numpy) -> str:
    *first, last = map(str, some)
    return f"{', '.join(first)} and {last}" if first else last


def find_period(found: Numpy, of: Numpy) -> tuple[int, int, int] | None:
    """Return (m, low, high) with the smallest m such that `found` are the i in `of` with low ≤ i mod m ≤ high.

    None if there is no such m, or it is less than `Thresholds.min_block`. The pattern must occur three times, or twice
    if m is a power of two: any two indices are periodic for some m.
    """
    if len(found) < 2:
        return None
    for m in range(2, int(of[-1]) // 2 + 2):
        rest = np.unique(found % m)
        low, high = int(rest[0]), int(rest[-1])
        if high - low + 1 != len(rest) or len(rest) == m:
            continue
        times = len(np.unique(found // m))
        known = times >= 3 or (times == 2 and m >= THRESHOLDS.min_block and m & (m - 1) == 0)
        if known and np.array_equal(found, of[np.isin(of % m, rest)]):
            return (m, low, high) if m >= THRESHOLDS.min_block else None
    return None
