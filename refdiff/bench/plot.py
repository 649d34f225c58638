"""How cost grows: time and memory against the number of tokens and of sequences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from refdiff.bench.measure import spread
from refdiff.bench.rows import Row, parse_rows

SIDES = ("refdiff", "transformers", "stored")
"""Who is drawn, in the order of their colours."""

NOTHING = (
    "nothing to plot: measure prefill, decode or memory of one row at two lengths, as in prefill:128,prefill:512, or "
    "of one length with two numbers of rows, as in decode:128,decode:128x8"
)

DRAWN = {
    "prefill": ("reading a prompt", "reading several prompts", "seconds"),
    "decode": ("one more token", "one more token of each sequence", "milliseconds"),
    "memory": ("memory", "memory for several sequences", "peak, GB"),
}
"""Kind of row → title against the number of tokens, title against the number of sequences, unit."""
X_NAMES = {"prefill": "tokens of the prompt", "decode": "tokens before it", "memory": "tokens read"}

Points = list[tuple[int, float, float, float]]


def series(report: dict[str, Any], kind: str, x: str, **wanted: int) -> dict[str, Points]:
    """Collect side → (x, median, low, high) of the rows of a kind, by ascending x; rows that failed are left out.

    x: the field of a row along the axis, `size` or `batch`. wanted: what other fields must be.
    """
    scale = {"prefill": 1.0, "decode": 1e3 / report["settings"]["decoded_tokens"], "memory": 1e-9}[kind]
    found: dict[str, Points] = {}
    for entry in report["rows"]:
        row = parse_rows(entry["row"])[0]
        if entry["error"] or row.kind != kind or any(getattr(row, name) != value for name, value in wanted.items()):
            continue
        for name, side in entry["sides"].items():
            middle = spread([scale * value for value in side.get("seconds") or side["bytes"]])
            found.setdefault(name, []).append((getattr(row, x), *middle.values()))
    return {name: sorted(points) for name, points in found.items()}


def panels(report: dict[str, Any]) -> list[tuple[str, str, str, dict[str, Points]]]:
    """Return (title, name of x, name of y, series) of everything that has at least two points."""
    made = [
        (title, X_NAMES[kind], unit, series(report, kind, "size", batch=1)) for kind, (title, _, unit) in DRAWN.items()
    ]
    for kind, (_, title, unit) in DRAWN.items():
        sizes = [row.size for entry in report["rows"] if (row := parse_rows(entry["row"])[0]).kind == kind]
        size = max(sizes, key=sizes.count, default=0)  # at which most batches were measured
        made.append((title, f"sequences of {size} tokens", unit, series(report, kind, "batch", size=size)))
    return [panel for panel in made if any(len(points) > 1 for points in panel[3].values())]


def can_draw(rows: Iterable[Row]) -> bool:
    """Whether a report of these rows, if none fails, has anything to draw."""
    measured = [{"row": row.spelled, "sides": {"refdiff": {"seconds": [1.0]}}, "error": None} for row in rows]
    return bool(panels({"rows": measured, "settings": {"decoded_tokens": 1}}))


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
        legend(dress(axes))
    return figure
