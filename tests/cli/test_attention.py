"""`refdiff attention`: every kind of file, and its errors."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import refdiff
from refdiff.viz import attention_maps, attention_page

from .conftest import Cli, copy


def test_a_page(tiny_checkpoint: Path, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "a <script> b"
    command = ("attention", "-m", tiny_checkpoint, prompt, "-o", "page.html", "--layer", "1")
    assert cli(*command) == (0, "page.html\n", "")
    maps = attention_maps(refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint), prompt)
    page = (here / "page.html").read_text(encoding="utf-8")
    assert page == attention_page(maps, prompt=prompt, model=str(tiny_checkpoint), layer=1)
    (data,) = re.findall(r'id="data">(.*?)</script>', page)
    assert json.loads(data)["prompt"] == prompt
    assert [path.name for path in here.iterdir()] == ["page.html"]
    monkeypatch.setattr("refdiff.viz.page.build.LARGE_BYTES", 1000)
    large = r"refdiff: warning: page\.html: \d+\.?\d* kB, .* browser .*; a shorter text .*\n"
    assert re.fullmatch(large, cli(*command).err)


def test_a_page_that_is_too_large_is_refused_before_the_model_runs(
    tiny_checkpoint: Path, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refdiff.viz.attention_maps", None)
    monkeypatch.setattr("refdiff.viz.page.build.MAX_BYTES", 1000)
    done = cli("attention", "-m", tiny_checkpoint, "x" * 99, "-o", "page.html")
    assert (done.status, done.out) == (1, "")
    assert re.search("error: a page of 100 tokens would be 0 MB: give a text of at most [0-9]+ tokens, or", done.err)


def test_arrays(tiny_checkpoint: Path, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "maps.npz"
    assert cli("attention", "-m", tiny_checkpoint, "-p", "h é", "-o", path, "--dtype", "float64").status == 0
    maps = attention_maps(refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype="float64"), "h é")
    with np.load(path) as stored:
        assert set(stored) == {"tokens", "first", "second", "difference", "lambdas", "starts"}
        assert tuple(stored["tokens"]) == maps.tokens == ("<s>", "h", "·", "\\xc3", "\\xa9")
        for name in ("first", "second", "difference", "lambdas", "starts"):
            np.testing.assert_array_equal(stored[name], getattr(maps, name))


def test_a_checkpoint_without_a_language_models_head(tiny_checkpoint: Path, here: Path, cli: Cli) -> None:
    folder = copy(tiny_checkpoint, here, "config.json", architectures=["DiffLlamaModel"])
    backbone = load_file(folder / "model.safetensors")
    del backbone["lm_head.weight"]
    save_file(backbone, folder / "model.safetensors")
    assert cli("attention", "-m", folder, "h", "-o", "maps.npz") == (0, "maps.npz\n", "")
    assert cli("attention", "-m", tiny_checkpoint, "h", "-o", "all.npz").status == 0
    with np.load("maps.npz") as maps, np.load("all.npz") as expected:
        np.testing.assert_array_equal(maps["difference"], expected["difference"])


@pytest.mark.parametrize(("name", "extra"), [("a.png", []), ("a.SVG", ["--layer", "0", "--pair", "1"])])
def test_pictures(tiny_checkpoint: Path, here: Path, name: str, extra: list[str], cli: Cli) -> None:
    path = here / name
    (here / "text.txt").write_text("a $b 日\n", encoding="utf-8")
    assert cli("attention", "-m", tiny_checkpoint, "-f", "text.txt", "-o", path, *extra).status == 0
    assert path.read_bytes().startswith(b"\x89PNG" if name == "a.png" else b"<?xml")


@pytest.mark.parametrize(
    ("extra", "chosen"), [([], None), (["--layer", "1"], (1, None)), (["--layer", "0", "--pair", "1"], (0, 1))]
)
def test_a_picture_shows_the_pair_that_a_page_opens_with(
    tiny_checkpoint: Path, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, extra: list[str], chosen: Any
) -> None:
    shown = []
    monkeypatch.setattr("refdiff.viz.plot_attention", lambda maps, *which: shown.append((maps, which)))
    monkeypatch.setattr("refdiff.cli.attention.write_picture", lambda figure, path: None)
    assert cli("attention", "-m", tiny_checkpoint, "a b", "-o", "a.png", *extra).status == 0
    ((maps, which),) = shown
    assert which == (chosen or maps.most_cancelling())
    assert None not in maps.most_cancelling()
    assert cli("attention", "-m", tiny_checkpoint, "a b", "-o", "page.html", *extra).status == 0
    (data,) = re.findall(r'id="data">(.*?)</script>', (here / "page.html").read_text(encoding="utf-8"))
    opened = json.loads(data)
    assert [opened[name] for name in ("layer", "pair")] == list(which)


def test_without_matplotlib_it_says_how_to_get_it_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = cli("attention", "-m", "no/model", "x", "-o", tmp_path / "a.png")
    assert done.status == 1
    assert "drawing needs matplotlib: pip install matplotlib" in done.err
