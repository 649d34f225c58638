"""`ops`, the namespace of layer functions that the model calls, and the backends that speed them up.

reference   ops = the layers                 the equations, on any array library
fast        ops = the layers + kernels       the same names and signatures
yours       ops = overlay(ops, wrap)         traced, timed, changed, or your kernel in place of ours

A layer that is composed of others calls them as functions of the `ops` that it receives (`refdiff.layers.COMPOSED`). A
kernel for such a layer computes these parts itself. It runs only while every part in `ops` is the backend's own; where
one was replaced, the layer runs and calls the replacement. Likewise a backend's whole functions, such as its
`fast_diffllama`, run only while `ops` is the backend's own namespace. A function that you replaced is never bypassed.

A call with `output_attentions=True` or `output_hidden_states=True` wraps layers too. These then run one by one: slower,
with logits equal up to rounding error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import array_api_compat
import numpy as np

from refdiff.arrays import from_numpy
from refdiff.backends.backend import Backend, Function, Ops, ops_for, overlay

__all__ = ["Backend", "Function", "Ops", "backend_for", "device_placement", "keep_half", "ops_for", "overlay"]


def backend_for(xp: Any, kernels: str = "fast", threads: int | None = None, matrices: str = "float32") -> Backend:
    """Return the backend for arrays of namespace `xp`.

    Args:
        kernels: `"fast"` = the kernels for this library, if there are any; `"reference"` = the layers as written.
        threads: how many threads a CPU's kernels may use; None is all cores, or the number set for BLAS, see `Workers`.
        matrices: the dtype of a model's matrices.

    Raises:
        ValueError: `kernels` is neither, or `threads` is below 1.
    """
    if kernels not in ("fast", "reference"):
        raise ValueError(f'kernels: got {kernels!r}, expected "fast" or "reference"')
    if kernels == "fast" and array_api_compat.is_numpy_namespace(xp):
        from refdiff.backends.numpy import NumpyBackend, NumpyKernels

        return NumpyBackend(NumpyKernels(threads))
    if kernels == "fast" and array_api_compat.is_cupy_namespace(xp):
        from refdiff.backends.cupy import CupyBackend, CupyKernels
        from refdiff.backends.cupy.device import SIXTEEN_BITS

        return CupyBackend(CupyKernels(rounded=matrices if matrices in SIXTEEN_BITS else None))
    return Backend()


def keep_half(weights: str, xp: Any, kernels: str = "fast") -> bool:
    """Return whether 16-bit matrices are kept in 16 bits, for arrays of namespace `xp`.

    Args:
        weights: `"stored"` = yes, `"expanded"` = no, `"auto"` = where the kernels multiply by them at full speed:
            CuPy's, whose arrays have bfloat16 since its version 14.
        kernels: as in `backend_for`.

    Raises:
        ValueError: `weights` is none of these, or nothing multiplies by 16-bit matrices here.
    """
    if weights not in ("auto", "expanded", "stored"):
        raise ValueError(f'weights: got {weights!r}, expected "auto", "expanded" or "stored"')
    on_cuda, fast = array_api_compat.is_cupy_namespace(xp), kernels == "fast"
    if weights == "stored" and not (fast and (on_cuda or array_api_compat.is_numpy_namespace(xp))):
        raise ValueError(
            'weights: got "stored", expected "expanded" without the fast kernels of NumPy or CuPy; leave backend and '
            'kernels out, or pass weights="expanded"'
        )
    if weights == "auto" and on_cuda and fast:
        import cupy

        from refdiff.backends.cupy.upload import has_bfloat16

        return has_bfloat16(cupy)
    return weights == "stored"


@contextlib.contextmanager
def device_placement(xp: Any, device: Any, total: int) -> Iterator[Callable[[Any], Any]]:
    """Yield a function that copies NumPy arrays, `total` bytes in all, to `device` as arrays of namespace `xp`."""
    if not array_api_compat.is_cupy_namespace(xp):
        yield lambda x: from_numpy(x, xp, device)
        return
    from refdiff.backends.cupy.upload import Upload

    upload = Upload(total, device)
    try:
        yield lambda x: upload(x) if isinstance(x, np.ndarray) else x
    finally:
        upload.close()
