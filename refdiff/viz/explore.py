"""The attention page inside a notebook."""

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
    """A page that a notebook shows in a frame. `page` is its HTML, `maps` the arrays in it."""

    def __init__(self, maps: AttentionMaps, page: str, height: int) -> None:
        self.maps, self.page, self.height = maps, page, height

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file, atomically.

        Raises:
            OSError: the file cannot be written. An existing file stays as it was.
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
    """Show the attention of every token, layer and pair on an interactive page, as `refdiff attention` writes it.

    Args:
        text: a text, or its token ids.
        tokenizer: the model's tokenizer (default: that in the folder that the model was loaded from).
        layer, pair: the maps that the page shows first; None is the mean over all. Without both, it is the pair that
            cancels most (`AttentionMaps.most_cancelling`).
        height: of the frame, in pixels.

    Raises:
        ValueError: a tokenizer is missing, or the text is empty or too long.
        IndexError: there is no such layer or pair.
    """
    maps = attention_maps(model, text, tokenizer)
    prompt = text if isinstance(text, str) else "".join(maps.tokens)
    if layer is None and pair is None:
        layer, pair = maps.most_cancelling()
    name = "" if model.source is None else Path(model.source).name
    return Exploration(maps, attention_page(maps, prompt=prompt, model=name, layer=layer, pair=pair), height)
