"""Threads: every part is done once, errors come out, and BLAS gets its threads back."""

import gc
import os
import select
import signal
import sys
import threading
import warnings

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from refdiff.backends.numpy.thread_pool import Workers
from refdiff.backends.numpy.workspace import Workspace
from tests.conftest import wait_until


def named() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "refdiff"}


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 160, 1031])
def test_split_covers_every_index_once(threads, size):
    workers, parts = Workers(threads), []
    with workers.running():
        workers.split(size, lambda start, stop: parts.append((start, stop)), align=16)
    parts.sort()
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(size))
    assert all(start % 16 == 0 for start, _ in parts)
    assert len(parts) <= threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_has_threads_of_its_own():
    """Those of a model that was used are not in it; neither is a pass that another thread was in, nor a lock."""
    workers, before, inside, end = Workers(2), blas_threads(), threading.Event(), threading.Event()

    def passing():
        with workers.running():
            workers.split(4, lambda start, stop: None)
            inside.set()
            end.wait(60)

    other = threading.Thread(target=passing)
    other.start()
    inside.wait(60)
    memory = Workspace(1)
    memory._lock.acquire()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads
        child = os.fork()
    if child == 0:
        try:
            done = []
            outside = blas_threads()
            with workers.running():
                workers.split(4, lambda start, stop: done.append(stop - start))
                assert set(blas_threads()) == {1}
            assert sum(done) == 4
            assert not memory._lock.locked()
            assert outside == blas_threads() == before
            os.write(writing, b"well")
        finally:
            os._exit(0)
    end.set()
    other.join()
    os.close(writing)
    try:
        assert select.select([reading], [], [], 60)[0], "it waits for a thread that is not there"
        assert os.read(reading, 10) == b"well"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)


def test_a_pass_within_another_changes_nothing():
    workers, before = Workers(2), blas_threads()
    for alone in (True, False):
        with workers.running(owns_cores=alone):
            assert set(blas_threads()) == {1 if alone else 2}
            with workers.running(owns_cores=not alone) as outermost:
                assert not outermost
                assert workers.owns_cores is alone
                assert set(blas_threads()) == {1 if alone else 2}
            assert workers.owns_cores is alone
            assert set(blas_threads()) == {1 if alone else 2}

    def item(_):
        with workers.running() as outermost:
            seen.append((outermost, workers.owns_cores))

    seen = []
    with workers.running():
        workers.map(item, range(4))
    assert seen == [(False, True)] * 4
    assert blas_threads() == before


@pytest.mark.parametrize("workers", ["one", "two"])
@pytest.mark.parametrize("first", [True, False])
def test_passes_of_several_threads_leave_blas_as_it_was(workers, first):
    """Whichever begins, and ends, first; where one of them has BLAS held to one thread, it is for all."""
    one = Workers(2)
    other, before, seen = one if workers == "one" else Workers(2), blas_threads(), []
    begun, ended = threading.Event(), threading.Event()

    def beside():
        with other.running(owns_cores=not first) as outermost:
            seen.append((outermost, other.owns_cores, set(blas_threads())))
            begun.set()
            ended.wait(20)
            seen.append((other.owns_cores, set(blas_threads())))

    thread = threading.Thread(target=beside)
    with one.running(owns_cores=first):
        thread.start()
        begun.wait(20)
        assert one.owns_cores is first
        assert set(blas_threads()) == {1}
    ended.set()
    thread.join(20)
    assert seen == [(True, not first, {1}), (not first, {2 if first else 1})]
    assert blas_threads() == before


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_results_are_taken_in_the_order_of_the_items(threads, count):
    workers, taken = Workers(threads), []
    later = threading.Event()

    def work(item: str) -> str:
        if item == "0" and count // threads and threads > 1:
            assert later.wait(20)  # until another one is done
        elif item == "1":
            later.set()
        return item

    with workers.running():
        workers.map_in_order(work, [str(n) for n in range(count)], taken.append)
    assert taken == [str(n) for n in range(count)]


def test_every_thread_has_the_errstate_of_the_caller():
    workers, meeting = Workers(2), threading.Barrier(2, timeout=20)
    found = []

    def work(item: int) -> None:
        meeting.wait()
        found.append(np.geterr()["over"])

    with workers.running(), np.errstate(over="raise"):
        workers.map(work, range(2))
    assert found == ["raise"] * 2


def test_after_an_error_no_item_is_begun_and_none_is_left_running():
    workers, seen, begun = Workers(2), [], threading.Event()

    def work(item: int) -> None:
        seen.append(item)
        if item == 0:
            assert begun.wait(20)
            raise KeyError(item)
        going = sys._getframe(1).f_locals["going"]
        begun.set()
        wait_until(lambda: not going)  # until the other thread has dealt with the error, however slowly
        seen.append("done")

    with pytest.raises(KeyError), workers.running():
        workers.map(work, range(100))
    assert sorted(seen, key=str) == [0, 1, "done"]


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_threads_are_one_or_more(threads):
    with pytest.raises(ValueError, match=f"threads: got {threads!r}, expected an integer, 1 or more, or None for all"):
        Workers(threads)


@pytest.mark.parametrize(
    ("told", "threads"),
    [
        ({}, 3),
        ({"OMP_NUM_THREADS": "2"}, 2),
        ({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}, 1),
        ({"OPENBLAS_NUM_THREADS": "0", "OMP_NUM_THREADS": "8"}, 3),
        ({"OMP_NUM_THREADS": "2,1"}, 3),
    ],
)
def test_the_thread_count_is_limited_by_that_of_blas(told, threads, monkeypatch):
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 5}, raising=False)
    assert Workers().threads == threads
    assert Workers(4).threads == 4


def test_blas_can_have_as_many_threads_as_were_asked_for_and_these_none():
    before, seen = blas_threads(), []
    for threads in (1, 2):
        with Workers(threads).running(owns_cores=False) as outermost:
            assert outermost
            assert set(blas_threads()) == {threads}
            Workers(threads).split(100, lambda start, stop: seen.append((start, stop, threading.current_thread())))
    assert seen == [(0, 100, threading.current_thread())] * 2
    assert blas_threads() == before


def test_threads_are_kept_from_one_pass_to_the_next_and_end_with_their_workers():
    others, workers, meeting = named(), Workers(3), threading.Barrier(3, timeout=20)
    for _ in range(3):
        with workers.running():
            workers.map(lambda _: meeting.wait(), range(3))
    mine = named() - others
    assert len(mine) == 2
    del workers
    gc.collect()
    for thread in mine:
        thread.join(20)
        assert not thread.is_alive()


def test_callers_in_two_threads_share_the_helpers():
    """There is one: whoever comes second goes on alone."""
    others, workers, both = named(), Workers(2), threading.Barrier(2, timeout=20)
    seen, lock = [], threading.Lock()

    def call(caller: int) -> None:
        with workers.running():
            both.wait()
            for item in range(50):
                workers.map(lambda n, item=item: note((caller, item, n)), range(5))

    def note(item: tuple[int, int, int]) -> None:
        with lock:
            seen.append(item)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(2)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(20)
    assert sorted(seen) == [(caller, item, n) for caller in range(2) for item in range(50) for n in range(5)]
    assert len(named() - others) == 1
