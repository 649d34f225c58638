"""How the figures look: no ground of their own, and colours that are read on a white page and on a dark one alike.

Zero has no colour at all, so that it is the page itself, and the two signs are blue and orange, which people with any
kind of colour vision tell apart. `tests/viz/test_appearance.py` measures both.
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
"""Series differ in their lines too, not in colour alone."""
MARKERS = ("o", "s", "^", "D")

_TICKS = 72
"""Tokens that fit along an axis."""

OTHER_FONTS = (
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
"""Asked after matplotlib's own font, in this order, where they are installed."""


def new_figure(width: float, height: float, figure: Figure | None = None) -> Figure:
    """Return `figure`, or a new one of so many inches that belongs to nobody: no window, no `show`."""
    if figure is not None:
        return figure
    try:
        from matplotlib.figure import Figure as New
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install matplotlib") from error

    return New(figsize=(width, height), layout="constrained", facecolor="none")


def new_axes(axes: Axes | None, width: float = 6.0, height: float = 3.6) -> Axes:
    """Return `axes`, or those of a new figure, in the ink that both pages show."""
    if axes is None:
        axes = new_figure(width, height).add_subplot()
    return dress(axes)


def dress(axes: Axes) -> Axes:
    """Give axes the transparent ground and the ink."""
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
    """Add a legend in the ink."""
    axes.legend(frameon=False, labelcolor=INK, fontsize="small", **options)


def signed_colours() -> Colormap:
    """Blue above zero, orange below, nothing at zero; the strength grows as the root of the size.

    The root lets a weight of 0.04 be seen beside one of 1; a colour bar drawn with this map shows it.
    """
    from matplotlib.colors import ListedColormap, to_rgb

    at = np.linspace(-1, 1, 511)
    colours = np.where(at[:, None] < 0, to_rgb(ORANGE), to_rgb(BLUE))
    return ListedColormap(np.column_stack([colours, np.sqrt(np.abs(at))]), name="signed")


def signed_range(*arrays: Any, limit: float | None = None) -> Normalize:
    """Return the scale that has zero in its middle, and full colour from `limit` on.

    Without one it is the size that 99 of 100 of the numbers other than 0 stay below: the first few queries of a causal
    map have few keys to look at, and would otherwise take all the colour.

    Raises:
        ValueError: there is a number that is not finite, or the limit is not above 0.
    """
    from matplotlib.colors import Normalize

    sizes = np.concatenate([np.abs(np.asarray(a, dtype=np.float64)).ravel() for a in arrays])
    if not np.isfinite(sizes).all():
        raise ValueError("a map holds numbers that are not finite: check the weights, or compute in float32")
    if limit is not None and not limit > 0:
        raise ValueError(f"limit: got {limit}, expected above 0: the size that has full colour")
    sizes = sizes[sizes > 0]
    if limit is None:
        limit = float(np.quantile(sizes, 0.99)) if sizes.size else 1.0
    return Normalize(-limit, limit)


def name_ticks(axes: Axes, names: Sequence[str], which: str = "both", most: int = _TICKS) -> None:
    """Write tokens along one axis or both ("x", "y"), turned on x; too many of them become their numbers."""
    for axis in (axes.xaxis, axes.yaxis) if which == "both" else (getattr(axes, f"{which}axis"),):
        if len(names) > most:
            whole_numbers(axis)
            continue
        size = min(8.0, 260 / max(len(names), 1))
        families, labels = in_fonts(names)
        axis.set_ticks(range(len(names)), labels=labels, fontsize=size, color=INK, fontfamily=families)
        for label in axis.get_ticklabels():
            label.set_parse_math(False)  # a token may be a dollar sign
            if axis is axes.xaxis:
                label.set_rotation(90)


def in_fonts(names: Iterable[str], others: Sequence[str] = OTHER_FONTS) -> tuple[list[str], list[str]]:
    r"""Return the font families that these names need, and the names with \u… in place of letters that none has."""
    import matplotlib
    from matplotlib import font_manager

    names = list(names)
    families = [str(matplotlib.rcParams["font.sans-serif"][0])]
    missing = {letter for name in names for letter in name}
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    chosen: list[str] = []
    for family in dict.fromkeys([*families, *others]):
        if not missing or family not in installed:
            continue
        # of a family's faces the one that is drawn: an extra light one may lack letters
        known = font_manager.get_font(font_manager.findfont(family, fallback_to_default=False)).get_charmap()
        found = {letter for letter in missing if ord(letter) in known}
        if found or not chosen:
            chosen.append(family)
        missing -= found
    return chosen or families, [
        "".join(x.encode("unicode_escape").decode("ascii") if x in missing else x for x in name) for name in names
    ]


def whole_numbers(axis: Any) -> None:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def depth_colours(count: int) -> list[tuple[float, ...]]:
    """Return a colour for each of `count` layers, from blue for the first to orange for the last."""
    from matplotlib.colors import LinearSegmentedColormap

    way = LinearSegmentedColormap.from_list("depth", [BLUE, PURPLE, ORANGE])
    return [way(i / max(count - 1, 1)) for i in range(count)]
