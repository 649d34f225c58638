"""The reference pages: equations of docstrings as LaTeX, docstrings as markup, links and code that are checked."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import refdiff
from refdiff import layers

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks" / "reference"
SCRIPTS = ("equations", "docstrings", "interface", "pages", "code_blocks", "build", "train_small_models")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The folder's scripts as modules, which are there for these tests alone."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in SCRIPTS}
    finally:
        sys.path.remove(str(FOLDER))
        for name in SCRIPTS:
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("y = x Wᵀ + b", r"$y = x W^{\top} + b$"),
        ("λ = exp(λ_q1 · λ_k1)", r"$\lambda = \exp \left(\lambda _{q1} \cdot \lambda _{k1}\right)$"),
        ("softmax(Q Kᵀ / √2d)", r"$\operatorname{softmax}\left(Q K^{\top} / \sqrt{2d}\right)$"),
        ("∂L/∂Sᵀ Q", r"$\left(\frac{\partial L}{\partial S}\right)^\top Q$"),
        ("a = 0 where Σ m = 0.", r"$a = 0$ where $\sum m = 0$."),
        ("A (Ye et al. 2024, eq. 1)", r"$A$ (Ye et al. 2024, eq. 1)"),
        ("with r = 1, of which part `h` is v1's", r"with $r = 1$, of which part `h` is v1's"),
        ("(from ∂r/∂x_i: up to ε)", r"(from $\frac{\partial r}{\partial x_{i}}$: up to $\varepsilon$)"),
        ("mean over targets ≠ ignore_index", r"mean over targets $\ne \mathtt{ignore\_index}$"),
    ],
)
def test_words_and_equations_are_distinguished(scripts: dict[str, ModuleType], line: str, expected: str) -> None:
    assert scripts["equations"].to_markdown(line) == expected


def _lines_with_equations() -> list[str]:
    text = layers.__doc__ or ""
    lines = re.findall(r"^ {4}\S.{14} (\S.*)\n {8}by", text, flags=re.MULTILINE)
    for name in layers.__all__:
        block = re.search(r"Equation:\n((?:    .*\n)+)", inspect.getdoc(getattr(layers, name)) or "")
        lines += [" ".join(block[1].split())] if block else []
    return lines


def test_every_equation_of_the_layers_is_set_with_nothing_left_over(scripts: dict[str, ModuleType]) -> None:
    """Words keep no sign of mathematics, LaTeX has as many closing braces as opening ones, and no letter is lost."""
    lines = _lines_with_equations()
    assert len(lines) > 50
    for line in lines:
        pieces = scripts["equations"].typeset(line)
        words = "".join(text for kind, text in pieces if kind == "text")
        assert not re.search(r"[=√Σ∂⊙₀-₉ᵀ²^]|\w_\w|[α-ω]", words), (line, words)
        for kind, text in pieces:
            if kind == "math":
                assert text.count("{") == text.count("}"), line
                assert text.count(r"\left") == text.count(r"\right"), line
                assert not re.search(r"[√Σ∂⊙₀-₉ᵀ²−]|[α-ω]", text), (line, text)


def test_programs_in_docstrings_name_what_is_there(scripts: dict[str, ModuleType]) -> None:
    docstrings, check = scripts["docstrings"], scripts["code_blocks"].wrong_with
    assert docstrings.programs("What it does.\n\n    y = refdiff.f(x)\n\nMore.") == ["y = refdiff.f(x)\n\n"]
    programs = [p for text in scripts["interface"].docstrings_of_all().values() for p in docstrings.programs(text)]
    assert len(programs) > 3
    assert [why for program in programs for why in check("python", program)] == []


def test_every_package_with_public_names_has_its_page(scripts: dict[str, ModuleType]) -> None:
    pages = scripts["interface"]
    assert pages.missing() == []
    assert {f"refdiff.{name}" for name in refdiff.__all__} <= {
        *pages.public_names().values(),
        *(name for page, others in pages.INTERFACE.items() for name in (page, *others)),
    }
    listed = pages.INTERFACE.pop("refdiff.viz")
    try:
        assert pages.missing() == ["refdiff.viz"]
    finally:
        pages.INTERFACE["refdiff.viz"] = listed


EXEMPLIFIED = (
    "refdiff", "refdiff.layers", "refdiff.viz", "refdiff.oracle", "refdiff.convert", "refdiff.exercises",
    "refdiff.generation.sampling", "refdiff.generation.results",
)  # fmt: skip
"""Modules of which each function and class has an example."""
WITHOUT = {
    "refdiff.oracle.hooks": "it takes a torch module, and the pages are built without torch",
    "refdiff.oracle.from_c": "it takes a library that a compiler makes: the guide for C++ has one",
}


def test_public_names_have_an_example_and_examples_are_of_public_names(scripts: dict[str, ModuleType]) -> None:
    pages, shown = scripts["interface"], scripts["interface"].examples()
    for module in EXEMPLIFIED:
        home = importlib.import_module(module)
        for name in pages.names_of(module):
            thing = getattr(home, name)
            place = f"{module}.{name}"
            assert not callable(thing) or (place in shown) != (place in WITHOUT), f"{place} has no example"
    for place in shown:
        home, _, name = place.rpartition(".")
        assert name in pages.names_of(home), place


@pytest.mark.slow
def test_every_example_runs(scripts: dict[str, ModuleType]) -> None:
    pytest.importorskip("matplotlib")
    for example in scripts["interface"].examples().values():
        said, figure = scripts["interface"].outcome(example)
        assert said or figure is not None, example.names


def test_the_map_leads_to_functions_and_tests(scripts: dict[str, ModuleType]) -> None:
    pages = scripts["pages"]
    front, tests = pages.equations_page(), pages.tests_page()
    assert front.count("\n  computed by ") == (layers.__doc__ or "").count("        by  ")
    anchors = re.findall(r"tests\.md#([\w-]+)", front)
    assert len(anchors) == (layers.__doc__ or "").count("::test_") > 30
    assert not [a for a in anchors if f"({a})=\n" not in tests]
    assert "def test_rows_of_the_difference_sum_to_one_minus_lambda(" in tests
    with pytest.raises(ValueError, match="files"):
        pages.linked("files.read_json")


def test_links_that_lead_nowhere_are_named(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="b.html#there"></a><a href="#here"></a><a href="https://example.org/x"></a>'
        '<a href="no.html"></a><a href="b.html#no"></a><img src="no.png"><source srcset="b.html 2x, no.svg 1x">',
    )
    (tmp_path / "b.html").write_text('<h1 id="there"></h1>')
    wrong = scripts["build"].wrong_links(tmp_path)
    assert [line.split(": ")[1].split(" ")[0] for line in wrong] == ["b.html#no", "no.html", "no.png", "no.svg"]


@pytest.mark.parametrize(
    ("language", "code", "why"),
    [
        ("python", "from refdiff import layers\nlayers.rms_norm(x, w, eps=1e-5)", None),
        ("python", "from refdiff import layers\nlayers.rms_norm(x, w, epsilon=1e-5)", "no argument epsilon"),
        ("python", "from refdiff.oracle import verify_all", "no verify_all"),
        ("python", "import refdiff\nrefdiff.DiffLlamaModel.from_pretrain('x')", "no from_pretrain"),
        ("python", "for x in\n", "does not parse"),
        ("sh", "refdiff inspect --json x  # comment", None),
        ("sh", "A=1 python -m refdiff check --no-such-flag x | head", "no-such-flag"),
        ("json", "{a: 1}", "no JSON"),
    ],
)
def test_code_that_names_what_is_not_there_is_named(
    scripts: dict[str, ModuleType], language: str, code: str, why: str | None
) -> None:
    found = scripts["code_blocks"].wrong_with(language, code)
    assert found == [] if why is None else why in found[0]


def test_every_notebook_guide_and_package_has_its_place(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = scripts["build"]
    files = build.written()
    assert {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")} <= set(files)
    monkeypatch.setattr(scripts["interface"], "outcome", lambda example: ("", None))  # runs them: a test of its own
    build.assemble(tmp_path)
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    menu = set(index.partition("```{toctree}")[2].splitlines())
    assert {name.rpartition(".")[0] for name in files if name != "index.md"} <= menu
    monkeypatch.setattr(scripts["interface"], "missing", lambda: ["refdiff.new"])
    with pytest.raises(ValueError, match="guides/new have no place in the menu: add them to MENU"):
        scripts["pages"].front_page("", ["guides/usage.md", "guides/new.md"])
    with pytest.raises(ValueError, match=r"refdiff\.new list public names and are on no page"):
        build.assemble(tmp_path)
