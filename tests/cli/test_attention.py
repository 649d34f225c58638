"""`refdiff attention`: every kind of file, and its errors."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.cli import main
from refdiff.cli.parser import build_parser
from refdiff.viz import attention_maps, attention_page

Capture = pytest.CaptureFixture[str]


def test_a_page(tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "page.html"
    prompt = "a <script> b"
    assert main(["attention", "-m", str(tiny_checkpoint), prompt, "-o", str(path), "--layer", "1"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint)
    maps = attention_maps(model, prompt)
    page = path.read_text(encoding="utf-8")
    assert page == attention_page(maps, prompt=prompt, model=str(tiny_checkpoint), layer=1)
    (data,) = re.findall(r'id="data">(.*?)</script>', page)
    assert json.loads(data)["prompt"] == prompt
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_large_page_is_announced(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["attention", "-m", str(tiny_checkpoint), "a b c", "-o", str(tmp_path / "page.html")]
    assert main(command) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("refdiff.viz.page.build.LARGE_BYTES", 1000)
    assert main(command) == 0
    said = capsys.readouterr().err
    assert re.fullmatch(r"refdiff: warning: \S+page\.html: \d+\.?\d* kB, .* browser .*; a shorter text .*\n", said), (
        said
    )


def test_arrays(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "maps.npz"
    assert main(["attention", "-m", str(tiny_checkpoint), "-p", "h é", "-o", str(path), "--dtype", "float64"]) == 0
    maps = attention_maps(refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype="float64"), "h é")
    with np.load(path) as stored:
        assert set(stored) == {"tokens", "first", "second", "difference", "lambdas", "starts"}
        assert tuple(stored["tokens"]) == maps.tokens == ("<s>", "h", "·", "\\xc3", "\\xa9")
        for name in ("first", "second", "difference", "lambdas", "starts"):
            np.testing.assert_array_equal(stored[name], getattr(maps, name))


@pytest.mark.parametrize(
    ("name", "extra"), [("a.png", []), ("a.SVG", ["--layer", "0", "--pair", "1"]), ("a.png", ["--grid"])]
)
def test_pictures(tiny_checkpoint: Path, tmp_path: Path, name: str, extra: list[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a $b 日\n", encoding="utf-8")
    path = tmp_path / name
    assert main(["attention", "-m", str(tiny_checkpoint), "-f", str(text), "-o", str(path), *extra]) == 0
    assert path.read_bytes().startswith(b"\x89PNG" if name == "a.png" else b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["x", "-o", "page.htm"],
            "-o page.htm: got .htm, expected a file name that ends in .html, .png, .svg, .npz",
        ),
        (["x", "-o", "none/page.html"], "-o none/page.html: the folder none does not exist"),
        (["-o", "page.html"], "PROMPT: got none"),
        (["x", "-p", "y", "-o", "page.html"], "PROMPT and -p: got 2 prompts"),
        (["x", "-o", "page.html", "--grid"], "--grid: is for pictures, .png and .svg"),
        (["x", "-o", "a.png", "--grid", "--pair", "0"], "--grid: shows every layer and pair"),
        (["x", "-o", "a.npz", "--layer", "0"], "an .npz holds every layer and pair"),
        (["x", "-o", "a.html", "--layer", "2"], "--layer: got 2, expected 0 to 1; leave it out for the mean"),
        (["x", "-o", "a.html", "--pair", "2"], "--pair: got 2, expected 0 to 1"),
    ],
)
def test_wrong_usage_is_one_line(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["attention", "-m", str(tiny_checkpoint), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("refdiff attention: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_it_says_how_to_get_it_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["attention", "-m", "no/model", "x", "-o", str(tmp_path / "a.png")]) == 1
    assert "drawing needs matplotlib: pip install matplotlib" in capsys.readouterr().err


def test_as_a_process(run: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = run("attention", "-m", tiny_checkpoint, "-", "-o", "page.html", stdin="日本 </script>".encode())
    assert (result.returncode, result.stdout, result.stderr) == (0, b"page.html\n", b"")
    assert "</script> --" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_without_flags_everything_is_a_mean_on_the_cpu() -> None:
    args = build_parser().parse_args(["attention", "x", "-o", "a.html"])
    assert (args.layer, args.pair, args.grid, args.quiet, args.offline) == (None, None, False, False, False)
    assert (args.backend, args.dtype, args.threads) == ("numpy", "auto", 0)


def test_the_help_names_every_kind_of_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["attention", "--help"])
    shown = capsys.readouterr().out
    assert all(kind in shown for kind in (".html", ".png", ".svg", ".npz"))
