"""What sides are measured on: how much memory a process holds, and the CUDA device, as CuPy and as torch see it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from refdiff import arrays

SIXTEEN_BITS = ("float16", "bfloat16")
"""Types that matrices are kept in on a device; what is computed between them stays float32 here."""

CEILINGS = {"gemv": "copy", "sgemm": "matmul", "": ""}
"""Ceiling of a processor → of a device: its own copies, counted both ways, and products in the dtype."""


class UnavailableError(RuntimeError):
    """A side that cannot be measured here; the message says what to install."""


def peak_memory() -> int | None:
    """Return the most memory that this process has held, in bytes, or None where the system does not say."""
    high_water = _status("VmHWM")
    if high_water is not None:  # getrusage's maximum is inherited from the process that started this one
        return high_water
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def own_memory() -> int | None:
    """Return the bytes that this process holds now, without mapped files, or None where the system does not say."""
    return _status("RssAnon")


def _status(name: str) -> int | None:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


class Gpu:
    """A CUDA device: when it is done, and how many of its bytes are in use beyond those at the start.

    A library's pool gives no memory back, so that what is in use is the most that there was.
    """

    def __init__(self, wait: Callable[[], None], free_and_total: Callable[[], tuple[int, int]]) -> None:
        self.wait, self._free_and_total = wait, free_and_total
        self._before = self._used()

    def held(self) -> int:
        """Return the bytes in use since the start."""
        return self._used() - self._before

    def _used(self) -> int:
        free, total = self._free_and_total()
        return int(total) - int(free)


class CupyGpu(Gpu):
    """The device as CuPy sees it.

    Raises:
        UnavailableError: it does not answer.
    """

    def __init__(self) -> None:
        try:
            arrays.backend("cupy")
        except RuntimeError as error:
            raise UnavailableError(str(error)) from None
        import cupy

        self._cupy = cupy
        super().__init__(lambda: cupy.cuda.get_current_stream().synchronize(), cupy.cuda.runtime.memGetInfo)

    def describe(self) -> dict[str, str]:
        """Name the GPU, and the versions of what drives it."""
        cupy = self._cupy
        name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"]
        version = cupy.cuda.runtime.runtimeGetVersion()
        cuda = f"{version // 1000}.{version % 1000 // 10}"
        return {"device": name.decode(), "cupy": cupy.__version__, "cuda": cuda}

    def copy(self, size: int) -> Callable[[], Any]:
        """Return a function that copies `size` bytes within the device."""
        cupy = self._cupy
        source, target = cupy.zeros(size, dtype=np.uint8), cupy.empty(size, dtype=np.uint8)
        return lambda: cupy.copyto(target, source)

    def matmul(self, size: int, dtype: str) -> Callable[[], Any]:
        """Return a function that multiplies two matrices of `size` rows and columns as the model's are multiplied."""
        import ml_dtypes

        from refdiff.backends.cupy.device import Device

        cupy = self._cupy
        kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        a, b = (cupy.random.standard_normal((size, size), dtype=np.float32).astype(kind) for _ in range(2))
        if dtype not in SIXTEEN_BITS:
            return lambda: cupy.matmul(a, b)
        device = Device()
        return lambda: device.product(a, b)


class TorchGpu(Gpu):
    """The device as torch sees it.

    Raises:
        UnavailableError: it sees none.
    """

    def __init__(self, torch: Any) -> None:
        if not torch.cuda.is_available():
            raise UnavailableError(
                "--against transformers with --backend cupy needs a torch that sees the CUDA device: install one "
                "built for its CUDA, from pytorch.org"
            )
        super().__init__(torch.cuda.synchronize, torch.cuda.mem_get_info)
