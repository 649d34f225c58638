"""The reference pages in the browser: without a network, in both themes, on narrow and wide windows, for everyone.

REFERENCE names a folder of built pages; without one they are built, which needs `pip install '.[docs]'`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .chromium import Chromium
from .reading import expect_accessible

ROOT = Path(__file__).parents[2]
PAGES = (
    "index", "equations", "guides/performance", "commands", "interface/refdiff.layers",
    "notebooks/03_differential_attention",
)  # fmt: skip
TYPESET = "MathJax.startup.promise.then(() => document.querySelectorAll('mjx-container').length)"


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("REFERENCE"):
        return Path(named).resolve()
    pytest.importorskip("sphinx", reason="the reference pages are not built: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("reference")
    subprocess.run([sys.executable, ROOT / "notebooks" / "reference" / "build.py", "-o", folder], check=True)
    return folder


@pytest.mark.parametrize(
    ("page", "least"), [("index", 1), ("equations", 20), ("interface/refdiff.layers", 80), (PAGES[-1], 8)]
)
def test_equations_are_set_without_a_network(browser: Chromium, reference: Path, page: str, least: int) -> None:
    browser.open(reference / f"{page}.html")
    assert browser.run(TYPESET) >= least
    assert browser.run("document.querySelectorAll('mjx-merror, [data-mjx-error]').length") == 0
    assert (
        browser.run("[...document.querySelectorAll('.math')].filter((e) => !e.querySelector('mjx-container')).length")
        == 0
    )


@pytest.mark.parametrize("width", [400, 1400, 2000])
@pytest.mark.parametrize("page", PAGES)
def test_no_page_is_wider_than_the_window(browser: Chromium, reference: Path, page: str, width: int) -> None:
    arranged(browser, reference / f"{page}.html", width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    scrolls = (
        "[...document.querySelectorAll('article :is(pre, .math.notranslate, .table-wrapper, .picture)')]"
        ".filter((e) => {"
        "const room = e.matches('span.math') ? e.closest('p, dd, li, td, dt') : e;"
        "const width = e.matches('.math') ? e.querySelector('svg').getBoundingClientRect().width : e.scrollWidth;"
        "const said = Boolean(e.previousElementSibling?.matches('.scroll-hint:not([hidden])'));"
        "return (width > room.clientWidth + 1) !== said;}).map((e) => e.outerHTML.slice(0, 60))"
    )
    assert browser.run(scrolls) == []


def test_on_a_phone_buttons_and_hints_have_their_space(browser: Chromium, reference: Path) -> None:
    arranged(browser, reference / "commands.html", width=400)
    left = "document.querySelector({!r}).getBoundingClientRect().left"
    right = "document.querySelector('.mobile-header .theme-toggle').getBoundingClientRect().right"
    assert browser.run(f"{left.format('.mobile-header .toc-header-icon')} - {right}") >= 8
    assert browser.run(f"{left.format('.highlight > .scroll-hint')} - {left.format('.highlight')}") >= 10


def arranged(browser: Chromium, page: Path, **options: Any) -> None:
    """Open a page, and wait until its equations are set and have their sizes."""
    browser.open(page, **options)
    browser.run(TYPESET) if browser.run("typeof MathJax") == "object" else None
    browser.run("new Promise((done) => setTimeout(done, 300))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_nothing_serious(browser: Chromium, reference: Path, axe: str, page: str, scheme: str) -> None:
    arranged(browser, reference / f"{page}.html", scheme=scheme)
    # without preload, which asks for style sheets as no page on a disk may, and without explore's frame, whose page has
    # a test of its own, and which no script of this one reaches
    expect_accessible(browser, axe, "serious", "critical", options="{preload: false, iframes: false}")


def test_an_equation_leads_to_its_function_and_its_test(browser: Chromium, reference: Path) -> None:
    browser.open(reference / "equations.html")
    links = browser.run("[...document.querySelectorAll('article dd a')].map((a) => a.href)")
    function = next(link for link in links if link.endswith("#refdiff.layers.diff_attention"))
    test = next(link for link in links if link.endswith("rows-of-the-difference-sum-to-one-minus-lambda"))
    for link, word in ((function, "Attend with the difference"), (test, "def test_rows_of_the_difference")):
        path, _, place = link.removeprefix("file://").partition("#")
        browser.open(Path(path))
        assert word in browser.run(f"document.getElementById('{place}').parentElement.textContent")
