"""Numbers that a kernel has one of for each head, in words."""

from __future__ import annotations

from typing import Any

import numpy as np

Numpy = np.ndarray[Any, Any]
ALIKE = 0.02
"""Fitted numbers that differ by less than this part are one number."""
LISTED = 16
"""Of more heads the first so many are listed."""


def is_one(values: Numpy) -> bool:
    """Whether all heads have the same number."""
    return bool(np.ptp(values) <= ALIKE * max(1e-3, float(np.abs(values).max())))


def short_list(values: Numpy) -> str:
    """The first few: "0.5, 0.7, 1, …"."""
    return ", ".join(f"{x:.3g}" for x in values[:LISTED]) + (", …" if len(values) > LISTED else "")


def in_words(values: Numpy) -> str:
    """What each head has: "0.5 in every head", or "by head 0.5, 0.7"."""
    return f"{float(np.median(values)):.4g} in every head" if is_one(values) else f"by head {short_list(values)}"


def spec_value_format(values: Any, heads: int) -> str:
    """What the spec has, of any shape that goes with (B, h, T, 1): "0.36", "by head 0.3, 0.4", or one by token."""
    x = np.asarray(values, dtype=np.float64)
    if x.size not in (1, heads) or (x.size > 1 and x.shape[-3] != heads):
        return "one for each token"
    return f"{x.flat[0]:.4g}" if is_one(x.ravel()) else f"by head {short_list(x.ravel())}"
