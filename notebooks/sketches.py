"""The pictures of notebook 00: a checkpoint file, the residual stream, a pair of heads, three maps, a loss curve."""

from __future__ import annotations

from typing import Any

from refdiff.viz.appearance import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    dress,
    name_ticks,
    new_axes,
    new_figure,
    signed_colours,
    signed_range,
)


def _canvas(width: float, height: float) -> Any:
    """Empty axes of a new figure whose data units are inches."""
    axes = new_figure(width, height).add_subplot()
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return axes


def _box(axes: Any, x: float, y: float, width: float, height: float, text: str, colour: str = INK) -> None:
    """A box around the point (x, y) with its text inside."""
    from matplotlib.patches import Rectangle

    corner = (x - width / 2, y - height / 2)
    axes.add_patch(Rectangle(corner, width, height, facecolor=f"{colour}22", edgecolor=colour, linewidth=1.3))
    axes.text(x, y, text, ha="center", va="center", color=INK, fontsize=9)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str = INK, bend: float = 0) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops={**style, "connectionstyle": f"arc3,rad={bend}"})


def _note(axes: Any, x: float, y: float, text: str, **options: Any) -> None:
    axes.text(x, y, text, color=INK, **{"fontsize": 8.5, "ha": "center", "va": "center", **options})


def checkpoint() -> Any:
    """A safetensors file: 8 bytes of length, a JSON header with names, shapes and offsets, then the numbers."""
    axes = _canvas(8.4, 1.5)
    parts = [
        (0.9, "8 bytes", "length of\nthe header", ORANGE),
        (2.5, "JSON header", "name → dtype, shape, offsets", PURPLE),
    ]
    parts += [(1.4, "E", "2048 × 192", BLUE), (1.4, "norm weight", "192", BLUE)]
    parts += [(1.3, "W_down", "192 × 464", BLUE), (0.7, "…", "", BLUE)]
    x = 0.15
    for width, name, note, colour in parts:
        _box(axes, x + width / 2, 1.0, width, 0.55, name, colour)
        _note(axes, x + width / 2, 0.4, note)
        x += width
    return axes.figure


def residual_stream(layers: int = 6) -> Any:
    """The model: embedding, layers that add to the residual stream, norm, and scores for every next token."""
    axes = _canvas(8.4, 3.0)
    y = 1.0
    _box(axes, 0.75, y, 1.1, 0.55, "embedding\nE[id]", GREEN)
    _arrow(axes, (1.3, y), (6.25, y))
    for x, label, colour in ((2.95, "attention", ORANGE), (4.95, "SwiGLU", BLUE)):
        _arrow(axes, (x - 0.85, y), (x - 0.85, 2.12), colour)
        _box(axes, x - 0.55, 2.4, 0.85, 0.5, "RMSNorm")
        _box(axes, x + 0.5, 2.4, 0.85, 0.5, label, colour)
        _arrow(axes, (x - 0.12, 2.4), (x + 0.07, 2.4), colour)
        _arrow(axes, (x + 0.8, 2.15), (x + 0.8, y + 0.14), colour)
        axes.plot([x + 0.8], [y], marker="o", markersize=14, color=colour, markerfacecolor="none")
        _note(axes, x + 0.8, y, "+", fontsize=12)
    axes.add_patch(_frame(1.8, 0.45, 4.2, 2.4))
    _note(axes, 5.9, 0.62, f"× {layers} layers", ha="right")
    _note(axes, 3.4, 0.75, "residual stream x (T, D)")
    _box(axes, 6.7, y, 0.9, 0.55, "RMSNorm")
    _arrow(axes, (7.15, y), (7.4, y))
    _box(axes, 7.85, y, 0.9, 0.55, "logits\nx Eᵀ", GREEN)
    return axes.figure


def _frame(x: float, y: float, width: float, height: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor="none", edgecolor=INK, linewidth=0.8, linestyle="--")


def head_pair() -> Any:
    """One pair of heads: two queries and two keys make two maps; their difference reads one value of size 2d."""
    axes = _canvas(8.4, 2.9)
    for y, i, name, colour in ((2.35, "1", "head i", BLUE), (1.05, "2", "head i + H/2", ORANGE)):
        sub = "₁" if i == "1" else "₂"
        _box(axes, 0.75, y + 0.28, 0.8, 0.42, f"Q{sub}", colour)
        _box(axes, 0.75, y - 0.28, 0.8, 0.42, f"K{sub}", colour)
        _note(axes, 0.75, y - 0.68, name)
        _arrow(axes, (1.2, y + 0.28), (1.75, y + 0.06), colour)
        _arrow(axes, (1.2, y - 0.28), (1.75, y - 0.06), colour)
        _box(axes, 2.6, y, 1.65, 0.5, f"A{sub} = softmax(Q{sub}K{sub}ᵀ/√d)", colour)
    _arrow(axes, (3.45, 2.35), (4.2, 1.8), BLUE)
    _arrow(axes, (3.45, 1.05), (4.2, 1.6), ORANGE)
    _note(axes, 4.0, 1.1, "× λ", fontsize=11)
    _box(axes, 4.75, 1.7, 1.05, 0.5, "A₁ − λ A₂", PURPLE)
    _arrow(axes, (5.3, 1.7), (5.75, 1.7))
    _box(axes, 6.05, 1.7, 0.55, 0.5, "· V", GREEN)
    _note(axes, 6.05, 1.05, "value of\nboth heads, 2d")
    _arrow(axes, (6.35, 1.7), (6.65, 1.7))
    _box(axes, 7.5, 1.7, 1.65, 0.5, "(1 − λ_init) · RMSNorm")
    return axes.figure


def three_maps(tokens: list[str], first: Any, second: Any, lambda_: float) -> Any:
    """A₁, λ A₂ and their difference over one text: queries down, keys across, blue above zero and orange below."""
    figure = new_figure(9.6, 3.7)
    maps = {"A₁": first, f"λ A₂, λ = {lambda_:.2f}": lambda_ * second, "A₁ − λ A₂": first - lambda_ * second}
    norm = signed_range(*maps.values())
    for number, (axes, (title, weights)) in enumerate(zip(figure.subplots(1, 3), maps.items(), strict=True)):
        dress(axes).imshow(weights, cmap=signed_colours(), norm=norm)
        axes.set_title(title, color=INK, fontsize=10)
        name_ticks(axes, tokens, "x")
        if number == 0:
            name_ticks(axes, tokens, "y")
            axes.set_ylabel("query: the token that looks", color=INK)
        else:
            axes.set_yticks([])
        axes.set_xlabel("key: the token looked at", color=INK)
    return figure


def loss_by_strength(strengths: list[float], losses: list[float]) -> Any:
    """The loss of a text as λ is multiplied by each strength in every layer."""
    axes = new_axes(None, 6.4, 3.2)
    axes.plot(strengths, losses, color=BLUE, marker="o")
    axes.axvline(1, color=INK, linestyle=":", linewidth=1)
    axes.set_xlabel("λ in every layer, multiplied by", color=INK)
    axes.set_ylabel("loss (nats per token)", color=INK)
    return axes.figure
