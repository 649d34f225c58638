"""What is measured of memory: how much a process holds, and how much of a CUDA device is in use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from refdiff import arrays

SIXTEEN_BITS = ("float16", "bfloat16")
"""Types that matrices are kept in on a device; what is computed between them stays float32 here."""


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


@dataclass
class Gpu:
    """A CUDA device: `wait` until it is done, and how many of its bytes are in use.

    A library's pool gives no memory back, so that what is in use beyond that at the start is the most that there was.
    """

    wait: Callable[[], None]
    free_and_total: Callable[[], tuple[int, int]]

    def __post_init__(self) -> None:
        self._at_start = self._used()

    def held(self) -> int:
        """Return the bytes in use since the start."""
        return self._used() - self._at_start

    def _used(self) -> int:
        free, total = self.free_and_total()
        return int(total) - int(free)

    @classmethod
    def of_cupy(cls) -> Self:
        """Return the device as CuPy sees it; raise `UnavailableError` where it does not answer."""
        try:
            arrays.backend("cupy")
        except RuntimeError as error:
            raise UnavailableError(str(error)) from None
        import cupy

        return cls(lambda: cupy.cuda.get_current_stream().synchronize(), cupy.cuda.runtime.memGetInfo)

    @classmethod
    def of_torch(cls, torch: Any) -> Self:
        """Return the device as torch sees it; raise `UnavailableError` where it sees none."""
        if not torch.cuda.is_available():
            raise UnavailableError(
                "--against transformers with --backend cupy needs a torch that sees the CUDA device: install one "
                "built for its CUDA, from pytorch.org"
            )
        return cls(torch.cuda.synchronize, torch.cuda.mem_get_info)
