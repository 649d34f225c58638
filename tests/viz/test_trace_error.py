"""Errors along a trace as they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.viz import plot_trace_error
from tests.layers.places import STRICT

from .conftest import render

NAMES = ["embed", "$q$", "k", "scores", "out"]


def test_errors_zeros_and_what_is_not_finite() -> None:
    axes = plot_trace_error(NAMES, [0.0, 1e-8, 1e-6, np.inf, np.nan])
    error, zero, broken = axes.lines
    np.testing.assert_array_equal(error.get_ydata(), [np.nan, 1e-8, 1e-6, np.nan, np.nan])
    np.testing.assert_allclose(zero.get_xydata(), [[0, 1e-9]])
    np.testing.assert_allclose(broken.get_xydata(), [[3, 1e-5], [4, 1e-5]])
    assert zero.get_markerfacecolor() == "none"
    assert axes.get_yscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == NAMES
    assert axes.get_title() == ""
    render(axes.figure)


@pytest.mark.parametrize(
    ("errors", "limits", "first"),
    [
        ([1e-9, 1e-7, 1e-3, 1e-9, 1e-2], 1e-5, 2),
        ([1e-9, 1e-7, 1e-3, 1e-9, 1e-2], [1e-5, 1e-5, 1e-2, 1e-5, 1e-5], 4),
        ([1e-9, np.nan, 1e-3, 1e-9, 1e-2], 1e-5, 1),
        ([1e-9, 1e-5, 1e-9, 1e-9, 1e-9], 1e-5, None),
    ],
)
def test_the_first_above_its_limit_is_marked(
    errors: list[float], limits: float | list[float], first: int | None
) -> None:
    axes = plot_trace_error(NAMES, errors, limits=limits)
    marks = [line for line in axes.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
    if first is None:
        assert not marks
        assert axes.get_title() == ""
    else:
        (mark,) = marks
        assert set(mark.get_xdata()) == {first}
        assert axes.get_title() == f"first above its limit: {NAMES[first]}"
    (limit,) = [line for line in axes.lines if line.get_label() == "limit"]
    np.testing.assert_array_equal(limit.get_ydata(), np.broadcast_to(limits, 5))
    render(axes.figure)


@pytest.mark.parametrize("of", [STRICT.put, lambda x: [STRICT.put(one) for one in x]])
def test_errors_and_limits_of_a_device(of: Callable[[Any], Any]) -> None:
    errors, limits = np.array([1e-9, 1e-7, 1e-3, 1e-9, 1e-2]), np.array([1e-5, 1e-5, 1e-2, 1e-5, 1e-5])
    axes = plot_trace_error(NAMES, of(errors), limits=of(limits))
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), errors)
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), limits)
    assert axes.get_title() == "first above its limit: out"


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"errors: got shape \(2,\) for 5 names"):
        plot_trace_error(NAMES, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"errors: got .* for k, expected 0 or more"):
        plot_trace_error(NAMES, [0, 0, -1e-3, 0, -1])
