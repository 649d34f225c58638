"""Sources and options, and what the device is asked for, with a stand-in for CuPy."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, call

import ml_dtypes
import numpy as np
import pytest

from refdiff.backends.cupy import attention, device, rope


def declared(file: str, name: str, **kinds: np.dtype[np.void]) -> np.dtype[np.void]:
    """Read a struct of a source: the record that C++ lays out alike. `kinds` are the structs that it has inside."""
    body = re.search(rf"struct {name} {{(.*?)\n}};", (device.SOURCES / file).read_text(), re.DOTALL)
    assert body is not None
    known = {"int64": np.int64, "const int64*": np.int64, "int": np.int32, "float": np.float32, **kinds}
    lines = re.findall(r"^\s+(const \w+\*|\w+) ([\w, ]+);", body[1], re.MULTILINE)
    fields = [(field.strip(), known[kind]) for kind, names in lines for field in names.split(",")]
    return np.dtype(fields, align=True)


def test_records_are_the_structs_of_the_sources() -> None:
    """The fields in order, and no padding that C would put between them."""
    axes, steps = declared("attention_rows.cuh", "Axes"), declared("rope.cu", "Steps")
    shape, append = declared("attention_rows.cuh", "Shape", Axes=axes), declared("rope.cu", "Append", Steps=steps)
    for ours, theirs in ((attention.AXES, axes), (attention.SHAPE, shape), (rope.STEPS, steps), (rope.APPEND, append)):
        assert ours.fields == theirs.fields
        assert ours.itemsize == theirs.itemsize


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A CuPy that compiles nothing and remembers what it was asked for."""
    fake = MagicMock()
    there = fake.cuda.Device.return_value
    there.__int__.return_value = 0
    there.attributes = {
        "MaxSharedMemoryPerBlockOptin": 232448, "MultiProcessorCount": 132, "ComputeCapabilityMajor": 9,
        "ComputeCapabilityMinor": 0,
    }  # fmt: skip
    fake.RawModule.return_value.get_function.return_value.max_dynamic_shared_size_bytes = 48 * 1024
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def gated(there: device.Device, number: str = "float", shared: int = 0) -> None:
    there.launch("gated.cu", "gated", {"NUMBER": number}, (5, 1, 1), 256, [1, 2], shared)


def test_a_kernel_is_compiled_once_for_each_set_of_values(cupy: MagicMock) -> None:
    there = device.Device()
    assert (there.shared, there.multiprocessors, there.capability) == (232448, 132, 90)
    for _ in range(2):
        gated(there)
    code, options = device.source("gated.cu"), device.options({"NUMBER": "float"})
    cupy.RawModule.assert_called_once_with(code=code, options=options, backend="nvrtc")
    cupy.RawModule().get_function.assert_called_once_with("gated")
    launched = cupy.RawModule().get_function.return_value.call_args_list
    assert launched == [call((5, 1, 1), (256, 1, 1), (1, 2), shared_mem=0)] * 2
    gated(there, "float16")
    assert cupy.RawModule.call_args.kwargs["options"] == device.options({"NUMBER": "float16"})


def test_more_shared_memory_is_asked_for_only_where_it_is_needed(cupy: MagicMock) -> None:
    there, function = device.Device(), cupy.RawModule().get_function.return_value
    for shared, allowed in ((1000, 48 * 1024), (100_000, 100_000), (60_000, 100_000)):
        gated(there, shared=shared)
        assert function.max_dynamic_shared_size_bytes == allowed
        assert function.call_args.kwargs == {"shared_mem": shared}


def test_another_device_than_this_threads_is_refused_before_anything_is_read_there(cupy: MagicMock) -> None:
    there = device.Device()
    cupy.cuda.Device().__int__.return_value = 1
    with pytest.raises(RuntimeError, match=r"on CUDA device 0, but this thread's current one is 1.*Device\(0\)\.use"):
        gated(there)
    with pytest.raises(RuntimeError, match="current one is 1"):
        there.product(np.ones((5, 11), np.float32), np.ones((13, 11), np.float32))
    cupy.RawModule.assert_not_called()


class Pointed:
    """An array that has its address as CuPy's have."""

    def __init__(self, x: Any) -> None:
        self.x, self.shape, self.dtype, self.data = x, x.shape, x.dtype, SimpleNamespace(ptr=x.ctypes.data)


@pytest.mark.parametrize(("dtype", "kind"), [(np.float16, 2), (ml_dtypes.bfloat16, 14)])
def test_a_product_is_asked_of_cublas_columns_first(cupy: MagicMock, dtype: Any, kind: int) -> None:
    cupy.empty = lambda shape, dtype: Pointed(np.zeros(shape, dtype))
    x, weight, blas = Pointed(np.ones((5, 11), dtype)), Pointed(np.ones((13, 11), dtype)), cupy.cuda.cublas
    y = device.Device().product(x, weight)
    assert y.shape == (5, 13)
    assert y.dtype == np.float32
    handle, ta, tb, m, n, k, one, a, a_kind, lda, b, b_kind, ldb, zero, c, c_kind, ldc, compute, _ = (
        blas.gemmEx.call_args.args
    )
    assert (handle, ta, tb) == (cupy.cuda.Device().cublas_handle, blas.CUBLAS_OP_T, blas.CUBLAS_OP_N)
    assert (m, n, k, a_kind, lda, b_kind, ldb) == (13, 5, 11, kind, 11, kind, 11)
    assert (a, b, c, c_kind, ldc) == (weight.data.ptr, x.data.ptr, y.data.ptr, 0, 13)
    assert compute == blas.CUBLAS_COMPUTE_32F
    assert one != zero
