"""The ceilings of this machine, with which times are compared.

`gemv` is what NumPy's BLAS reaches, by which shares are given. It is not the most that a processor reads: rows that
Python's threads multiply one by one may come faster. So `read` is the best of several ways, among them a sum of bits,
which does nothing but read; no side can be above that, and one that is was not measured as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.backends.numpy.thread_pool import Workers
from refdiff.bench.device import CupyGpu
from refdiff.bench.side import CACHES, FloatArray, Side

ON_A_DEVICE = 30
"""Of so many passes the fastest counts on a device, which takes a while to reach its clock."""

Way = Callable[[FloatArray, FloatArray, FloatArray], Any]
"""Reads some rows of a matrix; one that multiplies them by the vector writes the product."""


def _bits(rows: FloatArray, vector: FloatArray, out: FloatArray) -> None:
    """Sum up a matrix as whole numbers of 64 bits."""
    np.add.reduce(rows.view(np.uint64), axis=None)


def _by_rows(rows: FloatArray, vector: FloatArray, out: FloatArray) -> None:
    """Multiply row by row."""
    np.vecdot(rows, vector, out=out)


def _in_stacks(size: int) -> Way:
    """Multiply so many rows at a time, as they divide the rows; np.matvec only came with NumPy 2.2."""

    def way(rows: FloatArray, vector: FloatArray, out: FloatArray) -> None:
        np.matvec(rows.reshape(-1, size, rows.shape[1]), vector, out=out.reshape(-1, size))

    return way


WAYS: tuple[Way, ...] = (_bits, _by_rows, *(_in_stacks(size) for size in (4, 8) if hasattr(np, "matvec")))
"""How a part of a matrix is read, or multiplied by a vector."""


class CeilingSide(Side):
    """NumPy's BLAS on all its threads, or a CUDA device, on operands of the best shape."""

    requests = (*Side.requests, "gemv", "read", "sgemm", "copy", "matmul")

    def prepare(self) -> dict[str, Any]:
        """Request for the device, where it is that whose ceilings are wanted."""
        if self.settings.backend == "cupy":
            self.gpu = CupyGpu()
        return {}

    def gemv(self, least: float = 0.0, rows: int = CACHES // 4 // 8192, columns: int = 8192) -> dict[str, Any]:
        """Bytes of a weight that matrix-vector products read in a second, for `least` seconds."""
        self._hold(rows, columns)
        return {"rate": self._matrix.nbytes / self._sustained(self._matrix, self._vector, self._product, least)}

    def read(self, least: float = 0.0, rows: int = CACHES // 4 // 8192, columns: int = 8192) -> dict[str, Any]:
        """Bytes of the same weight that the fastest of `WAYS` reads in a second, all of them for `least` seconds.

        Each thread of Python's reads its part, and BLAS has one.
        """
        self._hold(rows, columns)
        workers = self._workers = getattr(self, "_workers", None) or Workers(self.settings.threads)

        def whole(way: Way) -> None:
            def part(start: int, stop: int) -> None:
                way(self._matrix[start:stop], self._vector, self._product[start:stop])

            workers.split(rows, part, align=8)

        with workers.running():
            whole(WAYS[0])  # wakes the threads
            seconds = [self.repeated(functools.partial(whole, way), least / len(WAYS))[0] for way in WAYS]
        return {"rate": self._matrix.nbytes / min(seconds)}

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

    def _hold(self, rows: int, columns: int) -> None:
        if not hasattr(self, "_matrix"):
            self._matrix = np.full((rows, columns), 0.5, np.float32)
            self._vector, self._product = np.ones(columns, np.float32), np.empty(rows, np.float32)

    def _sustained(self, a: Any, b: Any, out: Any, least: float) -> float:
        """Seconds that one product takes, after one that wakes the threads and is not counted."""
        np.matmul(a, b, out=out)
        return self.repeated(lambda: np.matmul(a, b, out=out), least)[0]

    def _fastest_of(self, work: Callable[[], Any]) -> float:
        return min(self.timed(work)[0] for _ in range(ON_A_DEVICE))
