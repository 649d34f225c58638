"""The page, inside a notebook."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refdiff.files import write_atomically
from refdiff.viz.maps import AttentionMaps, attention_maps
from refdiff.viz.page import attention_page


class Exploration:
    """A page that a notebook shows in a frame of its own; `page` is its HTML, `maps` the arrays in it."""

    def __init__(self, maps: AttentionMaps, page: str, height: int) -> None:
        self.maps, self.page, self.height = maps, page, height

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file.

        Raises:
            OSError: the file cannot be written; what was there before still is.
        """
        write_atomically(path, self.page.encode())

    def _repr_html_(self) -> str:
        return (
            f'<iframe title="Attention, to explore" sandbox="allow-scripts" width="100%" height="{self.height}" '
            f'style="border:0" srcdoc="{html.escape(self.page)}"></iframe>'
        )

    def __repr__(self) -> str:
        L, P, T, _ = self.maps.first.shape
        return f"Exploration of {T} tokens, {L} layers of {P} pairs: a notebook shows it, save(path) writes the page"


def explore(
    model: Any,
    text: str | Sequence[int],
    tokenizer: Any = None,
    *,
    layer: int | None = None,
    pair: int | None = None,
    height: int = 900,
) -> Exploration:
    """Show where each token of a text looks, layer by layer and pair by pair, as `refdiff attention` does on a page.

    `layer` and `pair` are what it opens with: None is the mean over all, and without both it is where most cancels
    (`AttentionMaps.most_cancelling`). `height` is that of the frame in pixels.

    Raises:
        ValueError: there is no tokenizer, no token, or the text is too long.
        IndexError: there is no such layer or pair.
    """
    maps = attention_maps(model, text, tokenizer)
    prompt = text if isinstance(text, str) else "".join(maps.tokens)
    if layer is None and pair is None:
        layer, pair = maps.most_cancelling()
    name = "" if model.source is None else Path(model.source).name
    return Exploration(maps, attention_page(maps, prompt=prompt, model=name, layer=layer, pair=pair), height)
