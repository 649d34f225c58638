"""The limits of this machine, to which measured rates are compared.

`gemv` is the rate of matrix-vector products in NumPy's BLAS, and shares are relative to it. A processor can read
faster: Python threads that each multiply single rows sometimes do. So `read` also measures a sum of integers on these
threads, which takes little more than reading. A side above both rates was measured wrongly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff.backends.numpy.thread_pool import Workers
from refdiff.bench.measurements import READY, WORKING_SET
from refdiff.bench.side import SIXTEEN_BITS, Answer, Side

if TYPE_CHECKING:
    from refdiff.bench.rows import Row

DEVICE_REPEATS = 30
"""Number of runs on a device, of which the fastest counts, since a device takes a while to reach its full clock."""


class Ceilings(Side):
    """The highest rate of NumPy's BLAS on all its threads, or of a CUDA device, for operands of a favourable shape."""

    def measure(self, row: Row) -> Iterator[Answer]:
        """Yield `READY`, then per measurement the `kind` of the row's ceiling, its `rate` and, for gemv, `read`."""
        name = row.kind.ceiling
        if self.settings.backend == "cupy":
            name = {"gemv": "copy", "sgemm": "matmul"}[name]
        measure_rate: Callable[[], Answer] = getattr(self, name)()
        yield READY
        while True:
            yield {"kind": name, **measure_rate()}

    def gemv(self, rows: int = WORKING_SET // 4 // 8192, columns: int = 8192) -> Callable[[], Answer]:
        """Measure in bytes per second how fast matrix-vector products and a sum read a weight."""
        matrix, vector = np.full((rows, columns), 0.5, np.float32), np.ones(columns, np.float32)
        product, numbers = np.empty(rows, np.float32), matrix.view(np.uint64)
        workers = Workers(self.settings.threads)

        def read() -> None:
            workers.split(rows, lambda start, stop: np.add.reduce(numbers[start:stop], axis=None))

        def measure_rate() -> Answer:
            gemv = self._mean_seconds(lambda: np.matmul(matrix, vector, out=product))
            time.sleep(self.settings.pause)
            with workers.running():
                return {"rate": matrix.nbytes / gemv, "read": matrix.nbytes / self._mean_seconds(read)}

        return measure_rate

    def sgemm(self, size: int = 2048) -> Callable[[], Answer]:
        """Measure large matrix products, in multiplications and additions per second."""
        square = np.random.default_rng(0).standard_normal((size, size), np.float32)
        result = np.empty_like(square)
        return lambda: {"rate": 2 * size**3 / self._mean_seconds(lambda: np.matmul(square, square, out=result))}

    def copy(self, size: int = WORKING_SET, times: int = 4) -> Callable[[], Answer]:
        """Measure in bytes per second how fast the device reads and writes, over `times` copies in one timing."""
        import cupy

        source, target = cupy.zeros(size, dtype=np.uint8), cupy.empty(size, dtype=np.uint8)

        def copy() -> None:
            for _ in range(times):
                cupy.copyto(target, source)

        return lambda: {"rate": 2 * size * times / self._fastest_seconds(copy)}

    def matmul(self, size: int = 8192) -> Callable[[], Answer]:
        """Measure the device's matrix products as the model calls them, in multiplications and additions per second."""
        import cupy
        import ml_dtypes

        from refdiff.backends.cupy.device import Device

        dtype = self.settings.dtype
        kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        a, b = (cupy.random.standard_normal((size, size), dtype=np.float32).astype(kind) for _ in range(2))
        multiply = Device().product if dtype in SIXTEEN_BITS else cupy.matmul
        return lambda: {"rate": 2 * size**3 / self._fastest_seconds(lambda: multiply(a, b))}

    def _mean_seconds(self, work: Callable[[], Any]) -> float:
        """Return the mean seconds of a call. A first call, which wakes the threads, does not count."""
        work()
        return self.time_repeated(work, self.settings.min_seconds)[0]

    def _fastest_seconds(self, work: Callable[[], Any]) -> float:
        return min(self.time_call(work)[0] for _ in range(DEVICE_REPEATS))
