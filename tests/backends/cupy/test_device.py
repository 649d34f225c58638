"""Sources and options, and what the device is asked for, with a stand-in for CuPy."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any

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


class FakeFunction:
    def __init__(self) -> None:
        self.max_dynamic_shared_size_bytes = 48 * 1024
        self.calls: list[Any] = []

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        self.calls.append((grid, block, args, shared_mem))


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A CuPy that compiles nothing and remembers what it was asked for."""
    compiled: list[Any] = []
    products: list[Any] = []
    functions: dict[str, FakeFunction] = {}

    class RawModule:
        def __init__(self, *, code: str, options: tuple[str, ...], backend: str) -> None:
            compiled.append((code, options, backend))

        def get_function(self, name: str) -> FakeFunction:
            return functions.setdefault(name, FakeFunction())

    class There(SimpleNamespace):
        number = 0  # CuPy's int of a device

        def __int__(self) -> int:
            return self.number

    there = There(
        attributes={
            "MaxSharedMemoryPerBlockOptin": 232448,
            "MultiProcessorCount": 132,
            "ComputeCapabilityMajor": 9,
            "ComputeCapabilityMinor": 0,
        }
    )
    cublas = SimpleNamespace(
        gemmEx=lambda *args: products.append(args), CUBLAS_OP_T=1, CUBLAS_OP_N=0, CUBLAS_COMPUTE_32F=68,
        CUBLAS_GEMM_DEFAULT=-1,
    )  # fmt: skip
    there.cublas_handle = 7
    fake = SimpleNamespace(
        RawModule=RawModule, empty=lambda shape, dtype: Pointed(np.zeros(shape, dtype)),
        cuda=SimpleNamespace(Device=lambda: there, cublas=cublas),
        compiled=compiled, functions=functions, products=products,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


class Pointed:
    """An array that has its address as CuPy's have."""

    def __init__(self, x: Any) -> None:
        self.x, self.shape, self.dtype, self.data = x, x.shape, x.dtype, SimpleNamespace(ptr=x.ctypes.data)


def test_a_kernel_is_compiled_once_for_each_set_of_values(cupy: Any) -> None:
    there = device.Device()
    assert (there.shared, there.multiprocessors, there.capability) == (232448, 132, 90)
    for _ in range(2):
        there.launch("gated.cu", "gated", {"NUMBER": "float"}, (5, 1, 1), 256, [1, 2])
    assert cupy.compiled == [(device.source("gated.cu"), device.options({"NUMBER": "float"}), "nvrtc")]
    assert cupy.functions["gated"].calls == [((5, 1, 1), (256, 1, 1), (1, 2), 0)] * 2
    there.launch("gated.cu", "gated", {"NUMBER": "float16"}, (5, 1, 1), 256, [1, 2])
    assert len(cupy.compiled) == 2


def test_more_shared_memory_is_asked_for_only_where_it_is_needed(cupy: Any) -> None:
    there = device.Device()
    for shared, allowed in ((1000, 48 * 1024), (100_000, 100_000), (60_000, 100_000)):
        there.launch("gated.cu", "gated", {"NUMBER": "float"}, (1, 1, 1), 32, [], shared)
        assert cupy.functions["gated"].max_dynamic_shared_size_bytes == allowed
        assert cupy.functions["gated"].calls[-1][-1] == shared


def test_another_device_than_this_threads_is_refused_before_anything_is_read_there(cupy: Any) -> None:
    there = device.Device()
    cupy.cuda.Device().number = 1
    with pytest.raises(RuntimeError, match=r"on CUDA device 0, but this thread's current one is 1.*Device\(0\)\.use"):
        there.launch("gated.cu", "gated", {"NUMBER": "float"}, (1, 1, 1), 32, [])
    with pytest.raises(RuntimeError, match="current one is 1"):
        there.product(np.ones((5, 11), np.float32), np.ones((13, 11), np.float32))
    assert not cupy.functions


@pytest.mark.parametrize(("dtype", "kind"), [(np.float16, 2), (ml_dtypes.bfloat16, 14)])
def test_a_product_is_asked_of_cublas_columns_first(cupy: Any, dtype: Any, kind: int) -> None:
    x, weight = Pointed(np.ones((5, 11), dtype)), Pointed(np.ones((13, 11), dtype))
    y = device.Device().product(x, weight)
    assert y.shape == (5, 13)
    assert y.dtype == np.float32
    handle, ta, tb, m, n, k, one, a, a_kind, lda, b, b_kind, ldb, zero, c, c_kind, ldc, compute, _ = cupy.products[0]
    assert (handle, ta, tb, m, n, k, a_kind, lda, b_kind, ldb) == (7, 1, 0, 13, 5, 11, kind, 11, kind, 11)
    assert (a, b, c, c_kind, ldc, compute) == (weight.data.ptr, x.data.ptr, y.data.ptr, 0, 13, 68)
    assert one != zero
