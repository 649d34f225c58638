"""Figures of attention maps, and a page to explore attention.

    maps = refdiff.viz.attention_maps(model, "Once upon a time")
    refdiff.viz.plot_attention(maps, layer=2, pair=0).savefig("maps.png")
    refdiff.viz.explore(model, "Once upon a time")  # in a notebook: choose layer, pair and token

Functions take arrays of any library, `AttentionMaps` or a model's output. They draw into `figure=` or `axes=`, by
default new ones, and return them. No function calls `show`, and figures have no window: a notebook shows them after
`%matplotlib inline`.
Drawing needs `pip install matplotlib`, the page does not.
"""

from refdiff.viz.attention import plot_attention
from refdiff.viz.explore import explore
from refdiff.viz.maps import AttentionMaps, attention_maps, maps_of
from refdiff.viz.page import attention_page
from refdiff.viz.spans import attention_to, plot_attention_to

__all__ = [
    "AttentionMaps",
    "attention_maps",
    "attention_page",
    "attention_to",
    "explore",
    "maps_of",
    "plot_attention",
    "plot_attention_to",
]
