"""Products in pieces, of tokens, keys and values: where these lie, what is summed up, and how exactly."""

from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.numpy import NumpyKernels, gemm
from refdiff.backends.numpy.gemm_blocks import TokenBlocks, key_blocks, multiply_keys, multiply_rows, multiply_values
from refdiff.backends.numpy.runtime import Runtime
from refdiff.backends.numpy.tuning import Tuning
from tests.backends.tuned import tune
from tests.backends.vjp_cases import normal

FAST = tune(NumpyKernels(3), unpacked_tokens=24, blocked_outputs=100)  # whatever the processor
T = FAST.runtime.tuning


def single(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def undefined() -> Runtime:
    """A runtime whose memory is NaN until it is written to."""
    rt = Runtime(1)
    rt.empty = lambda shape, dtype: np.full(shape, np.nan, dtype)
    return rt


@pytest.fixture
def laid(monkeypatch: Any) -> list[int]:
    """The numbers of tokens that were copied into blocks."""
    numbers = []

    def blocks(rt: Runtime, flat: Any) -> TokenBlocks:
        numbers.append(len(flat))
        return TokenBlocks(rt, flat)

    monkeypatch.setattr(gemm, "TokenBlocks", blocks)
    return numbers


def test_many_parts_are_added_up_in_float64() -> None:
    """Each of a thousand parts is too small for the float32 that they are added to, one after the other."""
    blocks = np.full((1, 1001, 64), 2.0**-25, np.float32)
    blocks[:, 0] = 1
    out = np.empty((28, 64), np.float32)
    multiply_rows(T, np.ones((28, 1001), np.float32), 28, blocks, out, 1)
    np.testing.assert_array_equal(out, np.float32(1 + 1000 * 2.0**-25))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("outputs", "terms"), [(129, 512), (100, 700), (260, 2048), pytest.param(101, 40_000, marks=pytest.mark.slow)]
)
def test_many_tokens_are_multiplied_as_exactly_as_the_layer_does(
    outputs: int, terms: int, order: Any, laid: list[int]
) -> None:
    """Laid in blocks once for all weights, whether the last block is whole, narrow or the only one."""
    weight, bias = single(1, outputs, terms), single(2, 40)
    of_weight = weight.T.astype(np.float64)
    for rows in (25, 48, 64, 65, 200):
        x = np.asarray(single(rows, 2, rows, terms), order=order)
        exact = x.astype(np.float64) @ of_weight
        with FAST.inference_scope():
            results = FAST.linears(x, {"weight": weight}, {"weight": weight[:40], "bias": bias})
        of_layer = np.square(layers.linear(x, weight) - exact).mean()
        assert np.square(results[0] - exact).mean() <= 2 * of_layer
        assert np.square(results[1] - exact[..., :40] - bias).mean() <= 2.5 * of_layer
        assert all(result.reshape(2 * rows, -1).T.flags.c_contiguous for result in results)
    assert laid == [50, 96, 128, 130, 400]


def test_tokens_are_copied_into_blocks_where_that_is_faster_and_nowhere_else(laid: list[int]) -> None:
    def multiply(
        tokens: int = 25, terms: int = 512, outputs: int = 100, dtype: Any = np.float32, kernels: Any = FAST
    ) -> None:
        x, weight = normal(0, tokens, terms).astype(dtype), normal(1, outputs, terms).astype(dtype)
        np.testing.assert_allclose(kernels.linear(x, weight), layers.linear(x, weight), rtol=1e-3, atol=1e-3)

    with FAST.inference_scope():
        multiply()
        assert laid == [25]
        multiply(tokens=24)
        multiply(terms=511)
        multiply(outputs=99)
        multiply(dtype=np.float64)
    packing = tune(NumpyKernels(3), unpacked_tokens=1, blocked_outputs=100)
    with packing.inference_scope():
        multiply(kernels=packing)
    multiply()  # outside of a pass, where BLAS has its own threads
    assert laid == [25]


def test_a_stored_weight_beside_others_is_expanded_as_ever(laid: list[int]) -> None:
    x, weight = single(0, 30, 1024), single(1, 200, 1024)
    with FAST.inference_scope():
        one, other = FAST.linears(x, {"weight": weight}, {"weight": weight.astype(np.float16)})
    assert laid == [30]
    np.testing.assert_allclose(one, layers.linear(x, weight), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        other, layers.linear(x, weight.astype(np.float16).astype(np.float32)), rtol=1e-4, atol=1e-4
    )


def test_a_token_of_nan_or_infinity_changes_no_other(laid: list[int]) -> None:
    x, weight = single(0, 100, 1024), single(1, 200, 1024)
    spoiled = x.copy()
    spoiled[3], spoiled[70], spoiled[99] = np.nan, np.inf, 3e38
    with FAST.inference_scope(), np.errstate(all="ignore"):
        clean, other = FAST.linear(x, weight), FAST.linear(spoiled, weight)
    untouched = np.delete(np.arange(100), [3, 70, 99])
    np.testing.assert_array_equal(other[untouched], clean[untouched])
    assert not np.isfinite(other[[3, 70]]).any()
    assert laid == [100, 100]


def test_an_infinite_weight_makes_the_numbers_that_it_does_in_the_layer(laid: list[int]) -> None:
    x, weight = single(0, 100, 1024), single(1, 200, 1024)
    weight[7, 5] = np.inf
    with FAST.inference_scope(), np.errstate(all="raise"):
        found = FAST.linear(x, weight)
    np.testing.assert_allclose(found, layers.linear(x, weight), rtol=1e-4, atol=1e-4)
    assert laid == [100]


@pytest.mark.parametrize("d", [5, 64])
@pytest.mark.parametrize("seen", [1, 63, 64, 65, 150, 192, 201])
def test_queries_meet_as_many_of_the_keys_as_there_is_room_for(d: int, seen: int) -> None:
    """What lies beside the last key is never read, nor what lies beside the room written to."""
    q, k = normal(0, 2, 3, 4, 30, d), normal(1, 2, 3, 201, d)
    blocks = key_blocks(undefined(), k)
    assert blocks.shape == (2, 3, 4, d, 64)
    for most in (T.unpacked_ops, 7 * d * 64):  # all queries at a time, or seven
        room = np.full((2, 3, 4, 30, seen + 3), -1.0)
        multiply_keys(Tuning(unpacked_ops=most), q, blocks[:, :, None], room[..., :seen])
        np.testing.assert_allclose(room[..., :seen], q @ k[:, :, None, :seen].swapaxes(3, 4), rtol=1e-12, atol=1e-12)
        assert (room[..., seen:] == -1).all()


def test_many_parts_of_the_keys_are_added_up_in_double_precision() -> None:
    """In float32 a number of 2⁻²⁴ of the sum before it would be lost, as often as it is added."""
    keys = (T.float32_parts + 1) * T.value_terms
    v = np.zeros((keys, 64), np.float32)
    v[0], v[T.value_terms :: T.value_terms] = 1, 2.0**-24
    found = multiply_values(T, np.ones((32, keys), np.float32), v)
    assert (found == 1 + T.float32_parts * 2.0**-24).all()
