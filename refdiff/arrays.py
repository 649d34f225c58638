"""Array namespaces and devices: the only file that asks which library an array belongs to.

Everything above the layers is written against a namespace in the sense of the Python array API standard
(https://data-apis.org/array-api): `xp.exp(x)` runs on NumPy, CuPy, torch or array-api-strict alike. Here is how
to get that namespace from an array, where an array lives, and how to carry one to the host and back.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from refdiff.browser import require

Array = Any
"""An array of any namespace. There is no common base class to name."""

_NUMBERS = (bool, int, float, complex)

_NUMPY = (np.ndarray, np.generic)

_NUMPY_NAMESPACE: Any = (
    np if hasattr(np, "__array_namespace_info__") else importlib.import_module("array_api_compat.numpy")
)
"""NumPy has been such a namespace itself since 2.1; Pyodide 0.27 has an older one."""

_CUDA_LIBRARY = re.compile(
    r"nvrtc|nvjitlink|cudart|cublas|cufft|curand|cusolver|cusparse|cuda_path|cuda headers", re.IGNORECASE
)
"""What CuPy names where CUDA's own libraries or headers are not found; libcuda is the driver's, and not among them."""


@dataclass(frozen=True)
class Deferred:
    """An array that is made when `to_numpy` asks for it, each time anew: of a model too large to be in memory at once.

    Attributes:
        shape: what `read` gives.
        dtype: what `read` gives.
        read: makes the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray[Any, Any]]


def namespace(*arrays: Array) -> Any:
    """Return the array-API namespace that all the given arrays share; `None` among them is passed over.

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
    """Whether there are NumPy arrays, and beside them nothing but numbers and `None`.

    They share NumPy itself: array_api_compat's wrapping of it imports all that NumPy has, its compiler of Fortran too,
    which takes longer than everything else that a command imports.
    """
    others = [a for a in arrays if a is not None and type(a) not in _NUMBERS]
    return bool(others) and all(isinstance(a, _NUMPY) for a in others)


def device(x: Array) -> Any:
    """Return the device that `x` lives on, in its own library's terms."""
    return array_api_compat.device(x)


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """Bring `x` to the host as a NumPy array; a NumPy array comes back as it is, without a copy.

    A `Deferred` one is made for this call and not kept.
    """
    if isinstance(x, _NUMPY):
        return np.asarray(x)
    if isinstance(x, Deferred):
        return x.read()
    if array_api_compat.is_cupy_array(x):
        return np.asarray(x.get())
    if array_api_compat.is_torch_array(x):
        return np.asarray(x.detach().cpu())
    xp = array_api_compat.array_namespace(x)
    host = xp.__array_namespace_info__().devices()[0]
    return np.from_dlpack(array_api_compat.to_device(x, host))


def take(x: Array, indices: Array) -> Array:
    """Return `xp.take(x, indices, axis=0)` for indices of any type: of at most a pointer's size, NumPy asks for.

    A pointer has 32 bits in a browser, and token ids have 64.
    """
    xp = namespace(x, indices)
    if isinstance(indices, _NUMPY):
        indices = indices.astype(np.intp, copy=False)
    return xp.take(x, indices, axis=0)


def bfloat16() -> np.dtype[Any]:
    """Return NumPy's type for bfloat16, which the package ml_dtypes adds to it.

    Raises:
        ImportError: ml_dtypes is not installed.
    """
    dtype: np.dtype[Any] = np.dtype(require("ml_dtypes", "bfloat16").bfloat16)
    return dtype


def floats(x: Any) -> np.ndarray[Any, Any]:
    """Bring an array of any library, or numbers or arrays in lists, to the host as float64."""
    if isinstance(x, list | tuple):
        return np.asarray([floats(one) for one in x], dtype=np.float64)
    return np.asarray(to_numpy(x) if array_api_compat.is_array_api_obj(x) else x, dtype=np.float64)


def from_numpy(x: np.ndarray[Any, Any], xp: Any, device: Any = None) -> Array:
    """Put a NumPy array on `device` as an array of namespace `xp`; for NumPy itself it comes back as it is."""
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
        with warnings.catch_warnings():  # they do not matter where CuPy works; where it does not, the error follows
            warnings.simplefilter("ignore")
            cupy = importlib.import_module("cupy")
            works = float(cupy.sum(cupy.ones(3))) == 3.0
    except Exception as error:
        cause = error.__cause__ or error  # of an import that fails CuPy gives advice, between lines of signs
        lines = [line.strip() for line in str(cause).splitlines() if any(c.isalpha() for c in line)]
        reason = f"{type(cause).__name__}: {lines[0] if lines else cause}"
        advice = f'on a machine with a CUDA device, pip install "{_cupy_package()}[ctk]>=13.3"'
        if _CUDA_LIBRARY.search(str(cause)):
            advice = f'install CUDA\'s libraries, pip install "{_cupy_package()}[ctk]>=14"'
        raise RuntimeError(f'backend "cupy" is not available ({reason}): {advice}, or use backend "numpy"') from error
    if not works:
        raise RuntimeError('backend "cupy" computed 1 + 1 + 1 wrongly: use backend "numpy"')
    return importlib.import_module("array_api_compat.cupy")


def check_device(xp: Any, device: Any) -> None:
    """Raise where NumPy, whose arrays are in the host's memory, is to use another device.

    Raises:
        ValueError: `xp` is NumPy, and `device` is neither None nor "cpu".
    """
    if device not in (None, "cpu") and array_api_compat.is_numpy_namespace(xp):
        raise ValueError(f'device: got {device!r}, expected None or "cpu" with NumPy; for a GPU pass backend="cupy"')


def _cupy_package() -> str:
    """Name the CuPy that is installed for CUDA 12 or 13: beside the other one it would not work."""
    from importlib.metadata import distributions

    return "cupy-cuda13x" if any(True for _ in distributions(name="cupy-cuda13x")) else "cupy-cuda12x"
