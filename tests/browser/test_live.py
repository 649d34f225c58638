"""The article "The Differential Transformer, live": its figures, driven, show what refdiff computes.

REFERENCE names a folder of built pages with the article in it; without one only the article is written.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff import layers, viz
from refdiff.viz.maps import token_labels
from tests.test_article import DATA, ROOT, SMALL_MODELS, numbers, write_article

from .chromium import Chromium
from .reading import change, expect_accessible, expect_quiet, number, served, wait

TEXT = "A fox saw a crow fly off with a piece of cheese in its beak"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("REFERENCE"):
        return Path(named).resolve() / "live"
    return write_article(tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="session")
def origin(folder: Path) -> Iterator[str]:
    with served(folder) as address:
        yield address


@pytest.fixture
def page(chromium: Chromium, origin: str) -> Iterator[Chromium]:
    """The article with all its figures. A test also fails if the page complained, or asked another server."""
    open_article(chromium, origin)
    yield chromium
    chromium.away()  # or the pointer stands on whatever the next test opens
    expect_quiet(chromium, origin, "data:")


def open_article(browser: Chromium, origin: str, **options: Any) -> None:
    browser.open(f"{origin}index.html", **options)
    wait(browser, "document.querySelectorAll('figure[data-ready]').length === 2")
    wait(browser, "document.querySelector('#lambdas svg') !== null")
    wait(browser, "document.querySelector('[aria-busy]') === null")


SENTENCE = "import('./main.js').then(({figures: {sentence: {state: s}}}) => %s)"
CELLS = "[...document.querySelectorAll('#%s tbody tr')].map((row) => [...row.children].map((cell) => cell.textContent))"


def shown(browser: Chromium, selector: str) -> str:
    return str(browser.run(f"document.querySelector({json.dumps(selector)}).textContent"))


def check(browser: Chromium, name: str, value: object) -> None:
    """Choose a radio button."""
    browser.run(f'document.querySelector(\'input[name="{name}"][value="{value}"]\').click()')


def choose_model(browser: Chromium, folder: str) -> None:
    check(browser, "sentence-model", folder)
    wait(browser, SENTENCE % f"s.folder === '{folder}'")


@pytest.fixture(scope="session")
def model() -> refdiff.DiffLlamaForCausalLM:
    return refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return refdiff.Tokenizer.from_pretrained("bundled")


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer([text], return_tensors="np")["input_ids"][0]]


# ---- the model and the tokenizer

LOAD = """
const { Model, Reading, generate, readSafetensors } = await load("model.js");
const { Tokenizer } = await load("tokenizer.js");
const parsed = async (name) => JSON.parse(new TextDecoder().decode(await read(`model/${name}.json`)));
const tokenizer = new Tokenizer(await parsed("tokenizer"));
const model = new Model(await parsed("config"), readSafetensors(await read("model/model.safetensors")));
"""


@pytest.fixture
def evaluate(page: Chromium) -> Callable[[str, object], Any]:
    """Run statements after LOAD, with `given`, and return what they return."""
    return lambda body, given: page.run(
        "(async () => { const load = (name) => import(`./${name}`);"
        "const read = async (name) => (await fetch(name)).arrayBuffer();"
        f"const given = {json.dumps(given)}; {LOAD} {body} }})()"
    )


def tales() -> list[str]:
    return [line for line in (DATA / "tales.txt").read_text(encoding="utf-8").splitlines() if line]


@pytest.fixture(scope="session")
def by_refdiff(tokenizer: Any) -> dict[str, Any]:
    """Logits and λ of one text in float32, and the greedy ends of twenty prompts."""
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float32")
    prompts = [" ".join(line.split()[: 3 + i % 6]) for i, line in enumerate(line for line in tales() if " " in line)]
    prompts = list(dict.fromkeys(prompts))[:20]
    text = ids_of(tokenizer, tales()[0])[:48]
    out = model(np.array([text]), output_attentions=True)
    greedy = [
        model.generate(np.array([ids_of(tokenizer, prompt)]), max_new_tokens=20, do_sample=False)[0].tolist()
        for prompt in prompts
    ]
    return {"prompts": prompts, "text": text, "logits": out.logits[0], "lambdas": out.lambdas, "greedy": greedy}


def test_the_model_is_refdiffs(evaluate: Any, by_refdiff: dict[str, Any]) -> None:
    logits, lambdas, greedy = evaluate(
        "const reading = new Reading(model);"
        "return [given.text.map((id) => Array.from(model.logits(reading.next(id)))), model.lambdas,"
        "given.prompts.map((prompt) => generate(model, tokenizer.encode(prompt), 20))];",
        {"text": by_refdiff["text"], "prompts": by_refdiff["prompts"]},
    )
    assert np.abs(np.array(logits) - by_refdiff["logits"]).max() <= 1e-4
    np.testing.assert_allclose(lambdas, by_refdiff["lambdas"], rtol=1e-5)
    assert len(by_refdiff["prompts"]) == 20
    assert greedy == by_refdiff["greedy"]


@pytest.mark.parametrize("name", ["differential", "plain"])
def test_small_models_match_refdiff(evaluate: Any, by_refdiff: dict[str, Any], name: str) -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(SMALL_MODELS / name, dtype="float32")
    text, prompt = by_refdiff["text"], by_refdiff["text"][:9]
    logits, greedy = evaluate(
        f"const folder = 'small_models/{name}/';"
        "const config = new TextDecoder().decode(await read(`${folder}config.json`));"
        "const small = new Model(JSON.parse(config), readSafetensors(await read(`${folder}model.safetensors`)));"
        "const reading = new Reading(small);"
        "return [given.text.map((id) => Array.from(small.logits(reading.next(id)))),"
        "generate(small, given.prompt, 20)];",
        {"text": text, "prompt": prompt},
    )
    assert np.abs(np.array(logits) - model(np.array([text])).logits[0]).max() <= 1e-4
    assert greedy == model.generate(np.array([prompt]), max_new_tokens=20, do_sample=False)[0].tolist()


def test_the_tokenizer_is_refdiffs(evaluate: Any, tokenizer: Any) -> None:
    japanese, emoji = "むかしむかし、あるところに、おじいさんとおばあさんがいました。", "😀👩‍👩‍👧‍👦🇯🇵❤️🦊🐺"
    rng = np.random.default_rng(0)
    pool = [*"ab XYZ 019 \t\n\r ''sd.,!?-—“”éßñ\x85\ufeff\xa0\u3000\x00\u200b", *japanese, *emoji]
    pool += ["<|endoftext|>", "<|endof", " don't", "I'll", "  "]
    lines = tales()[:200] + [japanese[:i] for i in range(32)] + [emoji[:i] for i in range(1, 20)]
    lines += ["".join(rng.choice(pool, rng.integers(0, 40))) for _ in range(1000 - len(lines))]
    found = evaluate(
        "return given.map((line) => { const ids = tokenizer.encode(line);"
        "return [ids, ids.map((id) => tokenizer.label(id)), tokenizer.decode(ids)]; });",
        lines,
    )
    assert len(found) == 1000
    for line, (ids, labels, text) in zip(lines, found, strict=True):
        assert ids == ids_of(tokenizer, line)
        assert labels == token_labels(tokenizer, ids)
        assert text == tokenizer.decode(ids, skip_special_tokens=True)


# ---- the figures


def test_the_needle(page: Chromium) -> None:
    for lambda_, shared, size in ((0.75, 0.99, 2), (0.0, 0.99, 2), (1.5, 0.5, 0), (2.0, 0.0, 5)):
        change(page, "needle-lambda", lambda_)
        change(page, "needle-shared", shared)
        change(page, "needle-d", size)
        query, first, second = page.run(
            "Promise.all([import('./main.js'), import('./needle.js')]).then(([m, n]) => {"
            "const v = n.vectors(m.figures.needle.state);"
            "return [[...v.query], v.first.map((k) => [...k]), v.second.map((k) => [...k])]})"
        )
        d = len(query)
        assert d == (4, 8, 16, 32, 64, 128)[size]
        q, k1, k2 = (np.array(x).reshape(1, 1, -1, d) for x in (query, first, second))
        one, two = (layers.attention_weights(q, k, causal=False)[0, 0, 0] for k in (k1, k2))
        row = layers.diff_attention(q, k1, q, k2, np.eye(48)[None, None], np.asarray(lambda_), causal=False)[0, 0, 0]
        np.testing.assert_allclose(numbers(shown(page, "#needle-weight")), [one[30], row[30]], atol=0.0051)
        shares = [100 * abs(x[30]) / np.abs(x).sum() for x in (one, row)]
        np.testing.assert_allclose(numbers(shown(page, "#needle-share")), shares, atol=0.51)
        np.testing.assert_allclose(numbers(shown(page, "#needle-sum")), 1 - lambda_, atol=0.0051)
        for name, expected in (("first", one), ("second", two), ("difference", row)):
            bars = page.run(
                f"[...document.querySelectorAll('.bars.{name} rect')].map((r) => ["
                "Number(r.getAttribute('height')), r.classList.contains('minus')])"
            )
            heights = np.array([-height if minus else height for height, minus in bars])
            np.testing.assert_allclose(heights, expected / np.abs([one, two, row]).max(), atol=1e-9)
        if d > 4:  # the knob says what it does
            others = np.arange(48) != 30
            assert (
                abs(np.corrcoef(np.array(first)[others].ravel(), np.array(second)[others].ravel())[0, 1] - shared) < 0.1
            )


def test_lambdas(page: Chromium, model: refdiff.DiffLlamaForCausalLM) -> None:
    lambdas = model(np.array([[0]]), output_attentions=True).lambdas
    values = page.run("[...document.querySelectorAll('#lambdas .value')].map((e) => e.textContent)")
    assert values == [f"{x:.2f}".replace("-", "−") for x in lambdas]
    ends, starts = (
        page.run(f"[...document.querySelectorAll('#lambdas .{name}')].map((e) => Number(e.getAttribute('cy')))")
        for name in ("end", "start")
    )
    expected = [*lambdas, *(layers.lambda_init(layer) for layer in range(6))]
    slope, start = np.polyfit(expected, [*ends, *starts], 1)  # all on one scale
    np.testing.assert_allclose([*ends, *starts], slope * np.array(expected) + start, atol=1e-6)
    assert slope < 0


def type_text(browser: Chromium, text: str) -> None:
    change(browser, "sentence-text", text)
    wait(browser, SENTENCE % f"s.shown === {json.dumps(text)}")


def with_lambdas(model: refdiff.DiffLlamaForCausalLM, lambdas: dict[int, float]) -> Any:
    sys.path.insert(0, str(ROOT / "notebooks"))
    try:
        import sketches
    finally:
        sys.path.pop(0)
    return sketches.strengths(model, lambdas)


def expect_next(browser: Chromium, tokenizer: Any, *logits: Any) -> None:
    """Of the model as trained, with the reader's λ, and of the baseline."""
    rows = browser.run(CELLS % "sentence-next")
    probabilities = [np.exp(z - z.max()) / np.exp(z - z.max()).sum() for z in logits]
    best = np.argsort(-np.max(probabilities, axis=0))[:8]
    expected = {token_labels(tokenizer, [i])[0]: 100 * np.array(probabilities)[:, i] for i in best}
    assert {row[0] for row in rows} == set(expected)
    for label, *cells in rows:
        np.testing.assert_allclose([numbers(cell)[0] for cell in cells], expected[label], atol=0.051)
    for name, other in zip(("moved", "apart"), probabilities[1:], strict=False):
        apart = 50 * np.abs(probabilities[0] - other).sum()
        np.testing.assert_allclose(numbers(shown(browser, f"#sentence-{name}")), apart, atol=0.051)


TOLD = "document.querySelector('.go-on button').getAttribute('aria-disabled') === 'false'"
BASELINE_PARTS = "['.maps.baseline', '#sentence-apart'].map((part) => document.querySelector(part).checkVisibility())"
STORIES = "[...document.querySelectorAll('.written')].map((p) => p.textContent)"


@pytest.mark.parametrize(
    ("chosen", "places"),
    [
        ("model", ((4, 0, -1), (0, 2, 5), (5, 0, 0), (3, 1, -1))),
        ("small_models/differential", ((2, 0, -1), (0, 2, 5))),
    ],
)
def test_the_readers_own_sentence(
    page: Chromium, tokenizer: Any, chosen: str, places: tuple[tuple[int, int, int], ...]
) -> None:
    """Its maps, next tokens and stories: of the model as trained, with the reader's λ, and of the baseline."""
    type_text(page, TEXT)
    choose_model(page, chosen)
    paths = ["bundled"] if chosen == "model" else [SMALL_MODELS / "differential", SMALL_MODELS / "plain"]
    model, *baseline = (refdiff.DiffLlamaForCausalLM.from_pretrained(path, dtype="float64") for path in paths)
    assert page.run(BASELINE_PARTS) == [bool(baseline)] * 2
    ids = ids_of(tokenizer, TEXT)
    plain = [viz.attention_maps(m, ids, tokenizer).first for m in baseline]
    trained, *by_baseline = (m(np.array([ids])).logits[0, -1] for m in (model, *baseline))

    def expect_row(layer: int, pair: int, query: int) -> None:
        maps = viz.attention_maps(model, ids, tokenizer)
        first, second = maps.first[layer, pair], maps.second[layer, pair]
        columns = {"A₁": first, "A₂": second, "A₁ − λ A₂": first - maps.lambdas[layer] * second}
        columns |= {f"baseline A, head {head}": x[layer, head] for x in plain for head in (pair, pair + 3)}
        names = page.run("[...document.querySelectorAll('#sentence-numbers thead th')].map((th) => th.textContent)")
        rows = page.run(CELLS % "sentence-numbers")
        assert names[1:] == list(columns)
        assert [row[0] for row in rows] == token_labels(tokenizer, ids)[: query + 1]
        expected = np.stack([x[query, : query + 1] for x in columns.values()], axis=1)
        np.testing.assert_allclose([[number(x) for x in row[1:]] for row in rows], expected, atol=0.51e-4)

    def continued(model: refdiff.DiffLlamaForCausalLM) -> str:
        made = model.generate(np.array([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :]
        return "… " + str(tokenizer.decode(made, skip_special_tokens=True)).lstrip()

    for layer, pair, from_end in places:
        query = from_end % len(ids)
        check(page, "sentence-pair", f"{layer} {pair}")
        check(page, "sentence-query", query)
        wait(page, f"document.querySelectorAll('#sentence-numbers tbody tr').length === {query + 1}")
        expect_row(layer, pair, query)
    expect_next(page, tokenizer, trained, trained, *by_baseline)

    change(page, "sentence-lambda", -0.25)
    wait(page, SENTENCE % "s.pulled !== s.read")
    with with_lambdas(model, {layer: -0.25}):
        expect_row(layer, pair, query)
        expect_next(page, tokenizer, trained, model(np.array([ids])).logits[0, -1], *by_baseline)
        page.point(".go-on button", click=True)
        wait(page, TOLD)
        pulled = continued(model)
    written = page.run(STORIES)
    assert written == [continued(model), pulled, *map(continued, baseline), ""][:3]
    page.point(".buttons button:nth-child(3)", click=True)
    wait(page, SENTENCE % "s.pulled === s.read")
    assert page.run(STORIES) == [written[0], "", written[2]]  # the second was of other λ
    expect_next(page, tokenizer, trained, trained, *by_baseline)

    if baseline:
        choose_model(page, "model")
        assert page.run(BASELINE_PARTS) == [False, False]
        assert page.run(STORIES) == [""] * 3


def test_a_text_that_is_empty_long_or_hostile(page: Chromium) -> None:
    type_text(page, "")
    assert page.run("document.querySelectorAll('#sentence .tokens input').length") == 1
    type_text(page, "<img src=x onerror=window.ran=1></script> 🦊 桃太郎")
    assert page.run("window.ran") is None
    assert page.run("document.querySelectorAll('#sentence img, #sentence script').length") == 0
    assert "<img·src=x·onerror" in page.run("document.querySelector('#sentence .tokens').textContent")
    type_text(page, "a king and " * 40)
    assert page.run("document.querySelectorAll('#sentence .tokens input').length") == 64
    assert "left out" in shown(page, "#sentence-left")


def test_rotation(page: Chromium) -> None:
    q, k = page.run("import('./rotation.js').then((r) => [r.numbers(r.QUERY), r.numbers(r.KEY)])")
    frequencies = 10000.0 ** (-np.arange(16) / 16)
    scores = []
    for position, distance, plane in ((3, 5, 0), (150, 5, 0), (150, 40, 7), (0, 0, 15)):
        change(page, "rotation-position", position)
        change(page, "rotation-distance", distance)
        check(page, "rotation-plane", plane)
        places = np.array([[position + distance], [position]])
        cos, sin = layers.rope_cos_sin(places, frequencies, 1.0, np.float64)
        turned = layers.rope(np.array([q, k]).reshape(2, 1, 1, 32), cos, sin)
        scores.append(float(turned[0, 0, 0] @ turned[1, 0, 0]))
        assert abs(number(shown(page, "#rotation-score")) - scores[-1]) <= 0.51e-4
        for (name, length), vector, (place,) in zip((("query", 50), ("key", 34)), turned[:, 0, 0], places, strict=True):
            x1, y1, x2, y2 = page.run(
                "(({x1, y1, x2, y2}) => [x1, y1, x2, y2].map((x) => x.baseVal.value))"
                f"(document.querySelector('.dial .hand.{name}:not(.ghost)'))"
            )
            direction = np.array([x2 - x1, y1 - y2]) / length
            np.testing.assert_allclose(direction, vector[[plane, plane + 16]], atol=1e-5)  # SVG has float32
            assert abs(number(shown(page, f"#rotation-{name}")) - place * frequencies[plane]) <= 0.51e-3
        (said,) = re.findall(r"hands is (\S+)°", shown(page, "#rotation [role=status]"))
        between = np.arccos(np.clip(turned[0, 0, 0, [plane, plane + 16]] @ turned[1, 0, 0, [plane, plane + 16]], -1, 1))
        assert abs(number(said) - np.degrees(between)) <= 0.51
    assert abs(scores[0] - scores[1]) < 1e-12 < abs(scores[1] - scores[2])


def test_results_are_those_of_chapter_5(page: Chromium) -> None:
    stored = json.loads((DATA / "retrieval.json").read_text(encoding="utf-8"))
    lengths = stored["experiment"]["lengths"]
    assert page.run("[...document.querySelectorAll('.dots text')].slice(3, 10).map((x) => x.textContent)") == [
        str(length) for length in lengths
    ]
    for kind, wiring in (("plain", "none"), ("v1", "hf"), ("v2", "v2")):
        by_seed = [run for run in stored["runs"] if run["wiring"] == wiring]
        shares = [[run["measured"][str(length)]["accuracy"] for run in by_seed] for length in lengths]
        dots = page.run(f"[...document.querySelectorAll('.dots .{kind} circle')].map((c) => c.cy.baseVal.value)")
        assert len(dots) == 5 * len(lengths)
        bottom, top = page.run("[...document.querySelectorAll('.dots .grid')].map((l) => l.y1.baseVal.value)")[::2]
        drawn = (np.array(dots).reshape(-1, 5) - bottom) / (top - bottom)
        np.testing.assert_allclose(np.sort(drawn), np.sort(shares), atol=1e-4)
        line = page.run(f"document.querySelector('.dots .{kind} polyline').getAttribute('points')")
        means = (np.array([float(point.split(",")[1]) for point in line.split()]) - bottom) / (top - bottom)
        np.testing.assert_allclose(means, np.mean(shares, axis=1), atol=1e-4)


# ---- the page as a whole

OPEN_FOLD = "document.querySelector('.fold').open = true"


def test_by_keyboard_alone(page: Chromium) -> None:
    expected = {
        "Skip to the article", "needle-shared", "needle-d", "Subtract too much", "rotation-distance",
        "rotation-plane", "sentence-text", "sentence-model", "sentence-query", "sentence-lambda",
    }  # fmt: skip
    stops: set[str] = set()
    for _ in range(100):
        page.press("Tab")
        stop = page.run("(({id, name, textContent}) => id || name || textContent.trim())(document.activeElement)")
        stops.add(stop)
        if stop.startswith("How does a score depend on the distance?"):
            assert not page.run("document.querySelector('.fold').open")
            page.press("Enter")
        if stop == "needle-lambda":
            page.press("ArrowRight")
            assert number(shown(page, "[for=needle-lambda]:is(output)")) == 0.8
        if stop == "sentence-pair":
            page.press("ArrowRight")
            wait(page, "document.querySelector('#sentence .status').textContent.startsWith('Layer 4, pair 0')")
        if expected <= stops:  # before Tab leaves the page, and the next one has no focus
            break
    assert expected - stops == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(chromium: Chromium, origin: str, axe: str, scheme: str) -> None:
    open_article(chromium, origin, scheme=scheme)
    chromium.run(OPEN_FOLD)
    choose_model(chromium, "small_models/differential")
    chromium.call("Page.setBypassCSP", enabled=True)
    try:
        expect_accessible(chromium, axe, passes=25)
    finally:
        chromium.call("Page.setBypassCSP", enabled=False)


@pytest.mark.parametrize("width", [320, 360, 800, 1400, 2000])
def test_no_width_makes_it_wider_than_the_window(chromium: Chromium, origin: str, width: int) -> None:
    open_article(chromium, origin, width=width)
    chromium.run(OPEN_FOLD)
    choose_model(chromium, "small_models/differential")
    assert chromium.run("document.documentElement.scrollWidth") <= width
    outside = (
        "[...document.querySelectorAll('p, math, svg text, svg circle, input, button, canvas, td, th, output, legend')]"
        ".filter((e) => !e.closest('details:not([open]), .skip')).map((e) => [e.getBoundingClientRect(), e.outerHTML])"
        f".filter(([b]) => b.width && (b.left < -1 || b.right > {width} + 1)).map(([, html]) => html.slice(0, 80))"
    )
    assert chromium.run(outside) == []
    cut_off = "[...document.querySelectorAll('math[display]')].filter((m) => m.scrollWidth > m.clientWidth + 1).length"
    assert chromium.run(cut_off) == 0


def test_from_a_disk_the_page_says_what_it_needs(chromium: Chromium, folder: Path) -> None:
    chromium.open(folder / "index.html")
    assert chromium.run("document.getElementById('needs-server').offsetHeight > 0")
    assert chromium.run("[...document.querySelectorAll('.stage')].every((stage) => stage.offsetHeight === 0)")
    assert chromium.run("document.querySelector('#needle .words').offsetHeight > 0")


def test_without_the_model_the_page_says_why(chromium: Chromium, origin: str) -> None:
    chromium.call("Network.setBlockedURLs", urls=["*model.safetensors"])
    try:
        chromium.open(f"{origin}index.html")
        wait(chromium, "document.querySelector('#sentence .stage').textContent.startsWith('This figure could not')")
        wait(chromium, "document.querySelector('[aria-busy]') === null")
        assert chromium.run("document.querySelectorAll('#needle .bars rect').length") == 3 * 48
    finally:
        chromium.call("Network.setBlockedURLs", urls=[])
