"""DLPack capsules in the memory of the CPU → NumPy, read by hand: NumPy's own `from_dlpack` refuses bfloat16.

The structures are those of `dlpack.h` (https://dmlc.github.io/dlpack/latest/c_api.html).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import bfloat16

HOST = (1, 3, 11)
"""kDLCPU, kDLCUDAHost and kDLROCMHost: devices whose memory the CPU reads as its own."""

_KINDS = {0: "i", 1: "u", 2: "f", 4: "bfloat", 5: "c", 6: "b"}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


class _Borrowed:
    """Memory of somebody else, for as long as NumPy looks at it: the capsule, dying, gives it back."""

    def __init__(self, capsule: Any, interface: dict[str, Any]) -> None:
        self.capsule = capsule
        self.__array_interface__ = interface


def read_capsule(capsule: Any) -> NDArray[Any]:
    """Return the array that a capsule of `__dlpack__` holds, as a read-only view of the same memory.

    Raises:
        TypeError: it is no fresh capsule, lies on another device than the CPU, or holds a type that NumPy and ml_dtypes
            have not.
    """
    tensor = _tensor(capsule)
    if tensor.device_type not in HOST:
        raise TypeError(f"the array is on DLPack's device {tensor.device_type}, not in the CPU's memory: copy it there")
    kind, size = _KINDS.get(tensor.code), tensor.bits // 8
    if kind is None or tensor.lanes != 1 or tensor.bits % 8 or (kind == "bfloat" and size != 2):
        raise TypeError(
            f"the array has DLPack's type {tensor.code} of {tensor.bits} bits; what can be read are booleans, "
            "integers, floating-point and complex numbers of whole bytes, and bfloat16"
        )
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    dtype = np.dtype("=u2" if kind == "bfloat" else f"={kind}{size}")
    if 0 in shape:
        found: NDArray[Any] = np.empty(shape, dtype)
    else:
        strides = tuple(tensor.strides[i] * size for i in range(tensor.ndim)) if tensor.strides else None
        where = {"data": ((tensor.data or 0) + tensor.byte_offset, True), "strides": strides}
        found = np.asarray(_Borrowed(capsule, {"version": 3, "shape": shape, "typestr": dtype.str, **where}))
    return found.view(bfloat16()) if kind == "bfloat" else found


def _tensor(capsule: Any) -> _Tensor:
    python = ctypes.pythonapi
    python.PyCapsule_IsValid.argtypes = (ctypes.py_object, ctypes.c_char_p)
    python.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    python.PyCapsule_GetPointer.restype = ctypes.c_void_p
    for name, structure in ((b"dltensor", _Tensor), (b"dltensor_versioned", _Versioned)):
        if python.PyCapsule_IsValid(capsule, name):
            found = structure.from_address(python.PyCapsule_GetPointer(capsule, name))
            tensor: _Tensor = found.tensor if isinstance(found, _Versioned) else found
            return tensor
    raise TypeError(f"{capsule!r} is no capsule of __dlpack__, or somebody has taken the array out of it already")
