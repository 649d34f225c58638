"""Attention maps as pictures: one pair's three maps, and all pairs of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from refdiff.model.outputs import ModelOutput
from refdiff.viz.appearance import INK, dress, name_ticks, new_figure, signed_colours, signed_range
from refdiff.viz.maps import MAPS, AttentionMaps, as_maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_TOKENS_IN_A_GRID = 16


def plot_attention(
    maps: AttentionMaps | ModelOutput,
    layer: int | None = None,
    pair: int | None = None,
    *,
    tokens: Sequence[str] | None = None,
    wiring: str = "hf",
    limit: float | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw A₁, A₂ and A₁ − λ A₂ side by side on one scale, tokens on the axes; by default the means over all heads.

    Of a model's output, called with output_attentions=True, the first row is drawn: `tokens` are what its tokens are
    called (by default their numbers), `wiring` is `model.config.wiring`.

    Queries go down, keys across. All three share the colour bar, whose zero is in the middle; what is larger than
    `limit` (by default than 99 of 100 weights) has full colour. Of a Llama there is one map.
    """
    maps = as_maps(maps, tokens, wiring)
    side = min(max(0.14 * len(maps.tokens), 2.6), 9.0)
    figure = new_figure(side * len(maps.names) + 1.6, side + 1.4, figure)
    shown = {name: maps.map(name, layer, pair) for name in maps.names}
    norm = signed_range(*shown.values(), limit=limit)
    image: Any = None
    grid = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (name, values) in zip(grid, shown.items(), strict=True):
        image = _draw(axes, values, norm)
        axes.set_title(MAPS[name] if maps.second is not None else "A", fontsize=10, color=INK)
        name_ticks(axes, maps.tokens, "x")
        name_ticks(axes, maps.queries, "y")
        axes.set_xlabel("key", color=INK)
    grid[0].set_ylabel("query", color=INK)
    _colour_bar(figure, image, list(grid))
    figure.suptitle(maps.title(layer, pair), fontsize=11, color=INK)
    return figure


def plot_attention_grid(
    maps: AttentionMaps | ModelOutput,
    name: str = "difference",
    *,
    tokens: Sequence[str] | None = None,
    wiring: str = "hf",
    limit: float | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw one of the three maps ("first", "second", "difference") of every layer and pair, on one scale.

    Layers go down, with λ of each, pairs across. Tokens stand on the outer axes while there are few. The rest is as in
    `plot_attention`.
    """
    maps = as_maps(maps, tokens, wiring)
    L, P = maps.first.shape[:2]
    figure = new_figure(min(1.5 * P + 1.8, 20), min(1.5 * L + 0.8, 24), figure)
    values = {(i, j): maps.map(name, i, j) for i in range(L) for j in range(P)}
    norm = signed_range(*values.values(), limit=limit)
    grid = figure.subplots(L, P, squeeze=False)
    kind = "pair" if maps.second is not None else "head"
    image: Any = None
    for (i, j), one in values.items():
        axes = grid[i][j]
        image = _draw(axes, one, norm)
        axes.set_xticks([])
        axes.set_yticks([])
        if i == 0:
            axes.set_title(f"{kind} {j}", fontsize=9, color=INK)
        if j == 0:
            lambda_ = maps.lambda_(i)
            label = f"layer {i}" if lambda_ is None else f"layer {i}\nλ = {float(lambda_.mean()):.2f}"
            axes.set_ylabel(label, fontsize=9, color=INK)
        if len(maps.tokens) <= _TOKENS_IN_A_GRID:
            if i == L - 1:
                name_ticks(axes, maps.tokens, "x")
            if j == 0:
                name_ticks(axes, maps.queries, "y")
    _colour_bar(figure, image, list(grid.flat))
    figure.suptitle(MAPS[name] if maps.second is not None else "A", fontsize=11, color=INK)
    return figure


def _draw(axes: Axes, values: Any, norm: Any) -> AxesImage:
    dress(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
    return axes.imshow(values, cmap=signed_colours(), norm=norm, interpolation="nearest", aspect="auto")


def _colour_bar(figure: Figure, image: AxesImage, beside: list[Axes]) -> None:
    """The legend of the colours, drawn as a picture: matplotlib's own has seams where colours are transparent."""
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
