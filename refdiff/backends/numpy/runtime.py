"""What the kernels of one model share: threads, scratch memory, thresholds, and the extent of a pass."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.numpy.half_weights import FiniteWeights, is_half
from refdiff.backends.numpy.layout import FloatArray, cut
from refdiff.backends.numpy.thread_pool import Workers
from refdiff.backends.numpy.tuning import Tuning
from refdiff.backends.numpy.workspace import Workspace, keep_freed_memory


class Runtime:
    """Threads, scratch memory and thresholds; every kernel takes it as its first argument.

    Args:
        threads: how many; None is all cores, or what BLAS is told, see `Workers`.
    """

    def __init__(self, threads: int | None = None, tuning: Tuning | None = None) -> None:
        self.tuning = tuning or Tuning()
        self.workers = Workers(threads)
        self.workspace = Workspace(self.tuning.kept_bytes)
        self.empty = self.workspace.empty
        self.tiles = Workspace(self.tuning.kept_bytes)  # kept from one pass to the next
        self.tiles.open()
        keep_freed_memory()
        self.is_finite = FiniteWeights(self.tuning.expanded_weights)
        self._keeping = 0

    def unpacks(self, dtype: Any) -> bool:
        """Return whether large products go in unpacked tiles: in float32, where Python threads own the cores."""
        return self.tuning.unpacked_tokens > 1 and self.workers.owns_cores and dtype == np.float32

    @contextlib.contextmanager
    def inference_scope(self, weight: NDArray[Any] | None = None) -> Iterator[None]:
        """Own the cores and keep scratch memory for the length of a `with` block, one pass through a model.

        A pass of one token passes one of its large weights: with more than `Tuning.python_threads` threads it then
        leaves the cores to BLAS, whose barriers are cheaper. Weights kept in 16 bits always take Python threads.
        """
        t = self.tuning
        many = self.workers.threads > t.python_threads
        to_blas = many and weight is not None and weight.size >= t.blas_weights and not is_half(weight)
        with self.workers.running(owns_cores=not to_blas) as outermost, np.errstate():  # which restores the buffer
            np.setbufsize(t.pass_buffer)
            if outermost:
                self.workspace.open()
            try:
                yield
            finally:
                if outermost and not self._keeping:
                    self.workspace.close()

    @contextlib.contextmanager
    def repeated_scope(self) -> Iterator[None]:
        """Keep scratch memory from one pass to the next for the length of a `with` block of equal passes."""
        self._keeping += 1
        try:
            yield
        finally:
            self._keeping -= 1
            if not self._keeping:
                self.workspace.close()

    def empty_features(self, shape: tuple[int, ...], dtype: Any) -> tuple[FloatArray, FloatArray]:
        """Return an uninitialised feature-major array, and its `feature_view`."""
        if len(shape) == 4:
            B, H, T, D = shape
            y = self.empty((H, D, B, T), dtype)
            return y.transpose(2, 0, 3, 1), y.reshape(H, D, B * T)
        y = self.empty((shape[-1], *shape[:-1]), dtype)
        return np.moveaxis(y, 0, -1), y.reshape(1, len(y), -1)

    def score_buffers(
        self, arrays: int, part: tuple[slice, slice], scores: int, dtype: Any, items: int
    ) -> deque[FloatArray]:
        """Return one buffer for each idle thread, at most one per item: `arrays` arrays for the scores of a part."""
        b, k = part
        shape = arrays, (b.stop - b.start) * (k.stop - k.start) * scores
        return deque(self.empty(shape, dtype) for _ in range(min(self.workers.idle_threads, items)))

    def map(self, work: Callable[[Any], None], items: list[Any], elements: int) -> None:
        """Call `work` for every item, on all threads where the items have enough elements."""
        if elements < self.tuning.parallel_elements:
            for item in items:
                work(item)
        else:
            self.workers.map(work, items)

    def map_rows(self, work: Callable[[slice], None], rows: int, width: int, elements: int) -> None:
        """Call `work` for slices of rows that hold about `elements` numbers each."""
        self.map(work, cut(rows, max(elements // max(width, 1), 1)), rows * width)

    def cut_tokens(self, tokens: int, groups: int, features: int) -> list[slice]:
        """Cut feature-major tokens so that every thread has equally many, or equally many groups of features."""
        t, threads = self.tuning, self.workers.threads
        parts = -(-tokens // max(t.block_tokens, t.block_elements // features))
        if groups < threads or parts > 1:
            parts = -(-parts // threads) * threads
        return cut(tokens, -(-tokens // (16 * parts)) * 16)
