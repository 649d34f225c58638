"""What this machine can do at most: the ceilings that times are held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.bench.gpu import CupyGpu
from refdiff.bench.side import CACHES, Side

REPEATS, ON_A_DEVICE = 3, 30
"""Of so many the fastest counts: a ceiling is what the machine can do. A device takes a while to reach its clock."""


class CeilingSide(Side):
    """NumPy's BLAS on all its threads, or a CUDA device, on operands of the best shape."""

    asked = (*Side.asked, "gemv", "sgemm", "copy", "matmul")

    def prepare(self) -> dict[str, Any]:
        """Ask for the device, where it is that whose ceilings are wanted."""
        if self.settings.backend == "cupy":
            self.gpu = CupyGpu()
        return {}

    def gemv(self, rows: int = CACHES // 4 // 8192, columns: int = 8192) -> dict[str, Any]:
        """Bytes of a weight that a matrix-vector product reads in a second."""
        if not hasattr(self, "_matrix"):
            self._matrix = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
            self._vector, self._product = np.ones(columns, np.float32), np.empty(rows, np.float32)
        return {"rate": self._matrix.nbytes / self._fastest(self._matrix, self._vector, self._product)}

    def sgemm(self, size: int = 2048) -> dict[str, Any]:
        """Multiplications and additions that a large product does in a second."""
        if not hasattr(self, "_square"):
            self._square = np.random.default_rng(0).standard_normal((size, size), np.float32)
            self._result = np.empty((size, size), np.float32)
        return {"rate": 2 * size**3 / self._fastest(self._square, self._square, self._result)}

    def copy(self, size: int = 4 * CACHES) -> dict[str, Any]:
        """Bytes that copies within the device read and write in a second."""
        if not hasattr(self, "_copy"):
            self._copy = self.gpu.copy(size)
        return {"rate": 2 * size / self._fastest_of(self._copy)}

    def matmul(self, size: int = 8192) -> dict[str, Any]:
        """Multiplications and additions that the device does in a second in a large product, in the sides' dtype."""
        if not hasattr(self, "_matmul"):
            self._matmul = self.gpu.matmul(size, self.settings.dtype)
        return {"rate": 2 * size**3 / self._fastest_of(self._matmul)}

    def _fastest(self, a: Any, b: Any, out: Any) -> float:
        return self._fastest_of(lambda: np.matmul(a, b, out=out))

    def _fastest_of(self, work: Callable[[], Any]) -> float:
        return min(self.timed(work)[0] for _ in range(REPEATS if self.gpu is None else ON_A_DEVICE))
