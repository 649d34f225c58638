"""The page as a file: what is in it, what cannot get into it, how large it is. tests/browser opens it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.viz import AttentionMaps, attention_page
from refdiff.viz.page.build import as_json
from refdiff.viz.page.packed import packed

HOSTILE = "<script>alert(1)</script> --> <!-- \u2028\u2029 ]]> {{data}} {{script}} \\u003c & &lt; \"'"


class Parsed(HTMLParser):
    """The elements of a page, and the text in each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._open = f"{tag}#{dict(attributes).get('id', '')}"

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.text[self._open] = self.text.get(self._open, "") + data


def maps_of_size(L: int, P: int, T: int, tokens: list[str] | None = None) -> AttentionMaps:
    rng = np.random.default_rng(0)
    weights = np.tril(rng.random((2, L, P, T, T)))
    first, second = weights / weights.sum(-1, keepdims=True)
    lambdas = rng.random(L)
    names = tuple(tokens or (f"t{i}" for i in range(T)))
    return AttentionMaps(names, first, second, first - lambdas[:, None, None, None] * second, lambdas, lambdas)


def test_data_are_the_packed_maps(maps: AttentionMaps) -> None:
    parsed = Parsed(attention_page(maps, prompt="a", model="m", layer=1))
    expected = {**packed(maps), "prompt": "a", "model": "m", "layer": 1, "pair": None, "megabytes": None}
    assert json.loads(parsed.text["script#data"]) == expected


def test_words_of_the_text_are_text() -> None:
    tokens = [HOSTILE, "</script>", "-->", "<b>", "\u2028"]
    plain, hostile = (
        attention_page(maps_of_size(1, 1, 5, names), prompt=prompt, model=prompt)
        for names, prompt in ((["a"] * 5, "a"), (tokens, HOSTILE))
    )
    assert [tag for tag, _ in Parsed(hostile).tags] == [tag for tag, _ in Parsed(plain).tags]
    data = json.loads(Parsed(hostile).text["script#data"])
    assert data["tokens"] == tokens
    assert data["prompt"] == data["model"] == HOSTILE
    assert Parsed(hostile).text["title#"].startswith("Attention: <script>alert(1)</script>")
    assert re.search("[\u2028\u2029]", hostile.split('id="data"')[1]) is None


@given(st.recursive(st.text() | st.none() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_json_says_the_same_and_ends_no_element(value: Any) -> None:
    text = as_json(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_nothing_is_fetched_and_nothing_else_runs(maps: AttentionMaps) -> None:
    page = attention_page(maps)
    tags = Parsed(page).tags
    assert not [a for _, a in tags for name in ("src", "srcset", "action", "background", "style") if name in a]
    assert {a["href"] for _, a in tags if "href" in a} == {"data:,"}
    assert not [a for _, a in tags if any(name.startswith("on") for name in a)]
    assert not re.findall(r"(?i)@import|url\(|fetch\(|XMLHttp|WebSocket|import\(|//cdn|eval\(|innerHTML", page)
    (policy,) = [str(a["content"]) for tag, a in tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; base-uri 'none'; form-action 'none'; ")
    for kind, tag in (("style", "style"), ("script", "script")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_a_page_that_would_be_too_large_is_refused() -> None:
    T = 2000
    squares = np.broadcast_to(np.float32(0), (6, 3, T, T))
    maps = AttentionMaps(("t",) * T, squares, squares, squares, np.zeros(6), None)
    with pytest.raises(ValueError, match=r"a page of 2000 tokens would be 192 MB: give a text of at most 1182 tokens"):
        attention_page(maps)
    llama = AttentionMaps(("t",) * T, squares, None, squares, None, None)
    with pytest.raises(ValueError, match="a page of 2000 tokens would be 96 MB"):
        attention_page(llama)
