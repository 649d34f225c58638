"""Runs the page's cells, one after another in one namespace, as a notebook does."""

from __future__ import annotations

import base64
import io
import linecache
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyodide.code import eval_code

_NAMES: dict[str, Any] = {"__name__": "__main__"}
_tell: Callable[[str, str], Any]
"""What takes the output of the cell that runs: "text", "html" or "image", and what it is."""


class _Printed(io.TextIOBase):
    """Standard output and error: what is written goes to its cell at once, whether a line has ended or not."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        _tell("text", text)
        return len(text)


class _NoKeyboard(io.TextIOBase):
    """Standard input."""

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        raise RuntimeError("no keyboard is behind input() in this page: write what it would return into the cell")

    read = readline


_PRINTED = _Printed()
_NO_KEYBOARD = _NoKeyboard()


def run(code: str, tell: Callable[[str, str], Any]) -> bool:
    """Run a cell; show the value of its last expression, or print the traceback. Return whether it raised nothing."""
    global _tell
    _tell = tell
    sys.stdout = sys.stderr = _PRINTED
    sys.stdin = _NO_KEYBOARD
    code = re.sub(r"^%.*", "", code, flags=re.MULTILINE)  # commands to Jupyter
    linecache.cache["<cell>"] = (len(code), None, code.splitlines(keepends=True), "<cell>")
    good = _done(lambda: _show(eval_code(code, _NAMES, filename="<cell>")))
    return _done(show_figures) and good


def _done(part: Callable[[], None]) -> bool:
    try:
        part()
    except BaseException as error:  # whatever a reader's code raises
        report = traceback.TracebackException.from_exception(error)
        frames = [frame for frame in report.stack if "_pyodide" not in frame.filename and frame.filename != __file__]
        report.stack = traceback.StackSummary.from_list(frames)
        _tell("text", "".join(report.format()))
        return False
    return True


def _show(value: Any) -> None:
    if hasattr(value, "savefig"):  # a figure has a _repr_html_ too, which gives nothing here
        drawn = io.BytesIO()
        value.savefig(drawn, format="png", dpi=110)
        _tell("image", base64.b64encode(drawn.getvalue()).decode())
    elif hasattr(value, "_repr_html_"):
        _tell("html", value._repr_html_())
    elif value is not None:
        _tell("text", f"{value!r}\n")


def show_figures(*_: Any, **__: Any) -> None:
    """Show the figures that pyplot has open, and close them: the end of a cell does so, and `plt.show()`."""
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        try:
            for figure in map(pyplot.figure, pyplot.get_fignums()):
                _show(figure)
        finally:
            pyplot.close("all")


def solved() -> list[int]:
    """Return the numbers of the puzzles that are solved."""
    return sorted(sys.modules["puzzles"].solved) if "puzzles" in sys.modules else []


def open_notebooks(folder: str) -> None:
    """Work where the notebooks are: their modules and data beside them, refdiff beside their folder."""
    import refdiff

    os.environ["MPLBACKEND"] = (
        "module://cell_backend"  # Pyodide's own draws into a page's document, which a worker has not
    )
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it says how long it takes, amid the output
    (Path(folder) / "refdiff").symlink_to(Path(refdiff.__file__).parent)
    os.chdir(Path(folder) / "notebooks")
    sys.path.insert(0, str(Path(folder) / "notebooks"))
