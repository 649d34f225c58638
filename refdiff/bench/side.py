"""One side of a comparison, in the process that is measured: a clock, and the requests that it answers.

What is measured is written once, here and in `model_side.py`, out of a few steps that each library does in its own
way, so that all sides have the same inputs and the clock runs over the same work.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refdiff.bench.device import own_memory, peak_memory

CACHES = 2**30
"""Bytes of weights that a product or a ceiling goes through: so much more than caches hold that they do not help."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """What a side is told once: the checkpoint (or None), threads, dtype, and refdiff's backend."""

    folder: str | None = None
    threads: int = 1
    dtype: str = "float32"
    backend: str = "numpy"


class Side:
    """What all sides share.

    Every answer is a dict that JSON can hold. `seconds` is the time of the work alone; `tokens`, `loss` and `sample`
    are what it gave, by which the parent sees that both sides did the same. `gpu` is the device that it works on, if it
    is one of CUDA's.
    """

    requests: ClassVar[tuple[str, ...]] = ("prepare", "peak")
    clock: Callable[[], float] = staticmethod(time.perf_counter)
    gpu: Any = None

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def answer(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Answer a request.

        Raises:
            ValueError: this side does not do that.
        """
        if do not in self.requests:
            raise ValueError(f"{type(self).__name__}: got request {do!r}, expected one of {', '.join(self.requests)}")
        result: dict[str, Any] = getattr(self, do)(**arguments)
        return result

    def prepare(self) -> dict[str, Any]:
        """Import what the work needs, and set the number of threads; not timed.

        Raises:
            UnavailableError: a package is not installed.
        """
        return {}

    def peak(self) -> dict[str, Any]:
        """The most memory that this process has held, and what of it is not mapped from files now; or the device's."""
        if self.gpu is not None:
            return {"bytes": self.gpu.held()}
        return {"bytes": peak_memory(), "own_bytes": own_memory()}

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Return how many seconds the work took, and its result."""
        self.sync()
        started = self.clock()
        result = work()
        self.sync()
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

    def sync(self) -> None:
        """Wait until the device has done all that it was given; a CPU always has."""
        if self.gpu is not None:
            self.gpu.wait()


class ProductSide(Side, ABC):
    """A side that multiplies by weights."""

    requests = (*Side.requests, "product")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._x: FloatArray = np.empty((0, 0), np.float32)
        self._held: dict[tuple[int, int], tuple[Callable[[FloatArray], Any], int]] = {}

    @abstractmethod
    def hold(self, weights: list[FloatArray]) -> Callable[[FloatArray], Any]:
        """Make what multiplies x (N, inputs) by every weight (outputs, inputs), as fast as the library can.

        It gives the last product, x weightᵀ.
        """

    def product(self, size: int, outputs: int, inputs: int, least: float) -> dict[str, Any]:
        """Multiply `size` tokens with weights of outputs × inputs that no cache holds, for `least` seconds or more."""
        shape = outputs, inputs
        if shape not in self._held:
            first = np.random.default_rng(0).standard_normal(shape, np.float32)
            count = max(CACHES // first.nbytes, 1)
            # All of them different, so that no library keeps equal ones once; the last is the first drawn.
            self._held = {shape: (self.hold([np.roll(first, i, axis=0) for i in reversed(range(count))]), count)}
        multiply, count = self._held[shape]
        if self._x.shape != (size, inputs):  # the same array again, to which a side may have bound what it holds
            self._x = np.random.default_rng(1).standard_normal((size, inputs), np.float32)
        seconds, result = self.repeated(lambda: multiply(self._x), least)
        sample = np.asarray(result, np.float64).reshape(size, outputs)[-1, :: max(outputs // 8, 1)]
        return {"seconds": seconds / count, "sample": sample.tolist()}
