"""The pictures and tables of README and guides: of the data that a fresh run draws, and readable on both pages."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "notebooks" / "reference" / "guides" / "performance.md"
SHOWN = {"needle": (ROOT / "README.md", "notebooks/pictures"), "speed": (GUIDE, "../../pictures")}


@pytest.fixture(scope="module")
def pictures() -> Iterator[ModuleType]:
    """The script as a module, and its neighbors, which are there for these tests alone."""
    sys.path.insert(0, str(ROOT / "notebooks"))
    try:
        yield importlib.import_module("pictures")
    finally:
        sys.path.remove(str(ROOT / "notebooks"))
        for name in ("pictures", "aims", "compare", "drawn", "sketches", "speed_plot"):
            sys.modules.pop(name, None)


def test_each_is_shown_in_both_themes_with_words_for_what_is_seen(pictures: ModuleType) -> None:
    assert set(SHOWN) == set(pictures.PICTURES)
    for name, (page, folder) in SHOWN.items():
        text = page.read_text(encoding="utf-8")
        block = re.search(rf"<picture>(?:(?!</picture>).)*{name}-light.*?</picture>", text, flags=re.DOTALL)
        assert block is not None, f"{page.name} does not show {name}"
        assert f'(prefers-color-scheme: dark)" srcset="{folder}/{name}-dark.png"' in block[0]
        assert re.search(r'alt="[^"]{40,}"', block[0])


def test_readme_chapter_and_article_show_the_numbers_of_one_needle(pictures: ModuleType) -> None:
    titles = [axes.get_title(loc="left") for axes in pictures.needle().axes]
    (before, share), _, (after, larger) = (re.findall(r"weight ([\d.]+) .*, (\d+)%", title)[0] for title in titles)
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"({before} → {after})" in text
    assert f"from {share} % to {larger} %" in text
    live = ROOT / "notebooks" / "reference" / "live"
    article = (live / "index.html").read_text(encoding="utf-8")
    assert f"the highest bar, {before}," in article
    assert f"the needle keeps {after}. Its share of the absolute weight rises from {share} % to {larger} %" in article
    seed = sys.modules["sketches"].ARTICLE_SEED
    assert f"lambda: 0.75, shared: 0.99, d: 16, seed: {seed} }}" in (live / "needle.js").read_text(encoding="utf-8")
    chapter = (ROOT / "notebooks" / "03_differential_attention.ipynb").read_text(encoding="utf-8")
    assert f"A₁ − 0.75 A₂: the needle's weight is {after}, {larger}% of" in chapter


def test_the_speeds_are_those_that_were_measured(pictures: ModuleType) -> None:
    assert pictures.stored_table("speeds") == pictures.TABLES["speeds"]()
    assert pictures.stored_table("speeds").count("Linux x86_64") == 1, "the machine is told once"
    for file in (pictures.SPEED, pictures.STORED, pictures.TRAINED):
        report = json.loads(file.read_text(encoding="utf-8"))
        assert report["settings"]["pairs"] >= 5
        assert not any(
            row["error"] or any(side["difference"] for side in row["against"].values()) for row in report["rows"]
        )


@pytest.mark.slow
def test_a_fresh_run_draws_and_counts_what_is_stored(pictures: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert pictures.main(["--check"]) == 0, capsys.readouterr().out


def test_the_guide_to_kernels_has_the_rules_of_the_selftest(pictures: ModuleType) -> None:
    assert pictures.stored_table("rules") == pictures.rules()


def _measured_row(spelled: str, **sides: list[float]) -> dict[str, Any]:
    key = "bytes" if spelled.startswith("memory") else "seconds"
    return {"row": spelled, "sides": {name: {key: values} for name, values in sides.items()}, "error": None}


def test_panels_of_speed_by_hand(pictures: ModuleType) -> None:
    rows = [
        _measured_row("prefill:512", refdiff=[2.0, 1.0, 3.0], transformers=[4.0]),
        _measured_row("prefill:128", refdiff=[0.5], transformers=[1.5]),
        _measured_row("decode:128", refdiff=[4.0]),
        _measured_row("decode:128x8", refdiff=[8.0]),
        _measured_row("memory:128", refdiff=[3e9]),
        _measured_row("memory:2048", refdiff=[5e9]),
        _measured_row("train:3m", refdiff=[1.0]),
        {**_measured_row("prefill:2048", refdiff=[]), "error": "no room"},
    ]
    report = {"rows": rows, "settings": {"decoded_tokens": 4}}
    found = {title: rest for title, *rest in sys.modules["speed_plot"].panels(report)}
    one, two = [(128, 0.5, 0.5, 0.5), (512, 2.0, 1.0, 3.0)], [(128, 1.5, 1.5, 1.5), (512, 4.0, 4.0, 4.0)]
    steps = [(1, 1000.0, 1000.0, 1000.0), (8, 2000.0, 2000.0, 2000.0)]
    assert found == {
        "reading a prompt": ["tokens of the prompt", "seconds", {"refdiff": one, "transformers": two}],
        "memory": ["tokens read", "peak, GB", {"refdiff": [(128, 3.0, 3.0, 3.0), (2048, 5.0, 5.0, 5.0)]}],
        "one more token of each sequence": ["sequences of 128 tokens", "milliseconds", {"refdiff": steps}],
    }
