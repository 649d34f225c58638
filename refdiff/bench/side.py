"""The interface of a side: the steps that its library implements, run and timed in the measured process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refdiff import arrays
from refdiff.bench.inputs import Ids
from refdiff.memory import peak_memory

if TYPE_CHECKING:
    from refdiff.bench.rows import Row

SIXTEEN_BITS = ("float16", "bfloat16")
"""Types of matrices on a device. Activations stay in float32."""

FloatArray = NDArray[np.float32]
Answer = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Settings of a benchmark, the same for all sides.

    folder: the checkpoint; None if no row needs one.
    backend: refdiff's backend.
    against: the sides beside refdiff.
    pairs: number of rounds.
    steps: tokens decoded per measurement.
    lookup_tokens: tokens generated with prompt lookup after the first.
    min_seconds: how long products and ceilings are repeated.
    pause: seconds before each measurement, until the threads of the previous side have fallen asleep.
    batch, context: number of sequences and of tokens in a training step.
    """

    folder: str | None = None
    threads: int = 1
    dtype: str = "float32"
    backend: str = "numpy"
    against: tuple[str, ...] = ()
    pairs: int = 5
    steps: int = 16
    lookup_tokens: int = 128
    min_seconds: float = 0.3
    pause: float = 0.3
    batch: int = 16
    context: int = 256


class Side:
    """A library to measure. A library without the model implements only `bind_weights`."""

    command: Callable[[str], list[str]]  # arguments for Python to print the first token after a prompt
    open: Callable[[str], None]  # open the checkpoint in this folder, and set `itemsize`
    generate: Callable[..., Ids]  # (ids (B, T), streamer, max_new_tokens=N, …) → the new tokens (B, N)
    bind_weights: Callable[[list[FloatArray], FloatArray], Callable[[], Any]]  # → x weightᵀ for each weight
    trainer: Callable[[str, Ids], Callable[[], float]]  # → one step on (B, T), returns the loss before it

    clock: Callable[[], float] = staticmethod(time.perf_counter)
    peak: Callable[[], int | None] = staticmethod(peak_memory)  # peak bytes of this process or device
    wait: Callable[[], None] = staticmethod(lambda: None)  # wait for the device to finish
    itemsize: int  # bytes per number of the matrices in memory
    last_token_only: ClassVar[bool] = False  # whether the last layer skips all but a prompt's last token

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = str(settings.folder)

    def prepare(self) -> None:
        """Import packages and find the device; raise `ImportError` if something is missing."""
        if self.settings.backend == "cupy":
            arrays.backend("cupy")
            import cupy

            self.use_device(lambda: cupy.cuda.get_current_stream().synchronize(), cupy.cuda.runtime.memGetInfo)

    def use_device(self, wait: Callable[[], None], memory: Callable[[], tuple[int, int]]) -> None:
        """Measure on a device, given functions that wait for it and that return its free and total memory.

        The memory pools of the libraries return nothing to the device, so the memory in use is also the peak.
        """
        free = memory()[0]
        self.wait, self.peak = wait, lambda: free - memory()[0]

    def measure(self, row: Row) -> Iterator[Answer]:
        """Prepare to measure a row and yield `READY`; then yield one answer per measurement."""
        return row.kind.measure(self, row)

    def time_call(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Call `work`; return its seconds and its result."""
        self.wait()
        started = self.clock()
        result = work()
        self.wait()
        return self.clock() - started, result

    def time_repeated(self, work: Callable[[], Any], min_seconds: float) -> tuple[float, Any]:
        """Repeat `work` for at least `min_seconds`; return the mean seconds of a call, and the last result."""

        def repeat() -> tuple[int, Any]:
            started, count = self.clock(), 0
            while count == 0 or self.clock() - started < min_seconds:
                result = work()
                count += 1
            return count, result

        seconds, (count, result) = self.time_call(repeat)
        return seconds / count, result
