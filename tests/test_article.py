"""The article "The Differential Transformer, live", without a browser: its numbers, links and files."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sketches
import tiny
from experiments import results, retrieval_table

import refdiff
from refdiff import oracle, viz

ROOT = Path(__file__).parents[1]
DATA = ROOT / "notebooks" / "data"
SOURCE = ROOT / "notebooks" / "reference" / "live"
SMALL_MODELS = SOURCE.parent / "small_models"
ARTICLE = (SOURCE / "index.html").read_text(encoding="utf-8")


def write_article(folder: Path) -> Path:
    """Write it to a folder, with all that it loads."""
    subprocess.run([sys.executable, SOURCE.parent / "article.py", "-o", folder], check=True)
    return folder


def numbers(text: str) -> list[float]:
    return [float(found.replace("−", "-")) for found in re.findall(r"[−+]?\d+(?:\.\d+)?", text)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_article(tmp_path_factory.mktemp("live"))


def test_small_models_are_those_that_were_measured() -> None:
    about = json.loads((SMALL_MODELS / "about.json").read_text(encoding="utf-8"))
    for name in ("differential", "plain"):
        weights = (SMALL_MODELS / name / "model.safetensors").read_bytes()
        assert about[name]["weights"] == hashlib.sha256(weights).hexdigest()
        model = refdiff.DiffLlamaForCausalLM.from_pretrained(SMALL_MODELS / name)
        assert about[name]["parameters"] == model.num_parameters()
    vectors = 4 * 16  # for λ, in each layer
    assert about["differential"]["parameters"] - about["plain"]["parameters"] == 3 * vectors


def test_numbers_in_the_text_are_those_of_the_data(folder: Path) -> None:
    def said(name: str) -> list[float]:
        (found,) = re.findall(rf'id="{name}"[^>]*>(.*?)</(?:span|tbody)>', ARTICLE, flags=re.DOTALL)
        cells = re.sub(r".*<tbody>|<th .*?</th>|<[^>]+>", " ", found, flags=re.DOTALL)
        return numbers(cells.replace(",", ""))

    stored, text = results.load()
    runs, of = results.retrieval_runs(stored), results.text_runs(text)
    kinds = tuple(results.KINDS)
    learned = [np.mean([run["learned_at"] for run in runs[kind]]) for kind in kinds]
    shares = [
        np.mean([run["measured"][tokens][measure] for run in runs[kind]])
        for tokens, measure in (("64", "accuracy"), ("256", "accuracy"), ("64", "noise"))
        for kind in kinds
    ]
    losses = [np.mean([run["validation"][-1][1] for run in of[name]]) for name in (*kinds, "plain, Muon", "v1, Muon")]
    large = json.loads((DATA / "baseline.json").read_text(encoding="utf-8"))
    reached = [dict(large[kind]["validation"])[4000] for kind in ("plain", "differential")]
    table = [*map(round, learned), *(round(100 * x) for x in shares), *(round(x, 2) for x in losses)]
    assert said("found") == [*table, *(round(x, 3) for x in reached)]

    def compared(length: int, measure: str, wiring: str) -> tuple[float, float]:
        """Mean and half width of the 95 % interval of a kind's difference from plain attention."""
        return retrieval_table.mean_and_interval(retrieval_table.differences(stored["runs"], length, measure, wiring))

    long_rows = compared(256, "accuracy", "hf")
    np.testing.assert_allclose(said("long-rows"), [100 * x for x in long_rows], atol=0.051)

    parameters = {kind: {run["parameters"] for run in mine} for kind, mine in runs.items()}
    assert parameters == {kind: {said("kinds")[i - 3]} for i, kind in enumerate(parameters)}
    assert "equal parameters within 0.3\u00a0%" in ARTICLE
    for sizes in (set.union(*parameters.values()), {run["parameters"] for run in text["runs"]}):
        assert max(sizes) < 1.003 * min(sizes)

    by_length = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    found = {kind: np.mean(shares, axis=1) for kind, shares in by_length["found"].items()}  # (length,)
    assert min(shares[0] for shares in found.values()) > 0.95
    assert by_length["lengths"] == [8, 16, 32, 64, 128, 256, 512]
    assert found["v2"][:-1].min() > 0.8
    (words,) = re.findall(r"<p>A row of tokens: fillers.*?</p>", ARTICLE)
    fallen = [
        found[kind][at] for kind, places in (("plain", (3, 5, 6)), ("v1", (3, 5, 6)), ("v2", (6,))) for at in places
    ]
    assert [int(x) for x in re.findall(r"(\d+)\s%", words) if x not in ("95", "80")] == [round(100 * x) for x in fallen]
    clear = {
        kind: [
            n
            for n in by_length["lengths"]
            if sign * compared(n, what, w)[0] > compared(n, what, w)[1]
        ]
        for kind, what, w, sign in (
            ("v1 finds more", "accuracy", "hf", 1), ("v2 finds more", "accuracy", "v2", 1),
            ("v1 less noise", "noise", "hf", -1), ("v2 less noise", "noise", "v2", -1),
        )
    }  # fmt: skip
    assert clear == {
        "v1 finds more": [16, 32, 64],
        "v2 finds more": [16, 32, 64, 128, 256, 512],
        "v1 less noise": [],
        "v2 less noise": [8, 16, 32, 64],
    }


def test_the_first_picture_is_a_row_of_the_plain_model() -> None:
    """What "youngest" takes from each token: its bars in the text and end to end, and the numbers told of them."""
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(SMALL_MODELS / "plain")
    tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
    (text,) = re.findall(r"<p>“(There was once .*?) …”", ARTICLE)
    ids = tokenizer.encode(text)
    words = ["start", *(tokenizer.decode([i]).strip() for i in ids[1:])]
    wanted = np.isin(words, ("king", "son"))
    last = viz.attention_maps(model, ids, tokenizer).first[:, :, -1]  # (layer, head, key)
    in_wanted = last[..., wanted].sum(axis=-1)
    row = last.reshape(-1, len(ids))[in_wanted.argmax()]
    assert f"Of its {in_wanted.size} heads, this is the one that gives “king” and “son” most" in ARTICLE
    assert f"The same {len(row)} weights" in ARTICLE

    (figure,) = re.findall(r'<figure id="looks">.*?</figure>', ARTICLE, flags=re.DOTALL)
    above, end_to_end, told = re.split(r'<svg class="end-to-end"|<figcaption>', figure)
    tokens = re.findall(r'<span(.*?)>.*?height="([\d.]+)"/>(.*?)</svg>(.*?)</span>', above)
    assert [re.sub("<.*?>", "", token) for *_, token in tokens] == words
    assert ["framed" in kind for kind, *_ in tokens] == wanted.tolist()
    np.testing.assert_allclose([float(height) / 250 for _, height, *_ in tokens], row, atol=0.05 / 250)
    assert [numbers(re.sub("<.*?>", "", x)) for _, _, x, _ in tokens if x] == [[round(x, 2)] for x in row[wanted]]

    placed = re.findall(r'x="([\d.]+)" y="4" width="([\d.]+)"', end_to_end)
    starts, widths = np.array(placed, dtype=float).T / 380
    in_order = [*row[wanted], *np.sort(row[~wanted])[::-1]]
    np.testing.assert_allclose(widths, in_order, atol=0.051 / 380)
    np.testing.assert_allclose(starts, np.cumsum([0, *in_order[:-1]]), atol=0.051 / 380)
    shares = [round(100 * float(row[some].sum())) for some in (wanted, ~wanted)]
    assert re.findall(r": (\d+)\s%", end_to_end) == list(map(str, shares))
    first, second = np.sort(row[np.array(words) == "son"])[::-1]
    rest = (row[words.index("king")], row[~wanted].max())
    assert numbers(re.sub("<.*?>", "", told.split("<p>")[1])) == [
        *(round(float(x), 2) for x in (first, second, *rest)), shares[0], (~wanted).sum(), shares[1]
    ]  # fmt: skip


def test_figure_1_gains_little_at_the_models_correlation() -> None:
    """The needle's share at the slider's best λ, for the trained model's correlation and for figure 1's own."""
    query, noise, other = sketches.article_draw(48, 16)
    shares = []
    for rho in (0.4, 0.99):
        scores = np.stack([noise, rho * noise + np.sqrt(1 - rho**2) * other]) @ query / 4
        scores[0, 30] += 0.6 * query @ query / 4
        first, second = tiny.softmax(scores)
        weights = np.abs(first - np.arange(0, 2.01, 0.05)[:, None] * second)
        shares.append(weights[:, 30] / weights.sum(axis=-1))
    alone, *best = (f"{100 * share:.0f}\u00a0%" for share in (shares[0][0], *(x.max() for x in shares)))
    assert f"raises the needle’s share from {alone} to {best[0]} at most; 0.99 raises it to {best[1]}" in ARTICLE


def test_the_arrows_of_queen_are_measured() -> None:
    """What the last token of chapter 03's text takes in layer 4, pair 0, before the subtraction and after it."""
    (text,) = re.findall(r"the last of “(.*?)”", ARTICLE)
    model, tokenizer = (kind.from_pretrained("bundled") for kind in (refdiff.DiffLlamaForCausalLM, refdiff.Tokenizer))
    ids = tokenizer.encode(text)
    maps = viz.attention_maps(model, ids)
    values = oracle.trace(model, np.array([ids]))["model.layers.4.self_attn.values"][0, 0]
    first, second, lambda_ = maps.first[4, 0, -1], maps.second[4, 0, -1], maps.lambdas[4]
    queen = first.argmax()
    assert tokenizer.decode([ids[queen]]) == " queen"
    assert f"In pair 0 of layer 4, where λ is {lambda_:.2f}" in ARTICLE

    (figure,) = re.findall(r'<figure id="queen".*?</figure>', ARTICLE, flags=re.DOTALL)
    shares, lengths, of_others = [], [], []
    for row, panel in zip((first, first - lambda_ * second), figure.split("<div><p>")[1:], strict=True):
        own, output = row[queen] * values[queen], row @ values
        length = np.linalg.norm(output)
        along = own @ output / length
        across = np.sqrt(own @ own - along**2)
        assert f"“queen” is {100 * along / length:.0f}\u00a0% of the output" in panel
        told = [f"{x:.2f}" for x in (along, length - along)]
        assert re.findall(r'y="150".*?>(.*?)</text>', panel) == told
        (path,) = re.findall(r'class="others" d="M(.*?)"', panel)
        drawn = [float(x) for x in re.findall(r"[\d.]+", path)]
        np.testing.assert_allclose(drawn, [10 + 50 * along, 118 - 50 * across, 10 + 50 * length, 118], atol=0.06)
        assert f'class="own" d="M10 118L{drawn[0]} {drawn[1]}"' in panel
        assert f'class="whole" d="M10 118H{drawn[2]}"' in panel
        shares.append(round(100 * abs(row[queen]) / np.abs(row).sum()))
        lengths += [f"{length:.2f}", *told]
        of_others.append(np.linalg.norm(output - own))
    assert re.findall(r"\d\.\d\d", figure.split('class="words"')[1]) == lengths
    assert f"its share of Σ|weight| falls from {shares[0]}\u00a0% to {shares[1]}\u00a0%" in ARTICLE
    assert 0.6 < of_others[1] / of_others[0] < 0.7  # "shorter by a third"


def test_the_parts_of_the_favorite_are_measured() -> None:
    """The favorite's share of the weights and its part of the output, before and after, by layer."""
    model, tokenizer = (kind.from_pretrained("bundled") for kind in (refdiff.DiffLlamaForCausalLM, refdiff.Tokenizer))
    measured = []
    for text in (DATA / "tales.txt").read_text(encoding="utf-8").split("<|endoftext|>"):
        ids = tokenizer.encode(text.strip())[:256]
        maps, trace = viz.attention_maps(model, ids), oracle.trace(model, np.array([ids]))
        for layer in (0, 2, 3, 4):
            lambda_, first, second = maps.lambdas[layer], maps.first[layer, :, 32:], maps.second[layer, :, 32:]
            after = first - lambda_ * second
            leading = second if lambda_ > 1 else first
            values = trace[f"model.layers.{layer}.self_attn.values"][0]
            top = leading.argmax(axis=-1)[..., None]
            for weights in (leading, after):
                of_top = np.take_along_axis(weights, top, -1)
                measured.append(np.mean(np.abs(of_top[..., 0]) / np.abs(weights).sum(axis=-1)))
                output, favorite = weights @ values, of_top * np.take_along_axis(values, top, -2)
                measured.append(np.mean((favorite * output).sum(axis=-1) / (output**2).sum(axis=-1)))
    table = 100 * np.reshape(measured, (-1, 4, 2, 2)).mean(axis=0)  # (layer, before or after, weights or output)
    for i, name in enumerate(("weights", "output")):
        (drawn,) = re.findall(rf'<svg id="favorite-{name}".*?</svg>', ARTICLE, flags=re.DOTALL)
        said = [numbers(x) for x in re.findall(r">(\d+ → \d+) %<", drawn)]
        np.testing.assert_allclose(said, table[..., i], atol=0.51)
        at = [[float(x) for x in re.findall(r'cx="([\d.]+)"', group)] for group in re.findall(r"<g>.*?</g>", drawn)]
        np.testing.assert_allclose((np.array(at) - 58) / 2.32, said, atol=0.05)


def test_the_text_tells_what_the_sentence_opens_on() -> None:
    """The weight of the second map of layer 3 on "girl", and its probability with λ as trained and with λ = 0."""
    (text,) = re.findall(r'id: "sentence-text".*?\n\s+"(.*?)"\)', (SOURCE / "sentence.js").read_text(encoding="utf-8"))
    model, tokenizer = (kind.from_pretrained("bundled") for kind in (refdiff.DiffLlamaForCausalLM, refdiff.Tokenizer))
    ids = np.array([tokenizer.encode(text)])
    girl = tokenizer.encode(" girl", add_special_tokens=False)[0]
    layer, pair = 3, 2
    maps = viz.attention_maps(model, ids[0], tokenizer)
    weights = maps.second[layer, pair, -1]
    assert ids[0, weights.argmax()] == girl

    def probability() -> float:
        logits = model(ids).logits[0, -1].astype(np.float64)
        return float(np.exp(logits[girl]) / np.exp(logits).sum())

    before = probability()
    with sketches.strengths(model, {layer: 0.0}):
        after = probability()
    for name, value in (("weight", weights.max()), ("before", before), ("after", after)):
        assert f'id="opening-{name}">{100 * value:.0f} %<' in ARTICLE


def test_it_is_small_and_leaves_nothing_to_other_servers(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    for path in files:
        if path.suffix in (".js", ".css"):
            addresses = re.findall(r"https?://[^\s\"']+", path.read_text(encoding="utf-8"))
            assert set(addresses) <= {"http://www.w3.org/2000/svg"}, path


def test_every_link_leads_to_a_page(folder: Path) -> None:
    """To the text of the chapters; in the site it leads to its pages, which build.py checks."""
    article = (folder / "index.html").read_text(encoding="utf-8")
    links = [link for link in re.findall(r'href="([^"#]+)"', article) if not link.startswith(("https:", "data:"))]
    assert [link for link in links if not (folder / link).exists()] == []
    for anchor in re.findall(r'href="#([^"]+)"', article):
        assert f'id="{anchor}"' in article
    assert "the whole model in 60 lines" in article.lower()
    chapter = (folder / "chapters" / "05_training_and_results.html").read_text(encoding="utf-8")
    assert "assert " not in chapter.split("Exercises")[0]
    assert {Path(link).stem for link in links} >= {
        "01_sixty_lines", "03_differential_attention", "guide_pairs_of_heads", "05_training_and_results", "card"
    }  # fmt: skip


def test_numbers_in_the_text_stand_in_the_notebooks() -> None:
    quotes = re.findall(r'<span data-from="(\d\d)">(.*?)</span>', ARTICLE)
    assert len(quotes) >= 9
    for chapter, quoted in quotes:
        (path,) = (ROOT / "notebooks").glob(f"{chapter}_*.ipynb")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        said = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        said += ["".join(o.get("text", "")) for cell in cells for o in cell.get("outputs", [])]
        assert any(re.search(rf"(?<![\d.]){re.escape(quoted)}(?![\d])", " ".join(text.split())) for text in said), (
            quoted
        )
