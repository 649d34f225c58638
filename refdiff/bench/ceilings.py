"""What this machine can do at most: the ceilings that times are held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.bench.gpu import CupyGpu
from refdiff.bench.side import CACHES, Side

ON_A_DEVICE = 30
"""Of so many passes the fastest counts on a device, which takes a while to reach its clock."""


class CeilingSide(Side):
    """NumPy's BLAS on all its threads, or a CUDA device, on operands of the best shape."""

    asked = (*Side.asked, "gemv", "sgemm", "copy", "matmul")

    def prepare(self) -> dict[str, Any]:
        """Ask for the device, where it is that whose ceilings are wanted."""
        if self.settings.backend == "cupy":
            self.gpu = CupyGpu()
        return {}

    def gemv(self, least: float = 0.0, rows: int = CACHES // 4 // 8192, columns: int = 8192) -> dict[str, Any]:
        """Bytes of a weight that matrix-vector products read in a second, for `least` seconds."""
        if not hasattr(self, "_matrix"):
            self._matrix = np.full((rows, columns), 0.5, np.float32)
            self._vector, self._product = np.ones(columns, np.float32), np.empty(rows, np.float32)
        return {"rate": self._matrix.nbytes / self._sustained(self._matrix, self._vector, self._product, least)}

    def sgemm(self, least: float = 0.0, size: int = 2048) -> dict[str, Any]:
        """Multiplications and additions that large products do in a second, for `least` seconds."""
        if not hasattr(self, "_square"):
            self._square = np.random.default_rng(0).standard_normal((size, size), np.float32)
            self._result = np.empty((size, size), np.float32)
        return {"rate": 2 * size**3 / self._sustained(self._square, self._square, self._result, least)}

    def copy(self, size: int = CACHES, times: int = 4) -> dict[str, Any]:
        """Bytes that copies within the device read and write in a second, `times` copies with one start and one end."""
        if not hasattr(self, "_copy"):
            self._copy = self.gpu.copy(size)
        return {"rate": 2 * size * times / self._fastest_of(lambda: [self._copy() for _ in range(times)])}

    def matmul(self, size: int = 8192) -> dict[str, Any]:
        """Multiplications and additions that the device does in a second in a large product, in the sides' dtype."""
        if not hasattr(self, "_matmul"):
            self._matmul = self.gpu.matmul(size, self.settings.dtype)
        return {"rate": 2 * size**3 / self._fastest_of(self._matmul)}

    def _sustained(self, a: Any, b: Any, out: Any, least: float) -> float:
        """Seconds that one product takes, after one that wakes the threads and is not counted."""
        np.matmul(a, b, out=out)
        return self.repeated(lambda: np.matmul(a, b, out=out), least)[0]

    def _fastest_of(self, work: Callable[[], Any]) -> float:
        return min(self.timed(work)[0] for _ in range(ON_A_DEVICE))
