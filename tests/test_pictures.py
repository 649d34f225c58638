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
    """The script as a module, and its neighbours, which are there for these tests alone."""
    sys.path.insert(0, str(ROOT / "notebooks"))
    try:
        yield importlib.import_module("pictures")
    finally:
        sys.path.remove(str(ROOT / "notebooks"))
        for name in ("pictures", "aims", "compare", "drawn", "sketches"):
            sys.modules.pop(name, None)


def test_each_is_shown_in_both_themes_with_words_for_what_is_seen(pictures: ModuleType) -> None:
    assert set(SHOWN) == set(pictures.PICTURES)
    for name, (page, folder) in SHOWN.items():
        text = page.read_text(encoding="utf-8")
        block = re.search(rf"<picture>(?:(?!</picture>).)*{name}-light.*?</picture>", text, flags=re.DOTALL)
        assert block is not None, f"{page.name} does not show {name}"
        assert f'(prefers-color-scheme: dark)" srcset="{folder}/{name}-dark.png"' in block[0]
        assert re.search(r'alt="[^"]{40,}"', block[0])


def test_the_caption_of_the_needle_has_its_numbers(pictures: ModuleType) -> None:
    titles = [axes.get_title(loc="left") for axes in pictures.needle().axes]
    (before, share), _, (after, larger) = (re.findall(r"weight ([\d.]+) .*, (\d+)%", title)[0] for title in titles)
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"({before} → {after})" in text
    assert f"from {share} % to {larger} %" in text


def test_the_files_are_small_and_say_what_they_draw(pictures: ModuleType) -> None:
    for name in pictures.PICTURES:
        said = pictures.stored(name)
        assert said["light"] == said["dark"]
        assert any(axes["artists"] for axes in said["light"])
        assert all((pictures.FOLDER / f"{name}-{page}.png").stat().st_size < 150_000 for page in said)


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure

    axes = Figure(figsize=(2, 1)).add_subplot()
    axes.bar([0, 1], [0.5, height])
    axes.set_title("made", color="#777777")
    return axes.figure


def test_a_picture_of_other_data_or_no_picture_is_named(
    pictures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "FOLDER", tmp_path / "new")
    assert pictures.wrong_with("made", []) == ["made-light.png is not there", "made-dark.png is not there"]
    pictures.save("made", _figure(1.0))
    assert pictures.wrong_with("made", pictures.drawn(_figure(1.0))) == []
    assert len(pictures.wrong_with("made", pictures.drawn(_figure(1.1)))) == 2


def test_each_page_has_its_own_ink(pictures: ModuleType) -> None:
    for ink in pictures.INKS.values():
        figure = _figure(1.0)
        pictures.in_ink(figure, ink)
        (axes,) = figure.axes
        assert {axes.title.get_color(), axes.xaxis.get_ticklabels()[0].get_color()} == {ink}


def _luminance(colour: Any) -> float:
    from matplotlib.colors import to_rgb

    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_words_of_sketches_have_contrast_with_their_card(pictures: ModuleType) -> None:
    from matplotlib.text import Text

    sketches = importlib.import_module("sketches")
    figures = [sketch() for sketch in sketches.DIAGRAMS]
    figures += [sketches.curves([0, 1], {"a": [0, 1]}, "x", "y", title="t", band=(0, 1, "b"))]
    for figure in figures:
        ground = _luminance(figure.get_facecolor())
        for text in figure.findobj(Text):
            assert (ground + 0.05) / (_luminance(text.get_color()) + 0.05) >= 7, text.get_text()


def test_a_table_of_other_numbers_is_named(
    pictures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pictures.stored_table("budgets")
    assert table.startswith("| a kernel that rounds to |")
    monkeypatch.setitem(pictures.TABLES, "budgets", lambda: table)
    assert pictures.main(["budgets", "--check"]) == 0
    monkeypatch.setitem(pictures.TABLES, "budgets", lambda: table.replace("| bfloat16 | 7", "| bfloat16 | 9"))
    assert pictures.main(["budgets", "--check"]) == 1
    assert "numbers are 9, stored 7" in capsys.readouterr().out
    page = tmp_path / "page.md"
    text = f"before\n{pictures.BEGIN.format('budgets')}%s{pictures.END} between {pictures.END} after\n"
    monkeypatch.setitem(pictures.PAGES, "budgets", page)
    for old in ("", "old\n"):
        page.write_text(text % old, encoding="utf-8")
        assert pictures.main(["budgets"]) == 0
        assert page.read_text(encoding="utf-8") == text % pictures.TABLES["budgets"]()
    assert pictures.main(["budgets", "--check"]) == 0
    page.write_text(f"before\n{pictures.BEGIN.format('budgets')}no end", encoding="utf-8")
    with pytest.raises(SystemExit):
        pictures.main(["budgets"])
    assert page.read_text(encoding="utf-8").endswith("no end")


def test_the_speeds_are_those_that_were_measured(pictures: ModuleType) -> None:
    for name in ("speeds", "summary"):
        assert pictures.stored_table(name) == pictures.TABLES[name]()
    for file in (pictures.SPEED, pictures.STORED, pictures.TRAINED):
        report = json.loads(file.read_text(encoding="utf-8"))
        assert report["settings"]["pairs"] >= 5
        assert not any(
            row["error"] or any(side["difference"] for side in row["against"].values()) for row in report["rows"]
        )


def test_of_what_falls_short_there_is_said_what_could_be_and_what_was(pictures: ModuleType) -> None:
    table = pictures.stored_table("speeds").partition("| misses its target |")[2].partition("\n\n")[0].splitlines()[2:]
    assert table
    for line in table:
        title, _, _, _, lossless, earlier = line.strip("| ").split(" | ")
        assert lossless, title
        assert earlier, title


def _row(spelled: str, ratio: float, *, unit: str = "tok/s", beside: str = "transformers", share: float = 1.0) -> Any:
    return {
        "row": spelled, "title": spelled, "unit": unit, "error": None,
        "sides": {beside: {"rate": {"median": ratio}}},
        "against": {beside: {"ratio": {"median": ratio}, "difference": None}},
        "ceiling": {"share": {"refdiff": {"median": share}, beside: {"median": 0.42}}},
    }  # fmt: skip


def test_every_row_has_its_place_in_the_table(pictures: ModuleType) -> None:
    from refdiff.bench.rows import ALL

    aimed = list(pictures.AIMS)
    assert {row.spelled for row in ALL} >= set(aimed)
    assert aimed.index("decode:8192") < aimed.index("prefill:128") < aimed.index("decode:128x2") < aimed.index("lookup")


def test_what_falls_short_is_told(pictures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    aims = importlib.import_module("aims")
    monkeypatch.setitem(aims.EARLIER, "a", [("abc", 1.9, 0.85), ("abd", 1.7, 0.8), ("abe", 1.8, 0.7)])
    aim = aims.Aim(2.0, 0.9, lossless=1.25)
    ratios, shares = "1.70× – 1.80× – 1.90× (3)", "70 % – 80 % – 85 % (3)"
    for row, said in [
        (_row("a", 2.0, share=0.9), []),
        (_row("a", 1.6), [f"| a | 1.60× | 2.00× | 84 % | 2.00× | {ratios} |"]),
        (_row("a", 1.99), [f"| a | 1.99× | 2.00× | 84 % | 2.49× | {ratios} |"]),
        (_row("a", 2.1, share=0.8), [f"| a | 80 % | 90 % |  | 100 % | {shares} |"]),
        (_row("a", 1.6, share=0.88), [f"| a | 1.60×, 88 % | 2.00×, 90 % | 84 % | 2.00×, 110 % | {ratios}, {shares} |"]),
        (_row("a", 1.9, unit="B"), []),
        (_row("a", 2.4, unit="B"), [f"| a | 2.40× | 2.00× | 84 % | 3.00× | {ratios} |"]),
        ({**_row("a", 2.1), "ceiling": None}, ["| a | share not measured | 90 % |  |  |  |"]),
        ({**_row("a", 2.1), "error": "no room"}, ["| a | not measured beside transformers | 2.00× |  |  |  |"]),
        (_row("a", 2.1, beside="onnxruntime"), ["| a | not measured beside transformers | 2.00× |  |  |  |"]),
    ]:
        assert pictures.short_of(row, aim) == said
    assert pictures.short_of(_row("a", 0.1), None) == []
    assert pictures.met(_row("a", 2.0, share=0.9), aim) == [f"| a | 2.00×, 90 % | 2.00×, 90 % | {ratios}, {shares} |"]
    assert pictures.met(_row("a", 2.0), aims.Aim(2.0)) == [f"| a | 2.00× | 2.00× | {ratios} |"]
    assert pictures.met(_row("a", 1.9), aim) == pictures.met(_row("a", 2.0), None) == []
    other = _row("a", 3.0)
    other["against"]["transformers"]["difference"] = "token 0"
    assert pictures.short_of(other, aim) == ["| a | another result | the same |  |  |  |"]


def test_what_stored_weights_cost_too_much_is_told(pictures: ModuleType) -> None:
    other = _row("decode:128", 1.0, beside="stored")
    other["against"]["stored"]["difference"] = "token 0"
    for row, said in [
        (_row("decode:128", 1 / 0.85, beside="stored"), []),
        (_row("decode:128", 1.25, beside="stored"), ["| decode:128 as stored | 0.80× | 0.85× |  |  |  |"]),
        (other, ["| decode:128 as stored | another result | the same |  |  |  |"]),
        (_row("memory:128", 3.1e9, unit="B", beside="stored"), []),
        (
            _row("memory:128", 3.3e9, unit="B", beside="stored"),
            ["| memory:128 as stored | 3.30 GB | 3.20 GB |  |  |  |"],
        ),
        (_row("memory:128", 3.1e9, unit="B"), ["| memory:128 as stored | not measured | 3.20 GB |  |  |  |"]),
        (_row("prefill:128", 9.0), []),
    ]:
        assert pictures.short_of_stored(row) == said


def test_an_unknown_name_is_refused(pictures: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        pictures.main(["noise"])
    assert raised.value.code == 2
    assert "there are needle, speed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_fresh_run_draws_and_counts_what_is_stored(pictures: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert pictures.main(["--check"]) == 0, capsys.readouterr().out


def test_the_guide_to_kernels_has_the_rules_of_the_selftest(pictures: ModuleType) -> None:
    assert pictures.stored_table("rules") == pictures.rules()
