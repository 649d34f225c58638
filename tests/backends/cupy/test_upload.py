"""Uploads through pinned buffers, with a stand-in for CuPy whose copies happen as late as CUDA allows."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff.backends.cupy.tuning import Tuning
from refdiff.backends.cupy.upload import Upload
from tests.layers.inputs import says

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Pinned(bytearray):
    @property
    def ptr(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self))


class Late:
    """A stream: a copy happens when somebody waits for what comes after it, and reads its source only then."""

    ptr = 7

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        assert (kind, stream) == (1, self.ptr)
        self.waiting.append((to, source, size))

    def arrive(self, until: int) -> None:
        while self.waiting and until > 0:
            ctypes.memmove(*self.waiting.pop(0))
            until -= 1


class Event:
    stream: Late | None = None

    def record(self, stream: Late) -> None:
        self.stream, self.pieces = stream, list(stream.waiting)

    def synchronize(self) -> None:
        while self.stream is not None and any(piece in self.stream.waiting for piece in self.pieces):
            self.stream.arrive(1)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    stream = Late()
    runtime = SimpleNamespace(memcpyAsync=stream.copy, memcpyHostToDevice=1)

    def empty(shape: Any, dtype: Any) -> Any:
        array = np.full(shape, 99, dtype)
        return SimpleNamespace(array=array, dtype=array.dtype, data=SimpleNamespace(ptr=array.ctypes.data))

    fake = SimpleNamespace(
        __version__="14.2.0", empty=empty,
        cuda=SimpleNamespace(
            Device=lambda: 1, Event=Event, alloc_pinned_memory=Pinned, runtime=runtime,
            get_current_stream=lambda: stream,
        ),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


SMALL = Tuning(pinned_bytes=100)
ARRAYS = (
    np.arange(31, dtype=np.float32).reshape(1, 31),
    np.arange(600, dtype=np.float16).reshape(20, 30)[:, ::2],
    np.float64(3).reshape(()),
    np.zeros((0, 5), np.float32),
    np.arange(77).astype(BFLOAT16),
)


def test_all_arrives_however_late_the_copies_are(cupy: Any) -> None:
    upload = Upload(sum(x.nbytes for x in ARRAYS), tuning=SMALL)
    there = [upload(x) for x in ARRAYS]
    upload.close()
    for x, y in zip(ARRAYS, there, strict=True):
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y.array, x)


def test_another_device_than_the_current_one_is_refused(cupy: Any) -> None:
    message = (
        "device is 0, but kernels run on CuPy's current device, which is 1: call cupy.cuda.Device(0).use() before, and "
        "leave device out"
    )
    with says(ValueError, message):
        Upload(0, device=0)


def test_an_older_cupy_has_no_bfloat16(cupy: Any) -> None:
    cupy.__version__ = "13.6.0"
    upload = Upload(0, device=1)
    message = (
        "weights of bfloat16 cannot stay as they are stored: CuPy 13.6.0 has no bfloat16. Install CuPy 14 or newer, or "
        'take weights="expanded", as float32'
    )
    with says(ValueError, message):
        upload(ARRAYS[-1])
    others = [upload(x) for x in ARRAYS[:-1]]
    upload.close()
    assert [y.dtype for y in others] == [x.dtype for x in ARRAYS[:-1]]
