"""Arrays in few words, for what is printed of objects that hold many: names, shapes and types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN = 8
"""How many arrays are named at most: the first ones, and the last."""


def array_summary(arrays: Mapping[str, Any]) -> str:
    """Name, shape and type of each: "q (2, 12, 9, 16) float32, … (44), out (2, 6, 9, 32) float32"."""
    names = list(arrays)
    if len(names) > SHOWN:
        first, last = (
            array_summary({name: arrays[name] for name in some}) for some in (names[: SHOWN - 1], names[-1:])
        )
        return f"{first}, … ({len(names)}), {last}"
    return ", ".join(_one(name, arrays[name]) for name in names)


def _one(name: str, x: Any) -> str:
    if not hasattr(x, "shape"):
        return f"{name} {type(x).__name__}"
    return f"{name} {tuple(x.shape)} {str(x.dtype).rpartition('.')[2]}"
