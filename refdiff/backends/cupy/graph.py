"""CUDA graphs: the launches of a decoding step, recorded by CuPy's stream capture and replayed as one.

A replay repeats the same launches on the same addresses. The recorded work must not read results on the host, change
shapes, or take memory from anywhere but the recorder's own pool, which keeps it as long as the graph lives. CuPy
captures no call of cuBLAS, so that every product must be a kernel's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from refdiff.backends.backend import Ops, ops_for
from refdiff.backends.decoder import Steps

MUST = ("linear", "embedding", "rms_norm", "rope_append", "diff_attention", "plain_heads")
"""Layers that a recording needs kernels for: the layers call cuBLAS, read values, or attend to the whole capacity."""


class GraphError(RuntimeError):
    """The work cannot be recorded; the message says why. Decoding then continues step by step."""


class Recorded:
    """Recorded launches, and the arrays that their results are in.

    A graph has addresses only. `kept` keeps alive what is there: the arguments, and the pool of intermediate results.
    """

    def __init__(self, graph: Any, result: Any, kept: tuple[Any, ...]) -> None:
        self._graph, self._result, self._kept = graph, result, kept

    def replay(self) -> Any:
        """Launch all on the current stream, and return the result: always the same array, with new numbers."""
        self._graph.launch()
        return self._result


class GraphRecorder:
    """Records on a stream of its own, with memory from a pool of its own."""

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._pool = cupy.cuda.MemoryPool()

    def record(self, work: Callable[[], Any]) -> Recorded:
        """Do some work once as usual, then record it without doing it.

        Raises:
            GraphError: CuPy or CUDA refuses.
        """
        cupy = self._cupy
        before = cupy.cuda.get_current_stream().record()
        try:
            with self._stream, cupy.cuda.using_allocator(self._pool.malloc):
                self._stream.wait_event(before)
                work()  # compiles kernels, and fills the pool from which the recording allocates
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
            with contextlib.suppress(Exception):  # a stream must not stay in capture mode
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
