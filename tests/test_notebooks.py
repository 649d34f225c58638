"""The notebooks: pairs in step, what each must have, and that they run: in order, and each alone."""

from __future__ import annotations

import ast
import html
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.training import Corpus

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
LEARNERS, GUIDES = (sorted(FOLDER.glob(form)) for form in ("[0-9][0-9]_*.py", "guide_*.py"))
SOURCES = [*LEARNERS, *GUIDES]
"""The chapters and the guides that run."""
NAMES = [path.stem for path in SOURCES]
ALLOWED = {"experiments", "refdiff", "numpy", "array_api_strict", "matplotlib", "tokenizers", "sketches", "tiny"}
ALLOWED |= sys.stdlib_module_names


def script(name: str) -> ModuleType:
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
            body = re.sub(r"  # (?:fmt: skip|noqa).*$", "", body, flags=re.MULTILINE)
            cells.append(("code", re.sub(r"^# (?=%\w)", "", body, flags=re.MULTILINE)))
    return cells


def _stored(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    return notebook


def _code(path: Path) -> list[ast.Module]:
    return [ast.parse(source.replace("%matplotlib", "# ")) for kind, source in _cells(path) if kind == "code"]


def _text(path: Path) -> str:
    return "\n\n".join(source for kind, source in _cells(path) if kind == "markdown")


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_notebook_and_script_have_the_same_cells(path: Path) -> None:
    stored = _stored(path)
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in stored["cells"]] == _cells(path), (
        f"stale: run python notebooks/build.py {path.stem}"
    )
    assert all(cell["execution_count"] for cell in stored["cells"] if cell["cell_type"] == "code")


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_imports_are_of_refdiff_numpy_matplotlib_and_python(path: Path) -> None:
    imported: set[str] = set()
    for tree in _code(path):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    assert imported & {"refdiff", "experiments"}
    assert not imported - ALLOWED


@pytest.mark.parametrize("path", LEARNERS, ids=[path.stem for path in LEARNERS])
def test_a_chapter_begins_with_its_question_and_ends_with_its_answer(path: Path) -> None:
    text = _text(path)
    assert text.startswith(f"# {path.stem[:2]} · ")
    question = re.search(r"\*\*The question: ([^*]+)\*\*", text)
    assert question is not None
    assert question[1].count("?") == 1
    answer = re.search(r"^## The answer\n\n\*\*([^*]+)\*\*$", text, re.MULTILINE)
    assert answer is not None
    assert re.sub(r"(?<=\d)\.(?=\d)", "", answer[1]).count(".") == 1, "one sentence"


@pytest.mark.parametrize("path", LEARNERS, ids=[path.stem for path in LEARNERS])
def test_a_chapter_has_all_its_parts(path: Path) -> None:
    text = _text(path)
    assert "arXiv 2410.05258" in " ".join(text.split())
    assert re.search(r"eq\. \d|section 2\.\d", text), "the number of an equation in the paper"
    assert "$$" in text
    assert [n for tree in _code(path) for n in ast.walk(tree) if ast.unparse(n).startswith("sketches.")]
    assert not [node for tree in _code(path) for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    folded = text.split("<summary>What is checked of this chapter</summary>\n\n```python\n")[1]
    assert folded.split("```\n\n</details>")[0].count("assert ") >= 5


def test_the_chapters_have_at_most_9000_words() -> None:
    assert sum(len(_text(path).split()) for path in LEARNERS) <= 9000


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_each_has_exercises_with_answers(path: Path) -> None:
    text = _text(path)
    assert len(re.findall(r"^## Exercises?$", text, re.MULTILINE)) == 1
    exercise = re.split(r"^## Exercises?$", text, flags=re.MULTILINE)[1]
    assert re.search(r"<details>\n<summary>Answers?</summary>\n\n.+\n\n</details>", exercise, re.DOTALL)
    assert "```python\n" in exercise.split("</details>")[0], "the answer has code, which build.py runs"


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_links_lead_to_files_that_are_there(path: Path) -> None:
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", _text(path)) if re.search(r"\.\w+$", target)]
    assert not [t for t in targets if "://" not in t and not (FOLDER / t).exists()]


def test_every_exercise_is_asked_and_its_answer_checked() -> None:
    from refdiff import exercises

    checked = {
        name
        for path in SOURCES
        for answer in re.findall(r"^```python\n(.*?)^```", _text(path), re.MULTILINE | re.DOTALL)
        for name in re.findall(r'^assert exercises\.check\("(\w+)"', answer, re.MULTILINE)
    }
    assert checked == set(exercises.names())


def test_the_variants_of_chapter_05_have_equal_parameters() -> None:
    from refdiff import DiffLlamaForCausalLM

    config = script("experiments/variants").config
    sizes = [DiffLlamaForCausalLM.from_config(config(kind), 0).num_parameters() for kind in ("none", "hf", "v2")]
    assert len(set(sizes)) == 3
    assert max(sizes) < 1.003 * min(sizes)


def test_the_control_without_a_norm_leaves_out_that_without_a_weight() -> None:
    from refdiff import layers

    wrap = script("experiments/variants").without_norm
    g, x = np.random.default_rng(0).standard_normal((2, 3, 5))
    weight = np.arange(5.0)
    norm, vjp = wrap("rms_norm", layers.rms_norm), wrap("rms_norm_vjp", layers.rms_norm_vjp)
    assert norm(x, None, 1e-5) is x
    assert vjp(g, x, None, 1e-5) == (g, None)
    assert np.array_equal(norm(x, weight=weight, eps=1e-5), layers.rms_norm(x, weight, 1e-5))
    expected = layers.rms_norm_vjp(g, x, weight, 1e-5)
    assert all(map(np.array_equal, vjp(g, x, weight=weight, eps=1e-5), expected))
    assert wrap("swiglu", layers.swiglu) is layers.swiglu


def test_the_correlation_of_two_maps_is_that_of_their_scores() -> None:
    def causal(scores: Any) -> Any:
        weights = np.exp(scores) * np.tri(40)
        return weights / weights.sum(axis=-1, keepdims=True)

    correlation = script("experiments/variants").correlation
    x, y = np.random.default_rng(1).standard_normal((2, 3, 40, 40))
    assert correlation(causal(x), causal(2 * x + 1)) == pytest.approx([1, 1, 1])
    assert correlation(causal(x), causal(-x)) == pytest.approx([-1, -1, -1])
    by_numpy = [[np.corrcoef(x[b, t, : t + 1], y[b, t, : t + 1])[0, 1] for t in range(32, 40)] for b in range(3)]
    assert correlation(causal(x), causal(y)) == pytest.approx(np.mean(by_numpy, axis=1))


def _notebook(text: str, artist: str = "line: 4 4 0 1 0.5 0.25 0.1", words: str = "λ = 0.500") -> SimpleNamespace:
    drawn = {"drawn": {"axes": [{"words": [words], "artists": [artist]}]}}
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": text},
        {"output_type": "display_data", "data": {"image/png": artist}, "metadata": drawn},
    ]
    return SimpleNamespace(cells=[{"cell_type": "code", "outputs": outputs}])


def test_outputs_are_compared_by_words_numbers_and_data_drawn() -> None:
    differences = script("compare").differences
    stored = _notebook("loss 0.1234\n")
    assert differences(stored, _notebook("loss 0.1235\n")) == []
    assert differences(stored, _notebook("loss 0.1234\n", "line: 4 4 0 1 0.5 0.2501 0.1")) == []
    assert "numbers" in differences(stored, _notebook("loss 0.1334\n"))[0]
    assert "text" in differences(stored, _notebook("cost 0.1234\n"))[0]
    assert "other data" in differences(stored, _notebook("loss 0.1234\n", "line: 4 4 0 1 0.5 0.26 0.1"))[0]
    assert "draws" in differences(stored, _notebook("loss 0.1234\n", "line: 5 5 0 1 0.5 0.25 0.1"))[0]
    assert "numbers" in differences(stored, _notebook("loss 0.1234\n", words="λ = 0.600"))[0]
    assert differences(_notebook("loss 0.1\ntimed: 9 ms\n"), _notebook("loss 0.1\ntimed: 70 ms\n")) == []
    assert differences(_notebook("loss 0.1\ntimed: 9 ms\n"), _notebook("loss 0.1\n")) != []
    assert differences(_notebook("loss 0.1\ntimed: 9 ms\n"), _notebook("loss 0.9\ntimed: 9 ms\n")) != []
    fewer = _notebook("loss 0.1234\n")
    del fewer.cells[0]["outputs"][1]
    assert "outputs" in differences(stored, fewer)[0]


def test_a_curve_of_other_heights_is_named_however_far_it_goes() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn, differences = script("drawn").drawn, script("compare").differences
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


def test_the_page_in_chapter_03_has_the_scripts_and_styles_of_today() -> None:
    outputs = [o for cell in _stored(FOLDER / "03_differential_attention.py")["cells"] for o in cell.get("outputs", [])]
    explored = [o for o in outputs if "Attention, to explore" in str(o.get("data", {}).get("text/html"))]
    assert len(explored) == 1
    page = "".join(explored[0]["data"]["text/html"])
    assert len(page) < 100_000
    for part in ("page.js", "numbers.js", "page.css"):
        now = (ROOT / "refdiff" / "viz" / "page" / part).read_text(encoding="utf-8")
        assert now in html.unescape(page), f"{part} has changed: run python notebooks/build.py 03"


def _needs_kernel() -> Any:
    for name in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[notebooks]'")
    return script("build")


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_it_runs_alone_and_gives_what_is_stored(path: Path) -> None:
    """Each in a kernel of its own, as `build.py --check` does; here in order, and each can be chosen by its name."""
    build = _needs_kernel()
    assert build.check(path) == []


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
