"""The page, driven: what it shows equals the arrays, and pointer, keyboard, theme and width all work."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.viz import AttentionMaps, explore

from .chromium import Chromium
from .conftest import WORDS, drawn_maps

PageOf = Callable[..., Path]
TABLE = "[...document.querySelectorAll('#rows tr')].map((row) => [...row.children].map((cell) => cell.textContent))"
TEXT = "document.getElementById('{}').textContent"
BODY = "getComputedStyle(document.body)"


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def table(browser: Chromium) -> list[tuple[int, str, list[float]]]:
    """The rows of the table: key, token, values."""
    return [(int(row[0]), row[1], [number(cell) for cell in row[2:]]) for row in browser.run(TABLE)]


def pick(browser: Chromium, **chosen: Any) -> None:
    """Choose layer or pair in their lists, as a reader's change of them does."""
    for name, value in chosen.items():
        index = -1 if value is None else value
        browser.run(
            f"(() => {{const s = document.getElementById('{name}'); s.value = '{index}';"
            "s.dispatchEvent(new Event('change'))})()"
        )


def text(browser: Chromium, name: str) -> str:
    return str(browser.run(TEXT.format(name)))


def token(key: int) -> str:
    return f"#tokens [role=option]:nth-child({key + 1})"


def expect(browser: Chromium, maps: AttentionMaps, layer: int | None, pair: int | None, query: int) -> None:
    """The table shows the row of `query` to four digits."""
    rows = table(browser)
    assert [row[:2] for row in rows] == [(key, maps.tokens[key]) for key in range(query + 1)]
    shown = np.array([row[2] for row in rows])
    right = np.column_stack([maps.map(name, layer, pair)[query, : query + 1] for name in maps.names])
    assert np.abs(shown - right).max() <= 0.5e-4 + 1e-5
    assert text(browser, "numbers-title") == f"Numbers for “{maps.tokens[query]}”"


@pytest.mark.parametrize("wiring", ["hf", "v2", "none"])
def test_numbers_are_those_of_the_arrays(browser: Chromium, page_of: PageOf, wiring: str) -> None:
    maps = drawn_maps(wiring)
    browser.open(page_of(maps))
    expect(browser, maps, None, None, 7)
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
            assert f"λ = {value:.4f}" in shown
            assert shown.startswith("mean") == (layer is None or (wiring == "v2" and pair is None))
            assert (f"“{WORDS[query]}”" in shown) == (wiring == "v2")
            if wiring == "hf" and layer is not None:
                assert shown.endswith(f"began at {maps.starts[layer]:.4f}")  # type: ignore[index]


def test_it_opens_with_the_layer_and_pair_that_were_asked_for(browser: Chromium, page_of: PageOf) -> None:
    maps = drawn_maps()
    browser.open(page_of(maps, layer=2, pair=1, model="some/model"))
    expect(browser, maps, 2, 1, 7)
    assert browser.run("[layer.value, pair.value]") == ["2", "1"]
    assert browser.run("[...grid.querySelectorAll('[aria-pressed=true]')].map((b) => b.title)") == ["layer 2, pair 1"]
    assert text(browser, "about").startswith("some/model · 8 tokens · 3 layers of 2 pairs of heads")


def test_the_pointer_previews_and_a_click_stays(browser: Chromium, page_of: PageOf) -> None:
    maps = drawn_maps()
    browser.open(page_of(maps, layer=0, pair=0))
    before = text(browser, "status")
    browser.point(token(3))
    expect(browser, maps, 0, 0, 3)
    assert text(browser, "status") == before  # a preview is not said aloud
    browser.away()
    expect(browser, maps, 0, 0, 7)
    browser.point(token(4), click=True)
    browser.away()
    expect(browser, maps, 0, 0, 4)
    assert text(browser, "status").startswith("“·there” looks: A₁ most at “")
    best = int(np.argmax(maps.first[0, 0, 4]))
    assert f"A₁ most at “{WORDS[best]}”, {maps.first[0, 0, 4, best]:.4f}" in text(browser, "status")


def test_the_pointer_on_a_map_names_the_cell(browser: Chromium, page_of: PageOf) -> None:
    maps = drawn_maps()
    browser.open(page_of(maps, layer=1, pair=1))
    browser.point("figure:nth-child(2) canvas", x=(2 + 0.5) / 8, y=(6 + 0.5) / 8)
    shown = text(browser, "pointed")
    assert shown.startswith("“↵” → “·a”: ")
    values = [number(part.split(" ")[-1]) for part in shown.split(": ")[1].split(", ")]
    np.testing.assert_allclose(values, [maps.map(name, 1, 1)[6, 2] for name in maps.names], atol=1e-4)
    expect(browser, maps, 1, 1, 6)
    browser.point("figure:nth-child(1) canvas", x=(6 + 0.5) / 8, y=(2 + 0.5) / 8)
    assert text(browser, "pointed") == "“·a” does not see “↵”, which comes later"
    browser.away()
    assert text(browser, "pointed") == ""
    expect(browser, maps, 1, 1, 7)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_signs_and_sizes(browser: Chromium, page_of: PageOf, scheme: str) -> None:
    maps = drawn_maps()
    browser.open(page_of(maps, layer=1, pair=0), scheme=scheme)
    full = number(text(browser, "scale-high").split(" ")[0])
    assert text(browser, "scale-low") == f"−{full:.4f} or less"
    plus, minus = ([42, 139, 208], [224, 112, 26]) if scheme == "light" else ([31, 111, 180], [184, 83, 9])
    for i, name in enumerate(maps.names):
        pixels = np.array(
            browser.run(
                f"Array.from(document.querySelectorAll('#figures canvas')[{i}]"
                ".getContext('2d').getImageData(0, 0, 8, 8).data)"
            )
        ).reshape(8, 8, 4)
        values = maps.map(name, 1, 0)
        strong = np.sqrt(np.minimum(np.abs(values) / full, 1))
        np.testing.assert_allclose(pixels[..., 3], np.where(np.tri(8), 255 * strong, 0), atol=2)
        for sign, colour in ((1, plus), (-1, minus)):
            clear = (values * sign > 0) & (strong > 0.3)
            assert np.abs(pixels[clear][:, :3] - colour).max(initial=0) <= 3  # the canvas rounds by its alpha


def test_the_text_is_coloured_by_the_map_that_is_chosen(browser: Chromium, page_of: PageOf) -> None:
    maps = drawn_maps()
    browser.open(page_of(maps, layer=2, pair=0))
    full = number(text(browser, "scale-high").split(" ")[0])
    for name in ("difference", "first", "second"):
        browser.point(f"input[value={name}]", click=True)
        browser.away()
        fills = browser.run("[...tokens.children].map((o) => o.style.backgroundColor.match(/[\\d.]+/g).map(Number))")
        values = maps.map(name, 2, 0)[7]
        for fill, value in zip(fills, values, strict=True):
            assert fill[:3] == ([42, 139, 208] if value >= 0 else [224, 112, 26])
            alpha = fill[3] if len(fill) == 4 else 1.0
            assert abs(alpha - min(abs(value) / full, 1) ** 0.5) < 4e-3  # the browser keeps 8 bits of it


def test_bars_have_the_lengths_of_the_values(browser: Chromium, page_of: PageOf) -> None:
    maps = drawn_maps()
    browser.open(page_of(maps, layer=0, pair=1))
    bars = browser.run(
        "[...document.querySelectorAll('#profile svg')].map((s) => [...s.querySelectorAll('rect')].map("
        "(r) => [Number(r.getAttribute('height')), r.classList.contains('minus')]))"
    )
    values = np.stack([maps.map(name, 0, 1)[7] for name in maps.names])
    np.testing.assert_allclose(
        [[-h if minus else h for h, minus in row] for row in bars], values / np.abs(values).max(), atol=1e-3
    )


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
    assert stops == ["theme", "layer", "pair", "threshold", "colour", "option", "group", "layer 0, pair 0"]
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
        browser.run(f"theme.value = '{theme}'; theme.dispatchEvent(new Event('change'))")
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


def test_what_is_in_the_text_is_only_text(browser: Chromium, page_of: PageOf) -> None:
    hostile = "<img src=x onerror=window.run=1><script>window.run=2</script></script>--><!--\u2028"
    tokens = (hostile, "</script>", "<b>", "-->", "'\"`${1}")
    browser.open(page_of(drawn_maps(tokens=tokens), prompt=hostile, model=hostile))
    assert browser.run("window.run") is None
    assert browser.run("document.title").startswith("Attention: <img src=x onerror=window.run=1>")
    assert browser.run("[...tokens.children].map((o) => o.textContent)") == list(tokens)
    assert browser.run("document.querySelectorAll('img, b, script').length") == 2
    assert text(browser, "about").startswith(hostile)
    browser.point(token(0), click=True)
    assert text(browser, "status").startswith(f"“{hostile}” looks: ")


def test_no_script_can_be_added(chromium: Chromium, page_of: PageOf) -> None:
    """The page's own rule forbids it, so that a mistake in escaping would still run nothing."""
    chromium.open(page_of(drawn_maps()))
    chromium.run(
        "(() => {const s = document.createElement('script'); s.textContent = 'window.run = 1';"
        "document.body.append(s)})()"
    )
    assert chromium.run("window.run") is None
    assert any("Content Security Policy" in complaint for complaint in chromium.complaints())


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
