"""Arrays of any library: NumPy's, capsules, stand-ins for those of others. tests/parity has the others themselves."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import array_api_compat
import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refdiff.oracle.inputs.any_array import any_array
from refdiff.oracle.inputs.dlpack import _Tensor, read_capsule
from tests.layers.inputs import says
from tests.oracle.arrays import DTYPES, LAYOUTS, numbers, same_bits, zero_stride


@pytest.mark.parametrize("layout", [*LAYOUTS, "zero stride"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy(dtype: str, layout: str) -> None:
    whole = numbers(dtype)
    x = {**LAYOUTS, "zero stride": zero_stride}[layout](whole)
    before = whole.tobytes()
    read = any_array(x)
    assert type(read) is np.ndarray
    assert same_bits(read, np.asarray(x))
    assert read is x or layout == "scalar"
    assert whole.tobytes() == before


@given(
    hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, min_side=0)).filter(lambda x: x.dtype.kind in "biufc")
)
def test_numbers_of_numpy(x: np.ndarray) -> None:
    assert same_bits(any_array(x), x)


@given(st.lists(st.lists(st.integers(-9, 9), min_size=2, max_size=2), min_size=1))
def test_lists(x: list[list[int]]) -> None:
    assert same_bits(any_array(x), np.array(x))
    assert same_bits(any_array(tuple(x)), np.array(x))


class Foreign:
    """An array of no known library, that is read by DLPack."""

    def __init__(self, lent: Lent, device: int = 1) -> None:
        self.lent, self.device = lent, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self) -> Any:
        return self.lent.capsule()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "code"), list(zip(DTYPES, (2, 4, 2, 2, 0, 6), strict=True)))
def test_dlpack(dtype: str, code: int, layout: str) -> None:
    x = np.asarray(LAYOUTS[layout](numbers(dtype)))
    read = any_array(Foreign(Lent(x, code)))
    assert same_bits(read, x)
    assert layout == "empty" or not read.flags.writeable


def test_array_api_strict() -> None:
    x = numbers("float64")
    assert same_bits(any_array(array_api_strict.asarray(x)), x)
    x.flags.writeable = False
    assert same_bits(any_array(array_api_strict.asarray(x, copy=False)), x)


def test_device_memory_is_fetched() -> None:
    here = Foreign(Lent(numbers("bfloat16"), 4))
    there = Foreign(here.lent, device=2)
    there.cpu = lambda: here
    assert same_bits(any_array(there), here.lent.x)


def test_gradients_are_let_go_of() -> None:
    class Recorded:
        def detach(self) -> Foreign:
            return Foreign(Lent(X, 2))

    assert same_bits(any_array(Recorded()), X)


def test_marks_of_torch_are_carried_out() -> None:
    """A negated or conjugated view has the bits of what it views, and a mark; DLPack gives the bits."""

    class Marked:
        def resolve_conj(self) -> Marked:
            return self

        def resolve_neg(self) -> Foreign:
            return Foreign(Lent(-X, 2))

    assert same_bits(any_array(Marked()), -X)


X = numbers("float32")


def test_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_api_compat, "is_cupy_array", lambda x: isinstance(x, SimpleNamespace))
    assert any_array(SimpleNamespace(get=lambda: X)) is X


def test_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_api_compat, "is_jax_array", lambda x: x == "an array of jax")
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(device_get=lambda x: X))
    assert any_array("an array of jax") is X


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mlx(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """Read by the buffer protocol, in which bfloat16 has no letter."""
    library = SimpleNamespace(uint16="uint16", bfloat16="bfloat16")
    monkeypatch.setitem(sys.modules, "mlx.core", library)
    x = numbers(dtype)[0, 0]
    kind = (ctypes.c_float if dtype == "float32" else ctypes.c_uint16) * len(x)

    class Buffer(kind):
        __module__ = "mlx.core"

        def view(self, to: str) -> Any:
            return self

    buffer = Buffer.from_buffer_copy(x.tobytes())
    buffer.dtype = dtype
    read = any_array(buffer)
    assert same_bits(read, x)
    assert not read.flags.writeable


def test_buffers_and_array_methods() -> None:
    assert same_bits(any_array(memoryview(X)), X)
    assert same_bits(any_array(bytearray(b"\x01\x02")), np.array([1, 2], np.uint8))
    assert same_bits(any_array(SimpleNamespace(__array_interface__=X.__array_interface__)), X)


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (None, "no array: pass one of NumPy, torch, JAX, CuPy, MLX, or with __dlpack__"),
        ("text", "no array: pass one of NumPy, torch, JAX, CuPy, MLX, or with __dlpack__"),
        ({"a": 1}, "no array: pass one of NumPy, torch, JAX, CuPy, MLX, or with __dlpack__"),
    ],
    ids=str,
)
def test_no_array(x: Any, why: str) -> None:
    with says(TypeError, f"q: {type(x).__module__}.{type(x).__qualname__} cannot be read: it is {why}"):
        any_array(x, "q")


def test_an_error_of_the_library_names_the_array() -> None:
    class Number:
        shape = ()

        def __array__(self, *args: Any, **options: Any) -> Any:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

    with says(TypeError, "q: builtins.list cannot be read: Can't call numpy() on Tensor that requires grad."):
        any_array([Number()], "q")


def test_ragged_lists() -> None:
    with pytest.raises(TypeError, match=r"^q: builtins\.list cannot be read: setting an array element"):
        any_array([[1, 2], [3]], "q")


@pytest.mark.parametrize("x", [np.array(["a"]), np.array([None]), np.zeros(2, "M8[s]"), np.zeros(2, "i4,f4")], ids=str)
def test_no_numbers(x: np.ndarray) -> None:
    with says(TypeError, f"q: numpy.ndarray of dtype {x.dtype} holds no numbers"):
        any_array(x, "q")


def test_a_mask_is_not_lost() -> None:
    with pytest.raises(TypeError, match="its mask would be lost: fill it first"):
        any_array(np.ma.masked_array([1.0, 2.0], [True, False]))


def test_memory_that_cannot_be_fetched() -> None:
    with pytest.raises(TypeError, match=r"it is on DLPack's device \(8, 0\): copy it to the CPU"):
        any_array(Foreign(Lent(X, 2), device=8))


def test_no_library_is_imported() -> None:
    """Those that are installed here, too."""
    code = (
        "import sys, numpy as np, array_api_strict as s\n"
        "from refdiff.oracle.inputs.any_array import any_array\n"
        "class Tensor:\n"
        "    __dlpack_device__ = lambda self: (1, 0)\n"
        "    __dlpack__ = lambda self: np.ones(3).__dlpack__()\n"
        "[any_array(x) for x in (np.ones(3), s.ones(3), [1.0], memoryview(b'12'), Tensor())]\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "numpy" in loaded
    assert not loaded & {"torch", "jax", "cupy", "mlx", "ml_dtypes", "tensorflow"}


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


def test_of_another_device() -> None:
    lent = Lent(numbers("float32"), 2, device_type=2)
    with says(TypeError, "the array is on DLPack's device 2, not in the CPU's memory: copy it there"):
        read_capsule(lent.capsule())
