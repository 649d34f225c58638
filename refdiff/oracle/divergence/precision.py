"""The type that a run computed in, from the arrays that it left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

COPIES = ("embed_tokens", "values", "lambda_init")
"""Points where nothing is computed: they have the type of the weights, whatever the run has."""


def precision_of(points: Mapping[str, NDArray[Any]]) -> str:
    """Name the type that a run computed in: the coarsest that at least a quarter of its arrays are stored in.

    Arrays of float32 that hold nothing but numbers of a 16-bit type are counted as of that type: they were widened to
    be written.

    Raises:
        ValueError: there is no floating-point array.
    """
    kinds = [
        _kind(x) for path, x in points.items() if path.rpartition(".")[2] not in COPIES and x.dtype.kind not in "biu"
    ]
    if not kinds:
        raise ValueError("the trace has no array of floating-point numbers that is a point of the run")
    for name in ("bfloat16", "float16", "float32"):
        if 4 * kinds.count(name) >= len(kinds):
            return name
    return "float64"


def _kind(x: NDArray[Any]) -> str:
    """The narrowest of the known types that has all numbers of an array, if it is stored in float32 or float64."""
    if x.dtype.name in ("bfloat16", "float16") or x.size < 32:
        return x.dtype.name
    finite = x[np.isfinite(x)]
    with np.errstate(over="ignore"):
        single = finite.astype(np.float32)
        if not np.array_equal(single, finite):
            return "float64"
        if not (single.view(np.uint32) & 0xFFFF).any():
            return "bfloat16"
        return "float16" if np.array_equal(single.astype(np.float16), single) else "float32"
