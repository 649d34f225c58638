"""The CUDA device, and what the kernels of one model share.

Sources are compiled by NVRTC through CuPy, launches go to its current stream, and products of many rows to cuBLAS.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.arrays import Array
from refdiff.backends.cupy.graph import GraphRecorder
from refdiff.backends.cupy.tuning import Tuning

SOURCES = Path(__file__).parent / "cuda"

OPTIONS = ("--std=c++17",)
"""Compiler options of every source. Without fast math, NaN and infinities propagate as in the layers.

CuPy adds -ftz=true: subnormal float32 numbers, below 1.2e-38, are 0.
"""

DEFAULT_SHARED = 48 * 1024
"""Bytes of shared memory that a block has unless it requests more."""

SIXTEEN_BITS = ("float16", "bfloat16")

NUMBERS = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}
"""The name of a dtype, and its name in the sources."""

DATA_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
"""cudaDataType, of which CuPy 13 does not name bfloat16."""


def contiguous(x: Array) -> Array:
    """Return an array in C order without gaps: itself, or a copy."""
    return x if x.flags.c_contiguous else x.copy(order="C")


@functools.cache
def source(name: str) -> str:
    """Return the text of a source, with each included file in the place of its first #include."""
    there: set[str] = set()

    def whole(name: str) -> str:
        if name in there:
            return ""
        there.add(name)
        text = (SOURCES / name).read_text(encoding="utf-8")
        return re.sub(r'^#include "(.+)"$', lambda include: whole(include[1]), text, flags=re.MULTILINE)

    return whole(name)


def options(defines: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the compiler's options for a source with these values in it."""
    return (*OPTIONS, *(f"-D{name}={value}" for name, value in defines.items()))


class Device:
    """The current CUDA device.

    Attributes:
        shared: the bytes of shared memory that a block may have.
        capability: 75, 80, …: its instructions are those of sm_75, sm_80, …
        multiprocessors: how many it has.
    """

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self._number = int(cupy.cuda.Device())
        attributes = cupy.cuda.Device().attributes
        self.shared = int(attributes["MaxSharedMemoryPerBlockOptin"])
        self.capability = 10 * int(attributes["ComputeCapabilityMajor"]) + int(attributes["ComputeCapabilityMinor"])
        self.multiprocessors = int(attributes["MultiProcessorCount"])
        self._kernels: dict[Any, Any] = {}

    def launch(
        self,
        file: str,
        kernel: str,
        defines: Mapping[str, Any],
        grid: tuple[int, int, int],
        threads: int,
        arguments: Sequence[Any],
        shared: int = 0,
    ) -> None:
        """Start a kernel, compiled at its first use; CuPy keeps what was compiled on the disk.

        Arguments are arrays of the device, None for a null pointer, NumPy numbers, or NumPy records for structs.

        Raises:
            RuntimeError: the current device of this thread is another, to which the arrays mean nothing.
        """
        self._check()
        key = (file, kernel, *defines.items())
        function = self._kernels.get(key)
        if function is None:
            cupy = self._cupy
            module = cupy.RawModule(code=source(file), options=options(defines), backend="nvrtc")
            function = self._kernels[key] = module.get_function(kernel)
        if shared > DEFAULT_SHARED and function.max_dynamic_shared_size_bytes < shared:
            function.max_dynamic_shared_size_bytes = shared
        # CuPy before 14 passes nothing at all for None, and the kernel finds whatever lies there
        given = tuple(np.int64(0) if x is None else x for x in arguments)
        function(grid, (threads, 1, 1), given, shared_mem=shared)

    def _check(self) -> None:
        current = int(self._cupy.cuda.Device())
        if current != self._number:
            raise RuntimeError(
                f"the model is on CUDA device {self._number}, but this thread's current one is {current}, and each "
                f"thread has its own: call cupy.cuda.Device({self._number}).use() in it before"
            )

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an uninitialised array."""
        cupy = self._cupy
        return cupy.empty(shape, dtype=dtype)

    def tensor_cores(self, number: str | None) -> str | None:
        """Return `number`, a type of the sources, where tensor cores multiply it as in mma.cuh, else None."""
        known = {"float16": 75, "bfloat16": 80}
        return number if number is not None and self.capability >= known.get(number, 1000) else None

    def address(self, x: Any) -> int:
        """Return the address of an array, for a struct that points at it."""
        return int(x.data.ptr)

    def fill(self, x: Any, numbers: Any) -> None:
        """Copy numbers of the host into an array, in the order of the current stream."""
        x.set(numbers)

    def recorder(self) -> GraphRecorder:
        """Return a recorder of launches on this device."""
        return GraphRecorder()

    def product(self, x: Any, weight: Any) -> Any:
        """Multiply x (N, I) and weight (O, I), both of one type, as x Wᵀ (N, O) in float32, summed in float32.

        cuBLAS counts columns first, and so takes the transposes: yᵀ = W xᵀ. In float32 CuPy asks it so for two axes;
        of x with more it would first copy Wᵀ.
        """
        cupy = self._cupy
        self._check()
        if weight.dtype == np.float32:
            return x @ weight.T
        kind = DATA_TYPES[weight.dtype.name]
        (N, inputs), outputs = x.shape, weight.shape[0]
        y = cupy.empty((N, outputs), dtype=np.float32)
        one, zero = np.ones((), np.float32), np.zeros((), np.float32)
        cupy.cuda.cublas.gemmEx(
            cupy.cuda.Device().cublas_handle,
            cupy.cuda.cublas.CUBLAS_OP_T, cupy.cuda.cublas.CUBLAS_OP_N, outputs, N, inputs,
            one.ctypes.data, weight.data.ptr, kind, inputs, x.data.ptr, kind, inputs,
            zero.ctypes.data, y.data.ptr, DATA_TYPES["float32"], outputs,
            cupy.cuda.cublas.CUBLAS_COMPUTE_32F, cupy.cuda.cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip
        return y


class Runtime:
    """The device, and what changes while a decoding step is recorded; every kernel takes it as its first argument.

    Args:
        device: what compiles and launches; None is the current CUDA device.
        rounded: the 16-bit type of the model's matrices, if it has one, to which tensor cores round float32.

    Attributes:
        length: (1,) int64 on the device, the number of tokens in the cache; None where the shapes say it.
        lambdas: each λ that was computed since a recording began, by its vectors; None outside of one.
    """

    def __init__(self, device: Any = None, rounded: str | None = None, tuning: Tuning | None = None) -> None:
        self.device = device or Device()
        self.rounded, self.tuning = rounded, tuning or Tuning()
        self.length: Array | None = None
        self.lambdas: dict[Any, Array] | None = None

    @contextlib.contextmanager
    def counted_by(self, length: Array) -> Iterator[None]:
        """Let the device count the tokens of the cache, in `length` (1,) int64, where the shapes say how many fit."""
        self.length = length
        try:
            yield
        finally:
            self.length = None

    def record(self, work: Callable[[], Any]) -> Any:
        """Record work by a `GraphRecorder`. λ depends on the weights alone: it is computed once and not recorded."""
        lambdas: dict[Any, Array] = {}

        def with_lambdas() -> Any:
            self.lambdas = lambdas
            try:
                return work()
            finally:
                self.lambdas = None

        return self.device.recorder().record(with_lambdas)
