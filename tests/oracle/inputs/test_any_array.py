"""Arrays of any library: NumPy's, capsules, stand-ins for those of others. tests/parity has the others themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import array_api_strict
import numpy as np
import pytest

from refdiff.oracle.inputs.arrays import any_array
from tests.layers.inputs import says
from tests.oracle.arrays import DTYPES, LAYOUTS, VIEWS, numbers, same_bits

X = numbers("float32")


@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy(dtype: str, layout: str) -> None:
    whole = numbers(dtype)
    x = VIEWS[layout](whole)
    before = whole.tobytes()
    read = any_array(x)
    assert type(read) is np.ndarray
    assert same_bits(read, np.asarray(x))
    assert read is x or layout == "scalar"
    assert whole.tobytes() == before


def test_byte_order() -> None:
    read = any_array(np.array([1.5, -2.0], ">f4"))
    assert (read.tolist(), str(read.dtype)) == ([1.5, -2.0], "float32")


class Foreign:
    """An array of no known library, that is read by DLPack; NumPy lends its bits."""

    def __init__(self, x: np.ndarray, device: int = 1) -> None:
        self.x, self.device = x, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, **options: Any) -> Any:
        return self.x.__dlpack__(**options)


class OfAnOldLibrary(Foreign):
    """One that knows the capsule without a version alone."""

    def __dlpack__(self) -> Any:
        return super().__dlpack__()


@pytest.mark.parametrize("kind", [Foreign, OfAnOldLibrary])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bfloat16"])
def test_dlpack(dtype: str, layout: str, kind: type[Foreign]) -> None:
    x = np.asarray(LAYOUTS[layout](numbers(dtype)))
    read = any_array(kind(x))
    assert same_bits(read, x)
    assert not read.flags.writeable
    assert same_bits(any_array(kind(x[..., ::-1]) if x.ndim else kind(x)), x[..., ::-1] if x.ndim else x)


def test_memory_outlives_its_owner() -> None:
    x = numbers("float64")
    read = any_array(Foreign(x.copy()))
    for _ in range(50):  # what was freed would be written over
        x.copy()
    assert same_bits(read, x)


def test_array_api_strict() -> None:
    x = numbers("float64")
    assert same_bits(any_array(array_api_strict.asarray(x)), x)
    x.flags.writeable = False
    assert same_bits(any_array(array_api_strict.asarray(x, copy=False)), x)


def test_device_memory_is_fetched() -> None:
    there = Foreign(X, device=2)
    there.cpu = lambda: Foreign(there.x)
    assert same_bits(any_array(there), there.x)
    with pytest.raises(TypeError, match=r"it is on DLPack's device \(8, 0\): copy it to the CPU"):
        any_array(Foreign(X, device=8))


def test_buffers_lists_and_array_methods() -> None:
    assert same_bits(any_array(memoryview(X)), X)
    assert same_bits(any_array(bytearray(b"\x01\x02")), np.array([1, 2], np.uint8))
    assert same_bits(any_array(SimpleNamespace(__array_interface__=X.__array_interface__)), X)
    assert same_bits(any_array(([1, 2], [3, 4])), np.array([[1, 2], [3, 4]]))


class OfTorch:
    """A tensor that NumPy may not read."""

    shape = (2, 3)

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


NONE = "it is no array: pass one of NumPy, torch, JAX, CuPy, MLX, or with __dlpack__"


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (None, f"builtins.NoneType cannot be read: {NONE}"),
        ("text", f"builtins.str cannot be read: {NONE}"),
        ([OfTorch()], "builtins.list cannot be read: Can't call numpy() on Tensor that requires grad."),
        (Foreign(numbers("bfloat16")), f"{__name__}.Foreign cannot be read: DLPack only supports signed/unsigned "
         "integers, float and complex dtypes."),
        (np.array(["a"]), "numpy.ndarray of dtype <U1 holds no numbers"),
        (np.array([None]), "numpy.ndarray of dtype object holds no numbers"),
        (np.zeros(2, "M8[s]"), "numpy.ndarray of dtype datetime64[s] holds no numbers"),
        (np.ma.masked_array([1.0, 2.0], [True, False]),
         "numpy.ma.MaskedArray cannot be read: its mask would be lost: fill it first"),
    ],
    ids=lambda x: type(x).__name__,
)  # fmt: skip
def test_no_array(x: Any, why: str) -> None:
    with says(TypeError, f"q: {why}"):
        any_array(x, "q")
