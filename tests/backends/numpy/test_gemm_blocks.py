"""Products in pieces, of tokens, keys and values: where these lie, what is summed up, and how exactly."""

from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.numpy import NumpyKernels, gemm
from refdiff.backends.numpy.gemm_blocks import TokenBlocks
from refdiff.backends.numpy.runtime import Runtime
from tests.backends.tuned import tune

FAST = tune(NumpyKernels(3), unpacked_tokens=24, blocked_outputs=100)  # whatever the processor


def single(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture
def laid(monkeypatch: Any) -> list[int]:
    """The numbers of tokens that were copied into blocks."""
    numbers = []

    def blocks(rt: Runtime, flat: Any) -> TokenBlocks:
        numbers.append(len(flat))
        return TokenBlocks(rt, flat)

    monkeypatch.setattr(gemm, "TokenBlocks", blocks)
    return numbers


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
