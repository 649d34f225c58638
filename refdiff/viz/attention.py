"""Figures of attention maps: the three maps of a pair, or one map of all layers and pairs."""

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

_MAX_GRID_TOKENS = 16


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


def plot_attention_grid(
    maps: AttentionMaps | ModelOutput,
    name: str = "difference",
    *,
    tokens: Sequence[str] | None = None,
    variant: str = "hf",
    limit: float | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw one of the three maps ("first", "second", "difference") of every layer and pair on one color scale.

    Layers go down, with the λ of each, and pairs across. The outer axes have labels if there are at most 16 tokens. The
    other arguments are those of `plot_attention`.
    """
    maps = as_maps(maps, tokens, variant)
    L, P = maps.first.shape[:2]
    figure = new_figure(min(1.5 * P + 1.8, 20), min(1.5 * L + 0.8, 24), figure)
    values = {(i, j): maps.map(name, i, j) for i in range(L) for j in range(P)}
    norm = signed_range(*values.values(), limit=limit)
    grid = figure.subplots(L, P, squeeze=False)
    kind = "pair" if maps.second is not None else "head"
    image: Any = None
    for (i, j), map_values in values.items():
        axes = grid[i][j]
        image = _draw(axes, map_values, norm)
        axes.set_xticks([])
        axes.set_yticks([])
        if i == 0:
            axes.set_title(f"{kind} {j}", fontsize=9, color=INK)
        if j == 0:
            lambda_ = maps.lambda_(i)
            label = f"layer {i}" if lambda_ is None else f"layer {i}\nλ = {float(lambda_.mean()):.2f}"
            axes.set_ylabel(label, fontsize=9, color=INK)
        if len(maps.tokens) <= _MAX_GRID_TOKENS:
            if i == L - 1:
                name_ticks(axes, maps.tokens, "x")
            if j == 0:
                name_ticks(axes, maps.queries, "y")
    _color_bar(figure, image, list(grid.flat))
    figure.suptitle(MAPS[name] if maps.second is not None else "A", fontsize=11, color=INK)
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
