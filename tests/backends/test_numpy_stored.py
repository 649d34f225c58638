"""Weights of 16 bits, expanded where they are used: every number they can hold, and their products."""

import ml_dtypes
import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.numpy_stored import ROWS, expand, is_stored
from refdiff.backends.numpy_vjp_kernels import NumpyVjpKernels
from refdiff.backends.workers import Workers

TYPES = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
FAST = NumpyVjpKernels(Workers(3))


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


def test_which_weights_are_stored() -> None:
    assert all(is_stored(np.ones(3, kind)) for kind in TYPES)
    assert not any(is_stored(np.ones(3, kind)) for kind in (np.float32, np.float64))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 2, 7, 25, 130])
@pytest.mark.parametrize("outputs", [13, ROWS, 3 * ROWS + 5])
def test_a_product_is_that_of_the_expanded_weight(kind: np.dtype, dtype: type, rows: int, outputs: int) -> None:
    rng = np.random.default_rng(rows)
    x, bias = rng.normal(size=(rows, 1031)).astype(dtype), rng.normal(size=outputs).astype(dtype)
    weight = rng.normal(size=(outputs, 1031)).astype(kind)
    weight.flags.writeable = False
    expanded = weight.astype(dtype)
    with FAST.running():
        result = FAST.linear(x, weight, bias)
        same = FAST.linear(x, weight, bias)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, same)
    truth = layers.linear(x.astype(np.float64), expanded.astype(np.float64), bias.astype(np.float64))
    reference = layers.linear(x, expanded, bias)
    allowed = 2 * np.abs(reference - truth).max() + max(np.finfo(dtype).eps, 1e-14) * np.abs(truth).max()
    assert np.abs(result - truth).max() <= allowed
