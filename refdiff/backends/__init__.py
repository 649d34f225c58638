"""The one seam between layers and model: `ops`, a plain namespace of the layer functions, and what can be laid over it.

reference   ops = the layers                 the equations, on any array library
fast        ops = the layers + kernels       same names and signatures, laid over
yours       ops = overlay(ops, wrap)         traced, timed, mistaken, or your kernel in place of ours
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import array_api_compat
import numpy as np

from refdiff import layers
from refdiff.arrays import from_numpy

Ops = SimpleNamespace
"""A namespace with the public functions of `refdiff.layers`, or functions that stand for them."""

FUSED = (
    "linears", "rope_append", "residual_add", "diff_attention_with_lse", "diff_attention_vjp_from_lse",
    "cross_entropy_both",
)  # fmt: skip
"""Steps of a model, each a sum or several calls of layers, that a backend may do in its own way. What is laid over the
layers must see them all, so `overlay` leaves these out, and the model does the layers one by one."""

Wrap = Callable[[str, Callable[..., Any]], Callable[..., Any]]


def overlay(ops: Ops, wrap: Wrap) -> Ops:
    """Return a new namespace in which each function is what `wrap(name, function)` returns for it.

    A layer that is made of other layers names them as keyword-only arguments (`swiglu(..., *, linear, activation)`);
    they are filled with the functions of the new namespace, so that laying over `linear` reaches inside `swiglu`.
    A wrapper passes on the arguments that it does not know, and keeps the signature with `functools.wraps`; a function
    of your own that does not name such arguments is not given them.

    Shapes:
        `ops` and the result have the same names but for those of `FUSED`; `ops` itself is not changed.
    """
    new = Ops()
    names = set(vars(ops)) - set(FUSED)
    for name in vars(ops):
        if name in names:
            setattr(new, name, _with_parts_from(new, wrap(name, getattr(ops, name)), names))
    return new


def kernels_for(xp: Any, kernels: str = "fast", threads: int | None = None, matrices: str = "float32") -> Any:
    """Return the backend's kernels for arrays of namespace `xp`, or None where the layers serve.

    Args:
        kernels: `"fast"` = the backend's, if it has any; `"reference"` = none, the equations as they are written.
        threads: how many a CPU's kernels may use; None is all cores, or what BLAS is told, see `Workers`.
        matrices: the type that a model's matrices are kept in.

    Raises:
        ValueError: `kernels` is neither, or `threads` is below 1.
    """
    if kernels not in ("fast", "reference"):
        raise ValueError(f'kernels is {kernels!r}, but must be "fast" or "reference"')
    if kernels == "fast" and array_api_compat.is_numpy_namespace(xp):
        from refdiff.backends.numpy import NumpyKernels

        return NumpyKernels(threads)
    if kernels == "fast" and array_api_compat.is_cupy_namespace(xp):
        from refdiff.backends.cupy.device import SIXTEEN_BITS
        from refdiff.backends.cupy.kernels import CupyKernels

        return CupyKernels(rounded=matrices if matrices in SIXTEEN_BITS else None)
    return None


def keeps_stored(weights: str, xp: Any, kernels: str = "fast") -> bool:
    """Whether 16-bit matrices stay as they are stored, for arrays of namespace `xp`.

    Args:
        weights: `"stored"`, `"expanded"`, or `"auto"` = where the kernels multiply by them at full speed: CuPy's, whose
            arrays have bfloat16 since its version 14.
        kernels: as in `kernels_for`.

    Raises:
        ValueError: `weights` is none of these, or nothing multiplies by stored ones here.
    """
    if weights not in ("auto", "expanded", "stored"):
        raise ValueError(f'weights is {weights!r}, but must be "auto", "expanded" or "stored"')
    on_cuda, fast = array_api_compat.is_cupy_namespace(xp), kernels == "fast"
    if weights == "stored" and not (fast and (on_cuda or array_api_compat.is_numpy_namespace(xp))):
        raise ValueError(
            'weights="stored" needs the fast kernels of NumPy or CuPy, which expand them as they go: leave backend and '
            'kernels out, or take weights="expanded"'
        )
    if weights == "auto" and on_cuda and fast:
        import cupy

        from refdiff.backends.cupy.upload import has_bfloat16

        return has_bfloat16(cupy)
    return weights == "stored"


@contextlib.contextmanager
def placing(xp: Any, device: Any, total: int) -> Iterator[Callable[[Any], Any]]:
    """Give what puts NumPy arrays, `total` bytes in all, on `device` as arrays of namespace `xp`."""
    if not array_api_compat.is_cupy_namespace(xp):
        yield lambda x: from_numpy(x, xp, device)
        return
    from refdiff.backends.cupy.upload import Upload

    upload = Upload(total, device)
    try:
        yield lambda x: upload(x) if isinstance(x, np.ndarray) else x
    finally:
        upload.close()


def ops_for(kernels: Any = None) -> Ops:
    """Return the layer functions, those that `kernels` has a method for laid over.

    A kernel that returns `NotImplemented` leaves the call to its layer.
    """
    equations = Ops(**{name: getattr(layers, name) for name in layers.__all__})
    ops = overlay(equations, lambda name, layer: _kernel_or_layer(getattr(kernels, name, None), layer))
    for name in FUSED:
        if hasattr(kernels, name):
            setattr(ops, name, getattr(kernels, name))
    return ops


def _kernel_or_layer(kernel: Callable[..., Any] | None, layer: Callable[..., Any]) -> Callable[..., Any]:
    if kernel is None:
        return layer

    @functools.wraps(layer)
    def fast(*args: Any, **kwargs: Any) -> Any:
        result = kernel(*args, **kwargs)
        return layer(*args, **kwargs) if result is NotImplemented else result

    vars(fast)["itself"] = fast  # `functools.wraps` copies it, so that what is laid over it can be told from it
    return fast


def untouched(function: Callable[..., Any]) -> bool:
    """Whether nothing was laid over a function of `ops_for`: nobody counts how often, or with what, it is called."""
    return getattr(function, "itself", None) is function


def laid_over(part: Callable[..., Any]) -> bool:
    """Whether a part of a layer is neither the layer of that name nor what `ops_for` has for it: then it is called."""
    return not untouched(part) and getattr(layers, getattr(part, "__name__", ""), None) is not part


def _with_parts_from(ops: Ops, function: Callable[..., Any], names: set[str]) -> Callable[..., Any]:
    """Fill the keyword-only arguments of `function` that are named like layers from `ops`, when it is called."""
    parts = [name for name in _keyword_only(_innermost(function)) if name in names]
    if not parts:
        return function

    @functools.wraps(function)
    def bound(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{**{part: getattr(ops, part) for part in parts}, **kwargs})

    return bound


def _innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `functools.wraps` was put around again and again: its signature is theirs."""
    inner: Callable[..., Any] = inspect.unwrap(function, stop=lambda f: hasattr(f, "__signature__"))
    return inner


def _keyword_only(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of arguments; of layers they are read once, which takes longer than a small layer does."""
    return (
        _of_layer(function) if getattr(layers, getattr(function, "__name__", ""), None) is function else _read(function)
    )


def _read(function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


_of_layer = functools.cache(_read)
