"""The page, driven: what it shows equals the arrays, and pointer, theme and width all work."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from .chromium import Chromium
from .conftest import WORDS, drawn_maps
from .reading import BODY, PageOf, change, expect, number, pick, table, text, token


@pytest.mark.parametrize("variant", ["hf", "v2", "plain"])
def test_numbers_are_those_of_the_arrays(browser: Chromium, page_of: PageOf, variant: str) -> None:
    maps = drawn_maps(variant)
    browser.open(page_of(maps))
    expect(browser, maps, None, None, 7)
    assert browser.run("document.getElementById('colors').offsetHeight > 0") == (variant != "plain")
    for layer, pair in itertools.product((None, 0, 1, 2), (None, 0, 1)):
        pick(browser, layer=layer, pair=pair)
        for query in (0, 3, 7):
            browser.run(f"document.querySelector('{token(query)}').focus()")
            expect(browser, maps, layer, pair, query)
            shown = text(browser, "lambda")
            lambda_ = maps.lambda_(layer, pair)
            if lambda_ is None:
                assert shown == ""
                continue
            value = float(lambda_ if lambda_.ndim == 0 else lambda_[query])
            assert f"λ = {value:.4f}".replace("-", "−") in shown
            assert shown.startswith("mean") == (layer is None or (variant == "v2" and pair is None))
            assert (f"“{WORDS[query]}”" in shown) == (variant == "v2")
            if variant == "hf" and layer is not None:
                assert shown.endswith(f"began near λ_init = {maps.starts[layer]:.4f}")  # type: ignore[index]


def test_the_pointer_on_a_map_names_the_cell(browser: Chromium, page_of: PageOf) -> None:
    maps = drawn_maps()
    browser.open(page_of(maps, layer=1, pair=1))
    browser.point("figure:nth-child(2) canvas", x=(2 + 0.5) / 8, y=(6 + 0.5) / 8)
    shown = text(browser, "pointed")
    assert shown.startswith("“↵” → “·a”: ")
    values = [number(part.split(" ")[-1]) for part in shown.split(": ")[1].split(", ")]
    np.testing.assert_allclose(values, [maps.map(name, 1, 1)[6, 2] for name in maps.names], atol=1e-4)
    expect(browser, maps, 1, 1, 6)
    marks = browser.run(
        "[...document.querySelectorAll('.canvas')].map((box) => ['canvas', 'i'].map((part) => {"
        "const b = box.querySelector(part).getBoundingClientRect(); return [b.top, b.height]}))"
    )
    for (top, height), (line_top, line_height) in marks:
        np.testing.assert_allclose([line_top, line_height], [top + height * 6 / 8, height / 8], atol=1)
    browser.point("figure:nth-child(1) canvas", x=(6 + 0.5) / 8, y=(2 + 0.5) / 8)
    assert text(browser, "pointed") == "“·a” does not see “↵”, which comes later"
    browser.away()
    assert text(browser, "pointed") == ""
    expect(browser, maps, 1, 1, 7)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_are_signs_and_sizes(browser: Chromium, page_of: PageOf, scheme: str) -> None:
    maps = drawn_maps(tokens=tuple(f"·w{i}" for i in range(30)))
    browser.open(page_of(maps, layer=1, pair=0), scheme=scheme)
    full = number(text(browser, "scale-high").split(" ")[0])
    sizes = np.sort([np.abs(maps.map(name, 1, 0)[np.tri(30, dtype=bool)]) for name in maps.names], axis=None)
    assert full < 0.95 * sizes[-1]
    assert abs(full - sizes[int(0.99 * (len(sizes) - 1))]) <= 1e-4  # not the largest, which the first few queries give
    assert text(browser, "scale-low") == f"−{full:.4f} or less"
    plus, minus = ([42, 139, 208], [224, 112, 26]) if scheme == "light" else ([31, 111, 180], [184, 83, 9])
    for i, name in enumerate(maps.names):
        pixels = np.array(
            browser.run(
                f"Array.from(document.querySelectorAll('#figures canvas')[{i}]"
                ".getContext('2d').getImageData(0, 0, 30, 30).data)"
            )
        ).reshape(30, 30, 4)
        values = maps.map(name, 1, 0)
        strong = np.sqrt(np.minimum(np.abs(values) / full, 1))
        np.testing.assert_allclose(pixels[..., 3], np.where(np.tri(30), 255 * strong, 0), atol=2)
        for sign, color in ((1, plus), (-1, minus)):
            clear = (values * sign > 0) & (strong > 0.3)
            assert np.abs(pixels[clear][:, :3] - color).max(initial=0) <= 3  # the canvas rounds by its alpha


def test_the_threshold_hides_what_is_below_it_in_every_map(browser: Chromium, page_of: PageOf) -> None:
    maps = drawn_maps()
    browser.open(page_of(maps, layer=0, pair=0))
    browser.run("threshold.focus()")
    for _ in range(20):
        browser.press("ArrowRight")
    assert text(browser, "threshold-value") == "0.100"
    values = np.abs(np.stack([maps.map(name, 0, 0)[7] for name in maps.names]))
    kept = [key for key in range(8) if values[:, key].max() >= 0.1]
    assert 0 < len(kept) < 8
    assert [row[0] for row in table(browser)] == kept
    assert text(browser, "hidden") == f"{8 - len(kept)} of 8 keys are below 0.100 in every map"
    fills = browser.run("[...tokens.children].map((o) => o.style.backgroundColor === 'transparent')")
    assert fills == list(values[2] < 0.1)
    faint = browser.run("document.querySelectorAll('#profile .faint').length")
    assert faint == (values < 0.1).sum()


def test_the_overview_picks_and_shows_each_on_its_own_scale(browser: Chromium, page_of: PageOf) -> None:
    maps = drawn_maps()
    browser.open(page_of(maps))
    assert browser.run("grid.querySelectorAll('button').length") == 4 * 3
    browser.point("button[title='layer 2, mean over pairs']", click=True)
    expect(browser, maps, 2, None, 7)
    assert browser.run("[layer.value, pair.value]") == ["2", "-1"]
    alphas = browser.run(
        "Array.from(document.querySelector(\"button[title='layer 1, pair 1'] canvas\").getContext('2d')"
        ".getImageData(0, 0, 8, 8).data).filter((_, i) => i % 4 === 3)"
    )
    seen = np.sort([np.abs(maps.map(name, 1, 1)[np.tri(8, dtype=bool)]) for name in maps.names], axis=None)
    full = seen[int(0.99 * (len(seen) - 1))]
    expected = 255 * np.sqrt(np.minimum(np.abs(maps.difference[1, 1]) / full, 1))
    np.testing.assert_allclose(alphas, expected.ravel(), atol=2)


def test_themes(browser: Chromium, page_of: PageOf) -> None:
    maps = drawn_maps()
    page = page_of(maps)
    light, dark = "rgb(255, 255, 255)", "rgb(13, 17, 23)"
    for scheme, expected in (("light", light), ("dark", dark)):
        browser.open(page, scheme=scheme)
        assert browser.run(f"{BODY}.backgroundColor") == expected
    first = browser.run("document.querySelector('#figures canvas').toDataURL()")
    browser.prefer("light")  # while it is open
    browser.run("new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next)))")
    assert browser.run(f"{BODY}.backgroundColor") == light
    assert browser.run("document.querySelector('#figures canvas').toDataURL()") != first
    for theme, expected in (("dark", dark), ("light", light), ("", light)):
        change(browser, "theme", theme, "change")
        assert browser.run(f"{BODY}.backgroundColor") == expected
        assert (browser.run("document.querySelector('#figures canvas').toDataURL()") == first) == (theme == "dark")


@pytest.mark.parametrize("width", [320, 400, 1024, 2000])
@pytest.mark.parametrize(("layers", "pairs"), [(3, 2), (16, 16)])
def test_no_width_makes_it_wider_than_the_window(
    browser: Chromium, page_of: PageOf, width: int, layers: int, pairs: int
) -> None:
    tokens = ("<|endoftext|>", "a·very-long-token-" * 12, *(f"·word{i}" for i in range(30)))
    browser.open(page_of(drawn_maps(layers=layers, pairs=pairs, tokens=tokens)), width=width)
    browser.point(token(1), click=True)
    assert browser.run("document.documentElement.scrollWidth") == width
    boxes = browser.run(
        "[...document.querySelectorAll('select, input, canvas, h1, h2, h3, p')].filter((e) => !e.closest('.scroll'))"
        ".map((e) => e.getBoundingClientRect()).map((b) => [b.left, b.right])"
    )
    assert all(left >= 0 and right <= width for left, right in boxes)
