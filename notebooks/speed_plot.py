"""Plot time and memory of a report of `refdiff bench --json` against the number of tokens and of sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refdiff.bench.report import spread
from refdiff.bench.rows import parse_rows
from refdiff.viz.appearance import MARKERS, SERIES, STYLES, legend, new_figure, style_axes

SIDES = ("refdiff", "transformers", "stored")
"""The sides that are drawn. The order gives their colors."""

PANELS = (
    ("prefill", "size", "reading a prompt", "tokens of the prompt", "seconds"),
    ("decode", "size", "one more token", "tokens before it", "milliseconds"),
    ("memory", "size", "memory", "tokens read", "peak, GB"),
    ("prefill", "batch", "reading several prompts", "sequences of {size} tokens", "seconds"),
    ("decode", "batch", "one more token of each sequence", "sequences of {size} tokens", "milliseconds"),
    ("memory", "batch", "memory for several sequences", "sequences of {size} tokens", "peak, GB"),
)
"""For each panel: kind of row, field of `BenchRow` on the x axis, title, labels of the x and y axes."""

Curve = list[tuple[int, float, float, float]]


def panels(report: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Curve]]]:
    """Yield (title, x label, y label, side → points (x, median, low, high)) for panels with two points or more."""
    scales = {"seconds": 1.0, "milliseconds": 1e3 / report["settings"]["decoded_tokens"], "peak, GB": 1e-9}
    measured = [(parse_rows(entry["row"])[0], entry["sides"]) for entry in report["rows"] if not entry["error"]]
    for kind, field, title, x, y in PANELS:
        sizes = [row.size for row, _ in measured if row.name == kind]
        size = max(sizes, key=sizes.count, default=0)  # the length with the most batch sizes
        sides_points: dict[str, Curve] = {}
        for row, sides in measured:
            if row.name == kind and (row.batch == 1 if field == "size" else row.size == size):
                for name, side in sides.items():
                    middle = spread([scales[y] * value for value in side.get("seconds") or side["bytes"]])
                    sides_points.setdefault(name, []).append((getattr(row, field), *middle.values()))
        if any(len(points) > 1 for points in sides_points.values()):
            yield title, x.format(size=size), y, {name: sorted(points) for name, points in sides_points.items()}


def draw(report: dict[str, Any]) -> Any:
    """Return a figure with the panels of a report."""
    drawn = list(panels(report))
    columns = min(len(drawn), 3 if len(drawn) <= 3 else 2)
    rows = -(-len(drawn) // columns)
    figure = new_figure(4.2 * columns, 3.0 * rows)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.15)
    for i, (title, x_name, y_name, sides) in enumerate(drawn):
        axes = figure.add_subplot(rows, columns, i + 1)
        for name, points in sides.items():
            xs, middle, low, high = zip(*points, strict=True)
            n = SIDES.index(name)
            axes.plot(xs, middle, color=SERIES[n], marker=MARKERS[n], linestyle=STYLES[n], label=name)
            axes.fill_between(xs, low, high, color=SERIES[n], alpha=0.2, linewidth=0)
        axes.set(title=title, xlabel=x_name, ylabel=y_name, xscale="log")
        axes.set_xticks(sorted({x for points in sides.values() for x, *_ in points}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylim(0, 1.1 * max(high for points in sides.values() for *_, high in points))
        axes.grid(alpha=0.3)
        legend(style_axes(axes))
    return figure
