"""Python threads for the kernels, instead of BLAS threads and never beside them.

NumPy releases the GIL inside a product or an elementwise step, so that Python threads over parts of an array use all
cores. Meanwhile BLAS has one thread, or every part would start its own.

`np.matmul` keeps the GIL where the result has 500 numbers or fewer, however large the factors are. `np.dot` always
releases it.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import OpenBLASController, ThreadpoolController

from refdiff.browser import IN_BROWSER

Item = TypeVar("Item")
Result = TypeVar("Result")

_END: Any = object()  # follows the last item


class _Blas:
    """The number of BLAS threads, of which a process has one, while passes of any threads are under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: list[int] = []
        self._controller: ThreadpoolController | None = None
        self._before: Any = None

    @contextlib.contextmanager
    def limited(self, threads: int) -> Iterator[None]:
        """Give BLAS so many threads for the length of a `with` block, or fewer while another block wants fewer."""
        self._change(self._wanted.append, threads)
        try:
            yield
        finally:
            if threads in self._wanted:  # not in a process that was forked within the block
                self._change(self._wanted.remove, threads)

    def forget(self) -> None:
        """Start again, in a forked process: the threads whose blocks were open are not in it."""
        if self._before is not None:
            with _any_thread():
                self._before.restore_original_limits()
        self.__init__()  # type: ignore[misc]

    def _change(self, change: Callable[[int], None], threads: int) -> None:
        with self._lock, _any_thread():
            change(threads)
            if not self._wanted:
                self._before.restore_original_limits()
                self._before = None
                return
            if self._controller is None:
                self._controller = ThreadpoolController()
            limiter = self._controller.limit(limits=min(self._wanted))
            self._before = self._before or limiter


@contextlib.contextmanager
def _any_thread() -> Iterator[None]:
    """Let this thread change what another one changed before, which newer versions of threadpoolctl ignore."""
    release = getattr(OpenBLASController, "clear_controlling_thread", lambda force: None)
    release(force=True)
    try:
        yield
    finally:
        release(force=True)


BLAS = _Blas()


class _Call:
    """Work for a helper thread, in the caller's context; the caller takes it back where no helper has begun it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._context = work, contextvars.copy_context()
        self._begun, self._ended = threading.Lock(), threading.Lock()
        self._ended.acquire()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, and keep what it raises, unless it was taken back."""
        if self._begun.acquire(blocking=False):
            try:
                self._context.run(self._work)
            except BaseException as error:
                self._error = error
            del self._work, self._context  # arrays that they refer to are free before anyone continues
            self._ended.release()

    def end(self) -> BaseException | None:
        """Take it back, or wait until it has ended; return what it raised."""
        if self._begun.acquire(blocking=False):
            del self._work, self._context
        else:
            self._ended.acquire()
        error, self._error = self._error, None
        return error


def _help(calls: SimpleQueue[_Call | None]) -> None:
    """Run one call after another until there is None, which ends all helpers."""
    while (call := calls.get()) is not None:
        call.run()
        del call  # and the error that it raised, whose traceback refers to arrays
    calls.put(None)


class Workers:
    """The threads of one model's kernels; passes in several threads of the caller share them.

    Args:
        threads: how many; None is the number of cores that this process may use, or `OPENBLAS_NUM_THREADS` or
            `OMP_NUM_THREADS`, if that is less.

    Raises:
        ValueError: `threads` is no integer, below 1, or in a browser above 1.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and (not isinstance(threads, int | np.integer) or threads < 1):
            raise ValueError(f"threads: got {threads!r}, expected an integer, 1 or more, or None for all cores")
        if IN_BROWSER and threads is not None and threads > 1:
            raise ValueError(f"threads: got {threads}, expected 1, which a browser has; leave it out")
        self.threads = threads or default_threads()
        self.renew()
        RENEWED.add(self)

    def renew(self) -> None:
        """Start without helpers: earlier ones end with these workers, or were not forked."""
        self._here = threading.local()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._helpers, self._counting = 0, threading.Lock()
        weakref.finalize(self, self._calls.put, None)

    @contextlib.contextmanager
    def running(self, *, owns_cores: bool = True) -> Iterator[bool]:
        """Take the cores from BLAS for the length of a `with` block, one pass through a model.

        Outside of such a block `split` and `map` use the calling thread alone, and BLAS keeps its threads. Yields
        whether this is the outermost of nested blocks; inner ones change nothing. With `owns_cores=False` BLAS has all
        threads: its threads spin after a product, and a Python thread beside them gains nothing.
        """
        if self._owns_cores is not None or self._is_busy():
            yield False
            return
        with BLAS.limited(1 if owns_cores else self.threads):
            self._here.owns_cores = owns_cores
            try:
                yield True
            finally:
                self._here.owns_cores = None

    @property
    def owns_cores(self) -> bool:
        """Whether this thread works for a pass in which BLAS has one thread and the Python threads have the cores."""
        return bool(self._owns_cores) or self._is_busy()

    @property
    def _owns_cores(self) -> bool | None:
        """What the block of this thread said, None outside of one."""
        owns_cores: bool | None = getattr(self._here, "owns_cores", None)
        return owns_cores

    @property
    def idle_threads(self) -> int:
        """How many threads `map` has here: all in a pass, one within an item of another `map`."""
        return self.threads if self.threads > 1 and self.owns_cores and not self._is_busy() else 1

    def split(self, size: int, work: Callable[[int, int], Any], *, align: int = 1) -> None:
        """Call `work(start, stop)` on parts of range(size), one per thread, that start at multiples of `align`."""
        self.map(lambda at: work(at.start, at.stop), self.cuts(size, align=align))

    def cuts(self, size: int, *, align: int = 1) -> list[slice]:
        """Cut range(size) into one part per idle thread, starting at multiples of `align`."""
        step = max(-(-size // (self.idle_threads * align)), 1) * align
        return [slice(start, min(start + step, size)) for start in range(0, size, step)]

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> None:
        """Call `work(item)` for every item; whichever thread is idle takes the next.

        Within an item these threads count as one, since the others have items of their own. NumPy's `errstate` is the
        caller's. Where an item raises, those that have not begun are left out.
        """
        todo = deque(items)
        others = min(self.idle_threads, len(todo)) - 1
        if others < 1:
            for item in todo:
                work(item)
            return
        todo.extend([_END] * (others + 1))
        here, going = self._here, [True]

        def drain() -> None:
            try:
                here.busy = True
                while going and (item := todo.popleft()) is not _END:
                    work(item)
            except BaseException:
                going.clear()
                raise
            finally:
                here.busy = False

        calls = [_Call(drain) for _ in range(others)]
        self._need(others)
        for call in calls:
            self._calls.put(call)
        try:
            drain()
        finally:
            failed = [error for call in calls if (error := call.end()) is not None]
        if failed:
            raise failed[0]

    def _need(self, helpers: int) -> None:
        """Start helpers until there are so many. An executor would do the same with more overhead per call."""
        with self._counting:
            while self._helpers < helpers:
                threading.Thread(target=_help, args=(self._calls,), name="refdiff", daemon=True).start()
                self._helpers += 1

    def map_in_order(
        self, work: Callable[[Item], Result], items: Sequence[Item], take: Callable[[Result], Any]
    ) -> None:
        """Call `work(item)` for every item, and `take` of each result: one at a time, in the order of the items.

        As many items run at once as there are threads; the remaining ones one after another, on all threads.
        """
        done: dict[int, Result] = {}
        lock, taken = threading.Lock(), 0

        def one(n: int) -> None:
            nonlocal taken
            result = work(items[n])
            with lock:
                done[n] = result
                while taken in done:
                    take(done.pop(taken))
                    taken += 1

        at_once = len(items) // self.threads * self.threads
        self.map(one, range(at_once))
        for n in range(at_once, len(items)):
            one(n)

    def _is_busy(self) -> bool:
        """Return whether this thread is one of several that have an item each."""
        return getattr(self._here, "busy", False)


RENEWED: weakref.WeakSet[Any] = weakref.WeakSet()
"""What has threads or locks, and a method `renew` for forked processes."""


def _after_fork() -> None:
    """Forget the threads that were not forked, and the locks that they hold: waiting for one would never end."""
    BLAS.forget()
    for one in list(RENEWED):
        one.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def cores() -> int:
    """Return how many cores this process may run on: in a browser 1, for no thread can be started there."""
    if IN_BROWSER:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """Return `cores()`, or what BLAS is told if that is less."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # the order in which OpenBLAS looks at them
        if (told := os.environ.get(name, "")).isdecimal() and int(told) > 0:
            return min(cores(), int(told))
    return cores()
