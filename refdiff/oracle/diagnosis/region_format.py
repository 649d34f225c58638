"""Describe a boolean mask of rows in words, as a few boxes of sequences, heads and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from refdiff.oracle.thresholds import THRESHOLDS

Numpy = np.ndarray[Any, Any]
Box = tuple[Numpy, ...]
"""The indices of a box along each axis."""
AXIS_NAMES = {"b": "sequence", "page": "page", "slot": "slot", "t": "token", "s": "key", "row": "row"}
AXIS_NAMES |= dict.fromkeys("hHKV", "head")
"""The singular word for an axis, by the letter of the axis."""


def find_boxes(mask: Numpy, counted: Numpy) -> list[Box]:
    """Split `mask` into at most `Thresholds.max_boxes` boxes; return [] if it takes more.

    Only `counted` elements matter. One box is enough if `Thresholds.filled_share` of it is marked.

    Shapes:
        mask and counted: the same, boolean, any number of axes
    """
    if not mask.any():
        return []
    box = tuple(np.flatnonzero(mask.any(axis=_other_axes(mask, n))) for n in range(mask.ndim))
    if mask.sum() >= THRESHOLDS.filled_share * counted[np.ix_(*box)].sum():
        return [box]
    parts = _split_along_axes(mask, counted)
    return parts if len(parts) <= THRESHOLDS.max_boxes else []


def _other_axes(x: Numpy, n: int) -> tuple[int, ...]:
    return tuple(m for m in range(x.ndim) if m != n)


def _split_along_axes(mask: Numpy, counted: Numpy) -> list[Box]:
    """Group indices of the first axis with equal masks, and split each group recursively; empty boxes if too many."""
    if mask.ndim == 1:
        return [(np.flatnonzero(mask),)]
    groups: list[list[int]] = []
    for i in np.flatnonzero(mask.any(axis=_other_axes(mask, 0))):
        for group in groups:
            both = counted[i] & counted[group[0]]
            if np.array_equal(mask[i] & both, mask[group[0]] & both):
                group.append(int(i))
                break
        else:
            groups.append([int(i)])
        if len(groups) > THRESHOLDS.max_boxes:
            return [()] * (THRESHOLDS.max_boxes + 1)
    found: list[Box] = []
    for group in groups:
        rest = _split_along_axes(np.any(mask[group], axis=0), np.any(counted[group], axis=0))
        found += [(np.asarray(group), *box) for box in rest if box] or [()] * (THRESHOLDS.max_boxes + 1)
    return found


def counted_indices(box: Box, counted: Numpy, n: int) -> Numpy:
    """Return the indices of axis n that are counted within the box's other axes: lengths of sequences may differ."""
    at = tuple(np.arange(counted.shape[m]) if m == n else some for m, some in enumerate(box))
    return np.flatnonzero(counted[np.ix_(*at)].any(axis=_other_axes(counted, n)))


def format_box(box: Box, counted: Numpy, names: Sequence[str]) -> str | None:
    """Format a box: "tokens 32 to 63 of head 3", "" if it is everything, None if an axis has no pattern.

    Args:
        names: the names of the axes, in the singular.
    """
    words = [format_indices(name, box[n], counted_indices(box, counted, n)) for n, name in enumerate(names)]
    return None if None in words else " of ".join(word for word in reversed(words) if word)


def format_boxes(found: Sequence[Box], counted: Numpy, names: Sequence[str], whole: str = "") -> str | None:
    """Format boxes, `whole` standing for one that is everything; None if one of them has no pattern."""
    words = [format_box(box, counted, names) for box in found]
    return None if not words or None in words else " and ".join(filter(None, (word or whole for word in words)))


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
        return f"{name}s {join_words(found.tolist())}"
    some, steps = consecutive_runs(found), np.diff(found)
    by_chance = len(some) > THRESHOLDS.max_boxes or np.min(steps[steps > 1]) < THRESHOLDS.min_block
    if by_chance and len(found) >= THRESHOLDS.filled_share * (found[-1] - found[0] + 1):
        return f"most {name}s from {found[0]} to {found[-1]}"
    if len(some) <= THRESHOLDS.max_boxes:
        return f"{name}s {join_words([_format_range(x) for x in some])}"
    return None


def _format_range(found: Numpy) -> str:
    """Format consecutive indices: "3", "3 and 4", "3 to 5"."""
    return f"{found[0]} to {found[-1]}" if len(found) > 2 else join_words(found.tolist())


def consecutive_runs(found: Numpy) -> list[Numpy]:
    """Split sorted indices into runs of consecutive ones."""
    return np.split(found, np.flatnonzero(np.diff(found) > 1) + 1)


def split_boxes(mask: Numpy, found: Sequence[Box]) -> list[Box]:
    """Split boxes at the gaps of their indices. Without boxes, return the runs of `mask` along its last axis."""
    if not found:
        found = [(*np.asarray(at)[:, None], np.flatnonzero(mask[tuple(at)])) for at in np.argwhere(mask.any(axis=-1))]
    return [part for box in found for part in product(*map(consecutive_runs, box))]


def format_first_boxes(found: Sequence[Box], counted: Numpy, names: Sequence[str]) -> str:
    """Format the first of many boxes: "several places: token 3 of head 0, head 1, head 4 and 9 more"."""
    first = [str(format_box(box, counted, names)) for box in found[: THRESHOLDS.max_boxes]]
    return f"several places: {', '.join(first)} and {len(found) - THRESHOLDS.max_boxes} more"


def join_words(some: Sequence[object]) -> str:
    """Join items into a list in words: "0, 1 and 3"."""
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
