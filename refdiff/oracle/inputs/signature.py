"""Call kernels of any accepted signature, and read what they return.

A submitted kernel's process runs a copy of this file, without refdiff: it imports the standard library alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def drop_nones(x: Any) -> Any:
    """Return `out` of (out, None, …), as attention modules of transformers return it; anything else as it is."""
    pair = isinstance(x, tuple) and len(x) > 1 and x[0] is not None
    return x[0] if pair and all(rest is None for rest in x[1:]) else x


def takes_dout(kernel: Callable[..., Any]) -> bool:
    """Whether a kernel computes gradients: it has a parameter `dout`."""
    return "dout" in parameter_names(kernel)


def adapt_kernel(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a kernel of (spec, inputs) or (inputs), with or without dout=None, as a function of (spec, inputs, dout).

    Raises:
        TypeError: it takes other arguments.
    """
    alone, with_dout = takes_inputs_alone(kernel), takes_dout(kernel)

    def call(spec: Any, inputs: Mapping[str, Any], dout: Any = None) -> Any:
        return kernel(*((inputs,) if alone else (spec, inputs)), **({"dout": dout} if with_dout else {}))

    return call


def _signature(kernel: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature, or None for a compiled function that has none."""
    try:
        return inspect.signature(kernel)
    except (TypeError, ValueError):
        return None


def parameter_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a function's parameters; () for a compiled function without a signature."""
    signature = _signature(function)
    return () if signature is None else tuple(signature.parameters)


def takes_inputs_alone(kernel: Callable[..., Any]) -> bool:
    """Whether a kernel takes (inputs), not (spec, inputs).

    Raises:
        TypeError: it takes neither.
    """
    signature = _signature(kernel)
    if signature is None:
        return False
    more = {"dout": None} if takes_dout(kernel) else {}
    one, two = (_accepts(signature, given, more) for given in ((None,), (None, None)))
    if not one and not two:
        name = getattr(kernel, "__name__", "the kernel")
        hint = "; wrap a kernel of named arrays: lambda inputs: kernel(**inputs)"
        raise TypeError(
            f"{name}{signature} must take (spec, inputs) or (inputs), and may also take dout=None for gradients"
            f"{hint if 'q' in signature.parameters else ''}"
        )
    kinds = {p.kind for p in signature.parameters.values()}
    return one and not (
        two and (inspect.Parameter.VAR_POSITIONAL in kinds or next(iter(signature.parameters)) == "spec")
    )


def _accepts(signature: inspect.Signature, given: tuple[Any, ...], more: Mapping[str, Any]) -> bool:
    try:
        signature.bind(*given, **more)
    except TypeError:
        return False
    return True
