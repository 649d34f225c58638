"""The page "Try it": refdiff in the browser, by Pyodide.

    python notebooks/reference/tryout.py FOLDER    # writes it; it needs a server, and for Pyodide the network

try/ has the page, the code of its cells, and modules/, which Python imports there. Beside the page stands python.zip:
refdiff, array-api-compat and those modules, and notebooks.zip: what the notebooks import and read, whose own pages run
by chapter.js. Pyodide itself comes from the address in pyodide.js.
"""

from __future__ import annotations

import html
import re
import shutil
import sys
import zipfile
from pathlib import Path

import array_api_compat

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCE = HERE / "try"
CELL = """<div class="cell"{data}>
<label for="cell-{name}">{title}</label>
<div class="editor"><div><textarea id="cell-{name}" spellcheck="false" autocapitalize="off" autocomplete="off">
{code}</textarea></div></div>
<div class="buttons"><button type="button" class="run" hidden aria-label="Run: {title}">Run</button>
<button type="button" class="reset" hidden aria-label="Reset: {title}">Reset</button></div>
<output aria-label="Output: {title}"></output>
</div>"""

PUZZLES = (
    ("return (1 - (0.8 - 0.6 * np.exp(-0.3 * 3))) * head  # eq. 3 in layer 3", "return head"),
    ("np.sqrt(d)", "np.sqrt(2 * d)"),
    ("np.repeat(x, shared, axis=1)", "np.tile(x, (1, shared, 1, 1))"),
    ("np.arange(S) <= np.arange(T)[:, None] + S - T", "np.tri(T, S, dtype=bool)"),
    ("1e-5", "1e-6"),
)
"""What is correct in cells/puzzle.py, and the mistake that each puzzle has in its place."""


def write(folder: Path) -> None:
    """Write the page and all that it loads but Pyodide."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*SOURCE.glob("*.css"), *SOURCE.glob("*.js")):
        shutil.copy(path, folder)
    for name in ("article.css", "served.js"):
        shutil.copy(HERE / "live" / name, folder)
    (folder / "index.html").write_text(page(), encoding="utf-8")
    with zipfile.ZipFile(folder / "python.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for package in (ROOT / "refdiff", Path(array_api_compat.__file__).parent):
            for path in sorted(package.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    archive.write(path, path.relative_to(package.parent))
        for path in sorted((SOURCE / "modules").glob("*.*")):
            archive.write(path, path.name)
    with zipfile.ZipFile(folder / "notebooks.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        scripts = [path for path in HERE.parent.glob("[a-z]*.py") if not path.name.startswith("guide_")]
        folders = (HERE.parent / "data", HERE.parent / "experiments", HERE / "small_models" / "plain")
        for path in sorted([*scripts, *(path for folder in folders for path in folder.rglob("*.*"))]):
            archive.write(path, path.relative_to(HERE.parents[1]))


def page() -> str:
    """Return the page with its cells in it."""
    text = (SOURCE / "index.html").read_text(encoding="utf-8")
    puzzles = "\n".join(cell(f"puzzle_{n}", f"Puzzle {n}", puzzle=n) for n in range(1, len(PUZZLES) + 1))
    text = text.replace("<!-- puzzles -->", puzzles)
    return re.sub(r"<!-- cell: (\w+), (.+?) -->", lambda match: cell(match[1], match[2]), text)


def cell(name: str, title: str, puzzle: int | None = None) -> str:
    """Return one cell."""
    data = f' data-puzzle="{puzzle}"' if puzzle else ""
    return CELL.format(name=name, title=html.escape(title), code=html.escape(code(name), quote=False), data=data)


def code(name: str) -> str:
    """Return the code of a cell; the model's is chapter 01's, and each puzzle's is one kernel with another mistake."""
    stem, _, number = name.partition("_")
    path = HERE.parent / "tiny.py" if name == "tiny" else SOURCE / "cells" / f"{stem}.py"
    text = path.read_text(encoding="utf-8").rstrip("\n")
    return text.replace(*PUZZLES[int(number) - 1]).replace("judge(0", f"judge({number}") if number else text


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    sys.stdout.write(f"{sys.argv[1]}\n")
