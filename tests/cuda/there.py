"""CuPy for the tests: None where no device answers, unless one must."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

from refdiff import arrays


def cuda() -> Any:
    """CuPy, where a small computation on its device works; else None.

    Raises:
        RuntimeError: it does not work, and REFDIFF_NEED_CUDA=1 says that no test may be left out for that.
    """
    try:
        with warnings.catch_warnings():  # of which pytest makes errors: they say nothing of whether CuPy works
            warnings.simplefilter("ignore")
            arrays.backend("cupy")
    except RuntimeError:
        if os.environ.get("REFDIFF_NEED_CUDA"):
            raise
        return None
    return importlib.import_module("cupy")
