"""Memory is handed out again only when nothing refers to it any more."""

import mmap
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from refdiff.backends.numpy.tuning import Tuning
from refdiff.backends.numpy.workspace import CACHE_LINE, HUGE_PAGE, Workspace

LEAST = Tuning.kept_bytes

SHAPE = (LEAST // 4 + 1,)

NEW_PAGES = """
import resource, sys
import numpy as np
from refdiff.backends.numpy.workspace import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [np.ones(200_000) for _ in range(10)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture
def workspace():
    space = Workspace(LEAST)
    space.open()
    return space


@pytest.mark.parametrize("held", [lambda x: x, lambda x: x[3:7], lambda x: x.reshape(-1, 1).T, memoryview])
def test_an_array_with_references_keeps_its_memory(workspace, held):
    view = held(workspace.empty(SHAPE, np.float32))
    assert not np.shares_memory(workspace.empty(SHAPE, np.float32), view)


@pytest.mark.parametrize("size", [LEAST, HUGE_PAGE // 2, HUGE_PAGE // 2 + 1, HUGE_PAGE + 5, 3 * HUGE_PAGE])
def test_arrays_begin_a_line_of_the_cache_and_are_handed_out_again_whatever_their_pages(workspace, size):
    first = workspace.empty((size,), np.uint8)
    first[:] = 7
    other = workspace.empty((size,), np.uint8)
    other[:] = 8
    assert first.ctypes.data % CACHE_LINE == other.ctypes.data % CACHE_LINE == 0
    assert (first == 7).all()
    place = first.ctypes.data
    del first
    assert workspace.empty((size,), np.uint8).ctypes.data == place


@pytest.mark.parametrize("refuses", [False, True])
def test_without_large_pages_there_are_small_ones(workspace, monkeypatch, refuses):
    class Pages(mmap.mmap):
        def madvise(self, *args):
            raise OSError

    if refuses:
        monkeypatch.setattr(mmap, "mmap", Pages)
    else:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    x = workspace.empty((HUGE_PAGE,), np.uint8)
    x[:] = 7
    assert x.ctypes.data % CACHE_LINE == 0
    assert x.size == HUGE_PAGE


def test_threads_never_share_a_block(workspace):
    def fill(value):
        for _ in range(200):
            x = workspace.empty(SHAPE, np.float32)
            x[:] = value
            y = workspace.empty(SHAPE, np.float32)
            y[:] = -value
            assert (x == value).all()
        return True

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(fill, range(1, 5)))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of the GNU C library")
def test_the_memory_of_freed_arrays_is_kept():
    kept, lost = (
        int(subprocess.run([sys.executable, "-c", NEW_PAGES, how], capture_output=True, check=True).stdout)
        for how in ("kept", "lost")
    )
    assert kept < 200
    assert lost > 10 * 1_600_000 / mmap.PAGESIZE / 2
