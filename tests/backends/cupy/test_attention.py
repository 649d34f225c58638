"""What the kernels of attention are told of their arrays."""

import re
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.cupy import CupyKernels, attention, device, rope
from refdiff.backends.cupy.geometry import RESERVED_SHARED, shared_bytes
from tests.backends.cupy.cases import heads, seen
from tests.backends.cupy.test_kernels import hold
from tests.backends.vjp_cases import normal
from tests.cuda.emulation import BFLOAT16, EmulatedDevice

COUNTED = [
    ("s.length ? *s.length + s.T : s.S", "s.S"),
    ("s.length ? *s.length + s.T : s.S", "s.length ? *s.length : s.S"),
]


class Idle(EmulatedDevice):
    """A device of some size that only notes what it is asked for."""

    def launch(self, file: str, kernel: str, *rest: Any) -> None:
        self.launched.append(kernel)


@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize("mistake", [None, *COUNTED])
def test_where_the_device_counts_keys_what_lies_past_them_is_not_read(multiprocessors: int, mistake: Any) -> None:
    """Room for 523 keys, of which 301 are there: the rest is NaN, and the splits that have none add nothing."""
    B, H, K, T, d, e, room, there = 2, 4, 2, 1, 5, 6, 523, 301
    q1, q2 = (normal(i, B, H, T, d).astype(np.float32) for i in range(2))
    k1, k2 = (normal(i, B, K, room, d).astype(np.float32) for i in range(2, 4))
    v = normal(4, B, K, room, e).astype(np.float32)
    mask = np.random.default_rng(5).random((B, 1, 1, room)) < 0.7
    exact = layers.diff_attention(
        q1, k1[:, :, :there], q2, k2[:, :, :there], v[:, :, :there], np.float32(0.7), mask[..., :there]
    )
    for x in (k1, k2, v):
        x[:, :, there:] = np.nan
    change = (lambda text: text) if mistake is None else (lambda text: text.replace(*mistake))
    kernels = CupyKernels(EmulatedDevice(multiprocessors=multiprocessors, change=change))
    with kernels.runtime.counted_by(np.array([there - T])), np.errstate(all="ignore"):
        got = kernels.diff_attention(q1, k1, q2, k2, v, np.float32(0.7), mask)
    right = bool(np.allclose(got, exact, rtol=1e-5, atol=1e-5))
    assert right is (mistake is None)


@pytest.mark.parametrize(
    ("number", "rounded"),
    [(np.float16, None), pytest.param(BFLOAT16, None, marks=pytest.mark.slow), (np.float32, "bfloat16")],
)
def test_tensor_cores_round_what_they_multiply_and_nothing_else(number: Any, rounded: str | None) -> None:
    """Several tiles of rows, of keys and of columns of the values; a query is wider than one matrix."""
    B, H, K, T, S, d, e = 1, 4, 2, 37, 41, 21, 136
    tile = np.dtype(number) if rounded is None else BFLOAT16
    q1, q2 = (normal(i, B, H, T, d).astype(tile).astype(number) for i in range(2))
    k1, k2 = (normal(i, B, K, S, d).astype(tile).astype(number) for i in range(2, 4))
    v, lambda_ = normal(4, B, K, S, e).astype(tile).astype(number), normal(5, B, H, T, 1).astype(np.float32)
    mask = np.random.default_rng(6).random((B, 1, T, S)) < 0.8
    mask[0, 0, 5] = False
    emulated = EmulatedDevice(capability=80, order=2, multiprocessors=1)
    got = CupyKernels(emulated, rounded).diff_attention(q1, k1, q2, k2, v, lambda_, mask)
    assert emulated.launched == ["attention_mma"]
    assert got.dtype == number
    exact = layers.diff_attention(*(x.astype(np.float64) for x in (q1, k1, q2, k2, v, lambda_)), mask)
    unit = 2.0**-9 if tile == BFLOAT16 else 2.0**-12  # each weight, and then the result where it is of 16 bits
    bound = unit * (1 + np.abs(lambda_).max()) * np.abs(v.astype(np.float64)).max() + unit * np.abs(exact).max()
    assert np.abs(got.astype(np.float64) - exact).max() < bound
    assert (got[0, :, 5] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d", "e", "number"),
    [
        (32, 64, np.float16),
        (80, 80, BFLOAT16),
        pytest.param(128, 256, BFLOAT16, marks=pytest.mark.nightly),
        pytest.param(256, 136, np.float16, marks=pytest.mark.nightly),
    ],
)
def test_tensor_cores_in_all_sizes(d: int, e: int, number: Any) -> None:
    """Every mask and bias, one map and two, in sizes of a head."""
    q1, k1, q2, k2, v = heads(3, d, e)
    q, k = (np.concatenate(pair, axis=1) for pair in ((q1, q2), (k1, k2)))
    calls: dict[str, tuple[tuple[Any, ...], int]] = {
        "diff_attention": ((q1, k1, q2, k2, v, np.asarray(-1.3)), 2),
        "diff_heads_hf": ((q, k, v, np.asarray(0.6), 0.3, 1e-5), 1),
        "plain_heads": ((q1, k1, v), 1),
    }
    for name, (args, maps) in calls.items():
        for kwargs in seen(3, maps):
            assert hold(name, args, kwargs, number, capability=80, multiprocessors=1)


def room_for_two(tile: int) -> int:
    """The bytes that a block may have where two with such tiles just fit."""
    return 2 * (tile + RESERVED_SHARED) - RESERVED_SHARED


@pytest.mark.slow
def test_every_tile_that_can_be_chosen_gives_the_layer() -> None:
    """Of the way forward and back: each height that the rows of a key head can fill, with keys by 32 and by 16."""
    chosen: set[tuple[Any, ...]] = set()
    B, K, d, e = 1, 1, 5, 6
    for H, T, S, rows in ((3, 50, 57, 64), (3, 10, 41, 32), (2, 3, 35, 16)):
        g, v = normal(6, B, H, T, e), normal(5, B, K, S, e)
        q1, q2 = normal(1, B, H, T, d), normal(2, B, H, T, d)
        k1, k2 = normal(3, B, K, S, d), normal(4, B, K, S, d)
        mask = np.random.default_rng(0).random((B, 1, T, S)) < 0.7
        mask[:, :, min(T, 7) - 1] = False
        exact = layers.diff_attention(q1, k1, q2, k2, v, np.float64(0.7), mask)
        back = layers.diff_attention_vjp(g, q1, k1, q2, k2, v, np.float64(0.7), mask)
        singles = [x.astype(np.float32) for x in (g, q1, k1, q2, k2, v)]
        for keys in (16, 32):
            devices = [
                EmulatedDevice(shared=room_for_two(shared_bytes(d, e, 2, rows, keys, way)), order=2)
                for way in (False, True)
            ]
            forward, backward = map(CupyKernels, devices)
            got = forward.diff_attention(*singles[1:], np.float32(0.7), mask)
            np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)
            for one, truth in zip(backward.diff_attention_vjp(*singles, np.float32(0.7), mask), back, strict=True):
                np.testing.assert_allclose(one, truth, rtol=1e-4, atol=1e-4)
            chosen |= {(x[0], x[1]["ROWS"], x[1]["KEYS"]) for device in devices for x in device.trace}
    assert {one for one in chosen if one[0] != "row_sums"} == {
        (kernel, rows, keys)
        for kernel in ("attention", "to_queries", "to_keys")
        for rows in (16, 32, 64)
        for keys in (16, 32)
    }


def test_a_row_of_which_a_bias_hides_every_key_is_zero() -> None:
    """And NaN in the layer, where only a mask hides: here a score of −∞ is what a mask makes of it."""
    q, bias = normal(0, 1, 2, 3, 5).astype(np.float32), np.zeros((3, 3), np.float32)
    bias[1] = -np.inf
    got = CupyKernels(EmulatedDevice()).diff_attention(q, q, q, q, q, np.float32(0.5), None, bias)
    with np.errstate(invalid="ignore"):
        layer = layers.diff_attention(q, q, q, q, q, np.float32(0.5), None, bias)
    assert np.isnan(layer[:, :, 1]).all()
    assert (got[:, :, 1] == 0).all()
    np.testing.assert_allclose(got[:, :, ::2], layer[:, :, ::2], rtol=1e-5, atol=1e-6)


def test_who_has_tensor_cores() -> None:
    for capability, number, has in (
        (70, "float16", False), (75, "float16", True), (75, "bfloat16", False), (80, "bfloat16", True),
        (90, "float", False), (90, None, False),
    ):  # fmt: skip
        assert EmulatedDevice(capability=capability).tensor_cores(number) == (number if has else None)


def test_few_queries_and_float32_are_not_rounded() -> None:
    one = np.ones((1, 2, 5, 8), np.float32)
    for x, kernels in (
        (one[:, :, :3], CupyKernels(emulated := EmulatedDevice(capability=90), "bfloat16")),
        (np.ones((1, 2, 31, 8), np.float32), CupyKernels(other := EmulatedDevice(capability=90))),
    ):
        kernels.diff_attention(*[x] * 5, np.float32(1))
    assert emulated.launched == other.launched == ["attention"]


@pytest.mark.parametrize("multiprocessors", [108, 132, 148])
@pytest.mark.parametrize(("number", "rounded"), [(np.float16, None), (BFLOAT16, None), (np.float32, "bfloat16")])
def test_prompts_take_tensor_cores_and_tokens_split_the_keys(
    number: Any, rounded: str | None, multiprocessors: int
) -> None:
    """Of the full-size model: a piece of 1,024 tokens has 256 blocks, a few less than two for each multiprocessor."""

    def launched(T: int, S: int) -> list[str]:
        device = Idle(capability=80, multiprocessors=multiprocessors)
        q, k, v = (np.zeros(shape, number) for shape in ((1, 16, T, 64), (1, 4, S, 64), (1, 4, S, 128)))
        CupyKernels(device, rounded).diff_attention(q, k, q, k, v, np.float32(1))
        return device.launched

    for T in (128, 512, 1024, 2048):
        assert launched(T, T) == ["attention_mma"]
    for T in (1, 4):  # too few rows for a matrix, and just enough for one, whose keys one warp would read alone
        assert launched(T, 8192) == ["attention", "combine"]


def declared(file: str, name: str, **kinds: np.dtype[np.void]) -> np.dtype[np.void]:
    """Read a struct of a source: the record that C++ lays out alike. `kinds` are the structs that it has inside."""
    body = re.search(rf"struct {name} {{(.*?)\n}};", (device.SOURCES / file).read_text(), re.DOTALL)
    assert body is not None
    known = {"int64": np.int64, "const int64*": np.int64, "int": np.int32, "float": np.float32, **kinds}
    lines = re.findall(r"^\s+(const \w+\*|\w+) ([\w, ]+);", body[1], re.MULTILINE)
    fields = [(field.strip(), known[kind]) for kind, names in lines for field in names.split(",")]
    return np.dtype(fields, align=True)


def test_records_are_the_structs_of_the_sources() -> None:
    """The fields in order, and no padding that C would put between them."""
    axes, steps = declared("attention_rows.cuh", "Axes"), declared("rope.cu", "Steps")
    shape, append = declared("attention_rows.cuh", "Shape", Axes=axes), declared("rope.cu", "Append", Steps=steps)
    for ours, theirs in ((attention.AXES, axes), (attention.SHAPE, shape), (rope.STEPS, steps), (rope.APPEND, append)):
        assert ours.fields == theirs.fields
        assert ours.itemsize == theirs.itemsize
