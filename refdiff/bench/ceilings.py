"""The limits of this machine, with which times are compared.

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
from refdiff.bench.machine import SIXTEEN_BITS
from refdiff.bench.side import CACHES, Answer, FloatArray, Settings, Side

ON_A_DEVICE = 30
"""Of so many passes the fastest counts on a device, which takes a while to reach its clock."""

Way = Callable[[FloatArray, FloatArray, FloatArray], Any]
"""Reads some rows of a matrix; one that multiplies them by the vector writes the product."""


def _in_stacks(rows: FloatArray, vector: FloatArray, out: FloatArray, *, size: int) -> None:
    np.matvec(rows.reshape(-1, size, rows.shape[1]), vector, out=out.reshape(-1, size))


WAYS: tuple[Way, ...] = (
    lambda rows, vector, out: np.add.reduce(rows.view(np.uint64), axis=None),
    lambda rows, vector, out: np.vecdot(rows, vector, out=out),
    *(functools.partial(_in_stacks, size=size) for size in (4, 8) if hasattr(np, "matvec")),  # since NumPy 2.2
)
"""How a part of a matrix is read: as whole numbers that are summed up, row by row, and 4 and 8 rows at a time."""


class CeilingSide(Side):
    """NumPy's BLAS on all its threads, or a CUDA device, on operands of the best shape.

    On a device `copy` and `matmul` stand in the place of `gemv` and `sgemm`.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._operands: dict[Any, Any] = {}

    def gemv(self, rows: int = CACHES // 4 // 8192, columns: int = 8192) -> Answer:
        """Bytes of a weight that matrix-vector products read in a second."""
        matrix, vector, product = self._kept(_matrix, rows, columns)
        return {"rate": matrix.nbytes / self._sustained(matrix, vector, product)}

    def read(self, rows: int = CACHES // 4 // 8192, columns: int = 8192) -> Answer:
        """Bytes of the same weight that the fastest of `WAYS` reads in a second.

        Each thread of Python's reads its part, and BLAS has one.
        """
        matrix, vector, product = self._kept(_matrix, rows, columns)
        workers, least = self._kept(Workers, self.settings.threads), self.settings.least

        def whole(way: Way) -> None:
            def part(start: int, stop: int) -> None:
                way(matrix[start:stop], vector, product[start:stop])

            workers.split(rows, part, align=8)

        with workers.running():
            whole(WAYS[0])  # wakes the threads
            seconds = [self.repeated(functools.partial(whole, way), least / len(WAYS))[0] for way in WAYS]
        return {"rate": matrix.nbytes / min(seconds)}

    def sgemm(self, size: int = 2048) -> Answer:
        """Multiplications and additions that large products do in a second."""
        square, result = self._kept(_square, size)
        return {"rate": 2 * size**3 / self._sustained(square, square, result)}

    def copy(self, size: int = CACHES, times: int = 4) -> Answer:
        """Bytes that copies within the device read and write in a second, `times` copies with one start and one end."""
        copy = self._kept(_copy_on_device, size)
        return {"rate": 2 * size * times / self._fastest_of(lambda: [copy() for _ in range(times)])}

    def matmul(self, size: int = 8192) -> Answer:
        """Multiplications and additions that the device does in a second in a large product, in the sides' dtype."""
        multiply = self._kept(_product_on_device, size, self.settings.dtype)
        return {"rate": 2 * size**3 / self._fastest_of(multiply)}

    def _kept(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """Make operands once."""
        if make not in self._operands:
            self._operands[make] = make(*arguments)
        return self._operands[make]

    def _sustained(self, a: Any, b: Any, out: Any) -> float:
        """Seconds that one product takes, after one that wakes the threads and is not counted."""
        np.matmul(a, b, out=out)
        return self.repeated(lambda: np.matmul(a, b, out=out), self.settings.least)[0]

    def _fastest_of(self, work: Callable[[], Any]) -> float:
        return min(self.timed(work)[0] for _ in range(ON_A_DEVICE))


def _matrix(rows: int, columns: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    return np.full((rows, columns), 0.5, np.float32), np.ones(columns, np.float32), np.empty(rows, np.float32)


def _square(size: int) -> tuple[FloatArray, FloatArray]:
    return np.random.default_rng(0).standard_normal((size, size), np.float32), np.empty((size, size), np.float32)


def _copy_on_device(size: int) -> Callable[[], Any]:
    import cupy

    source, target = cupy.zeros(size, dtype=np.uint8), cupy.empty(size, dtype=np.uint8)
    return lambda: cupy.copyto(target, source)


def _product_on_device(size: int, dtype: str) -> Callable[[], Any]:
    """Multiply as the model multiplies its matrices."""
    import cupy
    import ml_dtypes

    from refdiff.backends.cupy.device import Device

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    a, b = (cupy.random.standard_normal((size, size), dtype=np.float32).astype(kind) for _ in range(2))
    if dtype not in SIXTEEN_BITS:
        return lambda: cupy.matmul(a, b)
    device = Device()
    return lambda: device.product(a, b)
