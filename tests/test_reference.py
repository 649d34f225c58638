"""The reference pages: equations of docstrings as LaTeX, docstrings as markup, links and code that are checked."""

from __future__ import annotations

import importlib
import inspect
import json
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
SCRIPTS = (
    "equations", "docstrings", "examples", "interface", "pages", "links", "code_blocks", "cells", "build", "small_twins"
)  # fmt: skip


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
        ("x / √(mean(x²) + ε)", r"$x / \sqrt{\operatorname{mean}\left(x^{2}\right) + \varepsilon }$"),
        ("softmax(Q Kᵀ / √2d)", r"$\operatorname{softmax}\left(Q K^{\top} / \sqrt{2d}\right)$"),
        ("∂L/∂x = g W", r"$\frac{\partial L}{\partial x} = g W$"),
        ("∂L/∂Sᵀ Q", r"$\left(\frac{\partial L}{\partial S}\right)^\top Q$"),
        ("softmax(z)_ij v_j", r"$\operatorname{softmax}\left(z\right)_{ij} v_{j}$"),
        ("X^{l+1} = W^Q_i", r"$X^{l+1} = W^{Q}_{i}$"),
        ("a = 0 where Σ m = 0.", r"$a = 0$ where $\sum m = 0$."),
        ("a plain head of size 2d", r"a plain head of size $2d$"),
        ("A (Ye et al. 2024, eq. 1)", r"$A$ (Ye et al. 2024, eq. 1)"),
        ("with r = 1, of which part `h` is v1's", r"with $r = 1$, of which part `h` is v1's"),
        ("(from ∂r/∂x_i: up to ε)", r"(from $\frac{\partial r}{\partial x_{i}}$: up to $\varepsilon$)"),
        ("λ_init of the first 3 layers", r"$\lambda _{\mathrm{init}}$ of the first 3 layers"),
        ("mean over targets ≠ ignore_index", r"mean over targets $\ne \mathtt{ignore\_index}$"),
    ],
)
def test_words_and_equations_are_told_apart(scripts: dict[str, ModuleType], line: str, expected: str) -> None:
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


def test_a_role_stands_apart_from_the_words_beside_it(scripts: dict[str, ModuleType]) -> None:
    made = scripts["equations"].to_rst("of θ_i’s (λ), `x`")
    assert made == r"of :math:`\theta _{i}`\ ’s :math:`\left(\lambda \right)`, `x`"


DOCSTRING = """Scale *each* row_ by `softmax` and `f(x)`.

    y = refdiff.f(x)

Equation:
    y = √x
    and so on

Shapes:
    x (..., D) -> (D,)

Raises:
    ValueError: a shape
        that does not fit.
    TypeError: `x` is no array."""


def test_a_docstring_becomes_markup(scripts: dict[str, ModuleType]) -> None:
    made = "\n".join(scripts["docstrings"].convert(DOCSTRING.splitlines()))
    assert made.startswith(r"Scale \*each\* row\_ by :py:obj:`softmax` and ``f(x)``.")
    assert ".. code-block:: python\n\n   y = refdiff.f(x)\n" in made
    assert ":Equation:\n    | :math:`y = \\sqrt{x}` and so on\n" in made
    assert ":Shapes:\n    x (..., D) → (D,)\n" in made
    assert "* ``ValueError``: a shape that does not fit.\n    * ``TypeError``: :py:obj:`x` is no array." in made


def test_fields_of_a_class_become_a_list(scripts: dict[str, ModuleType]) -> None:
    convert = scripts["docstrings"].convert
    fields = ["storage: q and k. None =", "    `float32`.", "lam, norm: λ_1", "", "So it is: this", "and no field."]
    made = "\n".join(convert(fields))
    assert "* ``storage``: q and k. None = :py:obj:`float32`.\n* ``lam, norm``: λ_1\n" in made
    assert made.endswith("So it is: this\nand no field.")
    assert convert(["right: one line", "and another"]) == ["right: one line", "and another"]


def test_programs_in_docstrings_name_what_is_there(scripts: dict[str, ModuleType]) -> None:
    docstrings, check = scripts["docstrings"], scripts["code_blocks"].wrong_with
    assert docstrings.programs(DOCSTRING) == ["y = refdiff.f(x)\n\n\n"]
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
WITHOUT = {"refdiff.oracle.hooks": "it takes a torch module, and the pages are built without torch"}


def test_public_names_have_an_example_and_examples_are_of_public_names(scripts: dict[str, ModuleType]) -> None:
    pages, shown = scripts["interface"], scripts["examples"].examples()
    for module in EXEMPLIFIED:
        home = importlib.import_module(module)
        for name in pages.names_of(module):
            thing = getattr(home, name)
            place = f"{module}.{name}"
            assert not callable(thing) or (place in shown) != (place in WITHOUT), f"{place} has no example"
    for place in shown:
        home, _, name = place.rpartition(".")
        assert name in pages.names_of(home), place


@pytest.mark.parametrize("place", ["refdiff.layers.rms_norm", "refdiff.viz.plot_lambdas"])
def test_an_example_is_shown_with_what_it_gives(scripts: dict[str, ModuleType], place: str) -> None:
    pytest.importorskip("matplotlib")
    said, figure = scripts["interface"].outcome(scripts["examples"].examples()[place])
    shown = "\n".join(scripts["interface"]._shown(place))
    assert "      from refdiff import" in shown
    assert (f".. image:: {place}.png" in shown) == (figure is not None) == ("viz" in place)
    assert all(f"      {line}" in shown for line in said.splitlines())


def test_an_example_that_fails_is_named(scripts: dict[str, ModuleType]) -> None:
    wrong = scripts["examples"].Example("refdiff.layers", ("rope",), "1 / 0\n")
    with pytest.raises(RuntimeError, match="the example of rope fails: ZeroDivisionError"):
        scripts["interface"].outcome(wrong)


@pytest.mark.slow
def test_every_example_runs(scripts: dict[str, ModuleType]) -> None:
    pytest.importorskip("matplotlib")
    for example in scripts["examples"].examples().values():
        said, figure = scripts["interface"].outcome(example)
        assert said or figure is not None, example.names


def test_a_constant_has_the_string_under_it(scripts: dict[str, ModuleType]) -> None:
    said_of = scripts["interface"].said_of
    assert (
        said_of("refdiff.oracle.strategies", "PROFILES")
        == "For each profile, the numbers of `draw` and the structures."
    )
    assert said_of("refdiff.hub", "no_such_name") == ""


def test_the_map_leads_to_functions_and_tests(scripts: dict[str, ModuleType]) -> None:
    pages = scripts["pages"]
    front, tests = pages.equations_page(), pages.tests_page()
    assert front.count("\n  computed by ") == (layers.__doc__ or "").count("        by  ")
    anchors = re.findall(r"tests\.md#([\w-]+)", front)
    assert len(anchors) > 40
    assert not [a for a in anchors if f"({a})=\n" not in tests]
    assert "def test_rows_of_the_difference_sum_to_one_minus_lambda(" in tests
    with pytest.raises(ValueError, match="files"):
        pages.linked("files.read_json")


def test_every_command_has_its_help(scripts: dict[str, ModuleType]) -> None:
    page = scripts["pages"].commands_page()
    for command in (
        "generate",
        "inspect",
        "attention",
        "trace",
        "golden",
        "convert",
        "train",
        "check",
        "judge",
        "bench",
    ):
        assert f"## refdiff {command}\n" in page
        assert f"usage: refdiff {command}" in page


def test_links_that_lead_nowhere_are_named(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="b.html#there"></a><a href="#here"></a><a href="https://example.org/x"></a>'
        '<a href="no.html"></a><a href="b.html#no"></a><img src="no.png"><source srcset="b.html 2x, no.svg 1x">',
    )
    (tmp_path / "b.html").write_text('<h1 id="there"></h1>')
    wrong = scripts["links"].wrong_in(tmp_path)
    assert [line.split(": ")[1].split(" ")[0] for line in wrong] == ["b.html#no", "no.html", "no.png", "no.svg"]


@pytest.mark.parametrize(
    ("language", "code", "why"),
    [
        ("python", "from refdiff import layers\nlayers.rms_norm(x, w, eps=1e-5)", None),
        ("python", "from refdiff import layers\nlayers.rms_norm(x, w, epsilon=1e-5)", "no argument epsilon"),
        ("python", "from refdiff import layers\nlayers.rmsnorm(x)", "no rmsnorm"),
        ("python", "from refdiff.oracle import verify_all", "no verify_all"),
        ("python", "import refdiff\nrefdiff.DiffLlamaModel.from_pretrain('x')", "no from_pretrain"),
        ("python", "for x in\n", "does not parse"),
        ("sh", "refdiff inspect --json x  # comment", None),
        ("sh", "A=1 python -m refdiff check --no-such-flag x | head", "no-such-flag"),
        ("sh", "make --no-such-flag", None),
        ("json", '{"a": 1}', None),
        ("json", "{a: 1}", "no JSON"),
        ("text", "for x in", None),
    ],
)
def test_code_that_names_what_is_not_there_is_named(
    scripts: dict[str, ModuleType], language: str, code: str, why: str | None
) -> None:
    found = scripts["code_blocks"].wrong_with(language, code)
    assert found == [] if why is None else why in found[0]


def test_the_code_of_the_readme_names_what_is_there(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    assert scripts["code_blocks"].wrong_in(tmp_path) == []


def test_links_of_a_file_lead_to_pages(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    build = scripts["build"]
    text = "[a](notebooks/01_one_token.ipynb) [b](refdiff/layers/rope.py) [c](setup.cfg) [d](https://x.y)"
    places = {ROOT / "notebooks" / "01_one_token.ipynb": "notebooks/01_one_token.ipynb"}
    made = build.relinked(text, "guides/x.md", ROOT / "README.md", places)
    assert made == "[a](../notebooks/01_one_token.ipynb) [b](#layer-rope) c [d](https://x.y)"
    monkeypatch.setenv("GITHUB_REPOSITORY", "some/one")
    assert "[c](https://github.com/some/one/blob/main/setup.cfg)" in build.relinked(
        text, "x.md", ROOT / "README.md", {}
    )
    assert build.without_front_matter("---\na: b\n---\n# Title\n") == "# Title\n"


def test_a_picture_for_each_theme_follows_the_theme(scripts: dict[str, ModuleType]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    made = scripts["build"].relinked(text, "index.md", ROOT / "README.md", {})
    assert "<picture>" not in made
    for theme in ("light", "dark"):
        (image,) = re.findall(f'<img class="only-{theme}"[^>]*>', made)
        assert f'src="notebooks/pictures/needle-{theme}.png"' in image
        assert 'alt="Three rows of bars' in image


@pytest.mark.parametrize(
    ("code", "folded"),
    [
        ("%matplotlib inline\nimport numpy as np", True),
        ("sketches.head_pair()", True),
        ("print(inspect.getsource(tiny.rope))", True),
        ("assert a == b\nc = 1\nassert c", True),
        ("def rope(x):\n    return x", False),
        ("def equal(a, b):\n    assert a == b", False),
        ("x = 1\nprint(x)", False),
        ("for t in (0.5, 2):\n    print(softmax(z / t))", False),
        ('exercises.check("eq1", mine)', False),
        ("sketchy()", False),
    ],
)
def test_code_that_shows_or_asserts_is_folded(scripts: dict[str, ModuleType], code: str, folded: bool) -> None:
    cell = {"cell_type": "code", "source": code.splitlines(keepends=True), "metadata": {}, "outputs": []}
    text = json.dumps({"cells": [{"cell_type": "markdown", "source": ["assert"], "metadata": {}}, cell]})
    words, made = json.loads(scripts["cells"].prepare(text))["cells"]
    assert made["metadata"] == ({"tags": ["hide-input"]} if folded else {})
    assert words["metadata"] == {}


def test_a_picture_of_a_notebook_is_described_by_its_words(scripts: dict[str, ModuleType]) -> None:
    axes = [{"words": ["key", "A₁\n· λ"], "artists": []}, {"words": ["key", *map(str, range(40))], "artists": []}]
    said = scripts["cells"].description([{"output_type": "stream"}, {"metadata": {"drawn": {"axes": axes}}}])
    assert said.startswith("A picture with the words: key, A₁ · λ, 0, 1,")
    assert said.endswith(", 27, …")
    assert scripts["cells"].description([{"metadata": {}}]) == ""


def test_sources_of_the_pages(scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = scripts["build"]
    files = build.written()
    assert {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("[01]*.ipynb")} <= set(files)
    assert {"guides/performance.md", "kernels/triton.md"} <= set(files)
    monkeypatch.setattr(scripts["interface"], "outcome", lambda example: ("", None))  # runs them: a test of its own
    build.assemble(tmp_path)
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    menu = set(index.partition("```{toctree}")[2].splitlines())
    assert {name.rpartition(".")[0] for name in files if name != "index.md"} <= menu
    assert index.count("```{toctree}") == index.count("\n:hidden:\n") == 4
    assert index.index('class="only-light"') < index.index("## Learning path") < index.index("## Set up")
    guides = [line for line in index.splitlines() if line.startswith(("guides/", "kernels/"))]
    assert [name for name in guides if name.startswith("guides/")] == [
        f"guides/{name}"
        for name in ("usage", "variants", "kernels", "implementations", "performance", "clusters", "cuda", "testing")
    ]
    assert guides[3].startswith("kernels/")
    for name in menu:
        assert not name.startswith("interface/") or (tmp_path / f"{name}.rst").exists()
    guide = (tmp_path / "guides" / "performance.md").read_text(encoding="utf-8")
    assert 'src="../notebooks/pictures/speed-light.png"' in guide
    assert "[CUDA](../guides/cuda.md)" in guide
    monkeypatch.setattr(scripts["interface"], "missing", lambda: ["refdiff.new"])
    with pytest.raises(ValueError, match="guides/new have no place in the menu: add them to ORDER"):
        scripts["pages"].front_page("", ["guides/usage.md", "guides/new.md"])
    with pytest.raises(ValueError, match=r"refdiff\.new list public names and are on no page"):
        build.assemble(tmp_path)


def test_the_twins_of_the_article_differ_in_attention_only(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins, runs, out = scripts["small_twins"], tmp_path / "runs", tmp_path / "out"
    sizes = {"vocab-size": 300, "hidden-size": 12, "head-dim": 2, "intermediate-size": 7, "layers": 1}
    for option, value in {**sizes, "context": 17, "batch-size": 5, "max-steps": 3, "warmup-steps": 1}.items():
        monkeypatch.setitem(twins.OPTIONS, option, value)
    assert twins.main([str(ROOT / "notebooks" / "data" / "tales.txt"), str(runs), "-o", str(out)]) == 0
    about = json.loads((out / "about.json").read_text(encoding="utf-8"))
    assert (about["steps"], about["context"], about["tokens"]) == (3, 17, 3 * 5 * 16)
    settings = [json.loads((runs / n / "step-000003" / "training.json").read_text()) for n in ("differential", "plain")]
    assert settings[0] == settings[1]
    for name, wiring in (("differential", "hf"), ("plain", "none")):
        model = refdiff.DiffLlamaForCausalLM.from_pretrained(out / name)
        assert (model.config.wiring, model.dtype) == (wiring, "float16")
        assert about[name]["parameters"] == model.num_parameters()
        log = (runs / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        trained = json.loads(log[-1])["validation"]  # of float32 weights
        assert about[name]["validation"] == pytest.approx(trained, rel=1e-3)
    assert about["differential"]["parameters"] - about["plain"]["parameters"] == 4 * 2
    monkeypatch.setattr(twins.cli, "main", None)  # what is trained is not trained again
    twins.main(["", str(runs), "-o", str(out)])
    assert json.loads((out / "about.json").read_text(encoding="utf-8")) == about
