"""The CUDA device that sides measure on: when it is done, what a side holds of it, and what it can do at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from refdiff import arrays
from refdiff.bench.side import UnavailableError

SIXTEEN_BITS = ("float16", "bfloat16")
"""Types that matrices are kept in on a device; what is computed between them stays float32 here."""

CEILINGS = {"gemv": "copy", "sgemm": "matmul", "": ""}
"""What a processor is held against → what a device is: its own copies, counted both ways, and products in the dtype."""


class Gpu(Protocol):
    """What a side needs to know of the device, whichever library it asks."""

    def wait(self) -> None:
        """Wait until all that was launched is done."""

    def held(self) -> int:
        """Bytes of the device that are in use beyond those at the start of this process."""


class CupyGpu:
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
        self._before = self._used()

    def wait(self) -> None:
        """Wait until all that was launched is done."""
        cupy = self._cupy
        cupy.cuda.get_current_stream().synchronize()

    def held(self) -> int:
        """Bytes in use now; a pool gives none back, so that they are the most that there were."""
        return self._used() - self._before

    def _used(self) -> int:
        cupy = self._cupy
        free, total = cupy.cuda.runtime.memGetInfo()
        return int(total) - int(free)

    def describe(self) -> dict[str, str]:
        """Name the card, and the versions of what drives it."""
        cupy = self._cupy
        name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"]
        version = cupy.cuda.runtime.runtimeGetVersion()
        cuda = f"{version // 1000}.{version % 1000 // 10}"
        return {"device": name.decode(), "cupy": cupy.__version__, "cuda": cuda}

    def copy(self, size: int) -> Callable[[], Any]:
        """Make what copies `size` bytes from one place of the device to another."""
        cupy = self._cupy
        source, target = cupy.zeros(size, dtype=np.uint8), cupy.empty(size, dtype=np.uint8)
        return lambda: cupy.copyto(target, source)

    def matmul(self, size: int, dtype: str) -> Callable[[], Any]:
        """Make what multiplies two matrices of `size` rows and columns, as the model's products are multiplied."""
        import ml_dtypes

        from refdiff.backends.cupy_kernels.device import Device

        cupy = self._cupy
        kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        a, b = (cupy.random.standard_normal((size, size), dtype=np.float32).astype(kind) for _ in range(2))
        if dtype not in SIXTEEN_BITS:
            return lambda: cupy.matmul(a, b)
        device = Device()
        return lambda: device.product(a, b)


class TorchGpu:
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
        self._torch = torch
        self._before = self._used()

    def wait(self) -> None:
        """Wait until all that was launched is done."""
        self._torch.cuda.synchronize()

    def held(self) -> int:
        """Bytes in use now, the pool's among them."""
        return self._used() - self._before

    def _used(self) -> int:
        free, total = self._torch.cuda.mem_get_info()
        return int(total) - int(free)
