"""Checks for a browser, in which Python is WebAssembly (Pyodide), without threads, processes and some packages."""

from __future__ import annotations

import importlib
import sys
from typing import Any

IN_BROWSER = sys.platform == "emscripten"
"""Whether this Python is Pyodide, which runs in a browser or in Node."""


def require(package: str, what: str) -> Any:
    """Import an optional package.

    Raises:
        ImportError: it cannot be imported; the message says that `what` needs it, and the fix.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        fix = "use Python outside of a browser, where it is available" if IN_BROWSER else f"pip install {package}"
        raise ImportError(
            f"{what} needs the package {package}, which cannot be imported ({error}): {fix}", name=package
        ) from None


def require_processes(what: str) -> None:
    """Raise `RuntimeError` in a browser, where no process can be started; the message says that `what` needs them."""
    if IN_BROWSER:
        raise RuntimeError(f"{what} starts processes, which no browser has: use Python outside of one")
