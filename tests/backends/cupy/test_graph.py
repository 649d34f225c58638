"""What is asked of CuPy for a recording, in which order, with a stand-in for it; what recordings take from kernels."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

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
def said(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A CuPy that writes down what it was asked for."""
    said: list[Any] = []

    class Stream:
        def __init__(self, non_blocking: bool = False) -> None:
            self.name = "its own" if non_blocking else "current"

        def record(self) -> str:
            said.append(f"event of {self.name}")
            return "event"

        def wait_event(self, event: str) -> None:
            said.append(f"{self.name} waits for {event}")

        def synchronize(self) -> None:
            said.append(f"wait for {self.name}")

        def begin_capture(self) -> None:
            said.append("begin")

        def end_capture(self) -> Any:
            said.append("end")
            return SimpleNamespace(launch=lambda: said.append("launch"))

        def __enter__(self) -> None:
            said.append(f"on {self.name}")

        def __exit__(self, *_: object) -> None:
            said.append(f"off {self.name}")

    class using_allocator(Stream):  # noqa: N801, CuPy's name
        def __init__(self, allocator: Any) -> None:
            self.name = allocator()

    class MemoryPool:
        def malloc(self) -> str:
            return "pool"

    cuda = SimpleNamespace(
        Stream=Stream, MemoryPool=MemoryPool, using_allocator=using_allocator,
        get_current_stream=Stream,
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    return said


BEFORE = ["event of current", "on its own", "on pool", "its own waits for event"]
AFTER = ["off pool", "off its own"]


def test_the_work_is_done_once_and_recorded_the_second_time(said: list[Any]) -> None:
    """With the pool's memory both times, and after all that the caller's stream has to do."""
    results = iter(("first", "second"))

    def work() -> str:
        said.append("work")
        return next(results)

    recorded = GraphRecorder().record(work)
    assert said == [*BEFORE, "work", "wait for its own", "begin", "work", "end", *AFTER]
    assert recorded.replay() == recorded.replay() == "second"
    assert said[-2:] == ["launch", "launch"]


@pytest.mark.parametrize("refusal", [CUDARuntimeError, OutOfMemoryError, NotImplementedError])
@pytest.mark.parametrize("time", [1, 2])
def test_a_refusal_ends_the_recording_and_is_said(said: list[Any], refusal: type[Exception], time: int) -> None:
    times = iter(range(1, 3))

    def work() -> None:
        if next(times) == time:
            raise refusal("of cuBLAS")

    with pytest.raises(GraphError, match=f"{refusal.__name__}: of cuBLAS"):
        GraphRecorder().record(work)
    assert said == [*BEFORE, *(["wait for its own", "begin", "end"] if time == 2 else []), *AFTER]


def test_what_must_be_a_kernels_is_no_layers() -> None:
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
