"""What the kernels of one model share on a CUDA device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from refdiff.arrays import Array
from refdiff.backends.cupy.device import Device
from refdiff.backends.cupy.tuning import Tuning


class Runtime:
    """The device, and what changes while a decoding step is recorded; every kernel takes it as its first argument.

    Args:
        device: what compiles and launches; None is the current CUDA device.
        rounded: the 16-bit type of the model's matrices, if it has one, to which tensor cores round float32.

    Attributes:
        length: (1,) int64 on the device, the number of tokens in the cache; None where the shapes say it.
        lambdas: each λ that was computed since a recording began, by its vectors; None outside of one.
    """

    def __init__(self, device: Any = None, rounded: str | None = None, tuning: Tuning | None = None) -> None:
        self.device = device or Device()
        self.rounded, self.tuning = rounded, tuning or Tuning()
        self.length: Array | None = None
        self.lambdas: dict[Any, Array] | None = None

    @contextlib.contextmanager
    def counted_by(self, length: Array) -> Iterator[None]:
        """Let the device count the tokens of the cache, in `length` (1,) int64, where the shapes say how many fit."""
        self.length = length
        try:
            yield
        finally:
            self.length = None

    def record(self, work: Callable[[], Any]) -> Any:
        """Record work; see `graph.Recorder`. λ depends on the weights alone: it is computed once and not recorded."""
        lambdas: dict[Any, Array] = {}

        def with_lambdas() -> Any:
            self.lambdas = lambdas
            try:
                return work()
            finally:
                self.lambdas = None

        return self.device.recorder().record(with_lambdas)
