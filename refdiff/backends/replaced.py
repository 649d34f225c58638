"""Which layers were replaced, for kernels that compute several of them at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from refdiff.backends import laid_over


def unless_replaced(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Leave the call to the layer where one of the layers that the kernel computes itself was replaced."""

    @functools.wraps(kernel)
    def call(*args: Any, **options: Any) -> Any:
        if any(callable(value) and laid_over(value) for value in options.values()):
            return NotImplemented
        return kernel(*args, **{name: value for name, value in options.items() if not callable(value)})

    return call
