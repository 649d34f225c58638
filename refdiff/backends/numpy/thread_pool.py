"""Threads for kernels on a CPU: Python's in place of BLAS's own, never both.

NumPy lets go of the interpreter inside a product or an elementwise step, so that Python threads over parts of an array
use all cores. While they do, BLAS must keep to one thread each, or every part would start its own.

`np.matmul` goes by the size of the result: one of 500 numbers or fewer it computes with the interpreter in hand,
however large the factors, and the other threads wait. `np.dot` always lets go.
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

from threadpoolctl import OpenBLASController, ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")

_END: Any = object()
"""What follows the last item."""


class _Blas:
    """How many threads BLAS has while passes of any thread are under way: one number for the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: list[int] = []
        self._controller: ThreadpoolController | None = None
        self._before: Any = None

    @contextlib.contextmanager
    def limited(self, threads: int) -> Iterator[None]:
        """Let BLAS have so many for the length of a `with` block, or fewer while another block asks for fewer."""
        self._change(self._asked.append, threads)
        try:
            yield
        finally:
            if threads in self._asked:  # not in a process that was forked within the block
                self._change(self._asked.remove, threads)

    def forget(self) -> None:
        """Begin anew, in a process that was forked: the threads that asked for something are not in it."""
        if self._before is not None:
            with _from_any_thread():
                self._before.restore_original_limits()
        self.__init__()  # type: ignore[misc]

    def _change(self, change: Callable[[int], None], threads: int) -> None:
        with self._lock, _from_any_thread():
            change(threads)
            if not self._asked:
                self._before.restore_original_limits()
                self._before = None
                return
            if self._controller is None:
                self._controller = ThreadpoolController()
            limiter = self._controller.limit(limits=min(self._asked))
            self._before = self._before or limiter


@contextlib.contextmanager
def _from_any_thread() -> Iterator[None]:
    """Let this thread change what another one has changed before; newer versions of threadpoolctl would ignore it."""
    let_go = getattr(OpenBLASController, "clear_controlling_thread", lambda force: None)
    let_go(force=True)
    try:
        yield
    finally:
        let_go(force=True)


BLAS = _Blas()


class _Call:
    """Something that a helper may do, in the context of who asks for it, who takes it back if none has begun."""

    def __init__(self, what: Callable[[], None]) -> None:
        self._what, self._context = what, contextvars.copy_context()
        self._begun, self._ended = threading.Lock(), threading.Lock()
        self._ended.acquire()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, and keep what it raises, unless it was taken back."""
        if self._begun.acquire(blocking=False):
            try:
                self._context.run(self._what)
            except BaseException as error:
                self._error = error
            del self._what, self._context  # what they refer to is let go of before anyone goes on
            self._ended.release()

    def end(self) -> BaseException | None:
        """Take it back, or wait until it has ended, and return what it raised."""
        if self._begun.acquire(blocking=False):
            del self._what, self._context
        else:
            self._ended.acquire()
        error, self._error = self._error, None
        return error


def _help(calls: SimpleQueue[_Call | None]) -> None:
    """Do one call after another, until there is None, which ends all helpers."""
    while (call := calls.get()) is not None:
        call.run()
        del call  # and what it raised, which refers to everything
    calls.put(None)


class Workers:
    """The threads that one model's kernels share; passes in several threads of the caller's own share them too.

    Args:
        threads: how many; None is the number of cores that this process may use, or what `OPENBLAS_NUM_THREADS` or
            `OMP_NUM_THREADS` says, if that is less.

    Raises:
        ValueError: `threads` is below 1.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}, but must be 1 or more, or None for all cores")
        self.threads = threads or default_threads()
        self._renew()
        _ALL.add(self)

    def _renew(self) -> None:
        """Begin without helpers; those that there are end with these workers, or were not forked."""
        self._here = threading.local()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._helpers, self._counting = 0, threading.Lock()
        weakref.finalize(self, self._calls.put, None)

    @contextlib.contextmanager
    def running(self, *, owns_cores: bool = True) -> Iterator[bool]:
        """Take the cores from BLAS for the length of a `with` block, a whole pass through a model.

        Outside of such a block `split` and `map` do everything in the calling thread, and BLAS keeps its threads.
        The value is whether this is the outermost of nested blocks; the inner ones change nothing. With
        `owns_cores=False` BLAS has all threads, and these here none: BLAS's go on looking for work after a product, and
        a second one beside them gains nothing.
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
        """Whether this thread works for a pass for which BLAS is held to one thread, and these here have the cores."""
        return bool(self._owns_cores) or self._is_busy()

    @property
    def _owns_cores(self) -> bool | None:
        """The same, or None outside of a pass."""
        owns_cores: bool | None = getattr(self._here, "owns_cores", None)
        return owns_cores

    @property
    def idle_threads(self) -> int:
        """How many threads `map` has here: all in a pass, and one in an item of another `map`."""
        return self.threads if self.owns_cores and not self._is_busy() else 1

    def split(self, size: int, work: Callable[[int, int], Any], *, align: int = 1) -> None:
        """Call `work(start, stop)` on parts of range(size), one part a thread, starts being multiples of `align`."""
        self.map(lambda at: work(at.start, at.stop), self.cuts(size, align=align))

    def cuts(self, size: int, *, align: int = 1) -> list[slice]:
        """Cut range(size) into one part for each thread that is free, starts being multiples of `align`."""
        step = max(-(-size // (self.idle_threads * align)), 1) * align
        return [slice(start, min(start + step, size)) for start in range(0, size, step)]

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> None:
        """Call `work(item)` for every item, whichever thread is free taking the next.

        What an item asks of these threads, its own does: the others have items. Each has NumPy's `errstate` of the
        caller. Where one raises, those that have not begun are left out.
        """
        todo = deque(items)
        others = min(self.idle_threads, len(todo)) - 1
        if others < 1:
            for item in todo:
                work(item)
            return
        todo.extend([_END] * (others + 1))
        here, go_on = self._here, [True]

        def drain() -> None:
            try:
                here.busy = True
                while go_on and (item := todo.popleft()) is not _END:
                    work(item)
            except BaseException:
                go_on.clear()
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
        """See to it that there are so many; an executor would do what they do, and take longer for it."""
        with self._counting:
            while self._helpers < helpers:
                threading.Thread(target=_help, args=(self._calls,), name="refdiff", daemon=True).start()
                self._helpers += 1

    def in_order(self, work: Callable[[Item], Result], items: Sequence[Item], take: Callable[[Result], Any]) -> None:
        """Call `work(item)` for every item, and `take` of each result: one at a time, in the order of the items.

        As many items at once as there are threads; those that are then left over, one after another, on all threads.
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
        """Whether this thread is one of several that have an item each."""
        return getattr(self._here, "busy", False)


_ALL: weakref.WeakSet[Workers] = weakref.WeakSet()


def _forked() -> None:
    """Let go of threads that were not forked: who waited for one of them would wait for ever."""
    BLAS.forget()
    for workers in list(_ALL):
        workers._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """As many as `cores`, or fewer, where that is what BLAS is told."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # the order in which OpenBLAS looks at them
        if (told := os.environ.get(name, "")).isdecimal() and int(told) > 0:
            return min(cores(), int(told))
    return cores()
