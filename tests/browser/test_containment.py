"""Words of the text stay words, nothing can be added to the page, and a notebook's frame holds it whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import refdiff
from refdiff.viz import explore

from .chromium import Chromium
from .conftest import drawn_maps
from .reading import TABLE, PageOf, number, text, token


def test_html_in_a_prompt_is_shown_as_text(browser: Chromium, page_of: PageOf) -> None:
    hostile = "<img src=x onerror=window.run=1><script>window.run=2</script></script>--><!--\u2028"
    tokens = (hostile, "</script>", "<b>", "-->", "'\"`${1}")
    browser.open(page_of(drawn_maps(tokens=tokens), prompt=hostile, model=hostile))
    assert browser.run("window.run") is None
    assert browser.run("document.title").startswith("Attention: <img src=x onerror=window.run=1>")
    assert browser.run("[...tokens.children].map((o) => o.textContent)") == list(tokens)
    assert browser.run("document.querySelectorAll('img, b, script').length") == 2
    assert text(browser, "about").startswith(hostile)
    browser.point(token(0), click=True)
    assert text(browser, "status").startswith(f"The chosen token, “{hostile}”, looks: ")


def test_no_script_can_be_added(chromium: Chromium, page_of: PageOf) -> None:
    """The page's own rule forbids it, so that a mistake in escaping would still run nothing."""
    chromium.open(page_of(drawn_maps()))
    chromium.run(
        "(() => {const s = document.createElement('script'); s.textContent = 'window.run = 1';"
        "document.body.append(s)})()"
    )
    assert chromium.run("window.run") is None
    assert any("Content Security Policy" in complaint for complaint in chromium.complaints())


def test_in_a_notebooks_frame(chromium: Chromium, tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint)
    made = explore(model, 'a "quoted" </iframe> text', layer=1, pair=0)
    cell = tmp_path / "cell.html"
    cell.write_text(f"<!doctype html><meta charset=utf-8><body>{made._repr_html_()}", encoding="utf-8")
    chromium.open(cell)
    inside = [
        event["params"]["context"]["id"]
        for event in chromium.events
        if event["method"] == "Runtime.executionContextCreated"
        and event["params"]["context"]["auxData"]["frameId"] != chromium.frame
    ]
    assert len(inside) == 1
    shown = chromium.call("Runtime.evaluate", expression=TABLE, returnByValue=True, contextId=inside[0])["result"][
        "value"
    ]
    right = made.maps.map("difference", 1, 0)[-1]
    np.testing.assert_allclose([number(row[-1]) for row in shown], right, atol=1e-4)
    assert chromium.complaints() == []
