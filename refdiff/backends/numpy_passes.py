"""What all kernels of a model for NumPy share: its threads, the memory that they keep, where a pass begins and ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.numpy_stored import Finite, is_stored
from refdiff.backends.workers import Workers
from refdiff.backends.workspace import Workspace

BUFFERED = 128
"""The size of NumPy's buffer, in numbers. Shorter rows, of arrays that do not lie densely, it copies there before it
works on them; at its own 8192 these are nearly all rows, and the copy takes as long as the work."""

AT_A_TIME = 2048
"""About so many tokens of a batch go forward and back at a time, each such part in one thread: enough for products at
full speed, and threads meet once a step."""

LARGE = 2**22
"""The fewest weights of a matrix that one token is multiplied with on BLAS's own threads, where these are many."""

FEW_THREADS = 4
"""Up to so many threads of ours read faster than BLAS's (measured with one and two); more would meet for longer."""


class NumpyPasses:
    """Threads and memory for kernels: those of `workers`, or as many as there are cores."""

    def __init__(self, workers: Workers | None = None) -> None:
        self._workers = workers or Workers()
        self._workspace = Workspace()
        self._tiles = Workspace()
        self._tiles.open()
        self._finite = Finite()
        self._kept = 0
        self.each, self.in_order = self._workers.each, self._workers.in_order
        self.running, self.keeping = self._pass, self._keep
        self.rows_at_a_time = rows_at_a_time

    @contextlib.contextmanager
    def _pass(self, weight: NDArray[Any] | None = None) -> Iterator[None]:
        """Share out the cores, and keep memory, for the length of a `with` block, a whole pass through a model.

        A pass of one token, which says so by one of its large weights, multiplies with BLAS's own threads where there
        are more than `FEW_THREADS`: they lose less time on meeting than Python's. In any other, and where weights are
        expanded as they go, the threads are ours.
        """
        many = self._workers.threads > FEW_THREADS
        for_blas = many and weight is not None and weight.size >= LARGE and not is_stored(weight)
        with self._workers.running(alone=not for_blas) as outermost, np.errstate():  # which ends what begins next
            np.setbufsize(BUFFERED)
            if outermost:
                self._workspace.open()
            try:
                yield
            finally:
                if outermost and not self._kept:
                    self._workspace.close()

    @contextlib.contextmanager
    def _keep(self) -> Iterator[None]:
        """Keep memory from one pass to the next for the length of a `with` block, in which passes are alike."""
        self._kept += 1
        try:
            yield
        finally:
            self._kept -= 1
            if not self._kept:
                self._workspace.close()


def rows_at_a_time(batch: int, tokens: int) -> list[slice]:
    """Cut the rows of a batch into parts that are trained on by themselves: as many however many threads there are."""
    parts = min(max(-(-batch * tokens // AT_A_TIME), 1), batch)
    return [slice(i * batch // parts, (i + 1) * batch // parts) for i in range(parts)]
