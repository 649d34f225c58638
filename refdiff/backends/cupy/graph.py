"""A step's launches as one: recorded by CuPy's stream capture as a CUDA graph, and launched again at once.

What is recorded must be the same each time but for what lies in memory: no answer may reach the host, no shape change,
and no memory come from elsewhere than the recorder's own pool, which keeps it as long as the graph lives. CuPy lets no
call of cuBLAS into a recording, so every product must be a kernel's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from refdiff.backends import Ops, ops_for
from refdiff.backends.decoder import Steps

MUST = ("linear", "embedding", "rms_norm", "rope_append", "diff_attention", "plain_heads")
"""What a recording takes from kernels alone: their layers would call cuBLAS, look at values, or see all room."""


class GraphError(RuntimeError):
    """What cannot be recorded, and so is done step by step; the message says why."""


class Recorded:
    """Launches that were recorded, and the arrays that they leave their results in.

    A graph knows addresses only. What lies there lives as long as this: `kept` is what was worked with, the pool that
    the memory in between came from among it.
    """

    def __init__(self, graph: Any, result: Any, kept: tuple[Any, ...]) -> None:
        self._graph, self._result, self._kept = graph, result, kept

    def replay(self) -> Any:
        """Launch all on the current stream; the result is always the same array, with new numbers in it."""
        self._graph.launch()
        return self._result


class Recorder:
    """Records on a stream of its own, with memory that nobody else is given."""

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._pool = cupy.cuda.MemoryPool()

    def record(self, work: Callable[[], Any]) -> Recorded:
        """Do some work once as usual, and record it the second time, when it is not done.

        Raises:
            GraphError: CuPy or CUDA refuse.
        """
        cupy = self._cupy
        before = cupy.cuda.get_current_stream().record()
        try:
            with self._stream, cupy.cuda.using_allocator(self._pool.malloc):
                self._stream.wait_event(before)
                work()  # compiles what is new, and fills the pool with what the recording will take from it
                self._stream.synchronize()
                return self._recorded(work)
        except GraphError:
            raise
        except (RuntimeError, cupy.cuda.memory.OutOfMemoryError) as error:  # CuPy's own are kinds of RuntimeError
            raise GraphError(f"{type(error).__name__}: {error}") from error

    def _recorded(self, work: Callable[[], Any]) -> Recorded:
        self._stream.begin_capture()
        try:
            result = work()
        except BaseException:
            with contextlib.suppress(Exception):  # a stream must not stay in this state
                self._stream.end_capture()
            raise
        return Recorded(self._stream.end_capture(), result, (work, self._pool, self._stream))


def recordable(kernels: Any) -> Steps:
    """Return the layers with these kernels; those of `MUST` raise `GraphError` instead of declining."""

    def strict(name: str, kernel: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            result = kernel(*args, **options)
            if result is NotImplemented:
                raise GraphError(f"{name} has no kernel for these shapes and types")
            return result

        return call if name in MUST else kernel

    served = Ops(**{name: strict(name, kernel) for name, kernel in vars(kernels).items()})
    return Steps(ops_for(served), linears=served.linears, rope_append=served.rope_append)
