"""What the notebooks use and do not show: diagrams, plots, and helpers of one experiment each.

    python notebooks/sketches.py FOLDER   # writes the diagrams as PNG, to look at

Figures are drawn in dark ink on a white card; the site has them without the card, and in light ink on a dark page. A
function with an argument `narrow` draws twice (`for_two_widths`): a notebook shows the wide figure, a narrow page the
narrow one.
"""

from __future__ import annotations

import functools
import html
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from refdiff import layers, viz
from refdiff.viz.appearance import (
    BLUE,
    GREEN,
    MARKERS,
    ORANGE,
    PURPLE,
    SERIES,
    STYLES,
    legend,
    name_ticks,
    new_axes,
    new_figure,
    signed_colors,
    signed_range,
    style_axes,
    use_integer_ticks,
)

INK, CARD, HIDDEN = "#333333", "#ffffff", "#99999955"
"""What is written, what it is written on, and a cell of a map that the causal mask hides."""
ADDS = "#999999"
"""What belongs to a layer that adds its maps."""
KINDS = {"plain": ("#7d838c", "o"), "v1": (PURPLE, "s"), "v2": (GREEN, "^")}
"""Color and marker of each kind of model of chapter 05, as in the article."""


def in_ink(figure: Any, ink: str) -> None:
    """Give all words, ticks and frames of a figure one ink."""
    from matplotlib.spines import Spine
    from matplotlib.text import Text

    for axes in figure.axes:
        axes.tick_params(colors=ink, which="both")
    for text in figure.findobj(Text):
        text.set_color(ink)
    for spine in figure.findobj(Spine):
        spine.set_edgecolor(ink)


class Picture:
    """One figure for wide pages and one for narrow pages; a notebook shows the wide one."""

    def __init__(self, wide: Any, narrow: Any) -> None:
        self.variants = {"wide": wide, "narrow": narrow}

    def __repr__(self) -> str:
        return "<Picture>"

    def savefig(self, file: Any, **options: Any) -> None:
        """Write the wide figure."""
        self.variants["wide"].savefig(file, **options)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", bbox_inches="tight")
        return file.getvalue()


def for_two_widths(draw: Callable[..., Any]) -> Callable[..., Picture]:
    """Let a function with an argument `narrow` return both of its figures."""

    @functools.wraps(draw)
    def both(*args: Any, **options: Any) -> Picture:
        return Picture(draw(*args, **options), draw(*args, narrow=True, **options))

    return both


class Table:
    """Rows of words and numbers, the first of them the heading; folded behind a caption if there is one."""

    def __init__(self, rows: Sequence[Sequence[str]], caption: str = "") -> None:
        self.rows, self.caption = rows, caption

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in self.rows)

    def _repr_html_(self) -> str:
        head, *body = (
            "".join(f"<{tag}>{html.escape(word)}</{tag}>" for word in row)
            for tag, row in zip(("th", *["td"] * len(self.rows)), self.rows, strict=False)
        )
        rows = "".join(f"<tr>{row}</tr>" for row in body)
        table = f'<table class="docutils"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        wrapped = f'<div class="table-wrapper docutils container">{table}</div>'
        return (
            f"<details><summary>{html.escape(self.caption)}</summary>{wrapped}</details>" if self.caption else wrapped
        )


def table(rows: Sequence[Sequence[str]], caption: str = "") -> Table:
    """Show rows as a table; a caption folds it."""
    return Table(rows, caption)


def on_card(figure: Any) -> Any:
    """Lay a figure on the white card, in its ink."""
    in_ink(figure, INK)
    figure.set_facecolor(CARD)
    return figure


def _canvas(width: float, height: float) -> Any:
    """Empty axes of a new figure whose data units are inches."""
    figure = new_figure(width, height)
    figure.set_facecolor(CARD)
    axes = figure.add_subplot()
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return axes


def _box(axes: Any, x: float, y: float, width: float, height: float, text: str, color: str = INK) -> None:
    """A box around the point (x, y) with its text inside."""
    from matplotlib.patches import Rectangle

    corner = (x - width / 2, y - height / 2)
    axes.add_patch(Rectangle(corner, width, height, facecolor=f"{color}22", edgecolor=color, linewidth=1.3))
    axes.text(x, y, text, ha="center", va="center", color=INK, fontsize=9)


def _arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], color: str = INK, bend: float = 0,
    width: float = 1.2,
) -> None:  # fmt: skip
    style = {"arrowstyle": "-|>", "color": color, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    style["mutation_scale"] = max(10, 3 * width)
    axes.annotate("", end, start, arrowprops={**style, "connectionstyle": f"arc3,rad={bend}"})


def _note(axes: Any, x: float, y: float, text: str, **options: Any) -> None:
    axes.text(x, y, text, color=INK, **{"fontsize": 8.5, "ha": "center", "va": "center", **options})


def _matrix(
    axes: Any, x: float, y: float, size: tuple[float, float], values: Any, label: str, color: str = INK
) -> None:
    """Numbers as colored cells in a frame with its left upper corner at (x, y), and a label above it."""
    from matplotlib.patches import Rectangle

    width, height = size
    values = np.asarray(values) / np.abs(values).max()
    axes.imshow(values, cmap=signed_colors(), norm=signed_range(values, limit=0.8), aspect="auto",
                extent=(x, x + width, y - height, y), interpolation="nearest")  # fmt: skip
    axes.add_patch(Rectangle((x, y - height), width, height, facecolor="none", edgecolor=color, linewidth=1.2))
    _note(axes, x + width / 2, y + 0.1, label, va="bottom", linespacing=1.1)


def _heads(axes: Any, x: float, y: float, size: tuple[float, float], count: int, chosen: Mapping[int, str]) -> None:
    """Cut a matrix into heads, and frame some of them."""
    from matplotlib.patches import Rectangle

    width, height = size[0] / count, size[1]
    for head in range(count):
        color, thick = chosen.get(head, INK), 2.2 if head in chosen else 0.5
        axes.add_patch(Rectangle((x + head * width, y - height), width, height, facecolor="none", edgecolor=color,
                                 linewidth=thick, zorder=3 if head in chosen else 2))  # fmt: skip


def _shape(values: Any) -> str:
    return " × ".join(map(str, np.shape(values)))


def embedded(tokens: Sequence[str], ids: Sequence[int], x: Any, vocabulary: int, shown: int = 40) -> Any:
    """Tokens, their ids, and the rows of the table E that become x, as colored cells."""
    axes = _canvas(5.2, 0.2 * len(tokens) + 0.75)
    top = 0.2 * len(tokens) + 0.1
    for i, (token, number) in enumerate(zip(tokens, ids, strict=True)):
        y = top - 0.2 * i - 0.1
        axes.text(0.95, y, token.strip(), ha="right", va="center", fontsize=8.5, color=INK)
        axes.text(1.45, y, str(number), ha="right", va="center", fontsize=8.5, color=INK)
        _arrow(axes, (1.5, y), (1.78, y), width=0.7)
    _matrix(axes, 1.82, top, (3.3, 0.2 * len(tokens)), x[:, :shown], f"x: {_shape(x)} (first {shown} columns)")
    _note(axes, 0.72, top + 0.1, "token", va="bottom")
    _note(axes, 1.3, top + 0.1, "id", va="bottom")
    _note(axes, 1.62, top + 0.38, f"each id picks one row of the table E, which is {vocabulary} × {x.shape[1]}",
          ha="left", va="bottom")  # fmt: skip
    return axes.figure


def weighted_sum(words: Sequence[str], query: Any, keys: Any, shares: Any, values: Any) -> Any:
    """One query of two numbers, the keys that it is compared with, and the values that it takes: all numbers shown."""
    axes = _canvas(5.3, 0.5 * len(words) + 1.75)
    top, row, columns = 0.5 * len(words) + 0.72, 0.5, {"key": 1.0, "value": 3.45}

    def numbers(x: float, y: float, vector: Any, color: str) -> None:
        for i, number in enumerate(vector):
            text = f"{number:g}" if number == round(number) else f"{number:.3f}"
            _box(axes, x + 0.42 * i, y, 0.42, 0.32, text, color if number else ADDS)

    numbers(columns["key"], top + 0.62, query, BLUE)
    _note(axes, 0.66, top + 0.62, f"query q\nof “{words[-1]}”", ha="right", fontsize=9)
    for label, x, labels in (("key k", 1.0, "person  action"), ("value v", 3.45, "royal  asleep")):
        _note(axes, x + 0.21, top + 0.12, f"{label}\n{labels}", fontsize=9, linespacing=1.4)
    _note(axes, 2.05, top + 0.12, "score\nq · k", fontsize=9, linespacing=1.4)
    _note(axes, 2.78, top + 0.12, "weight\n(softmax)", fontsize=9, linespacing=1.4)
    _note(axes, 4.82, top + 0.12, "weight\n× v", fontsize=9, linespacing=1.4)
    for i, word in enumerate(words):
        y = top - 0.42 - row * i
        _note(axes, 0.66, y, word, ha="right", fontsize=10)
        numbers(columns["key"], y, keys[i], GREEN)
        _note(axes, 2.05, y, f"{keys[i] @ query:g}", fontsize=10)
        _arrow(axes, (2.25, y), (2.5, y), width=0.7)
        _note(axes, 2.78, y, f"{shares[i]:.3f}", fontsize=10)
        _note(axes, 3.12, y, "×", fontsize=10)
        numbers(columns["value"], y, values[i], ORANGE)
        _note(axes, 4.24, y, "=", fontsize=10)
        numbers(4.62, y, shares[i] * values[i], PURPLE)
    y = top - 0.42 - row * len(words) - 0.08
    axes.plot([4.38, 5.28], [y + 0.27] * 2, color=INK, linewidth=0.8)
    _note(axes, 4.24, y, f"sum, what “{words[-1]}” takes:", ha="right", fontsize=9)
    numbers(4.62, y, shares @ values, PURPLE)
    return axes.figure


def plain_shapes(x: Any, q: Any, k: Any, v: Any, maps: Any, head: int) -> Any:
    """Plain attention with its shapes and numbers: the normed x, Q, K and V, one head, and all heads together."""
    axes, H = _canvas(5.3, 4.75), len(q)
    flat = [np.swapaxes(z, 0, 1).reshape(len(x), -1) for z in (q, k, v)]
    _matrix(axes, 1.85, 4.45, (1.6, 0.4), x, f"LN(x): {_shape(x)}")
    for i, (name, z) in enumerate(zip("QKV", flat, strict=True)):
        left = 0.05 + 1.8 * i
        _arrow(axes, (2.65, 4.03), (left + 0.8, 3.72))
        _matrix(axes, left, 3.45, (1.6, 0.4), z, f"{name}: {_shape(z)}")
        _heads(axes, left, 3.45, (1.6, 0.4), H, {head: PURPLE})
    _note(axes, 2.65, 2.88, f"each is cut into {H} heads; one of them (purple):")
    one = {"q": q[head], "kᵀ": k[head].T, "map": maps[head], "v": v[head], "o": maps[head] @ v[head]}
    left, tall, thin = 0.05, 0.85, 0.55
    sizes = {"q": (thin, tall), "kᵀ": (tall, thin), "map": (tall, tall), "v": (thin, tall), "o": (thin, tall)}
    signs = {"q": "·", "kᵀ": "/√d, mask,\nsoftmax →", "map": "·", "v": "="}
    for name, z in one.items():
        _matrix(axes, left, 2.4, sizes[name], z, f"{name}\n{_shape(z)}", PURPLE)
        left += sizes[name][0]
        gap = 0.62 if name == "kᵀ" else 0.3
        if name in signs:
            _note(axes, left + gap / 2, 1.98, signs[name], fontsize=8 if name == "kᵀ" else 13)
        left += gap
    out = np.swapaxes(maps @ v, 0, 1).reshape(len(x), -1)
    _arrow(axes, (left - 0.57, 1.5), (3.5, 1.02), PURPLE)
    _matrix(axes, 1.85, 0.62, (1.6, 0.4), out, f"all {H} heads side by side: {_shape(out)}")
    _heads(axes, 1.85, 0.62, (1.6, 0.4), H, {head: PURPLE})
    _note(axes, 3.6, 0.42, "· W$_O$, then added to x", ha="left")
    return axes.figure


def difference_shapes(x: Any, q: Any, k: Any, v: Any, lambda_: float, eps: float, pair: int) -> Any:
    """Differential attention with the shapes and the numbers that it has, for one pair of heads."""
    axes, H = _canvas(5.3, 4.95), len(q)
    flat = [np.swapaxes(z, 0, 1).reshape(len(x), -1) for z in (q, k, v)]
    both = {pair: BLUE, pair + H // 2: ORANGE}
    _matrix(axes, 1.85, 4.65, (1.6, 0.4), x, f"LN(x): {_shape(x)}")
    for i, (name, z) in enumerate(zip("QKV", flat, strict=True)):
        left = 0.05 + 1.8 * i
        _arrow(axes, (2.65, 4.23), (left + 0.8, 3.92))
        _matrix(axes, left, 3.65, (1.6, 0.4), z, f"{name}: {_shape(z)}")
        _heads(axes, left, 3.65, (1.6, 0.4), H, dict.fromkeys(both, GREEN) if name == "V" else both)
    _note(
        axes, 2.65, 3.08, f"heads {pair} and {pair + H // 2} are a pair: blue makes A₁, orange A₂, green is their value"
    )
    first, second = (layers.attention_weights(q[None, i : i + 1], k[None, i : i + 1])[0, 0] for i in both)
    value = np.concatenate([v[i] for i in both], axis=-1)
    P = first - lambda_ * second
    shown: list[tuple[str, Any, float, str, str]] = [
        ("A₁", first, 0.8, BLUE, f"− {lambda_:.2f} ·"), ("A₂", second, 0.8, ORANGE, "="),
        ("A₁ − λ A₂", P, 0.8, PURPLE, "·"), ("value", value, 0.8, GREEN, "="), ("o", P @ value, 0.8, PURPLE, ""),
    ]  # fmt: skip
    left = 0.05
    for name, z, width, color, sign in shown:
        _matrix(axes, left, 2.55, (width, 0.8), z, f"{name}\n{_shape(z)}", color)
        left += width
        gap = 0.55 if len(sign) > 1 else 0.2
        _note(axes, left + gap / 2, 2.15, sign, fontsize=9 if len(sign) > 1 else 13)
        left += gap
    pairs = [q[: H // 2], q[H // 2 :], k[: H // 2], k[H // 2 :], np.concatenate(np.split(v, 2), axis=-1)]
    out = layers.diff_attention(*(z[None] for z in pairs), np.asarray(lambda_))[0]
    out = out / np.sqrt((out * out).mean(axis=-1, keepdims=True) + eps)
    out = np.swapaxes(out, 0, 1).reshape(len(x), -1)
    _arrow(axes, (4.7, 1.68), (2.9, 1.05), PURPLE)
    _note(axes, 4.0, 1.2, "norm, factor 1 − λ_init", ha="left")
    _matrix(axes, 1.85, 0.65, (1.6, 0.4), out, f"all {H // 2} pairs side by side: {_shape(out)}")
    _heads(axes, 1.85, 0.65, (1.6, 0.4), H // 2, {pair: PURPLE})
    _note(axes, 3.6, 0.45, "· W$_O$, then added to x", ha="left")
    return axes.figure


def token_bars(tokens: Sequence[str], rows: Mapping[str, Any], chosen: Sequence[int] = ()) -> Any:
    """Rows of weights side by side as bars, tokens down; those of `chosen` tokens in purple."""
    figure = new_figure(5.4, 0.17 * len(tokens) + 0.75)
    grid = np.atleast_1d(figure.subplots(1, len(rows), sharey=True))
    limit = 1.25 * max(np.abs(row).max() for row in rows.values())
    for axes, (title, row) in zip(grid, rows.items(), strict=True):
        colors = [PURPLE if i in chosen else BLUE for i in range(len(row))]
        style_axes(axes).barh(range(len(row)), row, 0.75, color=colors)
        for i, weight in enumerate(row):
            if abs(weight) >= 0.015:
                axes.text(
                    weight, i, f" {_signed(weight)} ", va="center", ha="left" if weight > 0 else "right", fontsize=7
                )
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.set_title(title, fontsize=9)
        least = min(0, *(1.6 * np.min(row) for row in rows.values()))
        axes.set(xlim=(least, limit), xticks=[], ylim=(len(row) - 0.5, -0.5))
    grid[0].set_yticks(range(len(tokens)), labels=[token.strip() for token in tokens], fontsize=8)
    for axes in grid:
        axes.tick_params(length=0)
        axes.spines[["bottom", "left"]].set_visible(False)
    return on_card(figure)


def sums(rows: Mapping[str, Any], values: Any, chosen: int, token: str) -> Any:
    """What each row of weights adds up to: the chosen token's weighted value, the sum of all others, and both.

    Two vectors and their sum lie in a plane; it is drawn with the sum to the right. The dotted line drops the chosen
    token's value on the sum: up to there, the output is that token's part.
    """
    figure = new_figure(5.4, 2.2)
    figure.set_facecolor(CARD)
    grid = figure.subplots(1, len(rows), sharex=True, sharey=True)
    for axes, (title, row) in zip(grid, rows.items(), strict=True):
        own, whole = row[chosen] * values[chosen], row @ values
        length = float(np.linalg.norm(whole))
        along = float(own @ whole) / length
        tip = along, float(np.sqrt(max(own @ own - along**2, 0)))
        for start, end, color in (((0, 0), tip, PURPLE), (tip, (length, 0), BLUE), ((0, 0), (length, 0), INK)):
            _arrow(axes, start, end, color, width=2.4 if color == INK else 1.6)
        axes.plot([along, along], [0, tip[1]], color=INK, linestyle=":", linewidth=1)
        axes.scatter([0, along, length], [0, tip[1], 0], s=0)  # arrows alone do not widen the axes
        axes.set_title(f"{title}: {along / length:.0%}", fontsize=9)
        axes.set(aspect="equal")
        axes.axis("off")
        axes.margins(0.12)
    for label, color in ((f"value of “{token}” × its weight", PURPLE), ("all other tokens", BLUE), ("the output", INK)):
        grid[0].plot([], [], color=color, linewidth=2, label=label)
    figure.legend(loc="lower center", ncols=3, fontsize=8.5, frameon=False, bbox_to_anchor=(0.5, -0.05))
    return on_card(figure)


def residual_stream(layers: int = 6) -> Any:
    """The model: embedding, layers that add to the residual stream, norm, and scores for every next token."""
    axes = _canvas(5.2, 4.1)
    x = 1.0
    _box(axes, x, 3.85, 1.5, 0.34, "embedding: E[id]", GREEN)
    _arrow(axes, (x, 3.68), (x, 0.92))
    for y, label, color in ((3.0, "attention", ORANGE), (1.95, "SwiGLU", BLUE)):
        _arrow(axes, (x, y), (1.75, y), color)
        _box(axes, 2.2, y, 0.9, 0.36, "RMSNorm")
        _arrow(axes, (2.65, y), (2.95, y), color)
        _box(axes, 3.4, y, 0.9, 0.36, label, color)
        axes.plot([3.4, 3.4], [y - 0.18, y - 0.5], color=color, linewidth=1.2)
        _arrow(axes, (3.4, y - 0.5), (x + 0.1, y - 0.5), color)
        axes.plot([x], [y - 0.5], marker="o", markersize=13, color=color, markerfacecolor="none")
        _note(axes, x, y - 0.5, "+", fontsize=11)
    axes.add_patch(_frame(0.55, 1.2, 3.5, 2.1))
    _note(axes, 4.15, 2.2, f"× {layers} layers", ha="left")
    _note(axes, 0.42, 2.25, "x, the residual stream", rotation=90)
    _box(axes, x, 0.74, 0.9, 0.34, "RMSNorm")
    _arrow(axes, (x, 0.57), (x, 0.4))
    _box(axes, x, 0.22, 1.7, 0.34, "logits: x Eᵀ", GREEN)
    return axes.figure


def _frame(x: float, y: float, width: float, height: float, color: str = INK) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor="none", edgecolor=color, linewidth=0.8, linestyle="--")


def leading_maps(maps: Any, start: int = 32) -> tuple[Any, Any, Any]:
    """The map with the larger factor, the other, and how much of the other is subtracted, for queries from `start` on.

    For λ above 1 it is A₂, from which A₁/λ is subtracted: the norm behind it removes the factor −λ.
    """
    strengths = maps.lambdas[:, None, None, None]
    first, second = maps.first[:, :, start:], maps.second[:, :, start:]
    exchanged = strengths > 1
    leading, other = np.where(exchanged, second, first), np.where(exchanged, first, second)
    return leading, other, np.where(exchanged, 1 / np.where(exchanged, strengths, 1), strengths)


def breadth(a: Any, start: int = 32) -> Any:
    """Over how many tokens rows spread: the exponential of the entropy, mean over the queries from `start` on."""
    logs = np.log(np.where(a > 0, a, 1))
    return np.exp(-(a * logs).sum(axis=-1))[..., start:].mean(axis=-1)


def size_spread(results: Any) -> float:
    """How the sizes (root mean square) of a layer's results (heads, tokens, d) vary between heads."""
    means = np.sqrt((results**2).mean(axis=-1)).mean(axis=-1)
    return float(means.std() / means.mean())


@for_two_widths
def last_rows(
    maps: Any, tokens: Sequence[str], notes: Mapping[int, str], names: Sequence[int], *, narrow: bool = False
) -> Any:
    """What the last token takes from each token, in the layers `names`: (layers, pairs, keys), with notes.

    A line is a pair of heads; in the narrow figure, a column.
    """
    layers, pairs, _ = np.shape(maps)
    rows = np.reshape(maps, (-1, len(tokens)))
    axes = new_axes(None, *((4.7, 4.6) if narrow else (8.4, 3.6)))
    shown = rows.T if narrow else rows
    axes.imshow(shown, cmap=signed_colors(), norm=signed_range(rows, limit=1.5), aspect="auto")
    for (row, column), weight in np.ndenumerate(shown):
        if abs(weight) >= 0.005:
            number = f"{weight:.1f}" if narrow and abs(weight) >= 1 else f"{weight:.2f}"
            number = number.replace("0.", ".") if narrow else number
            axes.text(column, row, number.replace("-", "−"), ha="center", va="center", fontsize=9)
    words = [token.strip() for token in tokens]
    if narrow:
        axes.set_yticks(range(len(words)), labels=words, fontsize=10)
        axes.set_xticks(range(len(rows)), labels=[f"pair\n{j}" for _, j in np.ndindex(layers, pairs)], fontsize=9)
        draw_line, title = axes.axvline, ""
        for layer in range(layers):
            note = f"layer {names[layer]}\n{notes.get(layer, '')}"
            axes.text((layer + 0.5) * pairs - 0.5, -0.65, note, ha="center", va="bottom", fontsize=9)
    else:
        axes.set_xticks(range(len(words)), labels=words, rotation=35, ha="right", fontsize=9.5)
        labels = [f"layer {names[i]}, pair {j}" if j == 0 else f"pair {j}" for i, j in np.ndindex(layers, pairs)]
        axes.set_yticks(range(len(rows)), labels=labels, fontsize=9)
        draw_line, title = axes.axhline, f"what “{words[-1]}” takes from each token (blank: below 0.005)"
        for layer, note in notes.items():
            axes.text(len(tokens) - 0.35, (layer + 0.5) * pairs - 0.5, note, va="center", fontsize=9)
    for layer in range(1, layers):
        draw_line(layer * pairs - 0.5, color=INK, linewidth=0.8)
    axes.set_title(title, fontsize=10)
    return on_card(axes.figure)


def pairing() -> Any:
    """Which query heads are a pair and which keys they read: in the paper, in Hugging Face's code and in V2."""
    axes = _canvas(9.4, 3.0)
    variants: dict[str, Any] = {
        "paper: neighbors": lambda i: ((2 * i, 2 * i + 1), (2 * (i // 2), 2 * (i // 2) + 1)),
        "Hugging Face: halves": lambda i: ((i, i + 4), (i // 2, i // 2 + 2)),
        "V2: neighbors, one key": lambda i: ((2 * i, 2 * i + 1), (i, i)),
    }
    for panel, (title, heads_of) in enumerate(variants.items()):
        left = 0.25 + 3.15 * panel
        _note(axes, left + 1.38, 2.82, title, fontsize=10)
        keys_at = [left + 0.34 + 0.7 * j for j in range(4)]
        for i, color in enumerate(SERIES):
            queries, keys = heads_of(i)
            ends = [left + 0.12 + 0.36 * a for a in queries]
            for x, a, b, style in zip(ends, queries, keys, ("-", "--"), strict=True):
                axes.plot([x, keys_at[b]], [2.0, 0.87], color=color, linewidth=1.3, linestyle=style)
                _box(axes, x, 2.15, 0.31, 0.3, f"q{a}", color)
            bend = -0.45 if ends[1] - ends[0] < 0.5 else -0.25
            axes.annotate("", (ends[1], 2.31), (ends[0], 2.31), arrowprops={
                "arrowstyle": "-", "color": color, "shrinkA": 0, "shrinkB": 0, "connectionstyle": f"arc3,rad={bend}",
            })  # fmt: skip
        for j, x in enumerate(keys_at):
            _box(axes, x, 0.72, 0.36, 0.3, f"k{j}")
    _note(axes, 4.7, 0.25, "8 query heads, 4 key heads. One color is one pair: solid makes A₁, dashed makes A₂.")
    return axes.figure


def cache() -> Any:
    """What three steps of generation compute without a cache and with one: keys, values and rows of a map."""
    from matplotlib.patches import Rectangle

    axes, side = _canvas(5.3, 5.3), 0.19
    for half, title in enumerate(("without a cache", "with a cache of keys and values")):
        top = 5.1 - 2.4 * half
        _note(axes, 2.6, top, title, fontsize=10)
        for step, T in enumerate((4, 5, 6)):
            corner = 0.4 + 1.65 * step
            for n, name in enumerate("qkv"):
                y = top - 0.38 - 0.22 * n
                _note(axes, corner - 0.1, y + 0.1, name)
                for s in range(T):
                    ground = ORANGE if s == T - 1 or half == 0 else "none" if name == "q" else HIDDEN
                    axes.add_patch(Rectangle((corner + s * side, y), side, side, edgecolor=INK, linewidth=0.5,
                                             facecolor=ground))  # fmt: skip
            for t, s in zip(*np.tril_indices(T), strict=True):
                ground = f"{ORANGE}bb" if t == T - 1 or half == 0 else "none"
                at = (corner + s * side, top - 0.9 - (t + 1) * side)
                axes.add_patch(Rectangle(at, side, side, edgecolor=INK, linewidth=0.5, facecolor=ground))
            _note(axes, corner + 0.6, top - 2.17, f"token {T}: {'1 row' if half else f'{T} rows'}")
    _note(axes, 2.65, 0.18, "strips: a query, a key and a value for each token; staircase: each map\n"
          "orange: computed in this step; gray: kept; white: not needed again")  # fmt: skip
    return axes.figure


def modes() -> Any:
    """One mistake in a trace, as the two ways to compare report it."""
    axes = _canvas(9.2, 2.1)
    names = ("x", "q, k, v", "λ_init", "λ", "A₁, A₂", "A₁ − λA₂", "LN", "out", "…")
    rows = (
        ("free:\nyour run against another run", (2, 3, 5, 6, 7, 8)),
        ("local: each point from\nyour own inputs to it", (2,)),
    )
    for y, (title, wrong) in zip((1.65, 0.8), rows, strict=True):
        _note(axes, 0.95, y, title)
        for i, name in enumerate(names):
            x = 2.35 + 0.8 * i
            if i:
                _arrow(axes, (x - 0.45, y), (x - 0.34, y))
            _box(axes, x, y, 0.68, 0.42, name, ORANGE if i in wrong else INK)
    _note(axes, 5.5, 0.2, "The mistake is in λ_init. Orange: reported as different.")
    return axes.figure


def two_modes(labels: Sequence[str], errors: Mapping[str, Sequence[float]], limit: float) -> Any:
    """The relative error of each point of a layer's trace in each mode, as dots on stems; orange above the limit."""
    figure = new_figure(9.2, 5.4)
    grid = figure.subplots(len(errors), 1, sharex=True, sharey=True)
    for axes, (mode, row) in zip(grid, errors.items(), strict=True):
        wrong = [error > limit for error in row]
        colors = [ORANGE if one else BLUE for one in wrong]
        style_axes(axes).vlines(range(len(row)), 1e-12, row, color=colors, linewidth=1.2)
        axes.scatter(range(len(row)), row, s=14, color=colors, zorder=3)
        axes.axhline(limit, color=INK, linestyle=":", linewidth=1)
        axes.set_title(f"{mode}: wrong points {sum(wrong)} of {len(row)}", fontsize=10)
        axes.set(yscale="log", ylabel="relative error", ylim=(5e-13, 10), xlim=(-0.7, len(row) - 0.5))
    grid[-1].set_xticks(range(len(labels)), labels=labels, rotation=50, ha="right", fontsize=9)
    return on_card(figure)


def two_tests(oracle: Mapping[str, float], loose: Mapping[str, float]) -> Any:
    """The error of some kernels in parts of what two tests allow: right of 1 a test fails."""
    axes = new_axes(None, 8.4, 3.3)
    at = np.arange(len(oracle))
    axes.scatter(oracle.values(), at - 0.12, color=ORANGE, marker="o", label="oracle: worst row ÷ allowed", zorder=3)
    tolerance = "tolerance: error ÷ 1e-3 of the largest number"
    axes.scatter(loose.values(), at + 0.12, color=BLUE, marker="D", label=tolerance, zorder=3)
    axes.axvline(1, color=INK, linestyle=":")
    axes.axvspan(1, 1e9, color=HIDDEN, alpha=0.4, linewidth=0)
    axes.set_yticks(at, labels=list(oracle))
    axes.invert_yaxis()
    limits = (min(*oracle.values(), *loose.values()) / 3, max(*oracle.values(), *loose.values()) * 3)
    axes.set(xscale="log", xlim=limits, xlabel="error ÷ allowed error (gray: the test fails)")
    legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return on_card(axes.figure)


def stacked(shares: Mapping[str, Mapping[str, float]], xlabel: str) -> Any:
    """One bar for each model, cut into parts that sum to 1."""
    axes = new_axes(None, 8.4, 0.75 * len(shares) + 1.2)
    begin = np.zeros(len(shares))
    for part, color in zip(next(iter(shares.values())), SERIES, strict=False):
        sizes = np.array([one[part] for one in shares.values()])
        axes.barh(range(len(shares)), sizes, 0.75, left=begin, facecolor=f"{color}55", edgecolor=color)
        for y, (left, size) in enumerate(zip(begin, sizes, strict=True)):
            axes.text(
                left + size / 2, y, f"{part.replace(', ', chr(10))}\n{size:.2f}", ha="center", va="center", fontsize=8
            )
        begin += sizes
    axes.set_yticks(range(len(shares)), labels=list(shares))
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel=xlabel)
    return on_card(axes.figure)


@for_two_widths
def first_losses(steps: Sequence[int], losses: Mapping[str, Any], *, narrow: bool = False) -> Any:
    """The loss of each run while training sequences are short."""
    return runs(steps, losses, "step", "loss, 8 tokens", narrow=narrow, ylim=(0, 0.6))


@for_two_widths
def found_by_length(accuracies: Mapping[str, Any], guesses: Mapping[str, float], *, narrow: bool = False) -> Any:
    """The share of numbers found by the tokens of a sequence: each run, the mean of each kind, and a guess."""
    places, options = range(len(guesses)), {"xticklabels": list(guesses), "ylim": (0, 1.02)}
    return runs(places, accuracies, "tokens in a sequence", "numbers found", guess=list(guesses.values()),
                narrow=narrow, xticks=places, **options)  # fmt: skip


@for_two_widths
def differences_by_length(
    panels: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]], *, narrow: bool = False
) -> Any:
    """A panel for each measure: how far each kind is from plain attention by length, with its intervals."""
    figure = new_figure(4.8 if narrow else 9.0, 7.6 if narrow else 3.3)
    grid = figure.subplots(*((len(panels), 1) if narrow else (1, len(panels))))
    for axes, (title, by_kind) in zip(grid, panels.items(), strict=True):
        style_axes(axes).axhline(0, color=INK, linewidth=0.8)
        for shift, (kind, found) in zip((-0.1, 0.1), by_kind.items(), strict=True):
            color, marker = KINDS[kind]
            mean, half = np.transpose(list(found.values()))
            axes.errorbar(np.arange(len(found)) + shift, mean, half, color=color, marker=marker, markersize=5,
                          capsize=3, label=kind)  # fmt: skip
            axes.set_xticks(range(len(found)), labels=list(found), fontsize=8.5)
        axes.set_title(f"{title},\nminus plain attention", fontsize=10)
        axes.set(xlabel="tokens in a sequence" if axes is grid[-1] or not narrow else "")
        if axes is grid[0] or narrow:
            axes.set_ylabel("percentage points")
    legend(grid[0], loc="upper left")
    return on_card(figure)


@for_two_widths
def losses_by_step(
    panels: Mapping[str, Mapping[str, Mapping[int, tuple[float, float]]]], frequencies: float, *, narrow: bool = False
) -> Any:
    """A panel for each optimizer: the validation loss of each kind by step, with intervals, and a level to beat."""
    figure = new_figure(4.8 if narrow else 9.0, 6.4 if narrow else 3.5)
    grid = figure.subplots(*((len(panels), 1) if narrow else (1, len(panels))), sharex=True, sharey=True)
    for axes, (title, of_kinds) in zip(grid, panels.items(), strict=True):
        style_axes(axes).axhline(frequencies, color=INK, linestyle=":", linewidth=1, label="token frequencies alone")
        for i, (kind, by_step) in enumerate(of_kinds.items()):
            color, marker = KINDS[kind.split(",")[0]]
            mean, half = np.transpose(list(by_step.values()))
            axes.errorbar(np.array(list(by_step)) + 4 * i, mean, half, color=color, marker=marker, markersize=4,
                          capsize=3, linestyle="--" if "," in kind else "-", label=kind)  # fmt: skip
        axes.set_title(f"trained with {title}", fontsize=10)
        axes.set(xlabel="step" if axes is grid[-1] or not narrow else "")
        if axes is grid[0] or narrow:
            axes.set_ylabel("validation loss (nats per token)")
    handles, labels = grid[0].get_legend_handles_labels()
    columns = 2 if narrow else len(labels)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, fontsize=9, frameon=False)
    return on_card(figure)


def memory(lengths: Any, lines: Mapping[str, Any], free: float, room: Sequence[int]) -> Any:
    """Gigabytes by the length of a text, each line named at its end, and the lengths at which memory is full."""
    axes = new_axes(None, 7.6, 3.8)
    for (name, y), color, style in zip(lines.items(), (ORANGE, GREEN, BLUE), STYLES, strict=False):
        axes.plot(lengths, y, color=color, linestyle=style)
        axes.annotate(name, (lengths[-1], y[-1]), (6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.plot(lengths, [free, free], color=INK, linewidth=1)
    axes.annotate(f"free memory: {free:g} GB", (lengths[-1], free), (6, 0), textcoords="offset points", va="center",
                  fontsize=9)  # fmt: skip
    for tokens, color in zip(room, (ORANGE, GREEN), strict=True):
        axes.plot([tokens, tokens], [0, free], color=color, linewidth=1, linestyle=":")
        axes.plot([tokens], [free], "o", color=color)
        axes.annotate(f"{round(tokens, -2):,}\ntokens", (tokens, 0.38 * free), (5, 0), textcoords="offset points",
                      va="center", fontsize=9)  # fmt: skip
    axes.set(xlabel="tokens", ylabel="gigabytes", xlim=(0, lengths[-1]), ylim=(0, None))
    axes.set_xticks(np.linspace(*lengths, 5), labels=[f"{tokens:,.0f}" for tokens in np.linspace(*lengths, 5)])
    return on_card(axes.figure)


def attention_case(trace: Any, prefix: str) -> tuple[dict[str, Any], Any]:
    """What goes into the attention of a traced layer of the bundled model, and what comes out: by batch and head."""
    q, k, v, out = (trace[prefix + name] for name in ("q_rope", "k_rope", "v_proj", "scaled"))
    inputs = {"q": q, "k": k, "v": v.reshape(1, -1, 6, 32).swapaxes(1, 2)}
    return inputs, out.reshape(1, -1, 3, 64).swapaxes(1, 2)  # out: (batch, pair, token, 2d)


def copies(weights: int, there: int, back: int, cache: int, logits: int) -> Any:
    """What crosses between the memories of host and GPU as text is generated; arrows are log₁₀ of the bytes wide."""
    axes = _canvas(9.2, 2.9)
    for x, width, title in ((0.2, 2.3, "host"), (6.0, 3.0, "GPU")):
        axes.add_patch(_frame(x, 0.35, width, 2.2))
        _note(axes, x + width / 2, 2.7, title, fontsize=10)
    crossings = (
        (2.15, "checkpoint", "weights", "once", weights, 1),
        (1.45, "id, position, length", "one step", "each step", there, 1),
        (0.75, "next id", "logits → choice", "each step", back, -1),
    )
    for y, left, right, when, size, way in crossings:
        color = BLUE if way > 0 else ORANGE
        _box(axes, 1.35, y, 1.9, 0.46, left, color)
        _box(axes, 7.5, y, 2.6, 0.46, right, color)
        ends = ((2.35, y), (6.15, y))
        _arrow(axes, *ends[::way], color=color, width=1.5 * np.log10(size))
        _note(axes, 4.25, y + 0.22, f"{when}: {size:,} bytes")
    _note(
        axes, 4.6, 0.12, f"Stays on the GPU: {cache:,} bytes of keys and values a token, {logits:,} of logits a step."
    )
    return axes.figure


def namespaces() -> Any:
    """A layer asks an array for its library, and calls the functions of that library."""
    axes = _canvas(9.2, 2.7)
    middle = 1.35
    _box(axes, 3.05, middle, 1.9, 0.5, "xp = namespace(x)", PURPLE)
    _note(axes, 3.05, middle - 0.45, "the only step that\nknows of libraries", va="top")
    _box(axes, 8.1, middle, 1.7, 0.5, "xp.exp(x)", PURPLE)
    _note(axes, 8.1, middle - 0.45, "the layer: one source", va="top")
    rows = ((2.25, "numpy", BLUE), (middle, "cupy", GREEN), (0.45, "array_api_strict", ORANGE))
    for y, library, color in rows:
        _box(axes, 0.85, y, 1.4, 0.46, f"array x of\n{library}", color)
        _arrow(axes, (1.55, y), (2.08, middle + 0.2 * (y - middle)), color)
        _box(axes, 5.55, y, 1.6, 0.46, f"xp is {library}", color)
        _arrow(axes, (4.02, middle + 0.2 * (y - middle)), (4.73, y), color)
        _arrow(axes, (6.37, y), (7.23, middle + 0.2 * (y - middle)), color)
    return axes.figure


def haystack() -> Any:
    """The look-up task: names with their numbers among fillers, and a name that comes again."""
    axes = _canvas(5.3, 2.5)
    row = ("·", "a", "7", "·", "·", "d", "2", "·", "i", "5", "·", "·", "d", "·")
    places = [0.28 + 0.365 * i for i in range(len(row))]
    for x, name in zip(places, row, strict=True):
        _box(axes, x, 1.2, 0.31, 0.34, name, INK if name == "·" else GREEN if name.isdigit() else BLUE)
    thick = {"arrowstyle": "-|>", "color": ORANGE, "linewidth": 2.0, "connectionstyle": "arc3,rad=0.4"}
    axes.add_patch(_frame(places[5] - 0.18, 1.0, places[7] - places[5] + 0.36, 0.4, ORANGE))
    axes.annotate("", (places[6], 1.46), (places[12], 1.4), arrowprops=thick)
    _note(axes, places[8], 2.35, "answer: the name d, its number 2, and the token after it")
    for i in (1, 3, 8, 10):
        _arrow(axes, (places[12], 1.0), (places[i], 0.95), bend=-0.2)
    _note(axes, places[4], 0.12, "attention to other needles and to fillers (·): noise")
    _note(axes, places[12], 0.55, "question: the model\nmust say 2")
    return axes.figure


@for_two_widths
def bars(
    rows: Mapping[str, Any], needle: int, names: Sequence[str] = (), apart: int = 0, *, narrow: bool = False
) -> Any:
    """Rows of weights over keys as bars, below each other on one scale; the key that matters in orange.

    The first `apart` rows have scales of their own.
    """
    figure = new_figure(4.6 if narrow else 8.0, 1.25 * len(rows) + 0.4)
    grid = figure.subplots(len(rows), 1, sharex=True)
    for number, (axes, (title, row)) in enumerate(zip(grid, rows.items(), strict=True)):
        if number > apart:
            axes.sharey(grid[apart])
        style_axes(axes).bar(
            range(len(row)), row, 0.7, color=[ORANGE if s == needle else BLUE for s in range(len(row))]
        )
        axes.axhline(0, color=INK, linewidth=0.5)
        axes.set_title(title, fontsize=10, loc="left")
    grid[-1].set_xlabel("key")
    grid[len(rows) // 2].set_ylabel("weight" if not names else "")
    if names:
        name_ticks(grid[-1], names, "x")
    return on_card(figure)


def curves(
    x: Any,
    lines: Mapping[str, Any],
    xlabel: str,
    ylabel: str,
    *,
    band: tuple[float, float, str] | None = None,
    legend_at: Any = "best",
    **options: Any,
) -> Any:
    """Named curves over one x; `options` are properties of the axes.

    A `band` from one x to another is shaded and has a name.
    """
    axes = new_axes(None, 5.4, 3.3)
    for i, (label, y) in enumerate(lines.items()):
        axes.plot(x, y, color=SERIES[i], linestyle=STYLES[i], marker=MARKERS[i], markersize=4, label=label)
    if band is not None:
        axes.axvspan(*band[:2], color=HIDDEN, linewidth=0, label=band[2])
    if all(isinstance(place, int | np.integer) for place in x):
        use_integer_ticks(axes.xaxis)
    axes.set(xlabel=xlabel, ylabel=ylabel, **options)
    if "yticks" in options:
        axes.minorticks_off()
    if len(lines) > 4:
        axes.figure.set_figheight(4.2)
        legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    else:
        legend(axes, loc=legend_at)
    return on_card(axes.figure)


def share_by_strength(x: Any, shares: Mapping[str, Any], limits: Mapping[str, tuple[float, float]]) -> Any:
    """The needle's share by λ for some needles: where each is best, and where it is back at what A₁ alone gives.

    limits: of each needle, λ* and the λ at which the gain is gone, as the rule has them.
    """
    axes = new_axes(None, 5.4, 3.6)
    for i, (name, share) in enumerate(shares.items()):
        best, gone = limits[name]
        axes.plot(x, share, color=SERIES[i], linestyle=STYLES[i], label=name)
        axes.plot([0, gone], [share[0]] * 2, color=SERIES[i], linewidth=0.9, linestyle=":")
        axes.axvline(best, color=SERIES[i], linewidth=0.9, linestyle=":")
        axes.plot([gone], [share[0]], "o", color=SERIES[i], markersize=9, fillstyle="none")
        axes.annotate(f"λ* = {best:.2f}", (best, 0.02), (3, 0), textcoords="offset points", fontsize=9)
        axes.annotate(f"the gain is gone: λ = {gone:.2f}", (gone, share[0]), (7, 4), textcoords="offset points",
                      fontsize=9)  # fmt: skip
    axes.set(xlabel="strength λ", ylabel="share of the needle", xlim=(0, x[-1]), ylim=(0, 1.04))
    legend(axes, loc="upper right", bbox_to_anchor=(1, 0.8))
    return on_card(axes.figure)


@for_two_widths
def gain_by_correlation(
    rho: Any, panels: Mapping[str, Mapping[str, Any]], trained: tuple[float, float], *, narrow: bool = False
) -> Any:
    """The share of a needle by the correlation of the two maps' scores: a panel for each needle, one legend.

    trained: from which ρ to which the layers of a trained model are; it is shaded.
    """
    figure = new_figure(4.8 if narrow else 9.0, 6.0 if narrow else 3.3)
    grid = figure.subplots(*((len(panels), 1) if narrow else (1, len(panels))), sharey=True, sharex=True)
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        style_axes(axes).axvspan(*trained, color=HIDDEN, linewidth=0, label="a trained model,\nlayers 1 to 5")
        for i, (label, y) in enumerate(lines.items()):
            color, marker = (INK, "") if i == 0 else (SERIES[i - 1], MARKERS[i - 1])
            axes.plot(rho, y, color=color, linestyle="--" if i == 0 else "-", marker=marker, markersize=4, label=label)
        axes.set(ylim=(0, 1), ylabel="share of the needle" if axes is grid[0] or narrow else "")
        axes.set_title(title, fontsize=10)
    for axes in grid[-1:] if narrow else grid:
        axes.set_xlabel("correlation ρ of the scores")
    if narrow:
        legend(grid[0], loc="upper left", ncols=2)
    else:
        legend(grid[-1], loc="upper left", bbox_to_anchor=(1, 1))
    return on_card(figure)


def strengths_by_layer(lambdas: Any) -> Any:
    """From the λ_init of each layer an arrow to the λ that training made of it, and what λ outside of 0 to 1 means."""
    axes = new_axes(None, 5.6, 3.5)
    axes.axhspan(0, 1, color=HIDDEN, linewidth=0)
    starts = [layers.lambda_init(layer) for layer in range(len(lambdas))]
    axes.plot(starts, "_", color=INK, markersize=16, label="λ_init, near which it began")
    for layer, (start, end) in enumerate(zip(starts, lambdas, strict=True)):
        color = ADDS if end < 0 else BLUE
        if abs(end - start) > 0.1:
            _arrow(axes, (layer, start), (layer, end - 0.06 * np.sign(end - start)), color)
        axes.plot([layer], [end], "o", color=color, label="λ after training" if layer == 0 else None)
        text = _signed(end) + "\nadds" * bool(end < 0)
        axes.annotate(text, (layer, end), (9, -3), textcoords="offset points", fontsize=9)
    for y, text in ((1.15, "above 1: A₂ leads"), (0.5, "A₂ is subtracted"), (-0.4, "below 0: A₂ is added")):
        axes.text(5.75, y, text, fontsize=9, va="center")
    axes.set(xlim=(-0.4, 8.2), ylim=(-1, 1.8), xlabel="layer", ylabel="λ", xticks=range(len(lambdas)))
    legend(axes, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return on_card(axes.figure)


def _signed(number: float) -> str:
    """Two decimals, and a minus sign instead of a hyphen."""
    return f"{number:.2f}".replace("-", "−")


@for_two_widths
def breadths(spread: Any, lambdas: Any, *, narrow: bool = False) -> Any:
    """Over how many tokens both maps (two, layers, pairs) spread: a line from A₁ to A₂ for each pair of each layer."""
    axes = new_axes(None, 4.8 if narrow else 7.6, 3.2)
    pairs = spread.shape[-1]
    at = np.arange(spread[0].size) + 1.2 * (np.arange(spread[0].size) // pairs)
    first, second = spread.reshape(2, -1)
    axes.vlines(at, first, second, color=INK, linewidth=1)
    for y, color, marker, label in ((first, BLUE, "o", "A₁"), (second, ORANGE, "D", "A₂")):
        axes.plot(at, y, marker, color=color, label=label, markersize=5)
    names = [f"layer {i}\nλ = {_signed(x)}" if not narrow else f"{i}\n{_signed(x)}" for i, x in enumerate(lambdas)]
    names = [name + "\nadds" * bool(x < 0) for name, x in zip(names, lambdas, strict=True)]
    for layer in np.flatnonzero(np.asarray(lambdas) < 0):
        axes.axvspan(at[layer * pairs] - 0.7, at[(layer + 1) * pairs - 1] + 0.7, color=HIDDEN, linewidth=0)
    axes.set_xticks(at.reshape(-1, pairs).mean(axis=1), labels=names, fontsize=9)
    axes.set(ylabel="tokens a row spreads over", ylim=(0, None), xlabel="layer and its λ" if narrow else "")
    legend(axes, loc="upper center", ncols=2)
    return on_card(axes.figure)


def correlation_dots(own: Any, across: Any, lambdas: Any) -> Any:
    """Correlations of scores as dots by layer: of the maps of a pair (layers, pairs), and of different pairs."""
    axes = new_axes(None, 5.4, 3.3)
    for shift, values, color, marker, label in (
        (-0.13, own, BLUE, "o", "A₁ and A₂ of a pair"), (0.13, across, ADDS, "D", "of different pairs"),
    ):  # fmt: skip
        x = np.repeat(np.arange(len(values)), values.shape[1]) + shift
        axes.plot(x, values.ravel(), marker, color=color, markersize=6, alpha=0.75, label=label, linestyle="")
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.axhline(1, color=INK, linewidth=0.9, linestyle=":")
    axes.annotate("the same noise", (0, 1), (0, -11), textcoords="offset points", fontsize=9)
    names = [f"layer {i}" + "\nadds" * bool(x < 0) for i, x in enumerate(lambdas)]
    axes.set(ylabel="correlation ρ of scores", ylim=(-0.4, 1.08))
    axes.set_xticks(range(len(own)), labels=names, fontsize=9)
    for layer in np.flatnonzero(np.asarray(lambdas) < 0):
        axes.axvspan(layer - 0.4, layer + 0.4, color=HIDDEN, linewidth=0)
    legend(axes, loc="upper right", bbox_to_anchor=(1, 0.93))
    return on_card(axes.figure)


def group_bars(series: Mapping[str, Mapping[str, float]], title: str) -> Any:
    """Horizontal bars in groups: a group for each name in a series, a bar in it for each series."""
    names = list(next(iter(series.values())))
    axes = new_axes(None, 5.4, 0.24 * len(series) * len(names) + 1.1)
    for i, (label, values) in enumerate(series.items()):
        y = np.arange(len(names)) + 0.27 * (i - (len(series) - 1) / 2)
        axes.barh(y, values.values(), 0.24, color=(HIDDEN, GREEN, BLUE)[i], label=label)
        for at, value in zip(y, values.values(), strict=True):
            axes.text(value + 0.01, at, f"{value:.2f}", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), labels=names)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.05), title=title)
    axes.title.set_fontsize(10)
    legend(axes, loc="upper center", bbox_to_anchor=(0.45, -0.08), ncols=len(series))
    return on_card(axes.figure)


def groups(series: Mapping[str, Mapping[str, float]], ylabel: str, title: str = "", **options: Any) -> Any:
    """Bars in groups: one group for each name in a series, one bar in it for each series; of five the first is gray."""
    axes = viz.plot_attention_to({name: dict(one) for name, one in series.items()})
    if len(series) > len(SERIES):
        for bars, color, hatch in zip(axes.containers, ("#999999", *SERIES), ("", "", "//", "..", "xx"), strict=True):
            for bar in bars:
                bar.set(facecolor=color, hatch=hatch)
        legend(axes)
    axes.set(ylabel=ylabel, title=title, **options)
    axes.figure.set_size_inches(9, 3.6)
    return on_card(axes.figure)


def loss_bars(losses: Mapping[str, float], guess: float) -> Any:
    """One bar for the loss of each reading of a checkpoint, and a line at that of a uniform guess."""
    axes = new_axes(None, 8.4, 2.9)
    least = min(losses.values())
    axes.barh(range(len(losses)), losses.values(), 0.65,
              color=[BLUE if loss < least + 0.01 else ORANGE for loss in losses.values()])  # fmt: skip
    for i, loss in enumerate(losses.values()):
        axes.text(loss + 0.08, i, f"{loss:.2f}", va="center", fontsize=9)
    axes.axvline(guess, color=INK, linestyle=":")
    axes.text(guess, -0.75, "a uniform guess", ha="center", fontsize=9)
    axes.set_yticks(range(len(losses)), labels=list(losses))
    axes.invert_yaxis()
    axes.set(xlim=(0, None), xlabel="loss (nats per token)")
    return on_card(axes.figure)


@for_two_widths
def cuts(p: Any, names: Sequence[str], k: int, share: float, *, narrow: bool = False) -> Any:
    """The most likely tokens in order, their probabilities and cumulative sum, and where top-k and top-p cut."""
    figure = new_figure(4.8 if narrow else 7.6, 3.3)
    axes = style_axes(figure.add_subplot())
    at, total = np.arange(len(p)), np.cumsum(p)
    axes.bar(at, p, 0.7, color=BLUE, label="probability")
    axes.plot(at, total, color=ORANGE, marker="o", markersize=4, label="sum so far")
    last = int((total < share).sum())
    axes.axhline(share, color=INK, linewidth=0.8, linestyle=":")
    for x, y, text in ((k - 0.5, 0.32, f"top-k {k}\nends here"), (last + 0.5, 0.52, f"top-p {share}\nends here")):
        axes.axvline(x, color=INK, linestyle="--", linewidth=1)
        axes.text(x + 0.1, y, text, fontsize=9, va="center")
    axes.set_xticks(at, labels=names, rotation=50, ha="right", fontsize=9)
    axes.set(ylabel="probability", ylim=(0, 1.05))
    legend(axes, loc="lower right", bbox_to_anchor=(1, 0.12))
    return on_card(figure)


@for_two_widths
def correlations_by_step(moments: Sequence[int], of_kinds: Mapping[str, Any], *, narrow: bool = False) -> Any:
    """ρ in training, a panel for each layer: of each kind the mean and its interval (moments, layers, 2).

    Moments stand side by side, whatever their distance.
    """
    count = next(iter(of_kinds.values())).shape[1]
    figure = new_figure(5.0 if narrow else 9.0, 5.2 if narrow else 3.2)
    grid, x = (
        figure.subplots(*((count // 2, 2) if narrow else (1, count)), sharey=True, sharex=True),
        range(len(moments)),
    )
    for layer, axes in enumerate(grid.flat):
        style_axes(axes)
        for kind, values in of_kinds.items():
            (color, _), (y, half) = KINDS[kind.split(",")[0]], values[:, layer].T
            axes.plot(x, y, color=color, linestyle="--" if "," in kind else "-", linewidth=1.8, label=kind)
            axes.fill_between(x, y - half, y + half, color=color, alpha=0.18, linewidth=0)
        axes.axhline(0, color=INK, linewidth=0.5)
        shown = [moment for moment in (0, 40, 100, 400) if moment in moments]
        axes.set(ylim=(-1, 1), xticks=[moments.index(moment) for moment in shown], xticklabels=shown)
        axes.set_title(f"layer {layer}", fontsize=10)
    figure.supxlabel("step", fontsize=10)
    grid.flat[0].set_ylabel("ρ")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9, frameon=False)
    return on_card(figure)


def runs(
    x: Any, of_kinds: Mapping[str, Any], xlabel: str, ylabel: str, *, guess: Any = None, narrow: bool = False,
    **options: Any,
) -> Any:  # fmt: skip
    """Each run (seeds, x) as a thin line in the color of its kind, and the mean of each kind as a thick one."""
    axes = new_axes(None, 4.8 if narrow else 7.6, 3.4)
    for i, (kind, lines) in enumerate(of_kinds.items()):
        color, _ = KINDS[kind]
        for line in lines:
            axes.plot(x, line, color=color, linewidth=0.8, alpha=0.6)
        mean = np.mean(lines, axis=0)
        axes.plot(x, mean, color=color, linewidth=2.8, linestyle=STYLES[i], label=f"{kind}, mean")
    if guess is not None:
        axes.plot(x, guess, color=INK, linestyle=":", label="guess")
    axes.set(xlabel=xlabel, ylabel=ylabel, **options)
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2 if narrow else 4)
    return on_card(axes.figure)


@for_two_widths
def summary(
    strips: Mapping[str, Mapping[str, Sequence[float]]], beside: Mapping[str, Sequence[str]], *, narrow: bool = False
) -> Any:
    """A strip for each measure, in it a line for each kind, a dot for each run, and a tick at the mean.

    beside: of each measure what is written at the right of its lines. A kind has one color, whatever follows its comma.
    """
    figure, columns = new_figure(4.8 if narrow else 9.0, 7.4 if narrow else 4.4), 1 if narrow else 2
    heights = [len(by_kind) + 1.2 for by_kind in strips.values()]
    if not narrow:
        heights = [max(heights[i : i + 2]) for i in range(0, len(heights), 2)]
    grid = figure.subplots(len(heights), columns, height_ratios=heights, squeeze=False)
    for axes, (title, by_kind) in zip(grid.flat, strips.items(), strict=True):
        style_axes(axes).spines["left"].set_visible(False)
        for y, (name, values) in enumerate(by_kind.items()):
            color, marker = KINDS[name.split(",")[0]]
            axes.plot(values, [y] * len(values), marker, color=color, markersize=6, alpha=0.75, linestyle="")
            axes.plot([np.mean(values)] * 2, [y - 0.4, y + 0.4], color=color, linewidth=2.5)
            axes.text(1.02, y, beside[title][y], transform=axes.get_yaxis_transform(), va="center", fontsize=9)
        axes.set_yticks(range(len(by_kind)), labels=list(by_kind), fontsize=9.5)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8.5)
        axes.set(ylim=(len(by_kind) - 0.4, -0.6))
        axes.set_title(title.replace(" (", "\n("), fontsize=9.5, loc="left", pad=3)
    return on_card(figure)


@for_two_widths
def changes(values: Any, tokens: Sequence[str], swap: str, *, narrow: bool = False) -> Any:
    """How much each token's vector changed (columns), after each layer (rows); the narrow figure has the last six."""
    start = len(tokens) - 6 if narrow else 0
    values, tokens = values[:, start:], tokens[start:]
    axes = new_axes(None, 4.7 if narrow else 8.4, 3.2)
    shown = axes.imshow(values, cmap=signed_colors(), norm=signed_range(values), aspect="auto")
    shown.set_clim(-4 * values.max(), 4 * values.max())  # numbers stay legible on it
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, "0" if value == 0 else f"{value:.2f}", ha="center", va="center", fontsize=9)
    axes.set_xticks(
        range(len(tokens)), labels=tokens, rotation=90 if narrow else 35, ha="center" if narrow else "right"
    )
    axes.set_yticks(range(len(values)), labels=["embedding", *(f"layer {i}" for i in range(len(values) - 1))])
    axes.set_title(f"relative change of each vector after {swap}", fontsize=10)
    axes.tick_params(labelsize=9)
    return on_card(axes.figure)


@for_two_widths
def readout(said: Sequence[Sequence[str]], surety: Any, tokens: Sequence[str], *, narrow: bool = False) -> Any:
    """The logit lens: what the model would say after each token (columns) and layer (rows), and how surely.

    The wide figure has the last ten tokens, the narrow one the last five.
    """
    start = len(tokens) - (5 if narrow else 10)
    axes = new_axes(None, *((4.7, 4.2) if narrow else (8.8, 4.4)))
    axes.imshow(surety[:, start:], cmap=signed_colors(), norm=signed_range(surety, limit=1.6), aspect="auto")
    for (depth, column), sure in np.ndenumerate(surety[:, start:]):
        axes.text(
            column, depth - 0.16, said[depth][start + column].strip() or "␣", ha="center", va="center", fontsize=11
        )
        axes.text(column, depth + 0.25, f"{sure:.2f}", ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(tokens) - start), labels=[f"“{token.strip()}”" for token in tokens[start:]], fontsize=10)
    names = ["embed-\nding" if narrow else "embedding"]
    names += [f"layer {i}" if narrow else f"after layer {i}" for i in range(len(said) - 1)]
    axes.set_yticks(range(len(said)), labels=names, fontsize=10)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_title("the likeliest next word and its probability, after …", fontsize=10)
    return on_card(axes.figure)


def dials(at: Any, places: Sequence[tuple[int, int]], dials: Sequence[int]) -> Any:
    """Query (blue) and key (green) on some dials of a head as hands, for each (position of query, of key).

    at: a query and a key, rotated, at each position: (2, positions, d).
    """
    from matplotlib.patches import Circle

    half = at.shape[-1] // 2
    axes = _canvas(5.6, 1.12 * len(places) + 0.75)
    for column, i in enumerate(dials):
        _note(axes, 1.45 + 0.98 * column, 1.12 * len(places) + 0.4, f"dial {i}:\n{i} and {i + half}", fontsize=9.5)
    _note(axes, 5.3, 1.12 * len(places) + 0.4, f"score, all\n{half} dials", fontsize=9.5)
    for row, (q_at, k_at) in enumerate(places):
        y = 1.12 * (len(places) - row) - 0.45
        _note(axes, 0.08, y, f"query at {q_at}\nkey at {k_at}", ha="left", fontsize=9.5)
        for column, i in enumerate(dials):
            x = 1.45 + 0.98 * column
            axes.add_patch(Circle((x, y), 0.43, facecolor="none", edgecolor=INK, linewidth=0.8))
            for which, position, color in ((0, q_at, BLUE), (1, k_at, GREEN)):
                for t, shade, width in ((0, "55", 1.0), (position, "", 1.8)):  # before the rotation, after it
                    hand = at[which, t, [i, i + half]]
                    hand = 0.38 * hand / np.linalg.norm(hand)
                    _arrow(axes, (x, y), (x + hand[0], y + hand[1]), f"{color}{shade}", width=width)
        score = float(at[0, q_at] @ at[1, k_at])
        _note(axes, 5.3, y, f"{score:.2f}".replace("-", "−"), fontsize=11)
    _note(
        axes, 2.8, 0.04, "blue: query, green: key, pale: before the rotation; hands are drawn equally long", fontsize=9
    )
    return axes.figure


def gradient_sizes(depth: int, seed: int, n: int = 64, D: int = 256, d: int = 16) -> list[float]:
    """‖∂L/∂W_Q‖ of one head: bare difference, with norm, with norm and factor; relative to a plain head."""
    rng, start = np.random.default_rng(seed), layers.lambda_init(depth)
    x, g = rng.standard_normal((2, n, D))
    q, k, v = (x @ w for w in 0.02 * rng.standard_normal((3, D, 2 * d)))
    g = g @ (0.02 * rng.standard_normal((2 * d, D))).T
    q2, k2 = (z.reshape(1, n, 2, d).swapaxes(1, 2) for z in (q, k))
    lambda_, v = np.asarray(start), v[None, None]
    plain = layers.plain_heads_vjp(g[None], q[None, None], k[None, None], v)[0][0, 0]
    bare = layers.diff_attention_vjp(g[None, None], q2[:, :1], k2[:, :1], q2[:, 1:], k2[:, 1:], v, lambda_)
    bare = np.concatenate([bare[0][0, 0], bare[2][0, 0]], axis=-1)
    norms = [
        np.concatenate([*layers.diff_heads_hf_vjp(g[None], q2, k2, v, lambda_, s, 1e-5)[0][0]], -1) for s in (0, start)
    ]
    return [float(np.linalg.norm(x.T @ by_q) / np.linalg.norm(x.T @ plain)) for by_q in (bare, *norms)]


def loss_of(tiny: Any, ids: Any, weights: Any, config: Any) -> float:
    """The loss of a text by the model of chapter 01: the mean of −log p of its next tokens."""
    p = tiny.softmax(tiny.model(ids, weights, config)[:-1])
    return float(-np.log(p[np.arange(len(ids) - 1), ids[1:]]).mean())


@contextmanager
def strengths(model: Any, changed: Mapping[int, float]) -> Iterator[None]:
    """Give layers of a model another λ for a while, by λ vectors of eq. 2 that make it."""
    kept = {layer: model.base_params["layers"][layer]["self_attn"] for layer in changed}
    for layer, strength in changed.items():
        shift = strength - layers.lambda_init(layer)  # exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2)
        unit = np.eye(1, len(kept[layer]["lambda_q1"]))[0]
        model.base_params["layers"][layer]["self_attn"] = kept[layer] | {
            "lambda_q1": unit, "lambda_k1": np.log(max(1 + shift, 1)) * unit,
            "lambda_q2": unit, "lambda_k2": np.log(max(1 - shift, 1)) * unit,
        }  # fmt: skip
    try:
        yield
    finally:
        for layer, params in kept.items():
            model.base_params["layers"][layer]["self_attn"] = params


ARTICLE_SEED = 290
"""That of the drawing with which figure 1 of the article opens."""


def article_draw(keys: int, d: int, seed: int = ARTICLE_SEED) -> tuple[Any, Any, Any]:
    """A query (d,) and two sets of keys (keys, d) of normal numbers, as reference/live/needle.js draws them."""

    def uniform() -> Any:
        """Yield what mulberry32 yields."""
        state, bits = seed, 0xFFFFFFFF
        while True:
            state = (state + 0x6D2B79F5) & bits
            t = (state ^ state >> 15) * (1 | state) & bits
            t ^= t + ((t ^ t >> 7) * (61 | t) & bits) & bits
            yield (t ^ t >> 14) / 2**32

    pairs = np.fromiter(uniform(), float, 2 * 128 * (1 + 2 * keys)).reshape(-1, 128, 2)  # it draws 128 for each
    numbers = (np.sqrt(-2 * np.log(1 - pairs[..., 0])) * np.cos(2 * np.pi * pairs[..., 1]))[:, :d]
    query = numbers[0] / np.linalg.norm(numbers[0]) * np.sqrt(d)
    return query, numbers[1 : keys + 1], numbers[keys + 1 :]


DIAGRAMS = (
    residual_stream, pairing, cache, modes, namespaces, haystack,
)  # fmt: skip

if __name__ == "__main__":
    for sketch in DIAGRAMS:
        sketch().savefig(Path(sys.argv[1]) / f"{sketch.__name__}.png", dpi=80)
