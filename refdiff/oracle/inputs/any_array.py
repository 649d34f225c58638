"""Any array in: of NumPy, torch, JAX, CuPy, MLX, ml_dtypes, or of anything that speaks DLPack.

What `refdiff.arrays.to_numpy` does for the libraries that a model runs on, for those of somebody else's kernel. A
library is asked only where the caller has imported it, and nothing is rounded.
"""

from __future__ import annotations

import sys
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array, bfloat16

HOST = (1, 3, 11)
"""kDLCPU, kDLCUDAHost and kDLROCMHost: DLPack's devices whose memory the CPU reads as its own."""


def any_array(x: Array, name: str = "the array") -> NDArray[Any]:
    """Return `x` as a NumPy array of exactly its numbers, type and shape; `x` itself is not changed.

    Where `x` lies in the CPU's memory nothing is copied, and a view of another library's memory is read-only. bfloat16
    is ml_dtypes' type of that name. Numbers and nested lists of them are taken too.

    Raises:
        TypeError: `x` is no array, or of a type that NumPy and ml_dtypes have not; `name` says which in the message.
    """
    try:
        found = _found(x)
    except (TypeError, BufferError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: {_kind(x)} cannot be read: {error}") from error
    if found.dtype.kind not in "biufc" and not _is_ml_dtype(found.dtype):
        raise TypeError(f"{name}: {_kind(x)} of dtype {found.dtype} holds no numbers")
    return found


def _found(x: Any) -> NDArray[Any]:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError("its mask would be lost: fill it first")
    if isinstance(x, np.ndarray | np.generic | int | float | list | tuple):
        return np.asarray(x)
    if array_api_compat.is_cupy_array(x):
        return np.asarray(x.get())
    if array_api_compat.is_jax_array(x):
        return np.asarray(sys.modules["jax"].device_get(x))
    if type(x).__module__ == "mlx.core":  # on a Mac, DLPack gives a handle of the GPU and no address
        return _from_mlx(x)
    # torch negates and conjugates by a mark on the tensor, of which DLPack says nothing
    for make in ("detach", "resolve_conj", "resolve_neg"):
        if hasattr(x, make):
            x = getattr(x, make)()
    if hasattr(x, "__dlpack__"):
        return _by_dlpack(x)
    if hasattr(x, "__array__") or hasattr(x, "__array_interface__"):
        return np.asarray(x)
    try:
        return np.asarray(memoryview(x))
    except TypeError:
        raise TypeError("it is no array: pass one of NumPy, torch, JAX, CuPy, MLX, or with __dlpack__") from None


def _by_dlpack(x: Any) -> NDArray[Any]:
    if int(x.__dlpack_device__()[0]) not in HOST:
        if not hasattr(x, "cpu"):
            raise TypeError(f"it is on DLPack's device {tuple(map(int, x.__dlpack_device__()))}: copy it to the CPU")
        x = x.cpu()
    of_bfloat16 = array_api_compat.is_torch_array(x) and x.dtype == sys.modules["torch"].bfloat16
    found = np.from_dlpack(x.view(sys.modules["torch"].int16) if of_bfloat16 else x)  # NumPy has no bfloat16
    found.flags.writeable = False
    return found.view(bfloat16()) if of_bfloat16 else found


def _from_mlx(x: Any) -> NDArray[Any]:
    mlx = sys.modules["mlx.core"]
    bits = np.asarray(memoryview(x.view(mlx.uint16) if x.dtype == mlx.bfloat16 else x))
    bits.flags.writeable = False
    return bits.view(bfloat16()) if x.dtype == mlx.bfloat16 else bits


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether these are floating-point numbers, of NumPy or of ml_dtypes, which has small integers too."""
    return dtype.kind == "f" or (_is_ml_dtype(dtype) and "float" in dtype.name)


def _is_ml_dtype(dtype: np.dtype[Any]) -> bool:
    return dtype.type.__module__ == "ml_dtypes"


def _kind(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"
