"""What is asked of CuPy for a recording, in which order, with a stand-in for it; what recordings take from kernels."""

from __future__ import annotations

import sys
from unittest.mock import MagicMock

import numpy as np
import pytest

from refdiff.backends.cupy import CupyKernels
from refdiff.backends.cupy.graph import GraphError, GraphRecorder, recordable
from tests.cuda.emulation import EmulatedDevice


class CUDARuntimeError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A CuPy that writes down what it was asked for."""
    fake = MagicMock()
    fake.cuda.memory.OutOfMemoryError = OutOfMemoryError
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def asked(cupy: MagicMock) -> list[str]:
    """The names of the calls, in order, after those that make a recorder."""
    made = ["cuda.Stream", "cuda.MemoryPool"]
    names = [name.replace("get_current_stream()", "current").replace("Stream()", "own") for name, *_ in cupy.mock_calls]
    assert names[: len(made)] == made
    return names[len(made) :]


BEFORE = [
    "cuda.get_current_stream", "cuda.current.record", "cuda.own.__enter__", "cuda.using_allocator",
    "cuda.using_allocator().__enter__", "cuda.own.wait_event",
]  # fmt: skip
AFTER = ["cuda.using_allocator().__exit__", "cuda.own.__exit__"]


def test_the_work_is_done_once_and_recorded_the_second_time(cupy: MagicMock) -> None:
    """With the pool's memory both times, and after all that the caller's stream has to do."""
    cupy.work.side_effect = ("first", "second")
    recorded = GraphRecorder().record(cupy.work)
    capture = ["cuda.own.begin_capture", "work", "cuda.own.end_capture"]
    assert asked(cupy) == [*BEFORE, "work", "cuda.own.synchronize", *capture, *AFTER]
    stream, pool = cupy.cuda.Stream.return_value, cupy.cuda.MemoryPool.return_value
    cupy.cuda.Stream.assert_called_once_with(non_blocking=True)
    stream.wait_event.assert_called_once_with(cupy.cuda.get_current_stream.return_value.record.return_value)
    cupy.cuda.using_allocator.assert_called_once_with(pool.malloc)
    assert recorded.replay() == recorded.replay() == "second"
    assert asked(cupy)[-2:] == ["cuda.own.end_capture().launch"] * 2


@pytest.mark.parametrize("refusal", [CUDARuntimeError, OutOfMemoryError, NotImplementedError])
@pytest.mark.parametrize("time", [1, 2])
def test_a_refusal_ends_the_recording_and_is_said(cupy: MagicMock, refusal: type[Exception], time: int) -> None:
    cupy.work.side_effect = (refusal("of cuBLAS"),) if time == 1 else (None, refusal("of cuBLAS"))
    with pytest.raises(GraphError, match=f"{refusal.__name__}: of cuBLAS"):
        GraphRecorder().record(cupy.work)
    capture = ["cuda.own.synchronize", "cuda.own.begin_capture", "work", "cuda.own.end_capture"]
    assert asked(cupy) == [*BEFORE, "work", *(capture if time == 2 else []), *AFTER]


def test_recording_refuses_calls_without_a_kernel() -> None:
    kernels = CupyKernels(EmulatedDevice())
    steps = recordable(kernels)
    ops = steps.ops
    one = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(ops.rms_norm(one, None, 0.0), one)
    with pytest.raises(GraphError, match="rms_norm has no kernel for these shapes and types"):
        ops.rms_norm(one.astype(np.float64), None, 0.0)
    weights = {name: {"weight": np.eye(3, dtype=np.float32)} for name in ("gate_proj", "up_proj", "down_proj")}
    assert ops.swiglu(one, **weights, act="gelu").shape == (2, 3)  # of kernels of products, and steps on each number
    with pytest.raises(GraphError, match="linear"):
        ops.swiglu(one.astype(np.float64), **weights)
    with pytest.raises(GraphError, match="rope_append"):
        steps.rope_append(None, 0, *[np.ones((1, 2, 3, 4))] * 3, *[np.ones((1, 1, 3, 2))] * 2)
