"""How cost grows: time and memory against the number of tokens and of rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from refdiff.bench.pairs import Spread
from refdiff.bench.rows import Row, parse_rows

SIDES = ("refdiff", "transformers", "stored")
"""Who is drawn, in the order of their colours."""

NOTHING = (
    "nothing to plot: measure prefill, decode or memory of one row at two lengths, as in prefill:128,prefill:512, or "
    "of one length with two numbers of rows, as in decode:128,decode:128x8"
)


def series(
    report: dict[str, Any], wanted: Callable[[Row], bool], x: Callable[[Row], int], y: Callable[[Row, float], float]
) -> dict[str, list[tuple[int, float, float, float]]]:
    """Collect side → (x, median, low, high) of the rows that are wanted, by ascending x; rows that failed are left out.

    `y` turns a row and its seconds or bytes into what is drawn.
    """
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for entry in report["rows"]:
        if entry["error"] or (row := parse_rows(entry["row"])[0]).model or not wanted(row):
            continue
        for name, side in entry["sides"].items():
            spread = Spread.of([y(row, value) for value in side.get("seconds") or side["bytes"]])
            found.setdefault(name, []).append((x(row), spread.median, spread.low, spread.high))
    return {name: sorted(points) for name, points in found.items()}


def panels(report: dict[str, Any]) -> list[tuple[str, str, str, dict[str, list[tuple[int, float, float, float]]]]]:
    """Return (title, name of x, name of y, series) of everything that has at least two points."""
    steps = report["settings"]["decoded_tokens"]
    one = {
        "prefill": ("reading a prompt", "tokens of the prompt", "seconds", lambda row, s: s),
        "decode": ("one more token", "tokens before it", "milliseconds", lambda row, s: 1e3 * s / steps),
        "memory": ("memory", "tokens read", "peak, GB", lambda row, b: b / 1e9),
    }
    many = {
        "prefill": ("reading the prompts of all rows", "rows", "seconds", lambda row, s: s),
        "decode": ("one more token of all rows", "rows", "milliseconds", lambda row, s: 1e3 * s / steps),
        "memory": ("memory of all rows", "rows", "peak, GB", lambda row, b: b / 1e9),
    }
    made = []
    for kind, (title, x_name, y_name, y) in one.items():
        made.append((title, x_name, y_name, series(report, _is(kind, batch=1), lambda row: row.size, y)))
    for kind, (title, x_name, y_name, y) in many.items():
        size = _size_of_batches(report, kind)
        made.append((f"{title}, {size} tokens each", x_name, y_name,
                     series(report, _is(kind, size=size), lambda row: row.batch, y)))  # fmt: skip
    return [panel for panel in made if any(len(points) > 1 for points in panel[3].values())]


def can_draw(rows: Iterable[Row]) -> bool:
    """Whether a report of these rows, if none fails, has anything to draw."""
    measured = [{"row": row.spelled, "sides": {"refdiff": {"seconds": [1.0]}}, "error": None} for row in rows]
    return bool(panels({"rows": measured, "settings": {"decoded_tokens": 1}}))


def plot(report: dict[str, Any], file: str | os.PathLike[str]) -> None:
    """Draw the panels of a report into a file, whose name ends in .png, .svg or .pdf.

    Raises:
        ValueError, ImportError: as `draw`.
    """
    draw(report).savefig(file, dpi=144)


def draw(report: dict[str, Any]) -> Any:
    """Return a figure of the panels of a report.

    Raises:
        ValueError: there is no panel with two points.
        ImportError: matplotlib is not installed.
    """
    drawn = panels(report)
    if not drawn:
        raise ValueError(NOTHING)
    from refdiff.viz.appearance import MARKERS, SERIES, STYLES, dress, legend, new_figure

    columns = 2 if len(drawn) == 4 else min(len(drawn), 3)
    rows = -(-len(drawn) // columns)
    figure = new_figure(4.2 * columns, 3.4 * rows)
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
        legend(dress(axes))
    return figure


def _is(kind: str, **fields: int) -> Callable[[Row], bool]:
    return lambda row: row.kind == kind and all(getattr(row, name) == value for name, value in fields.items())


def _size_of_batches(report: dict[str, Any], kind: str) -> int:
    """The context at which most batches were measured."""
    sizes = [row.size for entry in report["rows"] if (row := parse_rows(entry["row"])[0]).kind == kind]
    return max(sizes, key=sizes.count, default=0)
