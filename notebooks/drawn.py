"""What a figure or a page draws, as a few numbers and words: to compare two by their data, not by pixels or bytes.

An exact hash of the data would change with the last bit of a sum, which differs between processors. So each artist is
summed up in numbers that change little when its data change little, and by much when they change much: how many it
has, the smallest, the largest, and three sums Σ_i x_i cos(i √p) / √n, p = 2, 3, 5. Where it stands across and how high
are two such lists: steps to 300 would hide what a loss does between 4 and 6.

`record()` runs in the kernel before a notebook's first cell: from then on, what shows a figure also gives its sums, and
the figure as SVG, from which the site makes a light and a dark picture.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

MIME = "application/vnd.refdiff.drawn+json"
SVG = "application/vnd.refdiff.svg+json"
"""A figure as {"wide": SVG}, and where it has a variant for narrow pages, that as "narrow"."""
CLIPPED = -1000.0
"""What matplotlib gives as the logarithm of 0."""


def sums(values: Any) -> list[float]:
    """Sum up numbers in six: n, how many are finite, smallest, largest, and the three sums above."""
    x = np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan).ravel()
    finite = np.isfinite(x)
    x = np.where(finite, x, 0.0)
    waves = np.cos(np.sqrt([[2.0], [3.0], [5.0]]) * np.arange(x.size))
    projected = waves @ x / np.sqrt(max(x.size, 1))
    ends = (x[finite].min(), x[finite].max()) if finite.any() else (0.0, 0.0)
    return [float(number) for number in (x.size, finite.sum(), *ends, *projected)]


def drawn(figure: Any) -> list[dict[str, Any]]:
    """List what each axes of a figure shows: its words, and for each artist its kind and sums. A page has one."""
    if hasattr(figure, "maps"):
        weights = [m for m in (figure.maps.first, figure.maps.second, figure.maps.difference) if m is not None]
        return [{"words": list(figure.maps.tokens), "artists": [_summed("maps", values) for values in weights]}]
    return [_of_axes(axes) for axes in figure.axes]


def _of_axes(axes: Any) -> dict[str, Any]:
    from matplotlib.ticker import FixedLocator  # places that were given, as tokens have; numbers find theirs

    artists = []
    for line in axes.lines:
        artists += _points("line", _scaled(axes, line.get_transform(), line.get_xydata()))
    artists += [_summed("image", image.get_array()) for image in axes.images]
    if axes.patches:
        corners = [
            _scaled(axes, patch.get_data_transform(), patch.get_patch_transform().transform(patch.get_path().vertices))
            for patch in axes.patches
        ]
        artists += _points("patches", np.concatenate(corners))
    for collection in axes.collections:
        if collection.get_offset_transform().contains_branch(axes.transData):  # marks at points: a scatter's
            points = _scaled(axes, axes.transData, collection.get_offsets())
        else:
            paths = [path.vertices for path in collection.get_paths()] or [np.zeros((0, 2))]
            points = _scaled(axes, collection.get_transform(), np.concatenate(paths))
        artists += _points("collection", points)
    legend = axes.get_legend()
    words = [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in axes.texts)]
    words += [] if legend is None else [text.get_text() for text in legend.get_texts()]
    named = [axis for axis in (axes.xaxis, axes.yaxis) if isinstance(axis.get_major_locator(), FixedLocator)]
    words += [label.get_text() for axis in named for label in axis.get_ticklabels()]
    return {"words": [word for word in words if word], "artists": artists}


def _points(kind: str, points: Any) -> list[str]:
    return [_summed(f"{kind} {name}", column) for name, column in zip("xy", np.ma.asarray(points).T, strict=True)]


def _summed(kind: str, values: Any) -> str:
    return f"{kind}: {' '.join(f'{number:.6g}' for number in sums(values))}"


def _scaled(axes: Any, transform: Any, points: Any) -> Any:
    """Take points (n, 2) as the axes space them: logarithms where they are logarithmic, and there none of 0.

    What does not stand in the axes' own numbers, as the height of a line that goes from top to bottom, stays as it is.
    """
    points = np.ma.filled(np.ma.asarray(points, dtype=np.float64), np.nan)
    if not transform.contains_branch(axes.transData):
        return points
    with np.errstate(all="ignore"):
        scaled = axes.transScale.transform(points)
    return np.where(scaled > CLIPPED, scaled, np.nan)


def vector(figure: Any) -> str:
    """Return a figure as SVG without a ground; two runs give the same text."""
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "refdiff"}):
        about = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(file, format="svg", bbox_inches="tight", facecolor="none", metadata=about)
    return file.getvalue()


def record() -> None:
    """Let every figure and page that a cell shows give its sums as well, under `MIME`, and its SVG, under `SVG`."""
    import matplotlib.font_manager  # noqa: F401  (makes the cache of fonts, and says so, here and not in a notebook)
    from IPython import get_ipython
    from IPython.core.formatters import BaseFormatter
    from matplotlib.figure import Figure
    from traitlets import Unicode

    def variants(shown: Any) -> dict[str, Any]:
        return {"wide": shown} if isinstance(shown, Figure) else getattr(shown, "variants", {})

    class Drawn(BaseFormatter):  # type: ignore[misc]
        format_type = Unicode(MIME)

        def __call__(self, shown: Any) -> dict[str, Any] | None:
            figures = [shown] if hasattr(shown, "maps") else variants(shown).values()
            return {"axes": [axes for figure in figures for axes in drawn(figure)]} if figures else None

    class Vector(BaseFormatter):  # type: ignore[misc]
        format_type = Unicode(SVG)

        def __call__(self, shown: Any) -> dict[str, str] | None:
            return {name: vector(figure) for name, figure in variants(shown).items()} or None

    for formatter in (Drawn(), Vector()):
        get_ipython().display_formatter.formatters[formatter.format_type] = formatter
