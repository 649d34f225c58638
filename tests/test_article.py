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
from experiments import retrieval_table

import refdiff
from refdiff import viz

ROOT = Path(__file__).parents[1]
DATA = ROOT / "notebooks" / "data"
SOURCE = ROOT / "notebooks" / "reference" / "live"
SMALL_MODELS = SOURCE.parent / "small_models"
RUNS = ("none", "hf", "v2")  # as the table of the article has them
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


def test_numbers_in_the_text_are_those_of_the_data() -> None:
    def said(name: str) -> list[float]:
        (found,) = re.findall(rf'id="{name}"[^>]*>(.*?)</(?:span|table)>', ARTICLE, flags=re.DOTALL)
        return numbers(re.sub(r"<caption>.*?</caption>|<thead>.*?</thead>|<[^>]+>", " ", found, flags=re.DOTALL))

    runs = json.loads((DATA / "retrieval.json").read_text(encoding="utf-8"))["runs"]
    table = []
    for tokens in (16, 64, 256):
        accuracy = {w: [r["measured"][str(tokens)]["accuracy"] for r in runs if r["wiring"] == w] for w in RUNS}
        table += [tokens, *(round(100 * float(np.mean(accuracy[wiring]))) for wiring in RUNS)]
    assert said("found") == table
    long_rows = retrieval_table.mean_and_interval(retrieval_table.differences(runs, 256, "accuracy", "hf"))
    np.testing.assert_allclose(said("long-rows"), [100 * x for x in long_rows], atol=0.051)

    text = json.loads((DATA / "variants.json").read_text(encoding="utf-8"))
    read = text["settings"]["max_steps"] * text["settings"]["batch_size"] * text["settings"]["context"]
    parameters = {round(run["parameters"] / 1e6, 1) for run in text["runs"]}
    assert [parameters, said("short-runs")] == [{0.2}, [0.2, text["settings"]["max_steps"], round(read / 1e6, 1)]]

    small = json.loads((SMALL_MODELS / "about.json").read_text(encoding="utf-8"))
    assert said("small-runs") == [round(small[name]["bits_per_byte"], 3) for name in ("differential", "plain")]
    assert (
        f"{small['plain']['parameters'] / 1e6:.2f} million parameters and read {small['tokens'] / 1e6:.1f}" in ARTICLE
    )
    assert f"Figure 6 gives {small['bundled']['bits_per_byte']:.3f} for" in ARTICLE
    assert f"the sequences have {small['context']} tokens" in ARTICLE
    large = json.loads((DATA / "baseline.json").read_text(encoding="utf-8"))
    assert f"{large['differential']['parameters'] / 1e6:.1f} million and read {large['tokens'] / 1e6:.1f} mi" in ARTICLE
    card = (ROOT / "refdiff" / "bundled" / "README.md").read_text(encoding="utf-8")
    assert "in sequences of 512 tokens" in ARTICLE
    assert "rows of\n512 tokens" in card


def test_the_text_tells_what_the_sixth_figure_opens_on() -> None:
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
