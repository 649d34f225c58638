"""A figure of the error of each step of a computation, in the order of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff.arrays import floats
from refdiff.viz.appearance import BLUE, INK, ORANGE, legend, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_LABELS = 60


def plot_trace_error(
    names: Sequence[str], errors: Any, *, limits: Any = None, axes: Axes | None = None, ylabel: str = "relative error"
) -> Axes:
    """Draw errors along a trace on a logarithmic scale, and mark the first error above its limit.

    `errors` is (n,), one for each of n names, and `limits` a number or (n,). An error of exactly 0 is an open circle at
    the bottom, an error that is not finite a cross at the top.

    Raises:
        ValueError: the numbers of names and errors differ, or an error is negative.
    """
    values = floats(errors)
    if values.shape != (len(names),) or not len(names):
        raise ValueError(f"errors: got shape {values.shape} for {len(names)} names, expected an error for each name")
    if (values < 0).any():
        index = int(np.argmax(values < 0))
        raise ValueError(f"errors: got {values[index]} for {names[index]}, expected 0 or more")
    allowed = None if limits is None else np.broadcast_to(floats(limits), values.shape)
    axes = new_axes(axes, min(max(0.16 * len(names) + 2, 6), 16), 4.0)
    at = np.arange(len(values))
    finite = np.isfinite(values)
    drawn = values[finite & (values > 0)]
    low, high = (float(drawn.min()), float(drawn.max())) if len(drawn) else (1e-16, 1.0)
    axes.plot(at, np.where(finite & (values > 0), values, np.nan), color=BLUE, marker="o", markersize=3, label="error")
    for which, level, marker, fill, label in (
        (finite & (values == 0), low / 10, "o", "none", "exactly 0"),
        (~finite, high * 10, "x", ORANGE, "not finite"),
    ):
        if which.any():
            colour = ORANGE if marker == "x" else BLUE
            axes.plot(
                at[which], np.full(which.sum(), level), linestyle="", marker=marker, markersize=4, color=colour,
                markerfacecolor=fill, label=label,
            )  # fmt: skip
    if allowed is not None:
        axes.plot(at, allowed, color=INK, linestyle="--", linewidth=1, label="limit")
        above = ~(values <= allowed)
        if above.any():
            first = int(np.argmax(above))
            axes.axvline(first, color=ORANGE, linewidth=1)
            axes.set_title(f"first above its limit: {names[first]}", fontsize=10, parse_math=False)
    axes.set_yscale("log")
    axes.set_ylabel(ylabel)
    step = -(-len(names) // _MAX_LABELS)
    axes.set_xticks(at[::step], labels=list(names[::step]), rotation=90, fontsize=7)
    for tick in axes.get_xticklabels():
        tick.set_parse_math(False)
    legend(axes)
    return axes
