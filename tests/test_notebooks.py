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
            assert head in ("", ' tags=["hide-input"]'), f"a cell begins with # %%{head}"
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
    folded = text.split("<summary>What the tests check</summary>\n\n```python\n")[1]
    assert folded.split("```\n\n</details>")[0].count("assert ") >= 5


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
