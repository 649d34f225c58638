"""Keeps each notebook's two files in step: the .py is edited and reviewed, the .ipynb with outputs is what people see.

    python notebooks/build.py             # runs all, writes those that changed
    python notebooks/build.py 03 guide    # some of them, by the beginning of their names
    python notebooks/build.py --check     # writes nothing; exit 1 if a pair is stale or a fresh run gives other outputs
    python notebooks/build.py --check --installed # with the refdiff that pip installed, not the one beside this folder

Chapters have numbers, and guides that run are called guide_…. A .py is in jupytext's percent format. The .ipynb leaves
out its comments for the formatter and the linter. Code that is folded (answers of exercises, what the tests
check) is run after the last cell, and what it shows is dropped.

Kernels run the refdiff that stands beside this folder, installed or not. With --installed they run what a reader's own
would, who has done `pip install '.[notebooks]'`; where that is this same folder, it fails.

A pair is stale when their cells differ. Outputs are compared by compare.py, figures by what they draw (drawn.py), which
stands in the outputs' metadata. A run that gives what is stored leaves the file as it is, byte for byte. Needs
`pip install '.[notebooks]'`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from compare import differences  # noqa: E402  (a folder of scripts, not a package)
from drawn import MIME, SVG  # noqa: E402

FIRST = """
import drawn
import refdiff

drawn.record()
print(refdiff.__file__)
del drawn, refdiff
"""
FOR_TOOLS = re.compile(r"  # (?:fmt: skip|noqa).*$", re.MULTILINE)
"""Comments that no reader needs."""
SECONDS = 900
"""What one cell may take, on a busy machine."""


def sources(names: Sequence[str] = ()) -> list[Path]:
    """List the notebooks' .py files in order, or those whose names begin with one of `names`.

    Raises:
        ValueError: no notebook has such a name.
    """
    found = sorted([*HERE.glob("[0-9][0-9]_*.py"), *HERE.glob("guide_*.py")])
    for name in names:
        if not any(path.name.startswith(name) for path in found):
            raise ValueError(f"no notebook is called {name}; there is {', '.join(path.stem for path in found)}")
    return [path for path in found if not names or path.name.startswith(tuple(names))]


def notebook_of(path: Path) -> Any:
    """Make the notebook of a .py, without outputs; nothing in it depends on machine or time."""
    import jupytext

    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        tags = {
            name: kept for name, kept in cell.metadata.items() if name == "tags"
        }  # hide-input folds code on the site
        cell.id, cell.metadata = f"cell-{number:02}", tags
        cell.source = cell.source.strip("\n")  # the formatter wants empty lines before a function
        if cell.cell_type == "code":
            cell.source = FOR_TOOLS.sub("", cell.source)
    return notebook


def executed(path: Path, *, installed: bool = False) -> Any:
    """Run the notebook of a .py in a new kernel, and return it with its outputs.

    Raises:
        RuntimeError: a cell failed, or wrote to standard error (a warning, too, is not what a reader should see); or
            refdiff is that of this folder and should be `installed`.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = notebook_of(path)
    shown = len(notebook.cells)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in _answers(notebook)]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FIRST))
    paths = [*([] if installed else [str(HERE.parent)]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(HERE)}},
    )  # fmt: skip
    try:
        client.execute(env=env, stderr=subprocess.DEVNULL)  # the kernel's own; what cells write there is a message
    except CellExecutionError as error:
        raise RuntimeError(f"{path.name}: {error}") from None
    ran = Path(notebook.cells[0].outputs[0].text.strip()).resolve()
    if installed and ran.is_relative_to(HERE.parent):
        raise RuntimeError(f"{path.name} ran {ran.parent}: pip install '.[notebooks]' elsewhere, and no PYTHONPATH")
    notebook.cells = notebook.cells[1 : shown + 1]
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = number
        for output in cell.outputs:
            _clean(output, number, path)
    return notebook


def _answers(notebook: Any) -> list[str]:
    """The Python code that is folded: answers, and what the tests check."""
    hidden = (cell.source.partition("<details>")[2] for cell in notebook.cells if cell.cell_type == "markdown")
    return [code for text in hidden for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def _clean(output: Any, number: int, path: Path) -> None:
    """Move what a figure draws, and its SVG, from the output's data to its metadata, and leave nothing else there."""
    if output.output_type == "stream":
        if output.name != "stdout":
            raise RuntimeError(f"{path.name}, cell {number} writes to standard error: {output.text}")
        return
    kept = {"drawn": MIME, "svg": SVG}
    output.metadata = {name: output.data.pop(mime) for name, mime in kept.items() if mime in output.data}
    if output.output_type == "execute_result":
        output.execution_count = number


def stale(path: Path) -> str | None:
    """Say how the .ipynb differs from its .py in its cells, or None."""
    stored = _stored(path)
    if stored is None:
        return "there is no .ipynb"
    cells, fresh = ([(cell.cell_type, cell.source) for cell in n.cells] for n in (stored, notebook_of(path)))
    if len(cells) != len(fresh):
        return f"the .py has {len(fresh)} cells, the .ipynb {len(cells)}"
    changed = [number for number, (a, b) in enumerate(zip(cells, fresh, strict=True)) if a != b]
    return f"cells {changed} are not those of the .py" if changed else None


def _stored(path: Path) -> Any:
    import nbformat

    file = path.with_suffix(".ipynb")
    return nbformat.read(file, as_version=4) if file.exists() else None


def check(path: Path, *, installed: bool = False) -> list[str]:
    """Say all that is wrong with one pair; a stale one is not run."""
    if why := stale(path):
        return [f"stale: {why}; run python notebooks/build.py {path.stem}"]
    return differences(_stored(path), executed(path, installed=installed))


def build(path: Path, *, installed: bool = False) -> bool:
    """Run a notebook, and write its .ipynb if it is not there, is stale or has other outputs; say whether it was."""
    import nbformat

    fresh = executed(path, installed=installed)
    if not stale(path) and not differences(_stored(path), fresh):
        return False
    text = nbformat.writes(fresh)
    path.with_suffix(".ipynb").write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Build or check the notebooks that are named."""
    parser = argparse.ArgumentParser("python notebooks/build.py", description="Run notebooks, or check them.")
    parser.add_argument("names", nargs="*", help="beginnings of their names (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing, compare with a fresh run (default: off)")
    parser.add_argument("--installed", action="store_true", help="run what pip installed (default: this folder's)")
    args = parser.parse_args(argv)
    try:
        paths = sources(args.names)
    except ValueError as error:
        parser.error(str(error))
    bad = False
    for path in paths:
        sys.stdout.write(f"{path.stem}: ")  # the rest of the line comes when it has run
        sys.stdout.flush()
        began, wrong = time.perf_counter(), []
        try:
            if args.check:
                wrong = check(path, installed=args.installed)
                done = "differs" if wrong else "as stored"
            else:
                done = "written" if build(path, installed=args.installed) else "unchanged"
        except RuntimeError as error:
            wrong, done = [str(error)], "failed"
        bad |= bool(wrong)
        sys.stdout.write(f"{done}, {time.perf_counter() - began:.0f} s\n" + "".join(f"  {line}\n" for line in wrong))
        sys.stdout.flush()
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
