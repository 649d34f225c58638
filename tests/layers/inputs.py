"""Random inputs, and the form that every error test has."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**32 - 1).map(np.random.default_rng)
"""A generator of random numbers: Hypothesis picks the seed and the sizes, NumPy fills the arrays."""


def says(error: type[Exception], message: str) -> Any:
    """Expect `error` with exactly this message."""
    return pytest.raises(error, match=rf"\A{re.escape(message)}\Z")


def rows_of_all_sizes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal numbers whose rows (last axis) are of sizes between 1e-6 and 1e3."""
    return rng.normal(size=shape) * 10.0 ** rng.uniform(-6, 3, size=(*shape[:-1], 1))
