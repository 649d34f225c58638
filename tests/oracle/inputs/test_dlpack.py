"""DLPack capsules, made by NumPy and by hand."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from refdiff.oracle.inputs.dlpack import _Tensor, read_capsule
from tests.layers.inputs import says
from tests.oracle.arrays import LAYOUTS, numbers, same_bits, zero_stride


class Lent:
    """A capsule of any tensor that fits the structure, and what keeps its memory alive."""

    def __init__(self, x: np.ndarray, code: int, *, bits: int | None = None, offset: int = 0, **fields: int) -> None:
        self.x = x
        self.shape = (ctypes.c_int64 * max(x.ndim, 1))(*x.shape)
        self.strides = (ctypes.c_int64 * max(x.ndim, 1))(*(s // x.itemsize for s in x.strides))
        self.tensor = _Tensor(
            data=x.ctypes.data - offset, ndim=x.ndim, code=code, bits=8 * x.itemsize if bits is None else bits,
            **{"device_type": 1, "lanes": 1, "byte_offset": offset, **fields},
        )  # fmt: skip
        self.tensor.shape, self.tensor.strides = self.shape, self.strides

    def capsule(self, name: bytes = b"dltensor") -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.tensor), name, None)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "bool"])
def test_capsules_of_numpy(dtype: str, layout: str) -> None:
    x = LAYOUTS[layout](numbers(dtype))
    if layout == "scalar":
        x = np.asarray(x)
    read = read_capsule(x.__dlpack__())
    assert same_bits(read, x)
    assert np.shares_memory(read, x) or layout == "empty"
    assert layout == "empty" or not read.flags.writeable


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16(layout: str) -> None:
    x = np.asarray(LAYOUTS[layout](numbers("bfloat16")))
    lent = Lent(x, 4, offset=6)
    assert same_bits(read_capsule(lent.capsule()), x)


def test_zero_strides() -> None:
    x = zero_stride(numbers("bfloat16"))
    lent = Lent(x, 4)
    read = read_capsule(lent.capsule())
    assert read.strides[0] == 0
    assert same_bits(read, x)


def test_negative_strides() -> None:
    x = numbers("float32")[::-1, :, ::-2]
    lent = Lent(x, 2)
    assert same_bits(read_capsule(lent.capsule()), x)


def test_no_strides_is_in_a_row() -> None:
    lent = Lent(numbers("int32"), 0)
    lent.tensor.strides = None
    assert same_bits(read_capsule(lent.capsule()), lent.x)


def test_read_only_memory_comes_in_the_newer_capsule() -> None:
    x = numbers("float64")
    x.flags.writeable = False
    assert same_bits(read_capsule(x.__dlpack__(max_version=(1, 0))), x)


def test_memory_outlives_its_owner() -> None:
    x = numbers("float64")
    read = read_capsule(x.copy().__dlpack__())
    for _ in range(50):  # what was freed would be written over
        x.copy()
    assert same_bits(read, x)


def test_of_another_device() -> None:
    lent = Lent(numbers("float32"), 2, device_type=2)
    with says(TypeError, "the array is on DLPack's device 2, not in the CPU's memory: copy it there"):
        read_capsule(lent.capsule())


@pytest.mark.parametrize(("code", "bits", "lanes"), [(10, 8, 1), (2, 4, 1), (4, 32, 1), (3, 64, 1), (2, 32, 4)])
def test_of_types_that_numpy_has_not(code: int, bits: int, lanes: int) -> None:
    lent = Lent(numbers("float32"), code, bits=bits, lanes=lanes)
    message = (
        f"the array has DLPack's type {code} of {bits} bits; what can be read are booleans, integers, floating-point "
        "and complex numbers of whole bytes, and bfloat16"
    )
    with says(TypeError, message):
        read_capsule(lent.capsule())


def test_used_capsules() -> None:
    lent = Lent(numbers("float32"), 2)
    with pytest.raises(TypeError, match="is no capsule of __dlpack__, or somebody has taken the array out of it"):
        read_capsule(lent.capsule(b"used_dltensor"))
