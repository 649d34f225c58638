"""The style of the figures: a transparent background, and colors with contrast on white and on dark pages.

Zero is transparent. Positive numbers are blue and negative ones orange, which people with any kind of color vision can
distinguish. `tests/viz/test_appearance.py` measures both properties.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

INK = "#777777"
BLUE, ORANGE, GREEN, PURPLE = "#1f80c0", "#d9600a", "#12976c", "#b565a0"
SERIES = (BLUE, ORANGE, GREEN, PURPLE)
STYLES = ("-", "--", "-.", ":")
"""Line styles, so that series differ not only in color."""
MARKERS = ("o", "s", "^", "D")

_MAX_TICKS = 72
"""Number of tokens that fit along an axis."""

FALLBACK_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans JP",
    "IPAexGothic",
    "Hiragino Sans",
    "Yu Gothic",
    "Microsoft YaHei",
    "Noto Sans",
    "Segoe UI",
    "Arial Unicode MS",
)
"""Fonts for letters that matplotlib's default font lacks. The first installed one that has the letter is used."""


def new_figure(width: float, height: float, figure: Figure | None = None) -> Figure:
    """Return `figure`, or a new one without a window; width and height are in inches."""
    if figure is not None:
        return figure
    try:
        from matplotlib.figure import Figure as New
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install matplotlib") from error

    return New(figsize=(width, height), layout="constrained", facecolor="none")


def new_axes(axes: Axes | None, width: float = 6.0, height: float = 3.6) -> Axes:
    """Return `axes`, or those of a new figure, in the style of this module."""
    if axes is None:
        axes = new_figure(width, height).add_subplot()
    return style_axes(axes)


def style_axes(axes: Axes) -> Axes:
    """Set the transparent background and the ink of axes, and hide the top and right spines."""
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_color(INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, which="both")
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)
    return axes


def legend(axes: Axes, **options: Any) -> None:
    """Add a legend in the color `INK`."""
    axes.legend(frameon=False, labelcolor=INK, fontsize="small", **options)


def signed_colors() -> Colormap:
    """Return the color map: blue above zero, orange below, transparent at zero, with opacity √|x|.

    The square root makes a weight of 0.04 visible beside one of 1.
    """
    from matplotlib.colors import ListedColormap, to_rgb

    at = np.linspace(-1, 1, 511)
    colors = np.where(at[:, None] < 0, to_rgb(ORANGE), to_rgb(BLUE))
    return ListedColormap(np.column_stack([colors, np.sqrt(np.abs(at))]), name="signed")


def signed_range(*arrays: Any, limit: float | None = None) -> Normalize:
    """Return the scale from −limit to limit, beyond which colors are full.

    The default limit is the 99 % quantile of the sizes other than 0. The largest weights would set too large a limit:
    they belong to the first queries of a causal map, which have few keys.

    Raises:
        ValueError: a number is not finite, or the limit is not above 0.
    """
    from matplotlib.colors import Normalize

    sizes = np.concatenate([np.abs(np.asarray(a, dtype=np.float64)).ravel() for a in arrays])
    if not np.isfinite(sizes).all():
        raise ValueError("maps: got numbers that are not finite; check the weights, or compute in float32")
    if limit is not None and not limit > 0:
        raise ValueError(f"limit: got {limit}, expected above 0, the size with full color")
    sizes = sizes[sizes > 0]
    if limit is None:
        limit = float(np.quantile(sizes, 0.99)) if sizes.size else 1.0
    return Normalize(-limit, limit)


def name_ticks(axes: Axes, names: Sequence[str], which: str = "both") -> None:
    """Label the ticks of one axis ("x", "y") or both with tokens, or with positions if there are too many."""
    for axis in (axes.xaxis, axes.yaxis) if which == "both" else (getattr(axes, f"{which}axis"),):
        if len(names) > _MAX_TICKS:
            use_integer_ticks(axis)
            continue
        size = min(8.0, 260 / max(len(names), 1))
        families, labels = choose_fonts(names)
        axis.set_ticks(range(len(names)), labels=labels, fontsize=size, color=INK, fontfamily=families)
        for label in axis.get_ticklabels():
            label.set_parse_math(False)  # a token may be a dollar sign
            if axis is axes.xaxis:
                label.set_rotation(90)


def choose_fonts(names: Iterable[str]) -> tuple[list[str], list[str]]:
    r"""Return the font families that the names need, and the names with \u… for letters that no font has."""
    import matplotlib
    from matplotlib import font_manager

    names = list(names)
    families = [str(matplotlib.rcParams["font.sans-serif"][0])]
    missing = {letter for name in names for letter in name}
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    chosen: list[str] = []
    for family in dict.fromkeys([*families, *FALLBACK_FONTS]):
        if not missing or family not in installed:
            continue
        # matplotlib draws the face that findfont returns; other faces of the family may have fewer letters
        charmap = font_manager.get_font(font_manager.findfont(family, fallback_to_default=False)).get_charmap()
        drawable = {letter for letter in missing if ord(letter) in charmap}
        if drawable or not chosen:
            chosen.append(family)
        missing -= drawable
    return chosen or families, [
        "".join(x.encode("unicode_escape").decode("ascii") if x in missing else x for x in name) for name in names
    ]


def use_integer_ticks(axis: Any) -> None:
    """Restrict the ticks of an axis to integers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))
