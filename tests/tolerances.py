"""Every tolerance of the tests of single functions, each with its reason; and when two arrays are the same."""

from __future__ import annotations

from typing import Any

import numpy as np

EXACT = 0.0
"""Only copying, comparing, multiplying by powers of two: not a bit may differ."""

FLOAT64 = 1e-13
"""A layer in float64 against its formula in 40 digits: some hundred roundings of 1.1e-16, and room for one factor 2."""

FLOAT32 = 3e-6
"""A layer in float32 against itself in float64, of the same inputs: some dozen roundings of 6e-8."""

SLOPE32 = 1e-4
"""The same of a derivative, in which terms may nearly cancel."""

LIMIT = 1e-9
"""A property that holds as ε goes to 0, tried at ε so small that what is left of it is below this."""


def close(actual: Any, expected: Any, tolerance: float, *, empty: bool = False) -> None:
    """Fail unless each row (last axis) of `actual` is within `tolerance` times the row's largest entry of `expected`.

    Shapes must be the same, and infinities and NaN stand in the same places. To compare nothing is a failure, unless
    the caller says that the arrays are to be `empty`.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, not {expected.shape}"
    assert (expected.size == 0) == empty, f"compared {expected.size} numbers"
    if empty:
        return
    assert actual.dtype.kind == expected.dtype.kind, f"dtype {actual.dtype}, not {expected.dtype}"
    if actual.dtype.kind in "biu":
        assert np.array_equal(actual, expected), f"{actual}\nis not\n{expected}"
        return
    finite = np.isfinite(expected)
    assert np.array_equal(actual[~finite], expected[~finite], equal_nan=True), f"{actual}\nis not\n{expected}"
    assert np.isfinite(actual[finite]).all(), f"{actual}\nis not\n{expected}"
    size = np.where(finite, np.abs(np.where(finite, expected, 0.0)), 0.0)
    scale = size if size.ndim == 0 else size.max(axis=-1, keepdims=True)
    error = np.where(finite, np.abs(np.where(finite, actual, 0.0) - np.where(finite, expected, 0.0)), 0.0)
    worst = float((error / np.where(scale == 0, 1.0, scale)).max())
    assert worst <= tolerance, (
        f"off by {worst:.2e} of the row's largest number, allowed {tolerance:.0e}:\n{actual}\nis not\n{expected}"
    )
