"""Weights of 16 bits, expanded where they are used: every number they can hold, and their products."""

import ml_dtypes
import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.numpy import NumpyKernels
from refdiff.backends.numpy.half_weights import FiniteWeights, expand
from refdiff.backends.numpy.tuning import Tuning

TYPES = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
FAST = NumpyKernels(3)


@pytest.mark.parametrize("out", [np.float32, np.float64])
@pytest.mark.parametrize("kind", TYPES)
def test_every_number_is_expanded_exactly(kind: np.dtype, out: type) -> None:
    numbers = np.arange(2**16, dtype=np.uint16).view(kind).reshape(256, 256)
    expanded = np.empty(numbers.shape, out)
    expand(numbers, expanded)
    with np.errstate(invalid="ignore"):
        right = numbers.astype(np.float32)
    np.testing.assert_array_equal(expanded, right)
    np.testing.assert_array_equal(np.signbit(expanded), np.signbit(right))


def test_infinity_and_nan_are_found_once() -> None:
    finite, rng = FiniteWeights(Tuning.expanded_weights), np.random.default_rng(0)
    good = rng.normal(size=(2048, 1031)).astype(np.float16)
    good[0, :4] = 65504, -65504, 6e-8, -0.0
    assert finite(good)
    for bad in (np.inf, -np.inf, np.nan, -np.nan):
        weight = good.copy()
        weight[-1, -1] = bad
        assert not finite(weight)
    good[3, 5] = np.inf  # as long as it may be written to, it is looked at again
    assert not finite(good)
    good[3, 5] = 0
    good.flags.writeable = False
    assert finite(good)
    good.flags.writeable = True
    good[3, 5] = np.inf
    good.flags.writeable = False
    assert finite(good)
    del good
    assert not finite._known  # what is gone is forgotten


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("rows", [1, 3, 25])
def test_a_product_with_infinity_nan_and_huge_numbers(rows: int, kind: np.dtype) -> None:
    rng = np.random.default_rng(rows)
    x, weight = rng.normal(size=(rows, 1031)).astype(np.float32), rng.normal(size=(513, 1031)).astype(kind)
    x[0] *= 1e34
    x[-1, 0] = np.inf
    with np.errstate(all="ignore"):
        for place, bad in (((0, 0), 1.0), ((7, 3), np.inf), ((9, 5), np.nan)):
            weight[place] = bad
            result = FAST.linear(x, weight)
            np.testing.assert_allclose(result, layers.linear(x, weight.astype(np.float32)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", TYPES)
def test_batch_items_are_independent(kind: np.dtype) -> None:
    """What one token is, however large, changes nothing for another."""
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(5, 1030)).astype(np.float32), rng.normal(size=(1031, 1030)).astype(kind)
    other = x.copy()
    other[3] *= 1e30
    with FAST.inference_scope():
        one, two = FAST.linear(x, weight), FAST.linear(other, weight)
    np.testing.assert_array_equal(np.delete(one, 3, axis=0), np.delete(two, 3, axis=0))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 2, 7, 25, 130])
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(13, 1031), (Tuning.expanded_rows, 1031), (3 * 2**20 // 1030 + 5, 1030)]
)
def test_a_product_is_that_of_the_expanded_weight(
    kind: np.dtype, dtype: type, rows: int, outputs: int, inputs: int
) -> None:
    rng = np.random.default_rng(rows)
    x, bias = rng.normal(size=(rows, inputs)).astype(dtype), rng.normal(size=outputs).astype(dtype)
    weight = rng.normal(size=(outputs, inputs)).astype(kind)
    weight.flags.writeable = False
    expanded = weight.astype(dtype)
    with FAST.inference_scope():
        result = FAST.linear(x, weight, bias)
        same = FAST.linear(x, weight, bias)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, same)
    truth = layers.linear(x.astype(np.float64), expanded.astype(np.float64), bias.astype(np.float64))
    reference = layers.linear(x, expanded, bias)
    allowed = 2 * np.abs(reference - truth).max() + max(np.finfo(dtype).eps, 1e-14) * np.abs(truth).max()
    assert np.abs(result - truth).max() <= allowed
