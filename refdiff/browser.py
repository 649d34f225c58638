"""What a browser has not: Python runs there as WebAssembly (Pyodide), without threads, processes and some packages."""

from __future__ import annotations

import importlib
import sys
from typing import Any

IN_BROWSER = sys.platform == "emscripten"
"""Whether this Python is Pyodide: in a browser, or in Node."""


def require(package: str, what: str) -> Any:
    """Import a package that not every machine has.

    Raises:
        ImportError: it is not here; the message says that `what` needs it, and the fix.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        fix = "use Python outside of a browser, for no browser has it" if IN_BROWSER else f"pip install {package}"
        raise ImportError(
            f"{what} needs the package {package}, which is not here ({error}): {fix}", name=package
        ) from None


def require_processes(what: str) -> None:
    """Raise `RuntimeError` in a browser, where no process can be started; the message says that `what` needs them."""
    if IN_BROWSER:
        raise RuntimeError(f"{what} starts processes, which no browser has: use Python outside of one")
