"""Other thresholds for kernels that are there already."""

from __future__ import annotations

import dataclasses
from typing import Any


def tune(kernels: Any, **thresholds: Any) -> Any:
    """Change thresholds of `Tuning`, and return the kernels."""
    kernels.runtime.tuning = dataclasses.replace(kernels.runtime.tuning, **thresholds)
    return kernels
