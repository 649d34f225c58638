"""The page as one file: nothing in it is fetched, and nothing but its own script runs."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib.resources import files
from typing import Any

from refdiff.messages import printable
from refdiff.viz.maps import AttentionMaps
from refdiff.viz.page.packed import packed

MOST_BYTES = 64 * 1024 * 1024
"""A page larger than this is refused."""
LARGE_BYTES = 5 * 10**6
"""A page larger than this takes a browser seconds to open, and says how large it is."""
_SCRIPTS = ("numbers.js", "page.js")


def page_size(maps: int, tokens: int) -> int:
    """Return about how many bytes a page has, by the number of its softmax maps and of the tokens.

    Raises:
        ValueError: more than 64 MiB.
    """
    size = 4 * maps * tokens * (tokens + 1) // 3
    if size > MOST_BYTES:
        raise ValueError(
            f"a page of {tokens} tokens would be {size / 1e6:.0f} MB: give a text of at most "
            f"{int(tokens * (MOST_BYTES / size) ** 0.5)} tokens, or write an .npz"
        )
    return size


def attention_page(
    maps: AttentionMaps, *, prompt: str = "", model: str = "", layer: int | None = None, pair: int | None = None
) -> str:
    """Return HTML in which a reader picks layer, pair and token and sees where it looks in A₁, A₂ and the difference.

    `prompt` and `model` are shown as they are, as text. `layer` and `pair` are what the page opens with; None is the
    mean over all of them.

    Raises:
        ValueError: the maps are not causal and square, or the page would be larger than 64 MiB.
        IndexError: there is no such layer or pair.
    """
    maps.lambda_(layer, pair)
    layers, pairs, tokens = maps.first.shape[:3]
    size = page_size(layers * pairs * (1 if maps.second is None else 2), tokens)
    megabytes = round(size / 1e6) if size > LARGE_BYTES else None
    data = {**packed(maps), "prompt": prompt, "model": model, "layer": layer, "pair": pair, "megabytes": megabytes}
    style = _part("page.css")
    script = "\n".join(map(_part, _SCRIPTS))
    filling = {
        "title": html.escape(f"Attention: {_shortened(prompt)}" if prompt else "Attention"),
        "policy": f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}",
        "style": style,
        "script": script,
        "data": as_json(data),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filling[match[1]], _part("page.html"))


def as_json(value: Any) -> str:
    """JSON that no HTML parser and no older JavaScript takes for anything else, whatever strings are in it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _part(name: str) -> str:
    return (files("refdiff.viz.page") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _shortened(text: str, most: int = 60) -> str:
    line = printable(" ".join(text[: 10 * most].split()))  # bidirectional marks would turn a browser's tab around
    return line if len(line) <= most else line[: most - 1] + "…"
