"""For everyone: by keyboard alone, by ear, in high contrast of words and grounds; axe-core finds nothing."""

from __future__ import annotations

import numpy as np
import pytest

from .chromium import Chromium
from .conftest import WORDS, drawn_maps
from .reading import BODY, PageOf, expect, token


def test_by_keyboard_alone(browser: Chromium, page_of: PageOf) -> None:
    maps = drawn_maps()
    browser.open(page_of(maps, layer=0, pair=0))
    stops = []
    for _ in range(20):
        browser.press("Tab")
        stop = browser.run("document.activeElement.id || document.activeElement.getAttribute('role') || "
                           "document.activeElement.name || document.activeElement.title")  # fmt: skip
        if stop in stops or not stop:
            break
        stops.append(stop)
    assert stops == ["theme", "layer", "pair", "threshold", "colour", "option", "order", "group", "layer 0, pair 0"]
    browser.run("grid.querySelector('[tabindex=\"0\"]').focus()")  # the last Tab has left the page
    browser.press("ArrowRight")  # on to pair 1, which Enter chooses
    browser.press("Enter")
    expect(browser, maps, 0, 1, 7)
    browser.press("ArrowDown")
    browser.press("Enter")
    expect(browser, maps, 1, 1, 7)
    browser.run(f"document.querySelector('{token(7)}').focus()")
    for key, query in (("ArrowLeft", 6), ("Home", 0), ("ArrowLeft", 0), ("ArrowDown", 1), ("End", 7), ("ArrowUp", 6)):
        browser.press(key)
        expect(browser, maps, 1, 1, query)
        assert browser.run("document.activeElement.textContent") == WORDS[query]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("wiring", "width"), [("hf", 1200), ("v2", 400), ("none", 2000)])
def test_axe_finds_nothing(browser: Chromium, page_of: PageOf, axe: str, scheme: str, wiring: str, width: int) -> None:
    browser.open(page_of(drawn_maps(wiring), model="m"), width=width, scheme=scheme)
    browser.run(axe + "; 0")
    result = browser.run("axe.run().then((r) => [r.violations, r.passes.length])")
    found = [(v["id"], v["impact"], [node["html"] for node in v["nodes"]][:3]) for v in result[0]]
    assert found == []
    assert result[1] > 20


def contrast(fore: list[float], back: list[float]) -> float:
    def luminance(colour: list[float]) -> float:
        c = np.array(colour[:3]) / 255
        return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(fore), luminance(back)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_are_read_on_every_colour(browser: Chromium, page_of: PageOf, scheme: str) -> None:
    browser.open(page_of(drawn_maps()), scheme=scheme)
    for sign in (1, -1):
        for share in (0.0, 0.1, 0.5, 1.0):
            ink, fill, ground = browser.run(
                f"(() => {{const o = tokens.children[0]; o.style.backgroundColor = rgba({sign * share} * full);"
                f"return [getComputedStyle(o).color, getComputedStyle(o).backgroundColor, {BODY}.backgroundColor]"
                ".map((c) => c.match(/[\\d.]+/g).map(Number))})()"
            )
            alpha = fill[3] if len(fill) == 4 else 1
            blended = [alpha * f + (1 - alpha) * g for f, g in zip(fill[:3], ground, strict=True)]
            assert contrast(ink, blended) >= 4.5


def test_what_a_screen_reader_gets(browser: Chromium, page_of: PageOf) -> None:
    browser.open(page_of(drawn_maps(), layer=0, pair=0))
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    seen = [(n["role"]["value"], n.get("name", {}).get("value")) for n in nodes if not n["ignored"]]
    assert ("listbox", "Tokens. The one chosen is the query") in seen
    assert [name for role, name in seen if role == "option" and name in WORDS] == list(WORDS)
    for expected in (
        ("combobox", "Theme"),
        ("combobox", "Layer"),
        ("combobox", "Pair of heads"),
        ("radio", "A₁ − λ A₂"),
        ("columnheader", "A₁ − λ A₂"),
        ("rowheader", "·king"),
        ("image", "A₂ of 8 queries, down, and as many keys, across"),
        ("button", "layer 2, pair 1"),
        ("heading", "Numbers for “·king”"),
    ):
        assert expected in seen
    (slider,) = [name for role, name in seen if role == "slider"]
    assert slider.startswith("Hide below")
    assert [role for role, _ in seen].count("status") >= 1
