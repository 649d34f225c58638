"""The notebooks: pairs in step, what each must have, and that they run: in order, and each alone."""

from __future__ import annotations

import ast
import html
import importlib
import importlib.util
import inspect
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.training import Corpus

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
NAMES = [path.stem for path in SOURCES]
LATER = SOURCES[1:]
"""All but chapter 0, which defines a model of its own; tests/test_tiny.py tests that one."""
ENGINEERS = [path for path in SOURCES if path.stem[:2] in ("06", "10", "11")]
LEARNERS = [path for path in SOURCES if path not in ENGINEERS]
ALLOWED = {"refdiff", "numpy", "array_api_strict", "matplotlib", "tokenizers", "sketches", "tiny"}
ALLOWED |= sys.stdlib_module_names


def _script(name: str) -> ModuleType:
    """One of the folder's scripts as a module."""
    spec = importlib.util.spec_from_file_location(f"notebooks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cells(path: Path) -> list[tuple[str, str]]:
    """(kind, source) of each cell of a .py: a reader that does without jupytext."""
    shown = path.read_text(encoding="utf-8")
    cells = []
    for part in re.split(r"^# %%", shown, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        body = body.strip("\n")
        if head == " [markdown]":
            cells.append(("markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE)))
        else:
            assert not head, f"a cell begins with # %%{head}"
            cells.append(("code", re.sub(r"^# (?=%\w)", "", body, flags=re.MULTILINE)))
    return cells


def _stored(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    return notebook


def _code(path: Path) -> list[ast.Module]:
    return [ast.parse(source.replace("%matplotlib", "# ")) for kind, source in _cells(path) if kind == "code"]


def _text(path: Path) -> str:
    return "\n\n".join(source for kind, source in _cells(path) if kind == "markdown")


def test_they_are_numbered_from_0_to_11() -> None:
    assert [name[:2] for name in NAMES] == [f"{i:02}" for i in range(12)]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_the_pair_is_in_step(path: Path) -> None:
    stored = _stored(path)
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in stored["cells"]] == _cells(path), (
        f"stale: run python notebooks/build.py {path.stem}"
    )
    assert all(cell["execution_count"] for cell in stored["cells"] if cell["cell_type"] == "code")


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_outputs_hold_no_error_warning_path_or_time(path: Path) -> None:
    outputs = [o for cell in _stored(path)["cells"] for o in cell.get("outputs", [])]
    assert {o["output_type"] for o in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [o for o in outputs if o.get("name") == "stderr"]
    text = "\n".join("".join(o.get("text", [])) for o in outputs)
    assert not re.search(r"(?<![\w.])/(?:home|Users|root|work|opt|tmp)/\w|Warning|tokens_per_second", text)


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_every_figure_and_page_says_what_it_draws(path: Path) -> None:
    outputs = [o for cell in _stored(path)["cells"] for o in cell.get("outputs", [])]
    assert [o for o in outputs if "image/png" in o.get("data", {})], "a notebook has a picture"
    for output in outputs:
        if not {"image/png", "text/html"} & set(output.get("data", {})):
            continue
        axes = output["metadata"]["drawn"]["axes"]
        assert any(one["artists"] for one in axes)
        assert all(
            re.fullmatch(r"(image|maps|(line|patches|collection) [xy]):( [-+\d.e]+){7}", artist)
            for one in axes
            for artist in one["artists"]
        )


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_imports_are_of_refdiff_numpy_matplotlib_and_python(path: Path) -> None:
    imported: set[str] = set()
    for tree in _code(path):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    assert "refdiff" in imported
    assert not imported - ALLOWED


def _defined_in_refdiff() -> set[str]:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "refdiff").rglob("*.py"))
    return {n.name for t in trees for n in t.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def test_they_define_nothing_that_refdiff_has() -> None:
    has = _defined_in_refdiff()
    assert {"rms_norm", "diff_attention", "plot_attention", "top_p"} <= has
    for path in LATER:
        defined = {
            n.name for tree in _code(path) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)
        }
        assert not defined & has, path.name


def _shown_functions(path: Path) -> dict[str, Any]:
    """The functions whose source a notebook prints, by the expression that names them."""
    shown = [
        ast.unparse(call.args[0])
        for tree in _code(path)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "inspect.getsource"
    ]
    names: dict[str, Any] = {}
    for tree in _code(path):
        imports: list[ast.stmt] = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), path.name, "exec"), names)
    return {expression: eval(expression, names) for expression in shown}


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_source_is_shown_of_the_functions_that_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    outputs = [o for cell in _stored(path)["cells"] for o in cell.get("outputs", [])]
    printed = "\n".join("".join(o.get("text", [])) for o in outputs)
    for expression, function in _shown_functions(path).items():
        assert function.__module__.startswith(("refdiff.", "tiny"))
        parts = re.split(r'""".*?"""', inspect.getsource(function), flags=re.DOTALL)  # a docstring may be left out
        assert all(part.strip() in printed for part in parts), (
            f"{expression} has changed: run python notebooks/build.py {path.stem}"
        )


def test_the_learning_path_prints_few_lines_of_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    shown = [function for path in LEARNERS for function in _shown_functions(path).values()]
    lines = sum(len(inspect.getsource(function).splitlines()) for function in shown)
    assert 0 < lines <= 80


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_each_has_all_its_parts(path: Path) -> None:
    text = _text(path)
    assert text.startswith(f"# {path.stem[:2]} · ")
    assert "arXiv 2410.05258" in " ".join(text.split())
    assert re.search(r"eq\. \d|section 2\.\d", text), "the number of an equation in the paper"
    assert "$$" in text
    assert len(re.findall(r"^## Exercises?$", text, re.MULTILINE)) == 1
    exercise = re.split(r"^## Exercises?$", text, flags=re.MULTILINE)[1]
    assert re.search(r"<details>\n<summary>Answers?</summary>\n\n.+\n\n</details>", exercise, re.DOTALL)
    assert "```python\n" in exercise.split("</details>")[0], "the answer has code, which build.py runs"
    if path in LEARNERS:
        assert "## What we learned" in text
        assert [n for tree in _code(path) for n in ast.walk(tree) if ast.unparse(n).startswith("sketches.")]
    else:
        assert "*For engineers.*" in text


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_what_it_claims_is_asserted(path: Path) -> None:
    asserted = [sum(isinstance(n, ast.Assert) for n in ast.walk(tree)) for tree in _code(path)]
    assert max(asserted) >= 2
    assert all(count in (0, max(asserted)) for count in asserted), "assertions stand in one cell"


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_three_questions_are_shown_with_answers_to_unfold(path: Path) -> None:
    block = _text(path).split("## Questions\n")[1]
    found = re.findall(r"<details>\n<summary>(\S[^\n]{10,})\?</summary>\n\n(\S.{10,}?)\n\n</details>", block, re.DOTALL)
    assert len(found) == 3
    assert block.count("<summary>") == 3


def test_every_exercise_is_asked_and_its_answer_checked() -> None:
    from refdiff import exercises

    checked = {
        name
        for path in LEARNERS
        for answer in re.findall(r"^```python\n(.*?)^```", _text(path), re.MULTILINE | re.DOTALL)
        for name in re.findall(r'^assert exercises\.check\("(\w+)"', answer, re.MULTILINE)
    }
    assert checked == set(exercises.names())


def test_the_variants_of_chapter_09_have_equal_parameters() -> None:
    from refdiff import DiffLlamaForCausalLM

    config = _script("variants").config
    sizes = [DiffLlamaForCausalLM.from_config(config(kind), 0).num_parameters() for kind in ("none", "hf", "v2")]
    assert len(set(sizes)) == 3
    assert max(sizes) < 1.003 * min(sizes)


def test_the_correlation_of_two_maps_is_that_of_their_scores() -> None:
    def causal(scores: Any) -> Any:
        weights = np.exp(scores) * np.tri(40)
        return weights / weights.sum(axis=-1, keepdims=True)

    correlation = _script("variants").correlation
    x, y = np.random.default_rng(1).standard_normal((2, 3, 40, 40))
    assert correlation(causal(x), causal(2 * x + 1)) == pytest.approx([1, 1, 1])
    assert correlation(causal(x), causal(-x)) == pytest.approx([-1, -1, -1])
    by_numpy = [[np.corrcoef(x[b, t, : t + 1], y[b, t, : t + 1])[0, 1] for t in range(32, 40)] for b in range(3)]
    assert correlation(causal(x), causal(y)) == pytest.approx(np.mean(by_numpy, axis=1))


def test_numbers_are_near_or_not() -> None:
    near = _script("compare").near
    assert near("0.123", "0.124")
    assert near("-1.50", "−1.50")
    assert near("0.00", "-0.00")
    assert near("1.2e-07", "1.3e-07")
    assert near("1234.56", "1236.5")
    assert not near("0.123", "0.125")
    assert not near("7", "8")
    assert not near("1.2e-07", "1.2e-06")


def _notebook(text: str, artist: str = "line: 4 4 0 1 0.5 0.25 0.1", words: str = "λ = 0.500") -> SimpleNamespace:
    drawn = {"drawn": {"axes": [{"words": [words], "artists": [artist]}]}}
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": text},
        {"output_type": "display_data", "data": {"image/png": artist}, "metadata": drawn},
    ]
    return SimpleNamespace(cells=[{"cell_type": "code", "outputs": outputs}])


def test_outputs_are_compared_by_words_numbers_and_data_drawn() -> None:
    differences = _script("compare").differences
    stored = _notebook("loss 0.1234\n")
    assert differences(stored, _notebook("loss 0.1235\n")) == []
    assert differences(stored, _notebook("loss 0.1234\n", "line: 4 4 0 1 0.5 0.2501 0.1")) == []
    assert "numbers" in differences(stored, _notebook("loss 0.1334\n"))[0]
    assert "text" in differences(stored, _notebook("cost 0.1234\n"))[0]
    assert "other data" in differences(stored, _notebook("loss 0.1234\n", "line: 4 4 0 1 0.5 0.26 0.1"))[0]
    assert "draws" in differences(stored, _notebook("loss 0.1234\n", "line: 5 5 0 1 0.5 0.25 0.1"))[0]
    assert "numbers" in differences(stored, _notebook("loss 0.1234\n", words="λ = 0.600"))[0]
    fewer = _notebook("loss 0.1234\n")
    del fewer.cells[0]["outputs"][1]
    assert "outputs" in differences(stored, fewer)[0]


def test_a_figure_is_summed_up_by_its_data() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn = _script("drawn").drawn

    def picture(values: list[float], label: str = "loss") -> Any:
        axes = Figure().add_subplot()
        axes.plot(values)
        axes.bar([0, 1], values[:2])
        axes.fill_between([0, 1], values[:2])
        axes.imshow(np.reshape(values, (2, 2)))
        axes.set_ylabel(label)
        return drawn(axes.figure)

    values = [0.5, -1.0, 2.0, 0.25]
    assert picture(values) == picture(values)
    for place in range(4):
        moved = [*values]
        moved[place] += 0.1
        assert picture(moved) != picture(values)
    assert picture(values[::-1]) != picture(values)
    assert picture(values, "λ")[0]["words"] == ["λ"]
    axes = Figure().add_subplot()
    axes.set_xticks([0, 1], labels=["·a", "·king"])
    assert drawn(axes.figure)[0]["words"] == ["·a", "·king"]
    assert {artist.split(":")[0] for artist in picture(values)[0]["artists"]} == {
        *(f"{kind} {name}" for kind in ("line", "patches", "collection") for name in "xy"),
        "image",
    }


def test_a_curve_of_other_heights_is_named_however_far_it_goes() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn, differences = _script("drawn").drawn, _script("compare").differences
    steps = np.arange(300)
    loss, lambda_ = 4 + 2 * np.exp(-steps / 50), 0.2 + 0.02 * np.sin(steps / 40)

    def figure(curve: Any, error: float = 0.1, scale: str = "linear") -> SimpleNamespace:
        axes = Figure().add_subplot()
        axes.plot(steps + 1, curve)
        axes.axvline(100)
        axes.errorbar([1, 2, 4], [0.5, 0.5, 0.5], [error, 0.1, 0.1], linestyle="")
        axes.scatter([1, 2, 4], curve[:3])
        axes.set(xscale=scale, yscale=scale)
        metadata = {"drawn": {"axes": drawn(axes.figure)}}
        return SimpleNamespace(cells=[{"outputs": [{"output_type": "display_data", "metadata": metadata}]}])

    for scale in ("linear", "log"):
        stored = figure(loss, scale=scale)
        assert differences(stored, figure(loss * (1 + 1e-6), scale=scale)) == []
        for other in (lambda_, loss[::-1], loss + (steps == 290)):
            (why,) = differences(stored, figure(other, scale=scale))
            assert "axes 0 of the figure: line y of other data" in why
        assert "collection y of other data" in differences(stored, figure(loss, 0.2, scale))[0]
        assert "-1000" not in str(stored)


def test_on_a_logarithmic_axis_nothing_stands_at_0() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    axes.plot([1, 2, 3], [0, 10, 1000])
    axes.set_yscale("log")
    _, heights = _script("drawn").drawn(axes.figure)[0]["artists"]
    assert heights.startswith("line y: 3 2 1 3 ")


def test_a_page_in_a_notebook_is_compared_by_its_maps_and_its_words() -> None:
    outputs = [o for cell in _stored(SOURCES[3])["cells"] for o in cell.get("outputs", [])]
    explored = [o for o in outputs if "Attention, to explore" in str(o.get("data", {}).get("text/html"))]
    assert len(explored) == 1
    page = "".join(explored[0]["data"]["text/html"])
    assert len(page) < 100_000
    for part in ("page.js", "numbers.js", "page.css"):
        now = (ROOT / "refdiff" / "viz" / "page" / part).read_text(encoding="utf-8")
        assert now in html.unescape(page), f"{part} has changed: run python notebooks/build.py 03"
    differences = _script("compare").differences

    def notebook(shown: str, drawn: dict[str, Any]) -> SimpleNamespace:
        output = {"output_type": "execute_result", "data": {"text/html": shown}, "metadata": {"drawn": drawn}}
        return SimpleNamespace(cells=[{"cell_type": "code", "outputs": [output]}])

    drawn = explored[0]["metadata"]["drawn"]
    stored = notebook(page, drawn)
    (packed,) = re.findall(r"first&quot;:&quot;(.+?)&quot;", page)
    rounded = page.replace(packed, packed[:20] + ("B" if packed[20] == "A" else "A") + packed[21:])
    assert rounded != page
    assert differences(stored, notebook(rounded, drawn)) == []
    assert "text" in differences(stored, notebook(page.replace("Where tokens look", "Elsewhere"), drawn))[0]
    moved = json.loads(json.dumps(drawn))
    artists = moved["axes"][0]["artists"]
    assert [artist.split(":")[0] for artist in artists] == ["maps"] * 3
    artists[1] = artists[0]
    assert "other data" in differences(stored, notebook(page, moved))[0]


def test_the_sums_of_a_page_are_those_of_its_maps() -> None:
    drawn, sums = _script("drawn").drawn, _script("drawn").sums
    first = np.tril(np.full((2, 1, 3, 3), 0.25))
    page = SimpleNamespace(maps=SimpleNamespace(tokens=("a", "b", "c"), first=first, second=None, difference=-first))
    (axes,) = drawn(page)
    assert axes["words"] == ["a", "b", "c"]
    found = [[float(number) for number in artist.partition(": ")[2].split()] for artist in axes["artists"]]
    assert np.allclose(found, [sums(first), sums(-first)], rtol=1e-5)


def test_sums_of_nothing_and_of_what_is_not_finite() -> None:
    sums = _script("drawn").sums
    assert sums([]) == [0, 0, 0, 0, 0, 0, 0]
    assert sums([np.nan, 1.0, np.inf])[:4] == [3, 1, 1, 1]


def test_names_choose_notebooks_and_unknown_ones_are_refused() -> None:
    build = _script("build")
    assert [path.stem for path in build.sources(["03", "01_one"])] == [NAMES[1], NAMES[3]]
    assert build.sources() == SOURCES
    with pytest.raises(ValueError, match="no notebook is called 99"):
        build.sources(["99"])


def _needs_kernel() -> Any:
    for name in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[notebooks]'")
    return _script("build")


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_it_runs_alone_and_gives_what_is_stored(path: Path) -> None:
    """Each in a kernel of its own, as `build.py --check` does; here in order, and each can be chosen by its name."""
    build = _needs_kernel()
    assert build.check(path) == []


def test_ci_runs_them_with_the_package_that_pip_installed() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "unset PYTHONPATH" in script
    assert '"$work/$1/bin/pip" install -q --no-compile "$wheel[$3]"' in script
    assert 'environment notebooks "$python" notebooks ||' in script
    assert '"$work/notebooks/bin/python" notebooks/build.py' in script
    assert script.count("notebooks/build.py") == script.count("notebooks/build.py --check --installed") == 1


@pytest.mark.slow
def test_kernels_run_this_folder_or_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = _needs_kernel()
    path = tmp_path / "01_made.py"
    path.write_text("# %%\nimport refdiff\n\nprint(refdiff.__file__)\n", encoding="utf-8")
    site = tmp_path / "site"
    shutil.copytree(ROOT / "refdiff", site / "refdiff", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))

    def ran(*, installed: bool) -> Path:
        return Path(build.executed(path, installed=installed).cells[0].outputs[0].text.strip()).parents[1]

    monkeypatch.setenv("PYTHONPATH", str(site))
    assert ran(installed=True) == site
    assert ran(installed=False) == ROOT
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(RuntimeError, match=r"ran .*refdiff: pip install"):
        ran(installed=True)


@pytest.mark.slow
def test_check_fails_on_a_stale_pair_a_changed_output_and_a_cell_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = _needs_kernel()
    path = tmp_path / "01_made.py"
    path.write_text("# %%\nx = 0.25\nprint('x is', x)\n", encoding="utf-8")
    assert "there is no .ipynb" in build.check(path)[0]
    assert build.build(path)
    assert build.check(path) == []
    monkeypatch.setattr(build, "sources", lambda names: [path])
    assert build.main(["--check"]) == 0
    assert re.fullmatch(r"01_made: as stored, \d+ s\n", capsys.readouterr().out)
    monkeypatch.undo()
    before = path.with_suffix(".ipynb").read_bytes()
    assert not build.build(path)
    assert path.with_suffix(".ipynb").read_bytes() == before

    path.write_text("# %%\nx = 0.5\nprint('x is', x)\n", encoding="utf-8")
    assert "cells [0]" in build.check(path)[0]
    path.with_suffix(".ipynb").write_text(before.decode().replace("x = 0.25", "x = 0.5"), encoding="utf-8")
    assert "numbers are 0.5, stored 0.25" in build.check(path)[0]

    answer = "# %% [markdown]\n# <details>\n#\n# ```python\n# nothing_of_this_name\n# ```\n#\n# </details>\n"
    path.write_text(answer, encoding="utf-8")
    with pytest.raises(RuntimeError, match="nothing_of_this_name"):
        build.executed(path)
    path.write_text("# %%\nraise ValueError('no')\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="no"):
        build.executed(path)
    path.write_text("# %%\nimport warnings\n\nwarnings.warn('careful')\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="careful"):
        build.executed(path)


def test_the_tokens_of_the_licence_are_what_from_text_makes_of_it(tmp_path: Path) -> None:
    stored = Corpus(FOLDER / "data" / "licence")
    made = Corpus.from_text(ROOT / "LICENSE", tmp_path / "made", vocab_size=300, validation=0.1)
    assert (stored.vocab_size, stored.separator, stored.num_bytes, stored.source) == (
        made.vocab_size, made.separator, made.num_bytes, made.source,
    )  # fmt: skip
    for part in ("train", "validation"):
        np.testing.assert_array_equal(stored.tokens[part], made.tokens[part])
    texts = [(corpus.folder / "tokenizer.json").read_text(encoding="utf-8") for corpus in (stored, made)]
    vocabularies = [json.loads(text)["model"]["vocab"] for text in texts]
    assert vocabularies[0] == vocabularies[1]
