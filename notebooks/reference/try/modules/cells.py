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


def run(code: str, tell: Callable[[str, str], Any]) -> bool:
    """Run a cell; show the value of its last expression, or print the traceback. Return whether it raised nothing.

    `tell` takes "text", "html" or "image", and what it is.
    """
    code = re.sub(r"^%.*", "", code, flags=re.MULTILINE)  # commands to Jupyter
    linecache.cache["<cell>"] = (len(code), None, code.splitlines(keepends=True), "<cell>")
    try:
        _show(eval_code(code, _NAMES, filename="<cell>"), tell)
    except BaseException as error:  # whatever a reader's code raises
        report = traceback.TracebackException.from_exception(error)
        frames = [frame for frame in report.stack if "_pyodide" not in frame.filename and frame.filename != __file__]
        report.stack = traceback.StackSummary.from_list(frames)
        tell("text", "".join(report.format()))
        return False
    return True


def _show(value: Any, tell: Callable[[str, str], Any]) -> None:
    if hasattr(value, "savefig"):  # a figure has a _repr_html_ too, which gives nothing here
        drawn = io.BytesIO()
        value.savefig(drawn, format="png", dpi=110)
        tell("image", base64.b64encode(drawn.getvalue()).decode())
    elif hasattr(value, "_repr_html_"):
        tell("html", value._repr_html_())
    elif value is not None:
        tell("text", f"{value!r}\n")


def solved() -> list[int]:
    """Return the numbers of the puzzles that are solved."""
    return sorted(sys.modules["puzzles"].solved) if "puzzles" in sys.modules else []


def open_notebooks(folder: str) -> None:
    """Work where the notebooks are: their modules and data beside them, refdiff beside their folder."""
    import refdiff

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it says how long it takes, amid the output
    (Path(folder) / "refdiff").symlink_to(Path(refdiff.__file__).parent)
    os.chdir(Path(folder) / "notebooks")
    sys.path.insert(0, str(Path(folder) / "notebooks"))
