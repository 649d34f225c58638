"""A side of a comparison, in the process that is measured: the few steps of its library, and a clock."""

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
"""Types that matrices are kept in on a device; what is computed between them stays float32 here."""

FloatArray = NDArray[np.float32]
Answer = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What every side is told.

    folder: the checkpoint, or None where no row needs one. backend: refdiff's. against: the sides beside refdiff.
    pairs: rounds that count. steps: tokens decoded at a time. looked_up: tokens of prompt lookup after the first.
    least: seconds that products and ceilings are repeated. rest: seconds before each side's turn, so that the threads
    of the one before it fall asleep. batch and context: of a training step.
    """

    folder: str | None = None
    threads: int = 1
    dtype: str = "float32"
    backend: str = "numpy"
    against: tuple[str, ...] = ()
    pairs: int = 5
    steps: int = 16
    looked_up: int = 128
    least: float = 0.3
    rest: float = 0.3
    batch: int = 16
    context: int = 256


class Side:
    """A library as it is measured. One without a model has `hold` alone."""

    command: Callable[[str], list[str]]  # what Python runs to show the first token after a prompt
    open: Callable[[str], None]  # open the checkpoint in this folder, and set `itemsize`
    generate: Callable[..., Ids]  # (ids (B, T), streamer, max_new_tokens=N, …) → the new tokens (B, N)
    hold: Callable[[list[FloatArray], FloatArray], Callable[[], Any]]  # → x weightᵀ of each weight; gives the last
    trainer: Callable[[str, Ids], Callable[[], float]]  # → one step on (B, T), gives the loss before it

    clock: Callable[[], float] = staticmethod(time.perf_counter)
    peak: Callable[[], int | None] = staticmethod(peak_memory)  # the most bytes of this process, or device, until now
    wait: Callable[[], None] = staticmethod(lambda: None)  # until the device has done all that it was given
    itemsize: int  # bytes of a number in the matrices as they lie in memory
    sparing: ClassVar[bool] = False  # whether a prompt's last layer is computed for its last token alone

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = str(settings.folder)

    def prepare(self) -> None:
        """Find the device or import what the work needs; raise `ImportError` where that is not there."""
        if self.settings.backend == "cupy":
            arrays.backend("cupy")
            import cupy

            self.use_device(lambda: cupy.cuda.get_current_stream().synchronize(), cupy.cuda.runtime.memGetInfo)

    def use_device(self, wait: Callable[[], None], memory: Callable[[], tuple[int, int]]) -> None:
        """Work on a device: `wait` until it is done, and how much of its memory is free, of how much.

        A library's pool gives no memory back, so that what is in use beyond that at the start is the most there was.
        """
        free = memory()[0]
        self.wait, self.peak = wait, lambda: free - memory()[0]

    def measuring(self, row: Row) -> Iterator[Answer]:
        """Prepare to measure a row until the first, empty answer; then measure it for each answer."""
        return row.kind.measuring(self, row)

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Return how many seconds the work took, and its result."""
        self.wait()
        started = self.clock()
        result = work()
        self.wait()
        return self.clock() - started, result

    def repeated(self, work: Callable[[], Any], least: float) -> tuple[float, Any]:
        """Do the work again and again for `least` seconds; return how many one time took, and the last result."""

        def times() -> tuple[int, Any]:
            started, count = self.clock(), 0
            while count == 0 or self.clock() - started < least:
                result = work()
                count += 1
            return count, result

        seconds, (count, result) = self.timed(times)
        return seconds / count, result
