"""The device's stand-in: the kernels' own sources, compiled as C++ with `emulated.h` before them, on NumPy arrays."""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff.backends.cupy import device
from refdiff.backends.cupy.graph import GraphError

HERE = Path(__file__).parent
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ORDERS = (0, 1, 2)
"""Threads first to last, last to first, and shuffled."""

_GUARD = 1 << 15
_SHARED = "extern __shared__ float shared[];"


@functools.cache
def _folder() -> Path:
    """Where compiled kernels lie: in a test run one folder of all its processes (tests/conftest.py)."""
    if shared := os.environ.get("REFDIFF_EMULATED"):
        Path(shared).mkdir(exist_ok=True)
        return Path(shared)
    folder = Path(tempfile.mkdtemp(prefix="refdiff-cuda-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _compile(text: str, options: list[str]) -> Path:
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("the kernels of CUDA are emulated by g++ on Linux")
    name = hashlib.blake2b(repr((text, options)).encode(), digest_size=12).hexdigest()
    library = _folder() / f"{name}.so"
    if library.exists():
        return library
    part = library.with_suffix(f".{os.getpid()}")
    # not C++17, whose <cmath> takes longer to read than a kernel to compile
    command = ["g++", "-std=c++14", "-O1", "-w", "-U_FORTIFY_SOURCE", "-fPIC", "-shared", f"-I{HERE}", *options]
    done = subprocess.run(
        [*command, "-x", "c++", "-", "-o", part], input=text, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    part.replace(library)
    return library


@functools.cache
def _scheduler() -> ctypes.CDLL:
    """Compile what runs threads, and let every kernel find it."""
    return ctypes.CDLL(str(_compile((HERE / "emulated.cpp").read_text(), [])), mode=ctypes.RTLD_GLOBAL)


@functools.cache
def compiled(text: str, defines: tuple[tuple[str, Any], ...]) -> ctypes.CDLL:
    """Compile a source for the CPU and load it."""
    _scheduler()
    kernels = re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(", text)
    text = text.replace(_SHARED, "float* const shared = reinterpret_cast<float*>(emulated::memory);")
    text = "\n".join(['#include "emulated.h"', text, *(f"EMULATE({kernel})" for kernel in kernels)])
    return ctypes.CDLL(str(_compile(text, [f"-D{name}={value}" for name, value in defines])))


class EmulatedDevice:
    """Runs kernels as `refdiff.backends.cupy.device.Device` does, and fails where one reads or writes astray.

    Args:
        shared: the bytes of shared memory that a block may have.
        multiprocessors: how many the device claims to have.
        capability: 75, 80, …: whether it claims to have tensor cores.
        order: in which order threads run.
        change: makes of a source another one, to plant a mistake.
    """

    def __init__(
        self,
        shared: int = 227 * 1024,
        multiprocessors: int = 4,
        capability: int = 0,
        order: int = 0,
        change: Callable[[str], str] = lambda text: text,
    ) -> None:
        self.shared, self.multiprocessors, self.order, self.change = shared, multiprocessors, order, change
        self.capability = capability
        self.launched: list[str] = []
        self.trace: list[Any] = []
        self.multiplied: list[Any] = []

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
        text = device.source(file)
        library = compiled(self.change(text), tuple(defines.items()))
        self.launched.append(kernel)
        self.trace.append((kernel, defines, grid, threads, shared, [_form(x) for x in arguments]))
        assert all(n > 0 for n in grid)
        assert max(grid[1:]) < 2**16
        assert threads <= 1024
        assert shared <= self.shared
        # with as many registers as a thread may have, a block has no more than 256
        assert threads <= 256 or re.search(rf"__launch_bounds__\([^)]*\) {kernel}\(", text), "more threads than it says"
        given = [_Given(x) for x in arguments]
        pointers = (ctypes.c_void_p * len(given))(*(x.address for x in given))
        function = getattr(library, f"emulate_{kernel}")
        function.restype = ctypes.c_char_p
        three = ctypes.c_uint * 3
        problem = function(pointers, three(*grid), three(threads, 1, 1), ctypes.c_uint(shared), self.order)
        assert problem is None, f"{kernel}: {problem.decode()}"
        for i, x in enumerate(given):
            x.take_back(f"{kernel}: argument {i}")

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Memory full of NaN, so that a number that no thread wrote shows."""
        x = np.empty(shape, dtype).view(OnDevice)
        x.reshape(-1).view(np.uint8)[:] = 0xFF
        return x

    tensor_cores = device.Device.tensor_cores

    def address(self, x: Any) -> int:
        return int(x.ctypes.data)

    def fill(self, x: Any, numbers: Any) -> None:
        x[...] = numbers

    def recorder(self) -> EmulatedRecorder:
        return EmulatedRecorder(self)

    def product(self, x: Any, weight: Any) -> Any:
        if OnDevice.refusing:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        assert x.ndim == 2
        self.multiplied.append((x, weight))
        return (x.astype(np.float64) @ weight.astype(np.float64).T).astype(np.float32)


class OnDevice(np.ndarray[Any, Any]):
    """An array whose numbers the host must not ask for while `refusing`: it would wait for the device."""

    refusing = False

    def _ask(self, name: str, *args: Any) -> Any:
        assert not OnDevice.refusing, f"{name} of an array of the device, which is being recorded"
        return getattr(super(), name)(*args)

    def __bool__(self) -> bool:
        return bool(self._ask("__bool__"))

    def __float__(self) -> float:
        return float(self._ask("__float__"))

    def __int__(self) -> int:
        return int(self._ask("__int__"))

    def __index__(self) -> int:
        return int(self._ask("__index__"))

    def item(self, *args: Any) -> Any:
        return self._ask("item", *args)

    def tolist(self) -> Any:
        return self._ask("tolist")


class EmulatedRecorder:
    """Records what a device launches, and holds every replay to it: kernels, grids, shapes, numbers and structs."""

    def __init__(self, of: EmulatedDevice) -> None:
        self._device = of

    def record(self, work: Callable[[], Any]) -> EmulatedGraph:
        work()
        try:
            return EmulatedGraph(self._device, work)
        except NotImplementedError as error:
            raise GraphError(f"NotImplementedError: {error}") from error


class EmulatedGraph:
    """Does the work again in place of launching a graph, and fails where a graph would not have done the same."""

    def __init__(self, of: EmulatedDevice, work: Callable[[], Any]) -> None:
        self._device, self._work, self.replays = of, work, 0
        self._recorded, self._result = self._run()

    def _run(self) -> tuple[list[Any], Any]:
        self._device.trace = []
        OnDevice.refusing = True
        try:
            result = self._work()
        finally:
            OnDevice.refusing = False
        return self._device.trace, result

    def replay(self) -> Any:
        trace, result = self._run()
        assert trace == self._recorded
        self._result[...] = result
        self.replays += 1
        return self._result


def _form(x: Any) -> Any:
    """What a graph keeps of an argument: numbers and structs as they are, of arrays how they lie."""
    if isinstance(x, np.ndarray) and x.dtype.names is None:
        return x.shape, x.strides, x.dtype.name
    return None if x is None else np.asarray(x).tobytes()


def _begin(x: np.ndarray[Any, Any]) -> int:
    """Where the memory begins that an array is a view of."""
    while isinstance(x.base, np.ndarray):
        x = x.base
    return int(np.lib.array_utils.byte_bounds(x)[0])


class _Given:
    """An argument in memory of its own: arrays between two guards of NaN, which must be there afterwards.

    An array starts at a multiple of 64 bytes, as memory of a device does, and a view as far from there as in NumPy.
    """

    def __init__(self, x: Any) -> None:
        self.array = x if isinstance(x, np.ndarray) and x.dtype.names is None else None
        if x is None:
            self.keep: Any = ctypes.c_void_p(0)
            self.address = ctypes.addressof(self.keep)
            return
        if self.array is None:
            assert isinstance(x, np.generic | np.ndarray), f"{x!r} is not typed"
            self.keep = np.array(x)
            self.address = self.keep.ctypes.data
            return
        low, high = np.lib.array_utils.byte_bounds(self.array)
        self.size = high - low
        self.buffer = np.full(self.size + 2 * _GUARD + 64, 0xFF, np.uint8)
        self.start = _GUARD + (low - _begin(self.array) - self.buffer.ctypes.data - _GUARD) % 64
        source = (ctypes.c_ubyte * self.size).from_address(low)
        self.source = np.frombuffer(source, np.uint8)
        self.inside = self.buffer[self.start : self.start + self.size]
        self.inside[:] = self.source
        self.keep = ctypes.c_void_p(self.inside.ctypes.data + (self.array.ctypes.data - low))
        self.address = ctypes.addressof(self.keep)

    def take_back(self, name: str) -> None:
        if self.array is None:
            return
        assert (self.buffer[: self.start] == 0xFF).all(), f"{name}: written before its begin"
        assert (self.buffer[self.start + self.size :] == 0xFF).all(), f"{name}: written past its end"
        if not np.array_equal(self.inside, self.source):
            assert self.array.flags.writeable, f"{name}: an input was written to"
            self.source[:] = self.inside
