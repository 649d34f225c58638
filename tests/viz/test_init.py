"""All figures: nothing in them is black or white, which one of the two pages would swallow; none shows itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from refdiff import viz
from refdiff.viz.appearance import INK, SERIES, depth_colours

from .conftest import render

DRAWN: dict[str, Callable[[viz.AttentionMaps], Any]] = {
    "attention": viz.plot_attention,
    "grid": viz.plot_attention_grid,
    "lambdas": viz.plot_lambdas,
    "spans": lambda maps: viz.plot_attention_to({"x": {"a": 0.2, "b": 0.7}}, errors={"x": {"a": 0.1, "b": 0.1}}),
    "training": lambda maps: viz.plot_training(
        [{"step": i, "loss": 3.0 - i, "lambdas": [0.2, 0.4], "validation": 2.5} for i in range(3)]
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_everything_is_in_colours_that_both_pages_show(name: str, maps: viz.AttentionMaps) -> None:
    from matplotlib.colors import to_hex
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

    made = DRAWN[name](maps)
    figure = getattr(made, "figure", made)
    render(figure)
    known = {*map(to_hex, (INK, *SERIES)), *map(to_hex, depth_colours(2))}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    assert len(texts) > 5
    assert {to_hex(text.get_color()) for text in texts} <= known
    lines = [line for line in figure.findobj(Line2D) if line.get_visible()]
    used = {line.get_color() for line in lines if line.get_linestyle() != "None"}
    used |= {line.get_markeredgecolor() for line in lines if line.get_marker() not in ("None", "")}
    assert used
    assert set(map(to_hex, used)) <= known
    for axes in figure.axes:
        assert axes.get_facecolor()[3] == 0
        spines = [axes.spines[side] for side in axes.spines if side != "outline"]
        assert {to_hex(spine.get_edgecolor()) for spine in spines if spine.get_visible()} <= known
        assert axes.get_legend() is None or not axes.get_legend().get_frame_on()
