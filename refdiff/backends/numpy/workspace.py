"""Scratch memory: the arrays of one layer leave theirs to those of the next.

Allocating a large array costs more than writing it: the system hands out its pages one by one, each zeroed. Within a
pass the same few shapes come again in every layer.

Blocks begin at cache lines, and large ones lie in huge pages; both make training steps faster.
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.backends.numpy.thread_pool import RENEWED

CACHE_LINE = 64
"""Bytes of a cache line. `malloc` aligns none of its large blocks to one; every vector of 64 bytes then crosses two."""

HUGE_PAGE = 2**21
"""Bytes of a huge page, with which the processor's address table covers 512 times as much memory. A block that would
fill less than half of one gets small pages."""


HEAP_BLOCK = 31 * 2**20
"""Bytes of a block whose release lets the GNU C library keep up to twice as much; it learns nothing from 32 MiB."""


@functools.cache  # once in a process
def keep_freed_memory() -> None:
    """Let `malloc` of the GNU C library keep the memory of freed arrays; elsewhere, do nothing.

    It returns freed memory to the system beyond twice the largest block that was freed so far. Without this call every
    training step gets new pages from the system and takes longer. A block that is never written costs nothing.
    """
    np.empty(HEAP_BLOCK, np.uint8)


class Workspace:
    """Arrays from kept memory, while it is open. A block that is still referred to is never handed out again.

    Args:
        kept_bytes: the size of the smallest arrays worth keeping.
    """

    def __init__(self, kept_bytes: int) -> None:
        self._kept_bytes = kept_bytes
        self._open = False
        self._unused = 0
        self._lock = threading.Lock()
        self._blocks: dict[int, list[NDArray[np.uint8]]] = {}
        RENEWED.add(self)

    def renew(self) -> None:
        """Take a lock that no thread holds, in a forked process."""
        self._lock = threading.Lock()

    def open(self) -> None:
        """Start keeping memory."""
        if hasattr(sys, "getrefcount"):
            self._open, (self._unused,) = True, _references([np.empty(1, np.uint8)])

    def close(self) -> None:
        """Release all kept memory; arrays in use keep theirs."""
        self._open = False
        self._blocks.clear()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an array like `np.empty`, in C order, in a block of its size that nothing refers to any more."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if not self._open or size < self._kept_bytes:
            return np.empty(shape, dtype)
        with self._lock:
            blocks = self._blocks.setdefault(size, [])
            counts = _references(blocks)
            if self._unused in counts:
                block = blocks[counts.index(self._unused)]
            else:
                block = _memory(size)
                blocks.append(block)
            start = -block.ctypes.data % CACHE_LINE
            array: NDArray[Any] = block[start : start + size].view(dtype).reshape(shape)
            return array


def _references(blocks: list[NDArray[np.uint8]]) -> list[int]:
    """Count the references to each block; how many a free one has differs between versions of Python."""
    return [sys.getrefcount(block) for block in blocks]


def _memory(size: int) -> NDArray[np.uint8]:
    """Allocate at least so many bytes after the first cache line, in huge pages where they pay."""
    if size > HUGE_PAGE // 2 and hasattr(mmap, "MADV_HUGEPAGE"):
        pages = mmap.mmap(-1, -(-size // HUGE_PAGE) * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # of a system that has none
            pages.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(pages, np.uint8)
    return np.empty(size + CACHE_LINE, np.uint8)
