"""The limits of this machine, with which times are compared.

`gemv` is what NumPy's BLAS reaches, by which shares are given. It is not the most that a processor reads: rows that
Python's threads multiply one by one may come faster. So `read` is a sum of whole numbers on these threads, which does
little but read; no side can be above the better of the two, and one that is was not measured as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff.backends.numpy.thread_pool import Workers
from refdiff.bench.measurements import CACHES, READY
from refdiff.bench.side import SIXTEEN_BITS, Answer, Side

if TYPE_CHECKING:
    from refdiff.bench.rows import Row

ON_A_DEVICE = 30
"""Of so many passes the fastest counts on a device, which takes a while to reach its clock."""


class Ceilings(Side):
    """NumPy's BLAS on all its threads, or a CUDA device, on operands of the best shape."""

    def measuring(self, row: Row) -> Iterator[Answer]:
        """Measure the ceiling of a row: its `kind`, its `rate`, and beside `gemv` also `read`."""
        name = row.kind.ceiling
        if self.settings.backend == "cupy":
            name = {"gemv": "copy", "sgemm": "matmul"}[name]
        measure: Callable[[], Answer] = getattr(self, name)()
        yield READY
        while True:
            yield {"kind": name, **measure()}

    def gemv(self, rows: int = CACHES // 4 // 8192, columns: int = 8192) -> Callable[[], Answer]:
        """Bytes of a weight that matrix-vector products read in a second, and that a sum of it does."""
        matrix, vector = np.full((rows, columns), 0.5, np.float32), np.ones(columns, np.float32)
        product, numbers = np.empty(rows, np.float32), matrix.view(np.uint64)
        workers = Workers(self.settings.threads)

        def read() -> None:
            workers.split(rows, lambda start, stop: np.add.reduce(numbers[start:stop], axis=None))

        def measure() -> Answer:
            gemv = self._sustained(lambda: np.matmul(matrix, vector, out=product))
            time.sleep(self.settings.rest)
            with workers.running():
                return {"rate": matrix.nbytes / gemv, "read": matrix.nbytes / self._sustained(read)}

        return measure

    def sgemm(self, size: int = 2048) -> Callable[[], Answer]:
        """Multiplications and additions that large products do in a second."""
        square = np.random.default_rng(0).standard_normal((size, size), np.float32)
        result = np.empty_like(square)
        return lambda: {"rate": 2 * size**3 / self._sustained(lambda: np.matmul(square, square, out=result))}

    def copy(self, size: int = CACHES, times: int = 4) -> Callable[[], Answer]:
        """Bytes that copies within the device read and write in a second, `times` copies with one start and one end."""
        import cupy

        source, target = cupy.zeros(size, dtype=np.uint8), cupy.empty(size, dtype=np.uint8)
        return lambda: {
            "rate": 2 * size * times / self._fastest(lambda: [cupy.copyto(target, source) for _ in range(times)])
        }

    def matmul(self, size: int = 8192) -> Callable[[], Answer]:
        """Multiplications and additions that the device does in a second, as the model multiplies its matrices."""
        import cupy
        import ml_dtypes

        from refdiff.backends.cupy.device import Device

        dtype = self.settings.dtype
        kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        a, b = (cupy.random.standard_normal((size, size), dtype=np.float32).astype(kind) for _ in range(2))
        multiply = Device().product if dtype in SIXTEEN_BITS else cupy.matmul
        return lambda: {"rate": 2 * size**3 / self._fastest(lambda: multiply(a, b))}

    def _sustained(self, work: Callable[[], Any]) -> float:
        """Seconds that the work takes, after one time that wakes the threads and is not counted."""
        work()
        return self.repeated(work, self.settings.least)[0]

    def _fastest(self, work: Callable[[], Any]) -> float:
        return min(self.timed(work)[0] for _ in range(ON_A_DEVICE))
