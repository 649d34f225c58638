"""The page "Try it", without a browser: what its cells compute, and that each puzzle has the mistake that it should."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_notebooks import FOLDER, script

REFERENCE = FOLDER / "reference"
MISTAKES = (
    "no_output_scale", "scores_scaled_by_sqrt_2d", "keys_tiled", "causal_mask_top_left", "epsilon_1e-6"
)  # fmt: skip
"""Of the puzzles, as the oracle names them."""
NUMBERS = range(1, 6)
tryout = script("reference/tryout")
code = tryout.code
EXERCISE = (
    "    return weights @ v  # plain attention: subtract the second map",
    "    other = np.where(visible, q2 @ k2.swapaxes(-1, -2) / np.sqrt(d), -np.inf)\n"
    "    other = np.exp(other - other.max(axis=-1, keepdims=True))\n"
    "    return (weights - lambda_ * other / other.sum(axis=-1, keepdims=True)) @ v",
)


def mended(number: int) -> str:
    right, wrong = tryout.PUZZLES[number - 1]
    assert code(f"puzzle_{number}").count(wrong) == 1
    return str(code(f"puzzle_{number}")).replace(wrong, right)


def run(program: str, names: dict[str, Any] | None = None) -> str:
    """What a cell prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(program, {} if names is None else names)
    return said.getvalue()


def judged(program: str) -> Any:
    """What the cell of a puzzle shows."""
    names: dict[str, Any] = {}
    assert program.count("\njudge(") == 1
    exec(program.replace("\njudge(", "\nfound = judge("), names)
    return names["found"]


@pytest.fixture
def puzzles(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(REFERENCE / "try" / "modules")
    yield __import__("puzzles")
    del sys.modules["puzzles"]


def story() -> list[str]:
    """What the first cells print, one after another in one namespace."""
    names: dict[str, Any] = {}
    return [run(code(name), names) for name in ("tiny", "story", "same")]


@pytest.mark.slow
def test_the_model_tells_a_story_and_is_refdiffs() -> None:
    nothing, told, same = story()
    assert nothing == ""
    assert told.startswith("2,884,800 numbers in ")
    assert "The wolf said to the little girl" in told
    assert float(same.split()[-1]) < 1e-9


def test_the_exercise_is_wrong_until_it_is_done() -> None:
    wrong, right = EXERCISE
    assert code("exercise").count(wrong) == 1
    assert code("exercise").endswith('\nexercises.check("eq1", diff_attention)')
    program = code("exercise").replace("\nexercises.check", "\nfound = exercises.check")
    for one, correct in ((program, False), (program.replace(wrong, right), True)):
        names: dict[str, Any] = {}
        run(one, names)
        assert names["found"].correct is correct


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_a_puzzle_has_one_mistake_which_the_oracle_names(number: int, puzzles: Any) -> None:
    found, mistake = judged(code(f"puzzle_{number}")), MISTAKES[number - 1]
    assert re.fullmatch(
        rf"Puzzle {number}: not solved\. On .+ queries.*:\n  Pair \d, query \d of text [01] is off by 0\.\d+ "
        r"\(allowed 0\.0{6}\d; the row's size is 0\.444\)\.",
        found.text,
    )
    assert found.hint.startswith(f"It looks like {mistake}: ")
    shown, hidden = found._repr_html_().split("<details><summary>Show a hint</summary>")
    assert mistake not in shown
    assert hidden.startswith(f"It looks like {mistake}: ")
    assert repr(found) == f"{found.text}\n  Hint: {found.hint}"
    assert puzzles.solved == set()
    assert repr(judged(mended(number))).startswith(f"Puzzle {number}: solved ✓")
    assert puzzles.solved == {number}


def test_the_page_has_every_cell_and_python_all_that_it_imports(tmp_path: Path) -> None:
    tryout.write(tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    names = {"tiny", "story", "same", "exercise", *(f"puzzle_{number}" for number in NUMBERS)}
    assert set(re.findall(r'<textarea id="cell-(\w+)"', page)) == names
    assert "<!--" not in page
    with zipfile.ZipFile(tmp_path / "python.zip") as archive:
        names = set(archive.namelist())
    assert {"puzzles.py", "cells.py", "refdiff/bundled/model.safetensors", "array_api_compat/__init__.py"} <= names
    assert not [name for name in names if "__pycache__" in name]
    with zipfile.ZipFile(tmp_path / "notebooks.zip") as archive:
        read = {"data/tales.txt", "data/licence/train.bin", "sketches.py", "tiny.py", "experiments/results.py"}
        read.add("reference/small_models/plain/model.safetensors")
        assert {f"notebooks/{name}" for name in read} <= set(archive.namelist())
