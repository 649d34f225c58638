"""Memory that the arrays of one layer leave behind for those of the next.

A large array that is made anew costs more than what is written into it: the system hands out its pages one by one, each
zeroed. Within a pass the same few shapes come again in every layer.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 2**18
"""The fewest bytes worth keeping: smaller arrays come from memory that the process has anyway."""

UNUSED = 3
"""References to a block that nobody else holds: the list's, the loop's and the argument's."""


class Workspace:
    """Arrays from kept memory, while it is open; whatever is still referred to is never handed out again."""

    def __init__(self) -> None:
        self._open = False
        self._lock = threading.Lock()
        self._blocks: dict[int, list[NDArray[np.uint8]]] = {}

    def open(self) -> None:
        """Begin to keep memory."""
        self._open = hasattr(sys, "getrefcount")

    def close(self) -> None:
        """Let go of all that is kept; arrays in use keep theirs."""
        self._open = False
        self._blocks.clear()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an array like `np.empty`, in C order, in a block of just its size that nothing refers to any more."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if not self._open or size < LEAST:
            return np.empty(shape, dtype)
        with self._lock:
            blocks = self._blocks.setdefault(size, [])
            for block in blocks:
                if sys.getrefcount(block) == UNUSED:
                    break
            else:
                block = np.empty(size, np.uint8)
                blocks.append(block)
            array: NDArray[Any] = block.view(dtype).reshape(shape)
            return array
