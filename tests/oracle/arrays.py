"""Arrays of every type and layout, and what must come back of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = ("float16", "bfloat16", "float32", "float64", "int32", "bool")

# each makes a view out of an array (2, 5, 7), in indexing that every library understands
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.swapaxes(0, 2),
    "sliced": lambda x: x[:, ::2, 1:6:3],
    "offset": lambda x: x[1, 3:, 2:],
    "empty": lambda x: x[:, 2:2],
    "scalar": lambda x: x[1, 2, 3],
}


VIEWS = {**LAYOUTS, "zero stride": lambda x: np.broadcast_to(x, (3, *x.shape))}
"""Those of NumPy's arrays: (3, 2, 5, 7) too, whose three parts are the same memory."""


def numbers(dtype: str) -> np.ndarray:
    """(2, 5, 7) of random bits: every number of the type, NaN and infinities among them."""
    g = np.random.default_rng(7)
    if dtype == "bool":
        return g.integers(0, 2, (2, 5, 7)).astype(bool)
    kind = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    x = np.frombuffer(g.bytes(2 * 5 * 7 * kind.itemsize), kind).reshape(2, 5, 7).copy()
    if kind.kind != "i":
        x[0, 0, :4] = (np.inf, -np.inf, np.nan, -0.0)
    return x


def same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays have the same type, shape and bits."""
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
