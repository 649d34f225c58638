"""Build the page as one file, which fetches nothing and runs only its own script."""

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

MAX_BYTES = 64 * 1024 * 1024
"""Largest page that is written."""
LARGE_BYTES = 5 * 10**6
"""A larger page takes a browser seconds to open, and shows its size."""
_TITLE_LENGTH = 60
_SCRIPTS = ("numbers.js", "page.js")


def page_size(maps: int, tokens: int) -> int:
    """Return the approximate size of a page in bytes, given the numbers of its softmax maps and tokens.

    Raises:
        ValueError: more than 64 MiB.
    """
    size = 4 * maps * tokens * (tokens + 1) // 3
    if size > MAX_BYTES:
        raise ValueError(
            f"a page of {tokens} tokens would be {size / 1e6:.0f} MB: give a text of at most "
            f"{int(tokens * (MAX_BYTES / size) ** 0.5)} tokens, or write an .npz"
        )
    return size


def attention_page(
    maps: AttentionMaps, *, prompt: str = "", model: str = "", layer: int | None = None, pair: int | None = None
) -> str:
    """Return an HTML page that shows the attention of a chosen token in A₁, A₂ and the difference.

    `prompt` and `model` are shown as text. `layer` and `pair` are the maps that the page shows first; None is the mean
    over all.

    Raises:
        ValueError: the maps are not causal and square, or the page would be larger than 64 MiB.
        IndexError: there is no such layer or pair.
    """
    maps.lambda_(layer, pair)
    layers, pairs, tokens = maps.first.shape[:3]
    size = page_size(layers * pairs * (1 if maps.second is None else 2), tokens)
    megabytes = round(size / 1e6) if size > LARGE_BYTES else None
    data = {**packed(maps), "prompt": prompt, "model": model, "layer": layer, "pair": pair, "megabytes": megabytes}
    style = _read("page.css")
    script = "\n".join(map(_read, _SCRIPTS))
    filling = {
        "title": html.escape(f"Attention: {_shorten(prompt)}" if prompt else "Attention"),
        "policy": f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}",
        "style": style,
        "script": script,
        "data": as_json(data),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filling[match[1]], _read("page.html"))


def as_json(value: Any) -> str:
    """Return JSON that is safe inside an HTML script element and in older JavaScript, whatever its strings are."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _read(name: str) -> str:
    return (files("refdiff.viz.page") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _shorten(text: str) -> str:
    line = printable(" ".join(text[: 10 * _TITLE_LENGTH].split()))  # without marks that reverse a tab's title
    return line if len(line) <= _TITLE_LENGTH else line[: _TITLE_LENGTH - 1] + "…"
