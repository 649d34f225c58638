"""Threads for kernels on a CPU: Python's in place of BLAS's own, never both.

NumPy lets go of the interpreter inside a product or an elementwise step, so that Python threads over parts of an array
use all cores. While they do, BLAS must keep to one thread each, or every part would start its own.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from threadpoolctl import ThreadpoolController


class Workers:
    """The threads that one model's kernels share.

    Args:
        threads: how many; None is the number of cores that this process may use.

    Raises:
        ValueError: `threads` is below 1.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}, but must be 1 or more, or None for all cores")
        self.threads = threads or _cores()
        self._pool: ThreadPoolExecutor | None = None
        self._controller: ThreadpoolController | None = None
        self._running = self._beside = 0

    @contextlib.contextmanager
    def running(self, *, alone: bool = True) -> Iterator[bool]:
        """Take the cores from BLAS for the length of a `with` block, a whole pass through a model.

        Outside of such a block `split` and `each` do everything in the calling thread, and BLAS keeps its threads.
        The value is whether this is the outermost of blocks within each other. With `alone=False` BLAS has all threads,
        and these here only serve `each` with `beside_blas`.
        """
        if self._running:
            yield False
            return
        if self._controller is None:
            self._controller = ThreadpoolController()
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="refdiff")
        with self._controller.limit(limits=1 if alone else self.threads):
            self._running += alone
            self._beside += not alone
            try:
                yield True
            finally:
                self._running -= alone
                self._beside -= not alone

    def split(self, size: int, work: Callable[[int, int], Any], *, align: int = 1) -> None:
        """Call `work(start, stop)` on parts of range(size), one part a thread, starts being multiples of `align`."""
        parts = self.threads if self._running else 1
        step = max(-(-size // (parts * align)), 1) * align
        self.each(lambda start: work(start, min(start + step, size)), range(0, size, step))

    def each(self, work: Callable[[Any], Any], items: Iterable[Any], *, beside_blas: bool = False) -> None:
        """Call `work(item)` for every item, whichever thread is free taking the next.

        beside_blas: `work` asks BLAS for nothing so large that it would take threads of its own for it.
        """
        todo = deque(items)

        def drain() -> None:
            while True:
                try:
                    item = todo.popleft()
                except IndexError:
                    return
                work(item)

        helpers = min(self.threads, len(todo)) - 1 if self._running or (beside_blas and self._beside) else 0
        waiting = [self._pool.submit(drain) for _ in range(helpers)] if self._pool is not None else []
        drain()
        for result in waiting:
            result.result()


def _cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
