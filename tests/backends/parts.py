"""Layers that are made of other layers, and whether what is laid over one of these is called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from refdiff import layers
from refdiff.backends import ops_for, overlay


def parts_of(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each layer with each of the layers that it is made of."""
    return [
        (name, part)
        for name in names
        for part, p in inspect.signature(getattr(layers, name)).parameters.items()
        if part in layers.__all__ and p.kind is p.KEYWORD_ONLY
    ]


def calls(kernels: Any, name: str, part: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How often a part is called: by the kernel, or by the layer that the kernel leaves the call to."""
    counted = []

    def wrap(layer: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            counted.append(layer)
            return function(*args, **kwargs)

        return noted if layer == part else function

    getattr(overlay(ops_for(kernels), wrap), name)(*args, **kwargs)
    return len(counted)
