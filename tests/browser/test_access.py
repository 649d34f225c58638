"""For everyone: by keyboard alone, by ear, in high contrast of words and grounds; axe-core finds nothing."""

from __future__ import annotations

import pytest

from .chromium import Chromium
from .conftest import WORDS, drawn_maps
from .reading import PageOf, expect, expect_accessible, token


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
    assert stops == ["theme", "layer", "pair", "threshold", "color", "option", "order", "group", "layer 0, pair 0"]
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
@pytest.mark.parametrize(("variant", "width"), [("hf", 1200), ("v2", 400), ("plain", 2000)])
def test_axe_finds_nothing(browser: Chromium, page_of: PageOf, axe: str, scheme: str, variant: str, width: int) -> None:
    browser.open(page_of(drawn_maps(variant), model="m"), width=width, scheme=scheme)
    expect_accessible(browser, axe, passes=20)
