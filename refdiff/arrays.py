"""Array namespaces and devices: the only file that asks which library an array belongs to.

Everything above the layers is written against a namespace in the sense of the Python array API standard
(https://data-apis.org/array-api): `xp.exp(x)` runs on NumPy, CuPy, torch or array-api-strict alike. This module
gets that namespace from an array, finds the device of an array, and copies arrays to the host and back.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from refdiff.browser import require

Array = Any
"""An array of any namespace; these have no common base class."""

_NUMBERS = (bool, int, float, complex)

_NUMPY = (np.ndarray, np.generic)

_NUMPY_NAMESPACE: Any = (
    np if hasattr(np, "__array_namespace_info__") else importlib.import_module("array_api_compat.numpy")
)
"""NumPy itself, which follows the standard since 2.1; for an older one, as in Pyodide 0.27, its wrapper."""


@dataclass(frozen=True)
class Deferred:
    """An array that each call of `to_numpy` reads again, for models too large for memory.

    Attributes:
        shape: the shape of the array.
        dtype: the dtype of the array.
        read: returns the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray[Any, Any]]


def namespace(*arrays: Array) -> Any:
    """Return the array-API namespace that all the given arrays share; `None` is ignored.

    Raises:
        TypeError: there is no array among them, or they come from different libraries.
    """
    if _all_numpy(arrays):
        return _NUMPY_NAMESPACE
    try:
        return array_api_compat.array_namespace(*(a for a in arrays if a is not None))
    except TypeError as error:
        kinds = ", ".join(sorted({f"{type(a).__module__}.{type(a).__qualname__}" for a in arrays if a is not None}))
        raise TypeError(f"arrays: got {kinds or 'none'}, expected arrays of one library; convert them first") from error


def _all_numpy(arrays: tuple[Array, ...]) -> bool:
    """Whether there are NumPy arrays, and otherwise only numbers and `None`.

    Their namespace is NumPy itself. array_api_compat's wrapper would import every module of NumPy, even f2py, which
    takes longer than all other imports of a command.
    """
    others = [a for a in arrays if a is not None and type(a) not in _NUMBERS]
    return bool(others) and all(isinstance(a, _NUMPY) for a in others)


def device(x: Array) -> Any:
    """Return the device that `x` lives on, in its own library's terms."""
    return array_api_compat.device(x)


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """Copy `x` to the host as a NumPy array; return a NumPy array as it is, without a copy.

    A `Deferred` array is read for this call and not kept.
    """
    if isinstance(x, _NUMPY):
        return np.asarray(x)
    if isinstance(x, Deferred):
        return x.read()
    if array_api_compat.is_cupy_array(x):
        return np.asarray(x.get())
    if array_api_compat.is_torch_array(x):
        x = x.detach().cpu()
        return np.asarray(x.float() if str(x.dtype) == "torch.bfloat16" else x)  # NumPy has no bfloat16
    xp = array_api_compat.array_namespace(x)
    host = xp.__array_namespace_info__().devices()[0]
    return np.from_dlpack(array_api_compat.to_device(x, host))


def take(x: Array, indices: Array) -> Array:
    """Return `xp.take(x, indices, axis=0)` for indices of any integer type.

    NumPy accepts only indices of at most a pointer's size. That is 32 bits in a browser, but token ids have 64.
    """
    xp = namespace(x, indices)
    if isinstance(indices, _NUMPY):
        indices = indices.astype(np.intp, copy=False)
    return xp.take(x, indices, axis=0)


def bfloat16() -> np.dtype[Any]:
    """Return NumPy's dtype for bfloat16, which the package ml_dtypes registers.

    Raises:
        ImportError: ml_dtypes is not installed.
    """
    dtype: np.dtype[Any] = np.dtype(require("ml_dtypes", "bfloat16").bfloat16)
    return dtype


def floats(x: Any) -> np.ndarray[Any, Any]:
    """Copy an array of any library, or lists of arrays or numbers, to the host as float64."""
    if isinstance(x, list | tuple):
        return np.asarray([floats(one) for one in x], dtype=np.float64)
    return np.asarray(to_numpy(x) if array_api_compat.is_array_api_obj(x) else x, dtype=np.float64)


def from_numpy(x: np.ndarray[Any, Any], xp: Any, device: Any = None) -> Array:
    """Put a NumPy array on `device` as an array of namespace `xp`; if that is NumPy, return it as it is."""
    if array_api_compat.is_numpy_namespace(xp):
        return x
    return xp.asarray(x, device=device)


def backend(name: str | ModuleType) -> Any:
    """Return the array-API namespace that a user named.

    Args:
        name: `"numpy"`, `"cupy"`, or any array-API namespace module (`array_api_strict`, `array_api_compat.torch`).

    Raises:
        ValueError: an unknown name, or a module without arrays.
        RuntimeError: CuPy is not installed, or a small computation on its device does not work.
    """
    if hasattr(name, "zeros"):
        return name
    if name not in ("numpy", "cupy"):
        raise ValueError(f'backend: got {name!r}, expected "numpy", "cupy", or an array-API namespace module')
    if name == "numpy":
        return _NUMPY_NAMESPACE
    try:
        with warnings.catch_warnings():  # if CuPy works, they do not matter; if not, an error follows
            warnings.simplefilter("ignore")
            cupy = importlib.import_module("cupy")
            works = float(cupy.sum(cupy.ones(3))) == 3.0
    except Exception as error:
        cause = error.__cause__ or error  # CuPy frames its advice on a failed import by lines of signs
        lines = [line.strip() for line in str(cause).splitlines() if any(c.isalpha() for c in line)]
        reason = f"{type(cause).__name__}: {lines[0] if lines else cause}"
        advice = 'on a machine with a CUDA device, pip install "cupy-cuda12x[ctk]>=13.3"'
        raise RuntimeError(f'backend "cupy" is not available ({reason}): {advice}, or use backend "numpy"') from error
    if not works:
        raise RuntimeError('backend "cupy" computed 1 + 1 + 1 wrongly: use backend "numpy"')
    return importlib.import_module("array_api_compat.cupy")


def check_device(xp: Any, device: Any) -> Any:
    """Return the device; for NumPy, whose arrays are in the host's memory, "cpu".

    Raises:
        ValueError: `xp` is NumPy, and `device` is neither None nor "cpu".
    """
    if not array_api_compat.is_numpy_namespace(xp):
        return device
    if device not in (None, "cpu"):
        raise ValueError(f'device: got {device!r}, expected None or "cpu" with NumPy; for a GPU pass backend="cupy"')
    return "cpu"
