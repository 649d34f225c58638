"""What this machine can do at most: the ceilings that times are held against."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.bench.side import CACHES, Side

REPEATS = 3
"""Of so many the fastest counts: a ceiling is what the machine can do."""


class CeilingSide(Side):
    """NumPy's BLAS on all its threads, on operands of the best shape."""

    asked = (*Side.asked, "gemv", "sgemm")

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

    def _fastest(self, a: Any, b: Any, out: Any) -> float:
        return min(self.timed(lambda: np.matmul(a, b, out=out))[0] for _ in range(REPEATS))
