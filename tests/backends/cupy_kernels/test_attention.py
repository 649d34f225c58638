"""What the kernels of attention are told of their arrays."""

import ctypes
import re

import numpy as np

from refdiff.backends.cupy_kernels import device
from refdiff.backends.cupy_kernels.attention import AXES, SHAPE, Call, axes_of, rows_lie_whole
from tests.cuda.emulation import EmulatedDevice


def test_axes_count_elements_and_shared_ones_are_zero() -> None:
    x = np.zeros((2, 3, 5, 8), np.float16)
    assert axes_of(x).item() == (120, 40, 8, 1)
    assert axes_of(x[:, ::2, :, :3]).item() == (120, 80, 8, 1)
    assert axes_of(x.swapaxes(1, 2)).item() == (120, 8, 40, 1)
    assert axes_of(np.zeros((2, 1, 5, 1))).item() == (5, 0, 1, 0)
    assert axes_of(np.zeros((2, 3, 5))).item() == (15, 5, 1, 0)
    assert axes_of(None).item() == (0, 0, 0, 0)


def test_structs_are_laid_out_as_in_the_source() -> None:
    """The fields in order, and no padding that C would put between them."""
    source = (device.SOURCES / "attention.cuh").read_text()
    declared = {}
    for name in ("Axes", "Shape"):
        body = re.search(rf"struct {name} {{(.*?)}};", source, re.DOTALL)
        assert body is not None
        declared[name] = [
            (field.strip(), kind)
            for kind, fields in re.findall(r"(\w+) ([\w, ]+);", body[1])
            for field in fields.split(",")
        ]
    kinds = {"int64": np.dtype(np.int64), "Axes": AXES, "int": np.dtype(np.int32), "float": np.dtype(np.float32)}
    for name, dtype in (("Axes", AXES), ("Shape", SHAPE)):
        assert [(field, kinds[kind]) for field, kind in declared[name]] == [
            (field, dtype.fields[field][0]) for field in dtype.names
        ]

    class Tail(ctypes.Structure):
        _fields_ = (("axes", ctypes.c_int64 * 24), ("ints", ctypes.c_int32 * 7), ("scale", ctypes.c_float))

    assert SHAPE.itemsize == ctypes.sizeof(Tail)


def test_arrays_are_copied_only_where_they_must_be() -> None:
    x = np.arange(2 * 4 * 5 * 8, dtype=np.float32).reshape(2, 4, 5, 8)
    first, second = rows_lie_whole(x[:, :2], x[:, 2:])
    assert np.shares_memory(first, x)
    assert np.shares_memory(second, x)
    for one, other in ((x[:, :2], x[:, 2:].copy()), (x[..., ::2], x[..., 1::2]), (x[..., ::-1], x[..., ::-1])):
        copies = rows_lie_whole(one, other)
        assert copies[0].strides == copies[1].strides
        assert copies[0].strides[-1] == x.itemsize
        for copy, of in zip(copies, (one, other), strict=True):
            np.testing.assert_array_equal(copy, of)


def test_a_call_knows_its_grid() -> None:
    q, k, v = (np.zeros(shape, np.float32) for shape in ((2, 6, 37, 8), (2, 3, 41, 8), (2, 3, 41, 16)))
    call = Call.of(EmulatedDevice(), (q, q), (k, k), v, np.float32(1), None, None, True)
    assert call is not None
    assert (call.tiles.rows, call.rows) == (64, 2)  # 2 heads · 37 queries to a key head, in tiles of 64
    assert call.defines == {"NUMBER": "float", "MAPS": 2, "D": 8, "E": 16, "ROWS": 64, "KEYS": 32}
    assert call.shape["scale"] == np.float32(8**-0.5)
    assert (call.shape["causal"], call.shape["T"], call.shape["S"]) == (1, 37, 41)
