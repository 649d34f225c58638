"""Figures of attention maps: the three maps of a pair, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from refdiff.model.outputs import ModelOutput
from refdiff.viz.appearance import INK, name_ticks, new_figure, signed_colors, signed_range, style_axes
from refdiff.viz.maps import MAPS, AttentionMaps, as_maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


def plot_attention(
    maps: AttentionMaps | ModelOutput,
    layer: int | None = None,
    pair: int | None = None,
    *,
    tokens: Sequence[str] | None = None,
    variant: str = "hf",
    limit: float | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw A₁, A₂ and A₁ − λ A₂ side by side, with queries down and keys across.

    Args:
        maps: an `AttentionMaps`, or the output of a model called with output_attentions=True, whose first sequence is
            drawn.
        layer, pair: the maps to draw; None is the mean over all layers or pairs.
        tokens: labels of the tokens (default: those of the maps, or for an output the positions).
        variant: `model.config.variant` of the model that gave the output.
        limit: the size with full color (default: the 99 % quantile of the weights other than 0).

    All maps share one color scale, with zero in its middle. A Llama has one map.
    """
    maps = as_maps(maps, tokens, variant)
    side = min(max(0.14 * len(maps.tokens), 2.6), 9.0)
    figure = new_figure(side * len(maps.names) + 1.6, side + 1.4, figure)
    values = {name: maps.map(name, layer, pair) for name in maps.names}
    norm = signed_range(*values.values(), limit=limit)
    image: Any = None
    grid = figure.subplots(1, len(values), squeeze=False)[0]
    for axes, (name, map_values) in zip(grid, values.items(), strict=True):
        image = _draw(axes, map_values, norm)
        axes.set_title(MAPS[name] if maps.second is not None else "A", fontsize=10, color=INK)
        name_ticks(axes, maps.tokens, "x")
        name_ticks(axes, maps.queries, "y")
        axes.set_xlabel("key", color=INK)
    grid[0].set_ylabel("query", color=INK)
    _color_bar(figure, image, list(grid))
    figure.suptitle(maps.title(layer, pair), fontsize=11, color=INK)
    return figure


def _draw(axes: Axes, values: Any, norm: Any) -> AxesImage:
    style_axes(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
    return axes.imshow(values, cmap=signed_colors(), norm=norm, interpolation="nearest", aspect="auto")


def _color_bar(figure: Figure, image: AxesImage, beside: list[Axes]) -> None:
    """Add a color bar with an image in it: matplotlib's own bar has seams where colors are transparent."""
    import numpy as np

    bar: Any = figure.colorbar(image, ax=beside, extend="both", fraction=0.05, pad=0.02, aspect=30)
    bar.solids.set_visible(False)
    norm: Any = image.norm
    low, high = norm.vmin, norm.vmax
    bar.ax.imshow(
        np.linspace(low, high, 511)[:, None], cmap=image.cmap, norm=norm, extent=(0, 1, low, high),
        aspect="auto", origin="lower",
    )  # fmt: skip
    bar.ax.set_facecolor("none")
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.outline.set_edgecolor(INK)
    bar.outline.set_linewidth(0.5)
